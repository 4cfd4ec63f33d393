"""Perturbed images with what is known of each; one function for each kind of perturbation but attacks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from bn_vuln import records
from bn_vuln.config import AWGN, Corruption
from bn_vuln.data import corruptions, noise
from bn_vuln.evaluation.eval_set import EvalSet
from bn_vuln.typing import Arrays, Floats, Images, Index, Logits, Mask, Plain

_ARRAYS = ("min_eps", "n_evaluations", "violation", "outside_box")
_BESIDE = "beside "  # begins the names of arrays that lie beside the record, in a file


@dataclass(frozen=True)
class PerturbedImages:
    """Images to be measured, with what their perturbation says of them.

    Attributes:
        images: float32 pixels [n, height, width, channels]; None: the clean ones.
        logits: the classifier's logits [n, classes], where they are known already.
        flags: the checks that tripped and do not depend on the images; None for those that did not trip.
        min_eps: as in `Result`.
        n_evaluations: int64 [n], points at which an attack evaluated the classifier.
        robust_after: examples that were still correct after each attack of an ensemble.
        violation: float64 [m], how far the attack's points lay outside the threat model, in the unit of eps.
        outside_box: bool [n], clean images that lie outside the box.
        source: where corrupted images are from.
        arrays: arrays that lie beside the record, of the first examples.
    """

    images: Images | None
    logits: Logits | None = None
    flags: tuple[records.Flag | None, ...] = ()
    min_eps: Floats | None = None
    n_evaluations: Index | None = None
    robust_after: Mapping[str, int] = field(default_factory=dict)
    violation: Floats | None = None
    outside_box: Mask | None = None
    source: Literal["made", "archive"] | None = None
    arrays: Arrays = field(default_factory=dict)


def clean(eval_set: EvalSet) -> PerturbedImages:
    """Return the clean images."""
    return PerturbedImages(None, eval_set.clean_logits)


def with_noise(eval_set: EvalSet, options: AWGN) -> PerturbedImages:
    """Add noise to the images as the data set has them, before they are enlarged."""
    dataset = eval_set.dataset
    noisy = noise.add_noise(dataset.images[:], dataset.index, options, eval_set.classifier.info)
    return PerturbedImages(eval_set.at_input(noisy))


def corrupted(eval_set: EvalSet, split: str, options: Corruption) -> PerturbedImages:
    """Corrupt the images as the data set has them, before they are enlarged."""
    images, source = corruptions.corrupted_images(eval_set.dataset, split, options)
    return PerturbedImages(eval_set.at_input(images), source=source)


def to_arrays(found: PerturbedImages) -> Arrays:
    """Return what is known of perturbed images, without these and their logits, as arrays that a file can hold."""
    flags = [None if flag is None else flag.model_dump() for flag in found.flags]
    text = json.dumps({"flags": flags, "robust_after": dict(found.robust_after), "source": found.source})
    arrays = {name: value for name in _ARRAYS if (value := getattr(found, name)) is not None}
    return {"text": np.array(text), **arrays, **{f"{_BESIDE}{name}": array for name, array in found.arrays.items()}}


def from_arrays(arrays: Arrays) -> PerturbedImages:
    """Return what `to_arrays` was given."""
    plain = json.loads(str(arrays["text"]))
    flags = tuple(None if flag is None else records.Flag.model_validate(flag) for flag in plain.pop("flags"))
    known: Plain = {name: arrays[name] for name in _ARRAYS if name in arrays}
    beside = {name.removeprefix(_BESIDE): array for name, array in arrays.items() if name.startswith(_BESIDE)}
    return PerturbedImages(None, flags=flags, arrays=beside, **known, **plain)


def merged(parts: Sequence[PerturbedImages]) -> PerturbedImages:
    """Join what was found for the parts of an eval set, without their images and logits."""
    first = parts[0]

    def joined(name: str) -> np.ndarray | None:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    robust_after = {name: sum(part.robust_after.get(name, 0) for part in parts) for name in first.robust_after}
    return PerturbedImages(
        None,
        flags=first.flags,
        min_eps=joined("min_eps"),
        n_evaluations=joined("n_evaluations"),
        robust_after=robust_after,
        violation=joined("violation"),
        outside_box=joined("outside_box"),
        source=first.source,
        arrays=first.arrays | {"distance": np.concatenate([part.arrays["distance"] for part in parts])}
        if "distance" in first.arrays
        else first.arrays,
    )
