"""What is measured of a model besides its accuracy: angles and spectra, the mechanism of the paper; fooling images."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from bn_vuln.config.box import Box
from bn_vuln.config.values import Count, Float, Frozen, Index, NonNegative, Positive, named_kind, parse_number

ColumnUnit = Literal["%", "deg", "nats", "steps", "pixels", "standardized"]  # of numbers, as tables show them


class Tilt(Frozen):
    """The tilting angle, in degrees, of the decision boundary against the nearest-centroid classifier (Tanay and
    Griffin 2016): at each example, between the input gradient of its logit margin z_y - z_k (k the strongest other
    class) and the difference of the same two classes' centroids. For a linear model of two classes it is one angle,
    the paper's theta. The value is the mean over the examples."""

    kind: Literal["tilt"] = "tilt"
    unit: ClassVar[ColumnUnit] = "deg"
    details: ClassVar[dict[str, ColumnUnit]] = {}


class Spectrum(Frozen):
    """The network along the principal components of its training images: the gain (RMS change of the logits for a
    step of unit length) and the share of the margin gradient's energy. The value is the share of the energy in the
    last components, which together hold at most `low_variance` of the images' variance."""

    kind: Literal["spectrum"] = "spectrum"
    unit: ClassVar[ColumnUnit] = "%"
    details: ClassVar[dict[str, ColumnUnit]] = {}
    low_variance: Annotated[float, BeforeValidator(parse_number), Field(gt=0, lt=1)] = 0.01


class Fooling(Frozen):
    """Fooling images (Nguyen et al. 2015): noise that is changed by gradient ascent until the network is confident that
    it shows a class. `per_class` images of normal noise in pixels, cut to the box, are each led to every class by steps
    x + step_size g / ||g||_2 cut to the box, g the gradient of the log-odds of the class (the direction of that of its
    log-probability, without saturation), until the softmax probability reaches `confidence`, or `steps` are over.

    The value is the mean number of steps, where those that do not get there count with all `steps` (a lower bound).
    The defaults are our choice: Nguyen et al. begin at the mean image with a little noise and go to .9999, which
    strongly regularized networks, whose logits are small, do not always reach; .99 is one mistake in a hundred.
    Columns NAME.DETAIL: the share that `reached` it, the mean `confidence` after `after` steps, reached before or not,
    and the mean L2 `distance` from the noise of the images that reached it, or else of the last ones.
    """

    kind: Literal["fooling"] = "fooling"
    confidence: Annotated[float, BeforeValidator(parse_number), Field(gt=0, lt=1)] = 0.99
    steps: Count = 500
    step_size: Positive = 0.1
    per_class: Count = 10
    mean: Float = 0.5
    std: NonNegative = 0.25
    box: Box = (0.0, 1.0)
    after: Count = 20
    seed: Index = 0
    unit: ClassVar[ColumnUnit] = "steps"
    details: ClassVar[dict[str, ColumnUnit]] = {"reached": "%", "confidence": "%", "distance": "pixels"}

    @model_validator(mode="after")
    def _after_is_one_of_the_steps(self) -> Fooling:
        if self.after > self.steps:
            fields = {"steps": self.steps, "after": self.after}
            raise PydanticCustomError("attack", "after: expected at most the {steps} steps, received {after}", fields)
        return self


Measurement = Annotated[Tilt | Spectrum | Fooling, Field(discriminator="kind"), BeforeValidator(named_kind)]
