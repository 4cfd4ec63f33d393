"""What a mend is asked for, in part by an audit; it is checked before anything is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bn_vuln.auditing import findings
from bn_vuln.auditing.commands import options_of
from bn_vuln.auditing.options import AuditOptions, noise
from bn_vuln.config import Clean, Mend, Perturbation, parse_number, validate
from bn_vuln.errors import UsageError
from bn_vuln.evaluation.settings import ModelOptions
from bn_vuln.typing import Plain


@dataclass(frozen=True)
class Threat:
    """What both models are measured under: noise, and `strong` in the eps ball; pixels in [0, 1]."""

    ord: str = "inf"
    eps: float = 8 / 255
    noise_std: float = 0.1

    def perturbations(self, classes: int) -> dict[str, Perturbation]:
        """Return them by name, for a data set of so many classes."""
        strong = AuditOptions.model_validate({"ord": self.ord}).strong(self.eps, classes)
        return {"clean": Clean(), "noise": noise(self.noise_std), "strong": strong}


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
    names = ModelOptions.__annotations__.keys() | {"dataset", "split"}
    options = {name: value for name, value in given.items() if name in names} | {"limit": asked.images}
    options = options_of(one.source if model is None else model, options)
    threat = Threat(found.ord, found.eps, found.noise_std)
    return Advised(one.source, one.id, change, threat, options, asked.limit is None)


def threat(ord: str | None, eps: float | str | None, noise: float | str | None, audit: Threat | None) -> Threat:
    """Return the threat of these options, else that of the audit, else the default.

    Raises:
        UsageError: eps or the std of the noise is not positive, or eps is not given for another norm.
    """
    found = audit or Threat()
    norm = found.ord if ord is None else str(ord)
    if eps is None and norm != found.ord:
        raise UsageError(f"--ord {norm} needs an --eps: there is no default")
    try:
        radius = found.eps if eps is None else float(parse_number(eps))
        std = found.noise_std if noise is None else float(parse_number(noise))
    except (TypeError, ValueError, ZeroDivisionError):
        radius = std = 0.0
    if norm not in ("inf", "2") or not radius > 0 or not std > 0:
        raise UsageError(
            f"expected ord inf or 2, eps > 0 and noise > 0, received ord {norm}, eps {eps} and noise {noise}"
        )
    return Threat(norm, radius, std)


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
