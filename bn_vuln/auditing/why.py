"""What the normalization layers of a model are, what they do to perturbations, and the images that are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bn_vuln.auditing import layerwise, what_if
from bn_vuln.auditing.amplification import Attacked
from bn_vuln.auditing.audited import Audited, Chosen
from bn_vuln.auditing.findings import Example, Layer
from bn_vuln.auditing.pieces import packed_arrays, unpacked_arrays
from bn_vuln.models import normalization_layers as normalization
from bn_vuln.models.normalization_layers import NormalizationLayer
from bn_vuln.typing import Arrays, Floats, Images, Index, Mask, Plain

EXAMPLES = 6  # images that are shown
IMAGES = 100  # by which layers are measured
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def measure(one: Audited, chosen: Chosen) -> Arrays:
    """Measure layer by layer, by adversarial images of the choosing half.

    Returns:
        The images that are shown, `clean` and `attacked`, pixels float32 [k, height, width, channels].
    """
    subject, eval_set = one.subject, one.subject.eval_set
    some = subject.halves.choosing[:IMAGES]

    def compute() -> Plain:
        one.tell("layer by layer")
        (result,) = subject.measure([one.options.search(chosen.eps)], some)
        x = eval_set.pixels[some]
        attacked = Attacked(x, eval_set.labels[some], result.images, eval_set.index[some], one.options.ord)
        numbers = layerwise.measure(
            subject.classifier,
            subject.layers,
            attacked,
            actual=None if one.refused else subject.states(what_if.STATISTICS),
            batch_size=eval_set.batch_size,
        )
        shown = _shown(one, some, result.correct)
        examples = _examples(one, some[shown], result.images[shown], chosen.eps)
        return {
            "logits": numbers.logits,
            "numbers": {name: vars(found) for name, found in numbers.layers.items()},
            "examples": [example.model_dump() for example in examples],
            "images": packed_arrays({"clean": x[shown], "attacked": result.images[shown]}),
        }

    found = one.pieces.get(f"layers {chosen.eps}", compute)
    one.logits_amplification = found["logits"]
    one.layers = _described(subject.layers, found["numbers"])
    one.examples = tuple(Example.model_validate(example) for example in found["examples"])
    return unpacked_arrays(found["images"])


def _shown(one: Audited, positions: Index, correct: Mask) -> Index:
    """Places of images that the attack changed, of as many classes as there are."""
    changed = np.flatnonzero(one.subject.clean[positions] & ~correct)
    labels = one.subject.eval_set.labels[positions]
    turn = [int(np.sum(labels[changed[:i]] == labels[place])) for i, place in enumerate(changed)]
    return changed[np.argsort(turn, kind="stable")][:EXAMPLES].astype(np.int64)


def _examples(one: Audited, positions: Index, attacked: Images, eps: float) -> list[Example]:
    eval_set = one.subject.eval_set
    if not len(positions):
        return []
    names, labels = eval_set.dataset.info.classes, eval_set.labels[positions]
    before, after = eval_set.clean_logits[positions].argmax(axis=1), eval_set.logits(attacked).argmax(axis=1)
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
        fields = dict(numbers.get(found.name, {}))
        if found.is_batch:
            fields |= {"dead": int(np.sum(~alive)), "below_c": float(np.mean(variance < found.state.c))}
        layer = Layer(
            name=found.name,
            kind=found.kind,
            place=place,
            channels=found.channels,
            c=found.state.c,
            momentum=found.momentum,
            frozen=found.frozen,
            variance=_quantiles(variance[alive]),
            median_variance=normalization.median_variance(variance),
            gain=() if gain is None else _quantiles(gain[alive]),
            **fields,
        )
        described.append(layer)
    return tuple(described)


def _quantiles(values: Floats) -> tuple[float, ...]:
    """Quantiles as ratios to the median; none without values, or where the median is 0."""
    if not len(values) or np.median(values) <= 0:
        return ()
    return tuple(float(q) for q in np.quantile(values, QUANTILES) / np.median(values))
