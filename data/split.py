"""Which pictures train and which validate: drawn by seed for each class, written down, read back."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from plumage.data.samples import Samples, some
from plumage.data.seeding import Purpose, generator
from plumage.errors import UserError, first_line
from plumage.files import is_below, read_arrays, written_whole
from plumage.names import finder
from plumage.tables import GROUP, SIDES, SPLIT, read_table, write_table

log = logging.getLogger("plumage")

MOVED = "if they have moved, train --resume --data NEW or eval --data NEW finds them, and remembers where"


def stratified_split(labels: np.ndarray, val_fraction: float, seed: int) -> np.ndarray:
    """Draw (n,) "train" or "val" for (n,) int64 labels: the same fraction of each, with at least one on each side."""
    split = np.full(len(labels), "train")
    for drawn in drawn_by_class(labels, seed):
        split[drawn[: to_validate(drawn, val_fraction)]] = "val"
    return split


def to_validate(drawn: np.ndarray, val_fraction: float) -> int:
    """Return how many of a class's pictures, (m,), are to validate."""
    assert len(drawn) >= 2
    return min(max(round(val_fraction * len(drawn)), 1), len(drawn) - 1)


def drawn_by_class(labels: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Yield each class's pictures, (m,) int64, in the order in which they are drawn."""
    by_label = np.argsort(labels, kind="stable")
    values, starts = np.unique(labels[by_label], return_index=True)
    for label, members in zip(values, np.split(by_label, starts[1:]), strict=True):
        yield generator(seed, Purpose.SPLIT, label).permutation(members)


def write_split(file: Path, samples: Samples) -> None:
    """Write path, label (the class name) and split of each sample as CSV, and its group where there are groups."""
    assert samples.split is not None
    labels = (samples.classes[label] for label in samples.labels)
    columns = [samples.paths, labels, samples.split, *(() if samples.groups is None else (samples.groups,))]
    write_table(file, (*SPLIT, *GROUP)[: len(columns)], zip(*columns, strict=True))


def read_split(file: Path, root: Path, classes: list[str]) -> Samples:
    """Read what ``write_split`` wrote, of pictures below ``root``. Raises UserError, naming the line that is wrong.

    Paths become those of the disk, where names may have another of Unicode's forms now.
    """
    number = {name: index for index, name in enumerate(classes)}
    rows: dict[str, tuple[Any, ...]] = {}
    for line, (path, name, side, *group) in read_table(file, SPLIT, GROUP):
        if not is_below(path) or path in rows or name not in number or side not in SIDES:
            what = "a path inside the data folder, given once, a known class, and train, val or test"
            raise UserError(f"{file}, line {line}: needs {what}")
        rows[path] = number[name], *map(sys.intern, (side, *group))  # else a string for each
    find = finder(root)
    paths = [found for path in rows if (found := find(path))]
    if gone := [path for path in rows if not find(path)] if len(paths) < len(rows) else []:
        raise UserError(f"{file}: {len(gone)} of its pictures are not in {root}: {some(gone, 3)}; {MOVED}")
    labels, split, *groups = zip(*rows.values(), strict=True) if rows else ((), ())
    grouped = np.array(groups[0], object) if groups else None
    return Samples(root, paths, np.array(labels, np.int64), classes, np.array(split, np.str_), grouped)


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
