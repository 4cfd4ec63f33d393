"""What a model is evaluated under: clean images, noise, corruptions, attacks; and the images it is evaluated on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from bn_vuln.config.types import (
    Count,
    Frozen,
    Index,
    Interval,
    NonNegative,
    Positive,
    Severity,
    parse_integer,
    parse_number,
)


class StandardizedBox(Frozen):
    """A box given in standardized units, (x - mean) / std per channel."""

    standardized: Interval


def _parse_box(value: Any) -> Any:
    """One clear message for the whole union, instead of pydantic's one for each member."""
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


Box = Annotated[Literal["none"] | Interval | StandardizedBox, BeforeValidator(_parse_box)]
Unit = Literal["pixel", "standardized"]


class Clean(Frozen):
    """No perturbation."""

    kind: Literal["clean"] = "clean"


class AWGN(Frozen):
    """Additive white Gaussian noise of standard deviation `std`, added at the data's native width (before any
    resizing); `clip` cuts the noisy image to a range, in pixel units unless it says standardized."""

    kind: Literal["awgn"] = "awgn"
    std: NonNegative
    unit: Unit = "pixel"
    clip: Box = (0.0, 1.0)
    seed: Index = 0


class Corruption(Frozen):
    """A noise corruption of CIFAR-10-C (Hendrycks and Dietterich 2019) at one of its five severities, by the name it
    has in TFDS' cifar10_corrupted; of the image at its native width, with a uint8 image as its result.

    With x in pixels [0, 1], for severities 1 to 5: `gaussian_noise` x + N(0, c), std c = .04 .06 .08 .09 .10;
    `shot_noise` Poisson(c x) / c, c = 500 250 100 75 50; `impulse_noise` each channel of each pixel is replaced with
    probability c = .01 .02 .03 .05 .07, by 0 or 1 alike often; `speckle_noise` x + x N(0, c), std
    c = .06 .1 .12 .16 .2.

    `source`: `made` from the clean images of any data set; `archive`, the images that were published, of the test split
    of cifar10; `auto`, those where the archive is on this machine and is of the images that are measured, else made.
    What was published is one draw, so `seed` is for `made` alone.
    """

    kind: Literal["corruption"] = "corruption"
    corruption: Literal["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"]
    severity: Severity
    source: Literal["auto", "made", "archive"] = "auto"
    seed: Index = 0

    @model_validator(mode="after")
    def _make_sense(self) -> Corruption:
        if self.seed and self.source != "made":
            raise PydanticCustomError(
                "corruption", "what was published is one draw: seed needs source made, received {source}",
                {"source": self.source},
            )  # fmt: skip
        return self


# Steps that an attack takes where it is not said: those of AutoAttack's standard set, for the attacks that are in it.
_STEPS = {"fgsm": 1, "apgd-ce": 100, "apgd-dlr": 100, "apgd-t": 100, "fmn": 100, "square": 5000, "strong": 100}
# Attacks whose steps have no size to choose.
PARAMETER_FREE = ("apgd-ce", "apgd-dlr", "apgd-t", "fmn", "square", "strong")


