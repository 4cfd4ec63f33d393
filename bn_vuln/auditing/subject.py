"""A model under audit: its examples in two halves, its normalization layers, and what it does in a changed state."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bn_vuln.analysis import metrics
from bn_vuln.auditing.halves import Halves, fitting_images, halves_of
from bn_vuln.auditing.options import CURVE, AuditOptions
from bn_vuln.config import Evaluation, Mend, Perturbation
from bn_vuln.data.transforms import pixel_array
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.evaluation.evaluator import Evaluator
from bn_vuln.evaluation.result import Result
from bn_vuln.models import normalization_layers as normalization
from bn_vuln.models.normalization_layers import Estimator, LayerState, NormalizationLayer
from bn_vuln.runtime.distribution import Distribution
from bn_vuln.typing import Index, Mask

TIMED = (32, 32, 500)  # images, by which it is measured how long a gradient takes, after a few that compile it
SECONDS_TIMED = 1.0  # suffice


@dataclass(frozen=True)
class Costs:
    """How long things take, in seconds.

    Attributes:
        gradient: of one image.
        compile: of an attack's graph.
    """

    gradient: float
    compile: float

    @property
    def forward(self) -> float:
        """Seconds of one image's logits: a third of a gradient."""
        return self.gradient / 3


class Subject:
    """One model under audit. Inside of `changed` everything is measured of the changed model."""

    def __init__(
        self,
        classifier: Classifier,
        evaluation: Evaluation,
        distribution: Distribution,
        stack: contextlib.ExitStack,
    ) -> None:
        """Load the examples, and find the layers.

        Args:
            classifier: the model as it is.
            evaluation: data set, split and limit.
            distribution: the devices.
            stack: at whose end the model is what it was before.

        Raises:
            UsageError: There are too few images; see `EvalSet`.
        """
        self.classifier, self.evaluation, self.distribution = classifier, evaluation, distribution
        self.evaluator = Evaluator(classifier, evaluation, checks="none", distribution=distribution)
        self.eval_set = self.evaluator.eval_set
        self.everything = np.arange(len(self.eval_set))
        self.halves: Halves = halves_of(self.eval_set.dataset)
        self.layers: list[NormalizationLayer] = normalization.find(
            classifier.model, classifier.predict, self.eval_set.pixels[: normalization.LOOKED_AT]
        )
        stack.enter_context(normalization.adjustable(self.layers))  # before anything is compiled that is used later
        self.clean: Mask = metrics.is_correct(self.eval_set.clean_logits, self.eval_set.labels)
        examples, self.statistics_from = fitting_images(classifier, evaluation, self.eval_set.dataset, self.halves)
        self.estimator = Estimator(
            classifier.model,
            self.layers,
            classifier.predict,
            pixel_array(examples.images[:], classifier.size),
            batch_size=self.eval_set.batch_size,
        )
        self._state: Mapping[str, LayerState] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of its input."""
        return (*self.classifier.size, self.classifier.channels)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.eval_set.dataset.info.classes)

    def states(self, mend: Mend) -> Mapping[str, LayerState]:
        """Return the states of the layers after a change."""
        return self.estimator.states(mend)

    @contextlib.contextmanager
    def changed(self, states: Mapping[str, LayerState] | None) -> Iterator[None]:
        """Inside, the model is the changed one; None: as it is."""
        self._state = states
        try:
            with normalization.applied(self.layers, states or {}):
                yield
        finally:
            self._state = None

    def measure(self, perturbations: Sequence[Perturbation], positions: Index, *, checks: bool = False) -> list[Result]:
        """Measure perturbations on some of the images, of the model in its present state.

        Args:
            perturbations: each at one eps, or with a grid.
            positions: of the images.
            checks: run the checks too, whose flags are in the records.
        """
        evaluator = self.evaluator.subset(positions)
        if self._state is not None:
            del evaluator.eval_set.clean_logits  # they are those of the model as it was
        if checks:
            evaluator.checks = "basic"
        else:
            evaluator.model_flags = ()
        return [evaluator.run(perturbation) for perturbation in perturbations]

    def by_batch(self) -> Evaluator:
        """Return an evaluator of as many of the images, with BN normalizing by the batch."""
        limit = min(500, len(self.eval_set))  # one batch
        evaluation = self.evaluation.model_copy(update={"bn_statistics": "batch", "limit": limit})
        return Evaluator(self.classifier, evaluation, checks="none", distribution=self.distribution)

    def costs(self, options: AuditOptions) -> Costs:
        """Measure how long a gradient takes, by the attack of the search at an eps at which few images are lost."""
        attack, times = options.search(options.eps_grid(self.shape, len(CURVE))[0] / 4), []
        correct = np.flatnonzero(self.clean)
        for n in (2, *TIMED):
            begun = time.monotonic()
            (result,) = self.measure([attack], correct[:n])
            times.append(time.monotonic() - begun)
            if len(times) > 1 and times[-1] > SECONDS_TIMED:
                break
        evaluated = result.record.n * max(1.0, float(result.record.n_evaluations or 1.0))
        return Costs(times[-1] / evaluated, times[0])
