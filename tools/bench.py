"""Shared parts of benchmarks: arguments, models and images, interleaved repetitions, medians, ratios, one JSON object.

Machines are noisy, so contenders take turns within one process and only their ratios are quoted.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bn_vuln import data
from bn_vuln.config import Attack, Evaluation
from bn_vuln.data.info import DatasetInfo
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.evaluation.evaluator import Evaluator
from bn_vuln.evaluation.perturbed import PerturbedImages
from bn_vuln.runtime import backend
from bn_vuln.runtime.progress import Quiet

RESULTS = Path(__file__).parent.parent / "results"
# The MNIST MLPs of table6_matched with and without BN, seed 0.
PAIR = {"batch": RESULTS / "paper" / "dd15bd2a8efa", "none": RESULTS / "paper" / "df28a7b8f872"}
PHOTOS = DatasetInfo("random", (32, 32, 3), tuple("0123456789"), (0.5,) * 3, (0.25,) * 3, {})
# Whatever some benchmark compares; `backend.versions` has TensorFlow, Keras and NumPy.
PEERS = ("cleverhans", "foolbox", "adversarial-robustness-toolbox", "torch", "torchattacks")


def arguments(
    doc: str | None,
    *,
    limit: int | None,
    limited: str = "test images attacked (default: %(default)s)",
    repetitions: int = 5,
    trains: bool = False,
) -> argparse.ArgumentParser:
    """Return a parser of the options of every benchmark, explained by its `doc`; `trains`: it trains its models."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=repetitions, help="turns that count (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=limit, help=limited)
    if trains:
        parser.add_argument("--train-limit", type=int, help="train the models on N images (default: all)")
    return parser


def random_photos(n: int, info: DatasetInfo = PHOTOS) -> data.Dataset:
    """Random images of the shape of photographs, with random labels: their content does not matter for times."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (n, *info.shape), np.uint8)
    return data.Dataset(pixels, generator.integers(0, 10, n).astype(np.int32), np.arange(n), info)


def interleave(
    contenders: dict[str, Callable[[], Any]], repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each contender, which take turns `repetitions` times after one turn that is not counted.

    On a machine that has other work, `time.process_time` varies less: the processor's seconds, summed over cores.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repetition in range(repetitions + 1):
        for name, run in contenders.items():
            begun = clock()
            run()
            elapsed = clock() - begun
            if repetition:
                seconds[name].append(elapsed)
            print(f"{repetition}/{repetitions} {name}: {elapsed:.2f} s", file=sys.stderr)
    return seconds


def summarize(seconds: dict[str, list[float]], base: str, **extra: dict[str, Any]) -> dict[str, Any]:
    """Median, minimum and maximum of each contender, and its median as a multiple of `base`'s."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        name: {
            "median_s": round(medians[name], 3),
            "min_s": round(min(values), 3),
            "max_s": round(max(values), 3),
            f"times_{base}": round(medians[name] / medians[base], 2),
            **extra.get(name, {}),
        }
        for name, values in seconds.items()
    }


def engine(classifier: Classifier, images: Any, labels: Any, batch: int) -> Callable[[Attack], PerturbedImages]:
    """Return bnvuln's attacks on these images as `bnvuln attack` runs them, final check included; compiled once.

    Dense nets have XLA, as they do from `backend.MIN_GRADIENTS_FOR_XLA` gradients on: compiling is not timed here.
    """
    backend.MIN_GRADIENTS_FOR_XLA = 0
    examples = Evaluation(dataset=data.register(images, labels), split="all")
    runner = Evaluator(classifier, examples, batch_size=batch, checks="none").attack_runner
    return lambda options: runner.run(options, Quiet())


def machine() -> dict[str, Any]:
    """The device, and the versions of what is compared on it; of other libraries those that are installed."""
    found = dict(backend.versions())
    for name in PEERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"device": backend.device_name(), "versions": found}


def print_report(results: dict[str, Any], repetitions: int, **settings: Any) -> None:
    """The benchmark's one JSON object, with the machine and the versions."""
    report = {
        **machine(),
        "repetitions": repetitions,
        "settings": settings,
        "results": results,
    }
    json.dump(report, sys.stdout, indent=2)
    sys.stdout.write("\n")
