"""What the graph of a model's call says: its last activation, the arithmetic at its beginning, what stops gradients.

The graph is TensorFlow's, read while it traces a call, so the model itself is never changed, and layers, `keras.ops`,
functions of TensorFlow and custom layers all look the same. On another backend there is no such graph: nothing is found
then, and values decide.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from bn_vuln.runtime import backend, tensorflow_backend

GraphTensor: TypeAlias = Any  # a symbolic tensor of a TensorFlow graph, with the operation that makes it

ACTIVATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid", "LogSoftmax": "log-softmax"}
_FUNCTIONS = ("PartitionedCall", "StatefulPartitionedCall")  # a function of its own, which is not looked into
# They hand their first input on: as it is, or in another order or shape.
_SAME = ("Identity", "CheckNumerics", "PreventGradient", "Snapshot")
_MOVED = ("Reshape", "Squeeze", "ExpandDims", "Transpose", "StridedSlice")


def before_activation(outputs: GraphTensor) -> tuple[str | None, GraphTensor | None]:
    """Look for the activation that ends a model.

    Args:
        outputs: what the model returned inside of a function that is being traced.

    Returns:
        (its kind, what it was applied to in the shape of the outputs); (None, None) where the last operation is no
        activation of `ACTIVATIONS`. Operations after it that only cast, reshape or pick entries are carried out on
        what it was applied to.
    """
    if not _is_read():
        return None, None
    moves: list[Any] = []
    tensor = outputs
    while True:
        op = tensor.op
        if op.type in ACTIVATIONS:
            kind, found = ACTIVATIONS[op.type], op.inputs[0]
            break
        if op.type == "Log" and op.inputs[0].op.type == "Softmax":
            kind, found = "log-softmax", op.inputs[0].op.inputs[0]
            break
        if op.type in _MOVED:
            moves.append(op)
        elif not _hands_on(op):
            return None, None
        tensor = op.inputs[tensor.value_index if op.type == "IdentityN" else 0]
    for op in reversed(moves):
        found = tensorflow_backend.repeat(op, found)
    return kind, found


def last_operation(outputs: GraphTensor) -> str:
    """Return the type of the last operation that computes the outputs, as TensorFlow names it; unknown on JAX."""
    if not _is_read():
        return "an operation of JAX"
    tensor = outputs
    while tensor.op.type in _MOVED or _hands_on(tensor.op):
        tensor = tensor.op.inputs[tensor.value_index if tensor.op.type == "IdentityN" else 0]
    return str(tensor.op.type)


def _is_read() -> bool:
    return backend.name() == "tensorflow"


def is_function(operation: str) -> bool:
    """Return if an operation is a function of its own, whose graph is another one."""
    return operation in _FUNCTIONS


def _hands_on(op: Any) -> bool:
    if op.type == "Cast":
        return op.get_attr("DstT").is_floating and op.get_attr("SrcT").is_floating
    return op.type in _SAME or op.type == "IdentityN"


# Before the first layer that computes: they keep values, or their range, or drop some.
_BEFORE = (*_SAME, *_MOVED, "Cast", "Pad", "PadV2", "MirrorPad", "ReverseV2", "ResizeBilinear", "ResizeNearestNeighbor",
           "ResizeBicubic", "ResizeArea", "ScaleAndTranslate")  # fmt: skip
_ARITHMETIC = ("Mul", "RealDiv", "Sub", "Add", "AddV2")
_SIZES = ("Shape", "ShapeN", "Rank", "Size")


def first_arithmetic(inputs: GraphTensor) -> list[tuple[str, bool, GraphTensor]]:
    """Find the arithmetic with constants that a model does with its inputs before anything else.

    Args:
        inputs: what the model was called with inside of a function that is being traced.

    Returns:
        For each: (type of the operation, True where the inputs are its first operand, the other operand).
    """
    found: list[tuple[str, bool, GraphTensor]] = []
    if not _is_read():
        return found
    tensor = inputs
    while True:
        consumers = [op for op in tensor.consumers() if op.type not in _SIZES]
        if len(consumers) != 1:
            return found
        op = consumers[0]
        if op.type in _ARITHMETIC:
            first = op.inputs[0] is tensor
            other = op.inputs[1 if first else 0]
            if _depends(other, inputs) or (op.type == "RealDiv" and not first):
                return found
            found.append((op.type, first, other))
        elif op.type not in _BEFORE or op.inputs[0] is not tensor:
            return found
        tensor = op.outputs[0]


def _depends(tensor: GraphTensor, inputs: GraphTensor) -> bool:
    """If a tensor is computed of the inputs."""
    waiting, known = [tensor], set()
    while waiting:
        one = waiting.pop()
        if one is inputs:
            return True
        if one.op not in known:
            known.add(one.op)
            waiting.extend(one.op.inputs)
    return False


# They have no gradient, or one of zeros.
_NO_GRADIENT = {
    "ArgMax": "argmax", "ArgMin": "argmin", "OneHot": "one_hot", "StopGradient": "stop_gradient",
    "Round": "round", "Rint": "round", "Floor": "floor", "Ceil": "ceil", "Sign": "sign", "PyFunc": "a Python function",
    "PyFuncStateless": "a Python function", "FloorDiv": "floor division", "Bucketize": "bucketize",
    **dict.fromkeys(("Greater", "GreaterEqual", "Less", "LessEqual", "Equal", "NotEqual"), "a comparison"),
}  # fmt: skip


def gradient_stops(inputs: GraphTensor, outputs: GraphTensor) -> list[str]:
    """Find what keeps gradients from the inputs.

    Args:
        inputs: what the model was called with inside of a function that is being traced.
        outputs: what it returned.

    Returns:
        `integers` for a cast to integers, and the names of functions without gradients; none where some way from the
        inputs to the outputs is free.
    """
    waiting, known, stops = [outputs] if _is_read() else [], set(), []
    while waiting:
        one = waiting.pop()
        if one is inputs:
            return []
        if one.op in known:
            continue
        known.add(one.op)
        if one.op.type == "Cast" and not one.op.get_attr("DstT").is_floating:
            stops.append("integers")
        elif one.op.type in _NO_GRADIENT:
            stops.append(_NO_GRADIENT[one.op.type])
        else:
            waiting.extend(one.op.inputs)
    return list(dict.fromkeys(stops))
