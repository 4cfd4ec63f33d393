"""External models: how a Keras model that was not trained here is called, as far as its file does not say."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bn_vuln.config.types import Frozen

Resize = Literal["auto", "none", "stretch", "crop", "pad", "imagenet"]
OutputKind = Literal["auto", "logits", "softmax", "sigmoid", "log-softmax"]


class ExternalModel(Frozen):
    """How an external model is called."""

    input_scale: str = Field(
        "auto",
        description="What becomes of pixels in [0, 1]: `0-1`, `0-255`, `-1-1`, MEAN,STD, or MEAN and STD of each "
        "channel; `caffe`, `torch` or `tf`, as `keras.applications` has them; `auto` decides on labelled "
        "images.",
    )
    resize: Resize = Field(
        "auto",
        description="How images of another size become the model's input. `stretch`; `crop`, the shorter side fits, "
        "and the centre is taken; `pad`, the longer side fits, with zeros around; `imagenet`, the shorter side is "
        "8/7 of it (256 of 224 pixels), and the centre is taken; `none` refuses them; `auto` is `imagenet` for "
        "`pretrained:NAME`, else `crop`, where a size differs.",
    )
    gray_to_rgb: bool = Field(False, description="Give gray images to a model of three channels.")
    output: OutputKind = Field("auto", description="What the model returns.")
    head: str | None = Field(None, description="Name of the output that is taken, of a model with several.")
    weights: str | None = Field(
        None,
        description="Weights of `keras.applications:NAME`: `imagenet` (the default), `none`, or a file; of "
        "`pretrained:NAME`: `torchvision`, `timm`, `bagnets`, `random`, or a file.",
    )
    custom_objects: str | None = Field(None, description="A Python file of custom layers and functions, which is run.")
    class_names: str | None = Field(
        None, description="A file of the names of the model's classes, in the order of its outputs."
    )
