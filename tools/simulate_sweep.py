"""A sweep of many cells over many workers that fail: how long it takes, and how much work is in vain.

    python tools/simulate_sweep.py > results/simulate_sweep.json         about two minutes on one core
    python tools/simulate_sweep.py --cells 500 --workers 10 --seeds 3

Nothing is trained: it is a discrete-event simulation. The seconds of cells are lognormal, with the spread that the
cells of one experiment have in results/paper. Workers fail in a Poisson process and are back after a while. A worker
holds a lease of its cell, which expires when its heartbeat stops: then another one goes on from the last checkpoint. A
stall, as of a shared folder that hangs, keeps a worker that computes from renewing its lease; it then gives up.

`lost` is the time of workers that died since their last checkpoints, `doubled` that of workers which lived and lost
their lease, both in percent of all work. `times_ideal` is the makespan in units of the ideal one: the sum of all work,
divided by the workers. `failed_cells` are given up, with what their checkpoints hold. Numbers are means over seeds,
`_sem` their standard errors; a seed has the same cells in every row of a table. `looks` are those at a cell that may be
finished or taken, `writes` are heartbeats, leases and checkpoints.
"""

from __future__ import annotations

import argparse
import functools
import heapq
import itertools
import json
import math
import statistics
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from bench import RESULTS, print_report

HOUR = 3600.0


@dataclass(frozen=True)
class Sweep:
    """What is simulated; all times are in seconds.

    Attributes:
        cells: Number of cells.
        workers: Number of workers.
        mean: Mean time of a cell.
        spread: Standard deviation of the logarithm of a cell's time.
        shards: Parts that cells and workers are divided into; the workers of a part share a queue of its cells.
        commands: Nothing hands out cells: each worker is a command that passes through the cells of its part.
        longest_first: Queues begin with the cells that take longest.
        mtbf: Mean time between two failures of a worker.
        restart: Time until a failed worker is back.
        checkpoint: Time between two checkpoints; infinite: there are none.
        expiry: Time after which a lease expires that is not renewed.
        beat: Time between two heartbeats.
        poll: Time between two looks of a worker that finds no cell, or until it is told of one.
        look: Time to look whether a cell is finished or taken.
        overhead: Time to begin a cell, or to go on with it.
        slow: Share of the workers that are stragglers.
        slowdown: Factor of the time of cells on stragglers.
        mtbs: Mean time between two stalls of a worker.
        stall: Mean time of a stall.
        deaths: Deaths after which a cell is given up that got no further between them.
    """

    cells: int = 10_000
    workers: int = 100
    mean: float = 600.0
    spread: float = 0.0
    shards: int = 1
    commands: bool = False
    longest_first: bool = False
    mtbf: float = math.inf
    restart: float = 60.0
    checkpoint: float = 60.0
    expiry: float = 45.0
    beat: float = 5.0
    poll: float = 2.0
    look: float = 0.001
    overhead: float = 2.0
    slow: float = 0.0
    slowdown: float = 2.0
    mtbs: float = math.inf
    stall: float = 60.0
    deaths: int = 3


@dataclass
class Outcome:
    """What came of a sweep: its makespan, the ideal one, the longest cell, times of workers in seconds, and counts.

    All time that workers are busy is one of the four: work that counts, overhead, lost, or doubled.
    """

    ideal: float
    longest: float
    makespan: float = 0.0
    busy: float = 0.0
    work: float = 0.0
    overhead: float = 0.0
    lost: float = 0.0
    doubled: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)


@dataclass
class Cell:
    """A cell: what of it is left to do, after its checkpoint, and who works on it."""

    left: float
    shard: int
    deaths: int = 0
    over: bool = False
    holder: Attempt | None = None


@dataclass
class Attempt:
    """The work of one worker on one cell, from its begin to `end`, if nothing happens."""

    cell: Cell
    worker: int
    begun: float
    end: float
    blocked: float = math.inf  # when a stall began, after which nothing is written
    kept: float = 0.0  # time of work in the last checkpoint


