import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from plumage.engine.metrics import logit_gap
from plumage.report import statistics


def outputs(n=400, classes=7, seed=0, scale=3.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    return scale * (rng.normal(size=(n, classes)) + np.eye(classes)[labels]), labels


def test_the_gap_in_theory():
    assert statistics.theoretical_gap(200, 0.1) == pytest.approx(7.49, abs=0.005)
    assert statistics.theoretical_gap(200, 0) is None
    # The smoothed target's own logits have it.
    target = torch.full((1, 200), 0.1 / 199)
    target[0, 3] = 0.9
    assert logit_gap(target.log()).item() == pytest.approx(statistics.theoretical_gap(200, 0.1))


def test_confusions_as_scikit_learn_counts_them():
    logits, labels = outputs()
    reference = metrics.confusion_matrix(labels, logits.argmax(1), labels=range(9))
    pairs = statistics.count_pairs(labels, logits.argmax(1), 9)
    matrix = np.zeros((9, 9), int)
    matrix[pairs.true, pairs.predicted] = pairs.pictures
    assert (matrix == reference).all()
    assert len(pairs.pictures) == np.count_nonzero(reference)


def test_similar_classes_come_side_by_side():
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat(np.arange(5), 4))  # of each class
    labels = np.repeat(np.arange(19), 10)  # the last class has no picture
    logits = 4.0 * (group[labels][:, None] == group[None]) + rng.normal(size=(190, 20))
    order = statistics.similar_order(logits, labels)
    assert sorted(order) == list(range(20))
    assert np.count_nonzero(np.diff(group[order])) == 4


def test_similar_classes_are_the_same_in_parts(monkeypatch):
    logits, labels = outputs(scale=1.0)
    whole = statistics.similar_order(logits, labels)
    monkeypatch.setattr("plumage.inference.calibration.PART", 60)
    assert (statistics.similar_order(logits, labels) == whole).all()


def pairs(gained, lost, both):
    right = np.array([True] * gained + [False] * lost + [True] * both)
    return right, np.array([False] * gained + [True] * lost + [True] * both)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (9, 2), (30, 31), (700, 500)])
def test_mcnemar_as_scipy_computes_it(gained, lost):
    reference = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert statistics.mcnemar(*pairs(gained, lost, 50)) == pytest.approx(reference)


def test_paired_interval_as_scipy_draws_it():
    right, base = pairs(60, 30, 410)
    found = statistics.paired_difference(right, base)
    sample = (right.astype(float) - base,)
    reference = stats.bootstrap(sample, np.mean, n_resamples=9999, method="percentile", rng=1, batch=1000)
    assert found.value == pytest.approx(0.06)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval), abs=0.003)


def test_the_quantiles():
    assert list(statistics.T_975) == pytest.approx(stats.t.ppf(0.975, range(1, 31)), abs=5e-4)


@pytest.mark.parametrize("seeds", [2, 3, 5, 31, 40])
def test_interval_over_seeds_as_scipy_computes_it(seeds):
    one, other = np.random.default_rng(seeds).normal(size=(2, seeds))
    found = statistics.difference_over_seeds(dict(enumerate(one)), {**dict(enumerate(other)), 99: 5.0})
    reference = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert (found.value, found.n) == (pytest.approx((one - other).mean()), seeds)
    assert found.high - found.value == pytest.approx(found.value - found.low)
    wider = (found.high - found.low) / (reference.high - reference.low)
    assert 1 < wider < 1.042 if seeds > 31 else wider == pytest.approx(1, rel=3e-4)


def test_one_seed_tells_nothing_and_none_has_no_difference():
    found = statistics.difference_over_seeds({0: 1.0}, {0: 0.5, 1: 0.2})
    assert (found.value, found.low, found.high, found.n) == (0.5, -np.inf, np.inf, 1)
    assert statistics.difference_over_seeds({0: 1.0}, {1: 0.2}) is None
