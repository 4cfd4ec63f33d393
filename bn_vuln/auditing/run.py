"""An audit from beginning to end: what a model is, how fragile, why, what if, and what to do.

The time is planned: what is left out to keep it is left out in the order single layers, corruptions, points of the
curve, and named. What is said is always confirmed.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bn_vuln.auditing import advice, confirmation, findings, fragility, plan, what_if, why
from bn_vuln.auditing.audited import Audited, Chosen, accuracy
from bn_vuln.auditing.commands import Commands
from bn_vuln.auditing.findings import CurvePoint, Difference, Findings, ModelFindings, Requirement
from bn_vuln.auditing.options import SEARCH_STEPS, AuditOptions, described, parse_requirement
from bn_vuln.auditing.pieces import Clock, Pieces
from bn_vuln.auditing.references import references
from bn_vuln.auditing.subject import Subject
from bn_vuln.config import to_plain
from bn_vuln.data.describe import format_shape
from bn_vuln.errors import UsageError
from bn_vuln.evaluation.opening import Opened
from bn_vuln.runtime import backend
from bn_vuln.runtime.distribution import Distribution
from bn_vuln.runtime.progress import Progress
from bn_vuln.typing import Plain
from bn_vuln.version import __version__


def audit(
    opened: Sequence[Opened],
    options: AuditOptions,
    *,
    folder: Path | None,
    commands: Commands,
    distribution: Distribution,
    progress: Progress,
) -> Findings:
    """Audit one model, or two as a pair.

    Args:
        opened: one or two models, on the same data.
        options: how.
        folder: where the findings go, and what is done already; None: nowhere.
        commands: for the page.
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
    with contextlib.ExitStack() as stack:
        subjects = [Subject(one.classifier, one.evaluation, distribution, stack) for one in opened]
        _check(subjects, options)
        if folder is not None:
            labels = [subject.classifier.label for subject in subjects]
            findings.check_folder(folder, labels, subjects[0].eval_set.dataset.info.label)
        models = [
            Audited(subject, options, Pieces(folder, _identity(subject, options), clock), clock, progress)
            for subject in subjects
        ]
        for number, audited in enumerate(models, 1):
            audited.label, audited.sharing = f"model {number}: " if len(models) > 1 else "", len(models)
            audited.refused = audited.subject.estimator.refusal() or ""
        plan.plan(models)
        for audited in models:
            fragility.measure(audited)
        requirements = [fragility.requirement(models[0], condition) for condition in conditions]
        chosen = fragility.choose(models)
        for number, audited in enumerate(models):
            audited.sharing = len(models) - number
            _why_and_what_if(audited, chosen, folder, number)
        found = _findings(models, options, chosen, requirements, clock, commands)
    if folder is not None:
        findings.write(folder, found)
    return found


def _identity(subject: Subject, options: AuditOptions) -> Plain:
    """All that changes a number."""
    others = ("time", "require", "max_clean_cost")
    evaluation = to_plain(subject.evaluation)
    evaluation["dataset"] = subject.eval_set.dataset.info.name  # of a user's data: a digest, wherever they are
    options_ = {name: value for name, value in to_plain(options).items() if name not in others}
    return {"model": subject.classifier.id, "evaluation": evaluation, "options": options_, "version": __version__}


def _check(subjects: Sequence[Subject], options: AuditOptions) -> None:
    first = subjects[0]
    if len({one.classifier.id for one in subjects}) < len(subjects):
        raise UsageError("a pair is two different models: these are one")
    for one in subjects:
        if not one.clean.any():
            raise UsageError(
                f"{one.classifier.label}: none of {len(one.clean)} images is classified correctly: is it the "
                "model of these data? See --input-scale and --class-names"
            )
        same = one.eval_set.dataset.info.name == first.eval_set.dataset.info.name
        if not same or not np.array_equal(one.eval_set.labels, first.eval_set.labels):
            raise UsageError("a pair is audited on the same images: the two models do not take the same data")
        if options.ord == "2" and one.shape != first.shape:
            sizes = " and ".join(format_shape(subject.shape) for subject in subjects)
            raise UsageError(f"a pair with inputs of {sizes} has no length in common: use --ord inf")


def _why_and_what_if(one: Audited, chosen: Chosen, folder: Path | None, number: int) -> None:
    """All of one model that follows the choice of eps, in an order in which the time can be planned."""
    seconds = confirmation.confirm_as_it_is(one, chosen)
    arrays = why.measure(one, chosen)
    if folder is not None:
        findings.write_examples(folder, number, one.subject.classifier.id, arrays)
    fragility.by_batch(one, chosen)
    fragility.corruptions(one, reserve=plan.reserve(one, seconds))
    confirmation.search(one, chosen, seconds)
    confirmation.confirm_finalists(one, chosen)


