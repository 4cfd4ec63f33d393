"""The Python API: the functions behind the commands, also offered by `import bn_vuln`.

    import bn_vuln as bnv

    run = bnv.train({"arch": "mlp", "normalization": "batch"}, "runs/bn")
    result = bnv.attack("runs/bn", attack="pgd", eps="8/255", steps=20, limit=1000)
    result.record.accuracy, result.record.flags
    bnv.attack(model, images, labels, attack="strong", eps="8/255")  # a Keras model and arrays
    bnv.evaluate("runs/bn", suite="mechanism")["awgn"].accuracy
    bnv.measure("runs/bn", suite="mechanism")["tilt"].value

The commands call these functions alone, with the same options. Configs may be objects of `bn_vuln.config` or plain
dicts of the same fields. Mistakes in them raise `ConfigError`, other mistakes `UsageError`, work that fails
`BnvulnError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from bn_vuln import config, data, records
from bn_vuln.config import (
    Attack,
    Cell,
    Clean,
    Evaluation,
    Measurement,
    Mend,
    MinimumNorm,
    NearestCentroidArch,
    Perturbation,
    Scale,
    Suite,
    Sweep,
    Transfer,
    to_plain,
)
from bn_vuln.errors import UsageError
from bn_vuln.evaluation.settings import ModelOptions, Settings, parse, split
from bn_vuln.experiments import catalog, plans, publishing, runner
from bn_vuln.experiments import status as statuses
from bn_vuln.reporting import aggregate, pages, paired
from bn_vuln.reporting.paired import Comparison
from bn_vuln.runtime import lease
from bn_vuln.runtime.distribution import Strategy, choose, in_lockstep, join, refuse_hosts
from bn_vuln.runtime.progress import Noted, Progress, Quiet
from bn_vuln.typing import KerasModel, Plain, Where

if TYPE_CHECKING:
    from bn_vuln.auditing.mend import MendResult
    from bn_vuln.evaluation.classifier import Classifier
    from bn_vuln.evaluation.opening import Opened, Target
    from bn_vuln.evaluation.result import AttackResult, Result
    from bn_vuln.evaluation.transfer import TransferResult
    from bn_vuln.experiments.verification import Verification
    from bn_vuln.reporting.audit_result import AuditResult
    from bn_vuln.training import TrainingResult

RUNS = Path("runs")
_TWO_MODELS = "transfer needs two different models at least: the first one's examples are given to the others"

Fields: TypeAlias = Mapping[str, object]  # of a config, as YAML has them


@in_lockstep
def train(
    cell: Cell | Fields,
    folder: str | Path | None = None,
    *,
    force: bool = False,
    resume: bool | None = None,
    checkpoint_every: int | None = None,
    deterministic: bool = False,
    tensorboard: bool = False,
    strategy: Strategy = "auto",
    progress: Progress | None = None,
) -> TrainingResult:
    """Train a model, unless it is finished in its run folder.

    Where another process works in the folder, its end is waited for.

    Args:
        cell: data, architecture, normalization, training and seed.
        folder: run folder that the model is kept in; a training that was interrupted there goes on.
        force: train a finished run again; replace another run in `folder`.
        resume: go on from the checkpoint in `folder`; None: if there is one.
        checkpoint_every: epochs between two checkpoints; None: they are a minute apart, and one is written on Ctrl-C.
        deterministic: equal trainings on one machine give equal bits, from now on in this process; may be slower.
        tensorboard: write TensorBoard event files into `folder`.
        strategy: `auto` uses all GPUs, `mirrored` all devices, `none` one, `multiworker` those of the hosts in
            TF_CONFIG, on each of which the same call is made.
        progress: where messages and the number of steps that are done go.

    Returns:
        The model, its history and its training record. A net that does not learn is no error: its record says `failed`.

    Raises:
        ConfigError: for a cell that is not valid.
        UsageError: where the cell makes no sense with its data, the number of replicas, or what the folder holds.
        BnvulnError: where the data cannot be had, or another host is gone.
    """
    from bn_vuln import training
    from bn_vuln.runtime import backend

    hosts, checked = join(strategy, progress), training.settled(_cell(cell))
    hosts.agree(config=config.identity_of(checked), deterministic=deterministic)
    progress, own = hosts.shown(progress), Path(folder) if folder else None
    path = own if hosts.is_chief else None

    def finished() -> Plain | None:
        if path is None or force:
            return None
        training.check_folder(checked, path)
        record = records.read_training(path)
        return None if record is None else record.model_dump(mode="json")

    def result(record: Plain) -> TrainingResult:
        read = records.TrainingRecord.model_validate(record)
        return training.TrainingResult(lambda: open_classifier(str(own)).model, [], read)

    if (record := hosts.from_chief(finished)) is not None:
        if path is not None and (path / lease.LOCK).exists():  # of a process that was killed as it finished, perhaps
            with suppress(OSError), lease.locked(path):
                pass
        progress.message(f"{own} is finished already (--force trains it again)")
        return result(record)
    if hosts.is_chief and resume and (force or path is None or not (path / "checkpoint.npz").exists()):
        raise UsageError(f"--resume: {path} has no checkpoint" + (" after --force" if force else ""))
    data.prepare(checked.data.name)  # before TensorFlow is started: data that cannot be had are named within a second
    with _leased([path], progress) as progress:
        if (record := hosts.from_chief(finished)) is not None:
            progress.message(f"{own} was finished by another process meanwhile")
            return result(record)
        if path is not None and force:
            records.clear_run(path)
        if deterministic:
            backend.make_deterministic(checked.seed)
        return training.train(
            checked,
            path,
            resume=resume is not False,
            checkpoint_every=checkpoint_every,
            tensorboard=tensorboard,
            distribution=training.choose_distribution(checked, strategy, progress),
            progress=progress,
        )


def pretrained(name: str, weights: str | Path | None = None) -> KerasModel:
    """Open a net for ImageNet with its published weights, as a Keras model.

    Args:
        name: as torchvision has it: vgg11, vgg11_bn, ..., alexnet, resnet18, resnet50, densenet121; bagnet9, bagnet17
            or bagnet33.
        weights: `torchvision`, `timm` or `bagnets`, whose file is fetched where it is not on this machine; a file
            (.safetensors; .pth with the extra `torch`), or a folder of NAME.safetensors; `random`; None: the file that
            is on this machine, else the source that has the net.

    Returns:
        A Keras model: float32 pixels [n, 224, 224, 3] in [0, 1] -> logits [n, 1000]. Standardization is inside.

    Raises:
        UsageError: The name or the source is not known, or the file does not exist.
        BnvulnError: The file cannot be fetched or read, or does not fit the net; keys and variables are listed.
    """
    from bn_vuln.models.pretrained import pretrained as open_pretrained

    return open_pretrained(name, weights)


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
    if checked.weights or isinstance(
        checked.arch, NearestCentroidArch
    ):  # which has no steps, and so no batch size to check
        data.load_whole_training_set(checked.data)
    else:
        load_examples(checked)
    return True


@in_lockstep
def open_classifier(model: Target, images: object = None, labels: object = None, **options: Any) -> Classifier:
    """Open a run folder, or any Keras classifier, to be given to the functions below.

    Args:
        model: run folder, STORE/CELL of a packed store, `.keras` or `.h5` file, `keras.applications:NAME`, or a Keras
            model.
        images: as `attack` takes them.
        labels: as `attack` takes them.
        options: see `EvaluateOptions`. What has to be decided about an external model is decided on another split than
            `split`, the one that is reported.

    Returns:
        The classifier.

    Raises:
        UsageError: where the model is none of these, or does not fit its data set.
        BnvulnError: where the training of the run failed or never finished, or Keras cannot load the file.
    """
    return _opened(model, parse(options, images, labels)).classifier


@in_lockstep
def attack(
    model: Target,
    images: object = None,
    labels: object = None,
    *,
    attack: str | Attack | MinimumNorm | Fields = "pgd",
    keep_images: bool = True,
    **options: Any,
) -> AttackResult:
    """Attack a classifier.

    Args:
        model: run folder, STORE/CELL of a packed store, `.keras` or `.h5` file, `keras.applications:NAME`, a Keras
            model, or an open classifier.
        images: images in memory [n, height, width] or [n, height, width, channels], uint8 or floats in [0, 1] or 0-255;
            None: those of `dataset`.
        labels: their classes [n], or one-hot.
        attack: the attack by name, or its config.
        keep_images: keep the attacked images.
        options: the fields of the attack where it is named (`eps`, by default 8/255, `steps`, ...), see `config.Attack`
            and `config.MinimumNorm`, and see `EvaluateOptions`.

    Returns:
        The records of the clean images, of each eps of a grid, and of the attack; which examples are classified
        correctly, and the attacked images.

    Raises:
        ConfigError: for an attack that is not valid.
        UsageError: where the examples do not fit the classifier, or the attack does not fit the evaluation.
        BnvulnError: where the model or the data cannot be loaded.
    """
    from bn_vuln.evaluation.result import AttackResult

    if isinstance(images, Mapping | Attack | MinimumNorm):  # as the second argument was, before there were images
        attack, images = images, None
    fields, others = split(options, Attack, MinimumNorm)
    checked = _attack(attack, fields)
    if isinstance(checked, MinimumNorm) and options.get("checks") not in (None, "none"):
        raise UsageError(f"checks: {checked.attack} has no eps ball for further attacks; leave it out")
    settings = parse(others, images, labels)
    perturbations: dict[str, Perturbation] = {"clean": Clean(), checked.attack: checked}
    with _leased(_run_folders([model], settings), settings.progress):
        opened = _opened(model, settings)
        found, results = _measured(opened, settings, perturbations, keep_images=keep_images)
    return AttackResult(found, results, checked.attack, opened.folder)


@in_lockstep
def evaluate(
    model: Target,
    images: object = None,
    labels: object = None,
    *,
    suite: str | Mapping[str, Perturbation | Fields] = "quick",
    **options: Any,
) -> dict[str, records.Record]:
    """Measure accuracies of a classifier under the perturbations of a suite.

    Args:
        model: as `attack` takes it.
        images: as `attack` takes them.
        labels: as `attack` takes them.
        suite: perturbations by name, or a suite by name or path; its measurements are left to `measure`.
        options: see `EvaluateOptions`; data set, split, limit and BN statistics are those of the suite where they are
            not given, its limit only where the data have as many examples.

    Returns:
        Records by the name of the perturbation; an attack with an eps grid has one for each eps.

    Raises:
        ConfigError: for a suite or a perturbation that is not valid.
        UsageError: where the examples do not fit the classifier.
        BnvulnError: where the model or the data cannot be loaded.
    """
    if isinstance(images, str | Mapping):  # as the second argument was, before there were images
        suite, images = images, None
    chosen = _suite(suite, "perturbations")
    settings = parse({**options, **_of_suite(chosen.evaluation, options)}, images, labels)
    from bn_vuln.evaluation.measurements.run import check

    with _leased(_run_folders([model], settings), settings.progress):
        opened = _opened(model, settings, own_limit=options.get("limit") is None)
        check(opened.classifier, chosen.measurements, opened.evaluation)  # of the same suite: before much is computed
        return _measured(opened, settings, chosen.perturbations, keep_results=False)[0]


@in_lockstep
def measure(
    model: Target,
    images: object = None,
    labels: object = None,
    *,
    suite: str | Mapping[str, Measurement | Fields] = "mechanism",
    **options: Any,
) -> dict[str, records.MeasurementRecord]:
    """Measure other numbers than accuracies: tilting angle, spectrum, fooling images, shift of BN statistics.

    Args:
        model: as `attack` takes it.
        images: as `attack` takes them.
        labels: as `attack` takes them.
        suite: measurements by name, or a suite by name or path.
        options: as `evaluate` takes them.

    Returns:
        Records by the name of the measurement; empty for a suite that has none.

    Raises:
        ConfigError: for a suite or a measurement that is not valid.
        UsageError: where the examples do not fit the classifier, or a measurement not the BN statistics.
        BnvulnError: for a classifier without gradients, or whose activations are not finite.
    """
    if isinstance(images, str | Mapping):  # as the second argument was, before there were images
        suite, images = images, None
    chosen = _suite(suite, "measurements")
    if not chosen.measurements:
        return {}
    from bn_vuln.evaluation.measurements.run import measure as run

    settings = parse({**options, **_of_suite(chosen.evaluation, options)}, images, labels)
    with _leased(_run_folders([model], settings), settings.progress):
        opened, hosts = _opened(model, settings, own_limit=options.get("limit") is None), join(settings.strategy)
        with _leased([opened.folder], settings.progress) as progress:

            def measured() -> Plain:
                found = run(
                    opened.classifier, chosen.measurements, opened.evaluation, folder=opened.folder, progress=progress
                )
                return {name: record.model_dump(mode="json") for name, record in found}

            found = hosts.from_chief(measured)  # alone: nothing of it is shared
            return {name: records.MeasurementRecord.model_validate(plain) for name, plain in found.items()}


def transfer(
    models: Sequence[Target],
    images: object = None,
    labels: object = None,
    *,
    attack: str | Attack | Fields = "pgd",
    matrix: bool = False,
    **options: Any,
) -> TransferResult:
    """Attack the first model, and measure all models on its adversarial examples.

    Args:
        models: targets as `attack` takes them, two different ones at least.
        images: as `attack` takes them.
        labels: as `attack` takes them.
        attack: the attack by name, or its config; `bim` and `pgd` keep the last iterate unless another is named.
        matrix: attack each of them.
        options: as `attack` takes them; those of external models hold for all of them. Without `root`, records are
            kept in runs/. What is recorded is not done again.

    Returns:
        Every pair of a source and a target.

    Raises:
        ConfigError: for an attack that is not valid.
        UsageError: where the models do not take the same images, and for an attack at several eps.
        BnvulnError: where a model or the data cannot be loaded.
    """
    if isinstance(images, Mapping | Attack):  # as the second argument was, before there were images
        attack, images = images, None
    refuse_hosts(options.get("strategy", "auto"), "transfer")
    from bn_vuln.evaluation import opening
    from bn_vuln.evaluation.transfer import run

    fields, others = split(options, Attack)
    if isinstance(attack, Attack):
        given: object = _attack(attack, fields)
    else:
        given = {"eps": "8/255", **fields, **({"attack": attack} if isinstance(attack, str) else attack)}
    checked = config.validate(Transfer, {"source": "-", "attack": given}, "transfer").attack
    settings = parse({"root": RUNS, **others}, images, labels)
    if len({str(target) if isinstance(target, str | Path) else id(target) for target in models}) < 2:
        raise UsageError(_TWO_MODELS)
    shared = _for_each(models, settings)
    for target, own in zip(models, shared, strict=True):
        opening.check(target, own.request)
    opened: dict[str, Opened] = {}
    names: dict[str, str] = {}
    with _leased(_run_folders(models, settings), settings.progress):
        for target, own in zip(models, shared, strict=True):
            one = _opened(target, own)
            opened.setdefault(one.classifier.id, one)
            names.setdefault(one.classifier.id, _label(target, one.classifier))
        if len(opened) < 2:
            raise UsageError(_TWO_MODELS)
        with _leased([one.folder for one in opened.values()], settings.progress) as progress:
            return run(
                opened,
                names,
                list(opened) if matrix else list(opened)[:1],
                checked,
                force=settings.force,
                batch_size=settings.batch_size,
                checks=settings.checks,
                distribution=choose(settings.strategy),
                progress=progress,
            )


def audit(
    model: Target,
    images: object = None,
    labels: object = None,
    *,
    second: Target | None = None,
    out: str | Path | None = None,
    command: str | None = None,
    **options: Any,
) -> AuditResult:
    """Audit a classifier: how fragile it is, whether its normalization has to do with it, and what to do about it.

    Args:
        model: as `attack` takes it.
        images: as `attack` takes them.
        labels: as `attack` takes them.
        second: another model on the same images: both are audited as a pair.
        out: folder of the page and of what is done already; an audit that was interrupted goes on there. None: nothing
            is kept.
        command: as the page shows it; None: this call.
        options: see `AuditOptions`, and `EvaluateOptions`, of which `checks`, `force`, `root`, `batch_size` and
            `bn_statistics` have no effect.

    Returns:
        The findings, with tables and figures.

    Raises:
        ConfigError: for an option that is not valid.
        UsageError: where the examples do not fit the classifier, there are too few, or none is classified correctly.
        BnvulnError: where the model or the data cannot be loaded.
    """
    refuse_hosts(options.get("strategy", "auto"), "audit")
    from bn_vuln.auditing.commands import Commands
    from bn_vuln.auditing.options import AuditOptions, parse_requirement
    from bn_vuln.auditing.run import audit as run
    from bn_vuln.reporting import audit_page
    from bn_vuln.reporting.audit_result import AuditResult

    fields, others = split(options, AuditOptions)
    checked = config.validate(AuditOptions, fields, "audit")
    for text in checked.require:
        parse_requirement(text)
    settings = parse({**others, "limit": checked.images, "root": None, "bn_statistics": None}, images, labels)
    models = [model] if second is None else [model, second]
    folder = None if out is None else Path(out)
    with _leased([folder], settings.progress) as progress:
        opened = [
            _opened(one, own, own_limit=checked.limit is None)
            for one, own in zip(models, _for_each(models, settings), strict=True)
        ]
        commands = Commands(command, models, _as_given(settings, others), folder, arrays=images is not None)
        found = run(
            opened,
            checked,
            folder=folder,
            commands=commands,
            distribution=choose(settings.strategy),
            progress=progress,
        )
        if folder is not None:
            audit_page.write(folder)
    return AuditResult(found, folder)


def mend(
    model: Target | None = None,
    images: object = None,
    labels: object = None,
    *,
    mend: Mend | Fields | None = None,
    out: str | Path | None = None,
    from_audit: str | Path | None = None,
    command: str | None = None,
    **options: Any,
) -> MendResult:
    """Change the normalization of a trained model, or train it a little more, and measure it before and after.

    The model itself is not changed: a copy is, which is a plain Keras model of the same architecture, input and output.
    It is fitted on the training split where the data have one, else on the half of the measured images that it is not
    judged on, and on those that were not measured.

    Args:
        model: as `attack` takes it. None: the one of the audit.
        images: as `attack` takes them.
        labels: as `attack` takes them.
        mend: what is changed, see `config.Mend`; of an audit's change only what is to be another.
        out: the `.keras` file; its card, a text file, lies beside it. None: the model is only returned.
        from_audit: folder of an audit, whose first advice that changes the model is followed, on its data.
        command: as the card shows it; None: this call.
        options: see `Threat` and `EvaluateOptions`. `limit` is 200 by default; half of them are judged on. `force`:
            overwrite `out`. `checks`, `root`, `bn_statistics` and `strategy` have no effect.

    Returns:
        What was made, with paired differences, and the mended model.

    Raises:
        ConfigError: for a change that is not valid.
        UsageError: where there is nothing to change, the data or the layers do not fit, or `out` is there already.
        BnvulnError: where the model cannot be loaded or saved, or fine-tuning spoils it.
    """
    from bn_vuln.auditing import mend_request as asked
    from bn_vuln.auditing.mend import mend as run
    from bn_vuln.auditing.options import AuditOptions

    found = None if from_audit is None else asked.advised(Path(from_audit), model)
    target = model if model is not None or found is None else found.source
    if target is None:
        raise UsageError("mend needs a model, or the folder of an audit (--from-audit)")
    fields = mend.model_dump(exclude_unset=True) if isinstance(mend, Mend) else dict(mend or {})
    changed = config.validate(Mend, {**({} if found is None else to_plain(found.mend)), **fields}, "mend")
    asked.check_options(changed)
    given, others = split(options, asked.Threat)
    threat = asked.threat(given, None if found is None else found.threat)
    path = None if out is None else Path(out)
    if path is not None:
        source = Path(target) if isinstance(target, str | Path) else None
        asked.check_output(path, source, force=bool(options.get("force")))
    given = {**(found.options if found is not None else {}), **others}
    if images is not None:
        given.pop("dataset", None)
    own_limit = options.get("limit") is None and (found is None or found.own_limit)
    given |= {
        "limit": given.get("limit", AuditOptions().images),
        "strategy": "none",
        "root": None,
        "bn_statistics": None,
    }
    settings = parse(given, images, labels)
    opened = _opened(target, settings, own_limit=own_limit)
    if found is not None and found.id != opened.classifier.id:
        raise UsageError(
            f"{_label(target, opened.classifier)}: not the model of {from_audit}, or called in another way"
        )
    request = settings.request
    return run(
        opened,
        changed,
        threat,
        out=path,
        custom_objects=request.external.custom_objects if request.custom_objects is None else request.custom_objects,
        command=command or f"bn_vuln.mend({_label(target, opened.classifier)!r}, ...)",
        progress=settings.progress or Quiet(),
    )


def _as_given(settings: Settings, options: Mapping[str, object]) -> dict[str, object]:
    """Options of the model and the data as JSON holds them, by which `mend` finds them again."""
    names = ("split", *ModelOptions.model_fields)
    given = {name: str(v) if isinstance(v, Path) else v for name, v in options.items() if name in names}
    if isinstance(given.get("custom_objects"), Mapping):
        del given["custom_objects"]
    return {**given, "dataset": options.get("dataset") or settings.request.dataset}


def _suite(suite: str | Mapping[str, object], kind: str) -> Suite:
    """A suite by name, or one of these perturbations or measurements; a suite always has a perturbation."""
    if isinstance(suite, str):
        return catalog.suite(suite)
    return config.validate(Suite, {"title": kind, "perturbations": {"clean": Clean()}, kind: suite}, "suite")


def _of_suite(evaluation: Evaluation, options: Mapping[str, object]) -> dict[str, object]:
    """What a suite says about the examples, and whether a limit of its own may be left out."""
    fields = evaluation.model_dump(exclude_defaults=True)
    return {name: value for name, value in fields.items() if options.get(name) is None}


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
    strategy: Strategy = "auto",
    overrides: Iterable[str] = (),
    where: Where | None = None,
    seeds: Sequence[int] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> aggregate.Results:
    """Run what is missing of an experiment, or of a part of it, and aggregate it.

    Args:
        name: the experiment, by name or path of its YAML file.
        scale: `smoke`, `quick`, `cpu` or `full`.
        root: folder of the runs.
        strategy: `auto` uses all GPUs, `mirrored` all devices, `none` one.
        overrides: changes of the experiment, such as `seeds=[0]` or `train.epochs=2`.
        where: values that the cells of the part have, such as `{"arch.name": "vgg8"}`; of a list one of them. It
            changes nothing of the experiment. None: all cells.
        seeds: seeds of the part; None: all.
        progress: where messages go.
        options: see `Sweep`: `jobs`, the number of cells at a time, `engine`, `shard`, ...

    Returns:
        The results of the whole experiment: table, differences and verdicts.

    Raises:
        ConfigError: for an experiment, an override, a part or an option that is not valid.
        CellsFailedError: where cells could not be finished, after all others were.
        BnvulnError: where nothing can be written.
    """
    refuse_hosts(strategy, "reproduce")
    sweep = config.validate(Sweep, options, "reproduce")
    chosen = catalog.experiment(name, scale, overrides)
    part = {**(where or {}), **({} if seeds is None else {"seed": [*seeds]})}
    runner.run(chosen, Path(root), where=part, sweep=sweep, strategy=strategy, progress=progress)
    return aggregate.aggregate(chosen, Path(root))


def reproduce_plan(
    name: str,
    *,
    root: str | Path = RUNS,
    strategy: Strategy = "auto",
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    **options: Any,
) -> Iterator[plans.PartOutcome]:
    """Run what is missing of the parts of a plan, one after another.

    Args:
        name: the plan, by name or path of its YAML file.
        root: folder of the runs.
        strategy: as `reproduce` takes it.
        overrides: changes of every experiment; a part that one of them does not fit is skipped.
        progress: where messages go.
        options: as `reproduce` takes them.

    Returns:
        The outcome of each part, as soon as it is there. A part whose data are not there is skipped, and one that fails
        does not stop the others.

    Raises:
        ConfigError: for a plan or an option that is not valid.
    """
    refuse_hosts(strategy, "reproduce")
    sweep = config.validate(Sweep, options, "reproduce")
    return plans.run(
        catalog.plan(name), Path(root), sweep=sweep, strategy=strategy, overrides=overrides, progress=progress
    )


def status(folder: str | Path = RUNS) -> Plain:
    """Read how far a results folder is, from its files alone.

    Args:
        folder: folder of the runs, or one run folder.

    Returns:
        `experiments`: the number of cells in each state (finished, running, failed, waiting); `running`: what is done,
        by which process; `failed`: reason, number of attempts and log of the cells that were given up; `damaged`.

    Raises:
        UsageError: where there is no such folder, or nothing can run there.
    """
    return statuses.read(Path(folder))


def report(folder: str | Path = RUNS, *, form: pages.Format = "html", progress: Progress | None = None) -> list[Path]:
    """Write the report of a results folder, from its records alone.

    Damaged files count as missing; the report names them.

    Args:
        folder: folder of the runs.
        form: the format.
        progress: where messages on damaged files go.

    Returns:
        The files that were written.

    Raises:
        UsageError: where the folder has no results.
    """
    return pages.write(Path(folder), form, progress=progress)


def publish(
    experiments: str | Sequence[str],
    target: str | Path,
    *,
    source: str | Path = RUNS,
    scale: Scale = "full",
    models: int | None = None,
    progress: Progress | None = None,
) -> list[publishing.Publication]:
    """Add what is finished of experiments to a packed store.

    Args:
        experiments: Names of experiments, or paths of their YAML files.
        target: The folder of the packed store; it is made where there is none, and what is in it stays.
        source: The working folder that the experiments were run in.
        scale: The scale at which they were run.
        models: The seed whose models are published too; none by default.
        progress: where messages on damaged files go, which are left out.

    Returns:
        For each experiment, how many of its cells were finished.

    Raises:
        UsageError: An experiment is not known, nothing of it is finished, or a folder is of the wrong kind.
        BnvulnError: A number differs from one that is published under the same id.
    """
    names = [experiments] if isinstance(experiments, str) else experiments
    chosen = {name: catalog.experiment(name, scale) for name in names}
    return publishing.publish_experiments(chosen, Path(source), Path(target), models, progress)


def unpack(store: str | Path, folder: str | Path = RUNS, *, progress: Progress | None = None) -> list[Path]:
    """Write a packed store as a working folder, from which `reproduce` goes on. What is there already stays.

    Args:
        store: the folder of the packed store.
        folder: the working folder.
        progress: where messages on damaged lines go, which are left out.

    Returns:
        The run folders.

    Raises:
        UsageError: `store` is no packed store, or `folder` is one.
        BnvulnError: A file is damaged, or `folder` has other numbers for the same id.
    """
    return records.unpack(Path(store), Path(folder), progress=progress)


def verify(root: str | Path = RUNS, *, repair: bool = False, progress: Progress | None = None) -> Verification:
    """Check every file of a folder: against its digest or, an older one, by what must hold of it.

    Args:
        root: results folder, run folder, packed store, folder of an audit, or a folder of such folders.
        repair: rename what is damaged to NAME.damaged, and remove what killed processes have left, so that `reproduce`
            makes again what is missing. Nothing is changed of packed stores, nor where another process works.
        progress: where the number of folders that are done goes.

    Returns:
        What is wrong, and what was done about it.

    Raises:
        UsageError: where there is no such folder, or nothing in it that bnvuln has written.
    """
    from bn_vuln.experiments.verification import verify as run

    return run(Path(root), repair=repair, progress=progress)


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


def _attack(attack: str | Attack | MinimumNorm | Fields, fields: Fields) -> Attack | MinimumNorm:
    """The config of an attack: by its name and fields, or as it is given."""
    if isinstance(attack, Attack | MinimumNorm):
        if fields:
            raise UsageError(f"{', '.join(fields)}: fields of the attack belong into its config, which is given")
        return attack
    given = {"attack": attack, **fields} if isinstance(attack, str) else {**fields, **attack}
    name = given.get("attack", "pgd")
    minimum_norm = get_args(MinimumNorm.model_fields["attack"].annotation)
    known = (*get_args(Attack.model_fields["attack"].annotation), *minimum_norm)
    if name not in known:
        hint = config.nearest(str(name), known)
        raise UsageError(f"attack: {name!r} is not known (known: {', '.join(known)}){hint}")
    is_minimal = name in minimum_norm or given.get("kind") == "minimal"
    own, other = (MinimumNorm, Attack) if is_minimal else (Attack, MinimumNorm)
    foreign = [key for key in given if key in other.model_fields and key not in own.model_fields]
    if foreign:
        fields_of_it = ", ".join(key for key in own.model_fields if key != "kind")
        raise UsageError(f"attack: {', '.join(foreign)}: no option of {name} (known: {fields_of_it})")
    if is_minimal:
        return config.validate(MinimumNorm, given, "attack")
    found = config.validate(Attack, {"eps": "8/255", **given}, "attack")
    if max(found.eps_grid, default=0) > found.eps:
        raise UsageError(f"eps_grid: expected eps of at most eps {found.eps:.4g}, from which it goes down")
    return found


def _opened(target: Target, settings: Settings, *, own_limit: bool = False) -> Opened:
    """Open a target; a limit of a suite's own is left out where the data have fewer examples."""
    from bn_vuln.evaluation import opening
    from bn_vuln.evaluation.eval_set import without_large_limit

    hosts = join(settings.strategy, settings.progress)
    opening.check(target, settings.request)
    if settings.request.dataset is not None:
        data.prepare(settings.request.dataset)  # before TensorFlow is started: mistakes are named within a second
    opened = opening.open_target(target, settings.request, choose(settings.strategy), hosts.shown(settings.progress))
    if hosts.hosts > 1:
        hosts.agree(model=opened.classifier.id, weights=opened.classifier.model.weights, evaluation=opened.evaluation)
    if not own_limit:
        return opened
    return replace(opened, evaluation=without_large_limit(opened.evaluation, opened.classifier))


