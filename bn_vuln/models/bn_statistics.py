"""BN evaluated with other statistics than those tracked in training, and the moments of the inputs of BN layers.

`batch`: the statistics of the batch under evaluation itself, as BN trains. `reestimated`: the mean over the batches of
one pass through the training examples, in the batch size of the training (PyTorch's BN with momentum=None, but for
unbiased variances there).

The model is called in inference mode, in which BN layers alone normalize by the batch: dropout, augmentation and
whatever else acts in training only is held off, whatever class it is of. No variable of the model changes.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from bn_vuln.data.transforms import Size, to_pixels
from bn_vuln.errors import UsageError
from bn_vuln.runtime import backend, distribution, ops
from bn_vuln.typing import AnyArray, BatchNormLayer, DatasetImages, KerasModel, Plain, Predict, Tensor, Variable

Layer: TypeAlias = Any  # a Keras layer of any class: each has attributes of its own
Call: TypeAlias = Callable[..., Any]

N_TRIALS = 16  # of a layer in training: a coin for the whole batch that is thrown with p = .25 shows in 99 of 100


@dataclass(frozen=True)
class InputMoments:
    """The moments of the inputs of a BN layer, over batches.

    Attributes:
        layer: the BN layer.
        means: float32 [batches, channels].
        variances: float32 [batches, channels].
        tracked_mean: what it normalizes by in inference, [channels].
        tracked_variance: likewise.
    """

    layer: BatchNormLayer
    means: NDArray[np.float32]
    variances: NDArray[np.float32]
    tracked_mean: AnyArray
    tracked_variance: AnyArray


def input_moments(model: KerasModel, predict: Predict, batches: Iterable[AnyArray]) -> list[InputMoments]:
    """Measure the moments of the inputs of each BN layer.

    Args:
        model: a Keras model.
        predict: calls the model with a batch of pixels.
        batches: pixels [n, height, width, channels].

    Returns:
        One for each BN layer, in the order in which they are called.
    """
    called: list[BatchNormLayer] = []  # layers, while a graph is made

    def moments_of(x: Tensor) -> list[tuple[Tensor, Tensor]]:
        with _recorded_inputs(model) as calls:
            predict(x)
        called[:] = [layer for layer, _ in calls]
        axes = [getattr(layer, "axis", -1) % len(h.shape) for layer, h in calls]
        return [
            ops.moments(ops.cast(h, "float32"), [i for i in range(len(h.shape)) if i != axis])
            for (_, h), axis in zip(calls, axes, strict=True)
        ]

    compiled = backend.compile(moments_of)
    results = [compiled(batch) for batch in batches]
    arrays = [[np.stack([np.asarray(v) for v in values]) for values in zip(*layers, strict=True)]
              for layers in zip(*results, strict=True)]  # fmt: skip
    replaced = model.tracked if isinstance(model, _View) else {}

    def tracked(variable: Variable) -> AnyArray:
        return np.asarray(replaced.get(id(variable), variable))

    return [
        InputMoments(layer, means, variances, tracked(layer.moving_mean), tracked(layer.moving_variance))
        for layer, (means, variances) in zip(called, arrays, strict=True)
    ]


@contextlib.contextmanager
def _recorded_inputs(model: KerasModel) -> Iterator[list[tuple[BatchNormLayer, Tensor]]]:
    """(BN layer, its inputs) for each call inside of the context.

    It works wherever in the model the layer is: layers that are called in models within models have no inputs that
    could be named from outside.
    """
    calls: list[tuple[BatchNormLayer, Tensor]] = []

    def recording(layer: Layer, call: Call) -> Call:
        def record(inputs: Tensor, *args: object, **kwargs: object) -> Tensor:
            calls.append((layer, inputs))
            return cast(Tensor, call(inputs, *args, **kwargs))

        return record

    with replaced_calls(_bn_layers(model), recording):
        yield calls


def has_batch_normalization(model: KerasModel) -> bool:
    """Return if a Keras model has a BN layer, in whatever layer or model inside it."""
    return bool(_bn_layers(model))


def use_batch_statistics(model: KerasModel) -> KerasModel:
    """Return a view of a model that, called with training=True, normalizes by the statistics of the batch.

    The batch is that over all replicas. Called with training=False it is the model itself.

    Args:
        model: a Keras model; it is not changed, nor by calling the view.
    """
    several = distribution.replicas_in_scope() > 1
    # On one device the sums of a synchronized layer would only lose digits: its variance is E[x^2] - E[x]^2.
    return cast(KerasModel, _View(model, {"synchronized": several}))


def reestimate_statistics(
    model: KerasModel,
    images: DatasetImages,
    batch_size: int,
    *,
    width: Size,
    call: Callable[[KerasModel, Tensor], Tensor],
) -> KerasModel:
    """Return a model with tracked statistics that are the mean over batches of images.

    Args:
        model: a Keras model; it is not changed.
        images: of the data set, [n, height, width, channels]. Their whole batches are used, in their order.
        batch_size: examples a batch.
        width: height and width of the model's pixels.
        call: (model, pixels) -> outputs, with training=True.

    Returns:
        A copy, or a view where layers of other classes than Keras' own may not outlive one.

    Raises:
        UsageError: for a BN layer of another class that does not track batch statistics with a `momentum`.
    """
    variables = _tracked(model)
    steps = max(1, len(images) // batch_size)

    def batch_statistics(x: Tensor, before: float) -> list[Tensor]:
        # With momentum 0 the tracked statistics are those of the last batch.
        view = _View(model, {"momentum": 0.0}, {id(v): np.full(v.shape, before, np.float32) for v in variables})
        call(cast(KerasModel, view), to_pixels(x, width))
        return [ops.cast(view.updates[id(v)], "float64") for v in variables]

    def add(x: Tensor, sums: list[Tensor]) -> list[Tensor]:
        return [total + value for total, value in zip(sums, batch_statistics(x, 0.0), strict=True)]

    _require_momentum(model, lambda before: batch_statistics(backend.place(images[:batch_size]), before))
    compiled = backend.compile(add)
    sums = [np.zeros(v.shape, np.float64) for v in variables]
    for step in range(steps):
        sums = compiled(images[step * batch_size : (step + 1) * batch_size], sums)
    means = {id(v): np.asarray(total) / steps for v, total in zip(variables, sums, strict=True)}
    return _copy(model, means) or cast(KerasModel, _View(model, {}, means))


def held_off(model: KerasModel, inputs: Tensor) -> tuple[str, ...]:
    """Name the layers that act in training only, which stay off where BN normalizes by the batch.

    They are found by what they do: a layer gets the same inputs in inference and, repeatedly, in training. BN layers
    normalize by the batch both times and are not meant.

    Args:
        model: a Keras model; it is not changed.
        inputs: some examples, as the model takes them.

    Returns:
        Their names, in the order in which they are called; of a layer that holds such layers only those.
    """
    found: list[Layer] = []
    tried: set[int] = set()
    in_trial = False

    def on_trial(layer: Layer, call: Call) -> Call:
        in_training = _in_training(layer, call)

        def acts(outputs: object, *args: object, **kwargs: object) -> bool:
            if any(inner is other for inner in layer._flatten_layers(include_self=False) for other in found):
                return False
            for _ in range(N_TRIALS):
                try:
                    others = in_training(*args, **kwargs)
                except Exception:  # of any kind: what fails in training alone acts in training alone
                    return True
                if _differ(outputs, others):
                    return True
            return False

        def run(*args: object, **kwargs: object) -> object:
            nonlocal in_trial
            outputs = call(*args, **kwargs)
            if not in_trial and id(layer) not in tried and not kwargs.get("training") and not backend.is_tracing():
                tried.add(id(layer))
                in_trial = True
                found.extend([layer] if acts(outputs, *args, **kwargs) else [])
                in_trial = False
            return outputs

        return run

    layers = [layer for layer in layers_inside(model) if _may_act_in_training(layer)]
    if layers:
        with replaced_calls(layers, on_trial):
            _View(model, {})(inputs, training=True)
    return tuple(layer.name for layer in found)


def _differ(outputs: object, others: object) -> bool:
    """True where two structures of tensors differ by more than rounding errors."""
    import keras

    for a, b in zip(keras.tree.flatten(outputs), keras.tree.flatten(others), strict=True):
        if a is None or b is None:
            continue
        first, second = (np.asarray(keras.ops.convert_to_numpy(v)).astype(np.float64) for v in (a, b))
        scale = np.abs(first[np.isfinite(first)]).max(initial=0.0)
        if first.shape != second.shape or not np.allclose(first, second, rtol=0, atol=1e-5 * scale, equal_nan=True):
            return True
    return False


# ---------------------------------------------------------------- the layers of a model


def layers_inside(model: KerasModel) -> list[Layer]:
    """The layers of a model, itself first, with those inside of layers and models."""
    return list(cast(Layer, model)._flatten_layers())


def _bn_layers(model: KerasModel) -> list[Layer]:
    """BN layers: Keras' and those derived from it, and others that track a mean and a variance in training."""
    return [layer for layer in layers_inside(model) if is_batch_normalization(layer)]


