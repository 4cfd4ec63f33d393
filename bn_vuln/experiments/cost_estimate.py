"""Estimate of an experiment's run time: its floating-point operations, divided by the rate of this machine.

It is good to a factor of about two. Steps that are bound by memory take longer.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bn_vuln import data, models
from bn_vuln.config import (
    Attack,
    Cell,
    DeepArch,
    Evaluation,
    Experiment,
    LinearArch,
    MinimumNorm,
    MLPArch,
    Perturbation,
    Train,
    Transfer,
    describe_cell,
)
from bn_vuln.data.info import DatasetInfo
from bn_vuln.errors import BnvulnError
from bn_vuln.experiments.task import Task, check_data, tasks
from bn_vuln.models import native_width as native
from bn_vuln.runtime import backend, ops
from bn_vuln.runtime.progress import duration
from bn_vuln.typing import KerasModel

ATTAINABLE_SHARE = 0.6  # of the rate of a large matrix product, which training and attacks reach
STARTUP_SECONDS = 12.0  # to start TensorFlow and to compile, a cell
MINIMUM_NORM_SHARE = 1 / 3  # of the steps of a minimum-norm attack, since most examples end long before
MATRIX_SIZE = 2048  # of the matrices that are multiplied to measure the rate


def forward_flops(model: KerasModel) -> int:
    """Return the operations of one example's forward pass through a Keras model.

    They are two for each multiply-add of its Dense and convolutional layers; the rest is small beside them.
    """
    multiply_adds = 0
    for layer in backend.leaf_layers(model):
        if (kernel := getattr(layer, "kernel", None)) is not None:
            positions = layer.output.shape[1:-1] if "Conv" in type(layer).__name__ else ()
            multiply_adds += int(math.prod(kernel.shape) * math.prod(positions))
    return 2 * multiply_adds


def task_flops(task: Task) -> float:
    """Return the operations of training a cell and of all its perturbations at all evaluations."""
    return _training_flops(task.cell) + sum(
        _evaluation_flops(task.cell, plan.evaluation, perturbation)
        for plan in task.plans
        for perturbation in plan.perturbations.values()
    )


def _training_flops(cell: Cell) -> float:
    """Count, in every epoch, the steps on training examples and a forward pass of the validation examples."""
    if cell.weights is not None:
        return 0.0  # nothing is trained
    options, info, epochs = cell.data, _info(cell.data.name), cell.train.epochs
    if cell.mend is not None and not cell.mend.retrain:
        epochs = cell.mend.finetune.epochs if cell.mend.finetune else 0  # its base is a cell of its own
    examples = options.limit or info.size("train", options.validation)
    first = native.applies_to(cell, info)
    return (
        _forward(cell, native_width=first)
        * epochs
        * (cell.train.forward_passes * examples + info.size("validation", options.validation))
    )


def _evaluation_flops(cell: Cell, evaluation: Evaluation, perturbation: Perturbation) -> float:
    """Count an input gradient as two forward passes."""
    steps = 0
    if isinstance(perturbation, Transfer):  # on a source of about the same size
        perturbation = perturbation.attack
    if isinstance(perturbation, Attack):
        steps = perturbation.steps * perturbation.restarts
    elif isinstance(perturbation, MinimumNorm):
        steps = round(MINIMUM_NORM_SHARE * perturbation.steps * perturbation.binary_search_steps)
    return _forward(cell) * _examples(cell, evaluation) * (2 * steps + 1)


def _examples(cell: Cell, evaluation: Evaluation) -> int:
    if evaluation.limit:
        return evaluation.limit
    if evaluation.split == "train" and evaluation.dataset is None and cell.data.limit:
        return cell.data.limit
    info = _info(evaluation.dataset or cell.data.name)
    return info.size(evaluation.split, cell.data.validation)


def _forward(cell: Cell, *, native_width: bool = False) -> int:
    """Return the operations of a forward pass, without making the weights of dense nets.

    These grow with the fourth power of the width. `native_width`: the first kernel is trained at native width.
    """
    info, hidden = _info(cell.data.name), _units(cell)
    if hidden is None:
        return _built_flops(cell.model_copy(update={"seed": 0, "train": Train()}))
    hidden = [math.prod(info.shape), *hidden[1:]] if native_width else hidden
    return 2 * sum(math.prod(pair) for pair in itertools.pairwise([*hidden, len(info.classes)]))


@functools.cache
def _built_flops(cell: Cell) -> int:
    """Return the operations of a forward pass through the net of a cell, which is built once for all its seeds."""
    return forward_flops(models.build(cell, _info(cell.data.name)))


def _info(name: str) -> DatasetInfo:
    """Return shape, classes and sizes of a data set, which of a published one are known without preparing it."""
    about = {} if data.is_user_data(name) else data.describe_dataset(name)
    if not about.get("sizes"):
        return data.dataset_info(name)
    height, width, channels = about["shape"]
    shape, constants = (height or 0, width or 0, channels), (1.0,) * channels
    return DatasetInfo(name, shape, about["classes"], constants, constants, about["sizes"])


def _units(cell: Cell) -> list[int] | None:
    """Return the inputs and hidden units of a dense net; None for a convolutional one."""
    info, arch = _info(cell.data.name), cell.arch
    inputs = info.shape[2] * (cell.data.width or info.shape[1]) ** 2
    if isinstance(arch, LinearArch):
        return [inputs]
    if isinstance(arch, MLPArch):
        return [inputs, *(arch.hidden or (inputs // 2,) * 2)]
    return [inputs, *[arch.units] * arch.depth] if isinstance(arch, DeepArch) else None


def check_memory(tasks: Iterable[Task]) -> None:
    """Raise `BnvulnError` if a net's weights, their gradients and copies of the best epoch and the last do not fit."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for cell in {task.cell for task in tasks}:
        if _units(cell) is None:
            continue  # convolutions have few weights
        needed = 4 * 4 * _forward(cell) // 2  # a dense net has a float32 weight for each multiply-add
        if needed > available:
            raise BnvulnError(
                f"data.width: {describe_cell(cell)} needs about {needed / 2**30:,.0f} GiB for its weights, this "
                f"machine has {available / 2**30:,.0f}"
            )


