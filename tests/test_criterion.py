from math import log

import pytest
import torch
from torch.nn import functional

from engine.criterion import LabelSmoothingLoss


@pytest.mark.parametrize(("classes", "smoothing"), [(2, 0.1), (3, 0.0), (5, 0.3), (200, 0.1), (4, 0.75)])
def test_equals_the_explicit_sum(classes, smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, classes, generator=generator, dtype=torch.float32)
    labels = torch.randint(classes, (7,), generator=generator)
    target = torch.full((7, classes), smoothing / (classes - 1), dtype=torch.float64)
    target[torch.arange(7), labels] = 1 - smoothing
    log_p = logits.double() - logits.double().exp().sum(1, keepdim=True).log()
    expected = -(target * log_p).sum(1).mean()
    assert LabelSmoothingLoss(smoothing, classes)(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_without_smoothing_it_is_plain_cross_entropy():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    assert torch.equal(LabelSmoothingLoss(0.0, 4)(logits, labels), functional.cross_entropy(logits, labels))


@pytest.mark.parametrize(("classes", "smoothing", "gap"), [(200, 0.1, 7.4906), (200, 0.2, None), (3, 0.1, None)])
def test_gradient_vanishes_at_the_theoretical_gap(classes, smoothing, gap):
    theory = log((classes - 1) * (1 - smoothing) / smoothing)
    if gap:
        assert theory == pytest.approx(gap, abs=1e-3)
    for offset, vanishes in ((0.0, True), (0.1, False)):
        logits = torch.zeros(1, classes)
        logits[0, 1] = theory + offset
        logits.requires_grad_()
        LabelSmoothingLoss(smoothing, classes)(logits, torch.tensor([1])).backward()
        assert (logits.grad.abs().max() < 1e-6) == vanishes


def test_computes_in_float32_whatever_it_is_given():
    logits, labels = torch.randn(4, 3).bfloat16(), torch.tensor([0, 1, 2, 0])
    loss = LabelSmoothingLoss(0.1, 3)(logits, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, LabelSmoothingLoss(0.1, 3)(logits.float(), labels))
