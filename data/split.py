"""Which pictures train and which validate: made by seed, stratified, written down, read back."""

import csv
import os
import sys
from pathlib import Path

import numpy as np

from plumage.data.samples import Samples, some
from plumage.data.seeding import Purpose, generator
from plumage.data.store import is_below
from plumage.errors import UserError

COLUMNS = ("path", "label", "split")


def stratified_split(labels: np.ndarray, val_fraction: float, seed: int) -> np.ndarray:
    """(n,) "train" or "val": of each class the same fraction, and at least one picture on each side.

    labels: (n,) int64, each class that occurs at least twice.
    """
    split = np.full(len(labels), "train")
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        assert len(members) >= 2
        count = min(max(round(val_fraction * len(members)), 1), len(members) - 1)
        split[generator(seed, Purpose.SPLIT, label).permutation(members)[:count]] = "val"
    return split


def shared_pictures(digests: np.ndarray, split: np.ndarray) -> list[tuple[int, int]]:
    """(training row, validation row) for every validation picture whose very pixels are in the training set.

    digests: (n, 16) uint8, one hash per picture.
    """
    train, val = (np.flatnonzero(split == side) for side in ("train", "val"))
    held_out = {digests[row].tobytes() for row in val}
    seen = {key: int(row) for row in train if (key := digests[row].tobytes()) in held_out}
    return [(seen[key], int(row)) for row in val if (key := digests[row].tobytes()) in seen]


def write_split(file: Path, samples: Samples) -> None:
    assert samples.split is not None
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as handle:
        writer = csv.writer(handle)
        writer.writerow(COLUMNS)
        for path, label, side in zip(samples.paths, samples.labels, samples.split, strict=True):
            writer.writerow((path, samples.classes[label], side))


def read_split(file: Path, root: Path, classes: list[str]) -> Samples:
    """The samples that ``write_split`` wrote, below ``root``. UserError, naming the line, when they are not sound."""
    number = {name: index for index, name in enumerate(classes)}
    rows: dict[str, tuple[int, str]] = {}
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as handle:
            lines = csv.reader(handle)
            if next(lines, None) != list(COLUMNS):
                raise UserError(f"{file}, line 1: needs the columns {', '.join(COLUMNS)}")
            for path, name, side in lines:
                if not is_below(path) or path in rows or name not in number or side not in ("train", "val"):
                    what = "a path inside the data folder, given once, a known class, and train or val"
                    raise UserError(f"{file}, line {lines.line_num}: needs {what}")
                rows[path] = number[name], sys.intern(side)  # else a string for each
        gone = [path for path in rows if not os.path.isfile(f"{root}{os.sep}{path}")]  # noqa: PTH113 (pathlib is slow)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{file} cannot be read back: {error}") from error
    if gone:
        raise UserError(f"{file}: {len(gone)} of its pictures are not in {root} any more: {some(gone, 3)}")
    labels, split = [label for label, _ in rows.values()], [side for _, side in rows.values()]
    return Samples(root, list(rows), np.array(labels, np.int64), classes, np.array(split, np.str_))