def flops_per_second(seconds: float = 0.5) -> float:
    """Return the rate of a product of large float32 matrices on the default device, the best within `seconds`."""
    matrix = ops.ones((MATRIX_SIZE, MATRIX_SIZE)) / MATRIX_SIZE
    multiply = backend.compile(lambda a: ops.matmul(a, a))
    multiply(matrix)
    best, begun = math.inf, time.monotonic()
    while time.monotonic() - begun < seconds:
        called = time.monotonic()
        np.asarray(multiply(matrix))
        best = min(best, time.monotonic() - called)
    return 2 * MATRIX_SIZE**3 / best


def seconds_of(tasks: Iterable[Task]) -> float:
    """Return the estimated seconds of these tasks on this machine, one after the other."""
    tasks = list(tasks)
    if not tasks:
        return 0.0
    return sum(map(task_flops, tasks)) / (ATTAINABLE_SHARE * flops_per_second()) + STARTUP_SECONDS * len(tasks)


def estimate(experiment: Experiment, root: Path) -> tuple[float, str]:
    """Return how many seconds the cells take that a results folder has not finished, and a line that says so.

    Raises:
        UsageError: A width is below the native one.
        BnvulnError: A data set cannot be downloaded, or a net does not fit into memory.
    """
    todo = tasks(experiment)
    unfinished = [task for task in todo if not task.finished(root)]
    check_data(unfinished)
    check_memory(unfinished)
    seconds = seconds_of(unfinished)
    text = f"{len(unfinished)} of {len(todo)} trainings and evaluations to do"
    text += f", about {duration(seconds)} on this machine" if unfinished else ""
    return seconds, f"{experiment.name} at scale {experiment.scale}: {text}"
