"""What becomes of pixels in [0, 1] before a model takes them.

    scale = parse("0-255", channels=3)  # or decide(...).scale
    inputs = scale(pixels)              # float32 [n, height, width, channels]; the gradient flows through it

    found = seen(call, images)          # what arithmetic at the beginning of the model says; None where there is none
    decision = decide(logits, images, labels, split="train", model=model, seen=found, source="model.keras")

`call` takes the model's inputs and returns what the model does, `logits` takes them and returns its logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bn_vuln.analysis.metrics import accuracy_in_best_order
from bn_vuln.analysis.statistics import Proportion
from bn_vuln.errors import UsageError
from bn_vuln.external import graph
from bn_vuln.models import bn_statistics
from bn_vuln.runtime import backend, ops
from bn_vuln.typing import Floats, Images, KerasModel, Labels, Logits, Tensor

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of R, G, B, in pixels
_CAFFE = (103.939, 116.779, 123.68)  # mean of B, G, R, from 0 to 255
IMAGES = 200  # that decide
GIVEN_IMAGES = 50  # that may speak against a given one
LEAD = 0.1  # in accuracy
# Mismatches of batch normalization (`_mismatches`): the right scale has one below the first, all others above the
# second. Of right scales they were below 0.3, of others of a similar width above 1.3, of 0-1 and 0-255 70 apart.
_MATCHES = ((0.5, 1.0), (2.0, 8.0))
_CONTRADICTS = 1.0  # a mismatch from which on it speaks against the best accuracy, where another is smaller
_BATCH = 50
NAMES = ("0-1", "0-255", "-1-1", "torch", "caffe")
CHOICES = "0-1, 0-255, -1-1, MEAN,STD, MEAN,MEAN,MEAN,STD,STD,STD, caffe, torch or tf"


@dataclass(frozen=True)
class InputScale:
    """What becomes of pixels.

    Attributes:
        name: one of `NAMES`, or the numbers MEAN,STD.
        mean: of each channel or of all, in pixels, for `torch` and numbers; else empty.
        std: as `mean`.
    """

    name: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return pixels [n, height, width, channels] in [0, 1] as the model takes them, float32.

        8-bit images become exactly what `keras.applications` makes of their bytes.
        """
        if self.name == "0-1":
            return pixels
        if self.name == "0-255":
            return pixels * 255.0
        if self.name == "-1-1":
            return pixels * 255.0 / 127.5 - 1.0
        dtype = backend.dtype_of(pixels)
        if self.name == "caffe":
            reverse: Tensor = ops.flip(pixels, axis=-1)
            return reverse * 255.0 - backend.place(_CAFFE, dtype)
        return (pixels - backend.place(self.mean, dtype)) / backend.place(self.std, dtype)


def parse(text: str, channels: int, option: str = "--input-scale") -> InputScale:
    """Return the input scale of a text.

    Args:
        text: one of `NAMES`; `tf`, which is -1-1; MEAN,STD for all channels, or those of each, in pixels of [0, 1],
            as numbers or fractions such as 127.5/255.
        channels: of what the model takes.
        option: where the text comes from, for messages.

    Raises:
        UsageError: It is none of these, or for another number of channels.
    """
    name = "".join(text.split()).lower()
    if name in ("caffe", "torch") and channels != 3:
        raise UsageError(f"{option} {text}: only for models of 3 channels, and this one takes {channels}")
    if name == "torch":
        return InputScale(name, *_IMAGENET)
    if name in (*NAMES, "tf"):
        return InputScale("-1-1" if name == "tf" else name)
    numbers = _numbers(name)
    if not numbers:
        raise UsageError(f"{option}: expected {CHOICES}, received {text!r}")
    if len(numbers) not in (2, 2 * channels):
        wanted = "2 numbers, MEAN,STD" + (f", or {2 * channels}, those of each channel" if channels > 1 else "")
        raise UsageError(f"{option}: expected {wanted}, received {len(numbers)} in {text!r}")
    mean, std = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
    if not all(0 < one <= 2 for one in std) or not all(0 <= one <= 1 for one in mean):
        raise UsageError(
            f"{option}: expected means from 0 to 1 and positive stds, in pixels of [0, 1], received {text!r}; divide "
            "those of 0-255 by 255 (127.5/255)"
        )
    return InputScale(",".join(f"{one:.9g}" for one in numbers), mean, std)


def check(text: str) -> None:
    """Refuse a text that is `auto` or an input scale for no number of channels. Raises `UsageError`."""
    if text != "auto":
        try:
            parse(text, 3)
        except UsageError:
            parse(text, 1)


