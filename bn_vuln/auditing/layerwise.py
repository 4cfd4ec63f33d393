"""What each normalization layer does to perturbations; the formulas are in docs/method/audit.md.

Everything is of the model in inference, with the tracked statistics of BN. A layer that is called more than once is
measured at its first call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bn_vuln.attacks.losses import logit_margin
from bn_vuln.auditing.amplification import Attacked, amplifications
from bn_vuln.auditing.taps import finite, in_equal_batches, median, tapped
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.models.normalization_layers import Channels, LayerState, NormalizationLayer, channel_axis
from bn_vuln.runtime import backend, ops
from bn_vuln.typing import AnyArray, Floats, Tensor

LOW_VARIANCE = 0.01  # share of the sum of sigma^2 that the low-variance channels hold together
MAX_GRADIENTS = 64  # images of which gradients by the inputs of BN are taken, at most
GRADIENTS_AT_ONCE = 16


@dataclass(frozen=True)
class LayerNumbers:
    """What a normalization layer does to perturbations. None: not measured, or not finite.

    Attributes:
        amplification: how many times more than a random perturbation of the same length the adversarial one moves what
            the layer returns, median over images.
        through: this number by that of what the layer is given.
        low_variance_share: of BN, the low-variance channels' share of the squared gradient of the logit margin by the
            layer's inputs, median over images.
        low_variance_channels: of BN, number of those channels.
        statistics_distance: of BN, error of what it returns for using tracked instead of actual statistics, in standard
            deviations of what it returns.
    """

    amplification: float | None = None
    through: float | None = None
    low_variance_share: float | None = None
    low_variance_channels: int | None = None
    statistics_distance: float | None = None


@dataclass(frozen=True)
class Layerwise:
    """The numbers of all layers.

    Attributes:
        layers: by the layer's name.
        logits: amplification of the logits; None where it was not measured.
    """

    layers: dict[str, LayerNumbers]
    logits: float | None


def measure(
    classifier: Classifier,
    layers: Sequence[NormalizationLayer],
    attacked: Attacked,
    *,
    actual: Mapping[str, LayerState] | None = None,
    batch_size: int = 160,
    seed: int = 0,
) -> Layerwise:
    """Measure what each normalization layer does to perturbations.

    Args:
        classifier: whose model has the layers.
        layers: all that `normalization_layers.find` found.
        attacked: the first 100 that the attack moved are used, for gradients the first 64 of all.
        actual: states with BN statistics that were estimated again, by name; None: no `statistics_distance`.
        batch_size: images that are computed at once, at most.
        seed: of the random perturbations.

    Returns:
        The numbers of each layer, and the amplification of the logits.
    """
    classifier = replace(classifier, training=False)
    amplified = amplifications(classifier, layers, attacked, batch_size, seed)
    energies = _energies(classifier, [layer for layer in layers if layer.is_batch], attacked, batch_size)
    found = {}
    for layer, (given, returned) in zip(layers, amplified[:-1], strict=True):
        through = None if given is None or returned is None or given == 0 else returned / given
        found[layer.name] = LayerNumbers(returned, through)
        if layer.is_batch:
            low = low_variance_channels(layer.variance)
            state = None if actual is None else actual.get(layer.name)
            found[layer.name] = LayerNumbers(
                returned,
                through,
                median(_share(energies[layer.name], low)),
                len(low),
                None if state is None else statistics_distance(layer.state, state),
            )
    return Layerwise(found, amplified[-1][1])


def low_variance_channels(variance: Channels) -> NDArray[np.intp]:
    """Return the channels of smallest variance that together hold at most 1% of its sum, at least one.

    Args:
        variance: sigma^2, [channels].
    """
    order = np.argsort(variance, kind="stable")
    held = np.cumsum(variance[order])
    return order[: max(1, int(np.searchsorted(held, LOW_VARIANCE * held[-1], side="right")))]


def statistics_distance(tracked: LayerState, actual: LayerState) -> float | None:
    """Return the error of what BN returns for using tracked instead of actual statistics.

    Args:
        tracked: the state that BN computes with; its gamma and c are used.
        actual: the state with the statistics that its inputs have.

    Returns:
        Root of the error's mean square by that of the variance of what it returns with actual statistics, both summed
        over channels; None where this is not finite.
    """
    mean, variance, actual_mean, actual_variance = tracked.mean, tracked.variance, actual.mean, actual.variance
    assert mean is not None
    assert variance is not None
    assert actual_mean is not None
    assert actual_variance is not None
    gamma = np.ones_like(mean) if tracked.gamma is None else tracked.gamma
    with np.errstate(all="ignore"):  # what is not finite is None
        divided, wanted = (variance + tracked.c) ** -0.5, (actual_variance + tracked.c) ** -0.5
        error = ((actual_mean - mean) * divided) ** 2 + actual_variance * (divided - wanted) ** 2
        spread = actual_variance * wanted**2
        return finite(np.sqrt((gamma**2 * error).sum() / (gamma**2 * spread).sum()))


# ---------------------------------------------------------------- gradients by the inputs of BN


def _energies(
    classifier: Classifier, layers: Sequence[NormalizationLayer], attacked: Attacked, batch_size: int
) -> dict[str, AnyArray]:
    """The squared gradient of the logit margin by the inputs of BN layers, summed over positions: [n, channels]."""
    if not layers:
        return {}

    def energies(x: Tensor, y: Tensor) -> list[Tensor]:
        with tapped(classifier.model, layers) as taps:
            classifier.predict(x)  # for the shapes alone: the graph has nothing of it
        zeros = [ops.zeros(ops.shape(given), "float32") for given, _ in taps()]

        def margin(zeros: list[Tensor]) -> tuple[Tensor, None]:
            with tapped(classifier.model, layers, zeros):
                return logit_margin(ops.cast(classifier.predict(x), "float32"), y), None

        gradients = backend.value_and_gradient(margin, zeros)[1]
        axes = [
            channel_axis(layer.layer, len(gradient.shape)) for layer, gradient in zip(layers, gradients, strict=True)
        ]
        return [
            ops.sum(gradient**2, axis=[i for i in range(1, len(gradient.shape)) if i != axis])
            for gradient, axis in zip(gradients, axes, strict=True)
        ]

    x, labels = attacked.x[:MAX_GRADIENTS], attacked.labels[:MAX_GRADIENTS]
    found = in_equal_batches(energies, x, labels, size=max(1, min(GRADIENTS_AT_ONCE, batch_size // 2)))
    return {layer.name: energy for layer, energy in zip(layers, found, strict=True)}


def _share(energies: AnyArray, low: NDArray[np.intp]) -> Floats:
    """The share of some channels of energies [n, channels], [n]; NaN where there is no gradient."""
    energies = energies.astype(np.float64)
    with np.errstate(all="ignore"):
        return np.asarray(energies[:, low].sum(axis=1) / energies.sum(axis=1))