def _for_each(models: Sequence[Target], settings: Settings) -> list[Settings]:
    """The settings of each model; the options of external models are not for the runs among them."""
    from bn_vuln.evaluation import opening
    from bn_vuln.external import loading

    external = [loading.is_external(target) for target in models]
    if not any(external):
        return [settings] * len(models)
    of_runs = replace(settings, request=opening.without_external_options(settings.request))
    return [settings if one else of_runs for one in external]


def _measured(
    opened: Opened,
    settings: Settings,
    perturbations: Mapping[str, Perturbation],
    *,
    keep_images: bool = False,
    keep_results: bool = True,
) -> tuple[dict[str, records.Record], dict[str, Result]]:
    """(records by name, the results of those that were measured now)."""
    from bn_vuln.evaluation import evaluator

    perturbations, sources = _with_sources(perturbations, settings)
    wanted, hosts = config.with_eps_grid(perturbations), join(settings.strategy)
    again = settings.force or settings.checks == "full"
    hosts.agree(perturbations=perturbations, options=(again, settings.checks, settings.batch_size, keep_images))

    def recorded() -> dict[str, str]:
        found = {} if again else evaluator.recorded(opened.classifier, wanted, opened.evaluation, opened.folder)
        return {name: record.model_dump_json() for name, record in found.items()}

    with _leased([opened.folder], hosts.shown(settings.progress)) as progress:
        known = {name: records.Record.model_validate_json(text) for name, text in hosts.from_chief(recorded).items()}
        for name, record in known.items():
            progress.message(f"{name}: accuracy {record.accuracy:.4f}, recorded before")
        missing = {n: p for n, p in perturbations.items() if not config.with_eps_grid({n: p}).keys() <= known.keys()}
        results = {}
        found = dict(known)
        for name, result in evaluator.measure(
            opened.classifier,
            missing,
            opened.evaluation,
            folder=opened.folder,
            batch_size=settings.batch_size,
            checks=settings.checks,
            distribution=choose(settings.strategy),
            sources=sources,
            keep_images=keep_images,
            progress=progress,
        ):
            found[name] = result.record
            if keep_results:
                results[name] = result
    return {name: found[name] for name in wanted}, results


