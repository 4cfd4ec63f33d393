"""Seconds of one training epoch: bnvuln's loop, Keras' `fit`, PyTorch; medians of interleaved runs.

    python tools/bench_train.py --other-xla > results/bench_train.json      the MNIST MLP, VGG8 and ResNet-20,
    python tools/bench_train.py --arch vgg8 --repetitions 3                 about 15 minutes on two cores
    python tools/bench_train.py --arch vgg8 --augment --limit 512           what augmentation costs, a minute
    python tools/bench_train.py --fit --arch mlp --limit 12800 --repetitions 7       Keras' `fit` as its users tune it,
    python tools/bench_train.py --fit --arch vgg8 --limit 256 --repetitions 7        five minutes each
    python tools/bench_train.py --arch mlp --width 56 --batch-size 32 --limit 3200       enlarged images, two minutes

All see the same images, batch size, SGD and model; all run on all cores, TensorFlow with oneDNN on. The MLP trains on
MNIST, the others on random images of 32x32x3. `share_of_peak` is the rate of floating-point operations (three forward
passes an image) beside that of a large matrix product in the same run. `ours` has XLA where `backend.execution_policy`
says so, `ours_other_xla` (--other-xla) the other way round, for VGG8 one batch, timed once. `ours_keras_batch_norm`
does without the fused batch norm of training/fused_batch_norm.py. PyTorch (pip install bnvuln[bench]) reads shuffled
slices of one tensor, its fastest way, in its default layout and in channels_last; without it it is left out.

`keras_fit` is Keras' default, of one step to a call and, on CPUs, without XLA; `..._steps` has steps_per_execution=50,
`..._xla` jit_compile=True, for VGG8 a few images, timed once. With --fit these alone take turns with `ours`, three
epochs in one call of `fit`. What is counted then are the processor's seconds, which other work on the machine hardly
changes; `share_of_peak` has no meaning for them and is left out.

With --width the MLP trains on MNIST enlarged to that, its hidden layers half as wide as its input: this loop at native
width (models/native_width.py), `ours_enlarged` and PyTorch on images that are enlarged batch by batch.

With --augment this loop takes turns with itself on random crops and flips, and with these alone (`augmentation_alone`);
`augmented_over_plain` is the ratio of the medians of the first two.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
from bench import arguments, interleave, print_report, random_photos, summarize

from bn_vuln import data, models
from bn_vuln.config import Augment, Cell, validate
from bn_vuln.experiments import cost_estimate
from bn_vuln.models import native_width
from bn_vuln.models.resnet import BLOCKS, FILTERS
from bn_vuln.models.vgg import STAGES
from bn_vuln.runtime import backend
from bn_vuln.runtime.progress import Quiet
from bn_vuln.training import TrainingLoop, augmentation

LR, BATCH_SIZE = 0.01, 128
FEW = 16  # images of a batch of VGG8 in `fit` with XLA
FIT_EPOCHS = 3  # of a turn with --fit
ALONE = "augmentation_alone"
# Options of `compile`; jit_compile="auto", the default, is False on CPUs.
FIT: dict[str, dict[str, Any]] = {
    "keras_fit": {"steps_per_execution": 1, "jit_compile": False},
    "keras_fit_steps": {"steps_per_execution": 50, "jit_compile": False},
    "keras_fit_xla": {"steps_per_execution": 1, "jit_compile": True},
    "keras_fit_xla_steps": {"steps_per_execution": 50, "jit_compile": True},
}


def images(arch: str, limit: int | None) -> data.Dataset:
    """MNIST, or random photographs for a convolutional net."""
    if arch == "mlp":
        return data.load("mnist", "train", limit=limit)
    return random_photos(limit or 2048)


def cell_of(
    arch: str,
    normalization: str,
    augment: dict[str, Any] | None = None,
    width: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Cell:
    """Return the cell that is trained: plain SGD, PyTorch's initialization."""
    train = {"lr": LR, "batch_size": batch_size, "momentum": 0.0, "augment": augment}
    fields = {"arch": arch, "normalization": normalization, "init": "torch", "train": train}
    return validate(Cell, {**fields, "data": {"name": "mnist", "width": width}} if width else fields, "bench")


def bnvuln_epoch(cell: Cell, training: data.Dataset) -> Callable[[], Any]:
    """Return a function that trains one epoch with bnvuln's loop."""
    loop = TrainingLoop(cell, models.build(cell, training.info), training, training.take(np.arange(1)))
    return lambda: loop.epoch(0, Quiet())


def other_xla(cell: Cell, training: data.Dataset) -> Callable[[], Any]:
    """Return bnvuln's loop, with XLA where it is off by default and the reverse."""
    chosen = backend.execution_policy

    def other(model: Any, **options: Any) -> backend.ExecutionPolicy:
        policy = chosen(model, **options)
        return dataclasses.replace(policy, xla=not policy.xla)

    with mock.patch.object(backend, "execution_policy", other):
        return bnvuln_epoch(cell, training)


