"""Train a convolutional net with Keras, audit it, and mend it as the audit advises.

    python examples/audit_your_model.py                         # MNIST, which comes with the package
    python examples/audit_your_model.py --data fashion_mnist    # after: bnvuln data prepare fashion_mnist

The net is one as many are written: convolutions with batch norm, settings as Keras has them by default, two epochs. It
prints what `bnvuln audit` and `bnvuln mend` print, and takes four minutes on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import bn_vuln as bnv
from bn_vuln import data


def main() -> None:
    """Train, audit, mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist", help="a data set by name")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, help="to train on; all by default")
    parser.add_argument("--limit", type=int, default=1000, help="of the audit")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the model, its page and the mended model")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    train = data.load(args.data, "train", limit=args.images)
    model = trained(train.images[:], train.labels, args.epochs)
    model.save(args.out / "model.keras")

    # bnvuln audit model.keras --data mnist --limit 1000
    found = bnv.audit(args.out / "model.keras", dataset=args.data, limit=args.limit, out=args.out / "audits" / "model")
    print(found)
    print("page:", found.page)

    if any(advice.mend for advice in found.findings.models[0].advice):
        # bnvuln mend --from-audit audits/model -o mended.keras
        mended = bnv.mend(from_audit=found.folder, out=args.out / "mended.keras", force=True).mended
        for row in (mended.header, *mended.rows):
            print(" | ".join(row))


def trained(images: NDArray[np.uint8], labels: NDArray[np.int32], epochs: int) -> object:
    """A net of pixels from 0 to 255 that ends in a softmax."""
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Input(images.shape[1:]), keras.layers.Rescaling(1 / 255)]
    for filters, strides in ((16, 1), (32, 2), (32, 1), (64, 2)):
        layers += [
            keras.layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10, activation="softmax")]
    model = keras.Sequential(layers)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images.astype(np.float32), labels, batch_size=128, epochs=epochs, verbose=2)
    return model


if __name__ == "__main__":
    main()
