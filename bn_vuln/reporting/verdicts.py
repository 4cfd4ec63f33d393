"""Verdicts: the rule by which each kind of claim is judged, and the same in words. Nothing else decides what holds."""

from __future__ import annotations

import math

from bn_vuln.analysis.statistics import Estimate
from bn_vuln.config import Claim, ContextClaim, EqualsClaim, SignClaim, ValueClaim

LEAST_SEEDS = 3
FAILED = "failed to train"
NOT_JUDGED = ("context", "not run", FAILED)  # the same at every scale

# In the order in which a summary counts them, each with its plural.
PLURALS = {
    "holds": "hold",
    "holds in sign": "hold in sign",
    "fails": "fail",
    "undecided": "undecided",
    "preview": "previews",
    FAILED: FAILED,
    "not run": "not run",
}
_UNKNOWN_SIGN = "the 95% interval over seeds includes 0, or there are fewer than 3 seeds"
# Of a verdict: what it means by the rule (see `rule`); "" where it is the same by all.
MEANINGS: dict[str, dict[str, str]] = {
    "holds": {
        "sign": "the 95% interval over seeds excludes 0, on the claimed side",
        "value": "the 95% interval over seeds excludes 0 with the claimed sign, and the size agrees: within 2 combined "
        "SEM, or at least half of what is claimed",
        "equality": "within the tolerance of the claim, or within 2 combined SEM",
    },
    "holds in sign": {
        "value": "the 95% interval over seeds excludes 0 with the claimed sign, but the size does not agree"
    },
    "fails": {
        "sign": "the 95% interval over seeds excludes 0, on the other side",
        "value": "the 95% interval over seeds excludes 0 with the opposite sign",
        "equality": "farther from what is claimed than its tolerance and 2 combined SEM",
    },
    "undecided": {
        "sign": _UNKNOWN_SIGN,
        "value": _UNKNOWN_SIGN,
        "equality": "there are fewer than 3 seeds (a claim of equality)",
    },
    "context": {"": "shown but not judged: an approximate value, or one arm's number without a tolerance"},
    "preview": {"": "not judged: run below full scale, or with settings changed on the command line (--set)"},
    "not run": {"": "a number that the claim needs has not been measured"},
    FAILED: {"": "no seed of an arm that the claim is about could be trained"},
}


def rule(claim: Claim) -> str:
    """Return the rule of a claim: `sign`, `value` (sign and size) or `equality`; that of context is never asked."""
    return "sign" if isinstance(claim, SignClaim) else "value" if isinstance(claim, ValueClaim) else "equality"


def judge(claim: Claim, ours: Estimate | None) -> str:
    """Judge a claim by our number; None where there is none."""
    if isinstance(claim, ContextClaim):
        return "context"
    if ours is None:
        return "not run"
    if isinstance(claim, SignClaim):
        return _sign(ours, claim.sign)
    near = 2 * math.hypot(claim.sem or 0.0, ours.sem or 0.0)
    distance = abs(ours.mean - claim.value)
    if isinstance(claim, ValueClaim):
        agrees = distance <= near or abs(ours.mean) >= abs(claim.value) / 2
        verdict = _sign(ours, claim.value)
        return "holds in sign" if verdict == "holds" and not agrees else verdict
    is_exact = isinstance(claim, EqualsClaim) and claim.exact and ours.n == 1
    if ours.n < LEAST_SEEDS and not is_exact:
        return "undecided"
    return "holds" if distance <= max(claim.tolerance, near) else "fails"


def _sign(ours: Estimate, claimed: float) -> str:
    """Judge whether our difference has the sign of the claimed one: its 95% t-interval excludes 0 on that side."""
    interval = ours.interval()
    if ours.n < LEAST_SEEDS or interval is None or interval[0] <= 0 <= interval[1]:
        return "undecided"
    return "holds" if math.copysign(1, ours.mean) == math.copysign(1, claimed) else "fails"
