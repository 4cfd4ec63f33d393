"""Batch normalization folded away for inference, where it only multiplies and adds for each channel.

With s = gamma / sqrt(variance + c) and t = beta - mean s, BN maps x to s x + t, which a neighbour can do as well: the
Dense or convolution before it (W' = W s, b' = b s + t), or the one behind it (W' = s W, b' = b + t W). Each BN layer
is decided from the functional graph; where folding would not be exact, the layer stays and the reason is given.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.runtime import backend

Array = NDArray[np.float64]

PLAIN = {"Dense", *(f"Conv{rank}D" for rank in (1, 2, 3))}
DEPTHWISE = {"DepthwiseConv1D", "DepthwiseConv2D"}
SEPARABLE = {"SeparableConv1D", "SeparableConv2D"}
TRANSPOSED = {f"Conv{rank}DTranspose" for rank in (1, 2, 3)}
INACTIVE = {"Identity", "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"}  # in inference
TOLERANCE = {"float16": 1e-2, "bfloat16": 1e-1}  # of the self-check, by compute dtype; 1e-4 for the others
UNKNOWN_SIZE = 32  # what the self-check puts where an input shape has None: pooling five times leaves one pixel


@dataclass(frozen=True)
class FoldingResult:
    """A model for inference: a new one, or the model itself where nothing could be folded.

    `folded`: how many BN layers are gone (an Identity has their place and name). `kept`: one reason for each BN
    layer that stays, "normalization_3: follows Add, not a Dense or convolution; ...".
    """

    model: Any
    folded: int
    kept: tuple[str, ...]


def fold(model: Any) -> FoldingResult:
    """A copy of a Keras model with inference BN folded into the layers beside it; the argument is not changed.

    Never raises: whatever goes wrong, and a copy whose outputs differ, gives the model itself and says so.
    """
    backend.tensorflow()
    layers: list[Any] = []
    try:
        layers = _normalizations(model)
        planner = _Planner(_graphs(model), layers)
        if not planner.steps:
            return FoldingResult(model, 0, planner.kept())
        copy = _copy(model, planner.steps)
        problem = _difference(model, copy)
    except Exception as error:  # custom layers can raise anything, and Keras raises many kinds
        problem = f"folding was tried and failed: {' '.join(str(error).split())[:300] or type(error).__name__}"
    if problem:
        return FoldingResult(model, 0, tuple(f"{layer.name}: {problem}" for layer in layers))
    return FoldingResult(copy, len(planner.steps), planner.kept())


# ---------------------------------------------------------------- the graph


class _Graph:
    """The calls of a functional model, first to last, without those inside the models it calls.

    Keras keeps calls ("nodes") of layers for all models that ever used them; only those of this model count.
    """

    def __init__(self, functional: Any) -> None:
        depths = functional._nodes_by_depth
        self.calls = [node for depth in sorted(depths, reverse=True) for node in depths[depth]]
        self.trains = False
        self._outputs = {id(tensor) for tensor in functional.outputs}
        self.makers = {id(tensor): node for node in self.calls for tensor in node.output_tensors}
        self._takers: dict[int, list[Any]] = defaultdict(list)
        for node in self.calls:
            for tensor in node.input_tensors:
                self._takers[id(tensor)].append(node)

    def only_taker(self, tensor: Any) -> Any | None:
        """The call that takes a tensor; None where several do, or where it is an output of the model."""
        takers = self._takers[id(tensor)]
        return takers[0] if len(takers) == 1 and id(tensor) not in self._outputs else None


def _graphs(model: Any) -> list[_Graph]:
    """The graph of a model and those of the models inside it, each once; none for a subclassed model."""
    found: dict[int, _Graph] = {}
    if _functional(model) is not None:
        _collect(model, False, found)
    return list(found.values())


def _collect(model: Any, trains: bool, found: dict[int, _Graph]) -> None:
    graph = found.setdefault(id(model), _Graph(_functional(model)))
    graph.trains |= trains
    for node in graph.calls:
        if _functional(node.operation) is not None:
            _collect(node.operation, graph.trains or _trains(node), found)


def _functional(model: Any) -> Any | None:
    """The functional model that is executed when a model is called; None where there is none.

    A subclass with a `call` of its own may have a graph and not follow it.
    """
    module = getattr(getattr(type(model), "call", None), "__module__", "")
    if module.startswith("keras.") and module.endswith(".sequential"):
        return model._functional
    return model if module.startswith("keras.") and module.endswith(".functional") else None


def _trains(node: Any) -> bool:
    """Whether a call was made with training=True, which Keras takes by name only."""
    return bool(node.arguments.kwargs.get("training"))


def _kind(operation: Any) -> str:
    """The name of a layer's class if Keras' own; a subclass may compute anything."""
    import keras

    name = type(operation).__name__
    return name if getattr(keras.layers, name, None) is type(operation) else ""


def _normalizations(model: Any) -> list[Any]:
    """All BN layers of a model, however deep inside it."""
    import keras

    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]


# ---------------------------------------------------------------- what can be folded


class _StaysError(Exception):
    """A BN layer cannot be folded; the message says why."""


@dataclass(frozen=True)
class _Step:
    """Fold `normalization` into `layer`: behind it in the graph if `forward`, else before it."""

    normalization: Any
    layer: Any
    forward: bool


@dataclass
class _Planner:
    """Decides for each of `layers` (BN) whether it can be folded. The steps must be done in their order."""

    graphs: list[_Graph]
    layers: list[Any]
    steps: list[_Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.times = Counter(id(node.operation) for graph in self.graphs for node in graph.calls)
        self.gone: set[int] = set()
        self.reasons: dict[int, list[str]] = {id(layer): [] for layer in self.layers}
        places = [(graph, node) for graph in self.graphs for node in graph.calls]
        places = [(graph, node) for graph, node in places if id(node.operation) in self.reasons]
        places = [(graph, node) for graph, node in places if self._foldable(graph, node)]
        # Of BN layers in a row the first goes into the layer before it first, the last into the one behind it.
        for graph, node in places:
            self._try(graph, node, forward=False)
        for graph, node in reversed(places):
            self._try(graph, node, forward=True)

    def kept(self) -> tuple[str, ...]:
        """The reason for each BN layer that stays."""
        alone = "inside a layer or a model that has no graph (subclassed, or not built)"
        stay = [layer for layer in self.layers if id(layer) not in self.gone]
        return tuple(f"{layer.name}: {'; '.join(self.reasons[id(layer)]) or alone}" for layer in stay)

    def _foldable(self, graph: _Graph, node: Any) -> bool:
        """Whether the call of a BN layer is one of s x + t; the reason is kept if not."""
        reason = self._objection(graph, node)
        if reason:
            self.reasons[id(node.operation)] = [reason]
        return not reason

    def _objection(self, graph: _Graph, node: Any) -> str:
        import keras

        layer = node.operation
        if self.times[id(layer)] > 1:
            return f"is shared (called {self.times[id(layer)]} times)"
        if _trains(node) or graph.trains:
            return "called with training=True, so it normalizes by the batch"
        if len(node.input_tensors) > 1 or node.arguments.kwargs.get("mask") is not None:
            return "called with a mask"
        if getattr(layer.call, "__func__", None) is not keras.layers.BatchNormalization.call:
            return f"{type(layer).__name__} has a call of its own"
        return ""

    def _try(self, graph: _Graph, node: Any, *, forward: bool) -> None:
        if id(node.operation) in self.gone:
            return
        try:
            layer = self._behind(graph, node) if forward else self._before(graph, node)
        except _StaysError as reason:
            self.reasons[id(node.operation)].append(str(reason))
            return
        self.steps.append(_Step(node.operation, layer, forward))
        self.gone.add(id(node.operation))

    def _before(self, graph: _Graph, node: Any) -> Any:
        """The layer that the BN layer of a call can be folded back into."""
        import keras

        maker, alone = node, True
        while maker is node or self._passes(maker):
            tensor = maker.input_tensors[0]
            alone = alone and graph.only_taker(tensor) is not None
            maker = graph.makers[id(tensor)]
        layer = maker.operation
        if _kind(layer) not in PLAIN | DEPTHWISE | SEPARABLE | TRANSPOSED:
            raise _StaysError(f"follows {type(layer).__name__}, not a Dense or convolution")
        if layer.activation is not keras.activations.linear:
            raise _StaysError(f"follows the activation of {layer.name}")
        if not alone:
            raise _StaysError(f"the output of {layer.name} is used elsewhere too")
        self._require_usable(layer)
        _require_channels(node, layer)
        return layer

    def _behind(self, graph: _Graph, node: Any) -> Any:
        """The layer that the BN layer of a call can be folded forward into."""
        taker = graph.only_taker(node.output_tensors[0])
        while taker is not None and self._passes(taker):
            taker = graph.only_taker(taker.output_tensors[0])
        if taker is None:
            raise _StaysError("its output is used more than once or is an output of the model")
        layer = taker.operation
        if _kind(layer) not in PLAIN | DEPTHWISE:
            raise _StaysError(f"feeds {type(layer).__name__}, not a Dense or convolution")
        # Padding puts zeros behind BN; folded, they would be put before it, where BN maps them to t.
        if _kind(layer) != "Dense" and layer.padding != "valid" and set(layer.kernel_size) != {1}:
            raise _StaysError(f"feeds {layer.name}, which pads ('{layer.padding}') with zeros that are not normalized")
        self._require_usable(layer)
        _require_channels(node, layer)
        return layer

    def _passes(self, node: Any) -> bool:
        """Whether a call returns what it takes, in inference."""
        if id(node.operation) in self.gone:
            return True
        return _kind(node.operation) in INACTIVE and len(node.input_tensors) == 1 and not _trains(node)

    def _require_usable(self, layer: Any) -> None:
        if self.times[id(layer)] > 1:
            raise _StaysError(f"{layer.name} is shared (called {self.times[id(layer)]} times)")
        if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
            raise _StaysError(f"{layer.name} is quantized or has LoRA weights")


def _require_channels(node: Any, layer: Any) -> None:
    """Raise unless the BN layer of a call normalizes the channels of the layer beside it."""
    rank = len(node.input_tensors[0].shape)
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    if node.operation.axis % rank != (1 if first else rank - 1):
        raise _StaysError(f"normalizes axis {node.operation.axis}, not the channels of {layer.name}")


# ---------------------------------------------------------------- arithmetic, in float64


def _scale_shift(normalization: Any) -> tuple[Array, Array]:
    """(s, t) of a BN layer, [channels] each."""
    mean, variance = _array(normalization.moving_mean), _array(normalization.moving_variance)
    gamma = _array(normalization.gamma) if normalization.scale else np.ones_like(mean)
    beta = _array(normalization.beta) if normalization.center else np.zeros_like(mean)
    scale = gamma / np.sqrt(variance + normalization.epsilon)
    return scale, beta - mean * scale


def _array(variable: Any) -> Array:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(variable)).astype(np.float64)


def _kernel(layer: Any) -> Any:
    """The variable that makes the output channels of a layer."""
    return layer.pointwise_kernel if _kind(layer) in SEPARABLE else layer.kernel


def _folded_weights(steps: list[_Step]) -> list[tuple[Any, Array, Array]]:
    """(layer, kernel, bias) for each layer that something is folded into."""
    weights: dict[int, tuple[Any, Array, Array]] = {}
    for step in steps:
        layer, kernel, bias = weights.get(id(step.layer)) or (step.layer, *_weights(step.layer))
        change = _forward if step.forward else _backward
        weights[id(layer)] = (layer, *change(layer, kernel, bias, *_scale_shift(step.normalization)))
    return list(weights.values())


def _weights(layer: Any) -> tuple[Array, Array]:
    return _array(_kernel(layer)), _array(layer.bias) if layer.use_bias else np.zeros(1)


def _backward(layer: Any, kernel: Array, bias: Array, scale: Array, shift: Array) -> tuple[Array, Array]:
    """Kernel [..., inputs, outputs] and bias of a layer followed by s x + t."""
    return kernel * _over_outputs(layer, kernel, scale), bias * scale + shift


def _forward(layer: Any, kernel: Array, bias: Array, scale: Array, shift: Array) -> tuple[Array, Array]:
    """Kernel [..., inputs, outputs] and bias of a layer that takes s x + t."""
    added = (kernel * _over_inputs(layer, kernel, shift)).reshape(-1, *kernel.shape[-2:]).sum(axis=0)
    # A depthwise kernel ends in [channels, multiplier], and has an output for each of both.
    added = added.ravel() if _kind(layer) in DEPTHWISE else added.sum(axis=0)
    return kernel * _over_inputs(layer, kernel, scale), bias + added


def _over_outputs(layer: Any, kernel: Array, values: Array) -> Array:
    """One value for each output channel, to multiply the kernel with."""
    if _kind(layer) in DEPTHWISE:
        return values.reshape(kernel.shape[-2:])
    return values[:, None] if _kind(layer) in TRANSPOSED else values  # kernel [..., outputs, inputs] if transposed


def _over_inputs(layer: Any, kernel: Array, values: Array) -> Array:
    """One value for each input channel, to multiply the kernel with; in groups, outputs have their own inputs."""
    if _kind(layer) in DEPTHWISE:
        return values[:, None]
    groups = getattr(layer, "groups", 1)
    return np.repeat(values.reshape(groups, -1).T, kernel.shape[-1] // groups, axis=1)


# ---------------------------------------------------------------- the copy


def _copy(model: Any, steps: list[_Step]) -> Any:
    """The model with new layers and the weights of the old ones, without the BN layers of `steps`."""
    copier = _Copier(steps)
    copy = copier.model(model)
    for layer, fresh in copier.clones.values():
        if id(layer) not in copier.changed | copier.gone and _functional(layer) is None:
            _take_over(layer, fresh)
    _assign(steps, copier.clones)
    return copy


class _Copier:
    """Makes new layers; `clones` are (old, new) by id of the old, so that a shared layer stays shared."""

    def __init__(self, steps: list[_Step]) -> None:
        self.clones: dict[int, tuple[Any, Any]] = {}
        self.gone = {id(step.normalization) for step in steps}
        self.changed = {id(step.layer) for step in steps}

    def model(self, model: Any) -> Any:
        """A new model of new layers, those inside the models in it included."""
        import keras

        if isinstance(model, keras.Sequential):  # which calls its layers anew, with the input alone
            return keras.models.clone_model(model, clone_function=self.layer)
        inputs = keras.tree.map_structure(_input, model.input)
        return keras.models.clone_model(model, inputs, clone_function=self.layer, call_function=_call)

    def layer(self, layer: Any) -> Any:
        """The new layer for an old one."""
        if id(layer) not in self.clones:
            self.clones[id(layer)] = (layer, self._new(layer))
        return self.clones[id(layer)][1]

    def _new(self, layer: Any) -> Any:
        import keras

        if _functional(layer) is not None:
            return self.model(layer)
        if id(layer) in self.gone:
            # Its name stays, which may be that of an output, and so does its conversion to another dtype.
            return keras.layers.Identity(name=layer.name, dtype=layer.dtype_policy.name)
        config = layer.get_config()
        return type(layer).from_config({**config, "use_bias": True} if id(layer) in self.changed else config)


def _input(tensor: Any) -> Any:
    """A new input with the name of the old one; left to itself, Keras renames those that were not named."""
    layer = tensor._keras_history.operation
    return type(layer).from_config(layer.get_config()).output


def _call(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a new layer as the old one was, but an Identity without what BN was given (mask=None, training=False)."""
    alone = _kind(layer) == "Identity"
    return layer(*args, **{name: value for name, value in kwargs.items() if name == "inputs" or not alone})