def enlarged(cell: Cell, training: data.Dataset) -> Callable[[], Any]:
    """Return bnvuln's loop on images that are enlarged batch by batch."""
    with mock.patch.object(native_width, "applies_to", return_value=False):
        return bnvuln_epoch(cell, training)


def keras_batch_norm(cell: Cell, training: data.Dataset) -> Callable[[], Any]:
    """Return bnvuln's loop with Keras' batch norm of several operations."""
    chosen = backend.execution_policy

    def unfused(model: Any, **options: Any) -> backend.ExecutionPolicy:
        return dataclasses.replace(chosen(model, **options), fused_batch_norm=False)

    with mock.patch.object(backend, "execution_policy", unfused):
        run = bnvuln_epoch(cell, training)
        run()  # it is traced in its first call
        return run


def augmentation_alone(training: data.Dataset) -> Callable[[], Any]:
    """The crops and flips of one epoch, without a model, made as in bnvuln's loop."""
    tf, n = backend.tensorflow(), len(training) // BATCH_SIZE * BATCH_SIZE
    batches = [tf.constant(training.images[i : i + BATCH_SIZE]) for i in range(0, n, BATCH_SIZE)]
    crop = backend.compile(lambda images, crops: augmentation.crop(images, crops, Augment().pad))

    def epoch() -> None:
        crops = augmentation.random_crops(Augment(), n, 0, 0).reshape(len(batches), BATCH_SIZE, -1)
        for images, batch in zip(batches, crops, strict=True):
            crop(images, batch)

    return epoch


def keras_fit(cell: Cell, training: data.Dataset, epochs: int = 1, **options: Any) -> Callable[[], Any]:
    """Return a function that trains with Keras' `fit`, compiled with these options."""
    import keras

    model = models.build(cell, training.info)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(LR), loss, metrics=["accuracy"], **options)
    pixels = training.images.astype(np.float32) / 255
    return lambda: model.fit(pixels, training.labels, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)


def torch_mlp(normalization: str, width: int | None) -> Any:
    from torch import nn

    pixels = (width or 28) ** 2
    units = pixels // 2
    first = [nn.Linear(pixels, units, bias=normalization == "none")]
    first += [nn.BatchNorm1d(units)] if normalization == "batch" else []
    return nn.Sequential(nn.Flatten(), *first, nn.ReLU(), nn.Linear(units, units), nn.ReLU(), nn.Linear(units, 10))


