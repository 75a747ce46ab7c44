"""How good an evaluation is for each class, and how sure that is."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

Z_975 = 1.959963984540054  # the normal distribution's 97.5 % quantile


@dataclass(frozen=True)
class ClassScores:
    """Counts by class, (K,) int64: its ``pictures``, how many were ``predicted`` to be of it, and ``right``, both.

    A fraction of nothing is 0.
    """

    pictures: np.ndarray
    predicted: np.ndarray
    right: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        return self.right / np.maximum(self.predicted, 1)

    @property
    def recall(self) -> np.ndarray:
        """(K,) float64: the accuracy on each class's pictures."""
        return self.right / np.maximum(self.pictures, 1)

    @property
    def f1(self) -> np.ndarray:
        """(K,) float64: the harmonic mean of precision and recall."""
        return 2 * self.right / np.maximum(self.pictures + self.predicted, 1)

    @cached_property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that have pictures."""
        return float(self.recall[self.pictures > 0].mean())

    @cached_property
    def macro_f1(self) -> float:
        """The mean F1 of the classes that have pictures or predictions."""
        return float(self.f1[self.pictures + self.predicted > 0].mean())

    @property
    def chance(self) -> float:
        """The balanced accuracy of a guess among the classes that have pictures, of which there are at least two."""
        return 1 / max(int(np.count_nonzero(self.pictures)), 2)

    @property
    def tells_classes(self) -> bool:
        """Whether the balanced accuracy is better than a guess's by its standard error."""
        pictures = self.pictures[self.pictures > 0]
        error = np.sqrt(self.chance * (1 - self.chance) * np.sum(1 / pictures)) / len(pictures)
        return bool(self.balanced_accuracy >= self.chance + error)

    @property
    def never_right(self) -> np.ndarray:
        """(m,) int64: the classes that have pictures, none of which is right; those of the most pictures first."""
        never = np.flatnonzero((self.pictures > 0) & (self.right == 0))
        return never[np.argsort(-self.pictures[never], kind="stable")]


def class_scores(labels: np.ndarray, predictions: np.ndarray, classes: int) -> ClassScores:
    """Count (n,) int64 labels and predictions."""
    counted = (labels, predictions, labels[labels == predictions])
    return ClassScores(*(np.bincount(each, minlength=classes) for each in counted))


class Pairs(NamedTuple):
    """The pairs that occur, (p,) int64 each: true class, predicted class, and how many pictures."""

    true: np.ndarray
    predicted: np.ndarray
    pictures: np.ndarray


def count_pairs(labels: np.ndarray, predictions: np.ndarray, classes: int) -> Pairs:
    """Count the pairs of true and predicted class, in their order: all of K² would be too many of many classes."""
    pairs, pictures = np.unique(labels.astype(np.int64) * classes + predictions, return_counts=True)
    return Pairs(*np.divmod(pairs, classes), pictures)


def wilson(right: np.ndarray, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest share, (K,) float64, of the 95 % score interval of right / pictures (Wilson 1927).

    Of no pictures it is all from 0 to 1.
    """
    n = np.maximum(pictures, 1)
    share, square = right / n, Z_975**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = Z_975 / (1 + square / n) * np.sqrt(share * (1 - share) / n + square / (4 * n**2))
    # Exactly 0 where none is right, and exactly 1 where all are, which rounding would miss; of no pictures both.
    low = np.where(right == 0, 0, (middle - half).clip(0, 1))
    return low, np.where(right == pictures, 1, (middle + half).clip(0, 1))
