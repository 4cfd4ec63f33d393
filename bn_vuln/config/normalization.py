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
    """Batch normalization, h' = gamma (h - mu) / sqrt(sigma^2 + c) + beta. The defaults equal those of PyTorch's layer.

    Attributes:
        c: Constant under the square root.
        momentum: Weight of the old statistics, as in Keras (PyTorch's momentum is 1 minus it).
        affine: Whether there are gamma and beta.
        synchronized: Statistics over all replicas.
        gamma: Start of gamma: `ones`, or `uniform` in [0, 1] (PyTorch before version 1.2), by the seed.
    """

    omitted_from_id_at_default: ClassVar[tuple[str, ...]] = ("gamma",)

    name: Literal["batch"] = "batch"
    c: Positive = 1e-5
    momentum: BelowOne = 0.9
    affine: bool = True
    synchronized: bool = False
    gamma: Literal["ones", "uniform"] = "ones"


class GroupNormalization(Frozen):
    """Normalization over groups of channels and all positions of each example (Wu and He 2018), also at test time.

    The default is 8 groups, where the paper has 32: ResNets for small images have 16 channels.
    """

    name: Literal["group"] = "group"
    groups: Count = 8
    c: Positive = 1e-5


class LayerNormalization(Frozen):
    """Normalization over all channels and positions of an example (Ba et al. 2016).

    Gamma and beta are those of each channel, as Wu and He 2018 have it for convolutions.
    """

    name: Literal["layer"] = "layer"
    c: Positive = 1e-5


class InstanceNormalization(Frozen):
    """Normalization over the positions of an example, each channel by itself (Ulyanov et al. 2016)."""

    needs: ClassVar[Needs] = "convolutional"

    name: Literal["instance"] = "instance"
    c: Positive = 1e-5


class WeightStandardizedGroupNormalization(Frozen):
    """Group normalization after convolutions with standardized weights (Qiao et al. 2019).

    Each filter has mean 0 and variance 1 whenever it is used, (w - mean) / sqrt(variance + 1e-5).
    """

    needs: ClassVar[Needs] = "convolutional"

    name: Literal["ws_group"] = "ws_group"
    groups: Count = 8
    c: Positive = 1e-5


class FilterResponseNormalization(Frozen):
    """Filter response normalization (Singh and Krishnan 2020).

    Each channel is divided by its root mean square over the positions of an example, and max(., tau), with a learned
    tau of each channel, stands in place of ReLU. c is their epsilon, not learned.
    """

    needs: ClassVar[Needs] = "convolutional"

    name: Literal["frn"] = "frn"
    c: Positive = 1e-6


class Fixup(Frozen):
    """No normalization, but an initialization that lets deep residual nets train without (Zhang et al. 2019).

    The first convolution of each of the L branches is scaled by L^(-1/2); the last one and the classifier begin at
    zero. There is a scalar bias before each convolution of a branch, activation and Dense, and a scalar multiplier at
    the end of each branch.

    Attributes:
        lr_factor: Share of the learning rate with which all but the kernels learn; with sgd only.
    """

    needs: ClassVar[Needs] = "residual"

    name: Literal["fixup"] = "fixup"
    lr_factor: Positive = 0.1


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
