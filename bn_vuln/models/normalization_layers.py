"""The normalization layers of any Keras model: found, described, and changed.

    layers = find(model, predict, pixels)             # in the order in which they are called
    with adjustable(layers):                          # before anything is compiled
        estimator = Estimator(model, layers, predict, images)
        with applied(layers, estimator.states(Mend(relative_c=0.1, reestimate=True))):
            ...                                       # the model, and all that was compiled of it, is the changed one
    write(layers, states)                             # for good

In inference BN computes gamma (h - mean) / sqrt(variance + c) + beta, so another c is the same function as another
variance, and gamma, mean and variance are variables: what was compiled once holds for every change. The other kinds
have no variance of their own, so that c becomes a variable inside `adjustable`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bn_vuln.config import Mend
from bn_vuln.errors import UsageError
from bn_vuln.models.bn_statistics import functions_inlined, is_batch_normalization, layers_inside, replaced_calls
from bn_vuln.runtime import backend, ops
from bn_vuln.typing import Images, KerasModel, Predict, Tensor, Variable

Kind = Literal["batch", "group", "layer", "instance", "rms", "filter response"]
Layer: TypeAlias = Any  # a Keras layer of any class
Channels: TypeAlias = NDArray[np.float64]  # one number a channel

DEAD = 1e-6  # a channel is dead whose variance is under this share of the layer's largest
LOOKED_AT = 32  # images suffice to find layers
MIN_VALUES = 200  # of a channel, of which statistics are estimated


@dataclass(frozen=True)
class LayerState:
    """What of a normalization layer can be changed.

    Attributes:
        c: the constant under the root.
        gamma: [channels]; None where it has none.
        mean: tracked by BN, [channels]; None for other kinds.
        variance: likewise.
    """

    c: float
    gamma: Channels | None = None
    mean: Channels | None = None
    variance: Channels | None = None

    @property
    def gain(self) -> Channels | None:
        """What BN multiplies each channel by, |gamma| / sqrt(variance + c); None for other kinds."""
        if self.variance is None:
            return None
        return np.asarray(np.abs(1.0 if self.gamma is None else self.gamma) / np.sqrt(self.variance + self.c))


@dataclass(frozen=True)
class NormalizationLayer:
    """A normalization layer of a model.

    Attributes:
        name: its name; where several have it, with the number of the call: `bn`, `bn#2`.
        kind: batch, group, layer, ...
        layer: the Keras layer.
        channels: number of channels.
        momentum: with which BN tracks statistics; None for other kinds, and where the layer does not say.
        frozen: True where it is not trained.
        values: number of values of one channel that an image has.
        state: as it was found.
        calls: how often the model calls it; what is said of its inputs is of the first call.
        input_variance: of other kinds than BN: what they divide by, the variances of the images that were looked at,
            one for each image and group; None for BN.
    """

    name: str
    kind: Kind
    layer: Layer
    channels: int
    momentum: float | None
    frozen: bool
    values: int
    state: LayerState
    calls: int = 1
    input_variance: Channels | None = None

    @property
    def is_batch(self) -> bool:
        """Return if it is batch norm, whose statistics are tracked."""
        return self.kind == "batch"

    @property
    def variance(self) -> Channels:
        """What it divides by, squared and without c: of BN the tracked variance of each channel."""
        found = self.state.variance if self.is_batch else self.input_variance
        assert found is not None
        return found


def live(variance: Channels) -> NDArray[np.bool_]:
    """Return which channels are not dead, bool [channels]."""
    return np.asarray(variance > DEAD * variance.max(initial=0.0))


def median_variance(variance: Channels) -> float:
    """Return the median variance of the live channels; 0 where all are dead."""
    alive = variance[live(variance)]
    return float(np.median(alive)) if len(alive) else 0.0


# ---------------------------------------------------------------- finding


def find(model: KerasModel, predict: Predict, pixels: Images) -> list[NormalizationLayer]:
    """Find the normalization layers of a model.

    Args:
        model: any Keras model.
        predict: calls it with pixels.
        pixels: some images [n, height, width, channels]: what is not called on them is no part of the model.

    Returns:
        The layers in the order in which they are called, each once, wherever inside of the model they are.
    """
    kinds = {id(layer): kind for layer in layers_inside(model) if (kind := _kind_of(layer)) is not None}
    candidates = [layer for layer in layers_inside(model) if id(layer) in kinds]
    inputs: dict[int, tuple[Layer, Tensor]] = {}
    calls: dict[int, int] = {}

    def recording(layer: Layer, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(h: Tensor, *args: object, **kwargs: object) -> Any:
            inputs.setdefault(id(layer), (layer, h))
            calls[id(layer)] = calls.get(id(layer), 0) + 1
            return call(h, *args, **kwargs)

        return run

    def variances(x: Tensor) -> list[Tensor]:
        inputs.clear()
        calls.clear()
        with functions_inlined(model), replaced_calls(candidates, recording):
            predict(x)
        return [own_variance(layer, kinds[id(layer)], h) for layer, h in inputs.values()]

    found = [np.asarray(v, np.float64).ravel() for v in backend.compile(variances)(pixels)]
    names = _unique_names([layer.name for layer, _ in inputs.values()])
    return [
        _described(layer, kinds[key], name, tuple(h.shape), calls[key], variance)
        for (key, (layer, h)), name, variance in zip(inputs.items(), names, found, strict=True)
    ]


def _kind_of(layer: Layer) -> Kind | None:
    import keras

    if is_batch_normalization(layer):
        return "batch"
    if isinstance(layer, keras.layers.GroupNormalization) and layer.built:
        if layer.groups == 1:
            return "layer"
        return "instance" if layer.groups == layer.input_spec.axes[layer.axis] else "group"
    if isinstance(layer, keras.layers.LayerNormalization):  # with `rms_scaling` it divides by the deviation, too
        return "layer"
    if isinstance(layer, keras.layers.RMSNormalization):
        return "rms"
    return "filter response" if _is_filter_response(layer) else None


def _is_filter_response(layer: Layer) -> bool:
    return type(layer).__name__ == "FilterResponse" and hasattr(layer, "c")


def _unique_names(names: Sequence[str]) -> list[str]:
    counts: dict[str, int] = {}
    found = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        found.append(name if counts[name] == 1 else f"{name}#{counts[name]}")
    return found


def own_variance(layer: Layer, kind: Kind, h: Tensor) -> Tensor:
    """Return what a layer's call divides by, squared and without c, of its inputs: [channels] for BN, else [n, ...]."""
    h = ops.cast(h, "float32")
    rank = len(h.shape)
    if kind == "batch":
        axis = channel_axis(layer, rank)
        return ops.var(h, axis=[i for i in range(rank) if i != axis])
    if kind == "filter response":
        return ops.mean(ops.square(h), axis=(1, 2))
    if hasattr(layer, "groups"):
        grouped = layer._reshape_into_groups(h)
        axis = layer.axis % rank
        kept = axis if axis else 1
        return ops.var(grouped, axis=[i for i in range(1, rank + 1) if i != kept])
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    axes = [axis % rank for axis in axes]
    return ops.mean(ops.square(h), axis=axes) if kind == "rms" else ops.var(h, axis=axes)


