"""Normalizations, and what is compared in place of one."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from bn_vuln.config.types import BelowOne, Count, Frozen, Positive, expand_name

Needs = Literal["convolutional", "residual"]  # the property that an architecture must have


class NoNormalization(Frozen):
    """The arm without normalization."""

    name: Literal["none"] = "none"


class BatchNormalization(Frozen):
    """Batch normalization, h' = gamma (h - mu) / sqrt(sigma^2 + c) + beta; the defaults of PyTorch's layer."""

    omitted_from_id_at_default: ClassVar[tuple[str, ...]] = ("gamma",)

    name: Literal["batch"] = "batch"
    c: Positive = Field(1e-5, description="Constant under the square root.")
    momentum: BelowOne = Field(
        0.9, description="Weight of the old statistics, as in Keras (PyTorch's momentum is 1 minus it)."
    )
    affine: bool = Field(True, description="Scale by gamma and shift by beta.")
    synchronized: bool = Field(False, description="Take statistics over all replicas.")
    gamma: Literal["ones", "uniform"] = Field(
        "ones", description="Start of gamma: `ones`, or `uniform` in [0, 1] (PyTorch before version 1.2), by the seed."
    )


class GroupNormalization(Frozen):
    """Normalization over groups of channels and all positions of each example (Wu and He 2018), also at test time.

    The default is 8 groups, where the paper has 32: ResNets for small images have 16 channels.
    """

    name: Literal["group"] = "group"
    groups: Count = Field(8, description="Groups of channels.")
    c: Positive = Field(1e-5, description="Constant under the square root.")


class LayerNormalization(Frozen):
    """Normalization over all channels and positions of an example (Ba et al. 2016).

    Gamma and beta are those of each channel, as Wu and He 2018 have it for convolutions.
    """

    name: Literal["layer"] = "layer"
    c: Positive = Field(1e-5, description="Constant under the square root.")


class InstanceNormalization(Frozen):
    """Normalization over the positions of an example, each channel by itself (Ulyanov et al. 2016)."""

    needs: ClassVar[Needs] = "convolutional"

    name: Literal["instance"] = "instance"
    c: Positive = Field(1e-5, description="Constant under the square root.")


class WeightStandardizedGroupNormalization(Frozen):
    """Group normalization after convolutions with standardized weights (Qiao et al. 2019).

    Each filter has mean 0 and variance 1 whenever it is used, (w - mean) / sqrt(variance + 1e-5).
    """

    needs: ClassVar[Needs] = "convolutional"

    name: Literal["ws_group"] = "ws_group"
    groups: Count = Field(8, description="Groups of channels.")
    c: Positive = Field(1e-5, description="Constant under the square root.")


class FilterResponseNormalization(Frozen):
    """Filter response normalization (Singh and Krishnan 2020).

    Each channel is divided by its root mean square over the positions of an example, and max(., tau), with a learned
    tau of each channel, stands in place of ReLU. c is their epsilon, not learned.
    """

    needs: ClassVar[Needs] = "convolutional"

    name: Literal["frn"] = "frn"
    c: Positive = Field(1e-6, description="Constant under the square root.")


class Fixup(Frozen):
    """No normalization, but an initialization that lets deep residual nets train without (Zhang et al. 2019).

    The first convolution of each of the L branches is scaled by L^(-1/2); the last one and the classifier begin at
    zero. There is a scalar bias before each convolution of a branch, activation and Dense, and a scalar multiplier at
    the end of each branch.
    """

    needs: ClassVar[Needs] = "residual"

    name: Literal["fixup"] = "fixup"
    lr_factor: Positive = Field(
        0.1, description="Share of the learning rate with which all but the kernels learn; with sgd only."
    )


Normalization = Annotated[
    NoNormalization
    | BatchNormalization
    | GroupNormalization
    | LayerNormalization
    | InstanceNormalization
    | WeightStandardizedGroupNormalization
    | FilterResponseNormalization
    | Fixup,
    Field(discriminator="name"),
    BeforeValidator(expand_name),
]
