"""Sanity checks of robustness numbers, each a function that returns a flag or None.

docs/method/checks.md lists them by number; the evaluator runs them and puts the flags into the record. A flag carries
the value that tripped it and says what to do. Shapes: n examples; `correct` is bool [n], True where the image is
classified correctly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bn_vuln.attacks.losses import log_odds
from bn_vuln.attacks.threat_model import ThreatModel
from bn_vuln.config import Attack
from bn_vuln.records import Flag
from bn_vuln.runtime import backend
from bn_vuln.typing import Floats, Images, KerasModel, Labels, Logits, Mask, Predict, Tensor

SAMPLE = 1000  # examples of a check that costs more than comparing arrays
TOLERANCE = 1e-5  # of eps, for a point on the border of its eps ball
FLOAT32_STEP = float(np.finfo(np.float32).eps)


def gradients(predict: Predict, x: Images, y: Labels, batch_size: int = SAMPLE) -> Flag | None:
    """Check 4: the share of examples whose input gradient is all zero, or not finite.

    Args:
        predict: pixels -> logits, differentiable.
        x: clean images, pixels [n, height, width, channels]; the first `SAMPLE` are taken.
        y: true classes [n].
        batch_size: examples at a time.

    Returns:
        A flag where there are any; the gradient is that of the loss that attacks maximize.
    """
    tf = backend.tensorflow()

    def largest_slope(images: Tensor, labels: Tensor) -> object:  # `losses.gradient` would take NaN for 0
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            loss = log_odds(predict(images), labels)
        gradient = tape.gradient(loss, images, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return tf.reduce_max(tf.abs(gradient), axis=list(range(1, len(images.shape))))

    compiled, x, y = backend.compile(largest_slope), x[:SAMPLE], y[:SAMPLE]
    batches = [slice(i, i + batch_size) for i in range(0, len(x), batch_size)]
    largest = np.concatenate([compiled(tf.constant(x[batch]), tf.constant(y[batch])).numpy() for batch in batches])
    # The maximum of |g| is NaN-safe only in NumPy: XLA and TensorFlow may drop a NaN.
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


def finite(logits: Logits) -> Flag | None:
    """Check 4, on the outputs: the share of examples with logits [n, classes] that are not finite.

    They count as misclassified.
    """
    broken = float(np.mean(~np.isfinite(logits).all(axis=1)))
    if broken == 0:
        return None
    return Flag(
        check=4, name="non-finite logits", value=broken,
        message=f"{broken:.1%} of the examples have logits that are not finite; they count as misclassified.",
    )  # fmt: skip


def inference_mode(predict: Callable[[Images], Logits], model: KerasModel, x: Images) -> Flag | None:
    """Check 9: the model is in inference mode.

    Five passes agree, an example alone gets the logits that it gets in a batch, and predicting leaves every variable
    of the model bit-identical.

    Args:
        predict: pixels -> logits, of arrays.
        model: the model whose variables are compared.
        x: images, pixels [n, height, width, channels]; at most 32 are taken.

    Returns:
        A flag with the largest difference where one of these fails.
    """
    before = [np.array(variable) for variable in model.variables]
    batch = x[: min(32, len(x))]
    passes = [np.asarray(predict(batch)) for _ in range(5)]
    alone = np.concatenate([np.asarray(predict(batch[i : i + 1])) for i in range(min(4, len(batch)))])
    spread = max(float(np.abs(p - passes[0]).max()) for p in passes)
    # Batches of other sizes may be summed in another order: rounding errors are allowed.
    scale = float(np.abs(passes[0]).max()) + FLOAT32_STEP
    split = float(np.abs(alone - passes[0][: len(alone)]).max())
    changed = any(
        not np.array_equal(b, np.array(v), equal_nan=True) for b, v in zip(before, model.variables, strict=True)
    )
    for failed, value, description in (
        (changed, 1.0, "predicting changed the model's variables"),
        (spread > 1e-6 * scale, spread, "five passes over the same batch disagree"),
        (split > 1e-3 * scale, split, "an example's logits depend on the batch it is in"),
    ):
        if failed:
            return Flag(
                check=9, name="not in inference mode", value=value,
                message=f"{description}: the model seems to run in training mode (dropout, or BN with batch "
                "statistics); the accuracies are those of a random or batch-dependent classifier.",
            )  # fmt: skip
    return None


def logits_not_probabilities(outputs: Logits) -> Flag | None:
    """Check 10: outputs [n, classes] that are probabilities, rows in [0, 1] that sum to 1, and no logits."""
    rows = np.all((outputs >= 0) & (outputs <= 1), axis=1) & (np.abs(outputs.sum(axis=1) - 1) < 1e-3)
    share = float(np.mean(rows))
    if share < 0.99:
        return None
    return Flag(
        check=10, name="probabilities instead of logits", value=share,
        message="the model's outputs are probabilities: the loss saturates and attacks look weaker than they are. "
        "Pass --from-probabilities (from_probabilities=True), or save the model without its softmax.",
    )  # fmt: skip


def box_excludes_clean(outside: Mask) -> Flag | None:
    """Check 11, first part: the share of clean images that lie outside the box themselves, of `outside_box`."""
    share = float(np.mean(outside))
    if share == 0:
        return None
    return Flag(
        check=11, name="box excludes clean images", value=share,
        message=f"{share:.1%} of the clean images lie outside the box: clipping moves their pixels by more than eps, "
        "so this threat model is not a ball of eps around them.",
    )  # fmt: skip


def threat_model_violation(point: Images, x: Images, threat_model: ThreatModel) -> Floats:
    """Return how far each point lies outside the eps ball or the box.

    Args:
        point: points found by an attack, pixels [n, height, width, channels].
        x: the clean images, likewise. Those outside the box are left out (`box_excludes_clean`).
        threat_model: eps ball and box.

    Returns:
        float64 [m], in the unit of eps: 0 inside, up to a tolerance of eps * 1e-5 and float32's resolution; infinite
        for a point that is not finite.
    """
    held = ~outside_box(x, threat_model)
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


def flag_violations(distances: Floats) -> Flag | None:
    """Check 11, second part: the share of points that lay outside, of the distances [n] of `threat_model_violation`."""
    share = float(np.mean(distances > 0)) if len(distances) else 0.0
    if share == 0:
        return None
    return Flag(
        check=11, name="outside ball or box", value=share,
        message=f"{share:.1%} of the adversarial examples lay outside the ball or the box, by up to "
        f"{distances.max():.3g}; they were projected back before they were counted.",
    )  # fmt: skip


def outside_box(x: Images, threat_model: ThreatModel) -> Mask:
    """Return which images, pixels [n, height, width, channels], lie outside the box: bool [n]."""
    out = (x < threat_model.low) | (x > threat_model.high)
    return np.asarray(out.any(axis=tuple(range(1, x.ndim))))


def reaches_border(attack: Attack) -> Flag | None:
    """Check 18: steps x step_size < eps cannot reach the border of the eps ball."""
    if attack.step_size is None or attack.random_start:
        return None
    reach = attack.steps * attack.step_size
    if reach >= attack.eps * (1 - 1e-9):
        return None
    return Flag(
        check=18, name="steps cannot reach the border", value=reach,
        message=f"steps x step_size = {reach:.4g} < eps = {attack.eps:.4g}: take more steps or larger ones.",
    )  # fmt: skip


def transfer_beats_white_box(clean: Mask, white_box: Mask, transfer: Mask) -> Flag | None:
    """Check 6: adversarial examples of another model succeed more often than the model's own white-box attack.

    Args:
        clean: correct [n] on the clean images; the others do not count.
        white_box: correct [n] under the model's own attack.
        transfer: correct [n] on the other model's adversarial examples.

    Returns:
        A flag with the difference of the two success rates.
    """
    own, other = clean & ~white_box, clean & ~transfer
    more = int(other.sum()) - int(own.sum())
    if more <= 0:
        return None
    n, only_other, only_own = (int(mask.sum()) for mask in (clean, other & ~own, own & ~other))
    return Flag(
        check=6, name="transfer beats white box", value=more / n,
        message=f"another model's adversarial examples succeed on {int(other.sum())} of {n} examples, the white-box "
        f"attack on {int(own.sum())} ({only_other} by transfer alone, {only_own} by the white box alone): the attack "
        "is too weak or the model masks its gradients, so the accuracy under the attack is an upper bound. Take more "
        "steps or restarts, keep best_loss or another step size, and look for flags of check 4.",
    )  # fmt: skip


# ---------------------------------------------------------------- attacks against one another, on the same examples


def weaker_than_one_step(correct: Mask, one_step: Mask) -> Flag | None:
    """Check 1: an attack of many steps leaves more examples correct than FGSM does.

    Args:
        correct: correct [n] under the attack.
        one_step: correct [n] under FGSM.

    Returns:
        A flag where the paired difference is above two standard errors.
    """
    paired = correct.astype(float) - one_step
    difference, error = float(paired.mean()), float(paired.std() / np.sqrt(max(1, len(paired))))
    if difference <= 2 * error or difference <= 0:
        return None
    return Flag(
        check=1, name="weaker than one step", value=difference,
        message=f"FGSM leaves {difference:.1%} fewer of {len(correct)} examples correct: the steps overshoot or the "
        "gradients mislead. Try smaller steps, more restarts, or an attack without gradients (square).",
    )  # fmt: skip


def not_converged(correct: Mask, longer: Mask) -> Flag | None:
    """Check 2: twice the steps change accuracy by more than half a point.

    Args:
        correct: correct [n] under the attack.
        longer: correct [n] with twice the steps.

    Returns:
        A flag with the change.
    """
    change = float(np.mean(correct) - np.mean(longer))
    if not _is_notable(change, 0.005, len(correct)):
        return None
    return Flag(
        check=2, name="not converged", value=change,
        message=f"twice the steps change accuracy by {-100 * change:+.1f} points on {len(correct)} examples: take "
        "more steps, or an attack that chooses its own (apgd-ce, strong).",
    )  # fmt: skip


def loss_still_moves(start: float, late: float, end: float) -> Flag | None:
    """Check 2, of mean losses: the last tenth of the steps accounts for more than 5% of the total increase.

    Args:
        start: loss of the clean images, in nats.
        late: loss after nine tenths of the steps.
        end: loss after all steps.

    Returns:
        A flag with that share.
    """
    total = abs(end - start)
    share = abs(end - late) / total if total > 0 else 0.0
    if share <= 0.05:
        return None
    return Flag(
        check=2, name="loss still moves", value=share,
        message=f"the last tenth of the steps accounts for {share:.0%} of the total loss increase; not converged: take "
        "more steps.",
    )  # fmt: skip


def accuracy_not_monotone_in_eps(eps: Sequence[float], accuracies: Sequence[float]) -> Flag | None:
    """Check 3, first part: accuracy rises by over half a point from one eps to the next.

    Args:
        eps: ascending.
        accuracies: at each eps.

    Returns:
        A flag with the largest rise.
    """
    rises = [(b - a, e) for a, b, e in zip(accuracies[:-1], accuracies[1:], eps[1:], strict=True)]
    worst, at = max(rises, default=(0.0, 0.0))
    if worst <= 0.005:
        return None
    return Flag(
        check=3, name="the budget does not bite", value=worst,
        message=f"accuracy is not monotone in eps: it rises by {100 * worst:.1f} points at the larger eps {at:.4g}, so "
        "the attack misses what it finds in a smaller eps ball. Try more steps or restarts, or an attack without "
        "gradients (square).",
    )  # fmt: skip


def above_chance_without_eps_limit(accuracy: float, chance: float, *, minimum_norm: bool = False) -> Flag | None:
    """Check 3, second part: accuracy stays above chance where any image is allowed.

    Args:
        accuracy: under the attack, with an eps ball that covers the whole image space, or at any distance.
        chance: 1 / classes.
        minimum_norm: True for a minimum-norm attack, which has no eps ball.

    Returns:
        A flag with the accuracy.
    """
    if accuracy <= chance:
        return None
    allowed = "with no limit on the distance" if minimum_norm else "with an eps ball that covers the whole image space"
    advice = (
        "take more steps or binary_search_steps; if that does not help, the gradients mislead: try square"
        if minimum_norm
        else "the gradients mislead: try square"
    )
    return Flag(
        check=3, name="the budget does not bite", value=accuracy,
        message=f"{allowed} {accuracy:.1%} are still classified correctly, where an attack that works leaves at most "
        f"{chance:.1%} (1 / classes): {advice}.",
    )  # fmt: skip


def masked_gradients(correct: Mask, square: Mask) -> Flag | None:
    """Check 5: an attack without gradients succeeds on over .2 points of what is left by one with gradients.

    Args:
        correct: correct [n] under the attack.
        square: correct [n] under Square.

    Returns:
        A flag with the share of examples that Square alone finds.
    """
    lost = float(np.mean(correct & ~square))
    if not _is_notable(lost, 0.002, len(correct)):
        return None
    return Flag(
        check=5, name="masked gradients", value=lost,
        message=f"Square, which sees no gradients, succeeds on a further {100 * lost:.1f} points of {len(correct)} "
        "examples: the gradients hide adversarial examples. Report the attack strong.",
    )  # fmt: skip


def last_iterate_not_best(correct: Mask, first_success: Mask) -> Flag | None:
    """Check 7: examples that are misclassified at an earlier iterate, but not at the last.

    Args:
        correct: correct [n] at the last iterate.
        first_success: correct [n] where the first success is kept.

    Returns:
        A flag with their share where it is over half a point.
    """
    lost = float(np.mean(correct & ~first_success))
    if not _is_notable(lost, 0.005, len(correct)):
        return None
    return Flag(
        check=7, name="the last iterate, not the best", value=lost,
        message=f"{lost:.1%} of {len(correct)} examples are misclassified at an earlier iterate, not at the last: with "
        "keep first_success they count.",
    )  # fmt: skip


def noise_as_strong(correct: Mask, noisy: Mask) -> Flag | None:
    """Check 8: random points of the eps ball leave no more examples correct than the attack does.

    Args:
        correct: correct [n] under the attack.
        noisy: correct [n] at each of some random points.

    Returns:
        A flag with the accuracy at random points, where the attack leaves some examples and the points harm some.
    """
    attack, random = float(np.mean(correct)), float(np.mean(noisy))
    if random > attack or random == 1.0 or attack == 0.0:
        return None
    return Flag(
        check=8, name="noise as strong as the attack", value=random,
        message=f"random points of the eps ball leave {random:.1%} of {len(correct)} examples correct, the attack "
        f"{attack:.1%}: the attack is no better than random noise. Try more steps or an attack without "
        "gradients (square).",
    )  # fmt: skip


def image_is_not_stored_image(correct: Mask, rounded: Mask) -> Flag | None:
    """Check 12: images rounded to 8 bits a pixel give another accuracy, by more than half a point.

    Args:
        correct: correct [n] on the adversarial examples.
        rounded: correct [n] on the rounded ones.

    Returns:
        A flag with the change.
    """
    change = float(np.mean(rounded) - np.mean(correct))
    if not _is_notable(change, 0.005, len(correct)):
        return None
    return Flag(
        check=12, name="the image is not the stored image", value=change,
        message="success depends on sub-8-bit precision: rounded to 8 bits a pixel the accuracy changes by "
        f"{100 * change:+.1f} points.",
    )  # fmt: skip


def too_few_restarts(correct: Mask, restarted: Mask) -> Flag | None:
    """Check 13: one more random start succeeds on more than half a point of what is left.

    Args:
        correct: correct [n] under the attack.
        restarted: correct [n] with another random start.

    Returns:
        A flag with the share of examples that the other start finds.
    """
    lost = float(np.mean(correct & ~restarted))
    if not _is_notable(lost, 0.005, len(correct)):
        return None
    return Flag(
        check=13, name="too few restarts", value=lost,
        message=f"another random start succeeds on a further {100 * lost:.1f} points of {len(correct)} examples: take "
        "more restarts.",
    )  # fmt: skip


def _is_notable(change: float, threshold: float, n: int) -> bool:
    """True for a change of accuracy above its threshold, and of more than one example."""
    return abs(change) > max(threshold, 1.001 / n)
