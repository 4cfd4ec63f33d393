"""Training: one loop that runs many steps in one compiled call, with the data set on the device.

The order of the examples derives from (seed, epoch), so the arms of a pair see the same batches. The last,
smaller batch of an epoch is dropped (BN's statistics of a handful of examples would differ in kind).
"""

from bn_vuln.training.loop import TrainingLoop
from bn_vuln.training.optimizers import decay_terms
from bn_vuln.training.result import TrainingResult, cell_id
from bn_vuln.training.run import check_folder, choose_distribution, load_examples, reject_ineffective, settled, train

__all__ = [
    "TrainingLoop",
    "TrainingResult",
    "cell_id",
    "check_folder",
    "choose_distribution",
    "decay_terms",
    "load_examples",
    "reject_ineffective",
    "settled",
    "train",
]