def _numbers(text: str) -> tuple[float, ...]:
    """Numbers and fractions between commas; none where one is neither."""
    try:
        parts = [part.split("/") for part in text.split(",")]
        values = [float(part[0]) / float(part[1]) if len(part) == 2 else float("/".join(part)) for part in parts]
    except (ValueError, ZeroDivisionError):
        return ()
    return tuple(values) if np.isfinite(values).all() else ()


def scales(channels: int) -> list[InputScale]:
    """Return the input scales that are tried for a model of 1 or 3 channels."""
    return [parse(name, channels) for name in (NAMES if channels == 3 else NAMES[:3])]


@dataclass(frozen=True)
class Seen:
    """What arithmetic at the beginning of a model says about the pixels that it takes.

    Attributes:
        name: the input scale that it speaks for, of `NAMES`; None where it fits none of them.
        text: the arithmetic, such as `x * 0.003922`.
    """

    name: str | None
    text: str


def seen(call: Callable[[Tensor], object], images: Images) -> Seen | None:
    """Look for Rescaling, Normalization or the same as plain arithmetic at the beginning of a model.

    It speaks for the scale whose pixels it brings to [0, 1], [-1, 1], [-0.5, 0.5], [0, 255] or [-127.5, 127.5], else
    for the one whose pixels it standardizes.

    Args:
        call: the model's inputs -> what it returns.
        images: some pixels [n, height, width, channels] in [0, 1].

    Returns:
        What it says; None where the model begins with no arithmetic.
    """
    steps: list[tuple[str, bool]] = []

    def constants(x: Tensor) -> list[Tensor]:
        call(x)
        found = graph.first_arithmetic(x)
        steps[:] = [(operation, first) for operation, first, _ in found]
        return [ops.cast(constant, "float64") for *_, constant in found]

    values = [np.asarray(value) for value in backend.compile(constants)(images[:2])]
    factor, offset = np.ones(1), np.zeros(1)
    for (operation, first), value in zip(steps, values, strict=True):
        by = value.reshape(-1, value.shape[-1]).mean(axis=0) if value.ndim else value.reshape(1)
        if len(by) != images.shape[-1]:  # numbers of each feature of flat vectors
            by = by.mean(keepdims=True)
        if operation == "Mul":
            factor, offset = factor * by, offset * by
        elif operation == "RealDiv":
            factor, offset = factor / by, offset / by
        elif operation == "Sub":
            factor, offset = (factor, offset - by) if first else (-factor, by - offset)
        else:
            offset = offset + by
    if np.allclose(factor, 1, rtol=0.01) and np.allclose(offset, 0, atol=0.01):
        return None
    plus = f" + {_shown(offset)}".replace("+ -", "- ") if offset.any() else ""
    return Seen(_spoken_for(factor, offset, images), f"x * {_shown(factor)}{plus}")


_ENDS = {"0-1": (0, 1), "0-255": (0, 255), "-1-1": (-1, 1)}
_PLAIN = ((0, 1), (-1, 1), (0, 255))
_RANGES = (*_PLAIN, (-0.5, 0.5), (-127.5, 127.5))


def _spoken_for(factor: Floats, offset: Floats, images: Images) -> str | None:
    """The input scale that x * factor + offset is made for."""

    def distance(name: str, target: tuple[float, float]) -> float:
        """Of the ends that it makes of a scale's from those of a range, in widths of the range."""
        pairs = zip(_ENDS[name], target, strict=True)
        return max(float(np.abs(factor * end + offset - one).max()) for end, one in pairs) / (target[1] - target[0])

    distances = {name: min(distance(name, r) for r in (_RANGES if offset.any() else _PLAIN)) for name in _ENDS}
    nearest = min(distances, key=distances.__getitem__)
    if distances[nearest] < 0.005:
        return nearest
    if np.allclose(factor, 1) and (offset < -20).all():  # less the mean of bytes
        return "0-255"
    scores = {}
    for name, (low, high) in _ENDS.items():
        x = (low + (high - low) * images.astype(np.float64)) * factor + offset
        scores[name] = float((np.abs(x.mean(axis=(0, 1, 2))) + np.abs(np.log(x.std(axis=(0, 1, 2)) + 1e-9))).max())
    first, second, _ = sorted(scores, key=scores.__getitem__)
    return first if scores[first] < 1 and scores[second] - scores[first] > 0.7 else None


def _shown(values: Floats) -> str:
    texts = list(dict.fromkeys(f"{value:.4g}" for value in values))
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"


@dataclass(frozen=True)
class Candidate:
    """An input scale, and how a model does with it.

    Attributes:
        scale: the input scale.
        correct: labelled images that are classified correctly.
        outputs: logits of the images.
    """

    scale: InputScale
    correct: Proportion
    outputs: Logits

    def text(self) -> str:
        """Return its name and accuracy."""
        return f"{self.scale.name} {100 * (self.correct.rate or 0):.1f}%"

    def leads(self, other: Candidate) -> bool:
        """Return if it is better by 10 points, outside of the intervals."""
        low, high = self.correct.interval(), other.correct.interval()
        lead = (self.correct.rate or 0) - (other.correct.rate or 0)
        return low is not None and high is not None and lead >= LEAD and low[0] > high[1]


