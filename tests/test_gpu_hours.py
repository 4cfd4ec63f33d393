"""GPU-hours: operations of distinct cells and perturbations, divided by rates that were measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers_runs import small_cell

from bn_vuln.config import Attack, Clean, Evaluation, EvaluationPlan
from bn_vuln.experiments.runner import Task

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import gpu_hours

FORWARD = 2 * (784 * 32 + 32 * 32 + 320)
CELL = small_cell(train={"epochs": 2})


def task(limit: int, **perturbations: Attack | Clean) -> Task:
    return Task(CELL, (EvaluationPlan(Evaluation(limit=limit), perturbations),))


def test_what_experiments_share_is_counted_once() -> None:
    pgd, clean = Attack(attack="pgd", eps=0.1, steps=10), Clean()
    tasks = [task(100, clean=clean, pgd=pgd), task(100, natural=clean), task(50, clean=clean)]
    assert gpu_hours.training_flops(tasks) == FORWARD * 2 * (3 * 2000 + 5000)
    assert gpu_hours.evaluation_flops(tasks) == pytest.approx(FORWARD * (100 + 100 * 21 + 50))


def test_hours_are_operations_by_rate_and_starts() -> None:
    one = gpu_hours.line([task(100)], {"slow": FORWARD * 22_000 / 3600.0})
    assert (one["cells"], one["slow_h"]) == (1, 1.0)  # 12 s of start are lost in two digits
    assert gpu_hours.line([task(100)], {"fast": 1e30})["fast_h"] == pytest.approx(12 / 3600, rel=0.05)


def test_rates_are_those_of_vgg8() -> None:
    found = gpu_hours.rates()
    assert found["h100_tf32"] == pytest.approx(3 * 113_000 * 135_669_760)
    assert found["h100_tf32"] < 494.7e12  # the peak of the card


def test_cells_of_the_published_results_are_measured() -> None:
    device, seconds = gpu_hours.measured_seconds()["dd15bd2a8efa"]  # of table6_matched
    assert device == "cpu_2_cores"
    assert 10 < seconds < 3600
