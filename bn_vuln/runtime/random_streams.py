"""Ids of the random streams of a training, which all derive from the cell's seed.

Each is the second part of a seed (cell seed, id, number, 1) or, for the order, (cell seed, id, epoch). Layers have
(cell seed, position, 0 or 1). NumPy ignores trailing zeros, so the last 1 keeps ids distinct from positions.
"""

ORDER = 1  # of the training examples
GAMMA = 2  # random initial gamma of BN
ADVERSARIAL_START = 3  # random starts of adversarial training
AUGMENTATION = 4  # crops and flips
