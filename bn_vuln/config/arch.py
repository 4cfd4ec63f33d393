"""Architectures, and the defaults of a training that depend on them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from bn_vuln.config.types import Count, Frozen, Index, expand_name, reject_if
from bn_vuln.typing import Plain


class LinearArch(Frozen):
    """A linear model: [normalization of the input ->] one Dense layer."""

    omitted_from_id_at_default: ClassVar[tuple[str, ...]] = ("one_logit",)

    name: Literal["linear"] = "linear"
    one_logit: bool = Field(
        False,
        description="For two classes: one output z = w x + b, which gives the logits [0, z]. Otherwise there is one "
        "output for each class.",
    )


class NearestCentroidArch(Frozen):
    """The class of the nearest mean of the published training images.

    It is a linear model in closed form, with nothing random and nothing to train. Validation images count as training
    images, since nothing is chosen by them.
    """

    name: Literal["nearest_centroid"] = "nearest_centroid"


class MLPArch(Frozen):
    """A multilayer perceptron with ReLU."""

    name: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] | None = Field(
        None,
        description="Units of each hidden layer. Null: two layers of half the input dimension each (the paper's "
        "Tables 6 and 7).",
    )
    normalized: Annotated[tuple[Index, ...], AfterValidator(lambda layers: tuple(sorted(set(layers))))] = Field(
        (0,), description="Hidden layers, counted from 0, with the normalization between Dense and ReLU."
    )

    @model_validator(mode="after")
    def _normalized_layers_exist(self) -> MLPArch:
        layers = 2 if self.hidden is None else len(self.hidden)
        message = "normalized: expected hidden layers from 0 to {last}, received {received}"
        unknown = any(index >= layers for index in self.normalized)
        reject_if((unknown, message), last=layers - 1, received=str(list(self.normalized)))
        return self


class DeepArch(Frozen):
    """A deep perceptron of the paper's Figure 2: `depth` ReLU layers of `units` each, all of them normalized."""

    name: Literal["deep"] = "deep"
    depth: Count = Field(10, description="Hidden layers.")
    units: Count = Field(384, description="Units of each layer.")


class VGGArch(Frozen):
    """VGG: 3x3 convolutions, each normalized, max-pooling, global average pooling and one Dense layer.

    vgg11 to vgg19 are as published (Simonyan and Zisserman 2015, A, B, D, E). vgg8 has one convolution for each of the
    five poolings.
    """

    convolutional: ClassVar[bool] = True

    name: Literal["vgg8", "vgg11", "vgg13", "vgg16", "vgg19"] = "vgg11"


class ResNetArch(Frozen):
    """ResNets for small images (He et al. 2016, section 4.2).

    3x3 convolutions in three stages of 16, 32 and 64 filters, two to a block, normalization before ReLU, shortcuts
    without parameters.
    """

    convolutional: ClassVar[bool] = True
    residual: ClassVar[bool] = True

    name: Literal["resnet20", "resnet32", "resnet44", "resnet56", "resnet110"] = "resnet20"


class WideResNetArch(Frozen):
    """Wide ResNets WRN-`depth`-`widening` (Zagoruyko and Komodakis 2016), without dropout.

    Three stages of 16, 32 and 64 times `widening` filters, each of (depth - 4) / 6 blocks. A block is twice
    normalization, ReLU and 3x3 convolution; the shortcut is a 1x1 convolution where the shape changes.
    """

    convolutional: ClassVar[bool] = True
    residual: ClassVar[bool] = True

    name: Literal["wrn"] = "wrn"
    depth: Count = Field(28, description="Layers, 6 n + 4.")
    widening: Count = Field(10, description="Factor of the numbers of filters.")

    @model_validator(mode="after")
    def _has_whole_blocks(self) -> WideResNetArch:
        message = "depth: expected 6 n + 4 (10, 16, 22, 28, 40), received {depth}"
        reject_if((self.depth < 10 or self.depth % 6 != 4, message), depth=self.depth)
        return self


class ImageNetVGGArch(Frozen):
    """VGG for images of 224 pixels as published (Simonyan and Zisserman 2015, A, B, D, E), as torchvision has it.

    3x3 convolutions with biases, each normalized, max-pooling, and three Dense layers, two of 4096 units.
    """

    convolutional: ClassVar[bool] = True

    name: Literal["imagenet_vgg11", "imagenet_vgg13", "imagenet_vgg16", "imagenet_vgg19"] = "imagenet_vgg11"


class AlexNetArch(Frozen):
    """AlexNet for images of 224 pixels (Krizhevsky 2014), as torchvision has it; published without normalization."""

    convolutional: ClassVar[bool] = True

    name: Literal["alexnet"] = "alexnet"


class ImageNetResNetArch(Frozen):
    """ResNets for large images (He et al. 2016), as torchvision has them: a stride is that of a 3x3 convolution."""

    convolutional: ClassVar[bool] = True

    name: Literal["resnet18", "resnet50"] = "resnet50"


class DenseNetArch(Frozen):
    """DenseNet-121 for large images (Huang et al. 2017): each layer of a block gets the outputs of all before it."""

    convolutional: ClassVar[bool] = True

    name: Literal["densenet121"] = "densenet121"


class BagNetArch(Frozen):
    """BagNets for large images (Brendel and Bethge 2019): a ResNet-50 that sees patches of 9, 17 or 33 pixels alone."""

    convolutional: ClassVar[bool] = True

    name: Literal["bagnet9", "bagnet17", "bagnet33"] = "bagnet33"


Arch = Annotated[
    LinearArch
    | MLPArch
    | DeepArch
    | VGGArch
    | ResNetArch
    | WideResNetArch
    | NearestCentroidArch
    | ImageNetVGGArch
    | AlexNetArch
    | ImageNetResNetArch
    | DenseNetArch
    | BagNetArch,
    Field(discriminator="name"),
    BeforeValidator(expand_name),
]

_CONVOLUTIONAL = [
    name
    for arch in (
        VGGArch,
        ResNetArch,
        WideResNetArch,
        ImageNetVGGArch,
        AlexNetArch,
        ImageNetResNetArch,
        DenseNetArch,
        BagNetArch,
    )
    for name in get_args(arch.model_fields["name"].annotation)
]

# Defaults of a cell by architecture. PyTorch's initialization shrinks the signal to a sixth in each layer, which BN
# undoes and a net without BN cannot: the pair would compare a net that learns with one that does not.
DEFAULTS: dict[str, Plain] = {
    "deep": {"init": "he"},
    **{name: {"init": "he", "train": {"momentum": 0.9, "epochs": 5}} for name in _CONVOLUTIONAL},
}

_VGG = ("vgg11", "vgg13", "vgg16", "vgg19")
# Nets for ImageNet with published weights, by torchvision's names -> (architecture, normalization).
PRETRAINED: dict[str, tuple[str, str]] = {
    **{name: (f"imagenet_{name}", "none") for name in _VGG},
    **{f"{name}_bn": (f"imagenet_{name}", "batch") for name in _VGG},
    "alexnet": ("alexnet", "none"),
    **{name: (name, "batch") for name in ("resnet18", "resnet50", "densenet121", "bagnet9", "bagnet17", "bagnet33")},
}
