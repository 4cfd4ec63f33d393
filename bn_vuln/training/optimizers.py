"""Optimizers, and weight decay apart from them."""

from __future__ import annotations

from bn_vuln.config import Cell, Fixup
from bn_vuln.typing import KerasModel, Optimizer, Variable

ADAM_EPSILON = 1e-8  # PyTorch's, and the papers'; Keras' default is 1e-7


def make(cell: Cell, model: KerasModel) -> Optimizer:
    """Return the built Keras optimizer of a cell; its learning rate is set step by step."""
    import keras

    train, variables = cell.train, model.trainable_variables
    if train.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(train.lr, momentum=train.momentum, nesterov=train.nesterov)
    else:
        kind = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}[train.optimizer]
        decoupled = {"weight_decay": cell.weight_decay} if train.optimizer == "adamw" else {}
        beta_1, beta_2 = train.betas
        optimizer = kind(train.lr, beta_1=beta_1, beta_2=beta_2, epsilon=ADAM_EPSILON, **decoupled)
        if decoupled:
            optimizer.exclude_from_weight_decay(var_list=[v for v in variables if not _decays(cell, v)])
    optimizer.build(variables)
    built: Optimizer = optimizer
    return built


def decay_terms(cell: Cell, model: KerasModel) -> list[float]:
    """Return the weight decay of each trainable variable.

    It is the lambda whose lambda w is added to the gradient, a penalty of lambda/2 ||w||^2; zero for adamw, which
    decays by itself.
    """
    weight_decay = 0.0 if cell.train.optimizer == "adamw" else cell.weight_decay
    return [weight_decay if _decays(cell, variable) else 0.0 for variable in model.trainable_variables]


def rate_factors(cell: Cell, model: KerasModel) -> list[float]:
    """Return the factor of each trainable variable's gradient.

    With sgd and momentum that is its share of the learning rate: Fixup's biases and multipliers learn at a tenth of it
    (Zhang et al. 2019, section 4).
    """
    factor = cell.normalization.lr_factor if isinstance(cell.normalization, Fixup) else 1.0
    return [1.0 if variable.name == "kernel" else factor for variable in model.trainable_variables]


def _decays(cell: Cell, variable: Variable) -> bool:
    """True for variables with weight decay: matrices and filters, with `all` biases, gamma and beta too."""
    return cell.decay_on == "all" or variable.name.endswith("kernel")  # `pointwise_kernel`
