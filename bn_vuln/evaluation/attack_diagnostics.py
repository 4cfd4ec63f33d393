"""Attack diagnostics: further attacks on a sample that verify an attack, checks 1 to 3, 5, 7, 8, 12, 13 and 24.

docs/method/checks.md lists them. `basic` takes a quarter of the examples (at most 1,000) with one gradient step, a few
random points and the rounded images, and up to 100 of those that were left with a short attack; `full` takes 1,000
examples with attacks of several times the cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np

from bn_vuln import attacks
from bn_vuln.analysis import metrics
from bn_vuln.config import Attack, Clean, Perturbation
from bn_vuln.data import units
from bn_vuln.evaluation import sanity_checks
from bn_vuln.evaluation.eval_set import EvalSet
from bn_vuln.evaluation.result import Result
from bn_vuln.records import Flag
from bn_vuln.runtime import backend
from bn_vuln.typing import Images, Index, KerasModel, Mask, Plain

Checks = Literal["none", "basic", "full"]
N_RANDOM_POINTS = 4  # of the eps ball
QUERIES = 1000  # of Square, to see whether it finds more
SHORT: Plain = {"attack": "apgd-t", "steps": 10, "targets": 2}  # an attack on up to 100 of the images that were left
SHORT_IMAGES = 100
SHORT_SHARE = 0.2  # of the evaluations of the attack itself that the short one may take, or, of small models,
SHORT_MULTIPLICATIONS = 1e10  # as many as take this many multiplications: some seconds
STREAM = 12  # seed of the random points: another stream than an attack's starting points


class Evaluator(Protocol):
    """An evaluator, as far as diagnostics use it; see `evaluator.Evaluator`."""

    eval_set: EvalSet

    def subset(self, positions: Index, /) -> Evaluator:
        """Return the same on the examples at these positions."""

    def run(self, perturbation: Perturbation, /) -> Result:
        """Measure one perturbation."""


def sample_positions(eval_set: EvalSet, checks: Checks) -> Index:
    """Return the positions of the examples that are attacked again: evenly spaced, as a split has an order."""
    n = len(eval_set)
    wanted = min(eval_set.sample_size, n if checks == "full" else max(n // 4, min(n, 100)))
    return np.linspace(0, n - 1, wanted).astype(np.int64)


class Sample:
    """Examples to be attacked again, with `correct` bool [m] and `images` [m, ...] of the first attack."""

    def __init__(self, evaluator: Evaluator, result: Result, checks: Checks) -> None:
        """Take examples evenly spaced over the eval set of an attack with this result."""
        positions = sample_positions(evaluator.eval_set, checks)
        self.evaluator = evaluator.subset(positions)
        self.eval_set = self.evaluator.eval_set
        self.correct = result.correct[positions]
        self.images = result.images if result.positions is not None else result.images[positions]
        self.info = self.eval_set.classifier.info

    def correct_on(self, images: Images) -> Mask:
        """Correct, bool [m], on images [m, ...]."""
        return metrics.is_correct(self.eval_set.logits(images), self.eval_set.labels)

    def attack(self, options: Attack) -> Result:
        """Return the result of another attack on the sample."""
        return self.evaluator.run(options)

    def correct_at_random(self, options: Attack, number: int) -> Mask:
        """Correct at one random point in the eps ball of each example."""
        threat_model = attacks.from_config(options, self.info)
        x, index = backend.place(self.eval_set.pixels), backend.place(self.eval_set.index)
        return self.correct_on(np.asarray(threat_model.random_point(x, index, STREAM, number)))

    def correct_when_rounded(self) -> Mask:
        """Correct on the adversarial examples rounded to 1/255 of a pixel.

        They are not moved into the box: an attack without one says so in its settings, and clipping would be another
        threat model.
        """
        return self.correct_on((np.round(self.images * 255) / 255).astype(np.float32))

    def clean_loss(self) -> float | None:
        """Mean cross-entropy of the clean images."""
        return self.evaluator.run(Clean()).record.loss


def flags(evaluator: Evaluator, options: Attack, result: Result, checks: Checks) -> tuple[Flag, ...]:
    """Return the flags of an attack from further attacks on a sample of its examples.

    Args:
        evaluator: the evaluator that the attack ran on.
        options: the attack.
        result: its result.
        checks: the effort, `none`, `basic` or `full`.

    Returns:
        The checks that tripped. Targeted attacks have none, nor do classifiers with the BN statistics of the batch,
        where a sample of the examples is another batch.
    """
    if checks == "none" or options.target != "none" or not options.eps or evaluator.eval_set.classifier.training:
        return ()
    sample = Sample(evaluator, result, checks)
    at_min_eps = bool(options.eps_grid) or options.min_eps_tolerance is not None
    options = options.model_copy(update={"eps_grid": (), "min_eps_tolerance": None})
    found = [
        *_basic(sample, options, at_min_eps),
        _short(evaluator, options, result),
        *(_full(sample, options) if checks == "full" else ()),
    ]
    return tuple(flag for flag in found if flag)


def _basic(sample: Sample, options: Attack, at_min_eps: bool) -> Iterator[Flag | None]:
    """`at_min_eps`: the images are those of each example's smallest eps, so that rounding undoes more of them."""
    if options.attack != "fgsm":
        yield sanity_checks.weaker_than_one_step(sample.correct, sample.attack(_other(options, attack="fgsm")).correct)
    noisy = np.logical_and.reduce([sample.correct_at_random(options, number) for number in range(N_RANDOM_POINTS)])
    yield sanity_checks.noise_as_strong(sample.correct, noisy)
    if not at_min_eps:
        yield sanity_checks.image_is_not_stored_image(sample.correct, sample.correct_when_rounded())


