"""Copy what is finished of experiments from a working folder into one that is committed.

    python tools/collect_results.py table6 table6_matched [--scale full] [--source runs] [--target results/paper]
        [--models 0]

Takes records, packed outcomes, config.yaml, history.csv and training.json of every finished cell of the experiments,
and their resolved configs; with --models SEED also model.keras of the cells of that seed. Models are otherwise left
out: a cell without its model is trained again when something new is to be measured on it.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from bn_vuln import records
from bn_vuln.config import to_yaml
from bn_vuln.experiments import catalog, runner
from bn_vuln.reporting import pages
from bn_vuln.runtime.files import atomic_write

FILES = ("config.yaml", "history.csv", "training.json")


def collect(task: runner.Task, source: Path, target: Path, *, model: bool) -> None:
    """Copy one finished cell; only the records that the task asks for."""
    folder, copy = task.folder(source), task.folder(target)
    wanted = [record for record in records.read_records(folder) if record.perturbation_id in task.ids()]
    copy.mkdir(parents=True, exist_ok=True)
    for name in [*FILES, *(["model.keras"] if model else [])]:
        if (folder / name).exists():  # what is not trained has no history
            shutil.copy2(folder / name, copy / name)
    for record in wanted:
        outcomes = records.read_correct(folder, record.perturbation_id)
        beside = records.read_arrays(records.correct_path(folder, record.perturbation_id))
        others = {name: array for name, array in beside.items() if name not in ("correct", "n")}
        records.write_record(copy, record, outcomes, others)
    for path in (folder / "measurements").glob("*.json"):
        if path.stem in task.ids():
            records.write_measurement(copy, records.read_measurement(path), records.read_arrays(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--scale", default="full")
    parser.add_argument("--source", type=Path, default=Path("runs"))
    parser.add_argument("--target", type=Path, default=Path("results/paper"))
    parser.add_argument("--models", type=int, help="also copy the models of this seed")
    args = parser.parse_args()
    for name in args.names:
        chosen = catalog.experiment(name, args.scale)
        todo = runner.tasks(chosen)
        finished = [task for task in todo if task.finished(args.source)]
        for task in finished:
            collect(task, args.source, args.target, model=task.cell.seed == args.models)
        atomic_write(runner.experiment_path(args.target, chosen), to_yaml(chosen))
        print(f"{name}: {len(finished)} of {len(todo)} cells")
    for form in ("md", "csv", "tex", "html"):
        for path in pages.write(args.target, form):  # type: ignore[arg-type]
            print(path)


if __name__ == "__main__":
    main()
