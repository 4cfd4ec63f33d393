"""Batch normalization folded away for inference, where it only multiplies and adds for each channel.

With s = gamma / sqrt(variance + c) and t = beta - mean s, BN maps x to s x + t, which a neighbour can do as well: the
Dense or convolution before it (W' = W s, b' = b s + t), or the one behind it (W' = s W, b' = b + t W). Each BN layer
is decided from the functional graph; where folding would not be exact, the layer stays and the reason is given.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

from bn_vuln.runtime import backend
from bn_vuln.typing import BatchNormLayer, Floats, KerasModel, Tensor, Variable

Layer: TypeAlias = Any  # a Keras layer or operation of any class: each has attributes of its own

PLAIN = {"Dense", *(f"Conv{rank}D" for rank in (1, 2, 3))}
DEPTHWISE = {"DepthwiseConv1D", "DepthwiseConv2D"}
SEPARABLE = {"SeparableConv1D", "SeparableConv2D"}
TRANSPOSED = {f"Conv{rank}DTranspose" for rank in (1, 2, 3)}
NO_OP_LAYERS = {"Identity", "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"}  # in inference
TOLERANCE = {"float16": 1e-2, "bfloat16": 1e-1}  # of the self-check, by compute dtype; 1e-4 for the others
UNKNOWN_SIZE = 32  # the self-check's where an input shape has None: pooling five times leaves one pixel


class Node(Protocol):
    """One call of a layer in the graph of a functional model, as Keras keeps it."""

    operation: Layer
    arguments: Any
    input_tensors: Sequence[Tensor]
    output_tensors: Sequence[Tensor]


@dataclass(frozen=True)
class FoldingResult:
    """A model for inference.

    Attributes:
        model: a new model, or the model itself where nothing could be folded.
        folded: number of BN layers that were folded (an Identity has their place and name).
        kept: one reason for each BN layer that stays, "normalization_3: follows Add, not a Dense or convolution; ...".
    """

    model: KerasModel
    folded: int
    kept: tuple[str, ...]


def fold(model: KerasModel) -> FoldingResult:
    """Copy a Keras model with inference BN folded into the layers beside it.

    It never raises: where anything goes wrong, or the outputs of the copy differ, the result is the model itself, with
    the reason.

    Args:
        model: any Keras model; it is not changed.
    """
    backend.tensorflow()
    import keras

    whole: Layer = model
    layers: list[BatchNormLayer] = []
    try:
        layers = [layer for layer in whole._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
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

    def __init__(self, functional: Layer) -> None:
        depths: dict[int, list[Node]] = functional._nodes_by_depth
        self.calls = [node for depth in sorted(depths, reverse=True) for node in depths[depth]]
        self.trains = False
        self._outputs = {id(tensor) for tensor in functional.outputs}
        self.producer = {id(tensor): node for node in self.calls for tensor in node.output_tensors}
        self._consumers: dict[int, list[Node]] = defaultdict(list)
        for node in self.calls:
            for tensor in node.input_tensors:
                self._consumers[id(tensor)].append(node)

    def only_consumer(self, tensor: Tensor) -> Node | None:
        """The call that takes a tensor; None where several do, or where it is an output of the model."""
        consumers = self._consumers[id(tensor)]
        return consumers[0] if len(consumers) == 1 and id(tensor) not in self._outputs else None


def _graphs(model: KerasModel) -> list[_Graph]:
    """The graph of a model and those of the models inside it, each once; none for a subclassed model."""
    found: dict[int, _Graph] = {}
    if _functional(model) is not None:
        _collect(model, False, found)
    return list(found.values())


def _collect(model: Layer, trains: bool, found: dict[int, _Graph]) -> None:
    graph = found.setdefault(id(model), _Graph(_functional(model)))
    graph.trains |= trains
    for node in graph.calls:
        if _functional(node.operation) is not None:
            _collect(node.operation, graph.trains or _trains(node), found)


def _functional(model: Layer) -> Layer | None:
    """The functional model that is executed when a model is called; None where there is none.

    A subclass with a `call` of its own may have a graph and not follow it.
    """
    module = getattr(getattr(type(model), "call", None), "__module__", "")
    if module.startswith("keras.") and module.endswith(".sequential"):
        return model._functional
    return model if module.startswith("keras.") and module.endswith(".functional") else None


def _trains(node: Node) -> bool:
    """A call was made with training=True, which Keras takes by name only."""
    return bool(node.arguments.kwargs.get("training"))


def _kind(operation: Layer) -> str:
    """The name of a layer's class if Keras' own; a subclass may compute anything."""
    import keras

    name = type(operation).__name__
    return name if getattr(keras.layers, name, None) is type(operation) else ""


# ---------------------------------------------------------------- what can be folded


class _NotFoldableError(Exception):
    """A BN layer cannot be folded; the message says why."""


@dataclass(frozen=True)
class _Step:
    """Fold `normalization` into `layer`: behind it in the graph if `forward`, else before it."""

    normalization: BatchNormLayer
    layer: Layer
    forward: bool


@dataclass
class _Planner:
    """The decision for each of `layers` (BN). The steps must be done in their order."""

    graphs: list[_Graph]
    layers: list[BatchNormLayer]
    steps: list[_Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.n_calls = Counter(id(node.operation) for graph in self.graphs for node in graph.calls)
        self.folded: set[int] = set()
        self.reasons: dict[int, list[str]] = {id(layer): [] for layer in self.layers}
        places = [(graph, node) for graph in self.graphs for node in graph.calls]
        places = [(graph, node) for graph, node in places if id(node.operation) in self.reasons]
        for graph, node in places:
            if reason := self._reason_not_foldable(graph, node):
                self.reasons[id(node.operation)] = [reason]
        places = [(graph, node) for graph, node in places if not self.reasons[id(node.operation)]]
        # Of BN layers in a row the first goes into the layer before it first, the last into the one behind it.
        for graph, node in places:
            self._try(graph, node, forward=False)
        for graph, node in reversed(places):
            self._try(graph, node, forward=True)

    def kept(self) -> tuple[str, ...]:
        """The reason for each BN layer that stays."""
        alone = "inside a layer or a model that has no graph (subclassed, or not built)"
        stay = [layer for layer in self.layers if id(layer) not in self.folded]
        return tuple(f"{layer.name}: {'; '.join(self.reasons[id(layer)]) or alone}" for layer in stay)

    def _reason_not_foldable(self, graph: _Graph, node: Node) -> str:
        """Return why the call of a BN layer is not s x + t, or ''."""
        import keras

        layer = node.operation
        if self.n_calls[id(layer)] > 1:
            return f"is shared (called {self.n_calls[id(layer)]} times)"
        if _trains(node) or graph.trains:
            return "called with training=True, so it normalizes by the batch"
        if len(node.input_tensors) > 1 or node.arguments.kwargs.get("mask") is not None:
            return "called with a mask"
        if getattr(layer.call, "__func__", None) is not keras.layers.BatchNormalization.call:
            return f"{type(layer).__name__} has a call of its own"
        return ""

    def _try(self, graph: _Graph, node: Node, *, forward: bool) -> None:
        if id(node.operation) in self.folded:
            return
        try:
            layer = self._next_layer(graph, node) if forward else self._previous_layer(graph, node)
        except _NotFoldableError as reason:
            self.reasons[id(node.operation)].append(str(reason))
            return
        self.steps.append(_Step(node.operation, layer, forward))
        self.folded.add(id(node.operation))

    def _previous_layer(self, graph: _Graph, node: Node) -> Layer:
        """The layer that the BN layer of a call can be folded back into."""
        import keras

        producer, alone = node, True
        while producer is node or self._passes(producer):
            tensor = producer.input_tensors[0]
            alone = alone and graph.only_consumer(tensor) is not None
            producer = graph.producer[id(tensor)]
        layer = producer.operation
        if _kind(layer) not in PLAIN | DEPTHWISE | SEPARABLE | TRANSPOSED:
            raise _NotFoldableError(f"follows {type(layer).__name__}, not a Dense or convolution")
        if layer.activation is not keras.activations.linear:
            raise _NotFoldableError(f"follows the activation of {layer.name}")
        if not alone:
            raise _NotFoldableError(f"the output of {layer.name} is used elsewhere too")
        self._require_usable(layer)
        _require_channels(node, layer)
        return layer

    def _next_layer(self, graph: _Graph, node: Node) -> Layer:
        """The layer that the BN layer of a call can be folded forward into."""
        consumer = graph.only_consumer(node.output_tensors[0])
        while consumer is not None and self._passes(consumer):
            consumer = graph.only_consumer(consumer.output_tensors[0])
        if consumer is None:
            raise _NotFoldableError("its output is used more than once or is an output of the model")
        layer = consumer.operation
        if _kind(layer) not in PLAIN | DEPTHWISE:
            raise _NotFoldableError(f"feeds {type(layer).__name__}, not a Dense or convolution")
        # Padding puts zeros behind BN; folded, they would be put before it, where BN maps them to t.
        if _kind(layer) != "Dense" and layer.padding != "valid" and set(layer.kernel_size) != {1}:
            raise _NotFoldableError(
                f"feeds {layer.name}, which pads ('{layer.padding}') with zeros that are not normalized"
            )
        self._require_usable(layer)
        _require_channels(node, layer)
        return layer

    def _passes(self, node: Node) -> bool:
        """A call returns its input, in inference."""
        if id(node.operation) in self.folded:
            return True
        return _kind(node.operation) in NO_OP_LAYERS and len(node.input_tensors) == 1 and not _trains(node)

    def _require_usable(self, layer: Layer) -> None:
        if self.n_calls[id(layer)] > 1:
            raise _NotFoldableError(f"{layer.name} is shared (called {self.n_calls[id(layer)]} times)")
        if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
            raise _NotFoldableError(f"{layer.name} is quantized or has LoRA weights")


def _require_channels(node: Node, layer: Layer) -> None:
    """Raise unless the BN layer of a call normalizes the channels of the layer beside it."""
    rank = len(node.input_tensors[0].shape)
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    if node.operation.axis % rank != (1 if first else rank - 1):
        raise _NotFoldableError(f"normalizes axis {node.operation.axis}, not the channels of {layer.name}")


# ---------------------------------------------------------------- arithmetic, in float64


def _scale_shift(normalization: BatchNormLayer) -> tuple[Floats, Floats]:
    """(s, t) of a BN layer, [channels] each."""
    mean, variance = _array(normalization.moving_mean), _array(normalization.moving_variance)
    gamma = _array(normalization.gamma) if normalization.scale else np.ones_like(mean)
    beta = _array(normalization.beta) if normalization.center else np.zeros_like(mean)
    scale = gamma / np.sqrt(variance + normalization.epsilon)
    return scale, beta - mean * scale


def _array(variable: object) -> Floats:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(variable)).astype(np.float64)


def _kernel(layer: Layer) -> Variable:
    """The variable that makes the output channels of a layer."""
    return layer.pointwise_kernel if _kind(layer) in SEPARABLE else layer.kernel


def _folded_weights(steps: list[_Step]) -> list[tuple[Layer, Floats, Floats]]:
    """(layer, kernel, bias) for each layer that something is folded into."""
    weights: dict[int, tuple[Layer, Floats, Floats]] = {}
    for step in steps:
        layer = step.layer
        if id(layer) not in weights:
            weights[id(layer)] = layer, _array(_kernel(layer)), _array(layer.bias) if layer.use_bias else np.zeros(1)
        _, kernel, bias = weights[id(layer)]
        change = _forward if step.forward else _backward
        weights[id(layer)] = (layer, *change(layer, kernel, bias, *_scale_shift(step.normalization)))
    return list(weights.values())


def _backward(layer: Layer, kernel: Floats, bias: Floats, scale: Floats, shift: Floats) -> tuple[Floats, Floats]:
    """Kernel [..., inputs, outputs] and bias of a layer followed by s x + t."""
    factor = scale  # of each output channel, which is the last axis of the kernel but for these:
    if _kind(layer) in DEPTHWISE:
        factor = scale.reshape(kernel.shape[-2:])
    elif _kind(layer) in TRANSPOSED:  # kernel [..., outputs, inputs]
        factor = scale[:, None]
    return kernel * factor, bias * scale + shift


def _forward(layer: Layer, kernel: Floats, bias: Floats, scale: Floats, shift: Floats) -> tuple[Floats, Floats]:
    """Kernel [..., inputs, outputs] and bias of a layer that takes s x + t."""
    added = (kernel * _over_inputs(layer, kernel, shift)).reshape(-1, *kernel.shape[-2:]).sum(axis=0)
    # A depthwise kernel ends in [channels, multiplier], and has an output for each of both.
    added = added.ravel() if _kind(layer) in DEPTHWISE else added.sum(axis=0)
    return kernel * _over_inputs(layer, kernel, scale), bias + added


def _over_inputs(layer: Layer, kernel: Floats, values: Floats) -> Floats:
    """One value for each input channel, to multiply the kernel with; in groups, outputs have their own inputs."""
    if _kind(layer) in DEPTHWISE:
        return values[:, None]
    groups = getattr(layer, "groups", 1)
    return np.repeat(values.reshape(groups, -1).T, kernel.shape[-1] // groups, axis=1)


# ---------------------------------------------------------------- the copy


def _copy(model: KerasModel, steps: list[_Step]) -> KerasModel:
    """The model with new layers and the weights of the old ones, without the BN layers of `steps`."""
    copier = _Copier(steps)
    copy = copier.model(model)
    for layer, fresh in copier.clones.values():
        if id(layer) not in copier.changed | copier.folded and _functional(layer) is None:
            _copy_variables(layer, fresh)
    _assign(steps, copier.clones)
    return copy


class _Copier:
    """Makes new layers; `clones` are (old, new) by id of the old, so that a shared layer stays shared."""

    def __init__(self, steps: list[_Step]) -> None:
        self.clones: dict[int, tuple[Layer, Layer]] = {}
        self.folded = {id(step.normalization) for step in steps}
        self.changed = {id(step.layer) for step in steps}

    def model(self, model: Layer) -> Layer:
        """A new model of new layers, those inside the models in it included."""
        import keras

        if isinstance(model, keras.Sequential):  # which calls its layers anew, with the input alone
            return keras.models.clone_model(model, clone_function=self.layer)

        def named_input(tensor: Any) -> Tensor:  # left to itself, Keras renames inputs that were not named
            layer = tensor._keras_history.operation
            return type(layer).from_config(layer.get_config()).output

        def call(layer: Layer, *args: object, **kwargs: object) -> Tensor:
            if _kind(layer) == "Identity":  # without what BN was given: mask=None, training=False
                kwargs = {name: value for name, value in kwargs.items() if name == "inputs"}
            return layer(*args, **kwargs)

        inputs = keras.tree.map_structure(named_input, model.input)
        return keras.models.clone_model(model, inputs, clone_function=self.layer, call_function=call)

    def layer(self, layer: Layer) -> Layer:
        """The new layer for an old one."""
        if id(layer) not in self.clones:
            self.clones[id(layer)] = (layer, self._new(layer))
        return self.clones[id(layer)][1]

    def _new(self, layer: Layer) -> Layer:
        import keras

        if _functional(layer) is not None:
            return self.model(layer)
        if id(layer) in self.folded:
            # Its name stays, which may be that of an output, and so does its conversion to another dtype.
            return keras.layers.Identity(name=layer.name, dtype=layer.dtype_policy.name)
        config = layer.get_config()
        return type(layer).from_config({**config, "use_bias": True} if id(layer) in self.changed else config)


def _copy_variables(layer: Layer, fresh: Layer) -> None:
    """Copy the variables of an old layer to a new one."""
    old, new = getattr(layer, "variables", []), getattr(fresh, "variables", [])  # none of an operation like x + y
    for source, target in zip(old, new, strict=True):
        target.assign(source)
    if old and hasattr(fresh, "finalize_state"):  # keras' Normalization has constants that follow from its variables
        fresh.finalize_state()


def _assign(steps: list[_Step], clones: dict[int, tuple[Layer, Layer]]) -> None:
    for layer, kernel, bias in _folded_weights(steps):
        fresh = clones[id(layer)][1]
        if _kind(layer) in SEPARABLE:
            fresh.depthwise_kernel.assign(layer.depthwise_kernel)
        _kernel(fresh).assign(kernel)
        fresh.bias.assign(bias)


# ---------------------------------------------------------------- the self-check


def _difference(model: Layer, copy: Layer) -> str:
    """Return why the copy cannot replace the model, or '': it guards against graphs that were misread."""
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


def _interface(model: Layer) -> list[tuple[object, ...]]:
    """Names, shapes and types of inputs and outputs."""
    tensors = [*model.inputs, *model.outputs]
    return [(tensor._keras_history.operation.name, tensor.shape, tensor.dtype, tensor.sparse) for tensor in tensors]


def _random_inputs(model: Layer) -> Any:
    """Four random examples in [0, 1], in the structure of the model's inputs; whole numbers where it takes those."""
    import keras

    generator = np.random.default_rng(0)

    def random(tensor: Any) -> Any:
        shape = [size or UNKNOWN_SIZE for size in tensor.shape[1:]]
        values = generator.uniform(size=(tensor.shape[0] or 4, *shape))
        values = values if "float" in tensor.dtype else values.round()
        return keras.ops.cast(values, tensor.dtype)

    return keras.tree.map_structure(random, getattr(_functional(model), "input", None))


def _outputs(model: Layer, inputs: Any) -> list[Floats]:
    """The outputs of a model, in inference. Stateless: a BN layer stuck in training must not learn from it."""
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
