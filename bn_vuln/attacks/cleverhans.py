"""Projected gradient descent of CleverHans 4, an independent implementation (`--backend cleverhans`)."""

from __future__ import annotations

import numpy as np

from bn_vuln.attacks.threat_model import ThreatModel
from bn_vuln.runtime import backend
from bn_vuln.typing import Predict, Tensor


def attack(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    *,
    threat_model: ThreatModel,
    steps: int,
    step_size: float,
    random_start: bool = False,
    targeted: bool = False,
) -> Tensor:
    """Run CleverHans' projected gradient descent.

    CleverHans knows one eps for all channels, so it works on x / scale. Its random start is TensorFlow's global
    generator. It has neither restarts, nor a best iterate, nor steps larger than eps (configs refuse them). Differences
    that remain: L2 gradients of a norm below 1e-6 are not scaled to unit length, and with ord 2 and a box it clips to
    the box between step and projection too.

    Args:
        predict: pixels [n, height, width, channels] -> logits [n, classes], differentiable.
        x: clean images, float [n, height, width, channels], in pixels.
        y: int [n], the true labels, or the targets of a targeted attack.
        threat_model: norm, eps, scale and box.
        steps: number of gradient steps.
        step_size: length of a step, in units of the scale.
        random_start: start at a random point.
        targeted: y are targets.

    Returns:
        Adversarial images, of the shape and dtype of x.
    """
    from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

    tf = backend.tensorflow()
    scale = tf.cast(threat_model.scale, x.dtype)
    unbounded = np.isinf(threat_model.low).all() and np.isinf(threat_model.high).all()
    point = projected_gradient_descent(
        lambda z: predict(z * scale),
        x / scale,
        # Its L2 clip divides a Python float by a tensor: both must have the images' dtype.
        eps=threat_model.eps,
        eps_iter=step_size,
        nb_iter=steps,
        norm=np.inf if threat_model.ord == "inf" else 2,
        clip_min=None if unbounded else tf.cast(threat_model.low, x.dtype) / scale,
        clip_max=None if unbounded else tf.cast(threat_model.high, x.dtype) / scale,
        y=y,
        targeted=targeted,
        rand_init=1.0 if random_start else None,
        sanity_checks=False,
    )
    return point * scale
