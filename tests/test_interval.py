import numpy as np
import pytest
from scipy import stats

from plumage.report.interval import T_975, difference_over_seeds


def test_the_quantiles():
    assert list(T_975) == pytest.approx(stats.t.ppf(0.975, range(1, 31)), abs=5e-4)


@pytest.mark.parametrize("seeds", [2, 3, 5, 31, 40])
def test_interval_over_seeds_as_scipy_computes_it(seeds):
    one, other = np.random.default_rng(seeds).normal(size=(2, seeds))
    found = difference_over_seeds(dict(enumerate(one)), {**dict(enumerate(other)), 99: 5.0})
    reference = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert (found.value, found.n) == (pytest.approx((one - other).mean()), seeds)
    assert found.high - found.value == pytest.approx(found.value - found.low)
    wider = (found.high - found.low) / (reference.high - reference.low)
    assert 1 < wider < 1.042 if seeds > 31 else wider == pytest.approx(1, rel=3e-4)


def test_one_seed_tells_nothing_and_none_has_no_difference():
    found = difference_over_seeds({0: 1.0}, {0: 0.5, 1: 0.2})
    assert (found.value, found.low, found.high, found.n) == (0.5, -np.inf, np.inf, 1)
    assert difference_over_seeds({0: 1.0}, {1: 0.2}) is None
