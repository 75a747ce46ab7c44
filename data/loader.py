"""Batches of stored pictures, prepared by a thread ahead of need. Their order is a function of (seed, epoch)."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import count
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from plumage.data.ahead import map_ahead
from plumage.data.feed import Reader
from plumage.data.seeding import Purpose, generator

AHEAD = 2  # batches in preparation while one is being computed


class Pictures(NamedTuple):
    """What batches are made of, and which process of how many they are for.

    read: what data.feed.reader returns. rows, in the store, and labels: (n,) int64. batch_size: of all processes.
    """

    read: Reader
    rows: np.ndarray
    labels: np.ndarray
    batch_size: int
    rank: int = 0
    world_size: int = 1


class Shard(NamedTuple):
    """One process's pictures of a batch of ``whole``: their places in the batch, (m,) int64."""

    places: np.ndarray
    whole: int


class Batch(NamedTuple):
    """iteration: 0-based, over the whole training. images: (b, side, side, 3) uint8. labels: (b,) int64, on the CPU.

    shard: which pictures of the batch these are, where several processes share it.
    """

    iteration: int
    images: Tensor
    labels: Tensor
    shard: Shard


def shard_of(pictures: int, rank: int, world_size: int, after_neighbour: bool = False) -> Shard:
    """Return what process ``rank`` computes of a batch: consecutive places, as many as the others have, or one more.

    A process has at least two pictures, for BatchNorm, or none: of a small batch, the last processes have none.
    after_neighbour: begin one place earlier, with the picture that mixup mixes the first with; a whole batch has it.
    """
    busy = max(min(world_size, pictures // 2), 1)
    start, end = (pictures * min(process, busy) // busy for process in (rank, rank + 1))
    earlier = after_neighbour and 0 < end - start < pictures
    return Shard(np.arange(start - earlier, end) % pictures, pictures)


def epoch_length(pictures: int, batch_size: int) -> int:
    """Count an epoch's batches. The last may be partial; a single picture, which BatchNorm cannot take, is left out."""
    whole, rest = divmod(pictures, batch_size)
    return whole + (rest > 1)


def epoch_order(labels: np.ndarray, seed: int, epoch: int, balance: float = 0.0) -> np.ndarray:
    """Return (n,) int64: in which order 0-based ``epoch`` shows the pictures of ``labels``, (n,) int64.

    balance: P of drawing a class with n_c pictures in proportion to n_c^(1 − P). Each picture is due e times, the same
    for all of a class, and is shown e times rounded up or down: along the running sum of e, at each whole number.
    """
    rng = generator(seed, Purpose.ORDER, epoch)
    order = rng.permutation(len(labels))
    if not balance:
        return order
    order = order[np.argsort(labels[order], kind="stable")]
    due = np.bincount(labels)[labels[order]] ** -float(balance)
    ends = np.floor(due.cumsum() * len(labels) / due.sum() + rng.random())
    ends[-1] = len(labels)  # which rounding may have missed
    return rng.permutation(order.repeat(np.diff(ends, prepend=0).astype(np.int64)))


def train_batches(
    pictures: Pictures, seed: int, start: int = 0, with_neighbour: bool = False, balance: float = 0.0
) -> Iterator[Batch]:
    """Yield training batches from iteration ``start`` on, without end; those before it cost nothing.

    with_neighbour: begin each shard with the picture before it, which mixup needs. balance: see epoch_order.
    """
    per_epoch = epoch_length(len(pictures.rows), pictures.batch_size)
    order = lru_cache(maxsize=1)(partial(epoch_order, pictures.labels, seed, balance=balance))
    picks = ((iteration, order(iteration // per_epoch), iteration % per_epoch) for iteration in count(start))
    return _load(pictures, picks, with_neighbour)


def eval_batches(pictures: Pictures) -> Iterator[Batch]:
    """Yield every picture once, in the order of ``rows``. A process may have no picture of a batch."""
    order = np.arange(len(pictures.rows))
    picks = ((index, order, index) for index in range(ceil(len(order) / pictures.batch_size)))
    return _load(pictures, picks)


def _load(
    pictures: Pictures, picks: Iterable[tuple[int, np.ndarray, int]], with_neighbour: bool = False
) -> Iterator[Batch]:
    """Read the process's shard of each batch. picks: its iteration, the epoch's order, its index in the epoch."""

    def load(pick: tuple[int, np.ndarray, int]) -> Batch:
        iteration, order, index = pick
        batch = order[index * pictures.batch_size : (index + 1) * pictures.batch_size]
        shard = shard_of(len(batch), pictures.rank, pictures.world_size, with_neighbour)
        members = batch[shard.places]
        images, labels = pictures.read(pictures.rows[members]), torch.from_numpy(pictures.labels[members])
        return Batch(iteration, images, labels, shard)

    pool = ThreadPoolExecutor(1)
    try:
        yield from map_ahead(pool, load, picks, AHEAD)
    finally:
        # No waiting: a stream that is left early ends here in the garbage collector, which may run in any thread,
        # also in one that is just being started, and a join there would wait for ever.
        pool.shutdown(wait=False, cancel_futures=True)
