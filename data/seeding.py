"""Every random draw is a function of (seed, purpose, index) and of nothing that ran before."""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a draw is for. The numbers are part of every run's result: append, never renumber."""

    SPLIT = 0
    ORDER = 1
    CROP = 2
    COLOUR = 3
    MIXUP = 4


def generator(seed: int, purpose: Purpose, index: int) -> np.random.Generator:
    """Return the independent stream of (seed, purpose, index); index: an epoch, an iteration or a label."""
    return np.random.default_rng([seed, purpose, index])
