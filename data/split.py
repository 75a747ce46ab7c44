"""Which pictures train and which validate: drawn by seed for each class, written down, read back."""

import os
import sys
from pathlib import Path

import numpy as np

from plumage.data.samples import Samples, some
from plumage.data.seeding import Purpose, generator
from plumage.errors import UserError
from plumage.files import is_below, read_table, write_table

COLUMNS = ("path", "label", "split")


def stratified_split(labels: np.ndarray, val_fraction: float, seed: int) -> np.ndarray:
    """Draw (n,) "train" or "val" for (n,) int64 labels: the same fraction of each, with at least one on each side."""
    split = np.full(len(labels), "train")
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        assert len(members) >= 2
        count = min(max(round(val_fraction * len(members)), 1), len(members) - 1)
        split[generator(seed, Purpose.SPLIT, label).permutation(members)[:count]] = "val"
    return split


def shared_pictures(digests: np.ndarray, split: np.ndarray) -> list[tuple[int, int]]:
    """Return (training row, validation row) of each validation picture that also trains, by (n, 16) uint8 digests."""
    train, val = (np.flatnonzero(split == side) for side in ("train", "val"))
    held_out = {digests[row].tobytes() for row in val}
    seen = {key: int(row) for row in train if (key := digests[row].tobytes()) in held_out}
    return [(seen[key], int(row)) for row in val if (key := digests[row].tobytes()) in seen]


def write_split(file: Path, samples: Samples) -> None:
    """Write path, label (the class name) and split of each sample as CSV."""
    assert samples.split is not None
    labels = (samples.classes[label] for label in samples.labels)
    write_table(file, COLUMNS, zip(samples.paths, labels, samples.split, strict=True))


def read_split(file: Path, root: Path, classes: list[str]) -> Samples:
    """Read what ``write_split`` wrote, of pictures below ``root``. Raises UserError, naming the line that is wrong."""
    number = {name: index for index, name in enumerate(classes)}
    rows: dict[str, tuple[int, str]] = {}
    for line, (path, name, side) in read_table(file, COLUMNS):
        if not is_below(path) or path in rows or name not in number or side not in ("train", "val"):
            what = "a path inside the data folder, given once, a known class, and train or val"
            raise UserError(f"{file}, line {line}: needs {what}")
        rows[path] = number[name], sys.intern(side)  # else a string for each
    gone = [path for path in rows if not os.path.isfile(f"{root}{os.sep}{path}")]  # noqa: PTH113 (pathlib is slow)
    if gone:
        raise UserError(f"{file}: {len(gone)} of its pictures are not in {root} any more: {some(gone, 3)}")
    labels, split = [label for label, _ in rows.values()], [side for _, side in rows.values()]
    return Samples(root, list(rows), np.array(labels, np.int64), classes, np.array(split, np.str_))
