"""Pictures that must stay on one side of the split, as those of a patient, a burst or a video."""

import logging
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from plumage.data.samples import Samples, some
from plumage.data.seeding import Purpose, generator
from plumage.data.split import drawn_by_class, stratified_split, to_validate
from plumage.errors import UserError
from plumage.names import composed

log = logging.getLogger("plumage")


def group_by(samples: Samples, pattern: str) -> Samples:
    """Return ``samples`` in groups: pictures whose paths have the same text where ``pattern``'s first group matches.

    A picture whose path does not match is alone, its group is "". UserError where all are, or have groups already.
    """
    where = f"--group-by {pattern!r}"
    if samples.groups is not None:
        raise UserError(f"{where}: the file of --labels has a column of groups; leave out one of them")
    search = re.compile(composed(pattern)).search
    found = (search(composed(path)) for path in samples.paths)
    groups = np.array([(match and match[1]) or "" for match in found], object)
    alone = [path for path, group in zip(samples.paths, groups, strict=True) if not group]
    if len(alone) == len(samples):
        raise UserError(f"{where}: matches none of the paths below {samples.root}, as {some(alone, 3)}; give another")
    if alone:
        log.warning(f"{where}: {len(alone)} of {len(samples)} pictures do not match, and are alone: {some(alone, 3)}")
    return replace(samples, groups=groups)


def numbered(groups: np.ndarray) -> np.ndarray:
    """Return (n,) int64, a number for each of (n,) texts: of the same text the same, but "" has another each time."""
    number = {text: index for index, text in enumerate(dict.fromkeys(groups), len(groups))}
    return np.array([number[text] if text else index for index, text in enumerate(groups)], np.int64)


def group_split(labels: np.ndarray, groups: np.ndarray, val_fraction: float, seed: int) -> np.ndarray:
    """Draw (n,) "train" or "val" for (n,) int64 labels, with each group, (n,) int64, on one side.

    It is stratified as well as the groups allow. Groups of several are placed first; what is alone then makes up each
    class's fraction, in the order of ``stratified_split``, which this is where all are alone. Each class has pictures
    on both sides if its groups can be parted, and on the training side in any case.
    """
    split = stratified_split(labels, val_fraction, seed)
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if not (together := sizes[number] > 1).any():
        return split
    numbers, first, number = np.unique(number[together], return_index=True, return_inverse=True)
    placing = _Placing(labels, together, number, val_fraction)
    order = largest_first(sizes[numbers], labels, seed)
    placing.place_all(order, wish=(split[together][first] == "val").tolist())
    split[together] = np.where(np.array(placing.sides)[number], "val", "train")
    for drawn in drawn_by_class(labels, seed):
        alone, placed = drawn[~together[drawn]], drawn[together[drawn]]
        split[alone] = "train"
        split[alone[: max(to_validate(drawn, val_fraction) - int(np.sum(split[placed] == "val")), 0)]] = "val"
    return split


def largest_first(sizes: np.ndarray, labels: np.ndarray, seed: int) -> list[int]:
    """Return the order in which groups of these ``sizes``, (g,), are placed; labels: (n,), of the pictures.

    Those of about one size are in an order of the seed's: else the largest of all would be on one side for every seed.
    """
    random = generator(seed, Purpose.SPLIT, int(labels.max()) + 1).permutation(len(sizes))
    return [int(group) for group in np.lexsort((random, -np.floor(np.log2(sizes))))]


