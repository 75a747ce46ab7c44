"""Labelled pictures as a list, before any is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from plumage.errors import visible


@dataclass(frozen=True)
class Samples:
    """Labelled pictures: ``root / paths[i]`` shows ``classes[labels[i]]``.

    paths: relative to ``root``, with forward slashes, sorted. labels: (n,) int64. classes: the names in label order.
    split: (n,) "train", "val" or "test" where the source has its own split, "" where it is yet to be drawn; None where
    all of it is.
    groups: (n,) objects, texts, the same for pictures that must stay on one side of a split; None where none are known.
    """

    root: Path
    paths: list[str]
    labels: np.ndarray
    classes: list[str]
    split: np.ndarray | None = None
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def undrawn(self) -> np.ndarray:
        """(n,) bool: which are yet to be drawn to a side of the split."""
        return np.full(len(self), True) if self.split is None else self.split == ""

    def select(self, rows: np.ndarray) -> "Samples":
        """Return the samples of these rows, (m,) int64, in that order, over the same classes."""
        split, groups = (None if each is None else each[rows] for each in (self.split, self.groups))
        paths = [self.paths[row] for row in rows]
        return replace(self, paths=paths, labels=self.labels[rows], split=split, groups=groups)


def some(names: Sequence[str], most: int = 5) -> str:
    """Join ``names`` for a message of one line: the first few, and how many more."""
    return ", ".join(map(visible, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
