"""Mending: a copy of a model gets another c, other statistics or some training, and is compared with the original.

What is judged is the file that was written, called as the original is, on images that nothing was fitted on.
"""

from __future__ import annotations

import datetime
import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bn_vuln.auditing.halves import Halves, fitting_images, halves_of
from bn_vuln.auditing.mend_request import Threat, check_options
from bn_vuln.auditing.mended import ChangedLayer, Mended, card
from bn_vuln.auditing.options import described
from bn_vuln.auditing.what_if import difference
from bn_vuln.config import Evaluation, Mend, Perturbation
from bn_vuln.data.transforms import pixel_array
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.evaluation.evaluator import Evaluator
from bn_vuln.evaluation.opening import Opened
from bn_vuln.evaluation.result import Result
from bn_vuln.external import loading
from bn_vuln.models import normalization_layers as normalization
from bn_vuln.models.normalization_layers import Estimator, LayerState, NormalizationLayer, c_of
from bn_vuln.runtime import backend
from bn_vuln.runtime.files import atomic_path, atomic_write
from bn_vuln.runtime.progress import Progress
from bn_vuln.training.fine_tuning import fine_tune
from bn_vuln.typing import Images, KerasModel

COMPARED = 32  # images of which a file must compute the same as the model that was saved
LEVEL = 0.95
NO_LAYER = "no normalization layer: BN may have been folded at export; mend the model before it"


@dataclass(frozen=True)
class MendResult:
    """A mended model.

    Attributes:
        mended: what was made, as its card has it.
        model: the Keras model.
    """

    mended: Mended
    model: KerasModel


def mend(
    opened: Opened,
    options: Mend,
    threat: Threat,
    *,
    out: Path | None,
    custom_objects: loading.CustomObjects | None,
    command: str,
    progress: Progress,
) -> MendResult:
    """Make a mended copy of a model, and measure both.

    Args:
        opened: the model, which is not changed, and the images that both are measured on: half of them.
        options: what is changed.
        threat: what both are measured under.
        out: the `.keras` file; its card lies beside it. None: nothing is kept.
        custom_objects: what the model was opened with.
        command: for the card.
        progress: where messages go.

    Returns:
        What was made, and the mended model as its file has it.

    Raises:
        UsageError: Nothing is to be changed, there are too few images or no such layers, the model has no gradient or
            cannot be copied, or the measured split is that of training.
        BnvulnError: Keras cannot save the model, or fine-tuning spoilt it.
    """
    begun, classifier, evaluation = time.monotonic(), opened.classifier, opened.evaluation
    _check(options, classifier, evaluation)
    evaluator = Evaluator(classifier, evaluation, checks="none")
    measured = evaluator.eval_set.dataset
    split = halves_of(measured)
    some = evaluator.eval_set.at_input(measured.images[:COMPARED])
    with tempfile.TemporaryDirectory() as folder:
        copy = _saved(classifier, Path(folder) / "copy.keras", custom_objects, some)
        layers, fitted_on = _change(copy, options, evaluator, split, progress)
        path = out or Path(folder) / "mended.keras"
        # What the trial call said was of the original.
        mended = replace(_saved(copy, path, custom_objects, some), trial=None, scale_doubt=None)
        sha256 = _sha256(path)
    perturbations = threat.perturbations(len(measured.info.classes))
    before = _measure("before", evaluator, split, perturbations, progress)
    after = _measure("after", Evaluator(mended, evaluation, checks="none"), split, perturbations, progress)
    found = Mended(
        source=classifier.label,
        source_id=classifier.id,
        source_sha256="" if classifier.path is None else _sha256(_file_of(classifier.path)),
        file="" if out is None else str(out),
        sha256=sha256,
        mend=options,
        layers=layers,
        fitted_on=tuple(fitted_on),
        data=measured.info.label,
        split=evaluation.split,
        n=len(split.reporting),
        table=tuple(
            difference(name, one.correct, other.correct, LEVEL)
            for name, one, other in zip(perturbations, before, after, strict=True)
        ),
        noise_std=threat.noise,
        strong=described(perturbations["strong"]),
        flags=_flags(before, after),
        command=command,
        date=datetime.date.today().isoformat(),
        seconds=round(time.monotonic() - begun, 1),
        versions=backend.versions(),
        device=backend.device_name(),
    )
    if out is not None:
        atomic_write(out.with_suffix(".md"), card(found))
    return MendResult(found, mended.model)


