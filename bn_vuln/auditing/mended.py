"""What was made of a model by `mend`, as JSON has it, and the card that lies beside the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bn_vuln.auditing.findings import Difference, Interval
from bn_vuln.auditing.options import eps_text
from bn_vuln.auditing.what_if import title
from bn_vuln.config import FineTuning, Frozen, Mend
from bn_vuln.runtime.escapes import code, line, markdown


class ChangedLayer(Frozen):
    """A normalization layer before and after.

    Attributes:
        name: of the layer.
        kind: batch, group, layer, instance, rms or filter response.
        before: its c.
        after: likewise.
    """

    name: str
    kind: str
    before: float
    after: float


class Mended(Frozen):
    """A mended model.

    Attributes:
        source: what its user calls the model that it was made of.
        source_id: hash of that model and of how it is called.
        source_sha256: of its file; "" where it is none.
        file: the mended model; "" where it was not kept.
        sha256: of that file.
        mend: what was changed.
        layers: the normalization layers, in the order in which they are called.
        fitted_on: the images that it was fitted on, in words, for each step.
        data: that it was judged on.
        split: likewise.
        n: images of the reporting half, none of which it was fitted on.
        table: paired differences under clean, noise and strong, after - before, with 95% intervals.
        noise_std: of the noise, in pixels.
        strong: the attack in words.
        flags: what makes the table doubtful, a sentence each.
        command: the command line, or the call.
        date: ISO date.
        seconds: that it took.
        versions: of the packages.
        device: what computed.
    """

    source: str
    source_id: str
    source_sha256: str
    file: str
    sha256: str
    mend: Mend
    layers: tuple[ChangedLayer, ...]
    fitted_on: tuple[str, ...]
    data: str
    split: str
    n: int
    table: tuple[Difference, ...]
    noise_std: float
    strong: str
    flags: tuple[str, ...] = ()
    command: str
    date: str
    seconds: float
    versions: dict[str, str]
    device: str

    @property
    def header(self) -> tuple[str, ...]:
        """Titles of the table's columns."""
        return ("under", "before, %", "after, %", "difference, points", "95% interval")

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The table in text: under, before, after, difference, its interval."""
        names = {"noise": f"noise {self.noise_std:g}"}
        return [
            (
                names.get(one.name, one.name),
                f"{100 * one.before:.1f}",
                f"{100 * one.after:.1f}",
                *_points(one.difference),
            )
            for one in self.table
        ]


def _points(found: Interval) -> tuple[str, str]:
    return f"{100 * found.value:+.1f}", f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"


def changes(mend: Mend) -> list[str]:
    """Return what is changed, a phrase for each step, in their order."""
    found = [] if mend.model_copy(update={"finetune": None}) == Mend() else [title(mend)]
    return found + ([] if mend.finetune is None else [_fine_tuned(mend.finetune)])


def _fine_tuned(options: FineTuning) -> str:
    epochs = "1 epoch" if options.epochs == 1 else f"{options.epochs} epochs"
    text = f"Fine-tuned for {epochs}: lr {options.lr:g}, batches of {options.batch_size}, momentum {options.momentum:g}"
    text += f", weight decay {options.weight_decay:g}" if options.weight_decay else ""
    if options.adversarial is None:
        return text
    attack = options.adversarial
    return f"{text}, on adversarial images ({attack.ord} eps {eps_text(attack.eps, attack.ord)}, {attack.steps} steps)"


def card(found: Mended) -> str:
    """Return the card as Markdown."""
    source = code(found.source) + (f", sha256 {found.source_sha256}" if found.source_sha256 else "")
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    fitted = markdown(f"Fitted: {'; '.join(found.fitted_on)}.") if found.fitted_on else "Nothing was fitted to images."
    lines = [
        f"# {markdown(found.file or 'A mended model')}",
        "",
        f"Made of {source}, whose architecture, input and output it has, on {found.date}:",
        "",
        f"    {line(found.command)}",
        "",
        *(f"- {markdown(text)}" for text in changes(found.mend)),
        "",
        f"{fitted} The file has sha256 {found.sha256}.",
        "",
        "## Before and after",
        "",
        f"{found.n} images of {markdown(f'{found.data} ({found.split})')}, none of which it was fitted on. Differences "
        "are paired,",
        "each interval is by itself. Accuracies under an attack are upper bounds.",
        "",
        *_table(found.header, found.rows),
        "",
        f"{markdown(found.strong)}.",
        *(f"\nFlag: {markdown(flag)}" for flag in found.flags),
        "",
        "## Layers",
        "",
        *_table(("layer", "kind", "c before", "c after"), [_row(layer) for layer in found.layers]),
        "",
        f"{versions}; {found.device}; {found.seconds:.0f} s",
    ]
    return "\n".join(lines) + "\n"


def _row(layer: ChangedLayer) -> tuple[str, ...]:
    return code(layer.name), layer.kind, f"{layer.before:.4g}", f"{layer.after:.4g}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield "|" + "---|" * len(header)
    yield from (f"| {' | '.join(row)} |" for row in rows)
