"""When a robustness number lies: cheap checks, each a function that returns a flag or None.

docs/method/checks.md lists them by number; `evaluate` runs them and puts the flags into the record. A flag carries the
value that tripped it and says what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.attacks.losses import log_odds
from bn_vuln.attacks.threat_model import ThreatModel
from bn_vuln.config import Attack
from bn_vuln.records import Flag
from bn_vuln.runtime import backend
from bn_vuln.typing import AnyArray, Images, Predict

SAMPLE = 1000  # examples looked at by a check that costs more than a look
TOLERANCE = 1e-5  # of eps, for a point on the border of its ball
FLOAT32_STEP = float(np.finfo(np.float32).eps)


def gradients(predict: Predict, x: NDArray[np.float32], y: NDArray[np.int32], batch_size: int = SAMPLE) -> Flag | None:
    """Check 4: examples whose input gradient of the loss that attacks climb is all zero, or not finite."""
    tf = backend.tensorflow()

    def norms(images: Any, labels: Any) -> Any:  # `loss.gradient` would take what is no number for 0
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            loss = log_odds(predict(images), labels)
        gradient = tape.gradient(loss, images, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return tf.reduce_max(tf.abs(gradient), axis=list(range(1, len(images.shape))))

    compiled, x, y = backend.compile(norms), x[:SAMPLE], y[:SAMPLE]
    pieces = [slice(i, i + batch_size) for i in range(0, len(x), batch_size)]
    largest = np.concatenate([compiled(tf.constant(x[piece]), tf.constant(y[piece])).numpy() for piece in pieces])
    # The maximum of |g| is NaN-safe only where NumPy looks at it: XLA and TensorFlow may drop a NaN.
    useless = float(np.mean(~np.isfinite(largest) | (largest == 0)))
    if useless == 0:
        return None
    return Flag(
        check=4,
        name="zero or non-finite gradients",
        value=useless,
        message=f"{useless:.1%} of {len(largest)} examples have no usable input gradient: a gradient attack cannot "
        "move them, so the accuracy under it is an upper bound. Try a margin loss or an attack without gradients.",
    )


def finite(logits: NDArray[np.float32]) -> Flag | None:
    """Check 4, on the outputs: examples with logits that are not finite (they count as misclassified)."""
    broken = float(np.mean(~np.isfinite(logits).all(axis=1)))
    if broken == 0:
        return None
    return Flag(
        check=4, name="non-finite logits", value=broken,
        message=f"{broken:.1%} of the examples have logits that are not finite; they count as misclassified.",
    )  # fmt: skip


def inference_mode(predict: Callable[[Images], AnyArray], model: Any, x: NDArray[np.float32]) -> Flag | None:
    """Check 9: five passes agree, an example alone gets the logits it gets in a batch, and predicting leaves
    every variable of the model bit-identical."""
    before = [np.array(variable) for variable in model.variables]
    batch = x[: min(32, len(x))]
    passes = [np.asarray(predict(batch)) for _ in range(5)]
    alone = np.concatenate([np.asarray(predict(batch[i : i + 1])) for i in range(min(4, len(batch)))])
    spread = max(float(np.abs(p - passes[0]).max()) for p in passes)
    # Batches of other sizes may be summed in another order: differences of rounding are no finding.
    scale = float(np.abs(passes[0]).max()) + FLOAT32_STEP
    split = float(np.abs(alone - passes[0][: len(alone)]).max())
    changed = any(
        not np.array_equal(b, np.array(v), equal_nan=True) for b, v in zip(before, model.variables, strict=True)
    )
    for wrong, value, what in (
        (changed, 1.0, "predicting changed the model's variables"),
        (spread > 1e-6 * scale, spread, "five passes over the same batch disagree"),
        (split > 1e-3 * scale, split, "an example's logits depend on the batch it is in"),
    ):
        if wrong:
            return Flag(
                check=9, name="not in inference mode", value=value,
                message=f"{what}: the model seems to run in training mode (dropout, or BN with batch statistics); "
                "the accuracies are those of a random or batch-dependent classifier.",
            )  # fmt: skip
    return None


def logits_not_probabilities(outputs: NDArray[np.float32]) -> Flag | None:
    """Check 10: rows in [0, 1] that sum to 1 are probabilities, where attacks need logits."""
    rows = np.all((outputs >= 0) & (outputs <= 1), axis=1) & (np.abs(outputs.sum(axis=1) - 1) < 1e-3)
    share = float(np.mean(rows))
    if share < 0.99:
        return None
    return Flag(
        check=10, name="probabilities instead of logits", value=share,
        message="the model's outputs are probabilities: the loss saturates and attacks look weaker than they are. "
        "Pass --from-probabilities (from_probabilities=True), or save the model without its softmax.",
    )  # fmt: skip


def box_excludes_clean(x: NDArray[np.float32], threat_model: ThreatModel) -> Flag | None:
    """Check 11, first part: the share of clean images that lie outside the box themselves."""
    outside = _outside_box(x, threat_model)
    share = float(np.mean(outside))
    if share == 0:
        return None
    return Flag(
        check=11, name="box excludes clean images", value=share,
        message=f"{share:.1%} of the clean images lie outside the box: clipping moves their pixels by more than eps, "
        "so this threat model is not a ball of eps around them.",
    )  # fmt: skip


def inside(point: NDArray[np.float32], x: NDArray[np.float32], threat_model: ThreatModel) -> Flag | None:
    """Check 11, second part: the kept points lie in ball and box, up to eps * 1e-5 and float32's resolution."""
    return outside(beyond(point, x, threat_model))


