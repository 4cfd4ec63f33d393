"""Cells: the data, architecture, normalization and training of one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from bn_vuln.config.adversarial import Adversarial
from bn_vuln.config.arch import DEFAULTS, PRETRAINED, Arch, MLPArch
from bn_vuln.config.mend import CellMend
from bn_vuln.config.normalization import BatchNormalization, NoNormalization, Normalization
from bn_vuln.config.types import (
    AlsoAccepted,
    BelowOne,
    Count,
    Frozen,
    Index,
    NonNegative,
    Positive,
    config_error,
    expand_name,
    parse_number,
    reject_if,
)
from bn_vuln.typing import Plain, Where


class Data(Frozen):
    """The data that a model is trained on."""

    omitted_from_id_at_default: ClassVar[tuple[str, ...]] = ("digest", "classes", "balanced", "subset_seed")
    stored_names: ClassVar[dict[str, str]] = {"subset_seed": "draw"}

    name: str = Field("mnist", description="A data set by name, the path of an .npz file, or folder:PATH.")
    width: Count | None = Field(
        None, description="Image width in pixels, at least the native one (bilinear). Null: the native one."
    )
    validation: Count = Field(5000, description="Examples of the training set that are held out to choose the epoch.")
    limit: Count | None = Field(None, description="Number of training examples. Null: all.")
    digest: str | None = Field(
        None,
        description="Hash of the content of user data, filled in when they are read. It identifies them; a path never"
        " does.",
    )
    classes: Annotated[tuple[Index, ...], Field(min_length=2)] | None = Field(
        None,
        description="Train on these classes alone (numbers of the published classes), renumbered from 0 in this order.",
    )
    balanced: bool = Field(False, description="Take equally many examples of every class, `limit` in all.")
    subset_seed: Literal["fixed", "seed"] = Field(
        "fixed", description="`fixed`: the same `limit` examples for all seeds; `seed`: other ones for each seed."
    )

    @model_validator(mode="after")
    def _options_agree(self) -> Data:
        classes = list(self.classes or ())
        reject_if(
            (len({*classes}) < len(classes), "classes: expected each once, received {classes}"),
            (
                self.balanced and self.limit is None,
                "balanced needs a limit: how many examples, equally many of each class",
            ),
            classes=str(classes),
        )
        return self

    @property
    def canonical(self) -> str:
        """The name that identifies the data: npz:DIGEST or folder:DIGEST for user data, once that is known."""
        kind = next((kind for kind in ("folder", "arrays") if self.name.startswith((f"{kind}:", f"{kind}+"))), "npz")
        return self.name if self.digest is None else f"{kind}:{self.digest}"

    def identity_fields(self, fields: Plain) -> Plain:
        """Return the plain fields that an id hashes; user data are named by their digest."""
        return super().identity_fields({**fields, "name": self.canonical, "digest": None})


class ConstantSchedule(Frozen):
    """A constant learning rate."""

    name: Literal["constant"] = "constant"


class StepSchedule(Frozen):
    """A learning rate that is multiplied by `factor` when each of `epochs` (counted from 0) begins."""

    name: Literal["step"] = "step"
    epochs: Annotated[tuple[Count, ...], AfterValidator(lambda epochs: tuple(sorted(set(epochs))))] = Field(
        description="Epochs, counted from 0, at whose beginning the learning rate falls."
    )
    factor: Positive = Field(0.1, description="Factor that the learning rate is multiplied by at each of them.")


class CosineSchedule(Frozen):
    """A learning rate that falls along half a cosine (Loshchilov and Hutter 2017, without restarts).

    It falls step by step from lr to `final` * lr, over the epochs after the warm-up.
    """

    name: Literal["cosine"] = "cosine"
    final: BelowOne = Field(0.0, description="Share of the learning rate at the end.")


Schedule = Annotated[
    ConstantSchedule | StepSchedule | CosineSchedule, Field(discriminator="name"), BeforeValidator(expand_name)
]


class Augment(Frozen):
    """Data augmentation: a random crop and flip of every image in every epoch, at native width, before any resizing.

    The defaults are those in common use on CIFAR-10 (He et al. 2016, section 4.2).
    """

    pad: Index = Field(
        4,
        description="Random crops, of the native size, of images with so many black pixels added on each side.",
    )
    flip: bool = Field(True, description="Flip images left and right with probability 1/2.")

    @model_validator(mode="after")
    def _changes_something(self) -> Augment:
        message = "pad 0 without flip changes no image: expected a pad >= 1 or a flip"
        reject_if((not self.pad and not self.flip, message))
        return self


class Train(Frozen):
    """The minimization of the cross-entropy.

    With `augment` or `adversarial` the training accuracy is that on the changed images. Validation images are never
    changed. So `select: best` keeps the epoch of the best clean accuracy, which need not be a robust one: late in
    adversarial training robustness often falls while clean accuracy still rises (Rice et al. 2020). `select: last`
    leaves the choice to `epochs`.
    """

    omitted_from_id_at_default: ClassVar[tuple[str, ...]] = (
        "nesterov",
        "betas",
        "warmup",
        "label_smoothing",
        "adversarial",
        "augment",
    )

    epochs: Count = Field(20, description="Passes through the training set; 5 for convolutional nets, if not given.")
    batch_size: Count = Field(128, description="Examples of a step, over all devices.")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="Optimizer.")
    lr: Positive = Field(0.01, description="Learning rate.")
    momentum: BelowOne = Field(0.0, description="Momentum of sgd; 0.9 for convolutional nets, if not given.")
    nesterov: bool = Field(False, description="Nesterov's momentum, of sgd.")
    betas: tuple[BelowOne, BelowOne] = Field(
        (0.9, 0.999), description="Decay rates of adam and adamw, whose denominator has PyTorch's 1e-8."
    )
    schedule: Schedule = Field(
        ConstantSchedule(), description="Schedule of the learning rate: constant, step or cosine."
    )
    warmup: NonNegative = Field(
        0.0, description="First epochs, in which the learning rate rises from 0 to `lr`, step by step."
    )
    label_smoothing: BelowOne = Field(
        0.0, description="Share s of the target that is spread over all classes: (1 - s) onehot + s / classes."
    )
    select: Literal["best", "last"] = Field(
        "best", description="The epoch that is kept: `best` by validation accuracy, or `last`."
    )
    adversarial: Adversarial | None = Field(None, description="Adversarial training; see `Adversarial`.")
    augment: Augment | None = Field(None, description="Data augmentation; see `Augment`.")

    @property
    def forward_passes(self) -> int:
        """The work of a step on one example, in forward passes.

        Forward and backward pass are three, a gradient with respect to the image two.
        """
        return 3 + (2 * self.adversarial.steps if self.adversarial else 0)

    @model_validator(mode="after")
    def _options_fit_the_optimizer(self) -> Train:
        sgd = self.optimizer == "sgd"
        reject_if(
            (not sgd and (self.momentum or self.nesterov), "momentum and nesterov belong to sgd, not to {optimizer}"),
            (sgd and self.betas != (0.9, 0.999), "betas belong to adam and adamw, not to sgd"),
            (self.nesterov and not self.momentum, "nesterov needs a momentum > 0"),
            (self.warmup >= self.epochs, "warmup: expected fewer than the {epochs} epochs, received {warmup}"),
            optimizer=self.optimizer,
            epochs=self.epochs,
            warmup=self.warmup,
        )
        return self


_OR_L2 = AlsoAccepted("l2", {"enum": ["l2", {"name": "l2"}]})  # see `Cell`
# Architectures that a normalization needs, as messages name them.
_ARCHITECTURES = {"convolutional": "VGG, ResNets, wrn", "residual": "ResNets, wrn"}


class Cell(Frozen):
    """Everything that trains one model. Its id is a hash of exactly this (see `config.identity`).

    The defaults of `init`, `train.momentum` and `train.epochs` depend on the architecture: he for `deep` and
    convolutional nets, .9 and 5 for the latter. `normalization: l2` is short for none plus a weight decay, which must
    then be given.
    """

    omitted_from_id_at_default: ClassVar[tuple[str, ...]] = ("standardize", "init_generator", "weights", "mend")

    data: Annotated[Data, BeforeValidator(expand_name)] = Field(
        Data(), description="Data set: mnist, toy, another name (`bnvuln data list`), FILE.npz, or folder:PATH."
    )
    arch: Arch = Field(MLPArch(), description="Architecture.")
    init: Literal["torch", "he", "zeros"] = Field(
        "torch", description="Initialization; he for deep and convolutional nets, if not given."
    )
    normalization: Annotated[Normalization, _OR_L2] = Field(NoNormalization(), description="Normalization.")
    weight_decay: NonNegative = Field(
        0.0,
        description="lambda, adds lambda * w to the gradient: a penalty lambda/2 ||w||^2 (PyTorch's meaning). With "
        "adamw it is decoupled from the gradient, w -= lr lambda w (Loshchilov and Hutter 2019).",
    )
    decay_on: Literal["kernels", "all"] = Field("kernels", description="Weights with weight decay.")
    train: Train = Field(Train(), description="The training.")
    seed: Index = Field(0, description="Seed of initial weights, order and augmentation.")
    standardize: bool = Field(True, description="Standardize the pixels. False: the model takes them as they are.")
    init_generator: Literal["tensorflow", "numpy"] = Field(
        "tensorflow",
        description="What draws random initial kernels, biases and gammas: `tensorflow`, or `numpy`, the same numbers"
        " on every backend. On other backends than TensorFlow it is always numpy.",
    )
    weights: Literal["torchvision", "timm", "bagnets", "random"] | None = Field(
        None,
        description="Published weights of a net for ImageNet in place of a training, by their source; `random`, as "
        "initialized, to try things out. Null: it is trained.",
    )
    mend: CellMend | None = Field(
        None, description="What is changed of the model that the other fields train; see `CellMend`."
    )

    @property
    def base(self) -> Cell:
        """The cell whose model is changed: this one without `mend`."""
        return self.model_copy(update={"mend": None})

    @model_validator(mode="after")
    def _zeros_are_for_linear_models(self) -> Cell:
        message = "init zeros: hidden layers would never learn; it is for arch linear"
        reject_if((self.init == "zeros" and self.arch.name != "linear", message))
        return self

    @model_validator(mode="after")
    def _normalization_fits(self) -> Cell:
        """Check what a normalization needs: positions to average over, branches, an optimizer.

        Fixup trains its scalars at another learning rate by scaling their gradients, which adam would undo.
        """
        name, needed = self.normalization.name, getattr(self.normalization, "needs", None)
        reject_if(
            (
                needed and not getattr(self.arch, needed, False),
                "normalization {name} is for {needed} nets ({architectures}), not for {arch}",
            ),
            (
                name == "fixup" and self.train.optimizer != "sgd",
                "normalization fixup is for sgd, not for {optimizer}",
            ),
            name=name,
            needed=needed,
            architectures=_ARCHITECTURES.get(needed or "", ""),
            arch=self.arch.name,
            optimizer=self.train.optimizer,
        )
        return self

    @model_validator(mode="after")
    def _mend_fits_the_normalization(self) -> Cell:
        mend, name = self.mend, self.normalization.name
        reject_if(
            (
                mend and mend.changes_c and not hasattr(self.normalization, "c"),
                "mend changes c, which normalization {name} has not",
            ),
            (
                mend and mend.reestimate and name != "batch",
                "mend.reestimate is for the statistics of normalization batch, not for {name}",
            ),
            name=name,
        )
        return self

    @property
    def pretrained_name(self) -> str | None:
        """The name of the net whose weights are published; None where there are none of this architecture."""
        own = (self.arch.name, self.normalization.name)
        return next((name for name, published in PRETRAINED.items() if published == own), None)

    @model_validator(mode="after")
    def _weights_are_published(self) -> Cell:
        normalization = self.normalization
        changed = isinstance(normalization, BatchNormalization) and normalization != BatchNormalization()
        known = ", ".join(f"{arch} with {norm}" for arch, norm in PRETRAINED.values())
        message = "weights: there are none of {arch} with {normalization} as it is set (there are: {known})"
        missing = self.pretrained_name is None or changed
        reject_if(
            (self.weights and missing, message),
            (self.weights and self.mend, "mend: it changes a model that is trained; bnvuln mend pretrained:NAME"),
            arch=self.arch.name,
            normalization=normalization.name,
            known=known,
        )
        return self

    @model_validator(mode="before")
    @classmethod
    def _weights_have_no_training(cls, data: Any) -> Any:
        """Reduce the cells of a net with published weights, of which nothing is trained, to one."""
        if not isinstance(data, Mapping) or not data.get("weights"):
            return data
        source = expand_name(data.get("data", {}))
        source = source.model_dump() if isinstance(source, Data) else source
        if isinstance(source, Mapping):
            source = {key: value for key, value in source.items() if key in ("name", "width", "digest")}
        fields = ("arch", "normalization", "weights", "mend")
        own = {key: value for key, value in data.items() if key in fields or key not in cls.model_fields}
        seed = {"seed": data.get("seed", 0)} if data["weights"] == "random" else {}
        return {"data": source, **own, **seed}

    @model_validator(mode="before")
    @classmethod
    def _nearest_centroid_has_no_training(cls, data: Any) -> Any:
        """Reduce the cells of the nearest centroid, which has nothing random and nothing to train, to one."""
        if not isinstance(data, Mapping) or _arch_name(data) != "nearest_centroid":
            return data
        source = expand_name(data.get("data", {}))
        source = source.model_dump() if isinstance(source, Data) else source
        if isinstance(source, Mapping):
            source = {k: v for k, v in source.items() if k not in ("limit", "balanced", "subset_seed", "draw")}
        return {"data": source, **{k: v for k, v in data.items() if k == "arch" or k not in cls.model_fields}}

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_architecture(cls, data: Any) -> Any:
        name = _arch_name(data) if isinstance(data, Mapping) else None
        if name not in DEFAULTS:
            return data
        filled, train = {**DEFAULTS[name], **data}, data.get("train", {})
        if "train" not in DEFAULTS[name] or not isinstance(train, Mapping):
            return filled
        filled["train"] = {**DEFAULTS[name]["train"], **train}
        if train.get("optimizer", "sgd") != "sgd" and "momentum" not in train:
            del filled["train"]["momentum"]
        return filled

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
            raise config_error("normalization l2 needs a weight_decay > 0")
        return {**data, "normalization": "none"}


def _arch_name(data: Where) -> str | None:
    """Return the name of the architecture in the data of a cell: text, a mapping or an object."""
    arch = expand_name(data.get("arch"))
    name = arch.get("name") if isinstance(arch, Mapping) else getattr(arch, "name", None)
    return name if isinstance(name, str) else None
