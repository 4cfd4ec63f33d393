"""The options that the functions which evaluate share: of external models, of the data, and of how it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from bn_vuln import config, data
from bn_vuln.config import ExternalModel, OutputKind, Resize
from bn_vuln.errors import UsageError
from bn_vuln.evaluation.attack_diagnostics import Checks
from bn_vuln.evaluation.opening import Request
from bn_vuln.runtime.distribution import Strategy
from bn_vuln.runtime.progress import Progress


class ModelOptions(TypedDict, total=False):
    """How an external model is called; see `config.ExternalModel`.

    Attributes:
        input_scale: what becomes of pixels in [0, 1].
        resize: how images of another size become its input.
        gray_to_rgb: give gray images to a model of three channels.
        output: what it returns.
        head: name of the output that is taken.
        weights: of `keras.applications:NAME`.
        custom_objects: a Python file, which is run, or custom objects by name.
        class_names: a file of the names of its classes, or the names.
        validation: number of examples held out of the training set, where the data have no validation split.
        exif: turn image files as their EXIF orientation says; True by default.
        skip_bad: leave out image files that cannot be read, and list them.
    """

    input_scale: str | None
    resize: Resize | None
    gray_to_rgb: bool
    output: OutputKind | None
    head: str | None
    weights: str | None
    custom_objects: str | Path | Mapping[str, object] | None
    class_names: str | Path | Sequence[str] | None
    validation: int | None
    exif: bool
    skip_bad: bool


class EvaluateOptions(ModelOptions, total=False):
    """What is evaluated, and how.

    Attributes:
        dataset: data by name or path; None: those of the training, of external models mnist.
        split: `test`, `validation`, `train` or `all`; None: test, or all of data without one.
        limit: number of examples, taken in a fixed random order; None: all.
        bn_statistics: `tracked`, `reestimated` or `batch`.
        root: folder of the runs: the records of a run folder go into it, those of other models into `root`/ID. None:
            they are not kept.
        force: measure again what is recorded there.
        checks: attack diagnostics, `none`, `basic` or `full`.
        batch_size: examples at a time; None: as many as memory holds.
        strategy: `auto` uses all GPUs, `mirrored` all devices, `none` one.
        progress: where messages and the number of examples that are done go.
    """

    dataset: str | None
    split: str | None
    limit: int | None
    bn_statistics: str | None
    root: str | Path | None
    force: bool
    checks: Checks
    batch_size: int | None
    strategy: Strategy
    progress: Progress | None


class AttackOptions(EvaluateOptions, total=False):
    """What `EvaluateOptions` has, and the fields of an attack that is named; see `config.Attack`."""

    ord: str
    eps: float | str
    unit: str
    box: object
    steps: int
    step_size: float | str | None
    random_start: bool
    restarts: int
    target: str
    targets: int
    queries: int
    keep: str
    eps_grid: Sequence[float | str]
    min_eps_tolerance: float | str | None
    seed: int
    backend: str
    confidence: float
    binary_search_steps: int
    initial_const: float | str
    keep_images: bool


_BEFORE = {  # options of earlier versions
    "folder": "root, the folder of the runs",
    "from_probabilities": "output='softmax'",
    "evaluation": "several options: dataset, split, limit and bn_statistics",
}


@dataclass(frozen=True)
class Settings:
    """Checked options.

    Attributes:
        request: how targets are opened.
        force: as in `EvaluateOptions`, likewise the others.
    """

    request: Request
    force: bool = False
    checks: Checks = "basic"
    batch_size: int | None = None
    strategy: Strategy = "auto"
    progress: Progress | None = None


def parse(options: Mapping[str, Any], images: object = None, labels: object = None) -> Settings:
    """Check options, and give images in memory a name that they can be loaded by.

    Args:
        options: those of `EvaluateOptions`.
        images: images in memory, or None.
        labels: their classes.

    Returns:
        The settings.

    Raises:
        UsageError: for an unknown option, and for images and a data set at once.
        ConfigError: for a value that is not possible.
    """
    known = list(EvaluateOptions.__annotations__)
    for name in options:
        if name in _BEFORE:
            raise UsageError(f"{name} is now {_BEFORE[name]}")
        if name not in known:
            raise UsageError(f"unknown option {name!r}{config.nearest(name, known)} (known: {', '.join(known)})")
    given = {name: value for name, value in options.items() if value is not None}
    dataset = given.pop("dataset", None)
    if images is not None:
        if dataset is not None or labels is None:
            raise UsageError("images in memory come with their labels, and without a data set")
        dataset = data.register(images, labels)
    elif labels is not None:
        raise UsageError("labels come with their images")
    exif, skip_bad = given.pop("exif", True), given.pop("skip_bad", False)
    if dataset is not None and (skip_bad or not exif):
        dataset = data.with_options(dataset, exif=exif, skip_bad=skip_bad)
    objects = given.get("custom_objects")
    by_name = given.pop("custom_objects") if isinstance(objects, Mapping) else None
    external = {name: given.pop(name) for name in ExternalModel.model_fields if name in given}
    names = external.pop("class_names", None)
    if isinstance(names, str | Path):
        external["class_names"] = str(names)
        names = None
    if "custom_objects" in external:
        external["custom_objects"] = str(external["custom_objects"])
    request = Request(
        config.validate(ExternalModel, external, "model"),
        dataset,
        custom_objects=by_name,
        class_names=None if names is None else tuple(map(str, names)),
        root=Path(given.pop("root")) if "root" in given else None,
        **{name: given.pop(name) for name in ("split", "limit", "bn_statistics", "validation") if name in given},
    )
    return Settings(request, **given)
