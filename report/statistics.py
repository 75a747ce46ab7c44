"""What a report and an ablation say beyond accuracy. Imports no torch.

Logits are (n, K), labels and predictions (n,) int64, and ``right`` is (n,) bool: which predictions are.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf, log, sqrt
from statistics import mean, stdev
from typing import TypeVar

import numpy as np

from plumage.inference.calibration import log_softmax, parts
from plumage.rundir.scores import Pairs

# Student's t: the 97.5 % quantiles of 1 to 30 degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.2).
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
LIKELY = 5  # classes of each picture by which similar ones are found
EQUAL = 1e-9  # numbers that differ by less are equal but for rounding: one picture of many millions makes more
Replicate = TypeVar("Replicate", bound=Hashable)


@dataclass(frozen=True)
class Difference:
    """A mean difference over ``n`` pairs, or a mean over ``n``, with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    n: int


def theoretical_gap(classes: int, smoothing: float) -> float | None:
    """Return log((K − 1)(1 − ε) / ε), the optimal gap (He et al. 2019, section 5.2); None at ε = 0: it is infinite."""
    return log((classes - 1) * (1 - smoothing) / smoothing) if smoothing else None


def tabulate(pairs: Pairs, place: np.ndarray, size: int) -> np.ndarray:
    """Return (size, size) int64: pictures by the places of their true and their predicted class.

    place: (K,) int64, of each class; classes at −1 are left out, and several may have the same.
    """
    table, true, predicted = np.zeros((size, size), np.int64), place[pairs.true], place[pairs.predicted]
    inside = (true >= 0) & (predicted >= 0)
    np.add.at(table, (true[inside], predicted[inside]), pairs.pictures[inside])
    return table


def similar_groups(logits: np.ndarray, labels: np.ndarray, most: int) -> list[list[int]]:
    """Return the classes in groups of at most ``most``: those come together first that are most confused.

    The groups, and the classes in each, stand beside those that they are most confused with.
    """
    classes = logits.shape[1]
    links = likely_links(logits, labels)
    groups = join([[number] for number in range(classes)], links, most)
    group_of = {number: place for place, group in enumerate(groups) for number in group}
    of_groups = [(group_of[one], group_of[other]) for one, other in links]
    chains = join([[place] for place in range(len(groups))], of_groups, len(groups))
    return [groups[place] for chain in chains for place in chain]


def likely_links(logits: np.ndarray, labels: np.ndarray) -> list[tuple[int, int]]:
    """Return the pairs of classes that are confused, most first, and each class with itself.

    How much is the mean probability of either on pictures of the other, where it is among a picture's LIKELY largest.
    """
    classes = logits.shape[1]
    pictures, most = np.bincount(labels, minlength=classes), min(LIKELY, classes)
    keys, weights = list[np.ndarray](), list[np.ndarray]()
    for part, of in parts(logits, labels):
        probabilities = np.exp(log_softmax(part))
        likely = np.argpartition(-probabilities, most - 1, axis=1)[:, :most]
        true = np.broadcast_to(of[:, None], likely.shape)
        keys.append((np.minimum(true, likely) * classes + np.maximum(true, likely)).ravel())
        weights.append((np.take_along_axis(probabilities, likely, axis=1) / pictures[true]).ravel())
    pairs, place = np.unique(np.concatenate(keys), return_inverse=True)
    strongest = np.argsort(-np.bincount(place, np.concatenate(weights)), kind="stable")
    ones, others = np.divmod(pairs[strongest], classes)
    return list(zip(ones.tolist(), others.tolist(), strict=True))


def join(groups: list[list[int]], links: Sequence[tuple[int, int]], most: int) -> list[list[int]]:
    """Join the two groups at each link's ends, link by link, unless together they would have more than ``most``."""
    group_of = {number: group for group in groups for number in group}
    for link in links:
        first, second = (group_of[end] for end in link)
        if first is not second and len(first) + len(second) <= most:
            first += second
            group_of |= dict.fromkeys(second, first)
    return list({id(group): group for group in group_of.values()}.values())


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


def difference_over_seeds(
    values: Mapping[Replicate, float], base: Mapping[Replicate, float], folds: int | None = None
) -> Difference | None:
    """Return ``values`` minus ``base`` over the seeds, or seeds and folds, of both, by ``mean_over``.

    None where they share none.
    """
    gaps = [values[replicate] - base[replicate] for replicate in values if replicate in base]
    return mean_over(gaps, folds) if gaps else None


def mean_over(values: Sequence[float], folds: int | None = None) -> Difference:
    """Return the mean of ``values`` with its interval by Student's t; infinite where they do not tell how they spread.

    That is one alone, and such as are all equal, as of few pictures. Beyond 31, the quantile of 30 degrees makes it at
    most 4.2 % too wide.
    folds: into how many parts the pictures were cut, if values differ in the one that validated. They share training
    pictures and are no independent draws: of 1/n, the variance of the mean becomes 1/n + 1/(folds − 1), the pictures
    that validate by those that train (Nadeau and Bengio, "Inference for the Generalization Error", 2003, section 3).
    """
    n, middle = len(values), mean(values)
    shared = 1 / (folds - 1) if folds else 0
    spreads = max(values) - min(values) > EQUAL
    half = T_975[min(n - 1, len(T_975)) - 1] * stdev(values) * sqrt(1 / n + shared) if spreads else inf
    return Difference(middle, middle - half, middle + half, n)
