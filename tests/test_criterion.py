from math import exp, log

import pytest
import torch
from torch import nn
from torch.nn import functional

from plumage.engine.criterion import DistillationLoss, LabelSmoothingLoss


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
        assert (logits.grad.abs().max() < 1e-5) == vanishes


def test_computes_in_float32_whatever_it_is_given():
    logits, labels = torch.randn(4, 3).bfloat16(), torch.tensor([0, 1, 2, 0])
    loss = LabelSmoothingLoss(0.1, 3)(logits, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, LabelSmoothingLoss(0.1, 3)(logits.float(), labels))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_of_a_mixture_it_is_the_mixture_of_the_losses(smoothing):
    logits, first, second = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([1, 1, 0, 2, 3, 0])
    criterion = LabelSmoothingLoss(smoothing, 4)
    targets = 0.3 * functional.one_hot(first, 4) + 0.7 * functional.one_hot(second, 4)
    expected = 0.3 * criterion(logits, first) + 0.7 * criterion(logits, second)
    torch.testing.assert_close(criterion(logits, targets), expected)


class Fixed(nn.Module):
    """A teacher that always says the same."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images):
        return self.logits


@pytest.mark.parametrize("temperature", [1.0, 2.0, 20.0])
def test_distillation_is_the_written_out_sum(temperature):
    student, teacher = 5 * torch.randn(3, 4, dtype=torch.float64), 5 * torch.randn(3, 4, dtype=torch.float64)
    expected = 0.0
    for pair in zip(student.tolist(), teacher.tolist(), strict=True):
        z, r = ([exp(value / temperature) for value in values] for values in pair)
        q, p = [value / sum(z) for value in z], [value / sum(r) for value in r]
        expected += temperature**2 * sum(a * log(a / b) for a, b in zip(p, q, strict=True)) / 3
    loss = DistillationLoss(Fixed(teacher), temperature)(student, torch.zeros(3))
    assert loss.item() == pytest.approx(expected, rel=1e-3)


def test_distillation_has_the_gradient_of_the_papers_cross_entropy_and_none_for_the_teacher():
    student, teacher = torch.randn(3, 4, requires_grad=True), Fixed(torch.randn(3, 4))
    DistillationLoss(teacher, 20)(student, torch.zeros(3)).backward()
    # d/dz of T² · CE(softmax(r/T), softmax(z/T)) is T · (softmax(z/T) − softmax(r/T)); the mean divides by 3
    expected = 20 * ((student / 20).softmax(1) - (teacher.logits / 20).softmax(1)) / 3
    torch.testing.assert_close(student.grad, expected.detach(), atol=1e-5, rtol=1e-4)
    assert teacher.logits.grad is None


def test_there_is_nothing_to_learn_from_a_teacher_that_agrees_and_it_stays_in_evaluation_mode():
    teacher = Fixed(torch.randn(3, 4))
    loss = DistillationLoss(teacher, 20)
    assert loss(teacher.logits.detach() + 7, torch.zeros(3)).item() == pytest.approx(0, abs=1e-4)
    assert not teacher.training
