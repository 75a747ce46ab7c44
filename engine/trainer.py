"""The train step, and what is measured while it trains."""

from collections.abc import Callable

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Accuracy, Loss, Metric
from ignite.metrics.metric import MetricUsage
from torch import Tensor, nn


def create_trainer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor],
    transform: Callable[[Tensor, int], Tensor],
    autocast: Callable[[], torch.autocast],
    scaler: torch.amp.GradScaler,
    device: torch.device,
) -> Engine:
    """An Engine over (iteration, uint8 pictures, labels).

    Its output: ``loss`` (0-d), ``logits`` (b, K) and ``labels`` (b,), on the device.

    transform: (uint8 pictures as stored, 0-based iteration) → float pictures as the network sees them.
    Nothing in the step waits for the device, so that the next batch is prepared while this one is computed.
    """

    def step(engine: Engine, batch: tuple[int, Tensor, Tensor]) -> dict[str, Tensor]:
        iteration, stored, labels = batch
        images = transform(stored.to(device, non_blocking=True), iteration)
        labels = labels.to(device, non_blocking=True)
        with autocast():
            logits = model(images)
        loss = criterion(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return {"loss": loss.detach(), "logits": logits.detach(), "labels": labels}

    trainer = Engine(step)
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: model.train())
    return trainer


def attach_training_metrics(trainer: Engine, epoch_length: int, device: torch.device) -> dict[str, Metric]:
    """``loss`` and ``accuracy`` over the epoch so far, as the network was at each step, accumulated on the device.

    They begin with the epoch's first iteration and not with EPOCH_STARTED, which fires again where an epoch is resumed.
    """
    metrics: dict[str, Metric] = {
        "loss": Loss(lambda loss, labels: loss, lambda out: (out["loss"], out["labels"]), device=device),
        "accuracy": Accuracy(lambda out: (out["logits"], out["labels"]), device=device),
    }
    first = Events.ITERATION_STARTED(event_filter=lambda engine, iteration: (iteration - 1) % epoch_length == 0)
    usage = MetricUsage(first, Events.EPOCH_COMPLETED, Events.ITERATION_COMPLETED)  # type: ignore[arg-type]
    for name, metric in metrics.items():
        metric.attach(trainer, name, usage)
    return metrics
