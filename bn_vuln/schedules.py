"""Learning-rate schedules: the rate of an epoch."""

from __future__ import annotations

from bn_vuln.config import StepSchedule, Train


def learning_rate(train: Train, epoch: int) -> float:
    """The learning rate of `epoch` (from 0)."""
    if isinstance(train.schedule, StepSchedule):
        drops = sum(epoch >= boundary for boundary in train.schedule.epochs)
        return train.lr * train.schedule.factor**drops
    return train.lr
