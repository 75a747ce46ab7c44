"""The way from ``--data`` to pictures that can be trained on: list, decode, leave out what cannot be read, split."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.sources import Samples, list_samples, locate, some
from data.split import read_split, shared_pictures, stratified_split
from data.store import Store, open_store, read_skipped
from errors import UserError

log = logging.getLogger("plumage")


@dataclass(frozen=True)
class Dataset:
    """Row i of ``store`` holds the pixels of sample i of ``samples``."""

    samples: Samples
    store: Store

    def rows(self, split: str) -> np.ndarray:
        """The rows, int64, of "train", "val" or "all"."""
        return np.arange(len(self.samples)) if split == "all" else np.flatnonzero(self.samples.split == split)


def prepare(
    data: str, size: int, val_fraction: float, seed: int, cache: Path, use_store: bool = True, workers: int | None = None
) -> Dataset:
    """The readable pictures of ``data``, split as the source says or else 8:2 by seed. Raises UserError if they will not do."""
    dataset = read_all(list_samples(locate(data, cache, workers)), size, cache, use_store, workers)
    samples = dataset.samples
    if samples.split is None:
        _refuse_classes_below(2, samples, "one to train on and one to validate with")
        samples = replace(samples, split=stratified_split(samples.labels, val_fraction, seed))
    for side in ("train", "val"):
        if np.sum(samples.split == side) < 2:
            raise UserError(f"--data {data}: fewer than two readable pictures in the {side} split; at least two are needed")
    _warn_of_shared_pictures(samples, dataset.store)
    return replace(dataset, samples=samples)


def recall(
    data: str, size: int, classes: list[str], split: Path, skipped: Path, cache: Path, use_store: bool = True, workers: int | None = None
) -> Dataset:
    """The dataset that ``prepare`` made for a run, from the run's split.csv and skipped.csv: files added since do not count."""
    samples = read_split(split, locate(data, cache, workers), classes)
    # The unreadable files belong to the key under which the store was built.
    paths = sorted([*samples.paths, *(path for path, _ in read_skipped(skipped))])
    store = open_store(samples.root, paths, size, cache if use_store else None, workers)
    readable = [paths[picture] for picture in store.readable]
    if lost := sorted(set(samples.paths) - set(readable)):
        raise UserError(f"{samples.root}: {len(lost)} pictures of the run cannot be read any more: {some(lost, 3)}")
    return Dataset(samples, store)


def read_all(samples: Samples, size: int, cache: Path, use_store: bool = True, workers: int | None = None) -> Dataset:
    """Decode ``samples`` and leave out what cannot be read: UserError if that is most of it, or all of a class."""
    store = open_store(samples.root, samples.paths, size, cache if use_store else None, workers)
    if store.skipped:
        reasons = [f"{path} ({reason})" for path, reason in store.skipped]
        log.warning(f"{len(reasons)} of {len(samples)} pictures cannot be read and are left out: {some(reasons, 3)}")
        if 2 * len(reasons) > len(samples):
            raise UserError(f"{samples.root}: {len(reasons)} of {len(samples)} pictures cannot be read: {some(reasons, 1)}")
    readable = samples.select(store.readable)
    _refuse_classes_below(1, readable, "readable ones")
    return Dataset(readable, store)


def _refuse_classes_below(least: int, samples: Samples, purpose: str) -> None:
    counts = np.bincount(samples.labels, minlength=len(samples.classes))
    if few := [samples.classes[label] for label in np.flatnonzero(counts < least)]:
        has = "no" if least == 1 else "one"
        raise UserError(
            f"{samples.root}: {has} picture of {some(few)}; every class needs {purpose}: add pictures, or take the class away"
        )


def _warn_of_shared_pictures(samples: Samples, store: Store) -> None:
    assert samples.split is not None
    if shared := shared_pictures(store.digests, samples.split):
        pairs = [f"{samples.paths[val]} = {samples.paths[train]}" for train, val in shared]
        log.warning(
            f"{len(pairs)} validation pictures are in the training set too, pixel by pixel, which inflates accuracy: {some(pairs, 3)}"
        )
