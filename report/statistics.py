"""What a report and an ablation say beyond accuracy. Imports no torch.

Logits are (n, K), labels and predictions (n,) int64, and ``right`` is (n,) bool: which predictions are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import inf, log, sqrt
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np

from plumage.inference.calibration import log_softmax, parts

# Student's t: the 97.5 % quantiles of 1 to 30 degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.2).
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """A mean difference over ``n`` pairs, with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    n: int


def theoretical_gap(classes: int, smoothing: float) -> float | None:
    """Return log((K − 1)(1 − ε) / ε), the optimal gap (He et al. 2019, section 5.2); None at ε = 0: it is infinite."""
    return log((classes - 1) * (1 - smoothing) / smoothing) if smoothing else None


class Pairs(NamedTuple):
    """The pairs that occur, (p,) int64 each: true class, predicted class, and how many pictures."""

    true: np.ndarray
    predicted: np.ndarray
    pictures: np.ndarray


def count_pairs(labels: np.ndarray, predictions: np.ndarray, classes: int) -> Pairs:
    """Count the pairs of true and predicted class, in their order: all of K² would be too many of many classes."""
    pairs, pictures = np.unique(labels.astype(np.int64) * classes + predictions, return_counts=True)
    return Pairs(*np.divmod(pairs, classes), pictures)


def similar_order(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (K,) int64, the classes in a chain: each is followed by the one, of those left, it is most confused with.

    How much is the mean probability of either on pictures of the other.
    """
    classes = logits.shape[1]
    confused = np.zeros((classes, classes))
    for part, of in parts(logits, labels):
        np.add.at(confused, of, np.exp(log_softmax(part)))
    confused /= np.maximum(np.bincount(labels, minlength=classes), 1)[:, None]
    confused += confused.T
    chain, left = [0], list(range(1, classes))
    while left:
        chain.append(max(left, key=confused[chain[-1]].__getitem__))
        left.remove(chain[-1])
    return np.array(chain)


def paired_difference(right: np.ndarray, base: np.ndarray, draws: int = 20_000) -> Difference:
    """Return the accuracy of ``right`` minus that of ``base``, over the same pictures, with its percentile bootstrap.

    A picture counts +1, −1 or 0, so that n pictures drawn again are one draw from a multinomial distribution.
    """
    n, gained, lost = len(right), int(np.sum(right & ~base)), int(np.sum(base & ~right))
    shares = [gained / n, lost / n, (n - gained - lost) / n]
    drawn = np.random.default_rng(0).multinomial(n, shares, draws)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, (0.025, 0.975))
    return Difference((gained - lost) / n, float(low), float(high), n)


def mcnemar(right: np.ndarray, base: np.ndarray) -> float:
    """Return McNemar's exact two-sided p-value for two models being equally accurate, over the same pictures."""
    gained, lost = int(np.sum(right & ~base)), int(np.sum(base & ~right))
    total, fewer = gained + lost, min(gained, lost)
    ways = accumulate(range(fewer), lambda ways, k: ways * (total - k) // (k + 1), initial=1)
    return min(1.0, 2 * sum(ways) / 2**total)


def difference_over_seeds(values: Mapping[int, float], base: Mapping[int, float]) -> Difference | None:
    """Return ``values`` minus ``base`` over the seeds that both have, by Student's t; None where they share none.

    Of one seed the interval is infinite. Beyond 31, the quantile of 30 degrees makes it at most 4.2 % too wide.
    """
    gaps = [values[seed] - base[seed] for seed in values if seed in base]
    if not gaps:
        return None
    n, middle = len(gaps), mean(gaps)
    half = T_975[min(n - 1, len(T_975)) - 1] * stdev(gaps) / sqrt(n) if n > 1 else inf
    return Difference(middle, middle - half, middle + half, n)
