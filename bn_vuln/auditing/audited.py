"""One model with what was measured of it so far, and how much of the time is left for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bn_vuln.analysis.statistics import Proportion
from bn_vuln.auditing.findings import Accuracy, Candidate, Example, Interval, Layer
from bn_vuln.auditing.options import AuditOptions, described
from bn_vuln.auditing.pieces import Clock, Pieces, packed, unpacked
from bn_vuln.auditing.subject import Costs, Subject
from bn_vuln.config import Perturbation
from bn_vuln.records import Flag
from bn_vuln.runtime.progress import Progress, duration
from bn_vuln.typing import Floats, Mask

NOT_MEASURED = Costs(0.0, 0.0)


@dataclass(frozen=True)
class Chosen:
    """What is chosen by the choosing half before anything is tried.

    Attributes:
        eps: of the attacks.
        noise_std: of the noise.
        about: how eps was chosen.
    """

    eps: float
    noise_std: float
    about: str


@dataclass(frozen=True)
class Repaired:
    """A model with its statistics estimated again, on the choosing half.

    Attributes:
        min_eps: as in `Audited`, float64 [n].
        outcomes: by name of the perturbation, bool [n].
    """

    min_eps: Floats
    outcomes: dict[str, Mask]


@dataclass
class Audited:
    """One model under audit with its findings so far.

    Attributes:
        subject: the model with its images and layers.
        options: of the audit.
        pieces: what is done already.
        clock: of the whole audit.
        progress: where messages go.
        label: in messages, of a pair.
        sharing: models of a pair that have yet to share the time that is left.
        costs: how long things take.
        grid: eps of the curve, ascending.
        min_eps: smallest eps of the grid at which each image is misclassified, float64 [n]; infinite where none is.
        repaired: of a model whose statistics are stale, the same and the outcomes of the choosing half with statistics
            estimated again; by them eps and noise are chosen. None of all others.
        outcomes: of all images of the model as it is, by name of the perturbation.
        about: the perturbations of these in words.
        flags: of the checks.
        upper_bounds: True where a check says that an attack found too little.
        before: the model as it is, on the choosing half; None until changes are tried.
        candidates: what was tried.
        confirmed: outcomes of the reporting half by title of a change, then by `clean`, `noise`, `strong`.
        layers: what each layer is, and does.
        logits_amplification: as that of the layers.
        by_batch: accuracies with the statistics of the batch.
        examples: images that are shown.
        skipped: what was left out to keep the time.
        refused: why statistics cannot be estimated again, or "".
    """

    subject: Subject
    options: AuditOptions
    pieces: Pieces
    clock: Clock
    progress: Progress
    label: str = ""
    sharing: int = 1
    costs: Costs = NOT_MEASURED
    grid: Sequence[float] = ()
    min_eps: Floats = field(default_factory=lambda: np.empty(0))
    repaired: Repaired | None = None
    outcomes: dict[str, Mask] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    flags: tuple[Flag, ...] = ()
    upper_bounds: bool = False
    before: Candidate | None = None
    candidates: list[Candidate] = field(default_factory=list)
    confirmed: dict[str, dict[str, Mask]] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    logits_amplification: float | None = None
    by_batch: tuple[Accuracy, ...] = ()
    examples: tuple[Example, ...] = ()
    skipped: list[str] = field(default_factory=list)
    refused: str = ""

    @property
    def left(self) -> float:
        """Seconds that are left for this model."""
        return self.clock.left / self.sharing

    def tell(self, text: str) -> None:
        """Say what is being done, and how much of the time is left."""
        left = self.clock.left
        rest = f" ({duration(max(0.0, left))} of the time left)" if math.isfinite(left) else ""
        self.progress.message(f"{self.label}{text}{rest}")

    def skip(self, text: str) -> None:
        """Note what is left out to keep the time."""
        self.skipped.append(f"{self.label}{text}")

    def measure_all(self, name: str, perturbation: Perturbation) -> Mask:
        """Return the outcomes of all images under a perturbation, of the model as it is."""
        if name not in self.outcomes:

            def compute() -> dict[str, object]:
                (result,) = self.subject.measure([perturbation], self.subject.everything)
                return {"correct": packed(result.correct)}

            self.outcomes[name] = unpacked(self.pieces.get(name, compute)["correct"])
            self.about[name] = described(perturbation)
        return self.outcomes[name]


def accuracy(name: str, correct: Mask, about: str) -> Accuracy:
    """Return an accuracy with its 95% Wilson interval over images."""
    share = Proportion(int(correct.sum()), len(correct))
    low, high = share.interval() or (0.0, 1.0)
    value = Interval(value=share.rate or 0.0, low=low, high=high)
    return Accuracy(name=name, about=about, accuracy=value, n=len(correct))
