import numpy as np
import pytest
import torch
from scipy import optimize
from sklearn import metrics
from torchmetrics.classification import MulticlassCalibrationError

from plumage.engine.metrics import BINS
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


@pytest.mark.parametrize("part", [60, 10**9])
def test_cross_fitting_divides_each_half_by_the_temperature_of_the_other(monkeypatch, part):
    """Against scikit-learn and torchmetrics, with temperatures that tell which half asked for them."""
    logits, labels = outputs(n=301)
    labels[:9], asked = np.arange(9) % 7, []

    def fitted(own_logits, own_labels, rows):
        assert own_logits is logits
        assert own_labels is labels
        asked.append(rows)
        return (0.4, None)[len(asked) - 1]

    monkeypatch.setattr(calibration, "PART", part)
    monkeypatch.setattr(calibration, "fitted_temperature", fitted)
    found = calibration.cross_fitted(logits, labels)
    first, second = asked
    assert sorted([*first, *second]) == list(range(301))
    assert {len(first), len(second)} == {150, 151}
    counts = [np.bincount(labels[rows], minlength=7) for rows in asked]
    assert np.abs(counts[0] - counts[1]).max() <= 1
    divided = logits.copy()
    divided[second] /= 0.4  # the half that told none does not divide the other
    probabilities = np.exp(calibration.log_softmax(divided))
    assert found.nll == pytest.approx(metrics.log_loss(labels, probabilities, labels=range(7)), rel=1e-12)
    reference = MulticlassCalibrationError(7, n_bins=BINS)(torch.tensor(probabilities), torch.tensor(labels))
    assert found.ece == pytest.approx(float(reference), abs=1e-6)
    assert calibration.BINS == BINS


def test_what_is_kept_is_judged_on_the_half_that_nothing_was_fitted_on(monkeypatch):
    """Two halves by hand. The first is surest of 60 right ones, which the other is half wrong about."""
    first, other = np.arange(100), np.arange(100, 200)
    labels, sure = np.zeros(200, int), np.tile(np.linspace(4, 1, 100), 2)
    right = np.tile(np.arange(100) < 60, 2)
    right[100:160:2] = False
    logits = np.column_stack([np.where(right, sure, 0), np.where(right, 0, sure)])
    monkeypatch.setattr(calibration, "halves", lambda _: [(first, other), (other, first)])
    # Of all right ones 60 promise 6.1 %; nine in a hundred of 64, four of them wrong, would be 15 %.
    assert calibration.cross_rejected(logits, labels, [0.05, 0.061]) == [None, pytest.approx(0.5)]
    monkeypatch.setattr(calibration, "fitted_temperature", lambda *_: None)
    assert calibration.cross_rejected(logits, labels, [0.061]) == [pytest.approx(0.5)]
    assert calibration.cross_rejected(logits[:1], labels[:1], [0.5]) == [None]


@pytest.mark.parametrize("seed", range(8))
def test_cross_fitted_is_never_better_than_fitted_on_the_same_pictures(seed):
    logits, labels = outputs(n=20 + 10 * seed, seed=seed)
    fitted = calibration.nll(logits, labels, calibration.best_temperature(logits, labels))
    assert calibration.cross_fitted(logits, labels).nll > fitted


@pytest.mark.parametrize("n", [1, 2, 3])
def test_cross_fitting_of_a_picture_or_two(n):
    logits, labels = outputs(n=n)
    assert np.isfinite(calibration.cross_fitted(logits, labels)).all()
    right = calibration.cross_fitted(4 * np.eye(3)[:n], np.arange(n))  # which tell no temperature
    assert right.nll == pytest.approx(calibration.nll(4 * np.eye(3)[:n], np.arange(n)))


def test_where_all_are_right_no_temperature_is_told_and_where_guessing_is_best_the_highest():
    logits, labels = outputs()
    assert calibration.fitted_temperature(logits, labels) == calibration.best_temperature(logits, labels)
    assert calibration.fitted_temperature(np.eye(3), np.arange(3)) is None
    assert calibration.fitted_temperature(np.eye(3), (np.arange(3) + 1) % 3) == pytest.approx(20, rel=1e-4)


def test_a_temperature_serves_that_serves_the_other_half():
    logits, labels = outputs()
    assert calibration.useful_temperature(logits, labels) == (calibration.best_temperature(logits, labels), "")
    assert calibration.useful_temperature(np.eye(3), np.arange(3)) == (None, "all are right")
    few, of = np.array([[9.0, 0], [9.0, 0], [0, 1.0], [1.0, 0]]), np.array([0, 0, 1, 1])
    found, why = calibration.useful_temperature(few, of)
    assert (found, "too few" in why) == (None, True)
    assert calibration.cross_fitted(few, of).nll >= calibration.nll(few, of)


def test_logits_that_are_too_flat_have_the_lowest_temperature_unless_all_are_right():
    labels = np.arange(400) % 4
    logits = 0.001 * np.eye(4)[np.where(np.arange(400) < 300, labels, (labels + 1) % 4)]
    assert calibration.fitted_temperature(logits, labels) == pytest.approx(1 / 20, rel=1e-4)
    assert calibration.fitted_temperature(logits, labels, np.arange(300)) is None
    assert calibration.cross_fitted(logits, labels).nll < calibration.nll(logits, labels)


def test_rows_are_fitted_as_if_they_were_all():
    logits, labels = outputs()
    rows = np.random.default_rng(1).permutation(400)[:150]
    found = calibration.best_temperature(logits, labels, rows)
    assert found == pytest.approx(calibration.best_temperature(logits[rows], labels[rows]), rel=1e-12)
