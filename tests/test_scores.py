import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from plumage.rundir.scores import class_scores, count_pairs, wilson


def predictions(n=400, classes=9, seed=0):
    """Labels of unequal classes, of which the last but one has none, and predictions, of which the last has none."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.integers(0, classes - 2, n), rng.integers(0, classes - 2, n))
    labels[:5] = classes - 1
    return labels, np.where(rng.random(n) < 0.6, np.minimum(labels, classes - 2), rng.integers(0, classes - 1, n))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:.*is ill-defined")
@pytest.mark.parametrize("classes", [2, 9, 500])
def test_scores_as_scikit_learn_computes_them(classes):
    labels, predicted = predictions(classes=max(classes, 4)) if classes > 2 else predictions()
    labels, predicted = (labels % 2, predicted % 2) if classes == 2 else (labels, predicted)
    scores = class_scores(labels, predicted, classes)
    assert scores.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert scores.macro_f1 == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    expected = metrics.precision_recall_fscore_support(labels, predicted, labels=range(classes), zero_division=0)
    for mine, reference in zip((scores.precision, scores.recall, scores.f1, scores.pictures), expected, strict=True):
        np.testing.assert_allclose(mine, reference)


def test_what_is_never_right_by_pictures():
    labels, predicted = np.array([0, 0, 1, 2, 2, 2, 4, 4]), np.array([0, 1, 1, 0, 0, 3, 1, 2])
    assert class_scores(labels, predicted, 5).never_right.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("labels", "predictions", "chance", "tells"),
    [
        ([0, 0, 1, 1], [0, 1, 1, 1], 1 / 2, True),  # 75 %, at a guess 50 ± 25 %
        ([0, 0, 1, 1], [0, 1, 0, 1], 1 / 2, False),
        ([0] * 95 + [1] * 5, [0] * 100, 1 / 2, False),  # 95 %, and a guess
        ([0] * 95 + [1] * 5, [0] * 97 + [1] * 3, 1 / 2, True),
        ([0, 0, 0], [0, 0, 0], 1 / 2, True),  # one class alone
        ([0, 0, 0], [0, 1, 0], 1 / 2, False),
        (list(range(200)), [*range(20), *[0] * 180], 1 / 200, True),  # 10 %
    ],
)
def test_better_than_a_guess(labels, predictions, chance, tells):
    scores = class_scores(np.array(labels), np.array(predictions), 200)
    assert (scores.chance, scores.tells_classes) == (chance, tells)


def test_confusions_as_scikit_learn_counts_them():
    labels, predicted = predictions()
    reference = metrics.confusion_matrix(labels, predicted, labels=range(9))
    pairs = count_pairs(labels, predicted, 9)
    matrix = np.zeros((9, 9), int)
    matrix[pairs.true, pairs.predicted] = pairs.pictures
    assert (matrix == reference).all()
    assert len(pairs.pictures) == np.count_nonzero(reference)


def test_intervals_as_scipy_computes_them():
    right, pictures = np.array([0, 0, 1, 3, 45, 9999]), np.array([2, 45, 1, 7, 45, 10_000])
    low, high = wilson(right, pictures)
    for number, (k, n) in enumerate(zip(right.tolist(), pictures.tolist(), strict=True)):
        reference = stats.binomtest(k, n).proportion_ci(method="wilson")
        assert (low[number], high[number]) == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert [each.tolist() for each in wilson(np.array([0]), np.array([0]))] == [[0], [1]]
    every = np.arange(1, 500)
    assert not wilson(np.zeros_like(every), every)[0].any()
    assert (wilson(every, every)[1] == 1).all()
