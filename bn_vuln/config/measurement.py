"""What is measured of a model besides its accuracy: angles and spectra, the mechanism of the paper."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from bn_vuln.config.values import Frozen, named_kind, parse_number


class Tilt(Frozen):
    """The tilting angle, in degrees, of the decision boundary against the nearest-centroid classifier (Tanay and
    Griffin 2016): at each example, between the input gradient of its logit margin z_y - z_k (k the strongest other
    class) and the difference of the same two classes' centroids. For a linear model of two classes it is one angle,
    the paper's theta. The value is the mean over the examples."""

    kind: Literal["tilt"] = "tilt"


class Spectrum(Frozen):
    """The network along the principal components of its training images: the gain (RMS change of the logits for a
    step of unit length) and the share of the margin gradient's energy. The value is the share of the energy in the
    last components, which together hold at most `low_variance` of the images' variance."""

    kind: Literal["spectrum"] = "spectrum"
    low_variance: Annotated[float, BeforeValidator(parse_number), Field(gt=0, lt=1)] = 0.01


Measurement = Annotated[Tilt | Spectrum, Field(discriminator="kind"), BeforeValidator(named_kind)]
