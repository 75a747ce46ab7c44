import numpy as np
import pytest
from scipy import optimize
from sklearn import metrics

from plumage.inference import calibration


def outputs(n=400, classes=7, seed=0, scale=3.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    return scale * (rng.normal(size=(n, classes)) + np.eye(classes)[labels]), labels


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_temperature_by_a_direct_search(scale):
    logits, labels = outputs(scale=scale)
    found = calibration.best_temperature(logits, labels)

    def loss(log_temperature):
        scaled = logits / np.exp(log_temperature)
        return metrics.log_loss(labels, np.exp(calibration.log_softmax(scaled)), labels=range(7))

    reference = optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-8})
    assert found == pytest.approx(np.exp(reference.x), rel=1e-4)
    assert calibration.nll(logits / found, labels) == pytest.approx(reference.fun, abs=1e-9)


def test_temperature_ends_at_its_bound_where_all_is_right():
    assert calibration.best_temperature(np.eye(3), np.arange(3)) == pytest.approx(1 / 20, rel=1e-4)


@pytest.mark.parametrize("part", [1, 60, 10**9])
def test_in_parts_it_is_the_same_as_at_once(monkeypatch, part):
    """Of single floats, as they are kept, by the formulas over all of them in double."""
    logits, labels = outputs()
    logits, rows = logits.astype(np.float32), np.arange(len(labels))
    whole = logits.astype(np.float64)
    monkeypatch.setattr(calibration, "PART", part)
    for temperature in (1.0, 0.37):
        expected = -calibration.log_softmax(whole / temperature)[rows, labels].mean()
        assert calibration.nll(logits, labels, temperature) == pytest.approx(expected, rel=1e-13)
    low, high = -np.log(20), np.log(20)
    for _ in range(24):
        middle = (low + high) / 2
        expected = (np.exp(calibration.log_softmax(np.exp(middle) * whole)) * whole).sum(axis=1)
        low, high = (low, middle) if np.mean(expected - whole[rows, labels]) > 0 else (middle, high)
    assert calibration.best_temperature(logits, labels) == pytest.approx(np.exp(-(low + high) / 2), rel=1e-12)


def test_nll_of_logits_that_overflow():
    assert calibration.nll(np.array([[1e4, 0.0]]), np.array([1])) == pytest.approx(1e4)
