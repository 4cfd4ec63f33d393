"""What a mend is asked for, in part by an audit; it is checked before anything is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from bn_vuln.auditing import findings
from bn_vuln.auditing.commands import options_of
from bn_vuln.auditing.options import AuditOptions, noise
from bn_vuln.config import Clean, Frozen, Mend, Perturbation, to_plain, validate
from bn_vuln.config.perturbation import Norm
from bn_vuln.config.types import Positive
from bn_vuln.errors import UsageError
from bn_vuln.evaluation.settings import ModelOptions
from bn_vuln.typing import Plain


class Threat(Frozen):
    """What both models are measured under: noise, and `strong` in the eps ball; pixels in [0, 1]."""

    ord: Norm = Field("inf", description="Norm of the attack. Default: inf, or the audit's.")
    eps: Positive = Field(8 / 255, description="Radius of its eps ball, in pixels. Default: 8/255, or the audit's.")
    noise: Positive = Field(0.1, description="Std of the noise, in pixels. Default: 0.1, or the audit's.")

    def perturbations(self, classes: int) -> dict[str, Perturbation]:
        """Return them by name, for a data set of so many classes."""
        strong = AuditOptions.model_validate({"ord": self.ord}).strong(self.eps, classes)
        return {"clean": Clean(), "noise": noise(self.noise), "strong": strong}


def check_options(options: Mend) -> None:
    """Raise `UsageError` where nothing is to be changed."""
    if not (options.changes_c or options.reestimate or options.finetune):
        raise UsageError("nothing is to be changed: give --c or --relative-c, --reestimate, --finetune or --from-audit")


@dataclass(frozen=True)
class Advised:
    """What an audit advises, and of what.

    Attributes:
        source: the model, as it was called.
        id: of the model and how it is called.
        mend: the change.
        threat: what the audit confirmed it under.
        options: of the model and the data, as the audit was given them.
        own_limit: the number of images is the audit's own; fewer are enough.
    """

    source: str
    id: str
    mend: Mend
    threat: Threat
    options: Plain
    own_limit: bool


def advised(folder: Path, model: object) -> Advised:
    """Read the first advice of an audit that changes the model.

    Args:
        folder: of the audit.
        model: the one of a pair that is called so; otherwise the first.

    Raises:
        UsageError: There is no such advice.
        BnvulnError: There is no audit, or it is damaged.
    """
    found = findings.read(folder)
    one = next((one for one in found.models if one.source == str(model)), found.models[0])
    change = next((advice.mend for advice in one.advice if advice.mend is not None), None)
    if change is None:
        raise UsageError(f"{folder}: the audit advises no change that mend can make: see {folder}/index.html")
    given = {name: value for name, value in found.options.items() if value is not None}
    asked = validate(AuditOptions, {n: v for n, v in given.items() if n in AuditOptions.model_fields}, str(folder))
    names = ModelOptions.model_fields.keys() | {"dataset", "split"}
    options = {name: value for name, value in given.items() if name in names} | {"limit": asked.images}
    options = options_of(one.source if model is None else model, options)
    threat = validate(Threat, {"ord": found.ord, "eps": found.eps, "noise": found.noise_std}, str(folder))
    return Advised(one.source, one.id, change, threat, options, asked.limit is None)


def threat(given: Plain, audit: Threat | None) -> Threat:
    """Return the threat of these fields, the others those of the audit, or the default.

    Raises:
        UsageError: eps is not given for another norm.
    """
    found = audit or Threat()
    asked = validate(Threat, {**to_plain(found), **given}, "mend")
    if "eps" not in given and asked.ord != found.ord:
        raise UsageError(f"--ord {asked.ord} needs an --eps: there is no default")
    return asked


def check_output(out: Path, source: Path | None, *, force: bool) -> None:
    """Refuse a place for the mended model.

    Args:
        out: the file.
        source: the file that it is made of, or its run folder.
        force: what is there may be overwritten, but not the original.

    Raises:
        UsageError: It is no `.keras` file, the original itself, or there already.
    """
    if out.suffix != ".keras":
        raise UsageError(f"{out}: expected a file name ending in .keras")
    originals = [] if source is None else [source, source / "model.keras"]
    if any(out.resolve() == one.resolve() for one in originals):
        raise UsageError(f"{out}: this is the original, which is never overwritten: choose another file")
    for path in (out, out.with_suffix(".md")):
        if path.is_dir() or (path.exists() and not force):
            raise UsageError(f"{path}: is there already; choose another file, or --force to overwrite it")
