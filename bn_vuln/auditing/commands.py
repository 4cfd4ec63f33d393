"""The commands that an audit shows: for a shell, or for Python where it was called there."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bn_vuln.auditing.options import eps_text
from bn_vuln.config import Mend
from bn_vuln.external import loading
from bn_vuln.typing import Plain

OUT = "mended.keras"
OF_DATA = ("dataset", "split", "exif", "skip_bad", "limit")  # options that runs take too


@dataclass(frozen=True)
class Commands:
    """What commands are made of.

    Attributes:
        shell: the command line of the audit; None where it was called in Python.
        models: their paths or names, or the models in memory.
        options: of the models and the data, as they were given.
        folder: of the audit; None where nothing is kept.
        arrays: images and labels are arrays in memory.
    """

    shell: str | None
    models: Sequence[object]
    options: Plain = field(default_factory=dict)
    folder: Path | None = None
    arrays: bool = False

    @property
    def audit(self) -> str:
        """The command of the audit; in Python without its options."""
        second = f", second={self._name(1)}" if len(self.models) > 1 else ""
        return self.shell or f"bn_vuln.audit({self._name(0)}{second}, ...)"

    def mend(self, number: int, change: Mend, *, ord: str, eps: float, noise: float, first: bool = False) -> str:
        """Return the command that changes a model, and measures it under the audit's attack.

        Args:
            number: of the model, from 0.
            change: what is changed.
            ord: norm of the audit's attack.
            eps: of this attack.
            noise: std of the audit's noise.
            first: it is the first change that is advised, which `mend` finds in the folder.
        """
        options = options_of(self.models[number], self.options)
        if options.get("split") == "train":  # whose images may not judge a change
            del options["split"]
        if first and self.folder is not None:
            options = {"from_audit": str(self.folder)}
        else:
            options |= (
                (_fields(change) if self.shell is None else _for_shell(change)) | _attack(ord, eps) | {"noise": noise}
            )
        if self.shell is not None:
            return " ".join(["bnvuln mend", self._name(number), *_flags(options), f"-o {self._out(number)}"])
        arguments = ["images", "labels"] if self.arrays else []
        arguments += [
            f"{name}={value!r}"
            for name, value in options.items()
            if value is not None and not (self.arrays and name == "dataset")
        ]
        return f"bn_vuln.mend({', '.join([self._name(number), *arguments])}, out={self._out(number)!r})"

    def _out(self, number: int) -> str:
        """The file of the changed model, another one than the model's own."""
        model = self.models[number]
        return OUT if not isinstance(model, str | Path) or Path(model).name != OUT else f"again-{OUT}"

    def _name(self, number: int) -> str:
        """A model as a command takes it."""
        model = self.models[number]
        if not isinstance(model, str | Path):
            return ("model", "second")[number]
        return repr(str(model)) if self.shell is None else shlex.quote(str(model))


def options_of(model: object, options: Plain) -> Plain:
    """Return those of the options that a model takes: a run knows how it is called."""
    return {n: v for n, v in options.items() if n in OF_DATA or loading.is_external(model)}


def _attack(ord: str, eps: float) -> Plain:
    """Norm and eps as options; inf is the default."""
    return {**({} if ord == "inf" else {"ord": ord}), "eps": eps_text(eps, ord)}


def _fields(change: Mend) -> Plain:
    """A change as an argument of `bn_vuln.mend`: its fields that are no default."""
    fields = change.model_dump(mode="json", exclude_defaults=True)
    if change.finetune is not None and change.finetune.adversarial is not None:
        adversarial = change.finetune.adversarial
        fields["finetune"]["adversarial"] = _attack(adversarial.ord, adversarial.eps)
    return {"mend": fields}


def _for_shell(change: Mend) -> Plain:
    """A change by the options of `bnvuln mend`."""
    options = change.model_dump(include={"relative_c", "c", "reestimate"}, exclude_defaults=True)
    options |= {"layers": ",".join(change.layers) or None, "no_keep_gain": change.changes_c and not change.keep_gain}
    if change.finetune is not None:
        adversarial = change.finetune.adversarial
        options["finetune"] = change.finetune.epochs
        options["adversarial"] = None if adversarial is None else eps_text(adversarial.eps, adversarial.ord)
    return options


def _flags(options: Mapping[str, object]) -> Iterator[str]:
    """Options as a shell takes them, but for those that are None or False, and `exif`, which is turned off."""
    for name, value in options.items():
        flag = "--data" if name == "dataset" else f"--{name.replace('_', '-')}"
        if name == "exif":
            yield from [] if value else ["--no-exif"]
        elif value is True:
            yield flag
        elif value not in (None, False):
            text = f"{value:g}" if isinstance(value, float) else str(value)
            yield f"{flag} {shlex.quote(text)}"
