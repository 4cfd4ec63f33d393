"""Architectures, and what of a training depends on them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from bn_vuln.config.types import Count, Frozen, Index, expand_name


class LinearArch(Frozen):
    """[normalization of the input ->] one Dense. `one_logit`, for two classes: one output z = w x + b, of which the
    logits are [0, z]; otherwise one output for each class."""

    omitted_from_id_at_default: ClassVar[tuple[str, ...]] = ("one_logit",)

    name: Literal["linear"] = "linear"
    one_logit: bool = False


class NearestCentroidArch(Frozen):
    """The class of the nearest mean of the published training images (validation images too: nothing is chosen by
    them). It is a linear model in closed form, with nothing random and nothing to train."""

    name: Literal["nearest_centroid"] = "nearest_centroid"


class MLPArch(Frozen):
    """ReLU layers of `hidden` units (null: two of half the input dimension each, as in the paper's Tables 6
    and 7); `normalized` lists the hidden layers (from 0) that get the normalization, between Dense and ReLU."""

    name: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    normalized: Annotated[tuple[Index, ...], AfterValidator(lambda layers: tuple(sorted(set(layers))))] = (0,)

    @model_validator(mode="after")
    def _normalized_layers_exist(self) -> MLPArch:
        layers = 2 if self.hidden is None else len(self.hidden)
        if any(index >= layers for index in self.normalized):
            raise PydanticCustomError(
                "normalized",
                "normalized: expected hidden layers from 0 to {last}, received {received}",
                {"last": layers - 1, "received": str(list(self.normalized))},
            )
        return self


class DeepArch(Frozen):
    """`depth` ReLU layers of `units` each, all of them normalized, as in the paper's Figure 2 (width 384)."""

    name: Literal["deep"] = "deep"
    depth: Count = 10
    units: Count = 384


class VGGArch(Frozen):
    """VGG: 3x3 convolutions, each normalized, max-pooling, global average pooling and one Dense. 11 to 19 as published
    (Simonyan and Zisserman 2015, A, B, D, E); vgg8 has one convolution for each of the five poolings."""

    convolutional: ClassVar[bool] = True

    name: Literal["vgg8", "vgg11", "vgg13", "vgg16", "vgg19"] = "vgg11"


class ResNetArch(Frozen):
    """ResNets for small images (He et al. 2016, section 4.2): 3x3 convolutions in three stages of 16, 32 and 64
    filters, two to a block, normalization before ReLU, shortcuts without parameters."""

    convolutional: ClassVar[bool] = True
    residual: ClassVar[bool] = True

    name: Literal["resnet20", "resnet32", "resnet44", "resnet56", "resnet110"] = "resnet20"


class WideResNetArch(Frozen):
    """Wide ResNets (Zagoruyko and Komodakis 2016) WRN-`depth`-`widening`: three stages of 16, 32 and 64 times
    `widening` filters, (depth - 4) / 6 blocks each of normalization, ReLU and 3x3 convolution, twice, without dropout;
    a 1x1 convolution for the shortcut where the shape changes."""

    convolutional: ClassVar[bool] = True
    residual: ClassVar[bool] = True

    name: Literal["wrn"] = "wrn"
    depth: Count = 28
    widening: Count = 10

    @model_validator(mode="after")
    def _has_whole_blocks(self) -> WideResNetArch:
        if self.depth < 10 or self.depth % 6 != 4:
            raise PydanticCustomError(
                "depth", "depth: expected 6 n + 4 (10, 16, 22, 28, 40), received {depth}", {"depth": self.depth}
            )
        return self


Arch = Annotated[
    LinearArch | MLPArch | DeepArch | VGGArch | ResNetArch | WideResNetArch | NearestCentroidArch,
    Field(discriminator="name"),
    BeforeValidator(expand_name),
]

_CONVOLUTIONAL = [
    name for arch in (VGGArch, ResNetArch, WideResNetArch) for name in get_args(arch.model_fields["name"].annotation)
]

# What a cell of these architectures has where it says nothing. PyTorch's initialization shrinks the signal by 6 in
# each layer, which BN undoes and a net without BN cannot: there the pair would compare a net that learns with none.
SETTINGS: dict[str, dict[str, Any]] = {
    "deep": {"init": "he"},
    **{name: {"init": "he", "train": {"momentum": 0.9, "epochs": 5}} for name in _CONVOLUTIONAL},
}