class Attack(Frozen):
    """An attack inside ||(x' - x) / scale||_ord <= eps, scale = 1 (pixel) or the std (standardized).

    `fgsm` is one step of eps; `bim` starts at x; `pgd` starts at a random point of the ball. `step_size` null:
    2.5 eps / steps (Madry et al. 2018). `target: next` aims at class y + 1, `least_likely` at the class of the lowest
    clean logit.

    These choose the size of their steps themselves: `apgd-ce`, `apgd-dlr`, `apgd-t` (at each of `targets` classes),
    `fmn` (looks for the nearest point), `square` (without gradients; its steps are queries), and `strong`, a cascade of
    them, each on what the one before has left (`steps` of those with gradients, `queries` of Square).

    `keep`: `any` counts every point that is looked at, the clean image first, and stops at the first that fools;
    `last` keeps the last point, as the paper does; `best` takes all steps and keeps the point of the highest loss among
    those that fool. `eps_grid`: other eps that are tried, from the largest down; what is fooled at one counts at every
    larger one, and what withstands at one is not tried at smaller ones.
    `min_eps_tolerance`: the smallest eps that fools is looked for, for each example by itself, to within this much.
    """

    omitted_from_id_at_default: ClassVar[tuple[str, ...]] = ("targets", "queries", "eps_grid", "min_eps_tolerance")
    stored_names: ClassVar[dict[str, str]] = {"keep": "iterate", "eps_grid": "ladder", "min_eps_tolerance": "bisect"}
    stored_values: ClassVar[dict[str, dict[str, str]]] = {"keep": {"first_success": "any", "best_loss": "best"}}

    kind: Literal["attack"] = "attack"
    attack: Literal["fgsm", "bim", "pgd", "apgd-ce", "apgd-dlr", "apgd-t", "fmn", "square", "strong"] = "pgd"
    ord: Literal["inf", "2"] = "inf"
    eps: NonNegative
    unit: Unit = "pixel"
    box: Box = (0.0, 1.0)
    steps: Count
    step_size: NonNegative | None
    random_start: bool
    restarts: Count = 1
    target: Literal["none", "next", "least_likely"] = "none"
    targets: Count = 9
    queries: Count = 5000
    loss: Literal["cross_entropy"] = "cross_entropy"
    keep: Literal["first_success", "last", "best_loss"]
    eps_grid: tuple[Positive, ...] = ()
    min_eps_tolerance: Positive | None = None
    seed: Index = 0
    backend: Literal["own", "cleverhans"] = "own"

    @property
    def at_smaller_eps(self) -> tuple[Attack, ...]:
        """The attack at each smaller eps of its grid, as that is recorded: with all other eps for a grid, since the
        larger ones had a say in what was found."""
        found, every = [], sorted([*self.eps_grid, self.eps])
        for eps in (e for e in every if e < self.eps):
            others = tuple(e for e in every if e != eps)
            size = None if self.step_size is None else self.step_size * eps / self.eps
            found.append(self.model_copy(update={"eps": eps, "eps_grid": others, "step_size": size}))
        return tuple(found)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        data = cls.with_present_names(data) | {"ord": str(data.get("ord", "inf"))}
        name = data.get("attack", "pgd")
        data.setdefault("random_start", name in ("pgd", "square", "strong") or str(name).startswith("apgd"))
        data.setdefault("steps", _STEPS.get(name, 20))
        plain = name == "fgsm" or (data.get("backend", "own") != "own" and name not in PARAMETER_FREE)
        data.setdefault("keep", "last" if plain else "first_success")
        if name in PARAMETER_FREE:
            data.setdefault("step_size", None)
        elif data.get("step_size") is None:
            data["step_size"] = _default_step_size(data.get("eps"), data["steps"])
        return data

    @model_validator(mode="after")
    def _make_sense(self) -> Attack:
        free, own = self.attack in PARAMETER_FREE, self.backend == "own"
        for wrong, message in (
            (self.attack == "fgsm" and (self.steps != 1 or self.step_size != self.eps),
             "fgsm is one step of size eps: leave steps and step_size out, or use bim"),
            (free and (self.step_size is not None or self.keep != "first_success" or self.target != "none"),
             "{attack} chooses its step sizes and targets itself and counts any keep: leave step_size, iterate and "
             "target out"),
            (not own and free, "{attack} is ours alone: use backend own"),
            (self.attack in ("fgsm", "bim", "fmn") and self.random_start, "{attack} has no random start"),
            (free and self.attack != "fmn" and not self.random_start, "{attack} always starts at random"),
            (self.restarts > 1 and not self.random_start,
             "restarts need a random start: expected pgd, apgd-ce, apgd-dlr, apgd-t, square or strong"),
            (self.targets != 9 and self.attack not in ("apgd-t", "strong"), "targets is for apgd-t and strong"),
            (self.queries != 5000 and self.attack != "strong", "queries is for strong; those of square are its steps"),
            (not own and (self.restarts > 1 or self.keep != "last"),
             "CleverHans has neither restarts nor another point to keep than the last: use backend own"),
            (not own and self.step_size is not None and self.step_size > self.eps,
             "CleverHans refuses a step_size above eps: use backend own, or smaller steps"),
            (self.min_eps_tolerance is not None and (self.keep != "first_success" or bool(self.eps_grid) or
                                                self.min_eps_tolerance >= self.eps),
             "min_eps_tolerance: expected less than eps={eps}, keep first_success, and no eps_grid beside it"),
            (bool(self.eps_grid) and self.keep != "first_success",
             "an eps grid counts any keep: expected iterate any, received {keep}"),
            (sorted({*self.eps_grid, self.eps}) != sorted([*self.eps_grid, self.eps])
             or sorted(self.eps_grid) != list(self.eps_grid),
             "eps_grid: expected other eps than {eps}, ascending, each once"),
        ):  # fmt: skip
            if wrong:
                raise PydanticCustomError(
                    "attack", message, {"attack": self.attack, "eps": self.eps, "keep": self.keep}
                )
        return self