def _run_folders(targets: Sequence[Target], settings: Settings) -> list[Path]:
    """The targets that are run folders, if records are kept: nothing may be trained there while they are measured.

    One that is trained again just now has a lease, and perhaps no config yet.
    """
    paths = [Path(target) for target in targets if isinstance(target, str | Path)]
    keeps = settings.request.root is not None and join(settings.strategy, settings.progress).is_chief
    names = ("config.yaml", lease.LOCK)
    return [] if not keeps else [path for path in paths if any((path / name).is_file() for name in names)]


@contextmanager
def _leased(folders: Iterable[Path | None], progress: Progress | None = None) -> Iterator[Progress]:
    """Hold the leases of folders, but of those that this call holds already; what is done is noted in the first one."""
    progress = progress or Quiet()
    with ExitStack() as stack:
        for folder in sorted({folder.resolve() for folder in folders if folder is not None}):
            if not lease.holds(folder):
                held = stack.enter_context(lease.waited(folder, progress))
                progress = progress if isinstance(progress, Noted) else Noted(progress, held.work)
        yield progress


def _with_sources(
    perturbations: Mapping[str, Perturbation], settings: Settings
) -> tuple[dict[str, Perturbation], dict[str, Classifier]]:
    """(the perturbations, in which the sources of transfers are ids; these models by their ids)."""
    from bn_vuln.external import loading

    found, sources = dict(perturbations), {}
    for name, perturbation in perturbations.items():
        if isinstance(perturbation, Transfer):
            target, root = perturbation.source, settings.request.root or RUNS
            if not (Path(target).exists() or loading.is_external(target)) and (root / target).is_dir():
                target = str(root / target)
            source = _opened(target, _for_each([target], settings)[0]).classifier
            found[name] = perturbation.model_copy(update={"source": source.id, "seed": "next"})
            sources[source.id] = source
    return found, sources


def _label(target: Target, classifier: Classifier) -> str:
    return str(target) if isinstance(target, str | Path) else classifier.label


def _cell(cell: Cell | Fields) -> Cell:
    return cell if isinstance(cell, Cell) else config.validate(Cell, cell, "cell")