class Simulation:
    """One sweep, event by event.

    Args:
        sweep: What is simulated.
        seed: Number that all random choices follow from.
        failures: Times at which each worker fails, by its number, instead of the Poisson process.
        stalls: Begins and lengths of each worker's stalls, by its number, instead of the Poisson process.
    """

    def __init__(
        self,
        sweep: Sweep,
        seed: int,
        *,
        failures: Mapping[int, Iterable[float]] | None = None,
        stalls: Mapping[int, Iterable[tuple[float, float]]] | None = None,
    ) -> None:
        self.sweep = sweep
        cells, self.random, *own = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(2 + 2 * sweep.workers))
        seconds = sweep.mean * np.exp(sweep.spread * cells.standard_normal(sweep.cells) - sweep.spread**2 / 2)
        seconds = np.sort(seconds)[::-1] if sweep.longest_first else seconds
        self.outcome = Outcome(float(seconds.sum()) / sweep.workers, float(seconds.max()))
        self.cells = [Cell(float(s), number % sweep.shards) for number, s in enumerate(seconds)]
        self.pending = [deque(c for c in self.cells if c.shard == shard) for shard in range(sweep.shards)]
        self.unfinished = [len(cells) for cells in self.pending]
        self.idle: list[dict[int, float]] = [{} for _ in range(sweep.shards)]  # workers, since when
        every = range(sweep.workers)
        self.unseen = [self.pending[worker % sweep.shards].copy() for worker in every] if sweep.commands else []
        self.pace = [sweep.slowdown if worker < sweep.slow * sweep.workers else 1.0 for worker in every]
        self.failures = [
            poisson(own[worker], sweep.mtbf) if failures is None else iter(failures.get(worker, ())) for worker in every
        ]
        self.failure = [next(times, math.inf) for times in self.failures]
        self.stalls = [
            with_lengths(own[-1 - worker], sweep) if stalls is None else iter(stalls.get(worker, ()))
            for worker in every
        ]
        self.stall = [next(begins, (math.inf, 0.0)) for begins in self.stalls]
        self.events: list[tuple[float, int, Callable[..., None], Any]] = []
        self.number = itertools.count()

    def run(self) -> Outcome:
        """Run all events, and return what came of them."""
        for worker in range(self.sweep.workers):
            self._at(0.0, self._ask, worker)
        while any(self.unfinished):
            now, _, event, what = heapq.heappop(self.events)
            event(now, what)
        self.outcome.counts["looks"] += sum(map(len, self.unseen))  # each worker sees that all are finished
        return self.outcome

    def _at(self, time: float, event: Callable[..., None], what: int | Attempt) -> None:
        heapq.heappush(self.events, (time, next(self.number), event, what))

    def _ask(self, now: float, worker: int) -> None:
        """A worker that is free looks for a cell, and begins the one that it finds."""
        shard = worker % self.sweep.shards
        if worker in self.idle[shard]:
            self._stop_waiting(now, worker)
        if now >= self.failure[worker]:  # it failed while it had no cell
            self._restart(self.failure[worker], worker, now)
            return
        cell, looks = self._next(worker, shard)
        self.outcome.counts["looks"] += looks
        if cell is None:
            self.idle[shard][worker] = now
            return
        begun = now + looks * self.sweep.look
        end = begun + self.sweep.overhead + cell.left * self.pace[worker]
        cell.holder = attempt = Attempt(cell, worker, begun, end)
        self._foresee(attempt)

    def _next(self, worker: int, shard: int) -> tuple[Cell | None, int]:
        """Return a free cell, and at how many cells the worker looked; at finished ones it never looks again."""
        if not self.sweep.commands:
            return (self.pending[shard].popleft(), 1) if self.pending[shard] else (None, 0)
        unseen = self.unseen[worker]
        known = len(unseen)
        for look in range(1, known + 1):
            cell = unseen.popleft()
            if not cell.over:
                unseen.append(cell)
                if cell.holder is None:
                    return cell, look
        return None, known

    def _foresee(self, attempt: Attempt) -> None:
        """Find out how an attempt will end: its worker dies, a stall costs it the lease, or it finishes."""
        worker = attempt.worker
        ends, last = self.failure[worker] < attempt.end, min(attempt.end, self.failure[worker])
        while self.stall[worker][0] < last:
            begin, length = self.stall[worker]
            self.stall[worker] = next(self.stalls[worker], (math.inf, 0.0))
            expires = begin + self._until_expiry()
            if begin >= attempt.begun and begin + length > expires:
                attempt.blocked = begin
                self._at(expires, self._expire, attempt)
                ends = self.failure[worker] < begin + length
                self._at(min(self.failure[worker], begin + length), self._die if ends else self._give_up, attempt)
                return
        self._at(last, self._die if ends else self._finish, attempt)

    def _until_expiry(self) -> float:
        """Return the time until a lease expires that is renewed no more: the last heartbeat was a little ago."""
        return self.sweep.expiry - self.sweep.beat * self.random.random()

    def _finish(self, now: float, attempt: Attempt) -> None:
        self.outcome.work += self._close(now, attempt)
        self._end(now, attempt.cell)
        self._at(now, self._ask, attempt.worker)

    def _die(self, now: float, attempt: Attempt) -> None:
        attempt.end = now
        attempt.kept = self._in_checkpoint(now, attempt)
        self.outcome.counts["deaths"] += 1
        attempt.cell.deaths = 1 if attempt.kept else attempt.cell.deaths + 1  # those in which it got no further
        self.outcome.lost += self._close(now, attempt) - attempt.kept
        if attempt.blocked == math.inf:
            self._at(now + self._until_expiry(), self._expire, attempt)
        self._restart(now, attempt.worker, now)

    def _give_up(self, now: float, attempt: Attempt) -> None:
        self.outcome.counts["given_up"] += 1
        self.outcome.doubled += self._close(now, attempt) - attempt.kept
        self._at(now, self._ask, attempt.worker)

    def _expire(self, now: float, attempt: Attempt) -> None:
        """A lease expires: the cell comes again after the others, from its checkpoint on, or it has died too often."""
        cell = attempt.cell
        attempt.kept = self._in_checkpoint(now, attempt)
        cell.holder = None
        cell.left -= attempt.kept / self.pace[attempt.worker]
        self.outcome.work += attempt.kept
        if cell.deaths >= self.sweep.deaths:
            self.outcome.counts["failed_cells"] += 1
            self._end(now, cell)
            return
        self.pending[cell.shard].append(cell)
        for worker in list(self.idle[cell.shard]):
            self._at(now + self.sweep.poll * self.random.random(), self._ask, worker)

    def _in_checkpoint(self, now: float, attempt: Attempt) -> float:
        worked = max(0.0, min(now, attempt.end, attempt.blocked) - attempt.begun - self.sweep.overhead)
        return self.sweep.checkpoint * (worked // self.sweep.checkpoint) if worked >= self.sweep.checkpoint else 0.0

    def _restart(self, failed: float, worker: int, now: float) -> None:
        back = max(failed + self.sweep.restart, now)
        while self.failure[worker] <= back:
            self.failure[worker] = next(self.failures[worker], math.inf)
        self._at(back, self._ask, worker)

    def _close(self, now: float, attempt: Attempt) -> float:
        """Count an attempt that is over; return the time that it worked."""
        busy = min(now, attempt.end) - attempt.begun
        overhead = min(busy, self.sweep.overhead)
        self.outcome.busy += busy
        self.outcome.overhead += overhead
        # The lease is made and removed; a beat renews it.
        beats = busy // self.sweep.beat if self.sweep.beat else 0
        self.outcome.counts["writes"] += round(2 + beats + (busy - overhead) // self.sweep.checkpoint)
        return busy - overhead

    def _end(self, now: float, cell: Cell) -> None:
        """A cell is finished, or given up."""
        cell.over, cell.holder = True, None
        self.unfinished[cell.shard] -= 1
        self.outcome.makespan = now
        if not self.unfinished[cell.shard]:
            for worker in list(self.idle[cell.shard]):
                self._stop_waiting(now, worker)

    def _stop_waiting(self, now: float, worker: int) -> None:
        """Count the looks of a worker that waited for others' cells; those of a queue are told."""
        shard = worker % self.sweep.shards
        waited = now - self.idle[shard].pop(worker)
        if self.sweep.poll and self.sweep.commands:
            self.outcome.counts["looks"] += round(waited // self.sweep.poll) * max(1, self.unfinished[shard])


def poisson(generator: np.random.Generator, mean: float) -> Iterator[float]:
    """Return the times of a Poisson process; none where the mean time between two is infinite."""
    now = 0.0
    while mean < math.inf:
        now += generator.exponential(mean)
        yield now


def with_lengths(generator: np.random.Generator, sweep: Sweep) -> Iterator[tuple[float, float]]:
    """Return begins and lengths of stalls."""
    for begin in poisson(generator, sweep.mtbs):
        yield begin, generator.exponential(sweep.stall)


def measured_spreads() -> dict[str, Any]:
    """Standard deviations of the logarithm of a cell's time in results/paper, on CPUs: training and all its records.

    Returns:
        `experiment`: pooled over experiments, of the cells of one; `seed`: of cells that differ in nothing but the
        seed; and how many cells there are.
    """
    folder, seconds, groups = RESULTS / "paper", Counter[str](), defaultdict[str, list[str]](list)
    for line in (folder / "cells.jsonl").read_text(encoding="utf-8").splitlines():
        cell = json.loads(line)
        if not cell["training"]["device"].startswith("CPU"):
            continue
        seconds[cell["cell_id"]] = cell["training"]["seconds"]
        but_seed = json.dumps({**cell["identity"], "seed": None}, sort_keys=True)
        for group in (*cell["experiments"], but_seed):
            groups[group].append(cell["cell_id"])
    for name in ("records", "measurements"):
        for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["cell_id"] in seconds:
                seconds[record["cell_id"]] += record["seconds"]
    logs = {group: [math.log(seconds[cell]) for cell in cells] for group, cells in groups.items()}
    return {
        "experiment": pooled([own for group, own in logs.items() if not group.startswith("{")]),
        "seed": pooled([own for group, own in logs.items() if group.startswith("{")]),
        "cells": len(seconds),
    }


def pooled(groups: Iterable[list[float]]) -> float:
    """Return the standard deviation within groups."""
    several = [np.asarray(group) for group in groups if len(group) > 1]
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in several)
    return math.sqrt(squares / sum(len(group) - 1 for group in several))


def row(sweep: Sweep, seeds: int) -> dict[str, Any]:
    """One line of a table: means over seeds, with standard errors of the first ones."""
    outcomes = [Simulation(sweep, seed).run() for seed in range(seeds)]
    work = sweep.workers * statistics.mean(o.ideal for o in outcomes)
    found: dict[str, Any] = {}
    measures = {
        "times_ideal": [o.makespan / o.ideal for o in outcomes],
        "lost_percent": [100 * o.lost / work for o in outcomes],
        "doubled_percent": [100 * o.doubled / work for o in outcomes],
        "failed_cells": [float(o.counts["failed_cells"]) for o in outcomes],
    }
    for name, values in measures.items():
        found[name] = round(statistics.mean(values), 3)
        found[f"{name}_sem"] = round(statistics.stdev(values) / math.sqrt(len(values)), 3) if seeds > 1 else None
    hours = {"makespan_h": [o.makespan for o in outcomes], "longest_cell_h": [o.longest for o in outcomes]}
    found |= {name: round(statistics.mean(values) / HOUR, 2) for name, values in hours.items()}
    for name in ("looks", "writes"):
        found[f"{name}_per_second"] = round(statistics.mean(o.counts[name] / o.makespan for o in outcomes), 1)
    found["deaths_of_workers"] = round(statistics.mean(o.counts["deaths"] for o in outcomes), 1)
    return found


def tables(base: Sweep, seed_spread: float) -> dict[str, dict[str, Sweep]]:
    """Return all that is simulated, by the title of its table and its row."""
    change = functools.partial(replace, base)
    alike = functools.partial(replace, base, spread=seed_spread, deaths=base.cells)
    each = {"shards": base.workers}
    minute, long = functools.partial(change, mean=60.0), functools.partial(change, mean=4 * HOUR)
    return {
        f"{base.cells:,} cells of 10 minutes, {base.workers} workers": {
            "queue, no failures": change(mtbf=math.inf),
            "queue": base,
            "queue, longest first": change(longest_first=True),
            "queue, no checkpoints": change(checkpoint=math.inf),
            f"{base.workers} commands": change(commands=True),
            "10 shards": change(shards=10),
            f"{base.workers} shards": change(**each),
            f"{base.workers} shards, no failures": change(**each, mtbf=math.inf),
            "queue, back after 1 h": change(restart=HOUR),
            f"{base.workers} shards, back after 1 h": change(**each, restart=HOUR),
            "queue, 5% slow": change(slow=0.05),
            f"{base.workers} shards, 5% slow": change(**each, slow=0.05),
            "queue, a stall a day": change(mtbs=24 * HOUR),
            "queue, seeds alone": change(spread=seed_spread),
            f"{base.workers} shards, seeds alone": change(**each, spread=seed_spread),
        },
        "cells of 1 minute": {
            "queue": minute(),
            "queue, no checkpoints": minute(checkpoint=math.inf),
            f"{base.workers} commands": minute(commands=True),
            f"{base.workers} shards": minute(**each),
        },
        "cells of 4 hours": {
            "queue": long(),
            "queue, no checkpoints": long(checkpoint=math.inf),
            "queue, no checkpoints, 10 deaths": long(checkpoint=math.inf, deaths=10),
            f"{base.workers} shards": long(**each),
        },
        **{
            f"cells that differ in seeds alone, by mean hours between failures: {name}": {
                f"{hours}": alike(mtbf=hours * HOUR, **options) for hours in (1, 3, 10, 30, 100)
            }
            for name, options in (
                ("queue", {}),
                ("queue, no checkpoints", {"checkpoint": math.inf}),
                (f"{base.workers} shards", each),
            )
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40, help="simulations of each row (default: %(default)s)")
    parser.add_argument("--cells", type=int, default=Sweep.cells, help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=Sweep.workers, help="a multiple of 10 (default: %(default)s)")
    parser.add_argument("--mtbf", type=float, default=24.0, help="hours between failures (default: %(default)s)")
    args = parser.parse_args()
    spreads = measured_spreads()
    base = Sweep(args.cells, args.workers, spread=spreads["experiment"], mtbf=args.mtbf * HOUR)
    results: dict[str, dict[str, Any]] = {}
    for title, rows in tables(base, spreads["seed"]).items():
        for name, sweep in rows.items():
            print(f"{title}: {name}", file=sys.stderr)
            results.setdefault(title, {})[name] = row(sweep, args.seeds)
    settings = {name: None if value == math.inf else value for name, value in asdict(base).items()}
    print_report(results, args.seeds, measured_spreads=spreads, **settings)


if __name__ == "__main__":
    main()