def is_batch_normalization(layer: Layer) -> bool:
    """Return if a layer is BN: Keras', one derived from it, or another that tracks mean and variance in training."""
    import keras

    own = isinstance(layer, keras.layers.BatchNormalization)
    tracked = [getattr(layer, name, None) for name in ("moving_mean", "moving_variance")]
    return own or (_takes_training(layer) and all(isinstance(v, keras.Variable) for v in tracked))


def _tracked(model: KerasModel) -> list[Variable]:
    """The variables of the tracked statistics."""
    return [v for layer in _bn_layers(model) for v in (layer.moving_mean, layer.moving_variance)]


def _takes_training(layer: Layer) -> bool:
    return "training" in inspect.signature(type(layer).call).parameters


def _may_act_in_training(layer: Layer) -> bool:
    """False for BN, for Keras' models, which only hand `training` on, and for the cells of recurrent layers."""
    module = type(layer).call.__module__
    container = module.startswith("keras.") and module.endswith((".functional", ".sequential"))
    cell = hasattr(layer, "state_size") and not hasattr(layer, "cell")
    return _takes_training(layer) and not (container or cell or is_batch_normalization(layer))


def _require_momentum(model: KerasModel, statistics: Callable[[float], list[Tensor]]) -> None:
    """Raise `UsageError` unless, with momentum 0, what BN layers of other classes track is that of the last batch.

    `statistics` is a function of the tracked statistics before it.
    """
    import keras

    own = keras.layers.BatchNormalization
    if all(type(layer).call is own.call for layer in _bn_layers(model)):
        return
    zeros, ones = statistics(0.0), statistics(1.0)
    for i, layer in enumerate(_bn_layers(model)):
        if _differ(zeros[2 * i : 2 * i + 2], ones[2 * i : 2 * i + 2]):
            raise UsageError(
                f"bn_statistics: {layer.name} does not track the statistics of batches as Keras' BatchNormalization "
                "does, with a `momentum`; only `tracked` and `batch` statistics are possible"
            )


