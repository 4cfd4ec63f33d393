"""Attack a Keras classifier of your own: a `.keras` file and the images it is for.

    python examples/attack_your_model.py model.keras --data images.npz --input-scale 0-255 --from-probabilities
    python examples/attack_your_model.py          # makes a small model and images first, to show how it goes

`images.npz` holds x (uint8, [n, height, width, channels]) and y (labels), or x_train, y_train, x_test and y_test.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import bn_vuln as bnv

CURVE = {"attack": "strong", "eps": "16/255", "eps_grid": ["2/255", "4/255", "8/255"], "queries": 500}


def main() -> None:
    """Attack the model and print its robustness curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a .keras classifier")
    parser.add_argument("--data", help="a data set by name, FILE.npz, or folder:PATH")
    parser.add_argument("--input-scale", choices=["0-1", "0-255"], default="0-1", help="the pixels that it expects")
    parser.add_argument("--from-probabilities", action="store_true", help="it ends in a softmax")
    parser.add_argument("--limit", type=int, default=200, help="images to attack")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        model, data = args.model, args.data
        if model is None:
            model, data = made(Path(folder))
            args.input_scale, args.from_probabilities = "0-255", True

        classifier = bnv.open_classifier(
            model, dataset=data, input_scale=args.input_scale, from_probabilities=args.from_probabilities
        )
        limit = {"dataset": data, "limit": args.limit}
        clean = bnv.evaluate(classifier, {"clean": {"kind": "clean"}}, **limit)["clean"]
        print(f"clean accuracy: {clean.accuracy:.1%} of {clean.n} images")

        records = bnv.evaluate(classifier, {"strong": CURVE | {"kind": "attack"}}, **limit)
        for name, record in records.items():
            print(f"{name}, eps {255 * record.perturbation['eps']:.0f}/255: at most {record.accuracy:.1%}")
            for flag in record.flags:
                print(f"    {flag.text}")


def made(folder: Path) -> tuple[Path, str]:
    """A classifier of light and dark images that takes pixels from 0 to 255 and ends in a softmax, and its images."""
    import keras

    rng = np.random.default_rng(0)
    y = np.arange(600) % 2
    x = np.clip(rng.normal(100 + 55 * y[:, None, None, None], 40, (600, 12, 12, 1)), 0, 255).astype(np.uint8)
    np.savez(folder / "images.npz", x_train=x[:400], y_train=y[:400], x_test=x[400:], y_test=y[400:])

    model = keras.Sequential(
        [
            keras.layers.Input((12, 12, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x[:400].astype(np.float32), y[:400], epochs=5, verbose=0)
    model.save(folder / "model.keras")
    return folder / "model.keras", str(folder / "images.npz")


if __name__ == "__main__":
    main()