def channel_axis(layer: Layer, rank: int) -> int:
    """Return the axis of the channels among inputs of this rank; the last one where it normalizes along several."""
    axis = getattr(layer, "axis", -1)
    return int(axis[-1] if isinstance(axis, list | tuple) else axis) % rank


def _described(
    layer: Layer, kind: Kind, name: str, shape: tuple[int | None, ...], calls: int, variance: Channels
) -> NormalizationLayer:
    gamma = None if (variable := gamma_of(layer)) is None else _array(variable)
    mean = variances = None
    axis = channel_axis(layer, len(shape))
    channels = int(shape[axis] or (0 if gamma is None else len(gamma)))
    if kind == "batch":
        mean, variances = _array(layer.moving_mean), _array(layer.moving_variance)
        channels = len(variances)
    momentum = getattr(layer, "momentum", None) if kind == "batch" else None
    sides = [side or 1 for i, side in enumerate(shape[1:], 1) if i != axis]
    return NormalizationLayer(
        name,
        kind,
        layer,
        channels,
        None if momentum is None else float(momentum),
        not layer.trainable,
        int(np.prod(sides)) if sides else 1,
        LayerState(c_of(layer), gamma, mean, variances),
        calls,
        None if kind == "batch" else variance,
    )


def _array(variable: Variable) -> Channels:
    return np.asarray(variable, np.float64).ravel()


