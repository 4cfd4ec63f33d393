"""What to do about a model, from what was confirmed of it: a ranked list of plain sentences."""

from __future__ import annotations

from collections.abc import Sequence

from bn_vuln.auditing.findings import Advice, Difference, Finalist, Layer, ModelFindings
from bn_vuln.auditing.what_if import smallest_gain

OFF = 0.2  # of a standard deviation: from here on statistics are named as off
FOLDED = "no normalization layer: BN may have been folded at export; audit the model before it"


def advise(found: ModelFindings, *, eps: str, n: int, level: float, mend: str, folder: str) -> tuple[Advice, ...]:
    """Return the advice on a model, the best first.

    What needs no training was confirmed on this model, or is not advised. What needs training was not measured on it:
    the sentences say so, and give figures of nets of this package.

    Args:
        found: the model's findings, with its finalists.
        eps: the chosen eps, as text.
        n: images of the reporting half.
        level: of the finalists' intervals.
        mend: beginning of the commands that change the model: `bnvuln mend MODEL --data DATA`.
        folder: of the audit.
    """
    helping = [one for one in _ranked(found.finalists) if one.gains]
    confirmed = [
        _confirmed(one, found, eps, level, f"{mend} {_options(one, number, folder)} -o mended.keras")
        for number, one in enumerate(helping)
    ]
    return (*(confirmed or [_nothing(found, n, level)]), *_with_training(found, eps, mend))


def _options(finalist: Finalist, number: int, folder: str) -> str:
    """The options of `mend` that make a finalist: of the first one, what the audit says."""
    change = finalist.mend
    if number == 0:
        return f"--from-audit {folder}"
    options = [f"--relative-c {change.relative_c:g}"] if change.changes_c else []
    options += [f"--layers {','.join(change.layers)}"] if change.layers else []
    options += ["--no-keep-gain"] if change.changes_c and not change.keep_gain else []
    return " ".join([*options, *(["--reestimate"] if change.reestimate else [])])


def _ranked(finalists: Sequence[Finalist]) -> list[Finalist]:
    """Statistics alone first, which cost nothing; then the best change of c in all layers, and the best in one.

    Where statistics alone gain, c must gain beyond them.
    """
    alone = [one for one in finalists if not one.mend.changes_c]
    control_gains = any(one.gains for one in alone)
    others = [one for one in finalists if one.mend.changes_c and (one.beyond or not control_gains)]
    others.sort(key=lambda one: one.strong.difference.value + one.noise.difference.value, reverse=True)
    best = {bool(one.mend.layers): one for one in reversed(others) if one.gains}
    return alone + [one for one in others if one in best.values()]


def _confirmed(one: Finalist, found: ModelFindings, eps: str, level: float, command: str) -> Advice:
    figures = "; ".join(
        (
            f"clean images {_change(one.clean, level)}",
            f"under noise {_change(one.noise, level)}",
            f"under strong attacks at eps {eps} {_change(one.strong, level)}",
        )
    )
    if not one.mend.changes_c:
        off = [layer for layer in found.layers if (layer.statistics_distance or 0) > OFF]
        reason = f" The tracked ones are off in {_names(off)}." if off else ""
        extra = ""
        if any(other.mend.changes_c for other in found.finalists) and not any(
            other.gains and other.beyond for other in found.finalists if other.mend.changes_c
        ):
            extra = " Raising c on top of it adds nothing that these images can show."
        text = f"Estimate the statistics of batch norm again: {figures}.{reason}{extra}"
        return Advice(kind="statistics", text=text, command=command, mend=one.mend)
    where = "every normalization layer" if not one.mend.layers else _listed(one.mend.layers)
    how = ["the gain of its median channel kept"] if one.mend.keep_gain else []
    how += ["the statistics estimated again"] if one.mend.reestimate else []
    text = f"Raise c in {where} by {one.mend.relative_c:g} times its median variance"
    text += f", with {' and '.join(how)}: {figures}." if how else f": {figures}."
    if not one.beyond and one.beyond_statistics is not None:
        text += " How much of it the statistics win alone, these images cannot tell."
    elif one.mend.layers:
        text += f" So {_listed(one.mend.layers)} is a cause: this change alone was confirmed."
    return Advice(kind="raise c", text=text, command=command, mend=one.mend)


def _nothing(found: ModelFindings, n: int, level: float) -> Advice:
    """Why no change that needs no training is advised."""
    if found.upper_bounds:
        return Advice(
            kind="unknown",
            text="No change can be judged: gradients are masked, so that attacks find too little and accuracies under "
            "attack are upper bounds. Audit the model without what masks them, such as quantization or saturation.",
        )
    if not found.layers:
        return Advice(kind="nothing", text=f"Nothing can be changed without training: {FOLDED}.")
    refused = f" Statistics were not estimated again: {found.refused}." if found.refused else ""
    if not found.finalists:
        reason = "each change of c costs more clean accuracy than was allowed" if found.candidates else "none was tried"
        return Advice(kind="nothing", text=f"Nothing without training: {reason}.{refused}")
    text = (
        f"Nothing that these {n} images can show: none of the {len(found.candidates)} changes that were tried "
        f"without training is a confirmed gain. Gains under {100 * smallest_gain(n, level):.0f} points would be "
        f"missed; more images (--limit) show smaller ones.{refused}"
    )
    return Advice(kind="nothing", text=text)


def _with_training(found: ModelFindings, eps: str, mend: str) -> list[Advice]:
    """What cannot be measured without training, with what is known of nets of this package."""
    advice = []
    if any(layer.kind == "batch" for layer in found.layers):
        advice.append(
            Advice(
                kind="fine-tune",
                text="Fine-tune it for an epoch with a larger c (not measured on this model; mend prints what it wins "
                "and costs).",
                command=f"{mend} --relative-c 1 --reestimate --finetune 1 -o mended.keras",
            )
        )
        advice.append(
            Advice(
                kind="train",
                text="Train it anew with group norm, Fixup or no normalization and weight decay (not measured on this "
                "model), and compare the pair. Which one is more robust depends on net and data: on MNIST an MLP "
                "without batch norm keeps 26.9 points more under BIM (table6_matched, n = 5); on CIFAR-10 a fully "
                "trained VGG8 keeps 10.9 points less under strong attacks (strong_vgg8, n = 3).",
                command="bnvuln train --arch vgg8 --normalization group",
            )
        )
    advice.append(
        Advice(
            kind="adversarial training",
            text="If somebody may really attack it, train it on adversarial examples (not measured on this model): no "
            "change of normalization makes a net withstand attacks that was not trained against them.",
            command=f"{mend} --finetune 5 --adversarial {eps} -o mended.keras",
        )
    )
    return advice


def _change(one: Difference, level: float) -> str:
    """`12.0% -> 40.0% (+28.0 points, 99.2% interval 17.2 to 38.8)`."""
    interval = f"{100 * one.difference.low:+.1f} to {100 * one.difference.high:+.1f}"
    return (
        f"{100 * one.before:.1f}% → {100 * one.after:.1f}% ({100 * one.difference.value:+.1f} points, "
        f"{100 * level:.1f}% interval {interval})"
    )


def _names(layers: Sequence[Layer]) -> str:
    worst = sorted(layers, key=lambda layer: layer.statistics_distance or 0, reverse=True)
    names = [f"{one.name} (by {one.statistics_distance:.1f} standard deviations)" for one in worst[:3]]
    more = len(worst) - len(names)
    return _listed(names + ([f"{more} more layer{'s' if more > 1 else ''}"] if more else []))


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
