"""Seconds and peak memory of whole audits, with the default options.

    python tools/bench_audit.py resnet20 > results/bench_audit_resnet20.json
    python tools/bench_audit.py mobilenet_v2 > results/bench_audit_mobilenet_v2.json

ResNet-20 with 200 images of 32 x 32 pixels; Keras' MobileNetV2 with 100 of 96 x 96. The nets are trained for a minute
or two on made-up photos, a cloud of colours for each class with noise on it, so that attacks have as much to do as on
nets that were trained well. Of the numbers only the times mean anything. `peak_gb` is the largest resident memory of
the process, TensorFlow's own and the training included. `--time none` measures all.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time

import numpy as np
from bench import print_report
from bench_image_folder import peak_gb

import bn_vuln as bnv
from bn_vuln import models
from bn_vuln.config import Cell, Mend, validate
from bn_vuln.data.info import DatasetInfo
from bn_vuln.models import normalization_layers
from bn_vuln.models.normalization_layers import Estimator
from bn_vuln.runtime import backend
from bn_vuln.runtime.progress import PlainLines
from bn_vuln.typing import KerasModel, Labels, StoredImages, Tensor

NETS = {"resnet20": (32, 200), "mobilenet_v2": (96, 100)}  # pixels a side, images
CLASSES, TRAINED_ON, EPOCHS, NOISE = 10, 1000, 3, 0.15


def photos(side: int, n: int, seed: int) -> tuple[StoredImages, Labels]:
    """Clouds of colours, one for each class, with noise: uint8 [n, side, side, 3], and their classes."""
    from PIL import Image

    generator = np.random.default_rng(0)
    small = [Image.fromarray(generator.integers(96, 160, (4, 4, 3)).astype(np.uint8)) for _ in range(CLASSES)]
    clouds = np.stack([np.asarray(one.resize((side, side), Image.Resampling.BICUBIC)) for one in small])
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, n).astype(np.int32)
    noisy = clouds[labels] + 255 * NOISE * generator.normal(size=(n, side, side, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8), labels


def net(name: str, side: int) -> KerasModel:
    """Return a net of pixels in [0, 1] untrained."""
    import keras

    keras.utils.set_random_seed(0)
    if name == "resnet20":
        info = DatasetInfo("random", (side, side, 3), tuple(map(str, range(CLASSES))), (0.5,) * 3, (0.25,) * 3, {})
        return models.build(validate(Cell, {"arch": "resnet20", "normalization": "batch"}, "cell"), info)
    inputs = keras.Input((side, side, 3))
    scaled = keras.layers.Rescaling(2.0, offset=-1.0)(inputs)
    body = keras.applications.MobileNetV2((side, side, 3), weights=None, classes=CLASSES, classifier_activation=None)
    model: KerasModel = keras.Model(inputs, body(scaled))
    return model


def train(model: KerasModel, side: int) -> None:
    """Train it, and give BN the statistics of the images it was trained on."""
    import keras

    images, labels = photos(side, TRAINED_ON, 1)
    pixels = (images / 255).astype(np.float32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.02, momentum=0.9), loss)
    model.fit(pixels, labels, batch_size=50, epochs=EPOCHS, verbose=2)

    def predict(x: Tensor) -> Tensor:
        return model(x, training=False)

    layers = normalization_layers.find(model, predict, pixels[:8])
    estimator = Estimator(model, layers, predict, pixels[:200], batch_size=100)
    normalization_layers.write(layers, estimator.states(Mend(reestimate=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=list(NETS))
    parser.add_argument("--time", default="10m", help="as `bnvuln audit` takes it (default: %(default)s)")
    args = parser.parse_args()
    side, n = NETS[args.net]
    backend.start()
    images, labels = photos(side, n, 2)
    model = net(args.net, side)
    with contextlib.redirect_stdout(sys.stderr):
        train(model, side)
    started = peak_gb()
    begun = time.perf_counter()
    found = bnv.audit(
        model, images, labels, limit=n, time=args.time, input_scale="0-1", output="logits", progress=PlainLines()
    )
    seconds = time.perf_counter() - begun
    one = found.findings.models[0]
    results = {
        "seconds": round(seconds, 1),
        "started_gb": started,
        "peak_gb": peak_gb(),
        "skipped": list(found.findings.skipped),
        "candidates": len(one.candidates),
        "layers": len(one.layers),
        "clean": one.accuracies[0].accuracy.value,
        "eps": found.findings.eps,
        "strong": None if one.strong is None else one.strong.accuracy.value,
    }
    print_report({args.net: results}, 1, n=n, size=side, time=args.time)


if __name__ == "__main__":
    main()
