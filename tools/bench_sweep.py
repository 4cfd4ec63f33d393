"""What a sweep costs beside its cells, how soon finished cells are recognized, and what one cell takes.

    python tools/bench_sweep.py > results/bench_sweep.json        about an hour on two idle cores
    python tools/bench_sweep.py --smoke                           tiny cells, whose numbers mean little
    python tools/bench_sweep.py --only recognition

`overhead`: a sweep of MNIST MLPs by `reproduce`. The first cell of each worker warms it up; between its first and its
last cell, `overhead_percent` is the time that no record counts as training or measuring, in percent of what records
count. `engine`: what an engine takes for itself, whose cells sleep. `recognition`: the seconds until a
sweep of which all is done has found that out, in a new process; the cells are one that was trained, written again under
other seeds; the first time all files are read, later times the marks of finished cells. `cells`: one cell each in a new
process, medians of turns.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from bench import arguments, interleave, print_report

from bn_vuln import api, records
from bn_vuln.config import Sweep, identity_of
from bn_vuln.experiments import catalog, engines, runner
from bn_vuln.experiments.task import FINISHED, Task, tasks
from bn_vuln.runtime.files import atomic_write

SWEEP = {
    "title": "A sweep of MNIST MLPs",
    "claim": "None.",
    "source": "made up",
    "base": {"normalization": "batch", "train": {"epochs": 60, "batch_size": 128}},
    "grid": {"arch": ["mlp"]},
    "perturbations": {"clean": {"kind": "clean"}, "fgsm": {"kind": "attack", "attack": "fgsm", "eps": 0.1}},
    "table": {"rows": ["arch.name"], "columns": {"clean": "clean", "fgsm": "FGSM"}},
}
TINY = {"base": {"data": {"name": "mnist", "limit": 500}, "train": {"epochs": 1, "batch_size": 50}}}
# Experiment, scale, changes: of the cells that are timed one by one.
CELLS: dict[str, tuple[str, Any, list[str]]] = {
    "mlp_784": (
        "table6_matched",
        "full",
        ["seeds=[0]", "grid.normalization=[batch]", "train.epochs=5", "evaluation.limit=1000"],
    ),
    "vgg8": ("table2_vgg8", "smoke", ["seeds=[0]", "grid.normalization=[batch]"]),
    "resnet20": ("resnet20", "smoke", ["seeds=[0]", "grid.normalization=[batch]"]),
}


def experiment(folder: Path, name: str, **changes: Any) -> str:
    """Write an experiment into a folder, and return its path."""
    path = folder / f"{name}.yaml"
    atomic_write(path, yaml.safe_dump({"name": name, **SWEEP, **changes}))
    return str(path)


def recorded_seconds(root: Path, ran: list[Task]) -> list[float]:
    """The seconds of training and of all records of each cell."""
    store = records.FolderStore(root)
    found = []
    for task in ran:
        cell = task.id
        training = store.training(cell)
        assert training is not None
        found.append(training.seconds + sum(record.seconds or 0.0 for record in store.records(cell)))
    return found


def overhead(folder: Path, jobs: int, cells: int, changes: dict[str, Any]) -> dict[str, Any]:
    """One sweep of some cells a worker."""
    path, root = experiment(folder, f"sweep{jobs}", seeds=list(range(cells * jobs)), **changes), folder / f"runs{jobs}"
    begun = time.perf_counter()
    api.reproduce(path, root=root, jobs=jobs, strategy="none")
    seconds = time.perf_counter() - begun
    ran = tasks(catalog.experiment(path))
    ran.sort(key=lambda task: ended(task, root))  # the first are the first of each worker, since all cells are alike
    warm = sum(ended(task, root) for task in ran[-jobs:]) - sum(ended(task, root) for task in ran[:jobs])
    counted = recorded_seconds(root, ran[jobs:])
    return {
        "cells": len(ran),
        "seconds": round(seconds, 2),
        "seconds_a_cell": round(statistics.mean(counted), 2),
        "warm_cells_an_hour": round(3600 * jobs * len(counted) / warm, 1),
        "overhead_percent": round(100 * (warm / sum(counted) - 1), 2),
    }


def ended(task: Task, root: Path) -> float:
    """When a cell was marked as finished."""
    return (task.folder(root) / FINISHED).stat().st_mtime


def engine(jobs: int, seconds: float, cells: int) -> dict[str, Any]:
    """Cells that sleep: what the engine takes for itself, with workers that were started before."""
    with engines.opened(Sweep(jobs=jobs), jobs) as workers:
        for worker in workers:
            worker.call(time.sleep, 0.0)
        begun = time.perf_counter()
        for _ in engines.run(workers, lambda worker, own: worker.call(time.sleep, own), [seconds] * (cells * jobs)):
            pass
        took = time.perf_counter() - begun
    return {
        "cells": cells * jobs,
        "seconds": round(took, 3),
        "overhead_ms_a_cell": round(1000 * (took / cells - seconds), 1),
    }


def fabricate(folder: Path, cells: int) -> tuple[str, Path]:
    """Train one cell, and write it again under other seeds; return the experiment of all and its results folder."""
    root = folder / "finished"
    api.reproduce(experiment(folder, "finished", **TINY, seeds=[0]), root=root)
    path = experiment(folder, "finished", **TINY, seeds=list(range(cells)))
    [made, *others] = tasks(catalog.experiment(path))
    source, store = made.folder(root), records.FolderStore(root)
    training, history = store.training(source.name), (source / "history.csv").read_text(encoding="utf-8")
    assert training is not None
    own = [(record, store.correct(source.name, record.perturbation_id)) for record in store.records(source.name)]
    for task in others:
        target = task.folder(root)
        cell_id = {"cell_id": target.name}
        atomic_write(target / "config.yaml", records.to_yaml(task.cell))
        os.link(source / "model.keras", target / "model.keras")
        atomic_write(target / "history.csv", history)
        for record, correct in own:
            assert correct is not None
            own_cell = {**cell_id, "cell": identity_of(task.cell)}
            records.write_record(target, record.model_copy(update=own_cell), correct)
        atomic_write(target / "training.json", records.to_json(training.model_copy(update=cell_id)))
    return path, root


def recognize(path: str, root: Path) -> dict[str, Any]:
    """Go through a sweep of which all is done; count the files that are opened."""
    opened = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal opened
        opened += event == "open" and str(arguments[0]).startswith(str(root))

    sys.addaudithook(count)
    begun = time.perf_counter()
    chosen = catalog.experiment(path)
    todo = tasks(chosen)
    expanded = time.perf_counter() - begun
    runner.run(chosen, root)
    seconds = time.perf_counter() - begun - expanded
    return {
        "cells": len(todo),
        "seconds": round(seconds, 2),
        "of_which_expanding_the_grid": round(expanded, 2),
        "files_opened_a_cell": round(opened / len(todo), 1),
        "peak_mb": peak_mb(),
    }


def one_cell(name: str, root: Path) -> dict[str, Any]:
    """Run a cell, in this process; what it took of time and memory, and takes on disk."""
    chosen, scale, overrides = CELLS[name]
    begun = time.perf_counter()
    api.reproduce(chosen, scale=scale, root=root, overrides=overrides)
    seconds = time.perf_counter() - begun
    [task] = tasks(catalog.experiment(chosen, scale, overrides))
    files = [path.stat().st_size for path in task.folder(root).rglob("*") if path.is_file()]
    return {
        "seconds": round(seconds, 2),
        "recorded_seconds": round(recorded_seconds(root, [task])[0], 2),
        "peak_mb": peak_mb(),
        "files": len(files),
        "kilobytes": round(sum(files) / 1000, 1),
    }


def peak_mb() -> int:
    """The most memory that this process has held; `resource` would count what it was forked from."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def in_new_process(*words: object) -> dict[str, Any]:
    """What this tool prints, called with other options."""
    command = [sys.executable, __file__, *map(str, words)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def cell_costs(names: list[str], repetitions: int) -> dict[str, Any]:
    """Medians of each cell, which take turns."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}

    def turn(name: str) -> None:
        with scratch() as root:
            found[name].append(in_new_process("--cell", name, root))

    interleave({name: lambda name=name: turn(name) for name in names}, repetitions)  # type: ignore[misc]
    return {
        name: {key: statistics.median(turn[key] for turn in turns[1:]) for key in turns[0]}
        for name, turns in found.items()
    }


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="bench_sweep") as folder:
        yield Path(folder)


def main() -> None:
    parser = arguments(__doc__, limit=10_000, limited="finished cells (default: %(default)s)", repetitions=7)
    kinds = ("overhead", "recognition", "cells")
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--jobs", nargs="+", type=int, default=[1, 2], help="workers (default: 1 2)")
    parser.add_argument("--cells", type=int, default=5, help="cells a worker, of a minute (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="tiny cells")
    parser.add_argument("--cell", nargs=2, help="run one cell into a folder, and print what it took")
    parser.add_argument("--recognize", nargs=2, help="go through the finished cells of an experiment in a folder")
    args = parser.parse_args()
    if args.cell or args.recognize:
        name, path = args.cell or args.recognize
        json.dump(one_cell(name, Path(path)) if args.cell else recognize(name, Path(path)), sys.stdout)
        return
    results: dict[str, Any] = {}
    if "overhead" in args.only:
        with scratch() as folder:
            changes = TINY if args.smoke else {}
            results["overhead"] = {f"jobs_{jobs}": overhead(folder, jobs, args.cells, changes) for jobs in args.jobs}
        pause = 0.2 if args.smoke else 10.0
        results["engine"] = {f"jobs_{jobs}": engine(jobs, pause, args.cells) for jobs in args.jobs}
    if "recognition" in args.only:
        with scratch() as folder:
            made = fabricate(folder, args.limit)
            first, *turns = [in_new_process("--recognize", *made) for _ in range(args.repetitions + 1)]
            marked = {key: statistics.median(turn[key] for turn in turns) for key in first}
            results["recognition"] = {"first time": first, "later": marked}
    if "cells" in args.only:
        results["cells"] = cell_costs(["mlp_784"] if args.smoke else list(CELLS), args.repetitions)
    print_report(results, args.repetitions, cells_a_worker=args.cells, smoke=args.smoke)


if __name__ == "__main__":
    main()