# ---------------------------------------------------------------- calls in which BN layers normalize by the batch


class _View:
    """A model whose calls change none of its variables; called with training=True, only its BN layers train.

    Attributes:
        tracked: what takes the place of the model's variables, by id.
        updates: the values that the last call with training=True would have given the model's variables, by id.
    """

    def __init__(self, model: Layer, changes: Plain, tracked: Mapping[int, AnyArray] | None = None) -> None:
        """`changes` are of attributes of the BN layers; those that a layer does not have are left out."""
        self._model: Layer = model._model if isinstance(model, _View) else model
        self._changes = {"_trainable": True, **changes}
        self.tracked = dict(tracked or {})
        self.updates: dict[int, Tensor] = {}
        self._lock, self._inside, self._stack = threading.Lock(), 0, contextlib.ExitStack()

    def __call__(self, inputs: Tensor, training: bool = False) -> Tensor:
        import keras

        mapping = [(v, self.tracked[id(v)]) for v in self._model.variables if id(v) in self.tracked]
        by_batch = self._by_batch() if training else contextlib.nullcontext()
        with keras.StatelessScope(mapping) as scope, functions_inlined(self._model), by_batch:
            outputs = self._model(inputs, training=False)
            self.updates = dict(scope.state_mapping)
        return outputs

    def __getattr__(self, name: str) -> object:
        """All else is the model's."""
        if name.startswith("__") or name == "_model":
            raise AttributeError(name)
        return getattr(self._model, name)

    @contextlib.contextmanager
    def _by_batch(self) -> Iterator[None]:
        """Let BN layers train inside. Replicas are in it at a time: their threads take turns at each sum over them."""
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                layers = _bn_layers(self._model)
                self._stack.enter_context(_changed_attributes(layers, self._changes))
                self._stack.enter_context(
                    replaced_calls([layer for layer in layers if _takes_training(layer)], _in_training)
                )
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._stack.close()


