"""Changes of a trained model: the constant c of its normalization layers, BN statistics, and fine-tuning."""

from __future__ import annotations

from pydantic import Field, model_validator

from bn_vuln.config.adversarial import Adversarial
from bn_vuln.config.types import BelowOne, Count, Frozen, Index, NonNegative, Positive, reject_if


class FineTuning(Frozen):
    """Training of a model that is trained already, by SGD whose rate falls along half a cosine to 0."""

    epochs: Count = Field(1, description="Passes through the images that it is fitted on.")
    lr: Positive = Field(0.001, description="Learning rate of the first step.")
    batch_size: Count = Field(64, description="Images of a step.")
    momentum: BelowOne = Field(0.9, description="Momentum of SGD.")
    weight_decay: NonNegative = Field(0.0, description="lambda, adds lambda * w to the gradient of each kernel.")
    adversarial: Adversarial | None = Field(None, description="Each step is made on adversarial examples of its batch.")
    seed: Index = Field(0, description="Seed of the order of the images.")


class Mend(Frozen):
    """What is changed of a trained model, in this order: c and gains, BN statistics, then fine-tuning.

    With m the median variance of a layer's live channels, c becomes c + r m or a given c. The gain
    |gamma| / sqrt(variance + c) of the median channel is kept by gamma sqrt((m + new c) / (m + c)): the spread of the
    gains gets smaller, their size stays.
    """

    relative_c: NonNegative = Field(0.0, description="What is added to c, in medians of the layer's variances.")
    c: Positive | None = Field(None, description="The new c, instead of a relative one.")
    layers: tuple[str, ...] = Field(
        (), description="Names of the normalization layers that get another c; none: all of them."
    )
    keep_gain: bool = Field(True, description="Keep the gain of the median channel.")
    reestimate: bool = Field(
        False,
        description="Estimate the statistics of all BN layers again, from the front to the back: those of each layer "
        "with the changed layers before it. m is then of these statistics.",
    )
    finetune: FineTuning | None = Field(None, description="Train it afterwards.")

    @property
    def changes_c(self) -> bool:
        """Return if a layer gets another c."""
        return self.relative_c > 0 or self.c is not None

    @model_validator(mode="after")
    def _one_c(self) -> Mend:
        reject_if(
            (self.c is not None and self.relative_c > 0, "c and relative_c are two ways to say one thing: give one"),
            (bool(self.layers) and not self.changes_c, "layers need a c or relative_c that they get"),
        )
        return self


class CellMend(Mend):
    """What is changed of the model of a cell."""

    retrain: bool = Field(
        False, description="The changed c is that of another training, from the initialization of the model that has m."
    )

    @model_validator(mode="after")
    def _training_anew_is_all(self) -> CellMend:
        others = self.keep_gain or self.reestimate or self.finetune
        message = "retrain: gains and statistics are those of the training: expected keep_gain false and c alone"
        reject_if((self.retrain and (others or not self.changes_c), message))
        return self