class _Placing:
    """Groups of several pictures on their way to a side: ``sides[g]`` tells whether group g validates.

    together: (n,) bool, which pictures are in such a group. number: (m,) int64, the group of each of these.
    """

    def __init__(self, labels: np.ndarray, together: np.ndarray, number: np.ndarray, val_fraction: float):
        self.totals, classes = np.bincount(labels).tolist(), labels.max() + 1
        self.alone = np.bincount(labels[~together], minlength=classes).tolist()
        self.fraction, self.sides = val_fraction, [False] * (number.max() + 1)
        self.groups: list[list[tuple[int, int]]] = [[] for _ in self.sides]  # of each its labels, and how many of each
        self.members: list[list[int]] = [[] for _ in self.totals]  # of each label its groups
        keys, counts = np.unique(number * classes + labels[together], return_counts=True)
        for group, label, count in zip(*(each.tolist() for each in (*np.divmod(keys, classes), counts)), strict=True):
            self.groups[group].append((label, count))
            self.members[label].append(group)
        self.placed, self.validating = [0] * classes, [0] * classes

    def place_all(self, order: list[int], wish: list[bool]) -> None:
        """Place each group where its classes come closest to their fraction; where both sides do, as ``wish`` says."""
        last = [label for label, alone in enumerate(self.alone) if not alone]  # which only their groups can part
        must_train = {self.members[label][0] for label in last if len(self.members[label]) == 1}
        for group in sorted(order, key=lambda group: group not in must_train):
            validating, training = self._off(group, True), self._off(group, False)
            side = wish[group] if validating == training else validating < training
            self._place(group, side and group not in must_train)
        for label in last:
            if not self.validating[label]:
                self._move_one(label, to=True, only_if=self._spares)
        for label in last:
            if self.validating[label] == self.totals[label]:
                self._move_one(label, to=False, only_if=lambda group: True)

    def _off(self, group: int, side: bool) -> float:
        """Return how far the group's classes would be from their fraction of what is placed, squared and summed.

        What is alone can make up for some of it.
        """
        total = 0.0
        for label, count in self.groups[group]:
            ahead = self.validating[label] + count * side - self.fraction * (self.placed[label] + count)
            alone = self.alone[label]
            beyond = max(ahead - self.fraction * alone, -(1 - self.fraction) * alone - ahead, 0)
            total += (beyond / self.totals[label]) ** 2
        return total

    def _place(self, group: int, side: bool) -> None:
        self.sides[group] = side
        for label, count in self.groups[group]:
            self.placed[label] += count
            self.validating[label] += count * side

    def _move_one(self, label: int, to: bool, only_if: Callable[[int], bool]) -> None:
        """Move that group of a class which then brings it closest to its fraction, if there is one."""
        most = self.fraction * self.totals[label]
        sizes = ((dict(self.groups[group])[label], group) for group in self.members[label] if only_if(group))
        if chosen := min(
            sizes, key=lambda each: abs(self.validating[label] + each[0] * (2 * to - 1) - most), default=None
        ):
            self.sides[chosen[1]] = to
            for other, count in self.groups[chosen[1]]:
                self.validating[other] += count * (2 * to - 1)

    def _spares(self, group: int) -> bool:
        """Return whether each class has training pictures left without this group."""
        return all(
            self.alone[label] or self.totals[label] - self.validating[label] > count
            for label, count in self.groups[group]
        )


def tell_groups(samples: Samples, split: np.ndarray, val_fraction: float) -> None:
    """Tell how far a split, (n,), that keeps groups together is from validating ``val_fraction`` of each class.

    Nothing is said where whole pictures could come no closer, and each class has some.
    """
    classes = int(samples.labels.max()) + 1
    totals, validating = (
        np.bincount(samples.labels[rows], minlength=classes) for rows in (slice(None), split == "val")
    )
    off = np.append(validating - val_fraction * totals, validating.sum() - val_fraction * len(split))
    if np.abs(off).max() < 1 and (validating > 0).all():
        return
    fractions = validating / totals
    worst = int(np.argmax(np.abs(fractions - val_fraction)))
    log.info(
        f"{samples.root}: groups stay together, so that {np.mean(split == 'val'):.1%} of the pictures validate, of "
        f"{val_fraction:.1%} asked for; furthest from it is {some(samples.classes[worst : worst + 1])} with "
        f"{fractions[worst]:.1%}"
    )
    if never := [samples.classes[label] for label in np.flatnonzero(fractions == 0)]:
        log.warning(
            f"{samples.root}: nothing validates {some(never)}: no group of such a class can be spared from training"
        )


def tell_parted(samples: Samples, split: np.ndarray) -> None:
    """Tell of the groups that a given split, (n,), has on two sides."""
    assert samples.groups is not None
    rows = np.flatnonzero(samples.groups != "")
    sides = dict[str, str]()
    parted = {
        group
        for group, side in zip(samples.groups[rows], split[rows], strict=True)
        if sides.setdefault(group, side) != side
    }
    if parted:
        what = f"{len(parted)} groups are on two sides of the given split, which inflates accuracy"
        log.warning(f"{samples.root}: {what}: {some(sorted(parted), 3)}")
