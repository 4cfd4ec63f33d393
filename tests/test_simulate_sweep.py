"""The simulation of a sweep: what it must give where that can be said beforehand, and what it may never exceed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools"
sys.path.insert(0, str(TOOLS))
from simulate_sweep import Simulation, Sweep, measured_spreads, pooled  # noqa: E402

# One cell of 300 s, and nothing by chance: heartbeats all the time, no time to look, poll or begin.
ONE = Sweep(cells=1, workers=1, mean=300.0, restart=30.0, expiry=45.0, beat=0.0, poll=0.0, look=0.0, overhead=0.0)
HARD = Sweep(cells=300, workers=12, spread=1.0, mtbf=2000.0, mtbs=3000.0, stall=90.0, slow=0.25, shards=3, deaths=10**6)


@pytest.mark.parametrize(("workers", "shards"), [(100, 1), (7, 1), (12, 3), (12, 12)])
@pytest.mark.parametrize("commands", [False, True])
def test_equal_cells_without_failures_take_whole_rounds(workers: int, shards: int, commands: bool) -> None:
    sweep = Sweep(cells=1000, workers=workers, shards=shards, mean=60.0, look=0.0, commands=commands)
    rounds = math.ceil(math.ceil(1000 / shards) / (workers // shards))
    outcome = Simulation(sweep, 0).run()
    assert outcome.makespan == pytest.approx(rounds * 62.0, rel=1e-12)
    assert outcome.ideal == pytest.approx(60_000.0 / workers, rel=1e-12)
    assert (outcome.lost, outcome.doubled, outcome.overhead) == (0.0, 0.0, pytest.approx(2000.0))


def test_nobody_takes_over_the_cells_of_another_shard() -> None:
    sweep, failures = replace(ONE, cells=2, workers=2, restart=1000.0), {0: [100.0]}
    assert Simulation(sweep, 0, failures=failures).run().makespan == 300 + 240  # worker 1, when it is free
    assert Simulation(replace(sweep, shards=2), 0, failures=failures).run().makespan == 100 + 1000 + 240


@pytest.mark.parametrize(("checkpoint", "end", "lost"), [(60.0, 145 + 240, 40.0), (math.inf, 145 + 300, 100.0)])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_dead_worker_costs_the_time_since_its_checkpoint_and_the_lease(
    checkpoint: float, end: float, lost: float, workers: int
) -> None:
    sweep = replace(ONE, checkpoint=checkpoint, workers=workers)
    outcome = Simulation(sweep, 0, failures={0: [100.0]}).run()
    assert (outcome.makespan, outcome.lost, outcome.doubled) == (end, lost, 0.0)
    assert (outcome.work, outcome.busy) == (300.0, 300.0 + lost)


def test_a_worker_that_loses_its_lease_gives_up_and_another_goes_on() -> None:
    outcome = Simulation(replace(ONE, workers=2), 0, stalls={0: [(100.0, 100.0)]}).run()
    assert outcome.makespan == 145 + 240  # from the checkpoint at 60 on
    assert (outcome.lost, outcome.doubled, outcome.busy) == (0.0, 200.0 - 60.0, 440.0)
    short = Simulation(replace(ONE, workers=2), 0, stalls={0: [(100.0, 44.0)]}).run()
    assert (short.makespan, short.doubled) == (300.0, 0.0)


def test_a_cell_that_dies_too_often_is_given_up() -> None:
    sweep = replace(ONE, deaths=3)
    deaths = {0: [70.0, 150.0, 230.0]}  # back at 115 (its lease), 195, and the lease of the last expires at 275
    outcome = Simulation(sweep, 0, failures=deaths).run()
    assert outcome.counts["failed_cells"] == 1
    assert (outcome.makespan, outcome.work, outcome.lost) == (275.0, 60.0, 10.0 + 35.0 + 35.0)
    assert Simulation(replace(sweep, deaths=4), 0, failures=deaths).run().counts["failed_cells"] == 0


@pytest.mark.parametrize("commands", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_all_time_is_accounted_for_and_losses_are_bounded(seed: int, commands: bool) -> None:
    simulation = Simulation(replace(HARD, commands=commands), seed)
    outcome = simulation.run()
    assert outcome.counts["deaths"] > 20
    assert outcome.counts["given_up"] > 5
    assert all(cell.over for cell in simulation.cells)
    # Stragglers (three of twelve) take twice as long for what they do, so the work is between one and two times that.
    assert outcome.ideal * 12 < outcome.work < 2 * outcome.ideal * 12
    assert outcome.busy == pytest.approx(outcome.work + outcome.overhead + outcome.lost + outcome.doubled)
    assert outcome.makespan * 12 > outcome.busy

    calm = Simulation(replace(HARD, commands=commands, mtbs=math.inf), seed).run()
    assert 0 < calm.lost <= 60.0 * calm.counts["deaths"]  # the interval of checkpoints
    assert calm.doubled == 0.0


def test_work_is_that_of_the_cells() -> None:
    sweep = replace(HARD, slow=0.0)
    outcome = Simulation(sweep, 1).run()
    assert outcome.work == pytest.approx(outcome.ideal * 12)
    assert Simulation(sweep, 1).run() == outcome
    assert Simulation(sweep, 2).run().ideal != outcome.ideal


def test_failures_come_as_often_as_is_asked_for() -> None:
    sweep = Sweep(cells=400, workers=20, mean=600.0, mtbf=3000.0, deaths=10**6)
    found = [Simulation(sweep, seed).run() for seed in range(5)]
    deaths, busy = sum(o.counts["deaths"] for o in found), sum(o.busy for o in found)
    expected = busy / 3000.0
    assert abs(deaths - expected) < 4 * expected**0.5


def test_commands_look_at_every_cell_at_least_once() -> None:
    sweep = Sweep(cells=100, workers=5, mean=60.0, commands=True)
    assert 100 * 5 <= Simulation(sweep, 0).run().counts["looks"] <= 100 * 5 * 3
    assert Simulation(replace(sweep, commands=False), 0).run().counts["looks"] == 100


def test_spreads_are_of_the_published_cells() -> None:
    found = measured_spreads()
    assert 0.2 < found["seed"] < found["experiment"] < 2
    assert found["cells"] > 300
    assert pooled([[1.0, 3.0], [5.0], [0.0, 2.0]]) == pytest.approx(2**0.5)


@pytest.mark.slow
def test_the_simulation_prints_one_json_object() -> None:
    options = ["--seeds", "2", "--cells", "100", "--workers", "10"]
    done = subprocess.run([sys.executable, TOOLS / "simulate_sweep.py", *options], capture_output=True, check=True)
    printed = json.loads(done.stdout, parse_constant=pytest.fail)
    first = printed["results"]["100 cells of 10 minutes, 10 workers"]
    assert first["queue"]["times_ideal"] >= 1
    assert first["queue, longest first"]["makespan_h"] >= first["queue"]["longest_cell_h"]