def beyond(point: NDArray[np.float32], x: NDArray[np.float32], threat_model: ThreatModel) -> NDArray[np.float64]:
    """How far each point lies outside ball or box beyond the tolerance, float64 [n]: 0 inside, infinite for a point
    that is not finite. Examples whose clean image is outside the box are left out (`box_excludes_clean`)."""
    held = ~_outside_box(x, threat_model)
    point, x, threat_model = point[held], x[held], threat_model.subset(held)
    finite_points = np.isfinite(point).all(axis=tuple(range(1, point.ndim)))
    point = np.where(np.isfinite(point), point, x)
    largest = np.abs(point).max(initial=1.0)
    slack = (
        TOLERANCE * np.max(threat_model.eps, initial=0.0) + FLOAT32_STEP / float(np.min(threat_model.scale)) * largest
    )
    if threat_model.ord == "2":  # roundings of all coordinates add up in quadrature
        slack *= float(np.sqrt(np.prod(x.shape[1:])))
    violation = threat_model.violation(point, x)
    return np.where(finite_points, np.where(violation > slack, violation, 0.0), np.inf)


def outside(distances: NDArray[np.float64]) -> Flag | None:
    """The flag of check 11 for the distances that `beyond` found."""
    share = float(np.mean(distances > 0)) if len(distances) else 0.0
    if share == 0:
        return None
    return Flag(
        check=11, name="outside ball or box", value=share,
        message=f"{share:.1%} of the adversarial examples lay outside the ball or the box, by up to "
        f"{distances.max():.3g}; they were projected back before they were counted.",
    )  # fmt: skip


def _outside_box(x: NDArray[np.float32], threat_model: ThreatModel) -> NDArray[np.bool_]:
    out = (x < threat_model.low) | (x > threat_model.high)
    return np.asarray(out.any(axis=tuple(range(1, x.ndim))))


def reaches_border(attack: Attack) -> Flag | None:
    """Check 18: steps x step_size < eps cannot reach the border of the ball."""
    if attack.step_size is None or attack.random_start:
        return None
    reach = attack.steps * attack.step_size
    if reach >= attack.eps * (1 - 1e-9):
        return None
    return Flag(
        check=18, name="steps cannot reach the border", value=reach,
        message=f"steps x step_size = {reach:.4g} < eps = {attack.eps:.4g}: take more steps or larger ones.",
    )  # fmt: skip


def transfer_beats_white_box(
    clean: NDArray[np.bool_], white_box: NDArray[np.bool_], transfer: NDArray[np.bool_]
) -> Flag | None:
    """Check 6: examples of another model fool this one more often than its own attack, which sees its gradients.

    Whether each example is classified correctly, bool [n]: clean, under the model's own attack, and as the other
    model's adversarial example; the same examples, of which those count that are correct when clean.
    """
    own, others = clean & ~white_box, clean & ~transfer
    more = int(others.sum()) - int(own.sum())
    if more <= 0:
        return None
    n, only_others, only_own = (int(found.sum()) for found in (clean, others & ~own, own & ~others))
    return Flag(
        check=6, name="transfer beats white box", value=more / n,
        message=f"another model's adversarial examples fool {int(others.sum())} of {n} examples, the white-box attack "
        f"{int(own.sum())} ({only_others} by transfer alone, {only_own} by the white box alone): the attack is too "
        "weak or the model masks its gradients, so the accuracy under the attack is an upper bound. Take more steps or "
        "restarts, the best iterate or another step size, and look for flags of check 4.",
    )  # fmt: skip


# ---------------------------------------------------------------- was the attack as strong as it looks?
# Correct are bool [n] of the same examples, True where classified correctly.

Correct = NDArray[np.bool_]


def weaker_than_one_step(correct: Correct, one_step: Correct) -> Flag | None:
    """Check 1: many steps leave more examples standing than FGSM does, by over two standard errors of the paired
    difference."""
    difference, error = _paired(correct, one_step)
    if difference <= 2 * error or difference <= 0:
        return None
    return Flag(
        check=1, name="weaker than one step", value=difference,
        message=f"FGSM leaves {difference:.1%} fewer of {len(correct)} examples standing: the steps overshoot or the "
        "gradients mislead. Try smaller steps, more restarts, or an attack without gradients (square).",
    )  # fmt: skip


def not_converged(correct: Correct, longer: Correct) -> Flag | None:
    """Check 2: twice the steps change accuracy by more than half a point."""
    change = float(np.mean(correct) - np.mean(longer))
    if not _tells(change, 0.005, len(correct)):
        return None
    return Flag(
        check=2, name="not converged", value=change,
        message=f"twice the steps change accuracy by {-100 * change:+.1f} points on {len(correct)} examples: take "
        "more steps, or an attack that chooses its own (apgd-ce, strong).",
    )  # fmt: skip


