"""Which pictures of a batch are whose, where several processes share the work."""

from typing import NamedTuple

import numpy as np


class Share(NamedTuple):
    """One process's part of a batch of ``whole`` pictures: their places in it, (m,) int64."""

    places: np.ndarray
    whole: int


def share_of(pictures: int, rank: int, processes: int, after_neighbour: bool = False) -> Share:
    """The share of process ``rank`` of a batch: neighbouring places, as many as others have, or one more.

    Each has two or none, since BatchNorm cannot take one: of a small batch, the last processes have none.
    after_neighbour: where it is not the whole batch, begin with the place before it, which mixup mixes the first with.
    """
    busy = max(min(processes, pictures // 2), 1)
    start, end = (pictures * min(number, busy) // busy for number in (rank, rank + 1))
    led = after_neighbour and 0 < end - start < pictures
    return Share(np.arange(start - led, end) % pictures, pictures)
