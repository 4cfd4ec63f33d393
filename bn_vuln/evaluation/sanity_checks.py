"""Sanity checks of robustness numbers, each a function that returns a flag or None.

docs/method/checks.md lists them by number; the evaluator runs them and puts the flags into the record. A flag carries
the value that tripped it and says what to do. Shapes: n examples; `correct` is bool [n], True where the image is
classified correctly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from bn_vuln.analysis import metrics
from bn_vuln.analysis.statistics import Proportion
from bn_vuln.attacks.losses import log_odds
from bn_vuln.attacks.threat_model import ThreatModel
from bn_vuln.config import AWGN, Attack, MinimumNorm
from bn_vuln.records import Flag
from bn_vuln.runtime import backend, ops
from bn_vuln.runtime.batch_size import map_batches
from bn_vuln.typing import DatasetImages, Floats, Images, KerasModel, Labels, Logits, Mask, Predict, Tensor

SAMPLE = 1000  # examples of a check that costs more than comparing arrays
ONE_CLASS = 0.95  # of the predictions
TOLERANCE = 1e-5  # of eps, for a point on the border of its eps ball
FLOAT32_STEP = float(np.finfo(np.float32).eps)


def gradients(
    predict: Predict, x: Images, y: Labels, batch_size: int = SAMPLE, *, cause: str | None = None
) -> Flag | None:
    """Check 4: the share of examples whose input gradient is all zero, or not finite.

    Args:
        predict: pixels -> logits, differentiable.
        x: clean images, pixels [n, height, width, channels]; the first `SAMPLE` are taken.
        y: true classes [n].
        batch_size: examples at a time.
        cause: why there are none and what to do, where it is known: "the model casts its input to integers; ...".

    Returns:
        A flag where there are any; the gradient is that of the loss that attacks maximize.
    """

    def largest_slope(images: Tensor, labels: Tensor) -> object:  # `losses.input_gradient` would take NaN for 0
        _, gradient, _ = backend.value_and_gradient(lambda x: (log_odds(predict(x), labels), None), images)
        return ops.max(ops.abs(gradient), axis=list(range(1, len(images.shape))))

    x, y = x[:SAMPLE], y[:SAMPLE]
    (largest,) = map_batches(backend.compile(largest_slope), x, y, batch_size=batch_size)
    # The maximum of |g| is NaN-safe only in NumPy: XLA and TensorFlow may drop a NaN.
    useless = float(np.mean(~np.isfinite(largest) | (largest == 0)))
    if useless == 0:
        return None
    return Flag(
        check=4,
        name="zero or non-finite gradients",
        value=useless,
        message=f"{useless:.1%} of {len(largest)} examples have no usable input gradient: a gradient attack cannot "
        "move them, so the accuracy under it is an upper bound. "
        + (f"The cause: {cause}." if cause else "Try an attack without gradients (square)."),
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
    before = _digests(model)
    batch = x[: min(32, len(x))]
    passes = [np.asarray(predict(batch)) for _ in range(5)]
    alone = np.concatenate([np.asarray(predict(batch[i : i + 1])) for i in range(min(4, len(batch)))])
    spread = max(float(np.abs(p - passes[0]).max()) for p in passes)
    # Batches of other sizes may be summed in another order: rounding errors are allowed.
    scale = float(np.abs(passes[0]).max()) + FLOAT32_STEP
    split = float(np.abs(alone - passes[0][: len(alone)]).max())
    for failed, value, description in (
        (_digests(model) != before, 1.0, "predicting changed the model's variables"),
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


def _digests(model: KerasModel) -> list[bytes]:
    """A hash of the bytes of each variable: a copy of all would take as much memory as the model."""
    arrays = (np.ascontiguousarray(np.asarray(variable)) for variable in model.variables)
    return [hashlib.sha256(array.view(np.uint8).data).digest() for array in arrays]


def logits_not_probabilities(outputs: Logits) -> Flag | None:
    """Check 10: outputs [n, classes] that are probabilities, rows in [0, 1] that sum to 1, and no logits."""
    rows = np.all((outputs >= 0) & (outputs <= 1), axis=1) & (np.abs(outputs.sum(axis=1) - 1) < 1e-3)
    share = float(np.mean(rows))
    if share < 0.99:
        return None
    return Flag(
        check=10, name="probabilities instead of logits", value=share,
        message="the model's outputs are probabilities: the loss saturates and attacks look weaker than they are. "
        "A softmax that ends a model is taken off, so this one has two of them, or something like one: save it "
        "without.",
    )  # fmt: skip


def outputs_in_unit_interval(outputs: Logits) -> Flag | None:
    """Check 10, second part: outputs [n, classes] that all lie in [0, 1] and are no softmax."""
    inside = np.all((outputs >= 0) & (outputs <= 1), axis=1)
    share = float(np.mean(inside))
    if share < 0.99 or logits_not_probabilities(outputs) is not None or np.ptp(outputs) == 0:
        return None
    return Flag(
        check=10, name="outputs in [0, 1] that are no softmax", value=share,
        message="all outputs lie in [0, 1] but do not sum to 1, as those of a sigmoid for each class do: taken as "
        "logits the attacks' loss saturates and the model looks more robust than it is. If each is a probability, pass "
        "--output sigmoid, or save the model without its last activation.",
    )  # fmt: skip


# ---------------------------------------------------------------- clean images


def of_clean_images(
    images: DatasetImages,
    labels: Labels,
    logits: Logits,
    *,
    doubts: Sequence[str] = (),
    input_scale: str | None = None,
    has_tracked_bn: bool = False,
) -> tuple[Flag, ...]:
    """Checks 10 (second part), 19, 20, 23 and 25: what the clean images and their logits say of model and data.

    Args:
        images: as they are stored, [n, height, width, channels].
        labels: true classes [n].
        logits: of the clean images [n, classes].
        doubts: what was found doubtful about the data when they were read, a sentence each.
        input_scale: what becomes of pixels before an external model gets them; None for a run of this package.
        has_tracked_bn: True for a model with BN that has the statistics tracked in training.

    Returns:
        The flags.
    """
    guessing = near_guessing(logits, labels, input_scale=input_scale, has_tracked_bn=has_tracked_bn)
    found = (
        guessing,
        labels_in_another_order(logits, labels) if guessing is None else None,  # which names that cause
        one_class_predicted(logits, labels),
        *(map(doubtful_data, doubts) if doubts else [dark_images(images)]),
        outputs_in_unit_interval(logits[:SAMPLE]),
    )
    return tuple(flag for flag in found if flag is not None)


def near_guessing(
    logits: Logits, labels: Labels, *, input_scale: str | None = None, has_tracked_bn: bool = False
) -> Flag | None:
    """Check 19: the 95% Wilson interval of the clean accuracy reaches that of guessing.

    Guessing is right for the larger of 1 / classes and the share of the commonest label.

    Args:
        logits: of the clean images [n, classes].
        labels: true classes [n].
        input_scale: as in `of_clean_images`.
        has_tracked_bn: as in `of_clean_images`.

    Returns:
        A flag with the accuracy and its likely causes, the likeliest first.
    """
    n, classes = logits.shape
    correct = Proportion(int(metrics.is_correct(logits, labels).sum()), n)
    guessing = max(1 / classes, float(np.bincount(labels).max()) / n)
    interval = correct.interval()
    if interval is None or interval[0] > guessing:
        return None
    reordered = metrics.accuracy_in_best_order(logits, labels) or 0.0
    causes = []
    fits_better = reordered > (1 + guessing) / 2
    if fits_better:
        causes.append(
            f"the labels are in another order than the outputs, since in the order that fits best {reordered:.1%} are "
            "correct (--class-names FILE, the classes in the order of the outputs)"
        )
    elif interval[1] - interval[0] > 0.3:
        causes.append(f"{n} images are too few to tell: measure more (--limit)")
    if input_scale is not None:
        others = ", ".join(name for name in ("0-1", "0-255", "-1-1") if name != input_scale)
        causes.append(f"pixels go in as {input_scale}, and the model takes others (--input-scale {others}, ...)")
        if not fits_better:
            causes.append("the labels are in another order than the outputs (--class-names FILE)")
    if has_tracked_bn:
        causes.append("the BN statistics are stale (--bn-statistics reestimated)")
    causes.append("these are not the data, or not the split, that the model is for (--data, --split)")
    return Flag(
        check=19, name="clean accuracy near guessing", value=correct.count / n,
        message=f"clean accuracy {correct.count / n:.1%} of {n} images (95% interval {interval[0]:.1%} to "
        f"{interval[1]:.1%}) is no better than guessing ({guessing:.1%}), so no accuracy under a perturbation says "
        "anything. Likely causes, the likeliest first: " + "; ".join(causes) + ".",
    )  # fmt: skip


def one_class_predicted(logits: Logits, labels: Labels) -> Flag | None:
    """Check 20: at least 95% of the clean images are predicted as one class, and fewer labels are of one class.

    Args:
        logits: of the clean images [n, classes].
        labels: true classes [n].

    Returns:
        A flag with the share of that class.
    """
    predicted = np.bincount(logits.argmax(axis=1))
    share, of_labels = float(predicted.max()) / len(labels), float(np.bincount(labels).max()) / len(labels)
    if share < ONE_CLASS or of_labels >= ONE_CLASS:
        return None
    return Flag(
        check=20, name="nearly all images in one class", value=share,
        message=f"{share:.1%} of the clean images are predicted as class {predicted.argmax()}, while the commonest "
        f"label has {of_labels:.1%}. Images at another scale than those of the training do that (--input-scale), stale "
        "BN statistics (--bn-statistics reestimated), and a model that did not learn.",
    )  # fmt: skip


def labels_in_another_order(logits: Logits, labels: Labels) -> Flag | None:
    """Check 25: with the outputs in another order far more of the clean images are classified correctly.

    Args:
        logits: of the clean images [n, classes].
        labels: true classes [n].

    Returns:
        A flag with the accuracy in the order that fits best, where it is above a half, and better by more than 5 points
        and than chance makes it: the 95% Wilson intervals are apart.
    """
    n, best = len(labels), metrics.accuracy_in_best_order(logits, labels)
    own = Proportion(int(metrics.is_correct(logits, labels).sum()), n)
    if best is None or not best > max(0.5, own.count / n + 0.05):
        return None
    lower, upper = Proportion(round(best * n), n).interval(), own.interval()
    if lower is None or upper is None or lower[0] <= upper[1]:
        return None
    return Flag(
        check=25, name="labels in another order", value=best,
        message=f"{own.count / n:.1%} of the clean images are classified correctly, and {best:.1%} with the classes in "
        "another order: the labels seem not to be in the order of the model's outputs. Name the classes in that order "
        "(--class-names FILE), or check the labels.",
    )  # fmt: skip


def doubtful_data(doubt: str) -> Flag:
    """Check 23: what was found doubtful about the data when they were read, a sentence."""
    return Flag(check=23, name="doubtful data", value=1.0, message=doubt)


def dark_images(images: DatasetImages) -> Flag | None:
    """Check 23: uint8 images [n, ...], as they are stored, whose values are all 0 and 1; the first `SAMPLE` count."""
    some = np.asarray(images[:SAMPLE])
    if some.dtype != np.uint8 or not len(some) or some.max() > 1:
        return None
    return Flag(
        check=23, name="doubtful data", value=float(some.max()),
        message=f"the images are uint8 and all their values are {'0 and 1' if some.max() else '0'}: uint8 is divided "
        "by 255, so they are nearly black. Save them as float if 1 is white, or times 255.",
    )  # fmt: skip


def trained_on(share: float) -> Flag:
    """Check 26: this share of the images is what the run was trained on."""
    return Flag(
        check=26, name="measured on training images", value=share,
        message=f"up to {share:.1%} of these images are those that the run was trained on or chosen by, so its "
        "accuracies are too high; measure the images that it has not seen (--split test).",
    )  # fmt: skip


def doubtful_input_scale(text: str) -> Flag:
    """Check 27: an input scale was given, and the model fits another clearly better; `text` says which."""
    return Flag(check=27, name="doubtful input scale", value=1.0, message=text)


# ---------------------------------------------------------------- eps and box


def eps_says_nothing(options: Attack, threat_model: ThreatModel, image_shape: Sequence[int]) -> Flag | None:
    """Check 21: eps is 0, or the eps ball holds the whole box.

    Args:
        options: the attack.
        threat_model: its threat model.
        image_shape: (height, width, channels).

    Returns:
        A flag with eps.
    """
    if options.eps == 0:
        return Flag(check=21, name="eps is 0", value=0.0,
                    message="eps is 0: no pixel may change, so this is the clean accuracy.")  # fmt: skip
    height, width, channels = image_shape
    sides = np.broadcast_to(np.subtract(threat_model.high, threat_model.low) / threat_model.scale, channels)
    sides = sides.astype(np.float64)
    length = sides.max() if options.ord == "inf" else float(np.sqrt(height * width * np.sum(sides**2)))
    if not options.eps >= length * (1 - TOLERANCE):
        return None
    meant = f" Was --eps {options.eps:g}/255 meant?" if options.unit == "pixel" and 1 <= options.eps <= 255 else ""
    return Flag(
        check=21, name="eps holds the whole box", value=options.eps,
        message=f"eps {options.eps:g} holds the whole box ({'width' if options.ord == 'inf' else 'diagonal'} "
        f"{length:.4g}): any image is allowed, so the number says nothing about the model. eps is in units of pixels "
        f"in [0, 1].{meant}"
        if options.unit == "pixel"
        else f"eps {options.eps:g} holds the whole box ({length:.4g}): any image is allowed, so the number says "
        "nothing about the model. Take a smaller eps.",
    )  # fmt: skip


def units_of_255(options: Attack | MinimumNorm | AWGN) -> Flag | None:
    """Check 22: a box, an eps of the norm inf, or a noise, in pixels, that is far larger than [0, 1].

    Args:
        options: the attack or the noise.

    Returns:
        A flag with the number.
    """
    box = options.clip if isinstance(options, AWGN) else options.box
    if isinstance(box, tuple) and box[1] > 2:
        return Flag(
            check=22, name="units of 255", value=box[1],
            message=f"the box goes to {box[1]:g}, but pixels are in [0, 1] here, whatever the model takes: it holds "
            "images that are none. Leave the box out; what the model takes is for --input-scale.",
        )  # fmt: skip
    size = options.eps if isinstance(options, Attack) else options.std if isinstance(options, AWGN) else 0.0
    if options.unit != "pixel" or size <= 1 or (isinstance(options, Attack) and options.ord != "inf"):
        return None
    what = "eps" if isinstance(options, Attack) else "std"
    return Flag(
        check=22, name="units of 255", value=size,
        message=f"{what} {size:g} is larger than the whole range of pixels, which are in [0, 1] here, whatever the "
        f"model takes. Was {size:g}/255 meant?",
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
        f"{100 * change:+.1f} points. Of images that are stored in 8 bits, report the accuracy after rounding.",
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


def weaker_than_a_short_attack(beaten: Mask, left: int, n: int) -> Flag | None:
    """Check 24: a short apgd-t succeeds on more than 3 images, and 2 points, of what an attack left.

    Args:
        beaten: bool [m], of some images that the attack left correct: where the short one succeeds.
        left: number of images that the attack left.
        n: number of images.

    Returns:
        A flag with the points of accuracy that it takes, as a fraction.
    """
    found, points = int(beaten.sum()), float(left / n * np.mean(beaten)) if len(beaten) else 0.0
    if found <= 3 or points <= 0.02:
        return None
    return Flag(
        check=24, name="weaker than a short attack", value=points,
        message=f"of {len(beaten)} images that the attack left correct, a short apgd-t finds {found} more: about "
        f"{100 * points:.1f} points of accuracy. The attack is too weak, and the accuracy under it an upper bound. "
        "Report the attack strong (--attack strong).",
    )  # fmt: skip


def _is_notable(change: float, threshold: float, n: int) -> bool:
    """True for a change of accuracy above its threshold, and of more than one example."""
    return abs(change) > max(threshold, 1.001 / n)
