"""Cross-validation: the pictures cut into parts, each of which validates once."""

import logging
from collections import defaultdict
from dataclasses import replace
from heapq import heapify, heapreplace

import numpy as np

from plumage.data.groups import largest_first, numbered
from plumage.data.samples import Samples, some
from plumage.data.split import drawn_by_class
from plumage.errors import UserError

log = logging.getLogger("plumage")


def pooled(samples: Samples) -> Samples:
    """Return ``samples`` without the split that their source gave them, which is told. What tests goes on to test."""
    if samples.split is None:
        return samples
    test = samples.split == "test"
    log.info(f"{samples.root}: --fold: what trains and what validates there is put together, and cut anew")
    return replace(samples, split=np.where(test, "test", "").astype("U5") if test.any() else None)


def check_enough(samples: Samples, fold: tuple[int, int]) -> None:
    """Raise UserError, before any picture is decoded, where there are fewer than the n parts of ``fold`` (k, n)."""
    undrawn = np.flatnonzero(samples.undrawn)
    check_parts(fold, undrawn if samples.groups is None else numbered(samples.groups[undrawn]))


def check_parts(fold: tuple[int, int], groups: np.ndarray) -> None:
    if (most := len(np.unique(groups))) < fold[1]:
        what = "pictures" if most == len(groups) else "pictures or groups of them that stay together"
        raise UserError(f"--fold {fold[0]}/{fold[1]}: there are {most} {what}; cut them into at most as many parts")


def fold_split(labels: np.ndarray, groups: np.ndarray, fold: tuple[int, int], seed: int) -> np.ndarray:
    """Return (n,) "train" or "val": of ``fold`` (k, n) the k-th of the n parts validates. UserError for too many."""
    check_parts(fold, groups)
    return np.where(draw_parts(labels, groups, fold[1], seed) == fold[0] - 1, "val", "train")


def draw_parts(labels: np.ndarray, groups: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """Return (n,) int64, the part from 0 of each of (n,) int64 labels: about as many of each class in all of them.

    Each group, (n,) int64, is in one part. Groups of several are placed first, the largest first, each where there is
    least of its classes; then what is alone, in the order of ``stratified_split``, where there is least of its class.
    Of equal parts it is the one with the fewest pictures: so none stays empty, if there are as many groups.
    """
    part, sizes = np.full(len(labels), -1), [0] * parts
    placed = place_groups(labels, groups, part, sizes, seed)
    for drawn in drawn_by_class(labels, seed):
        there = placed.get(int(labels[drawn[0]]), [0] * parts)
        fewest = list(zip(there, sizes, range(parts), strict=True))
        heapify(fewest)
        for row in drawn[part[drawn] < 0].tolist():
            count, size, chosen = fewest[0]
            heapreplace(fewest, (count + 1, size + 1, chosen))
            part[row] = chosen
            sizes[chosen] += 1
    return part


def place_groups(
    labels: np.ndarray, groups: np.ndarray, part: np.ndarray, sizes: list[int], seed: int
) -> dict[int, list[int]]:
    """Put each group of several pictures into a part, noted in ``part``, (n,) int64, and ``sizes``, by part.

    Returns, of each label that such groups have, how many are in each part.
    """
    _, number, counts = np.unique(groups, return_inverse=True, return_counts=True)
    together = np.flatnonzero(counts[number] > 1)
    totals, parts = np.bincount(labels).tolist(), range(len(sizes))
    placed: defaultdict[int, list[int]] = defaultdict(lambda: [0 for _ in parts])
    order = together[np.argsort(number[together], kind="stable")]
    several = counts[counts > 1]
    members = np.split(order, np.cumsum(several)[:-1])
    for group in largest_first(several, labels, seed) if len(several) else ():
        inside = [each.tolist() for each in np.unique(labels[members[group]], return_counts=True)]
        there = [(placed[label], count / totals[label] ** 2) for label, count in zip(*inside, strict=True)]
        costs = (sum(have[each] * weight for have, weight in there) for each in parts)
        *_, chosen = min(zip(costs, sizes, parts, strict=True))
        part[members[group]] = chosen
        sizes[chosen] += len(members[group])
        for label, count in zip(*inside, strict=True):
            placed[label][chosen] += count
    return placed


def tell_fold(samples: Samples, split: np.ndarray, fold: tuple[int, int]) -> None:
    """Tell of the classes that a fold's split, (n,), has on one side alone. UserError where but one class trains."""
    where = f"{samples.root}: --fold {fold[0]}/{fold[1]}"
    counts = {
        side: np.bincount(samples.labels[split == side], minlength=len(samples.classes)) for side in ("train", "val")
    }
    names = {side: [samples.classes[label] for label in np.flatnonzero(each)] for side, each in counts.items()}
    if len(names["train"]) < 2:
        raise UserError(
            f"{where}: leaves {some(names['train']) or 'nothing'} alone to train on; give more parts, or smaller groups"
        )
    share, asked = float(np.mean(split == "val")), 1 / fold[1]
    if abs(share - asked) * len(split) >= 1:
        log.info(
            f"{where}: groups stay together, so that {share:.1%} of the pictures validate, of {asked:.1%} asked for"
        )
    there = {side: set(each) for side, each in names.items()}
    if never := [name for name in names["train"] if name not in there["val"]]:
        log.warning(
            f"{where}: nothing validates {some(never)}: there are fewer pictures, or groups of them, than parts"
        )
    if unlearnt := [name for name in names["val"] if name not in there["train"]]:
        log.warning(f"{where}: nothing trains {some(unlearnt)}, since all of its pictures stay together")
