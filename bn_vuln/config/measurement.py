"""Measurements of a model besides its accuracy: the paper's mechanism (angles, spectra), fooling images, BN shift."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from bn_vuln.config.perturbation import AWGN, Box
from bn_vuln.config.types import (
    Count,
    Float,
    Frozen,
    Index,
    NonNegative,
    Positive,
    Share,
    expand_kind,
    reject_if,
)

# Units of numbers, as tables show them: points are differences of %, std are standard deviations.
ColumnUnit = Literal["%", "points", "deg", "nats", "steps", "pixels", "standardized", "std", "log ratio"]


class Tilt(Frozen):
    """The tilting angle of the decision boundary against the nearest-centroid classifier (Tanay and Griffin 2016).

    At each example, the angle in degrees between the input gradient of its logit margin z_y - z_k (k the strongest
    other class) and the difference of the centroids of the same two classes. The value is the mean over the examples.
    For a linear model of two classes all of them have one angle, the paper's theta.
    """

    kind: Literal["tilt"] = "tilt"
    unit: ClassVar[ColumnUnit] = "deg"
    details: ClassVar[dict[str, ColumnUnit]] = {}


class Spectrum(Frozen):
    """The network along the principal components of its training images.

    The arrays hold the gain (RMS change of the logits for a step of unit length) and the share of the margin gradient's
    energy in each component. The value is the share of the energy in the last components.
    """

    kind: Literal["spectrum"] = "spectrum"
    unit: ClassVar[ColumnUnit] = "%"
    details: ClassVar[dict[str, ColumnUnit]] = {}
    low_variance: Share = Field(
        0.01, description="Share of the images' variance that the last components hold together, at most."
    )


class Fooling(Frozen):
    """Fooling images: noise that gradient ascent changes until the network sees a class in it (Nguyen et al. 2015).

    Images of normal noise in pixels, cut to the box, are each led to every class by steps x + step_size g / ||g||_2 cut
    to the box. g is the gradient of the log-odds of the class, which has the direction of that of its log-probability
    and does not saturate. The value is the mean number of steps. Images that do not reach the confidence count with
    all `steps`, so it is a lower bound.

    Columns NAME.DETAIL: the share of images that `reached` the confidence, the mean `confidence` after `after` steps,
    reached before or not, and the mean L2 `distance` from the noise, of the images that reached it, or else of the last
    ones.
    """

    kind: Literal["fooling"] = "fooling"
    confidence: Share = Field(
        0.99,
        description="Softmax probability at which the ascent stops. The default is our choice, one mistake in a "
        "hundred. Nguyen et al. begin at the mean image with a little noise and go to .9999, which "
        "strongly regularized networks, whose logits are small, do not always reach.",
    )
    steps: Count = Field(500, description="Steps of the ascent, at most.")
    step_size: Positive = Field(0.1, description="Length of a step, L2, in pixels.")
    per_class: Count = Field(10, description="Images of noise for each class.")
    mean: Float = Field(0.5, description="Mean of the noise.")
    std: NonNegative = Field(0.25, description="Standard deviation of the noise.")
    box: Box = Field((0.0, 1.0), description="Range of pixels.")
    after: Count = Field(20, description="Steps after which the column NAME.confidence is taken.")
    seed: Index = Field(0, description="Seed of the noise.")
    unit: ClassVar[ColumnUnit] = "steps"
    details: ClassVar[dict[str, ColumnUnit]] = {"reached": "%", "confidence": "%", "distance": "pixels"}

    @model_validator(mode="after")
    def _after_is_one_of_the_steps(self) -> Fooling:
        message = "after: expected at most the {steps} steps, received {after}"
        reject_if((self.after > self.steps, message), steps=self.steps, after=self.after)
        return self


class BatchStatistics(Frozen):
    """The distance of batch statistics under evaluation from those that BN has tracked (the paper's Appendix I).

    In each BN layer, over whole batches in a fixed random order (one of all examples where they are fewer): of every
    channel the shift (mu_batch - mu) / sqrt(var + c) with the tracked mu and var and the layer's c, root mean square
    over the channels and mean over the batches. The value is its mean over the layers, in standard deviations. A column
    NAME.scale is the same of ln sqrt((var_batch + c) / (var + c)).

    The inputs of a layer are those it gets in the classifier as it is evaluated. With `bn_statistics: tracked` a shift
    goes on into the layers after it, as in a deployed model. With `batch` each layer before has taken out its own
    shift, as in training. With `reestimated` the distance is that from the reestimated statistics.

    By chance alone the shift of batches of n independent normal values is 1/sqrt(n) (.045 for 500), their scale
    1/sqrt(2n). A model without BN has no such number: tables show a dash.
    """

    kind: Literal["batch_statistics"] = "batch_statistics"
    unit: ClassVar[ColumnUnit] = "std"
    details: ClassVar[dict[str, ColumnUnit]] = {"scale": "log ratio"}
    batch_size: Count = Field(500, description="Examples of a batch.")
    perturbation: AWGN | None = Field(None, description="Noise that is added to the images. Null: clean images.")


Measurement = Annotated[
    Tilt | Spectrum | Fooling | BatchStatistics, Field(discriminator="kind"), BeforeValidator(expand_kind)
]
