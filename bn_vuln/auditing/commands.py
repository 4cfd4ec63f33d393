"""The commands that an audit shows: for a shell, or for Python where it was called there."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bn_vuln.auditing.options import eps_text
from bn_vuln.config import Mend
from bn_vuln.typing import Plain

OUT = "mended.keras"


@dataclass(frozen=True)
class Commands:
    """Commands, and what they are made of.

    Attributes:
        audit: that of the audit.
        models: the models, as commands take them.
        options: of the models and the data, as they were given.
        folder: of the audit; None where nothing is kept.
        shell: they are for a shell.
        arrays: images and labels are arrays in memory, which are called so.
    """

    audit: str
    models: Sequence[str]
    options: Plain = field(default_factory=dict)
    folder: Path | None = None
    shell: bool = True
    arrays: bool = False

    def mend(self, number: int, change: Mend, *, ord: str, eps: float, first: bool = False) -> str:
        """Return the command that changes a model, and measures it under the audit's attack.

        Args:
            number: of the model, from 0.
            change: what is changed.
            ord: norm of the audit's attack.
            eps: of this attack.
            first: it is the first change that is advised, which `mend` finds in the folder.
        """
        model, attack = self.models[number], _attack(ord, eps)
        given = {name: value for name, value in self.options.items() if (name, value) != ("split", "train")}
        if first and self.folder is not None:
            options: Plain = {"from_audit": str(self.folder)}
        elif self.shell:
            options = {**given, **_for_shell(change), **attack}
        else:
            options = {**given, "mend": _fields(change), **attack}
        if self.shell:
            return " ".join(["bnvuln mend", shlex.quote(model), *_flags(options), f"-o {OUT}"])
        if self.arrays:
            options.pop("dataset", None)
        arguments = ["images", "labels"] if self.arrays else []
        arguments += [f"{name}={value!r}" for name, value in options.items() if value is not None]
        return f"bn_vuln.mend({', '.join([model, *arguments])}, out={OUT!r})"


def _attack(ord: str, eps: float) -> Plain:
    """Norm and eps as options; inf is the default."""
    return {**({} if ord == "inf" else {"ord": ord}), "eps": eps_text(eps, ord)}


def _fields(change: Mend) -> Plain:
    """The fields of a change that are no default."""
    fields = change.model_dump(mode="json", exclude_defaults=True)
    if change.finetune is not None and change.finetune.adversarial is not None:
        adversarial = change.finetune.adversarial
        fields["finetune"]["adversarial"] = _attack(adversarial.ord, adversarial.eps)
    return fields


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