@dataclass(frozen=True)
class Decision:
    """The input scale that was decided on, and why, in a sentence."""

    scale: InputScale
    text: str
    flag: str | None = None  # what speaks against a scale that was given


def doubt(
    scale: InputScale,
    logits: Callable[[Tensor], Tensor],
    images: Images,
    labels: Labels,
    *,
    model: KerasModel | None = None,
) -> str | None:
    """Say what speaks against an input scale that was given: the accuracy, or batch normalization, fits another.

    Args:
        scale: the one that was given.
        logits: as in `decide`.
        images: pixels as in `decide`; `GIVEN_IMAGES` are taken.
        labels: their classes.
        model: as in `decide`.

    Returns:
        A sentence; None where nothing does.
    """
    images, labels = images[:GIVEN_IMAGES], labels[:GIVEN_IMAGES]
    compiled = backend.compile(logits, signature=[backend.spec((None, *images.shape[1:]), "float32")])
    others = [one for one in scales(images.shape[-1]) if one != scale]
    given, *candidates = _distinct([_measure(compiled, one, images, labels) for one in (scale, *others)])
    if not candidates:
        return None
    best = max(candidates, key=lambda one: one.correct.count)
    way = "was the model trained on that? If so, --input-scale"
    if best.leads(given):
        accuracies = (
            f"{100 * (given.correct.rate or 0):.1f}% of {len(labels)} images are correct, but with {best.text()}"
        )
        return f"pixels go in as {scale.name}: {accuracies}; {way} {best.scale.name}"
    close = [one for one in candidates if not given.leads(one)]
    mismatches = _mismatches(model, logits, [scale, *(one.scale for one in close)], images)
    if len(mismatches) == 1:
        return None
    nearest = 1 + int(np.argmin(mismatches[1:]))
    if any(mismatches[nearest] < near and mismatches[0] > far for near, far in _MATCHES):
        name = close[nearest - 1].scale.name
        fits = f"the statistics of the first batch normalization fit {name}"
        return f"pixels go in as {scale.name}, but {fits}; {way} {name}"
    return None


def decide(
    logits: Callable[[Tensor], Tensor],
    images: Images,
    labels: Labels,
    *,
    split: str,
    model: KerasModel | None = None,
    seen: Seen | None = None,
    doubts: Sequence[str] = (),
    source: str = "model",
) -> Decision:
    """Decide which input scale a model was trained with.

    1. What arithmetic at the beginning of the model says, unless another scale is better by 10 points.
    2. The best accuracy, where it leads all others by 10 points, unless the statistics of the model's first batch
       normalization fit another scale better: of a net that was trained on pixels less a mean of its own, or whose
       statistics are stale, a wrong scale can have the best accuracy.
    3. Of those that it does not lead: the one with which the inputs of the model's first batch normalization have the
       moments that this tracks, where those of all others are far from them.

    Else it refuses. Accuracies alone cannot tell 0-1 from 0-255 for nets of ReLU without batch normalization: they are
    nearly homogeneous, so 255 times the inputs gives nearly the same predictions and 255 times the logits. No other
    measure was found that never chose wrongly, tried on some hundred small nets of MNIST and of easy images. The
    mean loss of nets that were trained on 0-255 is often lower with 0-1, even on their training images, which calms
    their logits. The best temperature and the median margin of the logits tell most nets apart, but nets trained on
    0-255 with a large learning rate (linear ones, and any on easy images) look like those of 0-1.

    Args:
        logits: the model's inputs -> its logits [n, classes].
        images: pixels [n, height, width, channels] in [0, 1], as large as the model takes them; `IMAGES` are taken.
        labels: their classes.
        split: where they come from, for messages. They should not be those that are reported.
        model: the Keras model, whose batch normalization is looked at.
        seen: what the beginning of the model says.
        doubts: what is doubtful about the data, a sentence each, for the message.
        source: name of the model in messages.

    Returns:
        The decision.

    Raises:
        UsageError: No scale is clearly right; the message lists them.
    """
    images, labels = images[:IMAGES], labels[:IMAGES]
    compiled = backend.compile(logits, signature=[backend.spec((None, *images.shape[1:]), "float32")])
    candidates = _distinct([_measure(compiled, scale, images, labels) for scale in scales(images.shape[-1])])
    candidates.sort(key=lambda one: -one.correct.count)
    best = candidates[0]
    listed = ", ".join(one.text() for one in candidates)
    on = f"on {len(labels)} labelled images of {split}"

    def refuse(why: str) -> UsageError:
        first = "".join(f"; of the data: {doubt}" for doubt in doubts)
        return UsageError(
            f"{source}: --input-scale auto cannot decide {on}: {why} ({listed}){first}; give --input-scale {CHOICES}"
        )

    said = next((one for one in candidates if seen is not None and one.scale.name == seen.name), None)
    if seen is not None and said is not None:
        if best.leads(said):
            raise refuse(f"the model begins with {seen.text}, which speaks for {said.scale.name}")
        return Decision(said.scale, f"the model begins with {seen.text}; {on}: {listed}")
    guessing = max(1 / best.outputs.shape[1], np.bincount(labels).max() / len(labels))
    interval = best.correct.interval()
    if interval is None or interval[0] <= guessing:
        hint = "" if guessing < 1 else ", as all labels are of one class"
        raise refuse(
            f"no accuracy is above {100 * guessing:.1f}%, that of guessing{hint}{_in_order(candidates, labels)}"
        )
    close = [one for one in candidates if not best.leads(one)]
    if len(close) == 1:
        fits = _mismatches(model, logits, [one.scale for one in candidates], images)
        if fits[0] > max(_CONTRADICTS, min(fits)):
            better = candidates[int(np.argmin(fits))].scale.name
            raise refuse(
                f"{best.scale.name} has the best accuracy, but the statistics of its first batch normalization fit "
                f"{better} better, or pixels that are none of these"
            )
        return Decision(best.scale, f"by the accuracies {on}: {listed}")
    mismatches = _mismatches(model, logits, [one.scale for one in close], images)
    first, second = np.argsort(mismatches)[:2]
    if any(mismatches[first] < near and mismatches[second] > far for near, far in _MATCHES):
        why = "by the statistics of its first batch normalization, which fit no other"
        return Decision(close[first].scale, f"{why}; {on}: {listed}")
    hint = ""
    if {"0-1", "0-255"} <= {one.scale.name for one in close}:
        hint = "; nets without batch normalization often take 0-1 as well as 0-255: which was it trained on?"
    raise refuse(f"no accuracy leads by 10 points, outside of the intervals{hint}")


