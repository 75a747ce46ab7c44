import numpy as np
import pytest
import torch
from ignite.exceptions import NotComputableError
from sklearn import metrics
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score

from plumage.engine.metrics import BINS, CalibrationError, CountByClass, LogitGap, calibration_bins

CPU = torch.device("cpu")


def outputs(classes=7, n=403):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator) + torch.nn.functional.one_hot(labels, classes)
    return 3 * logits, labels


def over_batches(metric, logits, labels):
    for batch in zip(logits.split(50), labels.split(50), strict=True):
        metric.update(batch)
    return metric.compute()


@pytest.mark.parametrize("classes", [2, 7, 50])
def test_calibration_as_torchmetrics_computes_it(classes):
    logits, labels = outputs(classes)
    reference = MulticlassCalibrationError(classes, n_bins=BINS)(logits, labels)
    assert over_batches(CalibrationError(device=CPU), logits, labels) == pytest.approx(float(reference), abs=1e-6)


def test_bins_by_hand():
    logits = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.62, 0.38], [0.5, 0.5]]).log()
    counts, confidence, right = calibration_bins(logits, torch.tensor([0, 1, 1, 0]))
    # Of 15: 0.9 is in the fourteenth, 0.62 in the tenth, 0.5 in the eighth.
    assert {n: c for n, c in enumerate(counts.tolist(), 1) if c} == {8: 1, 10: 1, 14: 2}
    assert [confidence[n - 1].item() for n in (8, 10, 14)] == pytest.approx([0.5, 0.62, 1.8])
    assert [right[n - 1].item() for n in (8, 10, 14)] == [1, 0, 1]
    error = CalibrationError(device=CPU)
    error.update((logits, torch.tensor([0, 1, 1, 0])))
    assert error.compute() == pytest.approx((0.8 + 0.62 + 0.5) / 4)


def test_certainty_and_logits_in_half_precision_fall_into_a_bin():
    logits = torch.tensor([[100.0, -100.0]], dtype=torch.bfloat16)
    assert calibration_bins(logits, torch.tensor([0]))[:, -1].tolist() == [1, 1, 1]


def test_the_gap_is_an_explicit_sum():
    logits, labels = outputs()
    total = 0.0
    for row in logits.double().tolist():
        *others, largest = sorted(row)
        total += largest - sum(others) / len(others)
    assert over_batches(LogitGap(CPU), logits, labels) == pytest.approx(total / len(logits), rel=1e-6)


@pytest.mark.parametrize("classes", [2, 7, 50])
def test_accuracy_over_classes_as_torchmetrics_and_scikit_learn_compute_it(classes):
    logits, labels = outputs(classes)
    labels[labels == 1] = 0
    scores = over_batches(CountByClass(classes, CPU), logits, labels)
    predicted = logits.argmax(1)
    assert scores.balanced_accuracy == pytest.approx(
        metrics.recall_score(labels, predicted, labels=labels.unique(), average="macro")
    )
    assert scores.macro_f1 == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    assert scores.macro_f1 == pytest.approx(float(MulticlassF1Score(classes, average="macro")(logits, labels)))
    by_class = MulticlassAccuracy(classes, average="none")(logits, labels).numpy()
    np.testing.assert_allclose(scores.recall, by_class, rtol=1e-6)


def test_many_classes_take_no_memory_for_their_square():
    counts = CountByClass(100_000, CPU)
    counts.update((torch.randn(2, 100_000), torch.tensor([5, 99_999])))
    assert counts.compute().pictures.sum() == 2


def test_counts_over_processes_are_of_all_pictures(monkeypatch):
    logits, labels = outputs()
    whole = over_batches(CountByClass(7, CPU), logits, labels)
    one, other = CountByClass(7, CPU), CountByClass(7, CPU)
    over_batches(one, logits[:130], labels[:130])
    over_batches(other, logits[130:], labels[130:])
    monkeypatch.setattr("ignite.metrics.metric.idist.get_world_size", lambda: 2)
    monkeypatch.setattr("ignite.metrics.metric.idist.all_reduce", lambda mine: mine + other._counts)
    for mine, of_all in zip(vars(one.compute()).values(), vars(whole).values(), strict=True):
        assert mine.tolist() == of_all.tolist()


@pytest.mark.parametrize("metric", [CountByClass(7, CPU), CalibrationError(device=CPU)])
def test_of_no_predictions_there_is_nothing(metric):
    with pytest.raises(NotComputableError):
        metric.compute()


@pytest.mark.parametrize("metric", [CalibrationError(device=CPU), LogitGap(CPU)])
def test_they_begin_anew_and_of_nothing_there_is_none(metric):
    logits, labels = outputs()
    over_batches(metric, logits[:100], labels[:100])
    metric.reset()
    with pytest.raises(NotComputableError):
        metric.compute()
    alone = over_batches(metric, logits, labels)
    saved = metric.state_dict()
    metric.reset()
    metric.load_state_dict(saved)
    assert metric.compute() == alone


@pytest.mark.parametrize("create", [lambda: CalibrationError(device=CPU), lambda: LogitGap(CPU)])
def test_processes_that_share_the_pictures_agree_with_one_that_has_all(create, monkeypatch):
    """Ignite's sums over processes, played by adding what the other process holds."""
    logits, labels = outputs()
    whole = over_batches(create(), logits, labels)
    one, other = create(), create()
    over_batches(one, logits[:130], labels[:130])
    over_batches(other, logits[130:], labels[130:])
    held = iter(getattr(other, name) for name in other._state_dict_all_req_keys)
    monkeypatch.setattr("ignite.metrics.metric.idist.get_world_size", lambda: 2)
    monkeypatch.setattr("ignite.metrics.metric.idist.all_reduce", lambda mine: mine + next(held))
    assert one.compute() == pytest.approx(whole, rel=1e-6)
