"""One GPU with JAX: images/s of training, gradients/s of PGD-20, and their shares of the card's peak.

    python tools/bench_gpu.py > results/bench_gpu.json      one GPU, no TensorFlow, no network, under four minutes
    python tools/bench_gpu.py --smoke                       tiny nets on a CPU, whose numbers mean nothing

Nets with batch norm train on random images of 32x32x3, with crops and flips, in bnvuln's loop: VGG8 and ResNet-20 in
float32, in TF32 (ten bits of mantissa in matrix products and convolutions) and in bfloat16 (Keras' mixed_bfloat16),
WRN-28-10 in bfloat16. PGD-20 is what `bnvuln attack` runs. `share_of_peak` counts three forward passes an image that is
trained on and two a gradient, beside the peak of the card's data sheet (without sparsity); null for cards that are not
in `PEAKS`. The first turn of each compiles and does not count. What would begin after --seconds is left out.
"""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "jax"  # before anything imports Keras

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from bench import PHOTOS, arguments, engine, interleave, print_report, random_photos, summarize

from bn_vuln import models
from bn_vuln.config import Attack, Cell, validate
from bn_vuln.data.info import DatasetInfo
from bn_vuln.evaluation.classifier import from_model
from bn_vuln.experiments import cost_estimate
from bn_vuln.runtime import backend, jax_backend
from bn_vuln.runtime.progress import Quiet
from bn_vuln.training import TrainingLoop

# Keras' dtype policy, and JAX's precision of matrix products.
PRECISIONS = {
    "float32": ("float32", "highest"),
    "tf32": ("float32", "tensorfloat32"),
    "bfloat16": ("mixed_bfloat16", "default"),
}
# Dense TFLOP/s of float32 outside of tensor cores, TF32 and bfloat16, by how the name begins that JAX gives a card.
PEAKS = {
    "NVIDIA H100 80GB HBM3": {"float32": 66.9, "tf32": 494.7, "bfloat16": 989.4},
    "NVIDIA H200": {"float32": 66.9, "tf32": 494.7, "bfloat16": 989.4},
    "NVIDIA H100 PCIe": {"float32": 51.2, "tf32": 378.0, "bfloat16": 756.0},
    "NVIDIA A100": {"float32": 19.5, "tf32": 156.0, "bfloat16": 312.0},
    "NVIDIA L40S": {"float32": 91.6, "tf32": 183.0, "bfloat16": 362.1},
}
PGD = Attack(attack="pgd", eps=8 / 255, steps=20, keep="last")
BATCH_SIZE = 128
TINY_PHOTOS = DatasetInfo("random", (8, 8, 3), PHOTOS.classes, (0.5,) * 3, (0.25,) * 3, {})

Nets = dict[str, tuple[Any, int]]  # by name: `arch`, and how many images an epoch has
NETS: Nets = {"vgg8": ("vgg8", 45_056), "resnet20": ("resnet20", 45_056)}
WIDE: Nets = {"wrn_28_10": ({"name": "wrn", "depth": 28, "widening": 10}, 12_800)}
ATTACKED = 10_000  # images
SMOKE_NETS: Nets = {"mlp": ({"name": "mlp", "hidden": [8]}, 256)}
SMOKE_WIDE: Nets = {"wrn_10_1": ({"name": "wrn", "depth": 10, "widening": 1}, 256)}
SMOKE_ATTACKED = 8


def build(arch: Any, info: DatasetInfo, precision: str) -> tuple[Cell, Any]:
    """A cell, and its model in a precision."""
    import keras

    train = {"batch_size": BATCH_SIZE, "epochs": 1, "augment": {}}
    cell = validate(Cell, {"arch": arch, "normalization": "batch", "train": train, "init_generator": "numpy"}, "bench")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(PRECISIONS[precision][0])
    try:
        return cell, models.build(cell, info)
    finally:
        keras.config.set_dtype_policy(before)


