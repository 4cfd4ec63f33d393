"""What becomes of pixels in [0, 1] before a model takes them.

    scale = parse("0-255", channels=3)  # or decide(...).scale
    inputs = scale(pixels)              # float32 [n, height, width, channels]; the gradient flows through it

    found = seen(call, images)          # what arithmetic at the beginning of the model says; None where there is none
    decision = decide(logits, images, labels, split="train", seen=found, source="model.keras")

`call` takes the model's inputs and returns what the model does, `logits` takes them and returns its logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from bn_vuln.analysis.statistics import Proportion
from bn_vuln.errors import UsageError
from bn_vuln.external import graph
from bn_vuln.runtime import backend
from bn_vuln.typing import Floats, Images, Labels, Logits, Tensor

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of R, G, B, in pixels
_CAFFE = (103.939, 116.779, 123.68)  # mean of B, G, R, from 0 to 255
IMAGES = 200  # that decide
LEAD = 0.1  # in accuracy
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
        tf = backend.tensorflow()
        if self.name == "0-1":
            return pixels
        if self.name == "0-255":
            return pixels * 255.0
        if self.name == "-1-1":
            return pixels * 255.0 / 127.5 - 1.0
        if self.name == "caffe":
            return tf.reverse(pixels, [-1]) * 255.0 - tf.constant(_CAFFE, pixels.dtype)
        return (pixels - tf.constant(self.mean, pixels.dtype)) / tf.constant(self.std, pixels.dtype)


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
        names: input scales that it speaks for, of `NAMES`; none where it fits none of them.
        text: the arithmetic, such as `x * 0.003922`.
    """

    names: tuple[str, ...]
    text: str


def seen(call: Callable[[Tensor], object], images: Images) -> Seen | None:
    """Look for Rescaling, Normalization or the same as plain arithmetic at the beginning of a model.

    It speaks for the scale whose pixels it brings to [0, 1], [-1, 1], [-0.5, 0.5], [0, 255] or [-127.5, 127.5], else
    for the one with which the images are standardized or centred.

    Args:
        call: the model's inputs -> what it returns.
        images: some pixels [n, height, width, channels] in [0, 1].

    Returns:
        What it says; None where the model begins with no arithmetic.
    """
    tf = backend.tensorflow()
    steps: list[tuple[str, bool]] = []

    def constants(x: Tensor) -> list[Tensor]:
        call(x)
        found = graph.first_arithmetic(x)
        steps[:] = [(operation, first) for operation, first, _ in found]
        return [tf.cast(constant, tf.float64) for *_, constant in found]

    values = [np.asarray(value) for value in backend.compile(constants)(tf.constant(images[:2]))]
    factor, offset = np.ones(1), np.zeros(1)
    for (operation, first), value in zip(steps, values, strict=True):
        by = value.reshape(-1, value.shape[-1]).mean(axis=0) if value.ndim else value.reshape(1)
        if len(by) not in (1, images.shape[-1]):
            break
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
    ends = {"0-1": (0, 1), "0-255": (0, 255), "-1-1": (-1, 1)}
    ranges = {name: [factor * end + offset for end in pair] for name, pair in ends.items()}
    fitting = [
        name for name, pair in ranges.items() if any(_close(pair, one) for one in (_RANGES if offset.any() else _PLAIN))
    ]
    if not fitting:
        moments = {}
        for name in ends:
            x = np.asarray(InputScale(name)(tf.constant(images))).astype(np.float64) * factor + offset
            moments[name] = x.mean(axis=(0, 1, 2)), x.std(axis=(0, 1, 2))
        fitting = [
            name for name, (mean, std) in moments.items()
            if (np.abs(mean) < 1.5).all() and ((std > 0.4) & (std < 2.5)).all()
        ]  # fmt: skip
        if not fitting and offset.any():
            fitting = [name for name, (mean, std) in moments.items() if (np.abs(mean) < 0.75 * std).all()]
    return Seen(tuple(fitting), f"x * {_shown(factor)}" + (f" + {_shown(offset)}" if offset.any() else ""))


_PLAIN = ((0, 1), (-1, 1), (0, 255))
_RANGES = (*_PLAIN, (-0.5, 0.5), (-127.5, 127.5))


