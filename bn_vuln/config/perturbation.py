"""Perturbations that a model is evaluated under: none, noise, corruptions, attacks, transfer; and the images.

The eps ball of an attack is ||(x' - x) / scale||_ord <= eps. The scale is 1 in pixel units, and the std of the training
images, per channel, in standardized units. The box, a range of pixels, is applied last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from bn_vuln.config.types import (
    OR_NULL,
    OR_TWO,
    Count,
    Frozen,
    Index,
    Interval,
    NonNegative,
    Positive,
    Severity,
    parse_integer,
    parse_number,
    reject_if,
)

Unit = Literal["pixel", "standardized"]
Norm = Annotated[Literal["inf", "2"], BeforeValidator(str), OR_TWO]


class StandardizedBox(Frozen):
    """A box in standardized units, (x - mean) / std per channel."""

    standardized: Interval = Field(description="Lower and upper bound.")


def _parse_box(value: Any) -> object:
    """Give one message for the whole union of boxes, instead of pydantic's one for each member."""
    if value is None or value == "none" or isinstance(value, StandardizedBox):
        return "none" if value is None else value
    standardized = isinstance(value, Mapping) and set(value) == {"standardized"}
    pair = value["standardized"] if standardized else value
    try:
        low, high = (float(parse_number(bound)) for bound in pair)
        if not -math.inf < low < high < math.inf:
            raise ValueError
    except (TypeError, ValueError):
        expected = "expected none, [low, high] or {standardized: [low, high]} with low < high"
        raise PydanticCustomError("box", expected) from None
    return StandardizedBox(standardized=(low, high)) if standardized else (low, high)


Box = Annotated[Literal["none"] | Interval | StandardizedBox, BeforeValidator(_parse_box), OR_NULL]


class Clean(Frozen):
    """No perturbation."""

    kind: Literal["clean"] = "clean"


class AWGN(Frozen):
    """Additive white Gaussian noise, added at the native width of the data, before any resizing."""

    kind: Literal["awgn"] = "awgn"
    std: NonNegative = Field(description="Standard deviation of the noise, in `unit`.")
    unit: Unit = Field("pixel", description="Unit of `std`.")
    clip: Box = Field(
        (0.0, 1.0), description="Range that noisy images are cut to, in pixels, or standardized where it says so."
    )
    seed: Index = Field(0, description="Seed of the noise.")


class Corruption(Frozen):
    """A noise corruption of CIFAR-10-C (Hendrycks and Dietterich 2019), named as in TFDS' cifar10_corrupted.

    It is applied to the image at its native width and gives a uint8 image. With x in pixels [0, 1], for severities 1 to
    5: `gaussian_noise` x + N(0, c), std c = .04 .06 .08 .09 .10; `shot_noise` Poisson(c x) / c, c = 500 250 100 75 50;
    `impulse_noise`: each channel of each pixel becomes 0 or 1, equally often, with probability
    c = .01 .02 .03 .05 .07; `speckle_noise` x + x N(0, c), std c = .06 .1 .12 .16 .2.
    """

    kind: Literal["corruption"] = "corruption"
    corruption: Literal["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"] = Field(
        description="Kind of noise."
    )
    severity: Severity = Field(description="Strength, 1 to 5.")
    source: Literal["auto", "made", "archive"] = Field(
        "auto",
        description="`made` from the clean images of any data set; `archive`, the published images, of the test split"
        " of cifar10; `auto`, the archive where it is on this machine and is of the images that are "
        "evaluated, else made.",
    )
    seed: Index = Field(0, description="Seed of the noise, with source `made`: the published images are fixed.")

    @model_validator(mode="after")
    def _seed_needs_made(self) -> Corruption:
        message = "seed is only allowed with source: made (the published images are fixed), received {source}"
        reject_if((self.seed and self.source != "made", message), source=self.source)
        return self


# Default steps of the attacks that do not have 20: those of AutoAttack's standard set, for the attacks that are in it.
_STEPS = {"fgsm": 1, "apgd-ce": 100, "apgd-dlr": 100, "apgd-t": 100, "fmn": 100, "square": 5000, "strong": 100}
# Attacks that choose the size of their steps themselves.
PARAMETER_FREE = ("apgd-ce", "apgd-dlr", "apgd-t", "fmn", "square", "strong")


