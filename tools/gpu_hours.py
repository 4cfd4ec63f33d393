"""GPU-hours of every experiment in configs/paper at full scale, from its floating-point operations.

    python tools/gpu_hours.py > results/gpu_hours.json         two minutes on one core; needs neither data nor a GPU

Operations are counted (bn_vuln/experiments/cost_estimate.py): of trainings and all perturbations, not of measurements.
Hours are these operations divided by a rate, and 12 s a cell to start and to compile. Rates were measured, on the
training of VGG8 with batch norm at batch size 128 (docs/benchmarks.md): nets with less work a step, as the MLPs, do not
reach them on a GPU. `measured_h` is the sum of what results/paper records of the same cells, at full scale, without
starts; of those on CPUs, hours of two cores.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench import PHOTOS, RESULTS, print_report

from bn_vuln import models
from bn_vuln.config import Cell, EvaluationPlan, validate
from bn_vuln.experiments import catalog, cost_estimate, runner
from bn_vuln.experiments.runner import Task

HOUR = 3600.0
# Images that VGG8 with batch norm trains on in a second: measured, docs/benchmarks.md.
IMAGES_PER_SECOND = {"h100_tf32": 113_000, "h100_float32": 51_500, "cpu_2_cores": 434}


def rates() -> dict[str, float]:
    """Floating-point operations a second of each device, from the images a second that it trains on."""
    vgg8 = validate(Cell, {"arch": "vgg8", "normalization": "batch"}, "gpu_hours")
    flops = 3 * cost_estimate.forward_flops(models.build(vgg8, PHOTOS))
    return {device: images * flops for device, images in IMAGES_PER_SECOND.items()}


def training_flops(tasks: Iterable[Task]) -> float:
    """Operations of training the cells, each once."""
    return sum(cost_estimate.task_flops(Task(cell)) for cell in dict.fromkeys(task.cell for task in tasks))


def evaluation_flops(tasks: Iterable[Task]) -> float:
    """Operations of all perturbations, each once a cell."""
    found: dict[tuple[Cell, str], float] = {}
    for task in tasks:
        trained = cost_estimate.task_flops(Task(task.cell))
        for plan in task.plans:
            for name, perturbation in plan.perturbations.items():
                one = Task(task.cell, (EvaluationPlan(plan.evaluation, {name: perturbation}),))
                found[task.cell, min(one.ids())] = cost_estimate.task_flops(one) - trained
    return sum(found.values())


def measured_seconds() -> dict[str, tuple[str, float]]:
    """The device of each cell in results/paper, and the seconds of its training and all its records.

    On a CPU seconds are those of two cores, whatever number the cell had.
    """
    folder = RESULTS / "paper"
    devices, seconds = dict[str, str](), Counter[str]()
    for name in ("cells", "records", "measurements"):
        for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            about = entry["training"] if name == "cells" else entry
            cores = re.search(r"(\d+) cores", about["device"])
            devices[entry["cell_id"]] = "cpu_2_cores" if cores else "h100_tf32"
            seconds[entry["cell_id"]] += about["seconds"] * (int(cores[1]) / 2 if cores else 1)
    return {cell: (devices[cell], seconds[cell]) for cell in devices}


def line(tasks: list[Task], by_device: dict[str, float]) -> dict[str, Any]:
    """What is counted, and the hours that follow from it."""
    cells = len({task.cell for task in tasks})
    training, evaluation = training_flops(tasks), evaluation_flops(tasks)
    start = cells * cost_estimate.STARTUP_SECONDS
    hours = {f"{name}_h": ((training + evaluation) / rate + start) / HOUR for name, rate in by_device.items()}
    return {
        "cells": cells,
        "training_pflop": round(training / 1e15, 2),
        "evaluation_pflop": round(evaluation / 1e15, 2),
        **{name: float(f"{value:.2g}") for name, value in hours.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", help="names (default: all of configs/paper)")
    args = parser.parse_args()
    by_device, measured = rates(), measured_seconds()
    results: dict[str, Any] = {}
    every: list[Task] = []
    for name in args.experiments or catalog.names("paper"):
        print(name, file=sys.stderr)
        tasks = runner.tasks(catalog.experiment(name))
        results[name] = line(tasks, by_device)
        found = [measured.get(task.folder(Path()).name, ("nothing", 0.0)) for task in tasks]
        [*devices] = {device for device, _ in found}
        if devices != ["nothing"] and len(devices) == 1:
            hours = sum(seconds for _, seconds in found) / HOUR
            results[name] |= {"measured_h": float(f"{hours:.2g}"), "measured_on": devices[0]}
        every += tasks
    results["all, each cell once"] = line(every, by_device)
    shares = {name: round(rate / 1e12, 3) for name, rate in by_device.items()}
    print_report({"GPU-hours": results}, 1, images_per_second=IMAGES_PER_SECOND, tflops_per_second=shares)


if __name__ == "__main__":
    main()
