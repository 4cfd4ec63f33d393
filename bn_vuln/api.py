"""The Python API: the same as the commands, as a few functions.

    from bn_vuln import api

    run = api.train({"arch": "mlp", "normalization": "batch"}, "runs/bn")
    result = api.attack("runs/bn", {"attack": "pgd", "eps": "8/255", "steps": 20}, limit=1000)
    result.record.accuracy, result.record.flags
    api.evaluate("runs/bn", "mechanism")["awgn"].accuracy
    api.measure("runs/bn", "mechanism")["tilt"].value

Configs may be objects of `bn_vuln.config` or plain dicts of the same fields; mistakes in them raise
`ConfigError`, other mistakes `UsageError`, work that fails `BnvulnError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bn_vuln import config, data, records
from bn_vuln.analysis.statistics import Estimate, estimate
from bn_vuln.config import (
    Attack,
    Cell,
    Clean,
    Evaluation,
    Measurement,
    MinimumNorm,
    NearestCentroidArch,
    Perturbation,
    Scale,
    Suite,
)
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.experiments import catalog, runner
from bn_vuln.reporting import aggregate
from bn_vuln.reporting import pages as _report
from bn_vuln.runtime.distribution import ONE_DEVICE, Distribution, Strategy, choose
from bn_vuln.runtime.progress import Progress

if TYPE_CHECKING:
    from bn_vuln.evaluation.attack_diagnostics import Level
    from bn_vuln.evaluation.classifier import Classifier
    from bn_vuln.evaluation.evaluator import Result
    from bn_vuln.evaluation.transfer import Model, Transfers
    from bn_vuln.training import Trained

RUNS = Path("runs")


def train(
    cell: Cell | Mapping[str, Any],
    folder: str | Path | None = None,
    *,
    strategy: Strategy = "auto",
    progress: Progress | None = None,
    **options: Any,
) -> Trained:
    """Train a model; with `folder`, keep it there as a run, or go on with the one that was interrupted there. `options`
    are `resume`, `checkpoint_every` and `tensorboard` of `bn_vuln.training.train`."""
    from bn_vuln.training import fitting_distribution
    from bn_vuln.training import train as run

    checked = _cell(cell)
    data.prepare(checked.data.name)  # before TensorFlow is started: data that cannot be had are said within a second
    distribution = fitting_distribution(checked, strategy, progress)
    return run(checked, Path(folder) if folder else None, distribution=distribution, progress=progress, **options)


def check(cell: Cell | Mapping[str, Any]) -> bool:
    """Whether the data of a cell are on this machine; nothing is downloaded. Where they are, what `train` raises for a
    cell that makes no sense with its data is raised: a width below theirs, classes that they have not, more examples
    than there are."""
    from bn_vuln.training import load_examples

    checked = _cell(cell)
    if data.describe_dataset(checked.data.name)["state"] == "not prepared":
        return False
    if isinstance(checked.arch, NearestCentroidArch):  # which has no steps, and so no batch size to check
        data.load_whole_training_set(checked.data)
    else:
        load_examples(checked)
    return True


def open_classifier(
    target: str | Path, *, dataset: str | None = None, distribution: Distribution = ONE_DEVICE, **options: Any
) -> Classifier:
    """A run folder, or any `.keras` classifier (then `dataset` is needed, and `input_scale` "0-1" or "0-255" and
    `from_probabilities` say how it is called), with its variables on the devices of the distribution."""
    from bn_vuln.evaluation import classifier

    path = Path(target)
    if path.is_dir():
        with distribution.scope():
            return classifier.from_run(path)
    if path.suffix != ".keras":
        raise UsageError(
            f"{path}: expected a run folder or a .keras file" + ("" if path.exists() else "; no such file or folder")
        )
    with distribution.scope():
        return classifier.from_keras(path, dataset or "mnist", **options)


def attack(
    target: str | Path | Classifier,
    options: Attack | MinimumNorm | Mapping[str, Any],
    *,
    dataset: str | None = None,
    split: str = "test",
    limit: int | None = None,
    checks: Level = "basic",
    batch_size: int | None = None,
    strategy: Strategy = "auto",
    progress: Progress | None = None,
) -> Result:
    """Attack a classifier on a data set; the result holds the record, the outcomes and the attacked images; of a
    minimum-norm attack (`kind: minimal`) also the distances, as `smallest`. `checks` says how much is done to doubt an
    attack: none, basic or full; `batch_size`, examples at a time, is what memory holds where it is not given."""
    from bn_vuln.evaluation.evaluator import Evaluator

    evaluation = config.validate(Evaluation, {"dataset": dataset, "split": split, "limit": limit}, "evaluation")
    distribution = choose(strategy)
    subject = _classifier(target, dataset, distribution)
    evaluator = Evaluator(subject, evaluation, batch_size=batch_size, level=checks, distribution=distribution)
    return evaluator.run(_attack(options), progress=progress)


def transfer(
    models: Sequence[str | Path | Classifier],
    options: Attack | Mapping[str, Any],
    *,
    matrix: bool = False,
    evaluation: Evaluation | Mapping[str, Any] | None = None,
    root: str | Path = RUNS,
    fold: bool = True,
    batch_size: int | None = None,
    strategy: Strategy = "auto",
    progress: Progress | None = None,
    **foreign: Any,
) -> Transfers:
    """Attack the first model and evaluate what was found on it and all others; with `matrix`, attack each of them.

    `evaluation` has `dataset`, `split` and `limit`. Records go into the targets' run folders, those of foreign models
    and of classifiers into `root`/ID; what is recorded is not done again. `foreign` are the options of
    `open_classifier` for all foreign models.
    """
    from bn_vuln.evaluation.transfer import defaults, run

    where = config.validate(Evaluation, evaluation or {}, "evaluation")
    if not isinstance(options, Attack):
        options = {**defaults(options.get("attack", "pgd")), **options}
    checked = config.validate(Attack, options, "attack")
    distribution = choose(strategy)
    opened = [_model(model, Path(root), where.dataset, distribution, **foreign) for model in models]
    if len({model.id for model in opened}) < 2:
        raise UsageError(
            "transfer needs two different models at least: the first one's examples are given to the others"
        )
    sources = opened if matrix else opened[:1]
    how: dict[str, Any] = {"fold": fold, "batch_size": batch_size, "distribution": distribution}
    return run(sources, opened, checked, where, progress=progress, **how)


def evaluate(
    target: str | Path | Classifier,
    suite: str | Mapping[str, Perturbation | Mapping[str, Any]] = "quick",
    *,
    dataset: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    bn_statistics: str | None = None,
    folder: str | Path | None = None,
    checks: Level = "basic",
    batch_size: int | None = None,
    strategy: Strategy = "auto",
    progress: Progress | None = None,
) -> dict[str, records.Record]:
    """Measure accuracies: the perturbations of a suite (by name, or a mapping of them) on a classifier; `measure` is
    for its measurements. What is given of `dataset`, `split`, `limit` and `bn_statistics` stands in for the suite's.
    With `folder` each record is written into that run folder as soon as it is there. `checks` and `batch_size` as
    `attack` takes them."""
    from bn_vuln.evaluation.evaluator import measure as run

    evaluation, perturbations = resolve_suite(
        suite, dataset=dataset, split=split, limit=limit, bn_statistics=bn_statistics
    )
    distribution = choose(strategy)
    subject, evaluation = _subject(target, dataset, limit, evaluation, distribution)
    how: dict[str, Any] = {"level": checks, "batch_size": batch_size, "distribution": distribution}
    how |= {"folder": _path(folder), "progress": progress}
    return {name: result.record for name, result in run(subject, perturbations, evaluation, **how)}


def measure(
    target: str | Path | Classifier,
    suite: str | Mapping[str, Measurement | Mapping[str, Any]] = "mechanism",
    *,
    dataset: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    bn_statistics: str | None = None,
    folder: str | Path | None = None,
    strategy: Strategy = "auto",
    progress: Progress | None = None,
) -> dict[str, records.MeasurementRecord]:
    """Measure what is no accuracy (angle, spectrum, fooling images, distance of batch statistics): the measurements of
    a suite (by name, or a mapping of them) on a classifier; a suite may have none. The rest is as in `evaluate`."""
    from bn_vuln.evaluation.measurements import mechanism

    chosen = _suite(suite, "measurements")
    evaluation = _changed(chosen.evaluation, dataset=dataset, split=split, limit=limit, bn_statistics=bn_statistics)
    if not chosen.measurements:
        return {}
    subject, evaluation = _subject(target, dataset, limit, evaluation, choose(strategy))
    return dict(mechanism.measure(subject, chosen.measurements, evaluation, folder=_path(folder), progress=progress))


def resolve_suite(
    suite: str | Mapping[str, Perturbation | Mapping[str, Any]], **changes: Any
) -> tuple[Evaluation, Mapping[str, Perturbation]]:
    """(where to evaluate, under what) of a suite, with those fields of its evaluation changed (`dataset`, `split`,
    `limit`, `bn_statistics`) that are not None."""
    chosen = _suite(suite, "perturbations")
    return _changed(chosen.evaluation, **changes), chosen.perturbations


def _suite(suite: str | Mapping[str, Any], kind: str) -> Suite:
    """A suite by name, or one of these perturbations or measurements; a suite always has a perturbation."""
    if isinstance(suite, str):
        return catalog.suite(suite)
    return config.validate(Suite, {"title": kind, "perturbations": {"clean": Clean()}, kind: suite}, "suite")


def _changed(evaluation: Evaluation, **changes: Any) -> Evaluation:
    given = {key: value for key, value in changes.items() if value is not None}
    return config.validate(Evaluation, {**config.to_plain(evaluation), **given}, "evaluation")


@dataclass(frozen=True)
class Pair:
    """One perturbation measured on two runs: accuracies, and second - first over the same examples, with the
    standard error over examples (not over seeds: two runs are one pair of seeds)."""

    first: records.Record
    second: records.Record
    difference: Estimate


def compare(first: str | Path, second: str | Path) -> list[Pair]:
    """Paired differences, second - first, for every perturbation that both run folders have a record of.

    Raises `UsageError` where a folder is no run, `BnvulnError` where they share no perturbation or were measured on
    different examples.
    """
    folders = [Path(first), Path(second)]
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder")
        if not (folder / "records").is_dir():
            raise UsageError(f"{folder}: no records here; measure it first: bnvuln evaluate {folder} --suite quick")
    ours, theirs = ({r.perturbation_id: r for r in records.read_records(folder)} for folder in folders)
    common = [key for key in ours if key in theirs]
    if not common:
        raise BnvulnError(f"{first} and {second} share no perturbation; run the same `bnvuln evaluate` on both")
    return [_pair(folders, ours[key], theirs[key]) for key in common]


def _pair(folders: Sequence[Path], first: records.Record, second: records.Record) -> Pair:
    if first.n != second.n:
        raise BnvulnError(
            f"{folders[0]} and {folders[1]} were measured on different examples under {first.kind} ({first.n} and "
            f"{second.n}): nothing can be paired; measure both with the same --limit"
        )
    before, after = (records.read_correct(folder, first.perturbation_id).astype(np.float64) for folder in folders)
    return Pair(first, second, estimate(after - before))  # type: ignore[arg-type]


def reproduce(
    name: str,
    *,
    scale: Scale = "full",
    root: str | Path = RUNS,
    jobs: int = 1,
    strategy: Strategy = "auto",
    overrides: Iterable[str] = (),
    progress: Progress | None = None,
) -> aggregate.Results:
    """Run what is missing of an experiment (by name or path of its YAML) and aggregate it."""
    chosen = catalog.experiment(name, scale, overrides)
    runner.run(chosen, Path(root), jobs=jobs, strategy=strategy, progress=progress)
    return aggregate.aggregate(chosen, Path(root))


def report(folder: str | Path = RUNS, *, form: _report.Format = "html") -> list[Path]:
    """Write the report of a results folder from its records alone; the files written."""
    return _report.write(Path(folder), form)


def newest_run(root: str | Path = RUNS) -> Path:
    """The run folder in `root` whose training finished last. Raises `UsageError` where there is none."""
    finished = [p.parent for p in Path(root).glob("*/training.json") if (p.parent / "model.keras").exists()]
    if not finished:
        raise UsageError(f"no finished run in {root}/: train one (bnvuln train), or name a run or a .keras file")
    return max(finished, key=lambda folder: (folder / "training.json").stat().st_mtime)


def _attack(options: Attack | MinimumNorm | Mapping[str, Any]) -> Attack | MinimumNorm:
    """The config of an attack in a ball, or of a minimum-norm one (`kind: minimal`)."""
    minimal = isinstance(options, MinimumNorm) or (isinstance(options, Mapping) and options.get("kind") == "minimal")
    return config.validate(MinimumNorm, options, "attack") if minimal else config.validate(Attack, options, "attack")


def _cell(cell: Cell | Mapping[str, Any]) -> Cell:
    return cell if isinstance(cell, Cell) else config.validate(Cell, cell, "cell")


def _model(
    target: str | Path | Classifier, root: Path, dataset: str | None, distribution: Distribution, **foreign: Any
) -> Model:
    """A classifier with the folder that its transfer records go to."""
    from bn_vuln.evaluation.transfer import Model

    if not isinstance(target, str | Path):
        return Model(target, root / target.id, target.id)
    opened = open_classifier(target, dataset=dataset, distribution=distribution, **foreign)
    return Model(opened, Path(target) if Path(target).is_dir() else root / opened.id, str(target))


def _subject(
    target: str | Path | Classifier,
    dataset: str | None,
    limit: int | None,
    evaluation: Evaluation,
    distribution: Distribution,
) -> tuple[Classifier, Evaluation]:
    """(the classifier, where it is evaluated: without a suite's limit that its data are too few for)."""
    from bn_vuln.evaluation.eval_set import within

    subject = _classifier(target, dataset, distribution)
    return subject, evaluation if limit is not None else within(evaluation, subject)


def _path(folder: str | Path | None) -> Path | None:
    return None if folder is None else Path(folder)


def _classifier(target: str | Path | Classifier, dataset: str | None, distribution: Distribution) -> Classifier:
    if not isinstance(target, str | Path):
        return target
    return open_classifier(target, dataset=dataset, distribution=distribution)
