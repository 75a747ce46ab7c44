"""Which pictures train and which validate: drawn by seed for each class, written down, read back."""

import logging
import os
import sys
from pathlib import Path

import numpy as np

from plumage.data.samples import Samples, some
from plumage.data.seeding import Purpose, generator
from plumage.errors import UserError, first_line
from plumage.files import is_below, read_arrays, written_whole
from plumage.tables import SPLIT, read_table, write_table

log = logging.getLogger("plumage")

MOVED = "if they have moved, train --resume --data NEW or eval --data NEW finds them, and remembers where"


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
    write_table(file, SPLIT, zip(samples.paths, labels, samples.split, strict=True))


def read_split(file: Path, root: Path, classes: list[str]) -> Samples:
    """Read what ``write_split`` wrote, of pictures below ``root``. Raises UserError, naming the line that is wrong."""
    number = {name: index for index, name in enumerate(classes)}
    rows: dict[str, tuple[int, str]] = {}
    for line, (path, name, side) in read_table(file, SPLIT):
        if not is_below(path) or path in rows or name not in number or side not in ("train", "val"):
            what = "a path inside the data folder, given once, a known class, and train or val"
            raise UserError(f"{file}, line {line}: needs {what}")
        rows[path] = number[name], sys.intern(side)  # else a string for each
    if gone := [path for path in rows if not is_there(root, path)]:
        raise UserError(f"{file}: {len(gone)} of its pictures are not in {root}: {some(gone, 3)}; {MOVED}")
    labels, split = [label for label, _ in rows.values()], [side for _, side in rows.values()]
    return Samples(root, list(rows), np.array(labels, np.int64), classes, np.array(split, np.str_))


def is_there(root: Path, path: str) -> bool:
    return os.path.isfile(f"{root}{os.sep}{path}")  # noqa: PTH113 (pathlib would take most of the time)


def write_digests(file: Path, digests: np.ndarray) -> None:
    """Write (n, 16) uint8, a hash of the pixels of each row of split.csv."""
    with written_whole(file) as draft, draft.open("wb") as handle:
        np.savez(handle, digests=digests)


def read_digests(file: Path, pictures: int) -> np.ndarray | None:
    """Read what ``write_digests`` wrote of so many pictures. None where it is not there, or damaged, which is told."""
    if not file.exists():  # an older run
        return None
    try:
        digests = read_arrays(file, {"digests": 16 * pictures})["digests"]
        if (digests.dtype, digests.shape) != (np.uint8, (pictures, 16)):
            raise ValueError("it does not fit split.csv")
        return digests
    except Exception as error:  # a damaged archive raises nearly anything
        log.warning(f"{file} is damaged ({first_line(error)}): whether the pictures are those of the run is not known")
        return None