def _close(ends: list[Floats], target: tuple[float, float]) -> bool:
    """If ends of a range are those of the target, within 1% of its width."""
    width = target[1] - target[0]
    return all(bool((np.abs(end - one) < 0.01 * width).all()) for end, one in zip(ends, target, strict=True))


def _shown(values: Floats) -> str:
    texts = list(dict.fromkeys(f"{value:.4g}" for value in values))
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"


@dataclass(frozen=True)
class Candidate:
    """An input scale and how the model does with it: share of labelled images that are right, mean loss in nats."""

    scale: InputScale
    correct: Proportion
    loss: float
    outputs: Logits

    def text(self) -> str:
        """Return its name and accuracy."""
        return f"{self.scale.name} {100 * (self.correct.rate or 0):.1f}%"


@dataclass(frozen=True)
class Decision:
    """The input scale that was decided on, and why, in a sentence."""

    scale: InputScale
    text: str


def decide(
    logits: Callable[[Tensor], Tensor],
    images: Images,
    labels: Labels,
    *,
    split: str,
    seen: Seen | None = None,
    source: str = "model",
    option: str = "--input-scale",
) -> Decision:
    """Decide which input scale a model was trained with, by its accuracy on labelled images.

    Args:
        logits: the model's inputs -> its logits [n, classes].
        images: pixels [n, height, width, channels] in [0, 1], as large as the model takes them; `IMAGES` are taken.
        labels: their classes.
        split: where they come from, for messages. They should not be those that are reported.
        seen: what the beginning of the model says.
        source: name of the model in messages.
        option: what a user gives to decide, for messages.

    Returns:
        The decision.

    Raises:
        UsageError: No scale is clearly better than the others; the message lists them.
    """
    images, labels = images[:IMAGES], labels[:IMAGES]
    candidates = _distinct([_measure(logits, scale, images, labels) for scale in scales(images.shape[-1])])
    candidates.sort(key=lambda one: -one.correct.count)
    best, others = candidates[0], candidates[1:]
    listed = ", ".join(one.text() for one in candidates)
    on = f"on {len(labels)} labelled images of {split}"

    def leads(one: Candidate, other: Candidate) -> bool:
        low, high = one.correct.interval(), other.correct.interval()
        lead = (one.correct.rate or 0) - (other.correct.rate or 0)
        return low is not None and high is not None and lead >= LEAD and low[0] > high[1]

    def refuse(why: str) -> UsageError:
        return UsageError(f"{source}: {option} auto cannot decide {on}: {why} ({listed}); give {option} {CHOICES}")

    if seen is not None and seen.names:
        said = [one for one in candidates if one.scale.name in seen.names]
        if len(said) == 1:
            if any(leads(one, said[0]) for one in candidates):
                raise refuse(f"the model begins with {seen.text}, which speaks for {said[0].scale.name}")
            return Decision(said[0].scale, f"the model begins with {seen.text}; {on}: {listed}")
    counts = np.bincount(labels)
    chance = max(1 / best.outputs.shape[1], counts.max() / len(labels))
    interval = best.correct.interval()
    if interval is None or interval[0] <= chance:
        raise refuse(f"no accuracy is above {100 * chance:.1f}%, that of guessing")
    if not all(leads(best, other) for other in others):
        raise refuse("no accuracy leads by 10 points, outside of the intervals")
    return Decision(best.scale, f"by the accuracy {on}: {listed}")


def _measure(logits: Callable[[Tensor], Tensor], scale: InputScale, images: Images, labels: Labels) -> Candidate:
    tf = backend.tensorflow()
    compiled = backend.compile(lambda pixels: logits(scale(pixels)))
    outputs = np.concatenate([compiled(tf.constant(images[i : i + _BATCH])) for i in range(0, len(images), _BATCH)])
    exact = outputs.astype(np.float64)
    losses = logsumexp(exact, axis=1) - exact[np.arange(len(labels)), labels]
    correct = Proportion(int((outputs.argmax(axis=1) == labels).sum()), len(labels))
    return Candidate(scale, correct, float(losses.mean()), outputs)


def _distinct(candidates: list[Candidate]) -> list[Candidate]:
    """Without those whose logits equal those of an earlier one."""
    kept: list[Candidate] = []
    for one in candidates:
        if not any(np.allclose(one.outputs, other.outputs, rtol=1e-4, atol=1e-5) for other in kept):
            kept.append(one)
    return kept
