"""Metrics that Ignite lacks. They accumulate on the device, which nothing waits for before they are computed."""

import torch
from ignite.exceptions import NotComputableError
from ignite.metrics import Loss, Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

BINS = 15


def logit_gap(logits: Tensor) -> Tensor:
    """(n, K) → (n,): the largest logit minus the mean of the others (He et al. 2019, figure 4)."""
    largest = logits.amax(1)
    return largest - (logits.sum(1) - largest) / (logits.shape[1] - 1)


def calibration_bins(logits: Tensor, labels: Tensor) -> Tensor:
    """(n, K), (n,) → (3, BINS) float32: by bin of confidence, how many predictions, its sum, and how many are right.

    The bins are of equal width, open below and closed above (Guo et al. 2017).
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

    _state_dict_all_req_keys = ("_bins",)

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