def _in_training(layer: Layer, call: Call) -> Call:
    """The call of a layer with training=True."""
    signature = inspect.signature(type(layer).call)

    def run(*args: object, **kwargs: object) -> object:
        bound = signature.bind(layer, *args, **kwargs)
        bound.arguments["training"] = True
        return call(*bound.args[1:], **bound.kwargs)

    return run


@contextlib.contextmanager
def replaced_calls(layers: Sequence[Layer], replacement: Callable[[Layer, Call], Call]) -> Iterator[None]:
    """Inside, each layer's `call` is replacement(layer, its call).

    It works wherever in a model the layers are: layers that are called in models within models have no inputs that
    could be named from outside.
    """
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_changed_attributes([layer], {"call": replacement(layer, layer.call)}))
        yield


@contextlib.contextmanager
def _changed_attributes(layers: Sequence[Layer], changes: Plain) -> Iterator[None]:
    """Inside, the layers have other values of those attributes that they have."""
    changed = [(layer, name, vars(layer).get(name)) for layer in layers for name in changes if hasattr(layer, name)]
    own = [name in vars(layer) for layer, name, _ in changed]
    for layer, name, _ in changed:
        setattr(layer, name, changes[name])
    try:
        yield
    finally:
        for (layer, name, value), was_own in zip(changed, own, strict=True):
            if was_own:
                setattr(layer, name, value)
            else:
                delattr(layer, name)  # the class' own is behind it


# ---------------------------------------------------------------- a copy


def _copy(model: KerasModel, values: Mapping[int, AnyArray]) -> KerasModel | None:
    """A copy with the same weights, but for these, by id of the variable; attacks can fold its BN layers.

    None where there may be no such copy: for models that are no graph, or with layers that are not Keras' own or ours,
    which may hold more than their config and weights.
    """
    import keras

    if isinstance(model, _View) or not all(
        type(layer).__module__.startswith(("keras.", "bn_vuln.")) for layer in layers_inside(model)
    ):
        return None

    def clone(layer: Layer) -> Layer:
        return type(layer).from_config(layer.get_config())

    try:
        copy: KerasModel = keras.models.clone_model(model, clone_function=clone, recursive=True)
        copy.set_weights([values.get(id(v), np.asarray(v)) for v in cast(Layer, model).weights])
    except Exception:  # Keras raises many kinds
        return None
    for layer in layers_inside(copy):
        if type(layer).__name__ == "Normalization":
            layer.finalize_state()  # it computes with numbers of its own, not with its weights
    return copy


def functions_inlined(model: KerasModel) -> contextlib.AbstractContextManager[None]:
    """Inside, a layer's `call` that is a function of TensorFlow runs anew: its graph would be that of earlier calls."""
    return backend.functions_inlined(
        any(hasattr(type(layer).call, "get_concrete_function") for layer in layers_inside(model))
    )