def loss_still_moves(start: float, late: float, end: float) -> Flag | None:
    """Check 2, of the mean losses of the clean images, after nine tenths of the steps and at the end: the last tenth
    makes more than 5% of the way."""
    way = abs(end - start)
    share = abs(end - late) / way if way > 0 else 0.0
    if share <= 0.05:
        return None
    return Flag(
        check=2, name="loss still moves", value=share,
        message=f"the last tenth of the steps makes {share:.0%} of the loss's whole way: take more steps.",
    )  # fmt: skip


def budget_does_not_bite(eps: Sequence[float], accuracies: Sequence[float], whole: float, chance: float) -> Flag | None:
    """Check 3: accuracy rises by over half a point from one eps to a larger one, or more than `chance`, 1 / classes, is
    left (accuracy `whole`) with all images for a ball."""
    rises = [(b - a, e) for a, b, e in zip(accuracies[:-1], accuracies[1:], eps[1:], strict=True)]
    worst, at = max(rises, default=(0.0, 0.0))
    if worst > 0.005:
        return Flag(
            check=3, name="the budget does not bite", value=worst,
            message=f"accuracy rises by {100 * worst:.1f} points at the larger eps {at:.4g}: the attack misses what it "
            "finds in a smaller ball. Try more steps or restarts, or an attack without gradients (square).",
        )  # fmt: skip
    if whole <= chance:
        return None
    return Flag(
        check=3, name="the budget does not bite", value=whole,
        message=f"with all images for a ball {whole:.1%} are still classified correctly, where at most {chance:.1%} "
        "need be: the gradients mislead. Try square.",
    )  # fmt: skip


def masked_gradients(correct: Correct, square: Correct) -> Flag | None:
    """Check 5: an attack without gradients fools more than .2 points of what an attack with gradients left."""
    lost = float(np.mean(correct & ~square))
    if not _tells(lost, 0.002, len(correct)):
        return None
    return Flag(
        check=5, name="masked gradients", value=lost,
        message=f"Square, which sees no gradients, fools a further {100 * lost:.1f} points of {len(correct)} "
        "examples: the gradients hide adversarial examples. Report the attack strong.",
    )  # fmt: skip


def fooled_on_the_way(correct: Correct, any_iterate: Correct) -> Flag | None:
    """Check 7: the share of examples that are fooled at some point of the path, but not at the last."""
    lost = float(np.mean(correct & ~any_iterate))
    if not _tells(lost, 0.005, len(correct)):
        return None
    return Flag(
        check=7, name="the last iterate, not the best", value=lost,
        message=f"{lost:.1%} of {len(correct)} examples are fooled on the way but not at the last point: with iterate "
        "any they count.",
    )  # fmt: skip


def noise_as_strong(correct: Correct, noisy: Correct) -> Flag | None:
    """Check 8: the best of some random points in the same ball leaves no more standing than the attack does, where that
    leaves some, and the ball does harm at all."""
    attack, random = float(np.mean(correct)), float(np.mean(noisy))
    if random > attack or random == 1.0 or attack == 0.0:
        return None
    return Flag(
        check=8, name="noise as strong as the attack", value=random,
        message=f"random points of the ball leave {random:.1%} of {len(correct)} examples standing, the attack "
        f"{attack:.1%}: it does not find its way. Try more steps or an attack without gradients (square).",
    )  # fmt: skip


def lost_by_rounding(correct: Correct, rounded: Correct) -> Flag | None:
    """Check 12: images rounded to 8 bits a pixel give another accuracy, by more than half a point."""
    change = float(np.mean(rounded) - np.mean(correct))
    if not _tells(change, 0.005, len(correct)):
        return None
    return Flag(
        check=12, name="the image is not the stored image", value=change,
        message=f"rounded to 8 bits a pixel the adversarial examples give {100 * change:+.1f} points: they are images "
        "in float32, not files.",
    )  # fmt: skip


def too_few_restarts(correct: Correct, restarted: Correct) -> Flag | None:
    """Check 13: one more random start fools more than half a point of what is left."""
    lost = float(np.mean(correct & ~restarted))
    if not _tells(lost, 0.005, len(correct)):
        return None
    return Flag(
        check=13, name="too few restarts", value=lost,
        message=f"another random start fools a further {100 * lost:.1f} points of {len(correct)} examples: take more "
        "restarts.",
    )  # fmt: skip


def _tells(change: float, threshold: float, n: int) -> bool:
    """Whether a change of accuracy is above its threshold, and of more than one example."""
    return abs(change) > max(threshold, 1.001 / n)


def _paired(first: Correct, second: Correct) -> tuple[float, float]:
    """(mean difference of two correct of the same examples, its standard error)."""
    difference = first.astype(float) - second
    return float(difference.mean()), float(difference.std() / np.sqrt(max(1, len(difference))))
