"""What a report says beyond accuracy. Everything is a function of logits (n, K) float64 and labels (n,) int64."""

from math import log

import numpy as np

from plumage.inference.calibration import log_softmax
from plumage.report.interval import Difference


def theoretical_gap(classes: int, smoothing: float) -> float | None:
    """log((K − 1)(1 − ε) / ε), where label smoothing has its optimum (section 5.2); None at ε = 0: there is none."""
    return log((classes - 1) * (1 - smoothing) / smoothing) if smoothing else None


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """(K, K) int64: how many pictures of class i (row) were taken for j."""
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)


def similar_order(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(K,) int64: the classes in a chain, after each the one, of those left, that it shares most probability with."""
    probabilities, classes = np.exp(log_softmax(logits)), logits.shape[1]
    shared = np.zeros((classes, classes))
    np.add.at(shared, labels, probabilities)
    shared /= np.maximum(np.bincount(labels, minlength=classes), 1)[:, None]
    shared += shared.T
    chain, left = [0], np.ones(classes, bool)
    left[0] = False
    while left.any():
        chain.append(int(np.where(left, shared[chain[-1]], -1).argmax()))
        left[chain[-1]] = False
    return np.array(chain)


def paired_difference(right: np.ndarray, base: np.ndarray, draws: int = 20_000) -> Difference:
    """Accuracy of ``right`` minus that of ``base``, (n,) bool over the same pictures; percentile bootstrap of those.

    A picture counts +1, −1 or 0, so that n pictures drawn again are one draw from a multinomial distribution.
    """
    n, gained, lost = len(right), int(np.sum(right & ~base)), int(np.sum(base & ~right))
    shares = [gained / n, lost / n, (n - gained - lost) / n]
    drawn = np.random.default_rng(0).multinomial(n, shares, draws)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, (0.025, 0.975))
    return Difference((gained - lost) / n, float(low), float(high), n)


def mcnemar(right: np.ndarray, base: np.ndarray) -> float:
    """The exact two-sided p-value for two models being as accurate as each other, over the same pictures, (n,) bool."""
    gained, lost = int(np.sum(right & ~base)), int(np.sum(base & ~right))
    total, fewer = gained + lost, min(gained, lost)
    tail = ways = 1
    for k in range(fewer):
        ways = ways * (total - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**total)
