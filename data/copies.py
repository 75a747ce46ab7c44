"""Pictures that are there more than once, pixel for pixel or nearly: who is told what."""

import logging

import numpy as np

from plumage.data.duplicates import connected
from plumage.data.samples import Samples, some

log = logging.getLogger("plumage")

Pair = tuple[int, int]


def first_alike(digests: np.ndarray) -> np.ndarray:
    """Return (n,) int64: of each row of (n, 16) uint8 digests, the first row with the same digest."""
    halves = np.ascontiguousarray(digests).view(np.uint64)  # which sort ten times faster than rows of bytes
    order = np.lexsort(halves.T)
    new = np.ones(len(order), bool)
    new[1:] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[new][np.cumsum(new) - 1]  # a sort in which what is alike keeps its order
    return first


def contradictions(first: np.ndarray, labels: np.ndarray) -> list[Pair]:
    """Return (first row, row) of each row whose label, (n,) int64, is another than that of its ``first_alike``."""
    rows = np.flatnonzero(labels != labels[first])
    return list(zip(first[rows].tolist(), rows.tolist(), strict=True))


def repeated(first: np.ndarray, labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> list[Pair]:
    """Return (row of ``before``, row) of each row of ``after`` that has the same pixels and the same label."""
    keys = first * (labels.max(initial=0) + 1) + labels
    values, where = np.unique(keys[before], return_index=True)
    rows = after[np.isin(keys[after], values)]
    return list(zip(before[where[np.searchsorted(values, keys[rows])]].tolist(), rows.tolist(), strict=True))


def tell_copies(samples: Samples, split: np.ndarray, digests: np.ndarray) -> None:
    """Tell of pictures that are there more than once: under two labels, on two sides of the split, or in training.

    split: (n,) "train", "val" or "test". digests: (n, 16) uint8.
    """
    first, labels = first_alike(digests), samples.labels
    copied = np.flatnonzero(np.bincount(first, minlength=len(first))[first] > 1)
    train, val, test = (copied[split[copied] == side] for side in ("train", "val", "test"))

    def say(level: int, what: str, pairs: list[Pair]) -> None:
        named = [f"{samples.paths[row]} = {samples.paths[other]}" for other, row in pairs]
        if named:
            log.log(level, f"{samples.root}: {len(named)} {what}: {some(named, 3)}")

    under = "pictures have contradictory labels: another picture is the same, pixel for pixel, and of another class"
    say(logging.WARNING, under, contradictions(first, labels))
    inflates = "pixel for pixel, which inflates accuracy"
    of_both = repeated(first, labels, train, val)
    say(logging.WARNING, f"validation pictures are also training pictures, {inflates}", of_both)
    of_test = repeated(first, labels, np.concatenate([train, val]), test)
    say(logging.WARNING, f"test pictures are also training or validation pictures, {inflates}", of_test)
    within = [pair for pair in repeated(first, labels, train, train) if pair[0] != pair[1]]
    say(logging.INFO, "training pictures are copies of others, pixel for pixel", within)


def tell_twins(samples: Samples, split: np.ndarray, digests: np.ndarray, twins: np.ndarray) -> None:
    """Tell of ``twins``, (m, 2) int64, that look nearly the same: under two labels, on two sides, or kept on one.

    split and digests: as for ``tell_copies``, which tells of those that are the same pixel for pixel.
    """
    one, other = twins.T
    near = (digests[one] != digests[other]).any(axis=1)
    at_odds = twins[near & (samples.labels[one] != samples.labels[other])]
    parted = twins[near & (split[one] != split[other])]
    for pairs, what in (
        (at_odds, "pairs of contradictory labels look nearly the same"),
        (parted, "pairs on different sides of the split look nearly the same, which makes accuracy untrue"),
    ):
        if len(pairs):
            log.warning(f"{samples.root}: {len(pairs)} {what}: {name_pairs(samples, pairs)}")
    if len(twins := twins[samples.undrawn[twins].all(axis=1)]):
        groups = np.unique(connected(len(samples), twins)[twins[:, 0]])
        log.info(
            f"{samples.root}: {len(np.unique(twins))} pictures in {len(groups)} groups look nearly the same, and stay "
            f"on one side of the split: {name_pairs(samples, twins)}; --no-group-duplicates lets them part"
        )


def name_pairs(samples: Samples, pairs: np.ndarray) -> str:
    """Join the paths of (m, 2) int64 pairs of samples for a message."""
    return some([f"{samples.paths[row]} ~ {samples.paths[twin]}" for row, twin in pairs.tolist()], 3)