def _check(options: Mend, classifier: Classifier, evaluation: Evaluation) -> None:
    check_options(options)
    if evaluation.split == "train":
        raise UsageError(
            "split train is what a change is fitted on: before and after are measured on another one, or on all"
        )
    if options.finetune and classifier.output is not None and not classifier.output.differentiable:
        raise UsageError(f"{classifier.label}: it has no gradient, so it cannot be fine-tuned")


def _change(
    mended: Classifier, options: Mend, evaluator: Evaluator, split: Halves, progress: Progress
) -> tuple[tuple[ChangedLayer, ...], list[str]]:
    """Change a copy of the model; (its layers before and after, what it was fitted on)."""
    fitted_on = []
    measured, evaluation = evaluator.eval_set.dataset, evaluator.evaluation
    examples, where = fitting_images(mended, evaluation, measured, split)
    pixels = pixel_array(examples.images[:], mended.size)
    layers = normalization.find(mended.model, mended.predict, pixels[: normalization.LOOKED_AT])
    if not layers and (options.changes_c or options.reestimate):
        raise UsageError(f"{mended.label}: {NO_LAYER}")
    estimator = Estimator(mended.model, layers, mended.predict, pixels, batch_size=evaluator.eval_set.batch_size)
    states = estimator.states(options)
    if options.reestimate:
        fitted_on.append(f"statistics on {where}")
        progress.message(fitted_on[-1])
    normalization.write(layers, states)
    _check_written(layers, states)
    if options.finetune is not None:
        examples, where = fitting_images(mended, evaluation, measured, split, all_images=True)
        fitted_on.append(f"fine-tuned on {where}")
        progress.message(fitted_on[-1])
        fine_tune(
            mended.model,
            options.finetune,
            examples,
            predict=lambda x, training: replace(mended, training=training).predict(x),
            size=mended.size,
            progress=progress,
        )
    changed = tuple(
        ChangedLayer(name=one.name, kind=one.kind, before=one.state.c, after=states[one.name].c) for one in layers
    )
    return changed, fitted_on


def _flags(before: Sequence[Result], after: Sequence[Result]) -> tuple[str, ...]:
    """What the checks say, with the model that it is said of."""
    said: dict[str, list[str]] = {}
    for which, results in (("before", before), ("after", after)):
        for text in {flag.message: None for result in results for flag in result.record.flags}:
            said.setdefault(text, []).append(which)
    return tuple(f"{' and '.join(which)}: {text}" for text, which in said.items())


def _measure(
    which: str, evaluator: Evaluator, split: Halves, perturbations: dict[str, Perturbation], progress: Progress
) -> Sequence[Result]:
    """The results of the reporting half."""
    own, found = evaluator.subset(split.reporting), []
    for name, perturbation in perturbations.items():
        found.append(own.run(perturbation, progress=progress))
        progress.message(f"{which}: {name} {100 * found[-1].record.accuracy:.1f}%")
    return found


def _check_written(layers: Sequence[NormalizationLayer], states: Mapping[str, LayerState]) -> None:
    """Raise `UsageError` for a layer of another's making that does not keep another c."""
    for one in layers:
        kept = np.min(one.layer.moving_variance) >= 0 if one.is_batch else c_of(one.layer) == states[one.name].c
        if not kept:
            raise UsageError(
                f"{one.name} ({type(one.layer).__name__}): c = {states[one.name].c:.4g} cannot be saved in it"
            )


def _saved(
    classifier: Classifier, path: Path, custom_objects: loading.CustomObjects | None, some: Images
) -> Classifier:
    """Save a model and open the file; it must compute the same for some images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(path) as temporary:
            classifier.model.save(temporary)
    except OSError:
        raise
    except Exception as error:  # Keras and custom layers raise many kinds
        text = " ".join(str(error).split())[:200]
        raise BnvulnError(f"{classifier.label}: Keras cannot save it: {type(error).__name__}: {text}") from None
    opened = replace(classifier, model=loading.load(path, custom_objects=custom_objects).model)
    if classifier.trial is None or classifier.trial.deterministic:
        expected, found = (np.asarray(backend.compile(one.predict)(some)) for one in (classifier, opened))
        if not np.allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max(initial=0), equal_nan=True):
            raise BnvulnError(f"{classifier.label}: saved and loaded by Keras it computes something else")
    return opened


def _file_of(path: Path) -> Path:
    return path / "model.keras" if (path / "model.keras").is_file() else path


def _sha256(path: Path) -> str:
    """Of a file; "" of a folder."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
