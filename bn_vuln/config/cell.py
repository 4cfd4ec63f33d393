"""What trains a model: data, architecture, normalization, training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from bn_vuln.config.values import Count, Frozen, Index, NonNegative, Positive, named, parse_integer, parse_number


class Data(Frozen):
    """The data a model is trained on. `width` null: the native one. Validation images leave the training set."""

    name: str = "mnist"
    width: Annotated[int, BeforeValidator(parse_integer), Field(ge=28)] | None = None
    validation: Count = 5000
    limit: Count | None = None


class LinearArch(Frozen):
    """[normalization of the input ->] one Dense."""

    name: Literal["linear"] = "linear"


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


Arch = Annotated[LinearArch | MLPArch, Field(discriminator="name"), BeforeValidator(named)]


class NoNormalization(Frozen):
    """The arm without normalization."""

    name: Literal["none"] = "none"


class BatchNormalization(Frozen):
    """BN, h' = gamma (h - mu) / sqrt(sigma^2 + c) + beta. `momentum` is Keras' (the weight of the old
    statistics); the defaults equal PyTorch's layer. `synchronized`: statistics over all replicas."""

    name: Literal["batch"] = "batch"
    c: Positive = 1e-5
    momentum: Annotated[float, BeforeValidator(parse_number), Field(ge=0, lt=1)] = 0.9
    affine: bool = True
    synchronized: bool = False


Normalization = Annotated[NoNormalization | BatchNormalization, Field(discriminator="name"), BeforeValidator(named)]


class ConstantSchedule(Frozen):
    """The learning rate stays."""

    name: Literal["constant"] = "constant"


class StepSchedule(Frozen):
    """The learning rate is multiplied by `factor` when each of `epochs` (counted from 0) begins."""

    name: Literal["step"] = "step"
    epochs: tuple[Count, ...]
    factor: Positive = 0.1


Schedule = Annotated[ConstantSchedule | StepSchedule, Field(discriminator="name"), BeforeValidator(named)]


class Train(Frozen):
    """SGD with momentum on the cross-entropy. `select`: the epoch kept, `best` by validation accuracy or `last`."""

    epochs: Count = 20
    batch_size: Count = 128
    optimizer: Literal["sgd"] = "sgd"
    lr: Positive = 0.01
    momentum: Annotated[float, BeforeValidator(parse_number), Field(ge=0, lt=1)] = 0.0
    schedule: Schedule = ConstantSchedule()
    select: Literal["best", "last"] = "best"


class Cell(Frozen):
    """All that trains one model. Its id is a hash of exactly this (see `records.cell_id`).

    `weight_decay` lambda adds lambda * w to the gradient, a penalty lambda/2 ||w||^2 (PyTorch's meaning).
    `normalization: l2` is short for none plus a weight decay, which must then be given.
    """

    data: Annotated[Data, BeforeValidator(named)] = Data()
    arch: Arch = MLPArch()
    init: Literal["torch", "he"] = "torch"
    normalization: Normalization = NoNormalization()
    weight_decay: NonNegative = 0.0
    decay_on: Literal["kernels", "all"] = "kernels"
    train: Train = Train()
    seed: Index = 0

    @model_validator(mode="before")
    @classmethod
    def _l2_is_weight_decay(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or named(data.get("normalization")) != {"name": "l2"}:
            return data
        try:
            none = not parse_number(data.get("weight_decay", 0.0))
        except ValueError:
            none = False  # the field itself says what is wrong with it
        if none:
            raise PydanticCustomError("l2", "normalization l2 needs a weight_decay > 0")
        return {**data, "normalization": "none"}
