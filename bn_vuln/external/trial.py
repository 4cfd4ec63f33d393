"""The trial call: what a model takes and returns, found on a few images when it is opened.

    found = find_input(model, (28, 28, 1), source="model.keras")   # then bring pixels to found.height x found.width
    inputs = found.arrange(scale(pixels))                          # in the model's layout: flat, channels first, ...
    output = find_output(model, inputs, classes)                   # bn_vuln/external/outputs.py
    trial = try_model(model, inputs, found, output, source="model.keras", custom=("Attention",))
    trial.lines(); trial.plain(); trial.flags

The logits of pixels are then `output.logits(model, found.arrange(scale(pixels)), training=False)`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bn_vuln.errors import UsageError
from bn_vuln.external import graph
from bn_vuln.external.outputs import IMAGES, Output, call_or_explain, reason
from bn_vuln.runtime import backend, ops
from bn_vuln.typing import AnyArray, KerasModel, Plain, Tensor

Layout = Literal["channels last", "channels first", "gray", "flat"]
_NORMALIZATION = ("BatchNormalization", "LayerNormalization", "GroupNormalization", "UnitNormalization",
                  "RMSNormalization", "SpectralNormalization")  # fmt: skip
_NO_ENTRY = re.compile(r"(?:no entry for: |op type: )(\w+)")  # of TensorFlow's registry of gradients
_GRADIENTS = 8  # images of which gradients are taken: they need the memory of all layers
_STATISTICS = ("moving_mean", "moving_var", "running_mean", "running_var")  # beginnings of names of weights


@dataclass(frozen=True)
class ModelInput:
    """The input of a model.

    Attributes:
        height: of images, in pixels; None where any will do.
        width: as `height`.
        channels: 1 or 3; None where any will do.
        dtype: that the model converts its input to.
        layout: images with the channels last or first, without channels, or flat vectors.
    """

    height: int | None
    width: int | None
    channels: int | None
    dtype: str
    layout: Layout

    def arrange(self, images: Tensor) -> Tensor:
        """Return images [n, height, width, channels] in the layout of the model."""
        if self.layout == "flat":
            images = ops.reshape(images, (-1, math.prod(images.shape[1:])))
        elif self.layout == "gray":
            images = ops.squeeze(images, axis=-1)
        elif self.layout == "channels first":
            images = ops.transpose(images, (0, 3, 1, 2))
        return images

    def text(self) -> str:
        """Return size, dtype and layout."""
        sides = " x ".join("any" if side is None else str(side) for side in (self.height, self.width, self.channels))
        return f"{sides}, {self.dtype}" + ("" if self.layout == "channels last" else f", {self.layout}")


def find_input(model: KerasModel, image_shape: tuple[int, int, int], source: str = "model") -> ModelInput:
    """Find what images a model takes.

    Args:
        model: the Keras model.
        image_shape: height, width, channels of the images at hand, which decide where the model leaves it open.
        source: name of the model in messages.

    Returns:
        Its input.

    Raises:
        UsageError: It takes several inputs, or none that is an image.
    """
    shape, dtype = _input_of(model, source)
    channels = image_shape[2]
    if shape is None:
        return ModelInput(None, None, None, dtype, "channels last")
    if dtype == "string":
        raise UsageError(f"{source}: expected a model that takes images, received one that takes strings")
    if len(shape) == 3:
        if shape[2] in (1, 3, None, channels):
            return ModelInput(shape[0], shape[1], shape[2], dtype, "channels last")
        if shape[0] in (1, 3):
            return ModelInput(shape[1], shape[2], shape[0], dtype, "channels first")
    if len(shape) == 2:
        return ModelInput(shape[0], shape[1], 1, dtype, "gray")
    if len(shape) == 1:
        sides = _flat_sides(shape[0], image_shape)
        if sides is not None:
            return ModelInput(*sides, dtype, "flat")
    raise UsageError(
        f"{source}: expected a model that takes images of 1 or 3 channels, or as many numbers as they have pixels "
        f"({math.prod(image_shape)} for {image_shape}, or a square of {channels} channels), received an input of shape "
        f"{(None, *shape)}"
    )


def _flat_sides(size: int | None, image_shape: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """Height, width and channels of flat vectors: those of the images, or a square."""
    if size is None or size == math.prod(image_shape):
        return image_shape
    for channels in (image_shape[2], 1, 3):
        side = math.isqrt(size // channels)
        if side * side * channels == size:
            return side, side, channels
    return None


def _input_of(model: KerasModel, source: str) -> tuple[tuple[int | None, ...] | None, str]:
    """(shape without the batch, dtype) of a model's input; no shape where the model does not say."""
    tensors: Any = getattr(model, "inputs", None) or []
    if len(tensors) > 1:
        names = ", ".join(getattr(tensor, "name", "?") for tensor in tensors)
        raise UsageError(f"{source}: expected a model of one input, an image, received one of {len(tensors)}: {names}")
    if tensors:
        return tuple(tensors[0].shape[1:]), str(tensors[0].dtype)
    built: Plain = getattr(model, "get_build_config", dict)() or {}
    shape = built.get("input_shape")
    dtype = str(getattr(model, "compute_dtype", None) or "float32")
    if (
        isinstance(shape, list | tuple)
        and len(shape) > 1
        and all(side is None or isinstance(side, int) for side in shape)
    ):
        return tuple(shape[1:]), dtype
    return None, dtype


