"""The check of two models that are compared with each other, whichever command compares them."""

from __future__ import annotations

from bn_vuln.analysis.statistics import UNEQUAL_CLEAN_ACCURACY
from bn_vuln.records.schema import Flag


def unequal_clean_accuracy(first: float, second: float, names: tuple[str, str] = ("first", "second")) -> Flag | None:
    """Check 15: the clean accuracies of two models that are compared differ by more than 2 points.

    Args:
        first: clean accuracy of one model, a fraction.
        second: of the other, on the same examples.
        names: what the models are called.

    Returns:
        A flag with the difference, first - second.
    """
    difference = first - second
    if not abs(difference) > UNEQUAL_CLEAN_ACCURACY:
        return None
    return Flag(
        check=15, name="unequal clean accuracies", value=difference,
        message=f"the clean accuracies differ by {100 * difference:+.1f} points ({names[0]} {first:.1%}, {names[1]} "
        f"{second:.1%}): a difference under a perturbation may be that of the clean images. Compare what each loses, "
        "or models that are equally good.",
    )  # fmt: skip
