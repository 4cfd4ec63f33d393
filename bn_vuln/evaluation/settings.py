"""The options that the functions which evaluate share: of external models, of the data, and of how it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from bn_vuln import config, data
from bn_vuln.config import Evaluation, ExternalModel, Frozen
from bn_vuln.config.types import Count
from bn_vuln.errors import UsageError
from bn_vuln.evaluation.attack_diagnostics import Checks
from bn_vuln.evaluation.opening import Request
from bn_vuln.runtime.distribution import Strategy
from bn_vuln.runtime.progress import Progress


class ModelOptions(ExternalModel):
    """How an external model is called, and how its images are read."""

    validation: Count | None = Field(
        None,
        description="Images held out of the training split for the split `validation`, where the data have none.",
    )
    exif: bool = Field(True, description="Turn image files of folder:PATH as their EXIF orientation says.")
    skip_bad: bool = Field(False, description="Leave out image files that cannot be read, and list them.")


class EvaluateOptions(ModelOptions, Evaluation):
    """What is evaluated, and how.

    Functions take `root` too, the folder of the runs: the records of a run folder go into it, those of other models
    into `root`/ID, of None they are not kept; and `progress`, where messages and the number of examples that are done
    go. `class_names` and `custom_objects` may also be the names, and the objects by name.
    """

    force: bool = Field(False, description="Measure again what is recorded already.")
    checks: Checks = Field(
        "basic",
        description="Diagnostics that look for a failed attack. `basic`: one gradient, random points and rounded "
        "images on a quarter of the examples (100 to 1,000), and a short apgd-t on up to 100 that were left; `full`: "
        "further attacks on up to 1,000, at many times the cost.",
    )
    batch_size: Count | None = Field(
        None,
        description="Examples at a time, over all devices; it changes results by rounding at most. Default: 500, or "
        "what memory holds.",
    )
    strategy: Strategy = Field(
        "auto",
        description="Use of devices. `none`: one device; `mirrored`: a copy of the model on each; `auto`: mirrored on "
        "several GPUs; `multiworker`: a copy on each device of the hosts in TF_CONFIG.",
    )


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


def split(options: Mapping[str, Any], *configs: type[Frozen]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options that are fields of these configs, and those of `EvaluateOptions`; None is no value.

    Raises:
        UsageError: for an option that is neither.
    """
    own = {name for one in configs for name in (*one.model_fields, *one.stored_names.values())}
    known = [*own, *(name for name in (*EvaluateOptions.model_fields, "root", "progress") if name not in own)]
    for name in options:
        if name in _BEFORE:
            raise UsageError(f"{name} is now {_BEFORE[name]}")
        if name not in known:
            raise UsageError(f"unknown option {name!r}{config.nearest(name, known)} (known: {', '.join(known)})")
    given = {name: value for name, value in options.items() if value is not None}
    return {n: v for n, v in given.items() if n in own}, {n: v for n, v in given.items() if n not in own}


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
    _, given = split(options)
    root, progress = given.pop("root", None), given.pop("progress", None)
    in_memory: dict[str, Any] = {}
    if isinstance(given.get("custom_objects"), Mapping):
        in_memory["custom_objects"] = given.pop("custom_objects")
    if not isinstance(given.get("class_names"), str | Path | None):
        in_memory["class_names"] = tuple(map(str, given.pop("class_names")))
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    asked = config.validate(EvaluateOptions, plain, "evaluation")
    dataset = asked.dataset
    if images is not None:
        if dataset is not None or labels is None:
            raise UsageError("images in memory come with their labels, and without a data set")
        dataset = data.register(images, labels)
    elif labels is not None:
        raise UsageError("labels come with their images")
    if asked.skip_bad or not asked.exif:
        if dataset is None:
            raise UsageError("exif and skip_bad are for image files: --data folder:PATH")
        dataset = data.with_options(dataset, exif=asked.exif, skip_bad=asked.skip_bad)

    def fields(*names: str) -> dict[str, Any]:
        return {name: getattr(asked, name) for name in names if name in given}

    external = ExternalModel(**fields(*ExternalModel.model_fields))
    where = fields("split", "limit", "bn_statistics", "validation")
    request = Request(external, dataset, **where, **in_memory, root=None if root is None else Path(root))
    return Settings(request, **fields("force", "checks", "batch_size", "strategy"), progress=progress)
