"""An audit from beginning to end: what a model is, how fragile, why, what if, and what to do.

The time is planned: what is left out to keep it is left out in the order single layers, corruptions, points of the
curve, and named. What was confirmed is always confirmed.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bn_vuln.analysis.statistics import Proportion
from bn_vuln.audit import advice, findings, layerwise, what_if
from bn_vuln.audit.findings import (
    Accuracy,
    Candidate,
    CurvePoint,
    Difference,
    Example,
    Findings,
    Interval,
    Layer,
    ModelFindings,
    Requirement,
)
from bn_vuln.audit.options import (
    CORRUPTIONS,
    CURVE,
    NOISE,
    AuditOptions,
    Condition,
    corruption,
    half_eps,
    noise,
    parse_requirement,
    round_eps,
)
from bn_vuln.audit.pieces import Clock, Pieces, packed, unpacked
from bn_vuln.audit.references import references
from bn_vuln.audit.subject import Costs, Subject
from bn_vuln.config import Attack, Clean, Mend, Perturbation, describe_perturbation, format_eps, identity_of, to_plain
from bn_vuln.errors import UsageError
from bn_vuln.evaluation.opening import Opened
from bn_vuln.models import normalization_layers as normalization
from bn_vuln.models.normalization_layers import LayerState, NormalizationLayer
from bn_vuln.records import Flag
from bn_vuln.runtime import backend
from bn_vuln.runtime.distribution import Distribution
from bn_vuln.runtime.progress import Progress, duration
from bn_vuln.typing import Arrays, Floats, Index, Mask, Plain

EXAMPLES = 6  # images that are shown
FEW_POINTS = 4  # of the curve, where time is short
LOOKED_AT = 100  # images of which layers are measured
MASKING = (1, 2, 4, 5, 7, 8, 13, 24)  # checks which say that an attack found too little
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
ROBUST_SHARE = 0.4  # of the images, guessed before anything is measured: half of those that are classified correctly


@dataclass
class _Audited:
    """One model with what was measured of it so far; outcomes are of all images.

    Of a pair, `sharing` models have yet to share the time that is left.
    """

    subject: Subject
    pieces: Pieces
    clock: Clock
    sharing: int = 1
    costs: Costs | None = None
    grid: Sequence[float] = ()
    min_eps: Floats = field(default_factory=lambda: np.empty(0))
    outcomes: dict[str, Mask] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    strong: dict[str, Mask] = field(default_factory=dict)
    flags: tuple[Flag, ...] = ()
    upper_bounds: bool = False
    candidates: list[Candidate] = field(default_factory=list)
    tried: Sequence[Candidate] = ()
    confirmed: dict[str, dict[str, Mask]] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    batch: tuple[Accuracy, ...] = ()
    examples: tuple[Example, ...] = ()
    skipped: list[str] = field(default_factory=list)
    refused: str = ""

    @property
    def left(self) -> float:
        """Seconds that are left for this model."""
        return self.clock.left / self.sharing


def audit(
    opened: Sequence[Opened],
    options: AuditOptions,
    *,
    folder: Path | None,
    command: str,
    mend_command: str,
    distribution: Distribution,
    progress: Progress,
) -> Findings:
    """Audit one model, or two as a pair.

    Args:
        opened: one or two models, on the same data.
        options: how.
        folder: where the findings go, and what is done already; None: nowhere.
        command: as it is shown on the page.
        mend_command: that makes the changed model, without its output.
        distribution: the devices.
        progress: where messages and the time left go.

    Returns:
        The findings, written into the folder.

    Raises:
        UsageError: For a condition that is none, models of different data, too few images or none that is classified
            correctly.
    """
    conditions = [parse_requirement(text) for text in options.require]
    clock = Clock(options.time)
    models = [_begin(one, options, folder, clock, distribution) for one in opened]
    _check(models)
    for number, one in enumerate(models):
        one.sharing = len(models)
        with normalization.adjustable(one.subject.layers):
            _fragility(one, options, _Teller(progress, one, number, len(models)))
    eps, noise_std = _chosen_eps(models, options), _chosen_noise(models)
    for number, one in enumerate(models):
        one.sharing = len(models) - number
        with normalization.adjustable(one.subject.layers):
            arrays = _why_and_what_if(one, options, eps, noise_std, _Teller(progress, one, number, len(models)))
            if folder is not None and arrays:
                findings.write_examples(folder, number, arrays)
    requirements = [_judged(condition, models[0], options) for condition in conditions]
    return _findings(models, options, eps, noise_std, requirements, folder, clock, command, mend_command)


class _Teller:
    """Says what is being done, and how much of the time is left."""

    def __init__(self, progress: Progress, one: _Audited, number: int, of: int) -> None:
        self.progress, self.clock = progress, one.clock
        self.prefix = f"model {number + 1}: " if of > 1 else ""

    def __call__(self, text: str) -> None:
        left = self.clock.left
        rest = f" ({duration(max(0.0, left))} of the time left)" if math.isfinite(left) else ""
        self.progress.message(f"{self.prefix}{text}{rest}")


def _begin(
    opened: Opened, options: AuditOptions, folder: Path | None, clock: Clock, distribution: Distribution
) -> _Audited:
    evaluation, classifier = opened.evaluation, opened.classifier
    identity = {
        "model": classifier.id,
        "evaluation": to_plain(evaluation),
        "data": classifier.info.name,
        "options": {k: v for k, v in to_plain(options).items() if k not in ("time", "require", "max_clean_cost")},
    }
    return _Audited(Subject(classifier, evaluation, distribution), Pieces(folder, identity, clock), clock)


def _check(models: Sequence[_Audited]) -> None:
    first = models[0].subject
    for one in models:
        subject = one.subject
        if not subject.clean.any():
            raise UsageError(
                f"{subject.classifier.label}: none of {len(subject.clean)} images is classified correctly: is it the "
                "model of these data? See --input-scale and --class-names"
            )
        if not np.array_equal(subject.eval_set.labels, first.eval_set.labels):
            raise UsageError("a pair is audited on the same images: the two models do not take the same data")


# ---------------------------------------------------------------- how fragile


def _fragility(one: _Audited, options: AuditOptions, tell: _Teller) -> None:
    """Clean images, noise, the curve along eps."""
    subject = one.subject
    one.outcomes["clean"], one.about["clean"] = subject.clean, "no perturbation"
    shape = (*subject.classifier.size, subject.classifier.channels)
    full = options.eps_grid(shape, len(CURVE))
    one.costs = subject.costs(options, full[0] / 4)
    points = len(CURVE)
    if _plan(one, points) > one.left:
        points = FEW_POINTS
        one.skipped.append(f"{len(full) - len(options.eps_grid(shape, points))} of {len(full)} points of the curve")
    one.grid = options.eps_grid(shape, points)
    tell(f"{len(subject.layers)} normalization layers; accuracy along eps at {len(one.grid)} points")

    def curve() -> Plain:
        (result,) = subject.measure([options.curve(one.grid)], subject.everything)
        assert result.min_eps is not None
        return {"min_eps": [None if math.isinf(e) else float(e) for e in result.min_eps]}

    found = one.pieces.get(f"curve {len(one.grid)}", curve)["min_eps"]
    one.min_eps = np.array([np.inf if e is None else e for e in found], np.float64)
    for std in NOISE:
        _measure_all(one, f"noise {std:g}", noise(std))


def _measure_all(one: _Audited, name: str, perturbation: Perturbation) -> Mask:
    """The outcomes of all images under a perturbation, of the model as it is."""
    if name not in one.outcomes:
        found = one.pieces.get(name, lambda: {"correct": packed(_correct(one.subject, perturbation))})
        one.outcomes[name] = unpacked(found["correct"])
        one.about[name] = describe_perturbation(perturbation)
    return one.outcomes[name]


def _correct(subject: Subject, perturbation: Perturbation, positions: Index | None = None) -> Mask:
    where = subject.everything if positions is None else positions
    return subject.measure([perturbation], where)[0].correct


def _curve_accuracy(one: _Audited, positions: Index) -> Floats:
    """Accuracy left at each eps of the grid."""
    return np.array([np.mean(one.min_eps[positions] > eps) for eps in one.grid])


def _chosen_eps(models: Sequence[_Audited], options: AuditOptions) -> float:
    """The eps at which half of the clean accuracy of the choosing half is left, of a pair of both together."""
    accuracy = np.mean([_curve_accuracy(one, one.subject.halves.choosing) for one in models], axis=0)
    clean = float(np.mean([one.subject.clean[one.subject.halves.choosing].mean() for one in models]))
    grid = np.asarray(models[0].grid if len(models) == 1 else _common_grid(models))
    if len(models) > 1:
        accuracy = np.mean(
            [[np.mean(one.min_eps[one.subject.halves.choosing] > eps) for eps in grid] for one in models], axis=0
        )
    found = half_eps(grid, accuracy, clean)
    return round_eps(float(grid[-1]) if found is None else found, options.ord)


def _common_grid(models: Sequence[_Audited]) -> list[float]:
    return sorted(set(models[0].grid) & set(models[1].grid))


def _chosen_noise(models: Sequence[_Audited]) -> float:
    """The noise at which the accuracy of the choosing half is nearest to half of the clean one."""

    def off(std: float) -> float:
        shares = []
        for one in models:
            chosen = one.subject.halves.choosing
            clean = max(one.subject.clean[chosen].mean(), 1e-9)
            shares.append(abs(one.outcomes[f"noise {std:g}"][chosen].mean() / clean - 0.5))
        return float(np.mean(shares))

    return min(NOISE, key=lambda std: (off(std), std))


# ---------------------------------------------------------------- why, and what if


def _why_and_what_if(one: _Audited, options: AuditOptions, eps: float, noise_std: float, tell: _Teller) -> Arrays:
    """All the rest, in the order that lets the time be planned; the arrays of the example images."""
    subject = one.subject
    tell(f"strong attacks at eps {format_eps(eps)}, on {len(subject.halves.reporting)} images of the model as it is")
    began = one.clock.spent
    perturbations = {"clean": Clean(), "noise": noise(noise_std), "strong": options.strong(eps, subject.classes)}
    _confirm(one, "as it is", None, perturbations)
    each = max(_confirm_seconds(one), one.clock.spent - began)
    one.refused = subject.estimator.refusal() or ""
    arrays = _layers_and_examples(one, options, eps, tell)
    _search(one, options, eps, noise_std, each, tell)
    chosen = what_if.finalists(one.candidates, one.tried[0], options.max_clean_cost) if one.tried else []
    for number, candidate in enumerate(chosen):
        tell(f"confirming {number + 1} of {len(chosen)}: {candidate.title}")
        _confirm(one, candidate.title, candidate.mend, perturbations)
    chosen_titles = {candidate.title for candidate in chosen}
    one.candidates = [c.model_copy(update={"finalist": c.title in chosen_titles}) for c in one.candidates]
    return arrays


def _confirm(one: _Audited, name: str, mend: Mend | None, perturbations: Mapping[str, Perturbation]) -> None:
    """Outcomes of the reporting half, of the model as it is or after a change; with the flags of the model as it is."""
    subject, reporting = one.subject, one.subject.halves.reporting
    key = f"confirm {name} {[describe_perturbation(p) for p in perturbations.values()]}"

    def compute() -> Plain:
        with subject.changed(None if mend is None else subject.states(mend)):
            results = subject.measure(list(perturbations.values()), reporting, checks=mend is None)
        found: Plain = {n: packed(r.correct) for n, r in zip(perturbations, results, strict=True)}
        flags = [flag for result in results for flag in result.record.flags]
        found["flags"] = [flag.model_dump() for flag in dict.fromkeys(flags)]
        found["robust_after"] = dict(results[-1].record.robust_after or {})
        return found

    found = one.pieces.get(key, compute)
    one.confirmed[name] = {n: unpacked(found[n]) for n in perturbations}
    if mend is None:
        flags = [Flag.model_validate(flag) for flag in found["flags"]]
        flags += _found_by_square(found["robust_after"], len(reporting))
        one.flags = tuple(flags)
        one.upper_bounds = any(flag.check in MASKING for flag in flags)


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


def _layers_and_examples(one: _Audited, options: AuditOptions, eps: float, tell: _Teller) -> Arrays:
    """Layer by layer, by adversarial images of the choosing half; and the images that are shown."""
    subject = one.subject
    some = subject.halves.choosing[:LOOKED_AT]
    arrays: Arrays = {}

    def compute() -> Plain:
        tell("layer by layer")
        (result,) = subject.measure([options.search(eps)], some)
        x = subject.eval_set.pixels[some]
        actual = None if one.refused else subject.states(what_if.STATISTICS)
        numbers = layerwise.measure(
            subject.classifier,
            subject.layers,
            x,
            subject.eval_set.labels[some],
            result.images,
            subject.eval_set.index[some],
            ord=options.ord,
            actual=actual,
            batch_size=subject.eval_set.batch_size,
        )
        shown = _shown(one, some, result.correct)
        examples = _examples(one, some[shown], result.images[shown], eps)
        arrays.update(clean=x[shown], attacked=result.images[shown])
        return {
            "numbers": {name: vars(found) for name, found in numbers.items()},
            "examples": [example.model_dump() for example in examples],
        }

    found = one.pieces.get(f"layers {eps}", compute)
    one.layers = _described(subject.layers, found["numbers"])
    one.examples = tuple(Example.model_validate(example) for example in found["examples"])
    one.batch = _by_batch(one, options, eps, tell)
    return arrays


def _shown(one: _Audited, positions: Index, correct: Mask) -> Index:
    """Places of images that the attack changed, of as many classes as there are."""
    changed = np.flatnonzero(one.subject.clean[positions] & ~correct)
    labels = one.subject.eval_set.labels[positions]
    turn = [int(np.sum(labels[changed[:i]] == labels[place])) for i, place in enumerate(changed)]
    return changed[np.argsort(turn, kind="stable")][:EXAMPLES].astype(np.int64)


def _examples(one: _Audited, positions: Index, attacked: np.ndarray, eps: float) -> list[Example]:
    eval_set = one.subject.eval_set
    names = eval_set.dataset.info.classes
    if not len(positions):
        return []
    before, after = eval_set.clean_logits[positions].argmax(axis=1), eval_set.logits(attacked).argmax(axis=1)
    labels = eval_set.labels[positions]
    return [
        Example(label=str(names[y]), clean=str(names[a]), attacked=str(names[b]), eps=eps)
        for y, a, b in zip(labels, before, after, strict=True)
    ]


def _described(layers: Sequence[NormalizationLayer], numbers: Mapping[str, Plain]) -> tuple[Layer, ...]:
    """What each layer is, with what it does to perturbations."""
    described = []
    for place, found in enumerate(layers, 1):
        variance, gain = found.variance, found.state.gain
        alive = normalization.live(variance)
        m = normalization.median_variance(variance)
        fields: Plain = dict(numbers.get(found.name, {}))
        if found.is_batch:
            fields |= {"dead": int(np.sum(~alive)), "below_c": float(np.mean(variance < found.state.c))}
        described.append(
            Layer(
                name=found.name,
                kind=found.kind,
                place=place,
                channels=found.channels,
                c=found.state.c,
                momentum=found.momentum,
                frozen=found.frozen,
                variance=_quantiles(variance[alive]),
                median_variance=m,
                gain=() if gain is None else _quantiles(gain[alive]),
                **fields,
            )
        )
    return tuple(described)


def _quantiles(values: Floats) -> tuple[float, ...]:
    """Quantiles as ratios to the median; none without values, or where the median is 0."""
    if not len(values) or np.median(values) <= 0:
        return ()
    return tuple(float(q) for q in np.quantile(values, QUANTILES) / np.median(values))


def _by_batch(one: _Audited, options: AuditOptions, eps: float, tell: _Teller) -> tuple[Accuracy, ...]:
    """Accuracies with BN normalizing by the batch: a diagnosis."""
    if not any(layer.is_batch for layer in one.subject.layers):
        return ()
    pgd = Attack.model_validate({"attack": "pgd", "ord": options.ord, "eps": eps, "steps": 20, "keep": "last"})
    perturbations = {"clean": Clean(), "noise": noise(NOISE[1]), "PGD": pgd}

    def compute() -> Plain:
        tell("statistics of the batch")
        try:
            evaluator = one.subject.by_batch()
            return {n: packed(evaluator.run(p).correct) for n, p in perturbations.items()}
        except UsageError as error:  # a BN layer of a class of its own
            return {"refused": str(error)}

    found = one.pieces.get(f"statistics of the batch {eps}", compute)
    if "refused" in found:
        return ()
    return tuple(_accuracy(n, unpacked(found[n]), describe_perturbation(p)) for n, p in perturbations.items())


def _search(one: _Audited, options: AuditOptions, eps: float, noise_std: float, confirm: float, tell: _Teller) -> None:
    """Try the changes on the choosing half: all layers together, then one at a time as far as the time allows."""
    subject, layers = one.subject, one.subject.layers
    if not layers:
        _corruptions(one, tell)
        return
    reestimate = not one.refused and any(layer.is_batch for layer in layers)
    before = _candidate(one, Mend(), options, eps, noise_std)
    one.tried = [before]
    mends = what_if.all_layers(reestimate, any(layer.state.gamma is not None for layer in layers))
    began, n_before = one.clock.spent, len(mends)
    for number, mend in enumerate(mends, 1):
        if number == 1 or number % 4 == 0:
            tell(f"what if: {number} of {n_before} changes of all layers")
        one.candidates.append(_candidate(one, mend, options, eps, noise_std))
    each = (one.clock.spent - began) / n_before
    _corruptions(one, tell, reserve=(3 * confirm))
    best = what_if.best_for_all(one.candidates, before, options.max_clean_cost)
    shape = Mend(relative_c=0.1, keep_gain=True, reestimate=reestimate) if best is None else best.mend
    singles = what_if.single_layers(layers, shape)
    for number, mend in enumerate(singles, 1):
        if one.left < 3 * confirm + each:
            one.skipped.append(f"{len(singles) - number + 1} of {len(singles)} changes of one layer")
            break
        tell(f"what if: layer {number} of {len(singles)} by itself, {mend.layers[0]}")
        one.candidates.append(_candidate(one, mend, options, eps, noise_std))


def _candidate(one: _Audited, mend: Mend, options: AuditOptions, eps: float, noise_std: float) -> Candidate:
    """A change as it does on the choosing half."""
    subject, choosing = one.subject, one.subject.halves.choosing
    name = what_if.title(mend)

    def compute() -> Plain:
        states: Mapping[str, LayerState] | None = None if mend == Mend() else subject.states(mend)
        with subject.changed(states):
            results = subject.measure([Clean(), noise(noise_std), options.search(eps)], choosing)
        return {n: float(r.correct.mean()) for n, r in zip(what_if.OUTCOMES, results, strict=True)}

    found = one.pieces.get(f"what if {name} {eps} {noise_std}", compute)
    return Candidate(title=name, mend=mend, **found)


def _corruptions(one: _Audited, tell: _Teller, reserve: float = 0.0) -> None:
    """The noises of CIFAR-10-C, where there is time."""
    assert one.costs is not None
    n = len(one.subject.everything)
    if one.left < reserve + len(CORRUPTIONS) * n * one.costs.forward:
        one.skipped.append("the corruptions")
        return
    tell("corruptions")
    for name in CORRUPTIONS:
        perturbation = corruption(name)
        _measure_all(one, f"{name} {perturbation.severity}", perturbation)


# ---------------------------------------------------------------- time


def _confirm_seconds(one: _Audited) -> float:
    """An estimate of one confirmation, of a model that withstands as much as most."""
    assert one.costs is not None
    g, n = one.costs.gradient, len(one.subject.halves.reporting)
    return n * (ROBUST_SHARE * (250 * g + 500 * one.costs.forward) + 15 * g)


def _plan(one: _Audited, points: int) -> float:
    """An estimate of the seconds that all takes but single layers and corruptions."""
    assert one.costs is not None
    subject, g = one.subject, one.costs.gradient
    n, choosing = len(subject.everything), len(subject.halves.choosing)
    curve = n * (21 + 4 * points) * g
    changes = len(what_if.all_layers(True, True)) if subject.layers else 0
    each = len(subject.estimator.images) * one.costs.forward + choosing * 13 * g
    why = 100 * 20 * g + n * 25 * g
    return curve + changes * each + why + 4 * _confirm_seconds(one) + 6 * one.costs.compile


# ---------------------------------------------------------------- the findings


def _accuracy(name: str, correct: Mask, about: str) -> Accuracy:
    share = Proportion(int(correct.sum()), len(correct))
    low, high = share.interval() or (0.0, 1.0)
    return Accuracy(
        name=name, about=about, accuracy=Interval(value=share.rate or 0.0, low=low, high=high), n=len(correct)
    )


def _judged(condition: Condition, one: _Audited, options: AuditOptions) -> Requirement:
    """Whether the model as it is meets a condition, on all images."""
    if condition.quantity == "half-eps":
        measured = _half(one) or float(one.grid[-1])
    elif condition.quantity == "clean":
        measured = float(one.outcomes["clean"].mean())
    else:
        assert condition.at is not None
        name = f"{condition.quantity} {condition.at:g}"
        perturbation: Perturbation = noise(condition.at)
        if condition.quantity == "strong":
            perturbation = options.strong(condition.at, one.subject.classes)
            name = f"strong at eps {format_eps(condition.at)}"
        measured = float(_measure_all(one, name, perturbation).mean())
    return Requirement(text=condition.text, value=measured, met=condition.met_by(measured))


def _half(one: _Audited) -> float | None:
    everything = one.subject.everything
    return half_eps(np.asarray(one.grid), _curve_accuracy(one, everything), float(one.subject.clean.mean()))


def _model_findings(
    one: _Audited, options: AuditOptions, eps: float, noise_std: float, mend_command: str
) -> ModelFindings:
    subject, classifier = one.subject, one.subject.classifier
    n = len(subject.halves.reporting)
    chosen = [c for c in one.candidates if c.finalist]
    level = what_if.level(len(chosen))
    before = one.confirmed["as it is"]
    control = one.confirmed.get(what_if.title(what_if.STATISTICS))
    finalists = tuple(
        what_if.finalist(
            c, before, one.confirmed[c.title], control if c.mend.changes_c else None, level, options.max_clean_cost
        )
        for c in chosen
    )
    strong = options.strong(eps, subject.classes)
    found = ModelFindings(
        source=classifier.label,
        id=classifier.id,
        parameters=classifier.model.count_params(),
        found=tuple((word, text.strip()) for word, _, text in (line.partition(" ") for line in classifier.found)),
        notes=() if subject.layers else (advice.FOLDED,),
        layers=one.layers,
        accuracies=tuple(_accuracy(name, correct, one.about[name]) for name, correct in one.outcomes.items()),
        curve=tuple(CurvePoint(eps=e, accuracy=_accuracy("", one.min_eps > e, "").accuracy) for e in one.grid),
        half_eps=_half(one),
        strong=_accuracy("strong", before["strong"], describe_perturbation(strong)),
        batch_statistics=one.batch,
        candidates=tuple(one.candidates),
        as_it_is=one.tried[0] if one.tried else None,
        finalists=finalists,
        refused=one.refused if any(layer.is_batch for layer in subject.layers) else "",
        flags=one.flags,
        upper_bounds=one.upper_bounds,
        examples=one.examples,
    )
    advised = advice.advise(found, eps=eps, n=n, level=level, command=mend_command)
    return found.model_copy(update={"advice": advised})


def _findings(
    models: Sequence[_Audited],
    options: AuditOptions,
    eps: float,
    noise_std: float,
    requirements: Sequence[Requirement],
    folder: Path | None,
    clock: Clock,
    command: str,
    mend_command: str,
) -> Findings:
    first = models[0].subject
    chosen = max(sum(c.finalist for c in one.candidates) for one in models)
    found = Findings(
        models=tuple(_model_findings(one, options, eps, noise_std, mend_command) for one in models),
        pair=_pair(models) if len(models) > 1 else (),
        requirements=tuple(requirements),
        references=references(first.classifier.info.name, options.ord),
        data=first.eval_set.dataset.info.label,
        split=first.evaluation.split,
        n_choosing=len(first.halves.choosing),
        n_reporting=len(first.halves.reporting),
        statistics_from=first.statistics_from,
        ord=options.ord,
        eps=eps,
        strong_about=options.strong_about(),
        noise_std=noise_std,
        level=what_if.level(chosen),
        max_clean_cost=options.max_clean_cost,
        skipped=tuple(dict.fromkeys(text for one in models for text in one.skipped)),
        options=to_plain(options),
        command=command,
        date=datetime.date.today().isoformat(),
        seconds=round(clock.spent, 1),
        versions=backend.versions(),
        device=backend.device_name(),
    )
    if folder is not None:
        findings.write(folder, found)
    return found


def _pair(models: Sequence[_Audited]) -> tuple[Difference, ...]:
    """Paired differences, second - first, with 95% intervals."""
    first, second = models
    common = [name for name in first.outcomes if name in second.outcomes]
    found = [what_if.difference(name, first.outcomes[name], second.outcomes[name], 0.95) for name in common]
    strong = [one.confirmed["as it is"]["strong"] for one in models]
    return (*found, what_if.difference("strong", strong[0], strong[1], 0.95))