def _c_name(layer: Layer) -> str:
    if _is_filter_response(layer):
        return "c"
    return "eps" if hasattr(layer, "eps") and not hasattr(layer, "epsilon") else "epsilon"


def c_of(layer: Layer) -> float:
    """Return the constant of a layer; 0 where it does not say."""
    value = getattr(layer, _c_name(layer), 0.0)
    return float(np.asarray(value))


def gamma_of(layer: Layer) -> Variable | None:
    """Return the variable that a layer multiplies by, if it has one."""
    import keras

    for name in ("gamma", "scale"):
        value = getattr(layer, name, None)
        if isinstance(value, keras.Variable):
            return value
    return None


# ---------------------------------------------------------------- estimating


class Estimator:
    """Makes the states of changed layers; statistics are those of images, in one pass through the model."""

    def __init__(
        self,
        model: KerasModel,
        layers: Sequence[NormalizationLayer],
        predict: Predict,
        images: Images,
        *,
        batch_size: int = 500,
    ) -> None:
        """Take images for the statistics; nothing is computed yet.

        Args:
            model: the Keras model, which is not changed.
            layers: all that `find` found.
            predict: calls the model with pixels.
            images: [n, height, width, channels], without labels. None of them may be used to judge the model later.
            batch_size: images of which statistics are taken at once; those of several batches are pooled.
        """
        self.layers, self.images, self.batch_size = list(layers), images, max(1, batch_size)
        self._numbers = {id(found.layer): i for i, found in enumerate(self.layers)}
        self._predict, self._model = predict, model
        self._compiled = backend.compile(self._statistics)

    def refusal(self) -> str | None:
        """Return why statistics cannot be estimated: too few images, or a layer with two calls; None where they can."""
        batch = [layer for layer in self.layers if layer.is_batch]
        fewest = min(batch, key=lambda layer: layer.values, default=None)
        if fewest is None:
            return "no batch norm"
        for layer in batch:  # it has one mean for inputs of which the second depend on it
            if layer.calls > 1:
                return f"{layer.name} is called {layer.calls} times"
        values = fewest.values * len(self.images)
        if values >= MIN_VALUES:
            return None
        return f"{len(self.images)} images give {values} values a channel in {fewest.name}, {MIN_VALUES} are needed"

    def states(self, mend: Mend) -> dict[str, LayerState]:
        """Return the state of each layer, by its name, after a change.

        Args:
            mend: c and gains, and whether statistics are estimated; its fine-tuning is not done here.

        Raises:
            UsageError: A name in `layers` is of no normalization layer, or statistics cannot be estimated.
        """
        check_names(self.layers, mend.layers)
        before = [layer.state for layer in self.layers]
        if mend.reestimate:
            if (why := self.refusal()) is not None:
                raise UsageError(f"statistics cannot be estimated again: {why}")
            before = self._estimated(mend)
        found = {}
        for layer, unchanged in zip(self.layers, before, strict=True):
            state = unchanged
            if mend.changes_c and (not mend.layers or layer.name in mend.layers):
                variance = layer.variance if state.variance is None else state.variance
                state = changed(state, median_variance(variance), mend)
            found[layer.name] = state
        return found

    def _estimated(self, mend: Mend) -> list[LayerState]:
        """The states with the statistics of the images, and the c that they had."""
        chosen = [mend.changes_c and (not mend.layers or layer.name in mend.layers) for layer in self.layers]
        r = np.asarray([mend.relative_c if own else 0.0 for own in chosen], np.float32)
        # Below 0: c stays what it is. A given c is the same for all layers.
        c = np.asarray([mend.c if own and mend.c is not None else -1.0 for own in chosen], np.float32)
        keep = np.float32(mend.keep_gain)
        whole = max(1, len(self.images) // self.batch_size)
        size = len(self.images) // whole
        means, variances = [], []
        for i in range(whole):
            moments = self._compiled(self.images[i * size : (i + 1) * size], r, c, keep)
            means.append([np.asarray(mean, np.float64) for mean, _ in moments])
            variances.append([np.asarray(variance, np.float64) for _, variance in moments])
        batch = [i for i, layer in enumerate(self.layers) if layer.is_batch]
        found = [layer.state for layer in self.layers]
        for place, i in enumerate(batch):
            own = np.stack([batch_means[place] for batch_means in means])
            within = np.stack([batch_variances[place] for batch_variances in variances])
            found[i] = replace(found[i], mean=own.mean(axis=0), variance=within.mean(axis=0) + own.var(axis=0))
        return found

    def _statistics(self, x: Tensor, r: Tensor, c: Tensor, keep: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The moments of the inputs of each BN layer, with the changed layers before it, in the order of `layers`.

        Each layer normalizes by the moments of this batch.
        """
        import keras

        moments: dict[int, tuple[Tensor, Tensor]] = {}

        def changing(layer: Layer, call: Callable[..., Any]) -> Callable[..., Any]:
            i = self._numbers[id(layer)]
            found = self.layers[i]
            c0, gamma = found.state.c, gamma_of(layer)

            def run(h: Tensor, *args: object, **kwargs: object) -> Any:
                values: list[tuple[Variable, Tensor]] = []
                if found.is_batch:
                    axis = channel_axis(layer, len(h.shape))
                    axes = [a for a in range(len(h.shape)) if a != axis]
                    mean, variance = ops.moments(ops.cast(h, "float32"), axes)
                    moments.setdefault(i, (mean, variance))
                    m = _median_of_live(variance)
                else:
                    m = ops.convert_to_tensor(np.float32(median_variance(found.variance)))
                new = ops.where(c[i] >= 0, c[i], c0 + r[i] * m)
                factor = ops.where((keep > 0) & (m + c0 > 0), ops.sqrt((m + new) / (m + c0)), 1.0)
                if gamma is not None:
                    values += [(gamma, np.asarray(found.state.gamma, np.float32) * factor)]
                if found.is_batch:
                    by_gamma = 1.0 if gamma is not None else factor**2  # see `changed`
                    values += [(layer.moving_mean, mean), (layer.moving_variance, (variance + new) / by_gamma - c0)]
                values = [(v, ops.cast(ops.reshape(value, v.shape), v.dtype)) for v, value in values]
                own_c = contextlib.nullcontext() if found.is_batch else _with_c(layer, new)
                with keras.StatelessScope(values), own_c:
                    return call(h, *args, **kwargs)

            return run

        layers = [found.layer for found in self.layers]
        with functions_inlined(self._model), replaced_calls(layers, changing):
            self._predict(x)
        return [moments[i] for i, found in enumerate(self.layers) if found.is_batch]


def check_names(layers: Sequence[NormalizationLayer], names: Sequence[str]) -> None:
    """Refuse names that no normalization layer has.

    Raises:
        UsageError: There is none of such a name; the message has those that there are.
    """
    known = [layer.name for layer in layers]
    for name in names:
        if name not in known:
            raise UsageError(f"layers: no normalization layer {name!r}; the model has {', '.join(known) or 'none'}")


def changed(state: LayerState, m: float, mend: Mend) -> LayerState:
    """Return a layer's state with the c of a change.

    BN without gamma keeps the gain of its median channel by its variance, and then its c: with f the factor that gamma
    would get, f / sqrt(variance + new c) = 1 / sqrt(((variance + new c) / f^2 - c) + c). Other kinds without gamma do
    not keep it.

    Args:
        state: before it, with the statistics that it will have.
        m: median variance of the live channels.
        mend: the change.
    """
    c = state.c + mend.relative_c * m if mend.c is None else mend.c
    if not mend.keep_gain or m + state.c <= 0:
        return replace(state, c=c)
    squared = (m + c) / (m + state.c)
    if state.gamma is not None:
        return replace(state, c=c, gamma=state.gamma * np.sqrt(squared))
    if state.variance is not None:
        return replace(state, variance=(state.variance + c) / squared - state.c)
    return replace(state, c=c)


def _median_of_live(variance: Tensor) -> Tensor:
    """`median_variance` in a graph."""
    alive = variance > DEAD * ops.max(variance)
    n = ops.sum(ops.cast(alive, "int32"))
    ordered = ops.sort(ops.where(alive, variance, np.float32(np.inf)))
    low, high = ops.maximum(n - 1, 0) // 2, n // 2
    last = ops.maximum(n - 1, 0)
    middle = 0.5 * (ops.take(ordered, low) + ops.take(ordered, ops.minimum(high, last)))
    return ops.where(n > 0, middle, 0.0)


# ---------------------------------------------------------------- changing


@contextlib.contextmanager
def adjustable(layers: Sequence[NormalizationLayer]) -> Iterator[None]:
    """Inside, the c of layers other than BN is a variable, which `applied` can change without compiling anew."""
    import keras

    with contextlib.ExitStack() as stack:
        for found in layers:
            if not found.is_batch:
                variable = keras.Variable(found.state.c, trainable=False, dtype="float32", autocast=False)
                stack.enter_context(_with_c(found.layer, variable))
        yield


@contextlib.contextmanager
def _with_c(layer: Layer, c: Variable | Tensor) -> Iterator[None]:
    """Inside, a layer has this c, past Keras' own attributes: a built layer takes no more variables."""
    own, name = layer.__dict__, _c_name(layer)
    before = {name: own[name]} if name in own else {}
    own[name] = c
    try:
        yield
    finally:
        del own[name]
        own.update(before)


@contextlib.contextmanager
def applied(layers: Sequence[NormalizationLayer], states: Mapping[str, LayerState]) -> Iterator[None]:
    """Inside, the layers compute what these states say; afterwards what they did before, also after an error.

    Args:
        layers: those of a model; where others than BN are among them, inside of `adjustable`.
        states: by name; layers without one stay as they are.
    """
    changes = [
        (variable, value)
        for found in layers
        if found.name in states
        for variable, value in _assignments(found, states[found.name])
    ]
    before = [(variable, np.array(variable)) for variable, _ in changes]
    try:
        _assign(changes)
        yield
    finally:
        _assign(before)


def write(layers: Sequence[NormalizationLayer], states: Mapping[str, LayerState]) -> None:
    """Change the layers for good, so that a model that is saved has them; not inside of `adjustable`.

    c is written as the layer's own `epsilon`, where its config has one; else, of BN, into the tracked variance.
    What was compiled before has the old `epsilon`: compile anew.
    """
    for found in layers:
        if found.name not in states:
            continue
        state, layer = states[found.name], found.layer
        name = _c_name(layer)
        written = hasattr(layer, name) and name in layer.get_config()
        if written:
            setattr(layer, name, state.c)
        _assign(_assignments(found, state, offset=0.0 if written else state.c - found.state.c, with_c=False))


def _assignments(
    found: NormalizationLayer, state: LayerState, *, offset: float | None = None, with_c: bool = True
) -> list[tuple[Variable, Any]]:
    """(variable, its value) of a state; `offset` is what the variance gets in place of c."""
    layer, changes = found.layer, list[tuple[Variable, Any]]()
    if found.is_batch:
        assert state.variance is not None
        extra = state.c - found.state.c if offset is None else offset
        changes += [(layer.moving_mean, state.mean), (layer.moving_variance, state.variance + extra)]
    elif with_c:
        changes += [(layer.__dict__[_c_name(layer)], np.float32(state.c))]
    gamma = gamma_of(layer)
    if gamma is not None and state.gamma is not None:
        changes += [(gamma, state.gamma)]
    return [(variable, np.reshape(np.asarray(value), variable.shape)) for variable, value in changes]


def _assign(changes: Sequence[tuple[Variable, Any]]) -> None:
    for variable, value in changes:
        variable.assign(np.asarray(value, backend.dtype_of(variable)))