def _take_over(layer: Any, fresh: Any) -> None:
    """Give a new layer all that an old one has learned."""
    old, new = getattr(layer, "variables", []), getattr(fresh, "variables", [])  # none of an operation like x + y
    for source, target in zip(old, new, strict=True):
        target.assign(source)
    if old and hasattr(fresh, "finalize_state"):  # keras' Normalization has constants that follow from its variables
        fresh.finalize_state()


def _assign(steps: list[_Step], clones: dict[int, tuple[Any, Any]]) -> None:
    for layer, kernel, bias in _folded_weights(steps):
        fresh = clones[id(layer)][1]
        if _kind(layer) in SEPARABLE:
            fresh.depthwise_kernel.assign(layer.depthwise_kernel)
        _kernel(fresh).assign(kernel)
        fresh.bias.assign(bias)


# ---------------------------------------------------------------- the self-check


def _difference(model: Any, copy: Any) -> str:
    """Why the copy must not stand for the model, empty if it may: guards against graphs that were misread."""
    if _interface(model) != _interface(copy):
        return "the copy of the model has other inputs or outputs"
    inputs = _random_inputs(model)
    with _full_float32():
        pairs = zip(_outputs(model, inputs), _outputs(copy, inputs), strict=True)
        differences = [np.abs(a - b).max() / (np.abs(a).max() or 1) for a, b in pairs]
    worst = float(np.max(differences))
    allowed = max(TOLERANCE.get(layer.compute_dtype, 1e-4) for layer in model._flatten_layers())
    if worst <= allowed:
        return ""
    return f"folding was tried and changes the outputs by {worst:.1e} of the largest, more than {allowed:.0e}"


