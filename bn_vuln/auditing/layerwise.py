"""What each normalization layer does to perturbations; the formulas are in docs/method/audit.md.

Everything is of the model in inference, with the tracked statistics of BN. A layer that is called more than once is
measured at its first call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bn_vuln.attacks import example_rng
from bn_vuln.attacks.losses import logit_margin
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.models.bn_statistics import functions_inlined, replaced_calls
from bn_vuln.models.normalization_layers import Channels, LayerState, NormalizationLayer, channel_axis
from bn_vuln.runtime import backend, ops
from bn_vuln.runtime.batch_size import map_batches
from bn_vuln.typing import AnyArray, Floats, Images, KerasModel, Labels, Tensor

N_RANDOM = 8  # random perturbations of each image
STREAM = 2**30  # added to the seed: attacks start from other random numbers than these
ROUNDS = 5  # of scaling a random perturbation and cutting it to the box
LOW_VARIANCE = 0.01  # share of the sum of sigma^2 that the low-variance channels hold together
MAX_CHANGED = 100  # images of which amplification is measured, at most
MAX_GRADIENTS = 64  # images of which gradients by the inputs of BN are taken, at most
GRADIENTS_AT_ONCE = 16

Taps: TypeAlias = list[
    tuple[Tensor, Tensor]
]  # (inputs, outputs) of the first call of each layer, in the order of the layers


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


@dataclass(frozen=True)
class Attacked:
    """Images, and what an attack made of them.

    Attributes:
        x: clean pixels [n, height, width, channels].
        labels: their classes, [n].
        adversarial: adversarial pixels, of the shape of x.
        index: the number of each image in its data set, which its random perturbations follow from; any int [n].
        ord: norm of the attack.
        box: lowest and highest pixel.
    """

    x: Images
    labels: Labels
    adversarial: Images
    index: NDArray[np.integer[Any]]
    ord: Literal["inf", "2"]
    box: tuple[float, float] = (0.0, 1.0)


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
    amplifications = _amplifications(classifier, layers, attacked, batch_size, seed)
    energies = _energies(classifier, [layer for layer in layers if layer.is_batch], attacked, batch_size)
    found = {}
    for layer, (given, returned) in zip(layers, amplifications[:-1], strict=True):
        through = None if given is None or returned is None or given == 0 else returned / given
        found[layer.name] = LayerNumbers(returned, through)
        if layer.is_batch:
            low = low_variance_channels(layer.variance)
            state = None if actual is None else actual.get(layer.name)
            found[layer.name] = LayerNumbers(
                returned,
                through,
                _median(_share(energies[layer.name], low)),
                len(low),
                None if state is None else statistics_distance(layer.state, state),
            )
    return Layerwise(found, amplifications[-1][1])


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
        return _finite(np.sqrt((gamma**2 * error).sum() / (gamma**2 * spread).sum()))


# ---------------------------------------------------------------- amplification


def _amplifications(
    classifier: Classifier, layers: Sequence[NormalizationLayer], attacked: Attacked, batch_size: int, seed: int
) -> list[tuple[float | None, float | None]]:
    """The amplification of the inputs and of the outputs of each layer, and last that of the logits, twice."""
    changed = np.flatnonzero((attacked.adversarial != attacked.x).any(axis=(1, 2, 3)))[:MAX_CHANGED]
    if not len(changed):
        return [(None, None)] * (len(layers) + 1)
    copies = 2 + N_RANDOM

    def movements(x: Tensor, adversarial: Tensor, index: Tensor) -> list[Tensor]:
        """How far each perturbation moves each tensor, by its own length; the adversarial one is the first."""
        random = random_changes(x, adversarial, index, attacked.ord, attacked.box, seed)
        changes = ops.concatenate([(adversarial - x)[None], random], axis=0)
        lengths = ops.sqrt(ops.sum(changes**2, axis=(2, 3, 4)))
        points = ops.concatenate([x[None], x + changes], axis=0)
        with _tapped(classifier.model, layers) as taps:
            logits = classifier.predict(ops.reshape(points, (-1, *x.shape[1:])))

        def distances(h: Tensor) -> Tensor:
            h = ops.reshape(ops.cast(h, "float32"), (copies, ops.shape(x)[0], -1))
            return ops.transpose(ops.sqrt(ops.sum((h[1:] - h[:1]) ** 2, axis=2)) / lengths)

        return [distances(h) for pair in [*taps(), (logits, logits)] for h in pair]

    arrays = attacked.x[changed], attacked.adversarial[changed], attacked.index[changed].astype(np.int32)
    found = _in_equal_batches(movements, *arrays, size=max(1, batch_size // copies))
    values = [_amplification(distances) for distances in found]
    return list(zip(values[::2], values[1::2], strict=True))


def random_changes(
    x: Tensor, adversarial: Tensor, index: Tensor, ord: str, box: tuple[float, float], seed: int
) -> Tensor:
    """Draw random perturbations of the same threat model and length as an adversarial one.

    They are corners of the ball for "inf", of random signs, and random directions for "2". Scaling to the length and
    cutting to the box take turns; the last is the cut, so some may stay shorter.

    Args:
        x: clean pixels [n, height, width, channels].
        adversarial: adversarial pixels, of the same shape.
        index: int32 [n], the number of each image.
        ord: norm of the threat model.
        box: lowest and highest pixel.
        seed: of the draw.

    Returns:
        Perturbations [N_RANDOM, n, height, width, channels]. Each depends on (seed, its number, index) and its image
        alone.
    """
    dimension = int(np.prod(x.shape[1:]))
    number = ops.arange(N_RANDOM, dtype="int32")[:, None] + ops.zeros_like(index)
    keys = ops.reshape(number, (-1,)), ops.reshape(ops.zeros_like(number) + index, (-1,))
    if ord == "inf":
        change = ops.where(example_rng.uniform(dimension, seed + STREAM, *keys) < 0.5, -1.0, 1.0)
    else:
        change = example_rng.normal(dimension, seed + STREAM, *keys)
    change = ops.reshape(change, (N_RANDOM, -1, *x.shape[1:]))

    def length(change: Tensor) -> Tensor:
        return ops.sqrt(ops.sum(change**2, axis=(-3, -2, -1), keepdims=True))

    for _ in range(ROUNDS):
        change = change * ops.divide_no_nan(length(adversarial - x), length(change))
        change = ops.clip(x + change, *box) - x
    return change


def _amplification(distances: AnyArray) -> float | None:
    """Of distances [n, 1 + N_RANDOM], the adversarial one first: its ratio to the mean of the others, median over n."""
    with np.errstate(all="ignore"):  # 0 / 0 where nothing moves
        return _median(distances[:, 0].astype(np.float64) / distances[:, 1:].astype(np.float64).mean(axis=1))


# ---------------------------------------------------------------- gradients by the inputs of BN


def _energies(
    classifier: Classifier, layers: Sequence[NormalizationLayer], attacked: Attacked, batch_size: int
) -> dict[str, AnyArray]:
    """The squared gradient of the logit margin by the inputs of BN layers, summed over positions: [n, channels]."""
    if not layers:
        return {}

    def energies(x: Tensor, y: Tensor) -> list[Tensor]:
        with _tapped(classifier.model, layers) as taps:
            classifier.predict(x)  # for the shapes alone: the graph has nothing of it
        zeros = [ops.zeros(ops.shape(given), "float32") for given, _ in taps()]

        def margin(zeros: list[Tensor]) -> tuple[Tensor, None]:
            with _tapped(classifier.model, layers, zeros):
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
    found = _in_equal_batches(energies, x, labels, size=max(1, min(GRADIENTS_AT_ONCE, batch_size // 2)))
    return {layer.name: energy for layer, energy in zip(layers, found, strict=True)}


def _share(energies: AnyArray, low: NDArray[np.intp]) -> Floats:
    """The share of some channels of energies [n, channels], [n]; NaN where there is no gradient."""
    energies = energies.astype(np.float64)
    with np.errstate(all="ignore"):
        return np.asarray(energies[:, low].sum(axis=1) / energies.sum(axis=1))


# ---------------------------------------------------------------- parts of both


@contextlib.contextmanager
def _tapped(
    model: KerasModel, layers: Sequence[NormalizationLayer], added: Sequence[Tensor] | None = None
) -> Iterator[Callable[[], Taps]]:
    """Inside, the first call of each layer is kept, and gets its inputs with what is added to them.

    Yields a function that returns what was kept, to be called when the model was.
    """
    numbers = {id(layer.layer): i for i, layer in enumerate(layers)}
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def keeping(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        i = numbers[id(layer)]

        def run(h: Tensor, *args: object, **kwargs: object) -> Any:
            if i in kept:
                return call(h, *args, **kwargs)
            given = h if added is None else h + ops.cast(added[i], h.dtype)
            outputs = call(given, *args, **kwargs)
            kept[i] = given, outputs
            return outputs

        return run

    with functions_inlined(model), replaced_calls([layer.layer for layer in layers], keeping):
        yield lambda: [kept[i] for i in range(len(layers))]


def _in_equal_batches(function: Callable[..., Any], *arrays: AnyArray, size: int) -> tuple[AnyArray, ...]:
    """`map_batches` in batches of one size, so that there is one graph: some examples come twice."""
    n = len(arrays[0])
    batches = -(-n // size)
    size = -(-n // batches)
    rows = np.arange(batches * size) % n
    results = map_batches(backend.compile(function), *(array[rows] for array in arrays), batch_size=size)
    return tuple(result[:n] for result in results)


def _median(values: AnyArray) -> float | None:
    """The median of those that are numbers; None where it is not finite."""
    numbers = values[~np.isnan(values)]
    return _finite(np.median(numbers)) if len(numbers) else None


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
