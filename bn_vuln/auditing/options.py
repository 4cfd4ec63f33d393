"""The options of an audit, and the perturbations that follow from them. Box [0, 1], pixel units."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from bn_vuln.config import (
    AWGN,
    Attack,
    Corruption,
    Frozen,
    Perturbation,
    describe_perturbation,
    format_eps,
    parse_number,
)
from bn_vuln.config.perturbation import Norm
from bn_vuln.config.types import Count, NonNegative
from bn_vuln.errors import UsageError
from bn_vuln.typing import Floats

FEWEST = 20  # images
NOISE = (0.05, 0.1, 0.2)  # std of pixels in [0, 1]
CORRUPTIONS = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")  # those of CIFAR-10-C that are noise
SEVERITY = 3
# Points of the curve, each twice the one before, so that wherever half of the accuracy is lost lies between two.
CURVE = tuple(2.0**k / 255 for k in range(-4, 7))
RELATIVE_C = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
MOST_SINGLE_LAYERS = 8
SEARCH_STEPS = 20
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}


def parse_time(value: Any) -> object:
    """Return seconds of `90s`, `10m`, `1h`, a number of seconds, or None of `none`; `ValueError` for anything else."""
    if value is None or value == "none":
        return None
    if isinstance(value, int | float):
        return value
    found = _TIME.fullmatch(str(value).strip())
    if found is None:
        raise ValueError("expected 90s, 10m, 1h or none")
    return float(found.group(1)) * _SECONDS[found.group(2)]


class AuditOptions(Frozen):
    """How a model is audited."""

    ord: Norm = Field("inf", description="Norm of the perturbations.")
    limit: Annotated[Count, Field(ge=FEWEST)] | None = Field(
        None,
        description="Images, in a fixed random order; half of them choose, half report. Default: 200, thorough 500, or "
        "all where there are fewer.",
    )
    max_clean_cost: NonNegative = Field(1.0, description="Points of clean accuracy that an advice may cost.")
    time: Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(parse_time)] = Field(
        None, description="90s, 10m, 1h or none. Less is measured where it would take longer, and it is said what."
    )
    thorough: bool = Field(False, description="strong with its standard settings: many times slower.")
    require: Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] = Field(
        (),
        description="Conditions: 'strong 2/255 >= .4', 'noise 0.1 >= 80%', 'clean >= .9', 'half-eps >= 1/255'; of a "
        "pair for the first model.",
    )

    @property
    def images(self) -> int:
        """Return the number of images that are wanted."""
        return self.limit or (500 if self.thorough else 200)

    def search(self, eps: float) -> Attack:
        """Return the attack that choices are made by."""
        return Attack.model_validate({"attack": "apgd-ce", "ord": self.ord, "eps": eps, "steps": SEARCH_STEPS})

    def curve(self, grid: Sequence[float]) -> Attack:
        """Return the same attack along eps, in one search; it is compiled together with `search`."""
        return self.search(grid[-1]).model_copy(update={"eps_grid": tuple(grid[:-1])})

    def strong(self, eps: float, classes: int) -> Attack:
        """Return the ensemble that everything is confirmed by."""
        fields: dict[str, Any] = {"attack": "strong", "ord": self.ord, "eps": eps}
        if not self.thorough:
            fields |= {"steps": 50, "queries": 500, "targets": max(1, min(3, classes - 1))}
        return Attack.model_validate(fields)

    def strong_about(self) -> str:
        """Return the settings of `strong` in words."""
        if self.thorough:
            return "standard settings: 100 steps, 9 targets, 5,000 queries"
        return "50 steps, 3 targets, 500 queries (--thorough: 100, 9, 5,000)"

    def eps_grid(self, shape: tuple[int, int, int], points: int) -> list[float]:
        """Return the eps of the curve, ascending.

        In the 2 norm they are half as long as the diagonal of the inf norm's ball, at which nets of this kind lose
        about as much.

        Args:
            shape: of an image.
            points: how many of them, evenly spread.
        """
        scale = 1.0 if self.ord == "inf" else 0.5 * math.sqrt(math.prod(shape))
        every = max(1, round(len(CURVE) / points))
        return [round_eps(scale * eps, self.ord) for eps in CURVE[(len(CURVE) - 1) % every :: every]]


def noise(std: float) -> AWGN:
    """Return the noise of this std, clipped to the box."""
    return AWGN(std=std)


def corruption(name: str) -> Corruption:
    """Return a corruption at the severity of the audit."""
    return Corruption.model_validate({"corruption": name, "severity": SEVERITY})


def round_eps(eps: float, ord: str) -> float:
    """Return an eps of two digits, in 1/255 for inf."""
    unit = 255.0 if ord == "inf" else 1.0
    return float(f"{unit * eps:.2g}") / unit


def eps_text(eps: float, ord: str, digits: int = 2) -> str:
    """Return an eps of so many digits for people, which options take too: `5.2/255` of inf, a length of 2."""
    return f"{255 * eps:.{digits}g}/255" if ord == "inf" else f"{eps:.{digits}g}"


def described(perturbation: Perturbation) -> str:
    """Return a perturbation in words, with its eps as `eps_text` has it."""
    text = describe_perturbation(perturbation)
    if not isinstance(perturbation, Attack):
        return text
    return text.replace(
        f"eps {format_eps(perturbation.eps)} ", f"eps {eps_text(perturbation.eps, perturbation.ord)} ", 1
    )


def half_eps(eps: Floats, accuracy: Floats, clean: float) -> float | None:
    """Return the eps at which half of the clean accuracy is left, between two points on a logarithmic axis.

    Args:
        eps: float64 [points], ascending.
        accuracy: at these.
        clean: clean accuracy.

    Returns:
        None where more is left at the largest eps; the smallest eps where less is left at it.
    """
    lost = [i for i, value in enumerate(accuracy) if value <= clean / 2]
    if not lost:
        return None
    i = lost[0]
    if i == 0:
        return float(eps[0])
    above, below = accuracy[i - 1], accuracy[i]
    share = (above - clean / 2) / (above - below)
    return float(eps[i - 1] * (eps[i] / eps[i - 1]) ** share)


# ---------------------------------------------------------------- requirements

_REQUIREMENT = re.compile(r"(clean|noise|strong|half-eps)\s*([\d./]+)?\s*(>=|<=|>|<)\s*([\d./]+)\s*(%?)")
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda a, b: a >= b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, "<": lambda a, b: a < b,
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """A condition of `--require`.

    Attributes:
        text: as it was written.
        quantity: clean, noise, strong or half-eps.
        at: std of the noise, or eps of strong; None for others.
        comparison: between what is measured and `value`.
        value: a fraction, or an eps.
    """

    text: str
    quantity: str
    at: float | None
    comparison: str
    value: float

    def met_by(self, measured: float) -> bool:
        """Return if the condition holds for a measured number."""
        return _COMPARISONS[self.comparison](measured, self.value)


def parse_requirement(text: str) -> Condition:
    """Parse `strong 2/255 >= .4`, `noise 0.1 >= 80%`, `clean >= .9` or `half-eps >= 1/255`.

    Raises:
        UsageError: It is none of these.
    """
    expected = "expected such as 'strong 2/255 >= .4', 'noise 0.1 >= 80%', 'clean >= .9' or 'half-eps >= 1/255'"
    found = _REQUIREMENT.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"--require {text!r}: {expected}")
    quantity, at, comparison, value, percent = found.groups()
    try:
        number = float(parse_number(value)) / (100 if percent else 1)
        place = None if at is None else float(parse_number(at))
    except (TypeError, ValueError, ZeroDivisionError):
        raise UsageError(f"--require {text!r}: {expected}") from None
    needs_place = quantity in ("noise", "strong")
    is_eps = quantity == "half-eps"
    if (place is not None) != needs_place or place == 0 or (percent if is_eps else number > 1):
        raise UsageError(f"--require {text!r}: {expected}")
    return Condition(text, quantity, place, comparison, number)
