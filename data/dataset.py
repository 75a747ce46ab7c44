"""The way from ``--data`` to pictures that can be trained on: list, decode, leave out what cannot be read, split."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from plumage.data.copies import name_pairs, tell_copies, tell_twins
from plumage.data.decode import Square
from plumage.data.depth import LEARN, count_beyond, tell_beyond, tell_levels
from plumage.data.duplicates import CROWD, connected, in_crowds, linked, near_duplicates
from plumage.data.folds import fold_split, tell_fold
from plumage.data.groups import group_split, numbered, tell_groups, tell_parted
from plumage.data.samples import Samples, some
from plumage.data.split import stratified_split
from plumage.data.store import Cache, Store, open_store, read_skipped
from plumage.errors import UserError

log = logging.getLogger("plumage")


@dataclass(frozen=True)
class Dataset:
    """Readable ``samples``; the pixels of sample i are row ``rows[i]`` of ``store``."""

    samples: Samples
    store: Store
    rows: np.ndarray

    def indices(self, split: str) -> np.ndarray:
        """Return which samples, (n,) int64, belong to "train", "val", "test" or "all"."""
        return np.arange(len(self.samples)) if split == "all" else np.flatnonzero(self.samples.split == split)

    def pictures(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows in the store, and the labels, of a split: both (n,) int64."""
        indices = self.indices(split)
        return self.rows[indices], self.samples.labels[indices]


def prepare(
    samples: Samples,
    square: Square,
    held_out: float | tuple[int, int],
    seed: int,
    cache: Cache,
    min_pictures: int = 1,
    group_duplicates: bool = True,
) -> Dataset:
    """Decode ``samples``, and split them by seed if their source does not. Raises UserError when they are too few.

    held_out: what validates: a fraction of each class, or a fold (k, n), the k-th of n parts of all pictures.
    Classes with fewer readable pictures than ``min_pictures`` are left out. Near-duplicates stay on one side of the
    split, if ``group_duplicates``, or are named where it is given. The levels of pictures of more than 8 bits are
    learnt from them all; ``store.square`` has them.
    """
    dataset = read_all(samples, square._replace(levels=LEARN), cache, each_class=min_pictures == 1)
    tell_levels(f"{samples.root}: ", dataset.samples.paths, dataset.store.extremes, dataset.store.square.levels)
    samples, rows = choose_classes(dataset.samples, min_pictures, "readable ")
    root, split = samples.root, samples.split
    dataset = Dataset(samples, dataset.store, rows)
    twins = find_twins(dataset) if group_duplicates else np.empty((0, 2), np.int64)
    if split is None or samples.undrawn.any():
        split = draw_split(samples, twins, held_out, seed)
    if samples.groups is not None:
        tell_parted(samples, split)
    train, val = (np.sum(split == side) for side in ("train", "val"))
    if train < 2 or val < 1:
        raise UserError(f"{root}: {train} readable training and {val} validation pictures are too few; add some")
    digests = dataset.store.digests[rows]
    tell_copies(samples, split, digests)
    tell_twins(samples, split, digests, twins)
    return replace(dataset, samples=replace(samples, split=split))


def find_twins(dataset: Dataset, tell: bool = True) -> np.ndarray:
    """Return (m, 2) int64, the samples that look nearly the same, without crowds of such; ``tell`` of these."""
    samples, store, rows = dataset.samples, dataset.store, dataset.rows

    def read(samples: np.ndarray) -> np.ndarray:
        return store.read(rows[samples])

    digests = store.digests[rows]
    twins = near_duplicates(store.hashes[rows], digests, read, store.workers)
    # What is the same pixel for pixel stays together, however many there are.
    crowd = in_crowds(len(samples), twins) & (digests[twins[:, 0]] != digests[twins[:, 1]]).any(axis=1)
    if tell and crowd.any():
        log.warning(
            f"{samples.root}: {len(np.unique(twins[crowd]))} pictures look nearly the same as others in groups of more "
            f"than {CROWD}, which are of one kind rather than of one photo, so that they may part: "
            f"{name_pairs(samples, twins[crowd])}; --group-by keeps together those of one video or object"
        )
    return twins[~crowd]