def _short(evaluator: Evaluator, options: Attack, result: Result) -> Flag | None:
    """Attack some of the images that were left with another, short attack."""
    if options.attack in ("strong", "apgd-t"):
        return None
    left, n = np.flatnonzero(result.correct), len(result.correct)
    each = SHORT["steps"] * min(SHORT["targets"], len(evaluator.eval_set.dataset.info.classes) - 1)
    own = n * (result.record.n_evaluations or options.steps * options.restarts)
    small = SHORT_MULTIPLICATIONS / multiplications(evaluator.eval_set.classifier.model)
    wanted = min(SHORT_IMAGES, len(left), int(max(SHORT_SHARE * own, small) / each))
    if not wanted:
        return None
    chosen = left[np.linspace(0, len(left) - 1, wanted).astype(np.int64)]
    short = evaluator.subset(chosen).run(_other(options, **SHORT))
    return sanity_checks.weaker_than_a_short_attack(~short.correct, len(left), n)


def multiplications(model: KerasModel) -> float:
    """Return roughly how many multiplications one example takes: each weight at each place of a layer's output."""
    total = 1.0
    for layer in backend.leaf_layers(model):
        shape = getattr(getattr(layer, "output", None), "shape", None) or ()
        total += sum(float(np.prod(w.shape)) for w in layer.weights) * float(np.prod([s or 1 for s in shape[1:-1]]))
    return total


def _full(sample: Sample, options: Attack) -> Iterator[Flag | None]:
    correct = sample.correct
    if options.attack not in ("fgsm", "square", "strong"):
        longer = options.model_copy(update={"steps": 2 * options.steps})
        yield sanity_checks.not_converged(correct, sample.attack(longer).correct)
    if options.attack in ("bim", "pgd"):
        yield _loss_moves(sample, options)
    yield _budget(sample, options)
    if options.attack not in ("square", "strong"):
        square = _other(options, attack="square", steps=QUERIES)
        yield sanity_checks.masked_gradients(correct, sample.attack(square).correct)
    if options.keep == "last" and options.attack != "fgsm":
        first_success = options.model_copy(update={"keep": "first_success", "backend": "own"})
        yield sanity_checks.last_iterate_not_best(correct, sample.attack(first_success).correct)
    if options.random_start:
        again = options.model_copy(update={"seed": options.seed + 1, "restarts": 1})
        yield sanity_checks.too_few_restarts(correct, sample.attack(again).correct)


def _loss_moves(sample: Sample, options: Attack) -> Flag | None:
    """Compare the losses of the last iterates after .9 of the steps and after all."""
    if options.steps < 10:
        return None
    last = options.model_copy(update={"keep": "last", "restarts": 1})
    late = last.model_copy(update={"steps": round(0.9 * options.steps)})
    start, before, end = sample.clean_loss(), sample.attack(late).record.loss, sample.attack(last).record.loss
    if start is None or before is None or end is None:
        return None
    return sanity_checks.loss_still_moves(start, before, end)


def _budget(sample: Sample, options: Attack) -> Flag | None:
    """Attack at half, twice and four times the eps, and with an eps ball that covers the whole image space.

    Of `strong` its first attack is enough to see whether eps matters.
    """
    if options.attack == "strong":
        options = _other(options, attack="apgd-ce", steps=options.steps)

    def scaled(factor: float) -> Attack:
        size = None if options.step_size is None else factor * options.step_size
        return options.model_copy(update={"eps": factor * options.eps, "step_size": size})

    factors = (0.5, 1.0, 2.0, 4.0)
    accuracies = [sample.attack(scaled(factor)).record.accuracy for factor in factors]
    pixel_range = 1 / units.channel_scale(options.unit, sample.info)  # the length of [0, 1] in the unit of eps
    height, width = sample.images.shape[1:3]
    diameter = pixel_range.max() if options.ord == "inf" else np.sqrt(height * width * np.sum(pixel_range**2))
    everything = scaled(float(diameter) / options.eps)
    whole = sample.attack(everything.model_copy(update={"box": (0.0, 1.0)})).record.accuracy
    eps = [factor * options.eps for factor in factors]
    return sanity_checks.accuracy_not_monotone_in_eps(eps, accuracies) or sanity_checks.above_chance_without_eps_limit(
        whole, 1 / len(sample.info.classes)
    )


def _other(options: Attack, **fields: object) -> Attack:
    """Return another attack with the same threat model."""
    same = {key: getattr(options, key) for key in ("ord", "eps", "unit", "box", "seed")}
    return Attack.model_validate({**same, **fields})
