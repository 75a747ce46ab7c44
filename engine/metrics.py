"""Metrics that Ignite lacks, which accumulate on the device and make nothing wait; and whether numbers are numbers."""

import math

import torch
from ignite.exceptions import NotComputableError
from ignite.metrics import Loss, Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

from plumage.errors import Diverged
from plumage.hardware.processes import any_process
from plumage.rundir.scores import ClassScores

BINS = 15


def logit_gap(logits: Tensor) -> Tensor:
    """Return (n,) from (n, K): the largest logit minus the mean of the others (He et al. 2019, figure 4)."""
    largest = logits.amax(1)
    return largest - (logits.sum(1) - largest) / (logits.shape[1] - 1)


def calibration_bins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (3, BINS) float32 by bin of confidence: how many predictions, its sum, and how many are right.

    logits: (n, K). labels: (n,). The bins are of equal width, open below and closed above (Guo et al. 2017).
    """
    confidence, predicted = logits.softmax(1).max(1)
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    each = torch.stack([torch.ones_like(confidence), confidence, (predicted == labels).to(confidence)])
    return torch.zeros(3, BINS, device=logits.device).index_add_(1, bins, each.float())


class LogitGap(Loss):
    """The mean ``logit_gap``."""

    def __init__(self, device: torch.device):
        super().__init__(lambda logits, labels: logit_gap(logits).mean(), device=device)


class CalibrationError(Metric):
    """The expected calibration error (Guo et al. 2017), as a fraction, over ``calibration_bins``."""

    _state_dict_all_req_keys = ("_bins",)  # as Ignite's guide to new metrics asks

    @reinit__is_reduced
    def reset(self) -> None:
        self._bins = torch.zeros(3, BINS, device=self._device)

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Tensor]) -> None:
        self._bins += calibration_bins(*output).to(self._device)

    @sync_all_reduce("_bins")
    def compute(self) -> float:
        counts, confidence, right = self._bins
        if not counts.any():
            raise NotComputableError("CalibrationError needs at least one prediction")
        return float((right - confidence).abs().sum() / counts.sum())


class CountByClass(Metric):
    """The ``ClassScores``: three counts of each class, however many there are."""

    _state_dict_all_req_keys = ("_counts",)

    def __init__(self, classes: int, device: torch.device):
        self.classes = classes
        super().__init__(device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        self._counts = torch.zeros(3, self.classes, dtype=torch.int32, device=self._device)  # which all devices add

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Tensor]) -> None:
        labels, predicted = output[1].to(self._device), output[0].argmax(1).to(self._device)
        ones = torch.ones_like(labels, dtype=torch.int32)
        for counts, classes, each in zip(
            self._counts, (labels, predicted, labels), (ones, ones, (labels == predicted).int()), strict=True
        ):
            counts.index_add_(0, classes, each)

    @sync_all_reduce("_counts")
    def compute(self) -> ClassScores:
        if not self._counts.any():
            raise NotComputableError("CountByClass needs at least one prediction")
        return ClassScores(*self._counts.long().cpu().numpy())


def check_finite(loss: float, iteration: int, rate: float) -> None:
    """Raise Diverged where ``loss`` is no number."""
    if not math.isfinite(loss):
        raise Diverged(
            f"the loss is {loss} at iteration {iteration}, at a rate of {rate:.3g}: take a lower --lr or more "
            "--warmup-epochs, in another --run; what was saved before is as it was"
        )


def check_weights(weights: dict[str, Tensor], iteration: int, rate: float) -> None:
    """Raise Diverged where a step has ruined ``weights`` that the loss does not show yet."""
    finite = torch.stack([tensor.isfinite().all() for tensor in weights.values()])  # so that the device is asked once
    if any_process(not finite.all()):
        check_finite(math.nan, iteration, rate)
