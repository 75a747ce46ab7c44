"""Evaluation: the centre of each picture, once."""

from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Accuracy, Loss, TopKCategoricalAccuracy
from ignite.metrics.metric import MetricUsage
from torch import Tensor, nn
from torch.nn import functional

from plumage.engine.metrics import CalibrationError, LogitGap


def forward(
    model: nn.Module,
    transform: Callable[[Tensor], Tensor],
    autocast: Callable[[], torch.autocast],
    device: torch.device,
    stored: Tensor,
) -> Tensor:
    """(b, side, side, 3) uint8 → (b, K) float32 logits on the device: what evaluation and prediction have in common."""
    images = transform(stored.to(device, non_blocking=True))
    with autocast():
        return model(images).float()


def create_evaluator(
    model: nn.Module,
    criterion: Callable[[Tensor, Tensor], Tensor],
    transform: Callable[[Tensor], Tensor],
    autocast: Callable[[], torch.autocast],
    device: torch.device,
    classes: int,
) -> Engine:
    """An Engine over (iteration, uint8 pictures, labels, …). Its output: float32 logits (b, K), labels, on the device.

    Its metrics, as fractions and nats: accuracy, top5 (of fewer than five classes, all of them), loss (the criterion's,
    label smoothing included), nll (plain cross-entropy), ece (expected calibration error) and logit_gap (its mean). The
    first of equal logits is the prediction. They are of all processes' pictures; one that has none of a batch keeps in
    step with the others.
    """

    @torch.inference_mode()
    def step(engine: Engine, batch: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        stored, labels = batch[1], batch[2].to(device, non_blocking=True)
        if not len(labels):
            return torch.empty(0, classes, device=device), labels
        return forward(model, transform, autocast, device, stored), labels

    evaluator = Engine(step)
    evaluator.add_event_handler(Events.EPOCH_STARTED, lambda: model.eval())
    metrics = {
        "accuracy": Accuracy(device=device),
        "top5": TopKCategoricalAccuracy(min(5, classes), device=device),
        "loss": Loss(criterion, device=device),
        "nll": Loss(functional.cross_entropy, device=device),
        "ece": CalibrationError(device=device),
        "logit_gap": LogitGap(device),
    }
    # The mean loss over no pictures is no number, and no weight of 0 takes that back.
    with_pictures = Events.ITERATION_COMPLETED(event_filter=lambda engine, _: len(engine.state.output[1]) > 0)
    usage = MetricUsage(Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, with_pictures)
    for name, metric in metrics.items():
        metric.attach(evaluator, name, usage)
    return evaluator
