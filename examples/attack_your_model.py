"""Attack a Keras classifier of your own, and print its robustness curve.

    python examples/attack_your_model.py model.keras --data folder:photos
    python examples/attack_your_model.py          # makes a small model and images first, to show how it goes

MODEL is a .keras or .h5 file, or keras.applications:NAME. Options of it that bnvuln does not find out (`input_scale`,
`class_names`, ...) are further arguments of `bnv.open_classifier`.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

import bn_vuln as bnv

CURVE = {"attack": "strong", "eps": "16/255", "eps_grid": ["2/255", "4/255", "8/255"], "queries": 500}


def main() -> None:
    """Attack the model and print its robustness curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a file, or keras.applications:NAME")
    parser.add_argument("--data", help="a data set by name, FILE.npz, or folder:PATH")
    parser.add_argument("--limit", type=int, default=200, help="images to attack")
    args = parser.parse_args()

    if args.model is None:
        model, images, labels = made()
        classifier = bnv.open_classifier(model, images, labels)
        result = bnv.attack(classifier, images, labels, attack=CURVE, limit=args.limit)
    else:
        classifier = bnv.open_classifier(args.model, dataset=args.data)
        result = bnv.attack(classifier, dataset=args.data, attack=CURVE, limit=args.limit)

    print("\n".join(classifier.found))  # what the model was taken for: if it is wrong, so are the numbers
    for name, record in result.records.items():  # clean, and the attack at each eps
        print(f"{name}: {record.accuracy:.1%} of {record.n} images")
        for flag in record.flags:  # why the number may lie, and what to do
            print(f"    {flag.text}")


def made() -> tuple[object, NDArray[np.uint8], NDArray[np.int64]]:
    """A classifier of light and dark images that takes pixels from 0 to 255 and ends in a softmax, and images."""
    import keras

    rng = np.random.default_rng(0)
    y = np.arange(600) % 2
    x = np.clip(rng.normal(100 + 55 * y[:, None, None, None], 40, (600, 12, 12, 1)), 0, 255).astype(np.uint8)

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
    return model, x[400:], y[400:]


if __name__ == "__main__":
    main()
