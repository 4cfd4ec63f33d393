"""What to do about a model, from what was confirmed of it: a ranked list of plain sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bn_vuln.auditing.findings import Advice, Difference, Finalist, Layer, ModelFindings
from bn_vuln.auditing.options import eps_text
from bn_vuln.auditing.what_if import smallest_gain
from bn_vuln.config import Adversarial, FineTuning, Mend

OFF = 0.2  # of a standard deviation: from here on statistics are named as off
GUESSING = 19
LOST = {"clean": "on clean images", "noise": "under noise", "strong": "under strong attacks"}
CALLED_WRONGLY = {GUESSING, 25, 27}  # checks which say that a model may be
FOLDED = "no normalization layer: BN may have been folded at export; audit the model before it"


class Command(Protocol):
    """Makes the command of a change; `first`: of the first one that is advised."""

    def __call__(self, change: Mend, *, first: bool = False) -> str:
        """Return the command."""


def advise(found: ModelFindings, *, ord: str, eps: float, level: float, command: Command) -> tuple[Advice, ...]:
    """Return the advice on a model, the best first.

    What needs no training was confirmed on this model, or is not advised. What needs training was not measured on it:
    the sentences say so, and give figures of nets of this package.

    Args:
        found: the model's findings, with its finalists.
        ord: norm of the attacks.
        eps: the chosen eps.
        level: of the finalists' intervals.
        command: makes the command of a change.
    """
    confirmed = [
        _confirmed(one, found, eps_text(eps, ord), level, command(one.mend, first=number == 0))
        for number, one in enumerate(_helping(found.finalists))
    ]
    return (*_doubts(found), *(confirmed or [_nothing(found, level)]), *_with_training(found, ord, eps, command))


def _doubts(found: ModelFindings) -> list[Advice]:
    """What comes first where the model may be called in another way than it was trained."""
    explained = {GUESSING} if any(one.gains and not one.mend.changes_c for one in found.finalists) else set()
    checks = CALLED_WRONGLY - explained  # statistics that are stale make a model guess, too
    doubts = [f"{flag.message[:1].upper()}{flag.message[1:]}" for flag in found.flags if flag.check in checks]
    if not doubts:
        return []
    text = f"Make sure first that it is called as it was trained, or nothing below means anything. {' '.join(doubts)}"
    return [Advice(kind="unknown", text=text)]


def _helping(finalists: Sequence[Finalist]) -> list[Finalist]:
    """The best change of c in all layers, and the best in one; then statistics alone, which those contain.

    Where statistics alone gain, c must gain beyond them.
    """
    gaining = [one for one in finalists if one.gains]
    alone = [one for one in gaining if not one.mend.changes_c]
    others = [one for one in gaining if one.mend.changes_c and (one.beyond or not alone)]
    others.sort(key=lambda one: one.strong.difference.value + one.noise.difference.value)
    best = {bool(one.mend.layers): one for one in others}  # of each kind the last one
    return sorted(best.values(), key=others.index, reverse=True) + alone


def _confirmed(one: Finalist, found: ModelFindings, eps: str, level: float, command: str) -> Advice:
    figures = "; ".join(
        (
            f"clean images {_change(one.clean, level)}",
            f"under noise {_change(one.noise, level)}",
            f"under strong attacks at eps {eps} {_change(one.strong, level)}",
        )
    )
    lost = _listed([f"{LOST[loss.name]} {_points(loss)}" for loss in one.losses]) if one.losses else ""
    bound = f" It loses: {lost}, 95% intervals." if lost else ""
    bound += " Gradients are masked: what is won under attack may not be there." if found.upper_bounds else ""
    if one.mend.changes_c:
        return Advice(kind="raise c", text=_raise_c(one, figures, level) + bound, command=command, mend=one.mend)
    off = [layer for layer in found.layers if (layer.statistics_distance or 0) > OFF]
    text = f"Estimate the statistics of batch norm again: {figures}."
    text += f" The tracked ones are off in {_names(off)}." if off else ""
    if one.noise.difference.low <= 0 and one.strong.difference.low <= 0:
        text += " Only the gain on clean images is confirmed: noise and attacks need more images (--limit)."
    with_c = [other for other in found.finalists if other.mend.changes_c]
    if with_c and not any(other.beyond for other in with_c):
        text += " Raising c on top of it adds nothing that these images can show."
    return Advice(kind="statistics", text=text + bound, command=command, mend=one.mend)


def _raise_c(one: Finalist, figures: str, level: float) -> str:
    change = one.mend
    where = "every normalization layer" if not change.layers else _listed(change.layers)
    how = ["the gain of its median channel kept"] if change.keep_gain else []
    how += ["the statistics estimated again"] if change.reestimate else []
    text = f"Raise c in {where} by {change.relative_c:g} times its median variance"
    text += f", with {' and '.join(how)}: {figures}." if how else f": {figures}."
    if one.beyond and one.beyond_statistics is not None and one.noise_beyond_statistics is not None:
        text += (
            f" Of this c brings, beyond the statistics: under noise {_points(one.noise_beyond_statistics)}, under "
            f"strong attacks {_points(one.beyond_statistics)} ({100 * level:.1f}% intervals)."
        )
    if not one.beyond and one.beyond_statistics is not None:
        return f"{text} How much of it the statistics win alone, these images cannot tell."
    return f"{text} So {_listed(change.layers)} is a cause: this change alone was confirmed." if change.layers else text


def _nothing(found: ModelFindings, level: float) -> Advice:
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
    n = found.finalists[0].strong.n
    numbers = [d.difference for one in found.finalists for d in (one.strong, one.noise)]
    missed = max(smallest_gain(n, level), *((d.high - d.low) / 2 for d in numbers))
    text = (
        f"Nothing that these {n} images can show: none of the {len(found.candidates)} changes that were tried "
        f"without training is a confirmed gain. Gains under about {100 * missed:.0f} points would "
        f"be missed; more images (--limit) show smaller ones.{refused}"
    )
    return Advice(kind="nothing", text=text)


def _with_training(found: ModelFindings, ord: str, eps: float, command: Command) -> list[Advice]:
    """What cannot be measured without training, with what is known of nets of this package."""
    adversarial = Adversarial.model_validate({"ord": ord, "eps": eps})
    robust = Advice(
        kind="adversarial training",
        text="If somebody may really attack it, train it on adversarial examples (not measured on this model): no "
        "change of normalization makes a net withstand attacks that was not trained against them.",
        command=command(Mend(finetune=FineTuning(epochs=5, adversarial=adversarial))),
    )
    if not any(layer.kind == "batch" for layer in found.layers):
        return [robust]
    train = Advice(
        kind="train",
        text="Train it anew by your own code with a larger c, or another normalization, and audit both as a pair (not "
        "measured on this model). With c raised by the median variance "
        "of its layers from the start, an MLP on MNIST kept 18.3 points more under strong attacks at equal clean "
        "accuracy; the same c after training won 3.7 (posthoc_c, n = 5). Without batch norm it kept 26.9 points more "
        "under BIM (table6_matched, n = 5), but a fully trained VGG8 on CIFAR-10 10.9 points less under strong "
        "attacks (strong_vgg8, n = 3): which one is more robust depends on net and data.",
    )
    fine_tune = Advice(
        kind="fine-tune",
        text="Fine-tune it with a larger c (not measured on this model; mend prints what it wins and costs). One epoch "
        "won nothing under strong attacks on an MLP on MNIST (posthoc_c, n = 5).",
        command=command(Mend(relative_c=1.0, reestimate=not found.refused, finetune=FineTuning())),
    )
    return [train, fine_tune, robust]


def _points(one: Difference) -> str:
    """`+5.0 points (-2.0 to +11.8)`."""
    found = one.difference
    return f"{100 * found.value:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


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
