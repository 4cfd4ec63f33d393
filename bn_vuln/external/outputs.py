"""From what a model returns to logits [n, classes], without losing precision.

    output = find_output(model, inputs, classes, declared="auto", head=None, source="model.keras")
    logits = output.logits(model, inputs, training=False)  # float32 [n, classes], eagerly or inside of a function

A softmax or sigmoid that ends the model is taken off: the graph of the call says what it was applied to, so that an
output of exactly 1 still has its logit and its gradient. The model itself is not changed, and any other with the same
structure (a copy with other BN statistics) may be given to `logits`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import numpy as np

from bn_vuln.config.external import OutputKind
from bn_vuln.errors import UsageError
from bn_vuln.external import graph
from bn_vuln.runtime import backend, ops
from bn_vuln.typing import Floats, KerasModel, Plain, Tensor

Kind = Literal["logits", "softmax", "sigmoid", "log-softmax"]

T = TypeVar("T")

IMAGES = 32  # of a trial call
_TOLERANCE = {"float16": 5e-3, "bfloat16": 3e-2}  # of sums of probabilities, and of activations
_ROUNDING = 1e-6  # that values in [0, 1] may leave it by
_NOISE = re.compile(r"\x1b\[[0-9;]*m|Exception encountered when calling \S+|Arguments received by .*", re.DOTALL)
_LINEAR = ("BiasAdd", "MatMul", "BatchMatMulV2", "Einsum", "Conv2D", "Mean")  # they give logits


@dataclass(frozen=True)
class Output:
    """What a model returns, and how logits are made of it.

    Attributes:
        kind: logits; probabilities of a softmax; of a sigmoid each; logarithms of those of a softmax.
        classes: number of classes.
        columns: number of columns, 1 where one number stands for two classes.
        shape: of what the model returns, without the batch, before axes of length 1 are dropped.
        dtype: of what the model returns.
        head: name of the output that is taken, None where there is one only.
        path: keys of this output in what the model returns.
        last: type of the operation that computes it.
        exact: True where the activation is taken off, or where there is none.
        differentiable: False where the gradient of the model cannot be computed; that of the logits is 0 then.
        inline: True where functions of TensorFlow inside of the model are traced as Python, to look into them.
        notes: what a user should know.
        flag: what makes the result doubtful, and what to do; None where nothing does.
    """

    kind: Kind
    classes: int
    columns: int
    shape: tuple[int, ...]
    dtype: str
    head: str | None = None
    path: tuple[str | int, ...] = ()
    last: str = ""
    exact: bool = True
    differentiable: bool = True
    inline: bool = False
    notes: tuple[str, ...] = ()
    flag: str | None = None

    def logits(self, model: KerasModel, inputs: Tensor, *, training: bool = False) -> Tensor:
        """Call a model and return its logits.

        Args:
            model: the Keras model, or a copy of it.
            inputs: as the model takes them, [n, ...].
            training: call it in training mode.

        Returns:
            float32 [n, classes], differentiable.
        """
        if self.kind != "logits" and self.exact and not backend.is_tracing():
            # Only a graph says what the activation was applied to. It is made anew: layers may have changed.
            return cast(Tensor, backend.compile(lambda x: self._logits(model, x, training))(inputs))
        return self._logits(model, inputs, training)

    def _logits(self, model: KerasModel, inputs: Tensor, training: bool) -> Tensor:
        with backend.functions_inlined(self.inline):
            outputs: Any = model(inputs, training=training)
        for key in self.path:
            outputs = outputs[key]
        found = graph.before_activation(outputs)[1] if self.kind != "logits" and self.exact else None
        scores: Tensor = ops.cast(_inverse(outputs, self.kind) if found is None else found, "float32")
        scores = ops.reshape(scores if self.differentiable else ops.stop_gradient(scores), (-1, self.columns))
        if self.columns < self.classes:
            scores = ops.concatenate([ops.zeros_like(scores), scores], axis=1)
        return scores

    def text(self) -> str:
        """Return in a line what the model returns."""
        parts = [f"{self.kind} of {self.classes} classes" + (f", output {self.head!r}" if self.head else "")]
        if self.kind != "logits":
            parts.append("taken off" if self.exact else "logits too" if "log" in self.kind else "its inverse taken")
        return "; ".join([*parts, *self.notes])

    def plain(self) -> Plain:
        """Return everything as JSON holds it."""
        return {**dataclasses.asdict(self), **{k: list(getattr(self, k)) for k in ("shape", "path", "notes")}}


def find_output(
    model: KerasModel,
    inputs: Tensor,
    classes: int,
    *,
    declared: OutputKind = "auto",
    head: str | None = None,
    source: str = "model",
) -> Output:
    """Find what a model returns.

    The last operation decides where it is an activation, else the values for the images, for fainter ones and for
    mixtures of two.

    Args:
        model: the Keras model.
        inputs: some images as the model takes them: at the right scale, or at each that is possible, one
            after another; `IMAGES` of them are taken, from all parts.
        classes: number of classes.
        declared: what the user says that it returns, or `auto`.
        head: name of the output to take, of a model with several.
        source: name of the model in messages.

    Returns:
        The output.

    Raises:
        UsageError: Outputs do not fit the classes, several do, they are not what was declared, or the call fails.
    """
    heads = _call(model, inputs, source)
    if any(graph.is_function(head.last) for head in heads):
        with contextlib.suppress(UsageError):  # where it cannot be traced as Python, it stays a function
            heads = _call(model, inputs, source, inline=True)
    one = _choose(heads, classes, head, source)
    kind, flag, notes = _decide(one, classes, declared, source)
    exact = kind == "logits" or one.activation() == kind
    if len(one.shape) != 1:
        notes.append(f"outputs of shape {(None, *one.shape)} taken as {(None, one.columns)}")
    if len(heads) > 1 and head is None:
        notes.append(f"the only one of {len(heads)} outputs that fits the classes")
    if not exact and kind != "log-softmax":
        notes.append(f"logits are made of the outputs, since the {kind} could not be taken off: near 0 and 1 they lose "
                     "precision, and gradients may vanish")  # fmt: skip
    if one.columns < classes:
        notes.append("one column for two classes: the logit of the second against 0")
    elif kind == "sigmoid" and classes == 2:
        notes.append("a sigmoid for each of two classes: the larger one counts")
    return Output(
        kind, classes, one.columns, one.shape, one.dtype, one.name if len(heads) > 1 else None, one.path, one.last,
        exact, inline=one.inline, notes=tuple(notes), flag=flag,
    )  # fmt: skip


@dataclass(frozen=True)
class _Head:
    """One output of a trial call: name, keys, what it returned (float64 [n, columns]), and before its activation."""

    name: str
    path: tuple[str | int, ...]
    shape: tuple[int, ...]
    dtype: str
    values: Floats
    last: str
    found: str | None
    before: Floats | None
    tolerance: float
    inline: bool

    @property
    def columns(self) -> int:
        return self.values.shape[1]

    def fits(self, classes: int) -> bool:
        vector = sum(side != 1 for side in self.shape) <= 1
        return vector and (self.columns == classes or (classes == 2 and self.columns == 1))

    def activation(self) -> str | None:
        """The activation that ends the model, where applying it gives the outputs."""
        if self.found is None or self.before is None:
            return None
        expected, values = _APPLIED[self.found](self.before), self.values
        same = np.abs(expected - values) <= self.tolerance * (1 + np.abs(values))
        return self.found if np.all(same | ~np.isfinite(values)) else None

    def looks(self) -> str:
        """What the values look like: a kind, or `unit` for values in [0, 1] that are no softmax."""
        values = self.values[np.isfinite(self.values).all(axis=1)]
        if not len(values):
            return "logits"
        low, high = values.min(), values.max()
        if low >= -_ROUNDING and high <= 1 + _ROUNDING:
            if self.columns > 1 and np.all(np.abs(values.sum(axis=1) - 1) <= self.tolerance):
                return "softmax"
            if self.columns == 1 and self.last not in _LINEAR:
                return "sigmoid"
            return "unit" if high > low else "logits"
        if self.columns > 1 and high <= self.tolerance:
            with np.errstate(over="ignore"):
                if np.all(np.abs(np.exp(values).sum(axis=1) - 1) <= self.tolerance):
                    return "log-softmax"
        return "logits"


def _decide(one: _Head, classes: int, declared: OutputKind, source: str) -> tuple[Kind, str | None, list[str]]:
    """(kind, flag, notes) of an output."""
    known, looks = one.activation(), one.looks()
    actual = known or looks
    if one.columns == 1 and {actual, declared} & {"softmax", "log-softmax"}:
        raise UsageError(
            f"{source}: a softmax over one column is always 1 and says nothing; two classes need two columns, or one "
            "with a sigmoid"
        )
    if declared == "auto":
        if actual != "unit":
            return cast(Kind, actual), None, [] if known or actual == "logits" else [f"by its values, after {one.last}"]
        return "logits", (
            f"all outputs lie in [0, 1] and are no softmax (last operation: {one.last}); they are taken as logits: if "
            "each is a probability of its own, say --output sigmoid"
        ), []  # fmt: skip
    if declared == actual or (actual == "unit" and declared in ("sigmoid", "logits")):
        return declared, None, []
    if (declared, actual) == ("logits", "log-softmax"):
        return "log-softmax", None, ["log-probabilities, which are logits too"]
    seen = f"its last operation is a {known}" if known else _seen(one, looks)
    remedy = "logits or sigmoid" if actual == "unit" else actual
    raise UsageError(f"{source}: --output {declared}, but {seen}; --output {remedy} fits what was seen")


def _seen(one: _Head, looks: str) -> str:
    values = one.values[np.isfinite(one.values).all(axis=1)]
    if looks == "softmax":
        return "its outputs lie in [0, 1] and sum to 1, as those of a softmax do"
    if looks == "log-softmax":
        return "its outputs are logarithms of probabilities that sum to 1"
    if looks in ("unit", "sigmoid"):
        sums = values.sum(axis=1)
        rows = f" and sum to {sums.min():.3g} to {sums.max():.3g}" if one.columns > 1 else ""
        return f"its outputs lie in [0, 1]{rows}"
    return f"its outputs lie from {values.min():.3g} to {values.max():.3g}" if len(values) else "no output is finite"


def _choose(heads: list[_Head], classes: int, name: str | None, source: str) -> _Head:
    listed = "; ".join(
        f"{head.name if len(heads) > 1 else 'shape'} {(None, *head.shape)} {head.dtype}" for head in heads
    )
    if name is not None:
        named = [head for head in heads if head.name == name]
        if not named:
            raise UsageError(f"{source}: --head {name}: no such output; there are {listed}")
        heads = named
    fitting = [head for head in heads if head.fits(classes)]
    expected = f"expected outputs of shape (None, {classes}) for {classes} classes"
    if not fitting:
        raise UsageError(f"{source}: {expected}, received {listed if name is None else heads[0].shape}")
    if len(fitting) > 1:
        raise UsageError(f"{source}: several outputs fit {classes} classes; choose one by --head NAME: {listed}")
    return fitting[0]


def _call(model: KerasModel, inputs: Tensor, source: str, inline: bool = False) -> list[_Head]:
    """Call a model with images, fainter ones and mixtures of two, and look at each of its outputs."""
    inputs = inputs[:: -(-int(inputs.shape[0]) // IMAGES)]
    if not _is_floating(inputs):
        inputs = ops.cast(inputs, "float32")
    some = inputs[:: -(-int(inputs.shape[0]) // 8)]
    batch = ops.concatenate([inputs, some / 100, (some + ops.flip(some, axis=0)) / 2], axis=0)
    seen: list[tuple[str, tuple[str | int, ...], str, str | None]] = []

    def call(x: Tensor) -> list[tuple[Tensor, Tensor]]:
        with backend.functions_inlined(inline):
            outputs = model(x, training=False)
        seen.clear()
        results = []
        for path, tensor in _leaves(outputs):
            found, before = graph.before_activation(tensor)
            seen.append((_name(model, outputs, path), path, graph.last_operation(tensor), found))
            results.append((tensor, tensor if before is None else before))
        return results

    results = call_or_explain(lambda: backend.compile(call)(batch), inputs, source)
    heads, others = [], []
    for (name, path, last, found), (outputs, before) in zip(seen, results, strict=True):
        dtype = backend.dtype_of(outputs)
        if not _is_floating(outputs) or outputs.shape[:1] != batch.shape[:1]:
            others.append(f"{dtype} of shape {tuple(outputs.shape)} for {len(batch)} images")
            continue
        tolerance = max(_TOLERANCE.get(backend.dtype_of(t), 1e-4) for t in (outputs, before))
        values, logits = (np.asarray(t).astype(np.float64).reshape(len(batch), -1) for t in (outputs, before))
        heads.append(
            _Head(name, path, tuple(outputs.shape[1:]), dtype, values, last, found,
                  logits if found else None, tolerance, inline)
        )  # fmt: skip
    if not heads:
        received = "; ".join(others) or "no tensor"
        raise UsageError(f"{source}: expected outputs of floating-point numbers for each image, received {received}")
    return heads


def call_or_explain(call: Callable[[], T], inputs: Tensor, source: str) -> T:
    """Call a model; where it fails, say so in one line.

    Raises:
        UsageError: The call failed.
    """
    try:
        return call()
    except Exception as error:  # Keras, TensorFlow and custom layers raise many kinds
        raise UsageError(
            f"{source}: cannot be called with images of shape {tuple(inputs.shape[1:])}, "
            f"dtype {backend.dtype_of(inputs)}: {reason(error)}"
        ) from None


def reason(error: Exception) -> str:
    """What an error of Keras or TensorFlow says, in one line."""
    text = " ".join(_NOISE.sub(" ", str(error)).split())
    return text[:300] or type(error).__name__


def _leaves(outputs: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """(keys, tensor) of each tensor in dicts, lists and tuples; what else is in them is left out."""
    if isinstance(outputs, Mapping):
        pairs: Iterable[tuple[Any, Any]] = outputs.items()
    elif isinstance(outputs, list | tuple):
        pairs = enumerate(outputs)
    else:
        if ops.is_tensor(outputs):
            yield path, outputs
        return
    for key, value in pairs:
        yield from _leaves(value, (*path, key))


def _is_floating(tensor: Tensor) -> bool:
    return "float" in backend.dtype_of(tensor)


def _name(model: KerasModel, outputs: Any, path: tuple[str | int, ...]) -> str:
    names = getattr(model, "output_names", None) or []
    if isinstance(outputs, list | tuple) and len(path) == 1 and len(set(names)) == len(outputs):
        return str(names[int(path[0])])
    return "/".join(map(str, path)) or "output"


def _softmax(logits: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)


def _log_softmax(logits: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _sigmoid(logits: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(logits / 2))


_APPLIED = {"softmax": _softmax, "log-softmax": _log_softmax, "sigmoid": _sigmoid}


def _inverse(outputs: Tensor, kind: Kind) -> Tensor:
    """Logits of outputs whose activation cannot be taken off."""
    if kind in ("logits", "log-softmax"):
        return outputs
    if backend.dtype_of(outputs) != "float64":
        outputs = ops.cast(outputs, "float32")
    limits = np.finfo(backend.dtype_of(outputs))
    logits: Tensor = ops.log(ops.maximum(outputs, limits.tiny))
    if kind == "sigmoid":
        logits = logits - ops.log(ops.maximum(1 - outputs, limits.epsneg / 2))
    return logits
