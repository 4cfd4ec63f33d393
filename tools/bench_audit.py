"""Seconds and peak memory of whole audits, with the default options.

    python tools/bench_audit.py resnet20 > results/bench_audit_resnet20.json
    python tools/bench_audit.py mobilenet_v2 > results/bench_audit_mobilenet_v2.json

ResNet-20 with 200 images of 32 x 32 pixels; Keras' MobileNetV2 with 100 of 96 x 96. The nets are random, with BN
statistics of the images, and the class of an image is what the net takes it for: every image is classified correctly,
and half of them are not at the eps that the audit chooses, as of a trained net. Of the numbers only the times mean
anything. `peak_gb` is the largest resident memory of the process, TensorFlow's own included. `--time none` measures
all.
"""

from __future__ import annotations

import argparse
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
from bn_vuln.typing import KerasModel, StoredImages

NETS = {"resnet20": (32, 200), "mobilenet_v2": (96, 100)}  # pixels a side, images
CLASSES = 10


def photos(side: int, n: int) -> StoredImages:
    """Clouds of random colours, uint8 [n, side, side, 3]."""
    from PIL import Image

    generator = np.random.default_rng(0)
    clouds = [Image.fromarray(generator.integers(0, 256, (6, 6, 3), np.uint8)) for _ in range(n)]
    return np.stack([np.asarray(cloud.resize((side, side), Image.Resampling.BICUBIC)) for cloud in clouds])


def net(name: str, side: int) -> KerasModel:
    """Return a net of pixels in [0, 1] with random weights."""
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


def centred(model: KerasModel, images: StoredImages) -> np.ndarray:
    """Give BN the statistics of the images, and spread the predictions over the classes; return them as labels."""
    pixels = (images / 255).astype(np.float32)

    def predict(x: object) -> object:
        return model(x, training=False)

    layers = normalization_layers.find(model, predict, pixels[:8])
    estimator = Estimator(model, layers, predict, pixels, batch_size=100)
    normalization_layers.write(layers, estimator.states(Mend(reestimate=True)))
    logits = np.concatenate([np.asarray(predict(pixels[i : i + 50])) for i in range(0, len(pixels), 50)])
    spread = (logits - logits.mean(axis=0)) / logits.std(axis=0)
    dense = [layer for layer in backend.leaf_layers(model) if type(layer).__name__ == "Dense"][-1]
    kernel, bias = dense.get_weights()
    dense.set_weights([kernel / logits.std(axis=0), (bias - logits.mean(axis=0)) / logits.std(axis=0)])
    return spread.argmax(axis=1).astype(np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=list(NETS))
    parser.add_argument("--time", default="10m", help="as `bnvuln audit` takes it (default: %(default)s)")
    args = parser.parse_args()
    side, n = NETS[args.net]
    backend.start()
    images = photos(side, n)
    model = net(args.net, side)
    labels = centred(model, images)
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
        "strong": None if one.strong is None else one.strong.accuracy.value,
    }
    print_report({args.net: results}, 1, n=n, size=side, time=args.time)


if __name__ == "__main__":
    main()
