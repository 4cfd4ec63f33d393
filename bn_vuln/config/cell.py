"""What trains a model: data, architecture, normalization, training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from bn_vuln.config.arch import SETTINGS, Arch, MLPArch
from bn_vuln.config.normalization import NoNormalization, Normalization
from bn_vuln.config.perturbation import Box, Unit
from bn_vuln.config.types import Count, Frozen, Index, NonNegative, Positive, expand_name, parse_number


class Data(Frozen):
    """The data a model is trained on. `name`: a data set, the path of an .npz file, or folder:PATH. `width` null:
    the native one. Validation images leave the training set. `digest` of user data, filled in when they are
    read, identifies them by their content: a path never does.

    `classes`: these alone (numbers of the published classes), renumbered from 0 in this order. `limit` takes as many
    examples of every class where it is `balanced`. `subset_seed`: the same
    examples for all seeds (`fixed`), or others for each `seed`.
    """

    omitted_from_id_at_default: ClassVar[tuple[str, ...]] = ("digest", "classes", "balanced", "subset_seed")
    stored_names: ClassVar[dict[str, str]] = {"subset_seed": "draw"}

    name: str = "mnist"
    width: Count | None = None
    validation: Count = 5000
    limit: Count | None = None
    digest: str | None = None
    classes: Annotated[tuple[Index, ...], Field(min_length=2)] | None = None
    balanced: bool = False
    subset_seed: Literal["fixed", "seed"] = "fixed"

    @model_validator(mode="after")
    def _make_sense(self) -> Data:
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            received = str(list(self.classes))
            raise PydanticCustomError(
                "data", "classes: expected each once, received {received}", {"received": received}
            )
        if self.balanced and self.limit is None:
            raise PydanticCustomError("data", "balanced needs a limit: how many examples, equally many of each class")
        return self

    @property
    def canonical(self) -> str:
        """The name that identifies the data: npz:DIGEST or folder:DIGEST for user data, once that is known."""
        kind = "folder" if self.name.startswith("folder:") else "npz"
        return self.name if self.digest is None else f"{kind}:{self.digest}"

    def identifying(self, fields: dict[str, Any]) -> dict[str, Any]:
        return super().identifying({**fields, "name": self.canonical, "digest": None})


class ConstantSchedule(Frozen):
    """The learning rate stays."""

    name: Literal["constant"] = "constant"


class StepSchedule(Frozen):
    """The learning rate is multiplied by `factor` when each of `epochs` (counted from 0) begins."""

    name: Literal["step"] = "step"
    epochs: Annotated[tuple[Count, ...], AfterValidator(lambda epochs: tuple(sorted(set(epochs))))]
    factor: Positive = 0.1


class CosineSchedule(Frozen):
    """The learning rate falls from lr to `final` * lr over the epochs after the warm-up, step by step, along half a
    cosine (Loshchilov and Hutter 2017, without restarts)."""

    name: Literal["cosine"] = "cosine"
    final: Annotated[float, BeforeValidator(parse_number), Field(ge=0, lt=1)] = 0.0


Schedule = Annotated[
    ConstantSchedule | StepSchedule | CosineSchedule, Field(discriminator="name"), BeforeValidator(expand_name)
]
Decay = Annotated[float, BeforeValidator(parse_number), Field(ge=0, lt=1)]


class Adversarial(Frozen):
    """The search for the images of each step: points of the ball ||(x' - x) / scale||_ord <= eps, scale = 1 (pixel) or
    the std (standardized), cut to the box, at which the cross-entropy of the true label is high.

    The defaults are Madry et al.'s (2018): PGD, which starts at a random point of the ball. FGSM (Goodfellow et al.
    2015) is one step without a random start. `step_size` null: 2.5 eps / steps, or eps if there is one step.
    """

    ord: Literal["inf", "2"] = "inf"
    eps: NonNegative
    unit: Unit = "pixel"
    box: Box = (0.0, 1.0)
    steps: Count = 10
    step_size: NonNegative = Field(default=None, validate_default=True)
    random_start: bool = True

    @field_validator("ord", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """YAML reads 2 as a number."""
        return str(value)

    @field_validator("step_size", mode="before")
    @classmethod
    def _fill_in(cls, value: Any, info: ValidationInfo) -> Any:
        """The default; 0 where it cannot be computed since eps or steps is wrong, which is reported for itself."""
        if value is not None:
            return value
        eps, steps = info.data.get("eps", 0.0), info.data.get("steps", 1)
        return eps if steps == 1 else 2.5 * eps / steps


class Augment(Frozen):
    """Every image of every epoch gets its own random crop and flip, in its native size, before it is resized. Crop:
    `pad` black pixels are added on each side, and of all places for the native size in it each is as likely. `flip`:
    left and right are exchanged with probability 1/2.

    The defaults are those in common use on CIFAR-10 (He et al. 2016, section 4.2).
    """

    pad: Index = 4
    flip: bool = True

    @model_validator(mode="after")
    def _changes_something(self) -> Augment:
        if not self.pad and not self.flip:
            raise PydanticCustomError("train", "pad 0 without flip changes no image: expected a pad >= 1 or a flip")
        return self


class Train(Frozen):
    """How the cross-entropy is minimized. `batch_size` is the global one, whatever the number of devices.

    `momentum` (and `nesterov`) belong to sgd, `betas` to adam and adamw, whose denominator has PyTorch's 1e-8. The
    first `warmup` epochs climb from 0 to lr, step by step. `label_smoothing` s: targets (1 - s) onehot + s / classes.
    `select`: the epoch kept, `best` by validation accuracy or `last`.

    `augment`: every step is made on randomly cropped and flipped images of its batch; the training accuracy is then
    that on them, while validation images are never augmented.

    `adversarial`: every step is made on adversarial examples of its batch (Madry et al. 2018), searched for the true
    labels; the training accuracy is then that on them, while validation stays clean. So `select: best` keeps
    the epoch of the best clean accuracy, which need not be a robust one: late in training robustness often falls while
    clean accuracy still rises (Rice et al. 2020). `select: last` leaves the choice to `epochs`.
    """

    omitted_from_id_at_default: ClassVar[tuple[str, ...]] = (
        "nesterov",
        "betas",
        "warmup",
        "label_smoothing",
        "adversarial",
        "augment",
    )

    epochs: Count = 20
    batch_size: Count = 128
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive = 0.01
    momentum: Decay = 0.0
    nesterov: bool = False
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    schedule: Schedule = ConstantSchedule()
    warmup: NonNegative = 0.0
    label_smoothing: Decay = 0.0
    select: Literal["best", "last"] = "best"
    adversarial: Adversarial | None = None
    augment: Augment | None = None

    @property
    def forward_passes(self) -> int:
        """The work of a step on one example, in forward passes: forward and backward are three, the gradient with
        respect to an image two."""
        return 3 + (2 * self.adversarial.steps if self.adversarial else 0)

    @model_validator(mode="after")
    def _make_sense(self) -> Train:
        sgd = self.optimizer == "sgd"
        for wrong, message in (
            (not sgd and (self.momentum or self.nesterov), "momentum and nesterov belong to sgd, not to {optimizer}"),
            (sgd and self.betas != (0.9, 0.999), "betas belong to adam and adamw, not to sgd"),
            (self.nesterov and not self.momentum, "nesterov needs a momentum > 0"),
            (self.warmup >= self.epochs, "warmup: expected fewer than the {epochs} epochs, received {warmup}"),
        ):
            if wrong:
                fields = {"optimizer": self.optimizer, "epochs": self.epochs, "warmup": self.warmup}
                raise PydanticCustomError("train", message, fields)
        return self


NETS = {"convolutional": "VGG, ResNets, wrn", "residual": "ResNets, wrn"}


class Cell(Frozen):
    """All that trains one model. Its id is a hash of exactly this (see `config.identity`).

    `weight_decay` lambda adds lambda * w to the gradient, a penalty lambda/2 ||w||^2 (PyTorch's meaning); with adamw
    it is decoupled from the gradient, w -= lr lambda w (Loshchilov and Hutter 2019). Where `init`, `train.momentum`
    and `train.epochs` are left out they depend on the architecture (he for `deep` and convolutional nets, .9 and 5 for
    these).
    `normalization: l2` is short for none plus a weight decay, which must then be given. `standardize` false: the model
    takes its pixels as they are.
    """

    omitted_from_id_at_default: ClassVar[tuple[str, ...]] = ("standardize",)

    data: Annotated[Data, BeforeValidator(expand_name)] = Data()
    arch: Arch = MLPArch()
    init: Literal["torch", "he", "zeros"] = "torch"
    normalization: Normalization = NoNormalization()
    weight_decay: NonNegative = 0.0
    decay_on: Literal["kernels", "all"] = "kernels"
    train: Train = Train()
    seed: Index = 0
    standardize: bool = True

    @model_validator(mode="after")
    def _zeros_are_for_linear_models(self) -> Cell:
        if self.init == "zeros" and self.arch.name != "linear":
            raise PydanticCustomError("init", "init zeros: hidden layers would never learn; it is for arch linear")
        return self

    @model_validator(mode="after")
    def _normalization_fits(self) -> Cell:
        """Some normalizations need positions to average over, Fixup branches; and its own learning rate for scalars is
        made by scaling their gradients, which adam would undo."""
        name, needed = self.normalization.name, getattr(self.normalization, "needs", None)
        fields = {"name": name, "needed": needed, "arch": self.arch.name, "optimizer": self.train.optimizer}
        if needed and not getattr(self.arch, needed, False):
            message = "normalization {name} is for {needed} nets (" + NETS[needed] + "), not for {arch}"
            raise PydanticCustomError("normalization", message, fields)
        if name == "fixup" and self.train.optimizer != "sgd":
            raise PydanticCustomError("normalization", "normalization fixup is for sgd, not for {optimizer}", fields)
        return self

    @model_validator(mode="before")
    @classmethod
    def _nothing_random(cls, data: Any) -> Any:
        """The nearest centroid has nothing random and nothing to train: one cell, whatever a grid combines it with."""
        arch = expand_name(data.get("arch")) if isinstance(data, Mapping) else None
        name = arch.get("name") if isinstance(arch, Mapping) else getattr(arch, "name", None)
        if name != "nearest_centroid":
            return data
        source = expand_name(data.get("data", {}))
        source = source.model_dump() if isinstance(source, Data) else source
        if isinstance(source, Mapping):
            source = {k: v for k, v in source.items() if k not in ("limit", "balanced", "subset_seed", "draw")}
        return {"data": source, **{k: v for k, v in data.items() if k == "arch" or k not in cls.model_fields}}

    @model_validator(mode="before")
    @classmethod
    def _settings_of_the_architecture(cls, data: Any) -> Any:
        arch = expand_name(data.get("arch")) if isinstance(data, Mapping) else data
        name = arch.get("name") if isinstance(arch, Mapping) else getattr(arch, "name", None)
        if not isinstance(data, Mapping) or name not in SETTINGS:
            return data
        filled = {**SETTINGS[name], **data}
        given = data.get("train", {})
        if "train" not in SETTINGS[name] or not isinstance(given, Mapping):
            return filled
        train = {**SETTINGS[name]["train"], **given}
        if train.get("optimizer", "sgd") != "sgd" and "momentum" not in given:
            del train["momentum"]
        return {**filled, "train": train}

    @model_validator(mode="before")
    @classmethod
    def _l2_is_weight_decay(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or expand_name(data.get("normalization")) != {"name": "l2"}:
            return data
        try:
            none = not parse_number(data.get("weight_decay", 0.0))
        except ValueError:
            none = False  # the field itself says what is wrong with it
        if none:
            raise PydanticCustomError("l2", "normalization l2 needs a weight_decay > 0")
        return {**data, "normalization": "none"}
