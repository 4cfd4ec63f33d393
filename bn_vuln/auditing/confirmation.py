"""The search among changes on the choosing half, and the confirmation of finalists on the reporting half."""

from __future__ import annotations

from collections.abc import Mapping

from bn_vuln.auditing import what_if
from bn_vuln.auditing.audited import Audited, Chosen
from bn_vuln.auditing.findings import Candidate
from bn_vuln.auditing.options import eps_text, noise
from bn_vuln.auditing.pieces import packed, unpacked
from bn_vuln.config import Clean, Mend, Perturbation, describe_perturbation
from bn_vuln.records import Flag
from bn_vuln.typing import Plain

AS_IT_IS = "as it is"
MASKING = {1, 3, 4, 5, 8, 10, 24}  # checks which say that gradients lead attacks astray
NOT_FINITE = "non-finite logits"  # a flag of check 4 that says nothing about gradients
ROUNDING = 12  # which is left out: an eps between whole 1/255 is not meant to survive it
GUESSING = 19  # of a model that guesses no attack finds more
SAFETY = 1.2  # a changed model may withstand more, and take longer


def confirm_as_it_is(one: Audited, chosen: Chosen) -> float:
    """Measure the model as it is by `strong`, with the checks; return the seconds that another one will take."""
    n = len(one.subject.halves.reporting)
    missed = 100 * what_if.smallest_gain(n, what_if.level(what_if.FINALISTS, control=True))
    where = eps_text(chosen.eps, one.options.ord)
    one.tell(f"strong attacks at eps {where} on {n} images, which cannot show gains under {missed:.0f} points")
    began = one.clock.spent
    found = _confirmed(one, chosen, AS_IT_IS, None)
    flags = [Flag.model_validate(flag) for flag in found["flags"]] + _found_by_square(found["robust_after"], n)
    flags = [flag for flag in flags if flag.check != ROUNDING]
    numbers = {flag.check for flag in flags if flag.name != NOT_FINITE}
    one.flags, one.upper_bounds = tuple(flags), bool(numbers & MASKING) and GUESSING not in numbers
    return SAFETY * (one.clock.spent - began)


def search(one: Audited, chosen: Chosen, seconds: float) -> None:
    """Try changes of all layers together, then of one at a time as far as the time allows.

    Args:
        one: the model; gets its candidates.
        chosen: eps and noise.
        seconds: that one confirmation takes, which time is kept for.
    """
    layers = one.subject.layers
    if not layers:
        return
    reestimate = not one.refused and any(layer.is_batch for layer in layers)
    one.before = _candidate(one, Mend(), chosen)
    mends = what_if.all_layers(reestimate, any(layer.state.gamma is not None for layer in layers))
    began = one.clock.spent
    for number, mend in enumerate(mends, 1):
        if number % 4 == 1:
            one.tell(f"what if: change {number} of {len(mends)} of all layers")
        one.candidates.append(_candidate(one, mend, chosen))
    each = (one.clock.spent - began) / len(mends)
    best = what_if.best_for_all(one.candidates, one.before, one.options.max_clean_cost)
    shape = Mend(relative_c=0.1, reestimate=reestimate) if best is None else best.mend
    singles = what_if.single_layers(layers, shape)
    for number, mend in enumerate(singles):
        if one.left < what_if.FINALISTS * seconds + each:
            one.skip(f"{len(singles) - number} of {len(singles)} changes of one layer")
            break
        one.tell(f"what if: layer {number + 1} of {len(singles)} by itself, {mend.layers[0]}")
        one.candidates.append(_candidate(one, mend, chosen))


def confirm_finalists(one: Audited, chosen: Chosen) -> None:
    """Choose the finalists, and measure them by `strong`."""
    if one.before is None:
        return
    finalists = what_if.finalists(one.candidates, one.before, one.options.max_clean_cost)
    for number, candidate in enumerate(finalists, 1):
        one.tell(f"confirming {number} of {len(finalists)}: {candidate.title}")
        _confirmed(one, chosen, candidate.title, candidate.mend)
    titles = {candidate.title for candidate in finalists}
    one.candidates = [c.model_copy(update={"finalist": c.title in titles}) for c in one.candidates]


def _confirmed(one: Audited, chosen: Chosen, name: str, mend: Mend | None) -> Plain:
    """Outcomes of the reporting half, of the model as it is (with its flags) or after a change."""
    subject = one.subject
    perturbations: Mapping[str, Perturbation] = {
        "clean": Clean(),
        "noise": noise(chosen.noise_std),
        "strong": one.options.strong(chosen.eps, subject.classes),
    }

    def compute() -> Plain:
        with subject.changed(None if mend is None else subject.states(mend)):
            results = subject.measure(list(perturbations.values()), subject.halves.reporting, checks=mend is None)
        found: Plain = {n: packed(r.correct) for n, r in zip(perturbations, results, strict=True)}
        flags = dict.fromkeys(flag for result in results for flag in result.record.flags)
        found["flags"] = [flag.model_dump() for flag in flags]
        found["robust_after"] = dict(results[-1].record.robust_after or {})
        return found

    key = f"confirmed: {name} {[describe_perturbation(p) for p in perturbations.values()]}"
    found = one.pieces.get(key, compute)
    one.confirmed[name] = {n: unpacked(found[n]) for n in perturbations}
    return found


def _found_by_square(robust_after: Mapping[str, int], n: int) -> list[Flag]:
    """Check 5: where an attack without gradients finds what those with gradients did not, these are masked."""
    names = list(robust_after)
    if "square" not in names or names.index("square") == 0:
        return []
    more = robust_after[names[names.index("square") - 1]] - robust_after["square"]
    if more <= max(2, 0.02 * n):
        return []
    message = (
        f"Square, which uses no gradients, succeeds on {more} of {n} images that the gradient attacks left: gradients "
        "are masked, and accuracies under attack are upper bounds"
    )
    return [Flag(check=5, name="masked gradients", value=more / n, message=message)]


def _candidate(one: Audited, mend: Mend, chosen: Chosen) -> Candidate:
    """A change as it does on the choosing half."""
    subject, title = one.subject, what_if.title(mend)

    def compute() -> Plain:
        perturbations: list[Perturbation] = [Clean(), noise(chosen.noise_std), one.options.search(chosen.eps)]
        with subject.changed(None if mend == Mend() else subject.states(mend)):
            results = subject.measure(perturbations, subject.halves.choosing)
        return {n: float(r.correct.mean()) for n, r in zip(what_if.OUTCOMES, results, strict=True)}

    return Candidate(title=title, mend=mend, **one.pieces.get(f"what if: {title} {chosen}", compute))
