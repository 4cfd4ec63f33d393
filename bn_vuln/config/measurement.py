"""What is measured of a model besides its accuracy: angles and spectra, the mechanism of the paper; fooling images."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from bn_vuln.config.perturbation import AWGN, Box
from bn_vuln.config.types import Count, Float, Frozen, Index, NonNegative, Positive, expand_kind, parse_number

# Units of numbers, as tables show them: points are differences of %, std are standard deviations.
ColumnUnit = Literal["%", "points", "deg", "nats", "steps", "pixels", "standardized", "std", "log ratio"]


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


class BatchStatistics(Frozen):
    """How far the statistics of batches under evaluation are from those that BN has tracked (the paper's Appendix I).
    In each BN layer, over whole batches of `batch_size` examples in a fixed random order (one of all where they are
    fewer), clean or under a `perturbation`: of every channel the shift (mu_batch - mu) / sqrt(var + c) with the tracked
    mu and var and the layer's c, root mean square over the channels and mean over the batches. The value is its mean
    over the layers, in standard deviations. A column NAME.scale is the same of ln sqrt((var_batch + c) / (var + c)).

    The inputs of a layer are those it gets in the classifier as it is evaluated: with `bn_statistics: tracked` the
    layers before it normalize by what they have tracked, as in the model that is deployed, so that what shifts in one
    layer goes on into the next; with `batch` each layer before has taken out its own shift, as in training, and what
    remains is a layer's own. With `reestimated` the distance is that from the reestimated statistics.

    By chance alone the shift of batches of n independent normal values is 1/sqrt(n) (.045 for 500), their scale
    1/sqrt(2n). A model without BN has no such number: tables show a dash.
    """

    kind: Literal["batch_statistics"] = "batch_statistics"
    unit: ClassVar[ColumnUnit] = "std"
    details: ClassVar[dict[str, ColumnUnit]] = {"scale": "log ratio"}
    batch_size: Count = 500
    perturbation: AWGN | None = None


Measurement = Annotated[
    Tilt | Spectrum | Fooling | BatchStatistics, Field(discriminator="kind"), BeforeValidator(expand_kind)
]