def _in_order(candidates: Sequence[Candidate], labels: Labels) -> str:
    """A hint that the labels are in another order than the outputs, where that explains the accuracies."""
    found = {one.scale.name: accuracy_in_best_order(one.outputs, labels) or 0.0 for one in candidates}
    best = max(found, key=found.__getitem__)
    if found[best] <= (1 + np.bincount(labels).max() / len(labels)) / 2:
        return ""
    return (
        f", but with the classes in another order {100 * found[best]:.1f}% are correct ({best}): name the classes in "
        "the order of the outputs with --class-names FILE"
    )


def _batches(scale: InputScale, images: Images) -> list[Tensor]:
    return [scale(backend.place(images[i : i + _BATCH])) for i in range(0, len(images), _BATCH)]


def _measure(logits: Callable[..., Tensor], scale: InputScale, images: Images, labels: Labels) -> Candidate:
    outputs = np.concatenate([np.asarray(logits(batch)) for batch in _batches(scale, images)])
    return Candidate(scale, Proportion(int((outputs.argmax(axis=1) == labels).sum()), len(labels)), outputs)


def _mismatches(
    model: KerasModel | None, logits: Callable[[Tensor], Tensor], scales: list[InputScale], images: Images
) -> list[float]:
    """For each scale: how far the inputs of the first batch normalization are from the statistics that it tracks.

    The median over channels of |log of the ratio of variances| + |difference of means| / std; infinity without any.
    """
    batches = [np.asarray(batch) for scale in scales for batch in _batches(scale, images)]
    moments = bn_statistics.input_moments(model, logits, batches) if model is not None else []
    if not moments:
        return [math.inf] * len(scales)
    layer = moments[0].layer
    mean, variance = (np.asarray(v, np.float64) for v in (layer.moving_mean, layer.moving_variance))
    found = []
    for means, variances in zip(
        *(np.split(a, len(scales)) for a in (moments[0].means, moments[0].variances)), strict=True
    ):
        total = variances.mean(axis=0) + means.var(axis=0, dtype=np.float64)
        ratio = np.abs(np.log((total + layer.epsilon) / (variance + layer.epsilon)))
        found.append(float(np.median(ratio + np.abs(means.mean(axis=0) - mean) / np.sqrt(variance + layer.epsilon))))
    return found


def _distinct(candidates: list[Candidate]) -> list[Candidate]:
    """Without those whose logits equal those of an earlier one."""
    kept: list[Candidate] = []
    for one in candidates:
        if not any(np.allclose(one.outputs, other.outputs, rtol=1e-4, atol=1e-5) for other in kept):
            kept.append(one)
    return kept