class Attack(Frozen):
    """An attack inside the eps ball.

    `fgsm` is one step of eps, `bim` starts at the image, `pgd` at a random point of the eps ball. These choose the size
    of their steps themselves: `apgd-ce`, `apgd-dlr`, `apgd-t` (at each of `targets` classes), `fmn` (looks for the
    nearest adversarial image), `square` (without gradients; its steps are queries), and `strong`, an ensemble of
    apgd-ce, apgd-t, fmn and square, each on the images that are still classified correctly after the one before.
    """

    omitted_from_id_at_default: ClassVar[tuple[str, ...]] = (
        "top",
        "targets",
        "queries",
        "eps_grid",
        "min_eps_tolerance",
    )
    stored_names: ClassVar[dict[str, str]] = {"keep": "iterate", "eps_grid": "ladder", "min_eps_tolerance": "bisect"}
    stored_values: ClassVar[dict[str, dict[str, str]]] = {"keep": {"first_success": "any", "best_loss": "best"}}

    kind: Literal["attack"] = "attack"
    attack: Literal["fgsm", "bim", "pgd", "apgd-ce", "apgd-dlr", "apgd-t", "fmn", "square", "strong"] = Field(
        "pgd", description="The attack."
    )
    ord: Norm = Field(
        "inf", description="Norm of the perturbation: inf, the largest change of a pixel; 2, the Euclidean length."
    )
    eps: NonNegative = Field(description="Radius of the eps ball, in `unit`.")
    unit: Unit = Field(
        "pixel", description="Unit of `eps` and `step_size`: pixels in [0, 1], or pixels / std of the data."
    )
    box: Box = Field((0.0, 1.0), description="Range of pixels of adversarial images, or none.")
    steps: Count = Field(
        description="Gradient steps, or queries of square. Default: 20; fgsm 1; square 5000; others 100."
    )
    step_size: NonNegative | None = Field(
        description="Step size, in `unit`. Default: 2.5 eps / steps (Madry et al. 2018), or eps for one step."
    )
    random_start: bool = Field(
        description="Start at a random point of the eps ball. Default: yes, but for fgsm, bim and fmn."
    )
    restarts: Count = Field(1, description="Number of random starts; the worst case of each example counts.")
    target: Literal["none", "next", "least_likely"] = Field(
        "none", description="`next` aims at class y + 1, `least_likely` at the class of the lowest clean logit."
    )
    top: Count = Field(
        1,
        description="Success: the true class is not among this many of the largest logits; 5 attacks the top-5 "
        "accuracy, by the margin of the fifth largest of the other logits. Of fgsm, bim and pgd.",
    )
    targets: Count = Field(9, description="Classes that apgd-t, also in strong, aims at in turn.")
    queries: Count = Field(5000, description="Queries of Square in strong.")
    loss: Literal["cross_entropy"] = Field("cross_entropy", description="The loss that is maximized.")
    keep: Literal["first_success", "last", "best_loss"] = Field(
        description="The iterate that is kept. `first_success`: every iterate counts, the clean image first, and the "
        "search stops at the first adversarial one. `last`: the last iterate, as in the paper. "
        "`best_loss`: after all steps, the adversarial iterate of the highest loss."
    )
    eps_grid: tuple[Positive, ...] = Field(
        (),
        description="Smaller eps that are tried too, in one search, from `eps` down. An image that is adversarial at "
        "one eps counts at every larger one. An image that is classified correctly at one eps is not "
        "tried below it.",
    )
    min_eps_tolerance: Positive | None = Field(
        None, description="Search the smallest eps at which each example is adversarial, to within this much."
    )
    seed: Index = Field(0, description="Seed of the random starts.")
    backend: Literal["own", "cleverhans"] = Field("own", description="Implementation.")

    @property
    def at_smaller_eps(self) -> tuple[Attack, ...]:
        """The attack at each smaller eps of its grid, as it is recorded.

        Its `eps_grid` holds all other eps of the grid, since the search at larger ones influences what is found.
        """
        found, every = [], sorted([*self.eps_grid, self.eps])
        for eps in (e for e in every if e < self.eps):
            others = tuple(e for e in every if e != eps)
            size = None if self.step_size is None else self.step_size * eps / self.eps
            found.append(self.model_copy(update={"eps": eps, "eps_grid": others, "step_size": size}))
        return tuple(found)

    @field_validator("eps_grid")
    @classmethod
    def _ascending(cls, grid: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        """Sort a grid, which may name eps itself."""
        return tuple(sorted({*grid} - {info.data.get("eps")}))

    @model_validator(mode="before")
    @classmethod
    def _fill_in_defaults(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        data = cls.with_present_names(data)
        name = data.get("attack", "pgd")
        data.setdefault("random_start", name in ("pgd", "square", "strong") or str(name).startswith("apgd"))
        data.setdefault("steps", _STEPS.get(str(name), 20))
        plain = name == "fgsm" or (data.get("backend", "own") != "own" and name not in PARAMETER_FREE)
        data.setdefault("keep", "last" if plain else "first_success")
        if name in PARAMETER_FREE:
            data.setdefault("step_size", None)
        elif data.get("step_size") is None:
            data["step_size"] = _default_step_size(data.get("eps"), data["steps"])
        return data

    @model_validator(mode="after")
    def _options_fit_the_attack(self) -> Attack:
        name, chooses_steps, own = self.attack, self.attack in PARAMETER_FREE, self.backend == "own"
        tolerance = self.min_eps_tolerance
        stops_at_success = self.keep == "first_success"
        reject_if(
            (name == "fgsm" and (self.steps != 1 or self.step_size != self.eps),
             "fgsm is one step of size eps: leave steps and step_size out, or use bim"),
            (chooses_steps and (self.step_size is not None or not stops_at_success or self.target != "none"),
             "{attack} chooses its step sizes and targets itself and keeps the first success: leave step_size, keep "
             "and target out"),
            (not own and chooses_steps, "CleverHans has no {attack}: use backend own"),
            (name in ("fgsm", "bim", "fmn") and self.random_start, "{attack} has no random start"),
            (chooses_steps and name != "fmn" and not self.random_start, "{attack} always starts at random"),
            (self.restarts > 1 and not self.random_start,
             "restarts need a random start: expected pgd, apgd-ce, apgd-dlr, apgd-t, square or strong"),
            (self.top > 1 and (name not in ("fgsm", "bim", "pgd") or not own or self.target != "none"),
             "top is for fgsm, bim and pgd without a target, with backend own"),
            (self.targets != 9 and name not in ("apgd-t", "strong"), "targets is for apgd-t and strong"),
            (self.queries != 5000 and name != "strong", "queries is for strong; those of square are its steps"),
            (not own and (self.restarts > 1 or self.keep != "last"),
             "CleverHans has no restarts and keeps the last iterate: use backend own"),
            (not own and self.step_size is not None and self.step_size > self.eps,
             "CleverHans needs a step_size of at most eps: use backend own, or smaller steps"),
            (tolerance is not None and (not stops_at_success or self.eps_grid or tolerance >= self.eps),
             "min_eps_tolerance: expected less than eps={eps}, keep first_success, and no eps_grid beside it"),
            (self.eps_grid and not stops_at_success,
             "eps_grid needs keep first_success, received keep {keep}"),
            attack=name, eps=self.eps, keep=self.keep,
        )  # fmt: skip
        return self


def _default_step_size(eps: Any, steps: Any) -> float:
    """Return eps for one step, else 2.5 eps / steps; 0 where either is wrong, which is reported for itself."""
    try:
        radius, count = float(parse_number(eps)), int(parse_integer(steps))
        return max(0.0, radius if count == 1 else 2.5 * radius / count)
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0


class MinimumNorm(Frozen):
    """A minimum-norm attack: without an eps, it minimizes ||(x' - x) / scale||_2.

    The accuracy under it is the share of images for which no adversarial image was found; under one with a `target`,
    the share that is still classified correctly.
    """

    kind: Literal["minimal"] = "minimal"
    attack: Literal["carlini_wagner"] = Field(
        "carlini_wagner",
        description="`carlini_wagner` (2017): Adam for each of several constants c that weigh the loss against the "
        "distance. The defaults are those of its authors' code, with a tenth of its steps.",
    )
    ord: Annotated[Literal["2"], BeforeValidator(str), OR_TWO] = Field("2", description="Norm that is minimized.")
    unit: Unit = Field("pixel", description="Unit of the distance.")
    box: Box = Field((0.0, 1.0), description="Range of pixels of adversarial images, or none.")
    steps: Count = Field(1000, description="Steps of Adam for each constant.")
    step_size: Positive = Field(
        0.01,
        description="Learning rate of Adam. With a box it is that of arctanh of the position in the box, without one "
        "that of (standardized) pixels.",
    )
    binary_search_steps: Count = Field(9, description="Constants that are tried.")
    initial_const: Positive = Field(1e-3, description="The first constant.")
    confidence: NonNegative = Field(0.0, description="Logits by which another class, or the target, must be ahead.")
    target: Literal["none", "next", "least_likely"] = Field("none", description="As in `Attack`.")
    backend: Literal["own"] = Field("own", description="Implementation.")


class Transfer(Frozen):
    """Adversarial examples of another model, the source: it is attacked, and this model gets the images.

    Without `keep`, bim and pgd keep the last iterate: the first success lies at the source's boundary, and transfers
    less.
    """

    omitted_from_id_at_default: ClassVar[tuple[str, ...]] = ("seed",)

    kind: Literal["transfer"] = "transfer"
    source: str = Field(
        description="The model that is attacked: a run folder, a model's file, or an id in the folder of the runs; in "
        "an experiment an arm of its table, in the same row. In ids and records the source's id."
    )
    seed: Literal["next", "same"] = Field(
        "next",
        description="Seed of a source that is an arm: the `next` of the experiment's seeds, after the last the first, "
        "so that no model attacks itself; or the `same`.",
    )
    attack: Attack = Field(description="The attack on the source, at one eps.")

    @model_validator(mode="before")
    @classmethod
    def _keep_the_last_iterate(cls, data: Any) -> Any:
        attack = data.get("attack") if isinstance(data, Mapping) else None
        if isinstance(attack, Mapping) and attack.get("attack", "pgd") in ("bim", "pgd"):
            return {**data, "attack": {"keep": "last", **Attack.with_present_names(attack)}}
        return data

    @model_validator(mode="after")
    def _one_eps(self) -> Transfer:
        several = self.attack.eps_grid or self.attack.min_eps_tolerance is not None
        reject_if((several, "transfer is of the points found at one eps: leave eps_grid and min_eps_tolerance out"))
        return self


Perturbation = Annotated[Clean | AWGN | Corruption | Attack | MinimumNorm | Transfer, Field(discriminator="kind")]


def with_eps_grid(perturbations: Mapping[str, Perturbation]) -> dict[str, Perturbation]:
    """Return the perturbations, and before each attack with an eps grid the same attack at its smaller eps.

    These are named `NAME EPS`, as `pgd 4/255`.
    """
    found: dict[str, Perturbation] = {}
    for name, perturbation in perturbations.items():
        for smaller in perturbation.at_smaller_eps if isinstance(perturbation, Attack) else ():
            found[f"{name} {format_eps(smaller.eps)}"] = smaller
        found[name] = perturbation
    return found


def format_eps(eps: float) -> str:
    """Format an eps, or another length: a decimal number of up to four digits, `k/255`, or a rounded number."""
    decimal = f"{eps:.4g}"
    whole = round(255 * eps)
    if float(decimal) == eps or not whole or abs(255 * eps - whole) > 1e-9:
        return decimal
    return f"{whole}/255"


class Evaluation(Frozen):
    """The images that a model is evaluated on, and the BN statistics that it has then."""

    dataset: str | None = Field(
        None,
        description="Data set: a name, FILE.npz or folder:PATH. Null: that of the training; of external models mnist.",
    )
    split: Literal["test", "validation", "train", "all"] = Field(
        "test",
        description="Split that is measured: a published one, or, of validation, examples held out of the training "
        "set; `all`: everything there is, in its order.",
    )
    limit: Count | None = Field(
        None,
        description="Number of examples of a fixed random order; smaller limits are subsets of larger ones. Null: all.",
    )
    bn_statistics: Literal["tracked", "reestimated", "batch"] = Field(
        "tracked",
        description="Statistics of BN: `tracked` in training; `reestimated`, the mean over the batches of one pass "
        "through the training examples; or those of the `batch` under evaluation, 500 examples.",
    )
