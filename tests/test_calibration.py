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


def test_nll_of_logits_that_overflow():
    assert calibration.nll(np.array([[1e4, 0.0]]), np.array([1])) == pytest.approx(1e4)
