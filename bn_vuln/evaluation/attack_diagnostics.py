"""Further attacks on a sample, to see whether an attack was as strong as it looks: checks 1 to 3, 5, 7, 8, 12 and 13.

docs/method/checks.md lists them. `basic` looks at a quarter of the examples (at most 1,000) with one gradient, a few
random points and the rounded images; `full` at 1,000 with attacks of several times the cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bn_vuln import attacks
from bn_vuln.analysis import metrics
from bn_vuln.config import Attack, Clean
from bn_vuln.data import units
from bn_vuln.data.info import DatasetInfo
from bn_vuln.evaluation import sanity_checks
from bn_vuln.records import Flag
from bn_vuln.runtime import backend

Level = Literal["none", "basic", "full"]
POINTS = 4  # random points of the ball
QUERIES = 1000  # of Square, to see whether it finds more
STREAM = 12  # seed of the random points: another stream than an attack's starts
Correct = NDArray[np.bool_]


class Evaluator(Protocol):
    """What is used of `evaluate.Evaluator`; its docstrings hold."""

    classifier: Any
    dataset: Any

    @property
    def pixels(self) -> NDArray[np.float32]: ...
    def some(self, positions: NDArray[np.int64]) -> Evaluator: ...
    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]: ...
    def run(self, perturbation: Any) -> Any: ...


class Sample:
    """Some of the examples that were attacked, to be attacked again: `correct` bool [m] and `images` [m, ...] of the
    attack in question."""

    def __init__(self, evaluator: Evaluator, result: Any, level: Level) -> None:
        n = len(result.correct)
        wanted = min(sanity_checks.SAMPLE, n if level == "full" else max(n // 4, min(n, 100)))
        positions = np.linspace(0, n - 1, wanted).astype(np.int64)  # all along: a split may be in an order
        self.evaluator = evaluator.some(positions)
        self.correct, self.images = result.correct[positions], result.images[positions]
        self.info: DatasetInfo = evaluator.classifier.info
        self.index = self.evaluator.dataset.index.astype(np.int32)

    def at(self, images: NDArray[np.float32]) -> Correct:
        """Correct of images."""
        logits = self.evaluator.logits(images)
        return metrics.predicted(logits, self.evaluator.dataset.labels)

    def under(self, options: Attack) -> Any:
        """The result of another attack."""
        return self.evaluator.run(options)

    def at_random(self, options: Attack, number: int) -> Correct:
        """Correct at a random point of each example's ball."""
        threat_model, x = attacks.from_config(options, self.info), self.evaluator.pixels
        return self.at(
            np.asarray(threat_model.random_point(backend.tensorflow().constant(x), self.index, STREAM, number))
        )

    def rounded(self) -> Correct:
        """Correct of the adversarial examples, rounded to 1/255 of a pixel. They are not moved into the box: an attack
        without one says so in its settings, and clipping would be another threat model."""
        return self.at((np.round(self.images * 255) / 255).astype(np.float32))

    def clean_loss(self) -> float | None:
        """The mean cross-entropy of the clean images."""
        loss: float | None = self.evaluator.run(Clean()).record.loss
        return loss


def flags(evaluator: Evaluator, options: Attack, result: Any, level: Level) -> tuple[Flag, ...]:
    """The flags of an attack with this result."""
    # Where an example's logits depend on its batch, a sample of the examples is another batch.
    if level == "none" or options.target != "none" or not options.eps or evaluator.classifier.training:
        return ()
    sample = Sample(evaluator, result, level)
    nearest = options.min_eps_tolerance is not None or bool(
        options.eps_grid
    )  # then an image is where a smaller eps ended
    options = options.model_copy(update={"eps_grid": (), "min_eps_tolerance": None})
    found = [*_basic(sample, options, nearest), *(_full(sample, options) if level == "full" else ())]
    return tuple(flag for flag in found if flag)


def _basic(sample: Sample, options: Attack, nearest: bool) -> Iterator[Flag | None]:
    """`nearest`: the images are those of each example's smallest eps, so that rounding undoes more of them."""
    if options.attack != "fgsm":
        yield sanity_checks.weaker_than_one_step(sample.correct, sample.under(_other(options, attack="fgsm")).correct)
    noisy = np.logical_and.reduce([sample.at_random(options, number) for number in range(POINTS)])
    yield sanity_checks.noise_as_strong(sample.correct, noisy)
    if not nearest:
        yield sanity_checks.lost_by_rounding(sample.correct, sample.rounded())


def _full(sample: Sample, options: Attack) -> Iterator[Flag | None]:
    correct = sample.correct
    if options.attack not in ("fgsm", "square", "strong"):
        longer = options.model_copy(update={"steps": 2 * options.steps})
        yield sanity_checks.not_converged(correct, sample.under(longer).correct)
    if options.attack in ("bim", "pgd"):
        yield _loss_moves(sample, options)
    yield _budget(sample, options)
    if options.attack not in ("square", "strong"):
        square = _other(options, attack="square", steps=QUERIES)
        yield sanity_checks.masked_gradients(correct, sample.under(square).correct)
    if options.keep == "last" and options.attack != "fgsm":
        any_iterate = options.model_copy(update={"keep": "first_success", "backend": "own"})
        yield sanity_checks.fooled_on_the_way(correct, sample.under(any_iterate).correct)
    if options.random_start:
        again = options.model_copy(update={"seed": options.seed + 1, "restarts": 1})
        yield sanity_checks.too_few_restarts(correct, sample.under(again).correct)


def _loss_moves(sample: Sample, options: Attack) -> Flag | None:
    """The losses at the last points after .9 of the steps and after all."""
    if options.steps < 10:
        return None
    last = options.model_copy(update={"keep": "last", "restarts": 1})
    late = last.model_copy(update={"steps": round(0.9 * options.steps)})
    losses = sample.clean_loss(), sample.under(late).record.loss, sample.under(last).record.loss
    return None if None in losses else sanity_checks.loss_still_moves(*losses)  # type: ignore[arg-type]


def _budget(sample: Sample, options: Attack) -> Flag | None:
    """The attack at half, twice and four times its eps, and with all images for a ball. Of `strong` its first attack,
    which is enough to see whether eps matters."""
    if options.attack == "strong":
        options = _other(options, attack="apgd-ce", steps=options.steps)
    factors = (0.5, 1.0, 2.0, 4.0)
    accuracies = [sample.under(_scaled(options, factor)).record.accuracy for factor in factors]
    everything = _scaled(options, _diameter(sample, options) / options.eps)
    whole = sample.under(everything.model_copy(update={"box": (0.0, 1.0)})).record.accuracy
    eps = [factor * options.eps for factor in factors]
    return sanity_checks.budget_does_not_bite(eps, accuracies, whole, 1 / len(sample.info.classes))


def _scaled(options: Attack, factor: float) -> Attack:
    size = None if options.step_size is None else factor * options.step_size
    return options.model_copy(update={"eps": factor * options.eps, "step_size": size})


def _diameter(sample: Sample, options: Attack) -> float:
    """An eps whose ball holds all images with pixels in [0, 1]."""
    across = 1 / units.channel_scale(options.unit, sample.info)
    if options.ord == "inf":
        return float(across.max())
    height, width = sample.images.shape[1:3]
    return float(np.sqrt(height * width * np.sum(across**2)))


def _other(options: Attack, **fields: Any) -> Attack:
    """Another attack in the same ball."""
    same = {key: getattr(options, key) for key in ("ord", "eps", "unit", "box", "seed")}
    return Attack(**same, **fields)