def training(arch: Any, info: DatasetInfo, precision: str, images: int) -> tuple[Callable[[], Any], float]:
    """(an epoch, its floating-point operations)."""
    cell, model = build(arch, info, precision)
    photos = random_photos(images, info)
    loop = TrainingLoop(cell, model, photos, photos.take(np.arange(1)))
    return lambda: loop.epoch(0, Quiet()), 3.0 * cost_estimate.forward_flops(model) * images


def attacking(arch: Any, info: DatasetInfo, precision: str, images: int) -> tuple[Callable[[], Any], float]:
    """(PGD-20 on all images, its floating-point operations)."""
    model, photos = build(arch, info, precision)[1], random_photos(images, info)
    run = engine(from_model(model, info, {"weights": "bench"}), photos.images, photos.labels, min(1000, images))
    return lambda: run(PGD), 2.0 * cost_estimate.forward_flops(model) * images * PGD.steps


def in_precision(precision: str, run: Callable[[], Any]) -> Callable[[], Any]:
    """A function that runs with JAX's precision of matrix products, which is part of what is compiled."""

    def with_precision() -> None:
        with jax_backend.jax().default_matmul_precision(PRECISIONS[precision][1]):
            run()

    return with_precision


def peak(precision: str) -> float | None:
    """The card's floating-point operations a second by its data sheet; None where it is not known."""
    known = [peaks for card, peaks in PEAKS.items() for name in backend.gpu_names() if name.startswith(card)]
    return known[0][precision] * 1e12 if known else None


def measure(
    make: Callable[[], tuple[Callable[[], Any], float]], precision: str, unit: str, count: int, repetitions: int
) -> dict[str, Any]:
    """Seconds of one contender, what it does in a second, and its share of the peak."""
    run, operations = make()
    seconds = interleave({unit: in_precision(precision, run)}, repetitions)
    found = summarize(seconds, unit)[unit]
    del found[f"times_{unit}"]
    rate, card = operations / found["median_s"], peak(precision)
    share = {
        "tflops_per_second": round(rate / 1e12, 3),
        "share_of_peak": None if card is None else round(rate / card, 3),
    }
    return {**found, f"{unit}_per_second": round(count / found["median_s"]), **share}


def main() -> None:
    parser = arguments(
        __doc__, limit=None, limited="images of an epoch and of an attack (default: by net)", repetitions=3
    )
    parser.add_argument("--seconds", type=float, default=180.0, help="begin nothing after this (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="tiny nets and few images")
    args = parser.parse_args()
    begun = time.monotonic()
    nets, wide, attacked, info = (
        (SMOKE_NETS, SMOKE_WIDE, SMOKE_ATTACKED, TINY_PHOTOS) if args.smoke else (NETS, WIDE, ATTACKED, PHOTOS)
    )
    todo = [(training, name, *net, precision) for name, net in nets.items() for precision in PRECISIONS]
    todo += [(training, name, *net, "bfloat16") for name, net in wide.items()]
    todo += [(attacking, name, net[0], attacked, precision) for name, net in nets.items() for precision in PRECISIONS]
    results: dict[str, dict[str, Any]] = {}
    left_out = []
    for kind, net, arch, default, precision in todo:
        name = f"{net}_{'training' if kind is training else 'pgd_20'}"
        if time.monotonic() - begun > args.seconds:
            left_out.append(f"{name} {precision}")
            continue
        print(f"{name} {precision}", file=sys.stderr)
        # The loop trains whole batches.
        n = (args.limit or default) // BATCH_SIZE * BATCH_SIZE if kind is training else args.limit or default
        unit, count = ("images", n) if kind is training else ("gradients", n * PGD.steps)
        make = functools.partial(kind, arch, info, precision, n)
        results.setdefault(name, {})[precision] = measure(make, precision, unit, count, args.repetitions)
    print_report(results, args.repetitions, batch_size=BATCH_SIZE, attack_steps=PGD.steps, left_out=left_out)


if __name__ == "__main__":
    main()
