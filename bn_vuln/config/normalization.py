"""Normalizations, and what stands in for one."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from bn_vuln.config.types import Count, Frozen, Positive, expand_name, parse_number

Needs = Literal["convolutional", "residual"]  # of the architecture


class NoNormalization(Frozen):
    """The arm without normalization."""

    name: Literal["none"] = "none"


class BatchNormalization(Frozen):
    """BN, h' = gamma (h - mu) / sqrt(sigma^2 + c) + beta. `momentum` is Keras' (the weight of the old
    statistics); the defaults equal PyTorch's layer. `synchronized`: statistics over all replicas. `gamma` starts at
    `ones`, or `uniform` in [0, 1] (PyTorch's before version 1.2) by the seed."""

    omitted_from_id_at_default: ClassVar[tuple[str, ...]] = ("gamma",)

    name: Literal["batch"] = "batch"
    c: Positive = 1e-5
    momentum: Annotated[float, BeforeValidator(parse_number), Field(ge=0, lt=1)] = 0.9
    affine: bool = True
    synchronized: bool = False
    gamma: Literal["ones", "uniform"] = "ones"


class GroupNormalization(Frozen):
    """The same over each example's groups of channels and all positions (Wu and He 2018), in training and at test. 8
    groups, where the paper has 32: ResNets for small images have 16 channels."""

    name: Literal["group"] = "group"
    groups: Count = 8
    c: Positive = 1e-5


class LayerNormalization(Frozen):
    """One group: over all channels and positions of an example, gamma and beta for each channel (Ba et al. 2016, as Wu
    and He 2018 have it for convolutions)."""

    name: Literal["layer"] = "layer"
    c: Positive = 1e-5


class InstanceNormalization(Frozen):
    """A group for each channel: over the positions of an example (Ulyanov et al. 2016)."""

    needs: ClassVar[Needs] = "convolutional"

    name: Literal["instance"] = "instance"
    c: Positive = 1e-5


class WeightStandardizedGroupNormalization(Frozen):
    """Group normalization behind convolutions with standardized weights (Qiao et al. 2019): each filter has mean 0 and
    variance 1 whenever it is used, (w - mean) / sqrt(variance + 1e-5)."""

    needs: ClassVar[Needs] = "convolutional"

    name: Literal["ws_group"] = "ws_group"
    groups: Count = 8
    c: Positive = 1e-5


class FilterResponseNormalization(Frozen):
    """Each channel divided by its root mean square over the positions of an example, and max(., tau) with a learned
    tau for each channel in place of ReLU (Singh and Krishnan 2020; their epsilon, 1e-6, is c, not learned)."""

    needs: ClassVar[Needs] = "convolutional"

    name: Literal["frn"] = "frn"
    c: Positive = 1e-6


class Fixup(Frozen):
    """No normalization, but an initialization that lets deep residual nets train without (Zhang et al. 2019): the first
    convolution of each of the L branches is scaled by L^(-1/2), the last one and the classifier begin at zero; there is
    a scalar bias before each convolution of a branch, activation and Dense, and a scalar multiplier at the end of each
    branch. All but the kernels learn at `lr_factor` of the learning rate, with sgd only."""

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