def _default_step_size(eps: Any, steps: Any) -> float:
    """eps for one step, else 2.5 eps / steps; 0 where either is wrong, which is then reported for itself."""
    try:
        radius, count = float(parse_number(eps)), int(parse_integer(steps))
        return max(0.0, radius if count == 1 else 2.5 * radius / count)
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0


class MinimumNorm(Frozen):
    """A minimum-norm attack: it has no eps, and minimizes ||(x' - x) / scale||_2, scale = 1 (pixel) or the std
    (standardized). The accuracy under it is the share of images that nothing was found for; under one with a `target`,
    of those that are still taken for what they are.

    `carlini_wagner` (2017): `steps` of Adam with learning rate `step_size` for each of `binary_search_steps` constants
    c, the first one `initial_const`; defaults are those of its authors' code, with a tenth of its steps. With a box the
    step size is that of arctanh of the place in the box, without one that of (standardized) pixels. `confidence`: by
    how much the logit of another class, or of the target, must be ahead. `target` as in `Attack`.
    """

    kind: Literal["minimal"] = "minimal"
    attack: Literal["carlini_wagner"] = "carlini_wagner"
    ord: Literal["2"] = "2"
    unit: Unit = "pixel"
    box: Box = (0.0, 1.0)
    steps: Count = 1000
    step_size: Positive = 0.01
    binary_search_steps: Count = 9
    initial_const: Positive = 1e-3
    confidence: NonNegative = 0.0
    target: Literal["none", "next", "least_likely"] = "none"
    backend: Literal["own", "cleverhans"] = "own"

    @model_validator(mode="before")
    @classmethod
    def _ord_as_text(cls, data: Any) -> Any:
        """YAML reads 2 as a number."""
        return {**data, "ord": str(data.get("ord", "2"))} if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _make_sense(self) -> MinimumNorm:
        hans = self.backend == "cleverhans"
        for wrong, message in (
            (hans and self.box == "none", "CleverHans needs a box: use backend own"),
            (hans and self.confidence > 0, "CleverHans judges success without the confidence: use backend own"),
        ):  # fmt: skip
            if wrong:
                raise PydanticCustomError("attack", message)
        return self


def with_eps_grid(perturbations: Mapping[str, Any]) -> dict[str, Any]:
    """Perturbations by name, and before each attack with an eps grid that attack at each of its smaller eps, named
    `NAME EPS`, where multiples of 1/255 are written as such."""
    found: dict[str, Any] = {}
    for name, perturbation in perturbations.items():
        for smaller in perturbation.at_smaller_eps if isinstance(perturbation, Attack) else ():
            found[f"{name} {format_eps(smaller.eps)}"] = smaller
        found[name] = perturbation
    return found


def format_eps(eps: float) -> str:
    """An eps in text: k/255, or a decimal number."""
    whole = round(255 * eps)
    return f"{whole}/255" if whole and abs(255 * eps - whole) < 1e-9 else f"{eps:.4g}"


Perturbation = Annotated[Clean | AWGN | Corruption | Attack | MinimumNorm, Field(discriminator="kind")]


class Evaluation(Frozen):
    """Where a model is evaluated. `dataset` null: the one it was trained on. `limit`: that many examples of a
    fixed random order (smaller limits are subsets of larger ones). `bn_statistics`: those `tracked` in
    training, `reestimated` as the mean over the batches of one pass through the training examples, or those of the
    `batch` under evaluation, 500 examples."""

    dataset: str | None = None
    split: Literal["test", "validation", "train"] = "test"
    limit: Count | None = None
    bn_statistics: Literal["tracked", "reestimated", "batch"] = "tracked"
