"""Learning-rate schedules: the rate of every step."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bn_vuln.config import CosineSchedule, StepSchedule, Train


def learning_rates(train: Train, epoch: int, steps: int) -> NDArray[np.float32]:
    """Return the learning rate of each step of an epoch (from 0), float32 [steps]."""
    return np.asarray([_rate(train, epoch, i / steps, (i + 1) / steps) for i in range(steps)], np.float32)


def _rate(train: Train, epoch: int, begun: float, done: float) -> float:
    """The rate of a step from the share `begun` of the epoch to the share `done`."""
    if epoch + begun < train.warmup:
        return train.lr * min(1.0, (epoch + done) / train.warmup)
    if isinstance(train.schedule, StepSchedule):
        return train.lr * train.schedule.factor ** sum(epoch >= boundary for boundary in train.schedule.epochs)
    if isinstance(train.schedule, CosineSchedule):
        passed = (epoch + begun - train.warmup) / (train.epochs - train.warmup)
        final = train.schedule.final
        return train.lr * (final + (1 - final) * (1 + math.cos(math.pi * passed)) / 2)
    return train.lr
