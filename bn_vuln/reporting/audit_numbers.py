"""Numbers of an audit as they are shown: accuracies in percent, differences in points, eps in 1/255."""

from __future__ import annotations

from bn_vuln.auditing import options
from bn_vuln.auditing.findings import Accuracy, Findings, Interval, ModelFindings, Requirement

MINUS = "\N{MINUS SIGN}"
WIDE = 0.04  # an interval of this width, as a fraction, supports whole percents only


def percent(value: float, digits: int = 1) -> str:
    """Return a fraction as a number of percent, without the sign."""
    return f"{100 * value:.{digits}f}"


def points(value: float) -> str:
    """Return a difference of fractions in points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", MINUS)


def digits_of(interval: Interval) -> int:
    """Return the decimals of a percent that an interval supports."""
    return 0 if interval.high - interval.low >= WIDE else 1


def rounded(interval: Interval) -> str:
    """Return the value of an accuracy with as many digits as its interval supports: `45%`."""
    return f"{percent(interval.value, digits_of(interval))}%"


def span(interval: Interval, digits: int = 1) -> str:
    """Return the ends of an interval of an accuracy in percent: `38 to 52`."""
    return f"{percent(interval.low, digits)} to {percent(interval.high, digits)}"


def change(interval: Interval) -> str:
    """Return a difference with its interval, in points: `+7.5 (+2.1 to +12.9)`."""
    return f"{points(interval.value)} ({points(interval.low)} to {points(interval.high)})"


def number(value: float) -> str:
    """Return a positive number of two digits: `1e-5`, `0.042`, `4.1`, `110`."""
    text = f"{value:.0f}" if 10 <= value < 1e4 else f"{value:.2g}"
    return text.replace("e-0", "e-").replace("e+0", "e")


def eps_text(findings: Findings, eps: float) -> str:
    """Return an eps: `2/255` or `2.3/255` of L-infinity, a length of L2."""
    return options.eps_text(eps, findings.ord)


def half_eps_text(findings: Findings, model: ModelFindings) -> str:
    """Return the eps that leaves half of the clean accuracy: `2.3/255`, `above 8/255`, or "" without a curve."""
    if model.half_eps is not None:
        least = bool(model.curve) and model.half_eps <= model.curve[0].eps
        return ("at most " if least else "") + eps_text(findings, model.half_eps)
    return f"above {eps_text(findings, model.curve[-1].eps)}" if model.curve else ""


def headline(findings: Findings, model: ModelFindings) -> dict[str, Accuracy | None]:
    """Return the three accuracies that come first: clean, noise (that of the search), strong; None: not measured."""
    named = {one.name: one for one in model.accuracies}
    noise = next((one for one in model.accuracies if one.name.startswith("noise ")), None)
    return {
        "clean": named.get("clean"),
        "noise": named.get(f"noise {findings.noise_std:g}", noise),
        "strong": model.strong,
    }


def in_short(findings: Findings, model: ModelFindings) -> str:
    """Return a model's state in two or three sentences: how fragile, and what its normalization has to do with it."""
    found, clean = headline(findings, model), headline(findings, model)["clean"]
    text = ""
    if clean is not None and model.curve:
        kept = model.half_eps is None
        far = eps_text(findings, model.curve[-1].eps) if kept else half_eps_text(findings, model)
        what = f"of each pixel by {far}" if findings.ord == "inf" else f"of length {far}"
        left = f"{'more than ' if kept else ''}half of the {rounded(clean.accuracy)}"
        text = f"{'Even changes' if kept else 'Changes'} {what} leave {left} that are correct on clean images."
    if clean is not None and found["noise"] is not None:
        lost = 100 * (found["noise"].accuracy.value - clean.accuracy.value)
        text += f" Noise of standard deviation {findings.noise_std:g} changes that by {points(lost / 100)} points."
    return f"{text} {_normalization(model)}".strip()


def _normalization(model: ModelFindings) -> str:
    gaining = [one for one in model.finalists if one.gains]
    if not model.layers:
        return "It has no normalization layer."
    if any(not one.mend.changes_c for one in gaining):
        return "Its batch norm has to do with it: the statistics that it tracked are stale."
    if gaining:
        return "Its normalization has to do with it: a larger c was confirmed to help."
    return "That its normalization has to do with it was not shown."


def measured(findings: Findings, requirement: Requirement) -> str:
    """Return the number that a requirement is about: an accuracy in percent, or an eps."""
    if requirement.text.startswith("half-eps"):
        return eps_text(findings, requirement.value)
    return f"{percent(requirement.value)}%"


def short_names(findings: Findings) -> list[str]:
    """Return what models are called in tables: the last part of their paths, or all of it where these are equal."""
    sources = [model.source for model in findings.models]
    names = [source.rstrip("/").rpartition("/")[2] or source for source in sources]
    return names if len(set(names)) == len(names) else sources