def _interface(model: Any) -> list[Any]:
    """Names, shapes and types of inputs and outputs."""
    tensors = [*model.inputs, *model.outputs]
    return [(tensor._keras_history.operation.name, tensor.shape, tensor.dtype, tensor.sparse) for tensor in tensors]


def _random_inputs(model: Any) -> Any:
    """Four random examples in [0, 1], in the structure of the model's inputs; whole numbers where it takes those."""
    import keras

    generator = np.random.default_rng(0)

    def random(tensor: Any) -> Any:
        shape = [size or UNKNOWN_SIZE for size in tensor.shape[1:]]
        values = generator.uniform(size=(tensor.shape[0] or 4, *shape))
        values = values if "float" in tensor.dtype else values.round()
        return keras.ops.cast(values, tensor.dtype)

    return keras.tree.map_structure(random, getattr(_functional(model), "input", None))


def _outputs(model: Any, inputs: Any) -> list[Array]:
    """What a model returns, in inference. Stateless: a BN layer stuck in training must not learn from it."""
    import keras

    states = (model.trainable_variables, model.non_trainable_variables)
    return [_array(tensor) for tensor in keras.tree.flatten(model.stateless_call(*states, inputs, training=False)[0])]


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Switch TF32 off: GPUs round products to ten bits by default, more than the self-check allows."""
    config = backend.tensorflow().config.experimental
    enabled = config.tensor_float_32_execution_enabled()
    config.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        config.enable_tensor_float_32_execution(enabled)
