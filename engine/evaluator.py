"""Evaluation: the centre of each picture, once."""

from collections.abc import Callable
from math import ceil

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Accuracy, Loss, MetricsLambda, TopKCategoricalAccuracy
from ignite.metrics.metric import MetricUsage
from torch import Tensor, nn
from torch.nn import functional

from plumage.data.loader import Batch, Pictures, eval_batches
from plumage.engine.metrics import CalibrationError, CountByClass, LogitGap
from plumage.hardware.device import Machine
from plumage.hardware.processes import take_buffers
from plumage.models.maps import class_maps, over_pictures


def forward(model: nn.Module, transform: Callable[[Tensor], Tensor], machine: Machine, stored: Tensor) -> Tensor:
    """Compute the (b, K) float32 logits of (b, side, side, 3) uint8, on the device: for evaluation and prediction."""
    images = transform(stored.to(machine.device, non_blocking=True))
    with machine.autocast():
        return model(images).float()


@torch.inference_mode()
def forward_maps(
    model: nn.Module, transform: Callable[[Tensor], Tensor], machine: Machine, stored: Tensor, labels: Tensor
) -> Tensor:
    """Compute the (b, h, w) float32 maps of these labels (b,), for pictures as ``forward`` takes them.

    They cover what the network sees of the pictures evenly.
    """
    images = transform(stored.to(machine.device, non_blocking=True))
    with machine.autocast():
        maps = class_maps(model, images, labels.to(machine.device))[1]
    return over_pictures(maps, images.shape[-1])


def create_evaluator(
    model: nn.Module,
    criterion: Callable[[Tensor, Tensor], Tensor],
    transform: Callable[[Tensor], Tensor],
    machine: Machine,
    classes: int,
) -> Engine:
    """Return an Engine over ``Batch``es. Its output: float32 logits (b, K) and labels (b,), on the device.

    Its metrics, as fractions and nats: accuracy, balanced_accuracy and macro_f1 (see ``ClassScores``), top5 (of fewer
    than five classes, all of them), loss (the criterion's, label smoothing included), nll (plain cross-entropy), ece
    (expected calibration error) and logit_gap (its mean). The first of equal logits is the prediction. They are of all
    processes' pictures; one that has none of a batch keeps in step with the others.
    """
    device = machine.device

    @torch.inference_mode()
    def step(engine: Engine, batch: Batch) -> tuple[Tensor, Tensor]:
        labels = batch.labels.to(device, non_blocking=True)
        if not len(labels):
            return torch.empty(0, classes, device=device), labels
        return forward(model, transform, machine, batch.images), labels

    evaluator = Engine(step)
    evaluator.add_event_handler(Events.EPOCH_STARTED, lambda: model.eval())
    by_class = CountByClass(classes, device)
    metrics = {
        "accuracy": Accuracy(device=device),
        "balanced_accuracy": MetricsLambda(lambda scores: scores.balanced_accuracy, by_class),
        "macro_f1": MetricsLambda(lambda scores: scores.macro_f1, by_class),
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


def run_evaluator(evaluator: Engine, pictures: Pictures, model: nn.Module) -> dict[str, float]:
    """Return the metrics of ``model``, which the evaluator evaluates: with the first process's buffers, for all."""
    take_buffers(model)
    return evaluator.run(eval_batches(pictures), epoch_length=ceil(len(pictures.rows) / pictures.batch_size)).metrics