def torch_vgg8(normalization: str) -> Any:
    from torch import nn

    layers: list[Any] = []
    channels = 3
    for (filters,) in STAGES["vgg8"]:
        layers.append(nn.Conv2d(channels, filters, 3, padding=1, bias=normalization == "none"))
        layers += [nn.BatchNorm2d(filters)] if normalization == "batch" else []
        layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        channels = filters
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def torch_resnet20(normalization: str) -> Any:
    import torch
    from torch import nn

    def normalized(filters: int) -> Any:
        return nn.BatchNorm2d(filters) if normalization == "batch" else nn.Identity()

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self, inputs: int, filters: int, stride: int) -> None:
            super().__init__()
            bias = normalization == "none"
            self.first = nn.Conv2d(inputs, filters, 3, stride, 1, bias=bias)
            self.second = nn.Conv2d(filters, filters, 3, 1, 1, bias=bias)
            self.one, self.two, self.stride = normalized(filters), normalized(filters), stride

        def forward(self, x: Any) -> Any:
            y = self.two(self.second(torch.relu(self.one(self.first(x)))))
            if self.stride > 1:
                x = x[:, :, ::2, ::2]
                x = torch.cat([x, torch.zeros_like(x)], 1)
            return torch.relu(x + y)

    channels = FILTERS[0]
    layers: list[Any] = [nn.Conv2d(3, channels, 3, 1, 1, bias=normalization == "none"), normalized(channels), nn.ReLU()]
    for filters in FILTERS:
        for number in range(BLOCKS["resnet20"]):
            layers.append(Block(channels, filters, 2 if filters > FILTERS[0] and not number else 1))
            channels = filters
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def pytorch(cell: Cell, training: data.Dataset, *, channels_last: bool = False) -> Callable[[], Any]:
    import torch
    from torch import nn

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    layout = {"memory_format": torch.channels_last} if channels_last else {}
    width, batch_size, normalization = cell.data.width, cell.train.batch_size, cell.normalization.name
    if cell.arch.name == "mlp":
        net = torch_mlp(normalization, width)
    else:
        net = {"vgg8": torch_vgg8, "resnet20": torch_resnet20}[cell.arch.name](normalization).to(**layout)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    mean, std = (torch.tensor(v).reshape(1, -1, 1, 1) for v in (training.info.mean, training.info.std))
    pixels = torch.tensor(training.images.transpose(0, 3, 1, 2)).contiguous(**layout)
    labels = torch.tensor(training.labels, dtype=torch.long)

    def epoch() -> None:
        order = torch.randperm(len(labels))
        correct = torch.zeros((), dtype=torch.long)
        for i in range(0, len(labels) // batch_size * batch_size, batch_size):
            index = order[i : i + batch_size]
            x = pixels[index].float() / 255
            x = nn.functional.interpolate(x, width, mode="bilinear") if width else x
            logits = net((x - mean) / std)
            loss = nn.functional.cross_entropy(logits, labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            correct += (logits.argmax(1) == labels[index]).sum()

    return epoch


def contenders(
    arch: str, normalization: str, training: data.Dataset, args: argparse.Namespace
) -> dict[str, Callable[[], Any]]:
    if args.width:
        cell = cell_of(arch, normalization, width=args.width, batch_size=args.batch_size)
        made = {"ours": bnvuln_epoch, "ours_enlarged": enlarged}
        if importlib.util.find_spec("torch"):
            made["pytorch"] = pytorch
        return {name: make(cell, training) for name, make in made.items()}
    cell = cell_of(arch, normalization)
    if args.augment:
        return {
            "ours": bnvuln_epoch(cell, training),
            "ours_augmented": bnvuln_epoch(cell_of(arch, normalization, {}), training),
            ALONE: augmentation_alone(training),
        }
    fits = {name: options for name, options in FIT.items() if arch == "mlp" or not options["jit_compile"]}
    ours = bnvuln_epoch(cell, training)
    if args.fit:
        made = {name: keras_fit(cell, training, FIT_EPOCHS, **options) for name, options in fits.items()}
        return {"ours": lambda: [ours() for _ in range(FIT_EPOCHS)], **made}
    found = {"ours": ours, **{name: keras_fit(cell, training, **options) for name, options in fits.items()}}
    if args.other_xla and arch == "mlp":
        found["ours_other_xla"] = other_xla(cell, training)
    if arch != "mlp" and normalization == "batch":
        found["ours_keras_batch_norm"] = keras_batch_norm(cell, training)
    if importlib.util.find_spec("torch"):
        found["pytorch"] = pytorch(cell, training)
        if arch != "mlp":
            found["pytorch_channels_last"] = pytorch(cell, training, channels_last=True)
    return found


def once(run: Callable[[], Any], images: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """One batch, once it is compiled: XLA on a convolutional net takes too long on a CPU to take turns."""
    run()
    begun = clock()
    run()
    return {"median_s": round(clock() - begun, 3), "images": images}


def measure(arch: str, normalization: str, training: data.Dataset, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds, images/s and share of the machine's peak of every contender."""
    clock = time.process_time if args.fit else time.perf_counter
    seconds = interleave(contenders(arch, normalization, training, args), args.repetitions, clock)
    found, extra = summarize(seconds, "ours"), {}
    if args.augment:
        plain, augmented = (statistics.median(seconds[name]) for name in ("ours", "ours_augmented"))
        extra = {"augmented_over_plain": round(augmented / plain, 3)}
    peak = cost_estimate.flops_per_second(1.0)
    forward = cost_estimate.forward_flops(models.build(cell_of(arch, normalization, width=args.width), training.info))
    if arch == "vgg8":
        cell, few = cell_of(arch, normalization), training.take(np.arange(FEW))
        if args.other_xla:
            found["ours_other_xla"] = once(other_xla(cell, training.take(np.arange(BATCH_SIZE))), BATCH_SIZE)
        for name in [name for name, options in FIT.items() if args.fit and options["jit_compile"]]:
            found[name] = once(keras_fit(cell, few, **FIT[name]), FEW, clock)
    for name, result in found.items():
        size = args.batch_size
        images = result.get("images", len(training) // size * size * (FIT_EPOCHS if args.fit else 1))
        rate = images / result["median_s"]
        result["images_per_second"] = round(rate)
        if name != ALONE and not args.fit:
            result["share_of_peak"] = round(3 * forward * rate / peak, 2)
    return {"peak_gflops": round(peak / 1e9, 1), **extra, **found}


def main() -> None:
    parser = arguments(__doc__, limit=None, limited="train on N images (default: all of MNIST; 2048 random ones)")
    parser.add_argument("--arch", nargs="+", default=["mlp", "vgg8", "resnet20"], choices=["mlp", "vgg8", "resnet20"])
    parser.add_argument("--other-xla", action="store_true", help="also bnvuln's loop with XLA where it is not chosen")
    parser.add_argument("--fit", action="store_true", help="bnvuln's loop and Keras' fit alone, with XLA for VGG8 too")
    parser.add_argument("--augment", action="store_true", help="bnvuln's loop alone, with and without augmentation")
    parser.add_argument("--width", type=int, help="the MLP on MNIST enlarged to this width")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="of --width (default: %(default)s)")
    args = parser.parse_args()
    if (args.width and (args.arch != ["mlp"] or args.augment)) or (args.batch_size != BATCH_SIZE and not args.width):
        parser.error("--width is for --arch mlp without --augment, --batch-size for --width")
    backend.tensorflow()
    results = {}
    for arch in args.arch:
        training = images(arch, args.limit)
        for normalization in ("none", "batch"):
            results[f"{arch}_{normalization}"] = measure(arch, normalization, training, args)
    clock = "processor" if args.fit else "wall"
    print_report(results, args.repetitions, batch_size=args.batch_size, lr=LR, width=args.width, clock=clock)


if __name__ == "__main__":
    main()