# ---------------------------------------------------------------- the findings


def _findings(
    models: Sequence[Audited],
    options: AuditOptions,
    chosen: Chosen,
    requirements: Sequence[Requirement],
    clock: Clock,
    commands: Commands,
) -> Findings:
    first = models[0].subject
    level = min(_level(one) for one in models)
    return Findings(
        models=tuple(
            _of_model(
                one,
                chosen,
                level,
                functools.partial(commands.mend, number, ord=options.ord, eps=chosen.eps, noise=chosen.noise_std),
            )
            for number, one in enumerate(models)
        ),
        pair=_pair(*models) if len(models) == 2 else (),
        requirements=tuple(requirements),
        references=references(first.eval_set.dataset.info.name, options.ord),
        data=first.eval_set.dataset.info.label,
        split=first.evaluation.split,
        n_choosing=len(first.halves.choosing),
        n_reporting=len(first.halves.reporting),
        statistics_from=first.statistics_from,
        ord=options.ord,
        eps=chosen.eps,
        eps_about=chosen.about,
        curve_about=f"APGD on the cross-entropy, {SEARCH_STEPS} steps, all {len(first.everything)} images",
        search_about=f"APGD on the cross-entropy, {SEARCH_STEPS} steps, {len(first.halves.choosing)} images",
        strong_about=options.strong_about(),
        noise_std=chosen.noise_std,
        level=level,
        max_clean_cost=options.max_clean_cost,
        skipped=tuple(dict.fromkeys(text for one in models for text in one.skipped)),
        options={**commands.options, **to_plain(options)},
        command=commands.audit,
        date=datetime.date.today().isoformat(),
        seconds=round(clock.spent, 1),
        versions=backend.versions(),
        device=backend.device_name(),
    )


def _of_model(one: Audited, chosen: Chosen, level: float, command: advice.Command) -> ModelFindings:
    subject, classifier = one.subject, one.subject.classifier
    finalists = [candidate for candidate in one.candidates if candidate.finalist]
    before = one.confirmed[confirmation.AS_IT_IS]
    control = one.confirmed.get(what_if.title(what_if.STATISTICS))
    strong = described(one.options.strong(chosen.eps, subject.classes))
    along_eps = [accuracy("", one.min_eps > eps, "").accuracy for eps in one.grid]
    found = ModelFindings(
        source=classifier.label,
        id=classifier.id,
        parameters=classifier.model.count_params(),
        found=tuple((word, text.strip()) for word, _, text in (line.partition(" ") for line in classifier.found)),
        notes=() if subject.layers else (advice.FOLDED,),
        layers=one.layers,
        logits_amplification=one.logits_amplification,
        accuracies=tuple(accuracy(name, correct, one.about[name]) for name, correct in one.outcomes.items()),
        curve=tuple(CurvePoint(eps=eps, accuracy=left) for eps, left in zip(one.grid, along_eps, strict=True)),
        half_eps=fragility.half(one),
        strong=accuracy("strong", before["strong"], strong),
        batch_statistics=one.by_batch,
        as_it_is=one.before,
        candidates=tuple(one.candidates),
        finalists=tuple(
            what_if.finalist(
                candidate,
                before,
                one.confirmed[candidate.title],
                control if candidate.mend.changes_c else None,
                level,
                one.options.max_clean_cost,
            )
            for candidate in finalists
        ),
        refused=one.refused if any(layer.is_batch for layer in subject.layers) else "",
        flags=one.flags,
        upper_bounds=one.upper_bounds,
        examples=one.examples,
    )
    advised = advice.advise(found, ord=one.options.ord, eps=chosen.eps, level=level, command=command)
    return found.model_copy(update={"advice": advised})


def _level(one: Audited) -> float:
    """The level that the intervals of its finalists need."""
    finalists = [candidate.mend for candidate in one.candidates if candidate.finalist]
    return what_if.level(len(finalists), what_if.STATISTICS in finalists)


def _pair(first: Audited, second: Audited) -> tuple[Difference, ...]:
    """Paired differences, second - first, with 95% intervals."""
    common = [name for name in first.outcomes if name in second.outcomes]
    found = [what_if.difference(name, first.outcomes[name], second.outcomes[name], 0.95) for name in common]
    one, other = (audited.confirmed[confirmation.AS_IT_IS]["strong"] for audited in (first, second))
    return (*found, what_if.difference("strong", one, other, 0.95))