@dataclass(frozen=True)
class Trial:
    """What a trial call found.

    Attributes:
        model: class of the model.
        parameters: number of its weights.
        input: what it takes.
        input_range: smallest and largest number that went in.
        output: what it returns.
        output_range: smallest and largest finite number that came out; None where there is none.
        finite: share of images whose outputs are finite.
        deterministic: True where two calls agree.
        gradient: True where every image has an input gradient that is finite and not all zero.
        gradient_cause: why there is none, or not for all images; None where there is.
        normalization: normalization layers, class to number.
        custom: names of custom objects.
        flags: what makes a result doubtful, and what to do.
    """

    model: str
    parameters: int
    input: ModelInput
    input_range: tuple[float, float]
    output: Output
    output_range: tuple[float, float] | None
    finite: float
    deterministic: bool
    gradient: bool
    gradient_cause: str | None
    normalization: dict[str, int]
    custom: tuple[str, ...]
    flags: tuple[str, ...]

    def lines(self, scale: str | None = None) -> list[str]:
        """Return the block that a user reads.

        Args:
            scale: the input scale and where it is from.
        """
        low, high = self.input_range
        rows = {
            "model": f"{self.model}, {self.parameters:,} parameters",
            "input": f"{self.input.text()}; numbers from {low:.4g} to {high:.4g}" + (f" ({scale})" if scale else ""),
            "output": self.output.text()
            + ("; from {:.4g} to {:.4g}".format(*self.output_range) if self.output_range else ""),
            "normalization": ", ".join(f"{count} {name}" for name, count in self.normalization.items()) or "none",
        }
        if self.custom:
            rows["custom objects"] = ", ".join(self.custom)
        return [f"{name:15}{text}" for name, text in rows.items()] + [f"flag: {text}" for text in self.flags]

    def plain(self) -> Plain:
        """Return everything as JSON holds it."""
        return {
            **dataclasses.asdict(self),
            "output": self.output.plain(),
            "input_range": list(self.input_range),
            "output_range": list(self.output_range) if self.output_range else None,
            "custom": list(self.custom),
            "flags": list(self.flags),
        }


