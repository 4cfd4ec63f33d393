"""Seconds of one training epoch of the MNIST MLP: our loop, Keras' `fit`, PyTorch; medians of interleaved runs.

    python tools/bench_train.py > results/bench_train.json        about 2 minutes on two cores

All see the same 55,000 images, batch size, SGD and model; all run on all cores, TensorFlow with oneDNN on.
PyTorch (pip install bnvuln[bench]) reads shuffled slices of one tensor, its fastest way; it is left out where
it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from bench import interleave, print_report, summarize

from bn_vuln import backend, data, models
from bn_vuln.config import Cell, Train
from bn_vuln.progress import Quiet
from bn_vuln.train import TrainingLoop

LR, BATCH_SIZE = 0.01, 128


def ours(normalization: str, training: data.Dataset, validation: data.Dataset) -> Callable[[], Any]:
    cell = Cell(normalization=normalization, train=Train(lr=LR, batch_size=BATCH_SIZE))  # type: ignore[arg-type]
    loop = TrainingLoop(cell, models.build(cell, training.facts), training, validation.take(np.arange(1)))
    return lambda: loop.epoch(0, Quiet())


def keras_fit(normalization: str, training: data.Dataset) -> Callable[[], Any]:
    import keras

    model = models.build(Cell(normalization=normalization), training.facts)  # type: ignore[arg-type]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(LR), loss, metrics=["accuracy"])
    pixels = training.images.astype(np.float32) / 255
    return lambda: model.fit(pixels, training.labels, batch_size=BATCH_SIZE, epochs=1, verbose=0)


def pytorch(normalization: str, training: data.Dataset) -> Callable[[], Any]:
    import torch
    from torch import nn

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    units = 392
    first = [nn.Linear(784, units, bias=normalization == "none")]
    first += [nn.BatchNorm1d(units)] if normalization == "batch" else []
    net = nn.Sequential(nn.Flatten(), *first, nn.ReLU(), nn.Linear(units, units), nn.ReLU(), nn.Linear(units, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    mean, std = training.facts.mean[0], training.facts.std[0]
    images = torch.tensor(training.images[..., 0])
    labels = torch.tensor(training.labels, dtype=torch.long)

    def epoch() -> None:
        order = torch.randperm(len(labels))
        correct = torch.zeros((), dtype=torch.long)
        for i in range(0, len(labels) // BATCH_SIZE * BATCH_SIZE, BATCH_SIZE):
            index = order[i : i + BATCH_SIZE]
            logits = net((images[index].float() / 255 - mean) / std)
            loss = nn.functional.cross_entropy(logits, labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            correct += (logits.argmax(1) == labels[index]).sum()

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--limit", type=int, help="train on N images (default: all)")
    args = parser.parse_args()
    backend.tensorflow()
    training = data.load("mnist", "train", limit=args.limit)
    validation = data.load("mnist", "validation")
    results = {}
    for normalization in ("none", "batch"):
        contenders = {
            "ours": ours(normalization, training, validation),
            "keras_fit": keras_fit(normalization, training),
        }
        if importlib.util.find_spec("torch"):
            contenders["pytorch"] = pytorch(normalization, training)
        results[f"mlp_{normalization}"] = summarize(interleave(contenders, args.repetitions), "ours")
    print_report(results, args.repetitions, images=len(training), batch_size=BATCH_SIZE, lr=LR)


if __name__ == "__main__":
    main()
