"""Adversarial training: adversarial examples of the model as it is at each step (Madry et al. 2018).

The attack uses the model in inference mode, batch norm with its moving statistics, as later attacks do;
only the update that follows normalizes by the batch. Pang et al. 2021 ("Bag of tricks for adversarial training")
compare both modes and find this one about as robust and more accurate on clean images. In the first steps the moving
statistics are still those of initialization and the examples weaker; with a momentum of .9 these weigh 1% after 44
steps.
"""

from __future__ import annotations

from collections.abc import Callable

from bn_vuln.attacks import ThreatModel
from bn_vuln.attacks.active_set import last_iterate
from bn_vuln.attacks.pgd import PGD
from bn_vuln.config import Adversarial, Cell
from bn_vuln.data import units
from bn_vuln.data.info import DatasetInfo
from bn_vuln.runtime import backend, ops, random_streams
from bn_vuln.typing import KerasModel, Optimizer, Tensor

InnerAttack = Callable[[Tensor, Tensor], Tensor]  # (pixels [n, h, w, c], labels int32 [n]) -> adversarial pixels


def inner_attack(
    cell: Cell, options: Adversarial, model: KerasModel, optimizer: Optimizer, info: DatasetInfo, replicas: int
) -> InnerAttack:
    """Return a function that attacks this replica's share of the step's batch.

    Random starts depend on the cell's seed, the number of updates so far (which a checkpoint restores) and the place in
    the global batch: the same in both arms of a pair, on any number of replicas, and in a training that was resumed.
    """
    low, high = units.bounds(options.box, info)
    threat_model = ThreatModel(options.ord, options.eps, units.channel_scale(options.unit, info), low, high)
    seed = backend.derived_seed(cell.seed, random_streams.ADVERSARIAL_START, 0, 1)
    attack = PGD(
        lambda point: model(point, training=False),
        threat_model,
        options.steps,
        options.step_size,
        options.random_start,
        seed=seed,
    )

    def run(x: Tensor, y: Tensor) -> Tensor:
        share = cell.train.batch_size // replicas
        updates = ops.cast(optimizer.iterations, "int32")
        index = updates * cell.train.batch_size + ops.arange(share, dtype="int32")
        if replicas > 1:
            context = backend.tensorflow().distribute.get_replica_context()
            index += context.replica_id_in_sync_group * share
        return last_iterate(attack, x, y, eps=options.eps, index=index)

    return run