def try_model(
    model: KerasModel,
    inputs: Tensor,
    model_input: ModelInput,
    output: Output,
    *,
    source: str = "model",
    custom: tuple[str, ...] = (),
) -> Trial:
    """Call a model with a few images, and say what it is.

    Args:
        model: the Keras model.
        inputs: images as the model takes them, scaled and arranged; `IMAGES` of them are taken.
        model_input: what the model takes, as `find_input` found it.
        output: what it returns, as `find_output` found it.
        source: name of the model in messages.
        custom: names of custom objects that it was loaded with.

    Returns:
        What was found.

    Raises:
        UsageError: The call fails.
    """
    inputs = inputs[:IMAGES]
    stops: list[str] = []

    def loss(x: Tensor) -> tuple[Tensor, Tensor]:
        logits = output.logits(model, x)
        # A sum of log-probabilities, so that the weights of the classes differ.
        return ops.log_softmax(logits) * ops.linspace(1.0, 2.0, logits.shape[1]), logits

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        _, gradient, logits = backend.value_and_gradient(loss, x)
        stops[:] = graph.gradient_stops(x, logits)
        return logits, gradient

    forward, compiled = backend.compile(lambda x: output.logits(model, x)), backend.compile(call)
    logits = call_or_explain(lambda: np.asarray(forward(inputs)), inputs, source)
    some = inputs[:_GRADIENTS]
    failure = None
    try:
        once, gradients = (np.asarray(tensor) for tensor in compiled(some))
    except Exception as error:  # the call alone has succeeded: operations without a gradient raise many kinds
        output, failure = dataclasses.replace(output, differentiable=False), reason(error)
        compiled = backend.compile(call)
        once, gradients = (np.asarray(tensor) for tensor in compiled(some))
    finite = float(np.isfinite(logits).all(axis=1).mean())
    deterministic = _equal(once, np.asarray(compiled(some)[0]))
    usable = _usable(gradients)
    cause = None if usable.all() else _cause(stops, float(usable.mean()), output, failure)
    values = np.asarray(inputs)
    flags = [
        text
        for broken, text in (
            (output.flag is not None, output.flag),
            (finite < 1, f"{1 - finite:.0%} of the trial images have outputs that are not finite; check --input-scale"),
            (not deterministic, "two calls with the same images disagree: a layer is random in inference; every "
             "accuracy is one draw of it"),
            (cause is not None, cause),
        )
        if broken and text
    ]  # fmt: skip
    return Trial(
        model=type(model).__name__,
        parameters=int(model.count_params()),
        input=model_input,
        input_range=(float(values.min()), float(values.max())),
        output=output,
        output_range=_range(logits),
        finite=finite,
        deterministic=deterministic,
        gradient=bool(usable.all()),
        gradient_cause=cause,
        normalization=normalization_layers(model),
        custom=tuple(custom),
        flags=tuple(flags),
    )


def _equal(one: AnyArray, other: AnyArray) -> bool:
    size = np.abs(one[np.isfinite(one)]).max(initial=1)
    return bool(np.allclose(one, other, rtol=0, atol=1e-6 * size, equal_nan=True))


def _range(values: AnyArray) -> tuple[float, float] | None:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else None


def _usable(gradients: AnyArray) -> AnyArray:
    """Which images have gradients [n, ...] that are finite and not all zero."""
    rows = gradients.reshape(len(gradients), -1)
    return np.isfinite(rows).all(axis=1) & (rows != 0).any(axis=1)


def _cause(stops: list[str], share: float, output: Output, failure: str | None) -> str:
    if failure is not None:
        missing = _NO_ENTRY.search(failure)
        why = f"{missing[1]} inside of the model has none" if missing else f"they fail ({failure[:150]})"
        return f"no gradients: {why}; use square"
    if "integers" in stops:
        return "casts to integers: no gradients; save it with a float input, or use square"
    if stops:
        return f"no gradients: {' and '.join(stops)} inside of the model has none; use square"
    if not output.exact and output.kind != "log-softmax":
        return (
            f"its {output.kind} could not be taken off, and saturates: no gradients for {1 - share:.0%} of the trial "
            "images; save the model without it, or use square"
        )
    if share == 0:
        return "no trial image has a usable input gradient; use square"
    return f"{1 - share:.0%} of the trial images have no usable input gradient; try square as well"


def normalization_layers(model: KerasModel) -> dict[str, int]:
    """Count the normalization layers of a model, those in nested models and inside of other layers too.

    Layers of other classes count where they track statistics, by the names of their weights.
    """
    import keras

    kinds = tuple(getattr(keras.layers, name) for name in _NORMALIZATION)
    found: Counter[str] = Counter()
    layers: Any = model
    for layer in layers._flatten_layers(include_self=False, recursive=True):
        own = [v.name for v in layer._trainable_variables + layer._non_trainable_variables]
        if isinstance(layer, kinds) or any(name.startswith(_STATISTICS) for name in own):
            found[type(layer).__name__] += 1
    return dict(found)
