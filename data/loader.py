"""Batches of stored pictures, prepared by a thread ahead of need. Their order is a function of (seed, epoch)."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from plumage.data.feed import Reader
from plumage.data.seeding import Purpose, generator
from plumage.data.share import Share, share_of
from plumage.data.store import map_ahead

AHEAD = 2  # batches in preparation while one is being computed
Part = tuple[int, int]  # (rank, processes): which process's share of each batch, of how many


class Batch(NamedTuple):
    """iteration: 0-based, over the whole training. images: (b, side, side, 3) uint8. labels: (b,) int64, on the CPU.

    share: which pictures of the batch these are, where several processes share it.
    """

    iteration: int
    images: Tensor
    labels: Tensor
    share: Share


def epoch_length(pictures: int, batch_size: int) -> int:
    """Batches per epoch. The last may be partial, but a single picture, which BatchNorm cannot take, is left out."""
    whole, rest = divmod(pictures, batch_size)
    return whole + (rest > 1)


def epoch_order(pictures: int, seed: int, epoch: int) -> np.ndarray:
    """(pictures,) int64: the order in which 0-based ``epoch`` goes through the training set."""
    return generator(seed, Purpose.ORDER, epoch).permutation(pictures)


def train_batches(
    read: Reader,
    rows: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    seed: int,
    start: int = 0,
    part: Part = (0, 1),
    with_neighbour: bool = False,
) -> Iterator[Batch]:
    """The endless stream of training batches from iteration ``start`` on; what lies before it costs nothing.

    read: what data.feed.reader returns. rows: (n,) int64, the training pictures' rows in the store. labels: (n,) int64.
    part, with_neighbour: whose share of each batch, and whether mixup will need the picture before it.
    """
    per_epoch = epoch_length(len(rows), batch_size)

    def picks() -> Iterator[tuple[int, np.ndarray]]:
        for epoch in count(start // per_epoch):
            order = epoch_order(len(rows), seed, epoch)
            for index in range(max(start - epoch * per_epoch, 0), per_epoch):
                yield epoch * per_epoch + index, order[index * batch_size : (index + 1) * batch_size]

    return _load(read, rows, labels, picks(), part, with_neighbour)


def eval_batches(
    read: Reader, rows: np.ndarray, labels: np.ndarray, batch_size: int, part: Part = (0, 1)
) -> Iterator[Batch]:
    """Every picture once, in the order of ``rows``; of several processes, some may have no picture of a batch."""
    starts = range(0, len(rows), batch_size)
    picks = ((number, np.arange(len(rows))[start : start + batch_size]) for number, start in enumerate(starts))
    return _load(read, rows, labels, picks, part)


def _load(
    read: Reader,
    rows: np.ndarray,
    labels: np.ndarray,
    picks: Iterable[tuple[int, np.ndarray]],
    part: Part,
    with_neighbour: bool = False,
) -> Iterator[Batch]:
    def load(pick: tuple[int, np.ndarray]) -> Batch:
        iteration, batch = pick
        share = share_of(len(batch), *part, with_neighbour)
        members = batch[share.places]
        return Batch(iteration, read(rows[members]), torch.from_numpy(labels[members]), share)

    pool = ThreadPoolExecutor(1)
    try:
        yield from map_ahead(pool, load, picks, AHEAD)
    finally:
        # No waiting: a stream that is left early ends here in the garbage collector, which may run in any thread,
        # also in one that is just being started, and a join there would wait for ever.
        pool.shutdown(wait=False, cancel_futures=True)