def draw_split(samples: Samples, twins: np.ndarray, held_out: float | tuple[int, int], seed: int) -> np.ndarray:
    """Draw (n,) "train" or "val" by the seed, for each class, with groups, and ``twins``, (m, 2) int64, together.

    What has a side already keeps it. UserError where all must train.
    """
    if samples.split is not None:
        rows = np.flatnonzero(samples.undrawn)
        place = np.full(len(samples), -1)
        place[rows] = np.arange(len(rows))
        split, within = samples.split.copy(), place[twins]
        undrawn = replace(samples.select(rows), split=None)
        split[rows] = draw_split(undrawn, within[(within >= 0).all(axis=1)], held_out, seed)
        return split
    groups = np.arange(len(samples)) if samples.groups is None else numbered(samples.groups)
    if together := samples.groups is not None or len(twins) > 0:
        groups = connected(len(samples), np.concatenate([twins, linked(groups)]))
    if isinstance(held_out, tuple):
        split = fold_split(samples.labels, groups, held_out, seed)
        tell_fold(samples, split, held_out)
        return split
    if not together:
        return stratified_split(samples.labels, held_out, seed)
    split = group_split(samples.labels, groups, held_out, seed)
    if "val" not in split:
        problem = "each class is in one group, so that none is left to validate with"
        way_out = "give smaller groups, by --group-by or in the file of --labels"
        if len(twins):
            way_out += f"; {some([samples.paths[row] for row in twins[0]])} look nearly the same: --no-group-duplicates"
        raise UserError(f"{samples.root}: {problem}; {way_out}")
    tell_groups(samples, split, held_out)
    return split


def choose_classes(samples: Samples, least: int, which: str = "") -> tuple[Samples, np.ndarray]:
    """Leave out classes of fewer than ``least`` pictures, by name. Return the others' samples, and their rows, (m,).

    which: the kind of pictures, for messages. Raises UserError where too few classes stay, where but one
    trains, or where one that stays cannot be on both sides of a split that is yet to be drawn.
    """
    counts = np.bincount(samples.labels, minlength=len(samples.classes))
    kept = counts >= least
    rows = np.flatnonzero(kept[samples.labels])
    few, left = ([name for name, stays in zip(samples.classes, kept, strict=True) if stays == one] for one in (0, 1))
    if few:
        what = f"--min-pictures {least}: {len(few)} classes of {samples.root} have fewer {which}pictures"
        if len(left) < 2:
            raise UserError(f"{what}, which leaves {some(left) or 'none'}, and two are needed; give a lower number")
        log.warning(f"{what}, and are left out: {some(few)}")
        numbers = (np.cumsum(kept) - 1)[samples.labels[rows]]
        samples = replace(samples.select(rows), labels=numbers, classes=left)
    if (undrawn := samples.undrawn).any():
        alone = np.flatnonzero(np.bincount(samples.labels[undrawn]) == 1)
        _refuse(samples, alone, f"fewer than two {which}pictures (one to train on, one to validate with)")
    elif len(learnt := np.unique(samples.labels[samples.split == "train"])) < 2:
        names = some([samples.classes[label] for label in learnt]) or "none"
        raise UserError(f"{samples.root}: {which}training pictures are of {names} alone: add those of another class")
    return samples, rows


def recall(samples: Samples, square: Square, skipped: Path, cache: Cache) -> Dataset:
    """Open what ``prepare`` made for a run, by the ``samples`` of its split.csv and by its skipped.csv."""
    return reopen(samples, square, [path for path, _ in read_skipped(skipped)], cache)


def reopen(samples: Samples, square: Square, unreadable: list[str], cache: Cache) -> Dataset:
    """Open ``samples`` that were readable; ``unreadable``: files that were there beside them, and were not."""
    # The unreadable files belong to the list by which the store is known.
    paths = sorted([*samples.paths, *unreadable])
    store = open_store(samples.root, paths, square, cache)
    row_of = {paths[number]: row for row, number in enumerate(store.readable)}
    if lost := [path for path in samples.paths if path not in row_of]:
        raise UserError(f"{samples.root}: {len(lost)} pictures of the run cannot be read any more: {some(lost, 3)}")
    return Dataset(samples, store, np.array([row_of[path] for path in samples.paths]))


def read_all(samples: Samples, square: Square, cache: Cache, each_class: bool = True) -> Dataset:
    """Decode ``samples``, and leave out what cannot be read. Raises UserError when that is most of them.

    each_class: or all of a class.
    """
    store = open_store(samples.root, samples.paths, square, cache)
    if store.skipped:
        reasons = [f"{path} ({reason})" for path, reason in store.skipped]
        verdict = f"{samples.root}: {len(reasons)} of {len(samples)} pictures cannot be read"
        if 2 * len(reasons) > len(samples):
            raise UserError(f"{verdict}: {some(reasons, 1)}")
        log.warning(f"{verdict} and are left out: {some(reasons, 3)}")
    levels, deep = store.square.levels, store.extremes[~np.isnan(store.extremes[:, 0])]
    tell_beyond(f"{samples.root}: ", count_beyond(deep.tolist(), levels), levels)
    readable = samples.select(store.readable)
    if each_class:
        _refuse(samples, np.setdiff1d(samples.labels, readable.labels), "no readable picture")
    return Dataset(readable, store, np.arange(len(readable)))


def _refuse(samples: Samples, labels: np.ndarray, problem: str) -> None:
    """Raise UserError when there are any ``labels``, (m,) int64, of classes with too few pictures."""
    if names := [samples.classes[label] for label in labels]:
        way_out = "add pictures, or leave such classes out, as train --min-pictures 2 does"
        raise UserError(f"{samples.root}: {problem} of {some(names)}: {way_out}")
