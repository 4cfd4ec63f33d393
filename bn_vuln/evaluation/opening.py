"""Opening of what is evaluated: a run or an external model, with the data and the folder of the records."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from bn_vuln import config, data, records
from bn_vuln.config import Evaluation, ExternalModel, is_cell
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.evaluation import classifier as classifiers
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.external import input_scale, loading
from bn_vuln.runtime import lease
from bn_vuln.runtime.distribution import Distribution
from bn_vuln.runtime.files import atomic_write
from bn_vuln.runtime.progress import Progress, Quiet
from bn_vuln.typing import KerasModel, Plain

# A run folder, STORE/CELL of a packed store, a file of Keras, keras.applications:NAME, a Keras model, or a classifier.
Target: TypeAlias = "str | Path | KerasModel | Classifier"


@dataclass(frozen=True)
class Opened:
    """What is evaluated, and on what.

    Attributes:
        classifier: the classifier.
        evaluation: with its split, and the data set where it is another than that of the training.
        folder: run folder that its records go to; None: they are not kept.
    """

    classifier: Classifier
    evaluation: Evaluation
    folder: Path | None


@dataclass(frozen=True)
class Request:
    """How targets are opened.

    Attributes:
        external: how external models are called.
        dataset: name or path of the data; None: those of the training, of external models mnist.
        split: None: the split that the data are measured on by default.
        limit: number of examples; None: all.
        bn_statistics: as in `Evaluation`.
        validation: number of examples held out of the training set, of external models.
        custom_objects: custom objects by name, instead of a file.
        class_names: names of an external model's classes, instead of a file.
        root: folder of the runs; None: records are not kept.
    """

    external: ExternalModel
    dataset: str | None = None
    split: str | None = None
    limit: int | None = None
    bn_statistics: str = "tracked"
    validation: int | None = None
    custom_objects: Mapping[str, object] | None = None
    class_names: tuple[str, ...] | None = None
    root: Path | None = None


def check(target: Target, request: Request) -> None:
    """Refuse what is wrong with a target and the options of its model, before TensorFlow is started.

    Raises:
        UsageError: There is no such file, or options of external models are given for a run.
    """
    if not isinstance(target, str | Path):
        return
    if loading.is_external(target):
        loading.check(target, request.external.weights)
        input_scale.check(request.external.input_scale)
        for name in ("custom_objects", "class_names"):
            file = getattr(request.external, name)
            if file is not None and not Path(file).is_file():
                raise UsageError(f"{_option(name)} {file}: no such file")
        return
    path = Path(target)
    if not path.is_dir() and not records.is_packed(path.parent):
        expected = "a run folder, a .keras or .h5 file, keras.applications:NAME or pretrained:NAME"
        raise UsageError(f"{target}: no such file or folder; expected {expected}")
    if (path / records.EXTERNAL).exists():
        raise UsageError(f"{target}: the records of an external model; give its file, see bnvuln show {target}")
    given = [name for name in ExternalModel.model_fields if getattr(request.external, name) != _default(name)]
    given += [name for name in ("validation", "custom_objects", "class_names") if getattr(request, name) is not None]
    if given:
        names = ", ".join(map(_option, given))
        raise UsageError(f"{target} is a run of this package, which knows how it is called: leave out {names}")
    if path.is_dir() and not records.is_run_folder(path):
        raise UsageError(f"{target}: not a run folder (no config.yaml); see bnvuln list {target}")
    if path.is_dir() and not (path / "training.json").exists():
        raise BnvulnError(f"{target}: no finished training here (no training.json)")
    if path.is_dir() and not (path / "model.keras").exists():
        raise BnvulnError(f"{target}: the model is not there (no model.keras); bnvuln train --force trains it again")


def open_target(
    target: Target, request: Request, distribution: Distribution, progress: Progress | None = None
) -> Opened:
    """Open what is evaluated.

    Args:
        target: the target.
        request: how it is opened.
        distribution: devices that get the variables.
        progress: where it is said what an external model was taken for.

    Returns:
        The classifier, the evaluation, and the folder of its records, in which it is recorded what the model is.

    Raises:
        UsageError: see `check` and `classifier.from_external`.
        BnvulnError: where the model cannot be loaded.
    """
    check(target, request)
    progress = progress or Quiet()
    if isinstance(target, Classifier):
        opened = target
    elif isinstance(target, str | Path) and not loading.is_external(target):
        with distribution.scope():
            opened = classifiers.from_run(Path(target))
    else:
        opened = _open_external(target, request, distribution)
        for line in opened.found:
            progress.message(textwrap.fill(line, 80, subsequent_indent=" " * 15, break_long_words=False))
    split = request.split or _default_split(opened, request.dataset)
    fields = {"dataset": request.dataset, "split": split, "limit": request.limit}
    fields["bn_statistics"] = request.bn_statistics
    evaluation = config.validate(Evaluation, fields, "evaluation")
    return Opened(opened, evaluation, _folder(opened, request.root if distribution.is_chief else None))


def _open_external(target: str | Path | KerasModel, request: Request, distribution: Distribution) -> Classifier:
    dataset = request.dataset or "mnist"
    with distribution.scope():
        return classifiers.from_external(
            target,
            request.external,
            dataset,
            request.split or data.default_split(dataset),
            validation=request.validation or 0,
            custom_objects=request.custom_objects,
            class_names=request.class_names,
        )


def _default_split(classifier: Classifier, dataset: str | None) -> str:
    """The test split, of data published whole all; of the data that a run was trained on the part it held out."""
    if classifier.external:
        return data.default_split(dataset or classifier.dataset)
    own = dataset is None or data.dataset_info(dataset).name == classifier.info.name
    return "test" if own else data.default_split(dataset or "")


def _folder(classifier: Classifier, root: Path | None) -> Path | None:
    """The folder of the records; of an external model it says what it is, of a published cell it has its config."""
    if root is None:
        return None
    folder = folder_of(classifier, root)
    if folder == classifier.path:
        return folder
    with nullcontext() if lease.holds(folder) else lease.waited(folder):
        _describe(classifier, folder)
    return folder


def _describe(classifier: Classifier, folder: Path) -> None:
    if classifier.external:
        path = None if classifier.path is None else str(classifier.path)
        found: Plain = {"dataset": classifier.dataset, "lines": list(classifier.found)}
        others = {name: label for name, label in _known_datasets(folder).items() if name != classifier.info.name}
        found["datasets"] = {**others, classifier.info.name: classifier.dataset}
        found |= {} if classifier.trial is None else classifier.trial.plain()
        record = records.ExternalRecord(
            cell_id=classifier.id, source=classifier.label, path=path, identity=classifier.identity, found=found
        )
        records.write_external(folder, record)
    elif is_cell(classifier.identity) and not (folder / "config.yaml").exists():
        cell = config.validate(config.Cell, classifier.identity, "cell")
        atomic_write(folder / "config.yaml", records.to_yaml(cell))


def _known_datasets(folder: Path) -> dict[str, str]:
    """What the data sets are called that an external model was measured on before, by the names that identify them."""
    try:
        record = records.read_external(folder)
    except BnvulnError:  # it is damaged, and written again
        return {}
    known = {} if record is None else record.found.get("datasets")
    return {str(name): str(label) for name, label in known.items()} if isinstance(known, dict) else {}


def without_external_options(request: Request) -> Request:
    """Return how a run is opened beside external models, whose options are not its own."""
    return replace(request, external=ExternalModel(), validation=None, custom_objects=None, class_names=None)


def folder_of(classifier: Classifier, root: Path) -> Path:
    """Return the folder of the records of a classifier: its run folder, else ROOT/ID."""
    return root / classifier.id if classifier.external or classifier.path is None else classifier.path


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _default(name: str) -> Any:
    return ExternalModel.model_fields[name].default
