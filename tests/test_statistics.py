import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from plumage.engine.metrics import logit_gap
from plumage.report import statistics
from plumage.report.labels import folds_of
from plumage.rundir.scores import count_pairs


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
    pairs = count_pairs(labels, logits.argmax(1), 9)
    matrix = np.zeros((9, 9), int)
    matrix[pairs.true, pairs.predicted] = pairs.pictures
    assert (matrix == reference).all()
    assert len(pairs.pictures) == np.count_nonzero(reference)


def test_similar_classes_come_together_and_side_by_side():
    rng = np.random.default_rng(0)
    family = rng.permutation(np.repeat(np.arange(5), 4))  # of each class
    order = family // 2  # of which the first two families are one, and the next two
    labels = np.repeat(np.arange(19), 10)  # the last class has no picture
    logits = 4.0 * (family[labels][:, None] == family) + 2.0 * (order[labels][:, None] == order)
    logits += 0.5 * rng.normal(size=(190, 20))
    groups = statistics.similar_groups(logits, labels, 4)
    assert sorted(map(sorted, groups)) == sorted(np.flatnonzero(family == each).tolist() for each in range(5))
    neighbours = [order[group[0]] for group in groups]
    assert np.count_nonzero(np.diff(neighbours)) == 2
    whole = [number for group in statistics.similar_groups(logits, labels, 20) for number in group]
    assert sorted(whole) == list(range(20))
    assert np.count_nonzero(np.diff(family[whole])) == 4


def test_groups_have_a_size_at_most_and_hold_every_class():
    logits, labels = outputs(n=900, classes=50, scale=0.1)
    for most in (1, 7, 12, 50):
        groups = statistics.similar_groups(logits, labels, most)
        assert max(map(len, groups)) <= most
        assert sorted(number for group in groups for number in group) == list(range(50))


def test_similar_classes_are_the_same_in_parts(monkeypatch):
    logits, labels = outputs(scale=1.0)
    whole = statistics.similar_groups(logits, labels, 3)
    monkeypatch.setattr("plumage.inference.calibration.PART", 60)
    assert statistics.similar_groups(logits, labels, 3) == whole


def test_pictures_by_groups_as_scikit_learn_counts_them():
    logits, labels = outputs()
    place = np.array([0, 1, 0, -1, 2, 2, -1])
    predicted = logits.argmax(1)
    inside = (place[labels] >= 0) & (place[predicted] >= 0)
    reference = metrics.confusion_matrix(place[labels][inside], place[predicted][inside])
    pairs = count_pairs(labels, predicted, 7)
    assert (statistics.tabulate(pairs, place, 3) == reference).all()


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


@pytest.mark.parametrize("values", [[0.6, 0.7, 0.8], [60.0, 70.0, 80.0], [0.5, 0.5, 0.5]])
def test_equal_differences_tell_no_interval(values):
    base = [value - values[0] / 6 for value in values]
    found = statistics.difference_over_seeds(dict(enumerate(values)), dict(enumerate(base)))
    assert (found.value, found.low, found.high, found.n) == (pytest.approx(values[0] / 6), -np.inf, np.inf, 3)


def test_the_least_difference_that_pictures_make_has_an_interval():
    assert statistics.mean_over([0.5, 0.5 + 1e-7]).high < np.inf


def test_seeds_and_folds_identify_a_pair_both():
    one, other = ({(seed, fold): value * (seed + fold) for seed in (0, 1) for fold in (1, 2)} for value in (2.0, 1.0))
    del other[1, 2]
    assert statistics.difference_over_seeds(one, other).value == pytest.approx((1 + 2 + 2) / 3)


def test_differences_that_are_equal_tell_no_interval():
    found = statistics.difference_over_seeds({0: 0.3, 1: 0.5}, {0: 0.1, 1: 0.3})  # by 0.2, but for rounding
    assert (found.low, found.high, found.n) == (-np.inf, np.inf, 2)
    assert found.value == pytest.approx(0.2)


def test_the_mean_as_scipy_gives_its_interval():
    values = [0.61, 0.72, 0.83]
    reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = statistics.mean_over(values)
    assert (found.value, found.low, found.high) == pytest.approx((0.72, *reference), rel=3e-4)
    assert (found.n) == (3)


@pytest.mark.parametrize(("seeds", "folds"), [(1, 5), (3, 5), (1, 2)])
def test_folds_that_share_training_pictures_widen_the_interval(seeds, folds):
    """By Nadeau and Bengio's factor: of 5 folds, a quarter as many pictures validate as train."""
    one, other = np.random.default_rng(folds).normal(size=(2, seeds * folds))
    alone, wider = statistics.mean_over(one - other), statistics.mean_over(one - other, folds)
    factor = (1 + seeds * folds / (folds - 1)) ** 0.5
    assert wider.high - wider.value == pytest.approx(factor * (alone.high - alone.value))
    assert wider.value == alone.value
    pairs = dict(enumerate(one)), dict(enumerate(other))
    assert statistics.difference_over_seeds(*pairs, folds) == wider
    assert statistics.difference_over_seeds(*pairs) == alone


def test_only_several_folds_are_folds():
    assert folds_of(["none", "none"]) is None
    assert folds_of(["2/5", "2/5"]) is None
    assert folds_of(f"{fold}/5" for fold in (1, 2, 4)) == 5
    assert folds_of(["1/5", "1/3", "none"]) == 3
