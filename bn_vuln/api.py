"""The Python API: the functions behind the commands, also offered by `import bn_vuln`.

    import bn_vuln as bnv

    run = bnv.train({"arch": "mlp", "normalization": "batch"}, "runs/bn")
    result = bnv.attack("runs/bn", {"attack": "pgd", "eps": "8/255", "steps": 20}, limit=1000)
    result.record.accuracy, result.record.flags
    bnv.evaluate("runs/bn", "mechanism")["awgn"].accuracy
    bnv.measure("runs/bn", "mechanism")["tilt"].value

Configs may be objects of `bn_vuln.config` or plain dicts of the same fields. Mistakes in them raise `ConfigError`,
other mistakes `UsageError`, work that fails `BnvulnError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from bn_vuln import config, data, records
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
from bn_vuln.errors import UsageError
from bn_vuln.experiments import catalog, publishing, runner
from bn_vuln.reporting import aggregate, pages, paired
from bn_vuln.reporting.paired import Comparison
from bn_vuln.runtime.distribution import ONE_DEVICE, Distribution, Strategy, choose
from bn_vuln.runtime.progress import Progress

if TYPE_CHECKING:
    from bn_vuln.evaluation.attack_diagnostics import Checks
    from bn_vuln.evaluation.classifier import Classifier, InputScale
    from bn_vuln.evaluation.result import Result
    from bn_vuln.evaluation.transfer import Model, TransferResult
    from bn_vuln.training import TrainingResult

RUNS = Path("runs")

Target: TypeAlias = "str | Path | Classifier"  # a run folder, a .keras file, or a classifier that is open
Fields: TypeAlias = Mapping[str, object]  # of a config, as YAML has them


def train(
    cell: Cell | Fields,
    folder: str | Path | None = None,
    *,
    resume: bool = True,
    checkpoint_every: int = 1,
    tensorboard: bool = False,
    strategy: Strategy = "auto",
    progress: Progress | None = None,
) -> TrainingResult:
    """Train a model.

    Args:
        cell: data, architecture, normalization, training and seed.
        folder: run folder that the model is kept in; a training that was interrupted there goes on.
        resume: go on from the checkpoint in `folder`, if there is one.
        checkpoint_every: epochs between two checkpoints.
        tensorboard: write TensorBoard event files into `folder`.
        strategy: `auto` uses all GPUs, `mirrored` all devices, `none` one.
        progress: where messages and the number of steps that are done go.

    Returns:
        The model, its history and its training record. A net that does not learn is no error: its record says `failed`.

    Raises:
        ConfigError: for a cell that is not valid.
        UsageError: where the cell makes no sense with its data, the number of replicas, or what the folder holds.
        BnvulnError: where the data cannot be had.
    """
    from bn_vuln.training import choose_distribution
    from bn_vuln.training import train as run

    checked = _cell(cell)
    data.prepare(checked.data.name)  # before TensorFlow is started: data that cannot be had are named within a second
    return run(
        checked,
        Path(folder) if folder else None,
        resume=resume,
        checkpoint_every=checkpoint_every,
        tensorboard=tensorboard,
        distribution=choose_distribution(checked, strategy, progress),
        progress=progress,
    )


def check_data(cell: Cell | Fields) -> bool:
    """Check a cell against its data, where they are on this machine; nothing is downloaded.

    Args:
        cell: data, architecture, normalization, training and seed.

    Returns:
        False where the data are not prepared here.

    Raises:
        UsageError: as `train` does: a width below that of the data, classes that they have not, more examples than
            there are.
    """
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
    target: str | Path,
    *,
    dataset: str | None = None,
    input_scale: InputScale = "0-1",
    from_probabilities: bool = False,
    distribution: Distribution = ONE_DEVICE,
) -> Classifier:
    """Open a run folder, or any `.keras` classifier.

    Args:
        target: the folder or the file.
        dataset: data set of an external model, by name or path; None: mnist.
        input_scale: pixel values that an external model expects.
        from_probabilities: True where an external model ends in a softmax.
        distribution: devices that get the variables.

    Returns:
        The classifier.

    Raises:
        UsageError: where the target is neither, or does not fit its data set.
        BnvulnError: where the training of the run failed or never finished, or Keras cannot load the file.
    """
    from bn_vuln.evaluation import classifier

    path = Path(target)
    if path.is_dir() or (path.suffix != ".keras" and records.is_packed(path.parent)):
        with distribution.scope():
            return classifier.from_run(path)
    if path.suffix != ".keras":
        raise UsageError(
            f"{path}: expected a run folder or a .keras file" + ("" if path.exists() else "; no such file or folder")
        )
    with distribution.scope():
        return classifier.from_keras(
            path, dataset or "mnist", input_scale=input_scale, from_probabilities=from_probabilities
        )


def attack(
    target: Target,
    options: Attack | MinimumNorm | Fields,
    *,
    dataset: str | None = None,
    split: str = "test",
    limit: int | None = None,
    checks: Checks = "basic",
    batch_size: int | None = None,
    strategy: Strategy = "auto",
    progress: Progress | None = None,
) -> Result:
    """Attack a classifier.

    Args:
        target: run folder, `.keras` file or open classifier.
        options: the attack; fields with `kind: minimal` are those of a minimum-norm attack.
        dataset: data set by name or path; None: the one trained on.
        split: `test`, `validation` or `train`.
        limit: number of examples, taken in a fixed random order; None: all.
        checks: attack diagnostics, `none`, `basic` or `full`.
        batch_size: examples at a time; None: as many as memory holds.
        strategy: `auto` uses all GPUs, `mirrored` all devices, `none` one.
        progress: where messages and the number of examples that are done go.

    Returns:
        The record with accuracy and flags, correct for each example, the attacked images, and of attacks with several
        eps and minimum-norm attacks `min_eps`.

    Raises:
        ConfigError: for an attack that is not valid.
        UsageError: where the examples do not fit the classifier, or the attack does not fit the evaluation.
    """
    from bn_vuln.evaluation.evaluator import Evaluator

    evaluation = config.validate(Evaluation, {"dataset": dataset, "split": split, "limit": limit}, "evaluation")
    distribution = choose(strategy)
    classifier = _classifier(target, dataset, distribution)
    evaluator = Evaluator(classifier, evaluation, batch_size=batch_size, checks=checks, distribution=distribution)
    return evaluator.run(_attack(options), progress=progress)


def transfer(
    models: Sequence[Target],
    options: Attack | Fields,
    *,
    matrix: bool = False,
    evaluation: Evaluation | Fields | None = None,
    root: str | Path = RUNS,
    fold: bool = True,
    input_scale: InputScale = "0-1",
    from_probabilities: bool = False,
    batch_size: int | None = None,
    strategy: Strategy = "auto",
    progress: Progress | None = None,
) -> TransferResult:
    """Attack the first model, and measure all models on its adversarial examples.

    Args:
        models: run folders, `.keras` files or open classifiers, two different ones at least.
        options: the attack.
        matrix: attack each of them.
        evaluation: data set, split and limit.
        root: folder of the runs of external models and open classifiers: their records go into `root`/ID, those of run
            folders into the folders. What is recorded is not done again.
        fold: attack a copy with BN folded away, which is the same function and faster.
        input_scale: pixel values that external models expect.
        from_probabilities: True where external models end in a softmax.
        batch_size: examples at a time; None: as many as memory holds.
        strategy: `auto` uses all GPUs, `mirrored` all devices, `none` one.
        progress: where messages and the number of examples that are done go.

    Returns:
        Every pair of a source and a target.

    Raises:
        ConfigError: for an attack that is not valid.
        UsageError: where the models do not take the same images, and for an attack at several eps.
    """
    from bn_vuln.evaluation.transfer import default_fields, run

    checked_evaluation = config.validate(Evaluation, evaluation or {}, "evaluation")
    if not isinstance(options, Attack):
        options = {**default_fields(str(options.get("attack", "pgd"))), **options}
    checked = config.validate(Attack, options, "attack")
    distribution = choose(strategy)
    opened = [
        _model(model, Path(root), checked_evaluation.dataset, input_scale, from_probabilities, distribution)
        for model in models
    ]
    if len({model.id for model in opened}) < 2:
        raise UsageError(
            "transfer needs two different models at least: the first one's examples are given to the others"
        )
    return run(
        opened if matrix else opened[:1],
        opened,
        checked,
        checked_evaluation,
        fold=fold,
        batch_size=batch_size,
        distribution=distribution,
        progress=progress,
    )


def evaluate(
    target: Target,
    suite: str | Mapping[str, Perturbation | Fields] = "quick",
    *,
    dataset: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    bn_statistics: str | None = None,
    folder: str | Path | None = None,
    checks: Checks = "basic",
    batch_size: int | None = None,
    strategy: Strategy = "auto",
    progress: Progress | None = None,
) -> dict[str, records.Record]:
    """Measure accuracies of a classifier under the perturbations of a suite.

    Args:
        target: run folder, `.keras` file or open classifier.
        suite: perturbations by name, or a suite by name or path; its measurements are left to `measure`.
        dataset: data set by name or path; None: the suite's, or the one trained on.
        split: `test`, `validation` or `train`; None: the suite's.
        limit: number of examples, taken in a fixed random order; None: the suite's, where the data have as many.
        bn_statistics: `tracked`, `reestimated` or `batch`; None: the suite's.
        folder: run folder that each record is written into as soon as it is there.
        checks: attack diagnostics, `none`, `basic` or `full`.
        batch_size: examples at a time; None: as many as memory holds.
        strategy: `auto` uses all GPUs, `mirrored` all devices, `none` one.
        progress: where messages and the number of examples that are done go.

    Returns:
        Records by the name of the perturbation; an attack with an eps grid has one for each eps.

    Raises:
        ConfigError: for a suite or a perturbation that is not valid.
        UsageError: where the examples do not fit the classifier.
    """
    from bn_vuln.evaluation.evaluator import measure as run

    evaluation, perturbations = resolve_suite(
        suite, dataset=dataset, split=split, limit=limit, bn_statistics=bn_statistics
    )
    distribution = choose(strategy)
    classifier, evaluation = _eval_set(target, dataset, limit, evaluation, distribution)
    results = run(
        classifier,
        perturbations,
        evaluation,
        folder=_path(folder),
        batch_size=batch_size,
        checks=checks,
        distribution=distribution,
        progress=progress,
    )
    return {name: result.record for name, result in results}


def measure(
    target: Target,
    suite: str | Mapping[str, Measurement | Fields] = "mechanism",
    *,
    dataset: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    bn_statistics: str | None = None,
    folder: str | Path | None = None,
    strategy: Strategy = "auto",
    progress: Progress | None = None,
) -> dict[str, records.MeasurementRecord]:
    """Measure other numbers than accuracies: tilting angle, spectrum, fooling images, shift of BN statistics.

    Args:
        target: run folder, `.keras` file or open classifier.
        suite: measurements by name, or a suite by name or path.
        dataset: data set by name or path; None: the suite's, or the one trained on.
        split: `test`, `validation` or `train`; None: the suite's.
        limit: number of examples, taken in a fixed random order; None: the suite's, where the data have as many.
        bn_statistics: `tracked`, `reestimated` or `batch`; None: the suite's.
        folder: run folder that each record is written into as soon as it is there.
        strategy: `auto` uses all GPUs, `mirrored` all devices, `none` one.
        progress: where messages go.

    Returns:
        Records by the name of the measurement; empty for a suite that has none.

    Raises:
        ConfigError: for a suite or a measurement that is not valid.
        UsageError: where the examples do not fit the classifier, or a measurement not the BN statistics.
        BnvulnError: for a classifier without gradients, or whose activations are not finite.
    """
    from bn_vuln.evaluation.measurements.run import measure as run

    chosen = _suite(suite, "measurements")
    evaluation = _changed(chosen.evaluation, dataset, split, limit, bn_statistics)
    if not chosen.measurements:
        return {}
    classifier, evaluation = _eval_set(target, dataset, limit, evaluation, choose(strategy))
    return dict(run(classifier, chosen.measurements, evaluation, folder=_path(folder), progress=progress))


def resolve_suite(
    suite: str | Mapping[str, Perturbation | Fields],
    *,
    dataset: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    bn_statistics: str | None = None,
) -> tuple[Evaluation, Mapping[str, Perturbation]]:
    """Return the evaluation and the perturbations of a suite.

    Args:
        suite: perturbations by name, or a suite by name or path.
        dataset: data set by name or path; None: the suite's.
        split: `test`, `validation` or `train`; None: the suite's.
        limit: number of examples; None: the suite's.
        bn_statistics: `tracked`, `reestimated` or `batch`; None: the suite's.

    Returns:
        (evaluation, perturbations by name).

    Raises:
        ConfigError: for a suite or a perturbation that is not valid.
    """
    chosen = _suite(suite, "perturbations")
    return _changed(chosen.evaluation, dataset, split, limit, bn_statistics), chosen.perturbations


def _suite(suite: str | Mapping[str, object], kind: str) -> Suite:
    """A suite by name, or one of these perturbations or measurements; a suite always has a perturbation."""
    if isinstance(suite, str):
        return catalog.suite(suite)
    return config.validate(Suite, {"title": kind, "perturbations": {"clean": Clean()}, kind: suite}, "suite")


def _changed(
    evaluation: Evaluation, dataset: str | None, split: str | None, limit: int | None, bn_statistics: str | None
) -> Evaluation:
    changes = {"dataset": dataset, "split": split, "limit": limit, "bn_statistics": bn_statistics}
    given = {key: value for key, value in changes.items() if value is not None}
    return config.validate(Evaluation, {**config.to_plain(evaluation), **given}, "evaluation")


def compare(first: str | Path, second: str | Path, *, root: str | Path = RUNS) -> list[Comparison]:
    """Compare two models under every perturbation that both have a record of.

    Args:
        first: run folder, STORE/CELL of a packed store, the file of an external model that was measured, or the
            beginning of an id in `root`.
        second: likewise.
        root: folder of the runs, and of the records of external models.

    Returns:
        Paired differences, second - first: clean, noise, corruptions, attacks by name and eps.

    Raises:
        UsageError: where a model is not found, or has no records.
        BnvulnError: where they share no perturbation, or were measured on different examples.
    """
    return paired.pair(first, second, Path(root))[2]


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
    """Run what is missing of an experiment, and aggregate it.

    Args:
        name: the experiment, by name or path of its YAML file.
        scale: `smoke`, `quick`, `cpu` or `full`.
        root: folder of the runs.
        jobs: processes that train and measure at the same time.
        strategy: `auto` uses all GPUs, `mirrored` all devices, `none` one.
        overrides: changes of the experiment, such as `seeds=[0]` or `train.epochs=2`.
        progress: where messages go.

    Returns:
        The results: table, differences and verdicts.

    Raises:
        ConfigError: for an experiment or an override that is not valid.
        BnvulnError: where a training or an evaluation fails.
    """
    chosen = catalog.experiment(name, scale, overrides)
    runner.run(chosen, Path(root), jobs=jobs, strategy=strategy, progress=progress)
    return aggregate.aggregate(chosen, Path(root))


def report(folder: str | Path = RUNS, *, form: pages.Format = "html") -> list[Path]:
    """Write the report of a results folder, from its records alone.

    Args:
        folder: folder of the runs.
        form: the format.

    Returns:
        The files that were written.

    Raises:
        UsageError: where the folder has no results.
    """
    return pages.write(Path(folder), form)


def publish(
    experiments: str | Sequence[str],
    target: str | Path,
    *,
    source: str | Path = RUNS,
    scale: Scale = "full",
    models: int | None = None,
) -> list[publishing.Publication]:
    """Add what is finished of experiments to a packed store.

    Args:
        experiments: Names of experiments, or paths of their YAML files.
        target: The folder of the packed store; it is made where there is none, and what is in it stays.
        source: The working folder that the experiments were run in.
        scale: The scale at which they were run.
        models: The seed whose models are published too; none by default.

    Returns:
        For each experiment, how many of its cells were finished.

    Raises:
        UsageError: An experiment is not known, nothing of it is finished, or a folder is of the wrong kind.
        BnvulnError: A number differs from one that is published under the same id.
    """
    names = [experiments] if isinstance(experiments, str) else experiments
    chosen = [catalog.experiment(name, scale) for name in names]
    return publishing.publish_experiments(chosen, Path(source), Path(target), models)


def unpack(store: str | Path, folder: str | Path = RUNS) -> list[Path]:
    """Write a packed store as a working folder, from which `reproduce` goes on. What is there already stays.

    Returns:
        The run folders.

    Raises:
        UsageError: `store` is no packed store, or `folder` is one.
        BnvulnError: A file is damaged, or `folder` has other numbers for the same id.
    """
    return records.unpack(Path(store), Path(folder))


def newest_run(root: str | Path = RUNS) -> Path:
    """Return the run folder whose training finished last.

    Args:
        root: folder of the runs.

    Returns:
        The run folder.

    Raises:
        UsageError: where there is none.
    """
    finished = [p.parent for p in Path(root).glob("*/training.json") if (p.parent / "model.keras").exists()]
    if not finished:
        raise UsageError(f"no finished run in {root}/: train one (bnvuln train), or name a run or a .keras file")
    return max(finished, key=lambda folder: (folder / "training.json").stat().st_mtime)


def _attack(options: Attack | MinimumNorm | Fields) -> Attack | MinimumNorm:
    minimal = isinstance(options, MinimumNorm) or (isinstance(options, Mapping) and options.get("kind") == "minimal")
    return config.validate(MinimumNorm, options, "attack") if minimal else config.validate(Attack, options, "attack")


def _cell(cell: Cell | Fields) -> Cell:
    return cell if isinstance(cell, Cell) else config.validate(Cell, cell, "cell")


def _model(
    target: Target,
    root: Path,
    dataset: str | None,
    input_scale: InputScale,
    from_probabilities: bool,
    distribution: Distribution,
) -> Model:
    """A classifier with the folder that its transfer records go to."""
    from bn_vuln.evaluation.transfer import Model

    if not isinstance(target, str | Path):
        return Model(target, root / target.id, target.id)
    opened = open_classifier(
        target,
        dataset=dataset,
        input_scale=input_scale,
        from_probabilities=from_probabilities,
        distribution=distribution,
    )
    return Model(opened, Path(target) if Path(target).is_dir() else root / opened.id, str(target))


def _eval_set(
    target: Target, dataset: str | None, limit: int | None, evaluation: Evaluation, distribution: Distribution
) -> tuple[Classifier, Evaluation]:
    """(the classifier, the evaluation without a suite's limit that its data are too few for)."""
    from bn_vuln.evaluation.eval_set import without_large_limit

    classifier = _classifier(target, dataset, distribution)
    return classifier, evaluation if limit is not None else without_large_limit(evaluation, classifier)


def _path(folder: str | Path | None) -> Path | None:
    return None if folder is None else Path(folder)


def _classifier(target: Target, dataset: str | None, distribution: Distribution) -> Classifier:
    if not isinstance(target, str | Path):
        return target
    return open_classifier(target, dataset=dataset, distribution=distribution)
