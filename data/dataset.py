"""The way from ``--data`` to pictures that can be trained on: list, decode, leave out what cannot be read, split."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from plumage.data.samples import Samples, some
from plumage.data.split import shared_pictures, stratified_split
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
        """Return which samples, (n,) int64, belong to "train", "val" or "all"."""
        return np.arange(len(self.samples)) if split == "all" else np.flatnonzero(self.samples.split == split)

    def pictures(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows in the store, and the labels, of a split: both (n,) int64."""
        indices = self.indices(split)
        return self.rows[indices], self.samples.labels[indices]


def prepare(samples: Samples, size: int, val_fraction: float, seed: int, cache: Cache) -> Dataset:
    """Decode ``samples``, and split them by seed if their source does not. Raises UserError when they are too few."""
    dataset = read_all(samples, size, cache)
    root, samples, split = samples.root, dataset.samples, dataset.samples.split
    if split is None:
        alone = np.flatnonzero(np.bincount(samples.labels) == 1)
        _refuse(samples, alone, "fewer than two readable pictures (one to train on, one to validate with)")
        split = stratified_split(samples.labels, val_fraction, seed)
    train, val = (np.sum(split == side) for side in ("train", "val"))
    if train < 2 or val < 1:
        raise UserError(f"{root}: {train} readable training and {val} validation pictures are too few; add some")
    if pairs := shared_pictures(dataset.store.digests, split):
        shared = [f"{samples.paths[val]} = {samples.paths[train]}" for train, val in pairs]
        log.warning(
            f"{root}: {len(shared)} validation pictures are also training pictures, pixel for pixel, "
            f"which inflates accuracy: {some(shared, 3)}"
        )
    return replace(dataset, samples=replace(samples, split=split))


def recall(samples: Samples, size: int, skipped: Path, cache: Cache) -> Dataset:
    """Open what ``prepare`` made for a run, by the ``samples`` of its split.csv and by its skipped.csv."""
    # The unreadable files belong to the list by which the store is known.
    paths = sorted([*samples.paths, *(path for path, _ in read_skipped(skipped))])
    store = open_store(samples.root, paths, size, cache)
    row_of = {paths[number]: row for row, number in enumerate(store.readable)}
    if lost := [path for path in samples.paths if path not in row_of]:
        raise UserError(f"{samples.root}: {len(lost)} pictures of the run cannot be read any more: {some(lost, 3)}")
    return Dataset(samples, store, np.array([row_of[path] for path in samples.paths]))


def read_all(samples: Samples, size: int, cache: Cache) -> Dataset:
    """Decode ``samples``, and leave out what cannot be read. Raises UserError when that is most, or all of a class."""
    store = open_store(samples.root, samples.paths, size, cache)
    if store.skipped:
        reasons = [f"{path} ({reason})" for path, reason in store.skipped]
        verdict = f"{samples.root}: {len(reasons)} of {len(samples)} pictures cannot be read"
        if 2 * len(reasons) > len(samples):
            raise UserError(f"{verdict}: {some(reasons, 1)}")
        log.warning(f"{verdict} and are left out: {some(reasons, 3)}")
    readable = samples.select(store.readable)
    _refuse(samples, np.setdiff1d(samples.labels, readable.labels), "no readable picture")
    return Dataset(readable, store, np.arange(len(readable)))


def _refuse(samples: Samples, labels: np.ndarray, problem: str) -> None:
    """Raise UserError when there are any ``labels``, (m,) int64, of classes with too few pictures."""
    if names := [samples.classes[label] for label in labels]:
        raise UserError(f"{samples.root}: {problem} of {some(names)}: add pictures, or take the class away")
