"""The train step, and what is measured while it trains."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Accuracy, Loss, Metric
from ignite.metrics.metric import MetricUsage
from torch import Tensor, nn


def create_trainer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor],
    transform: Callable[[Tensor, Tensor, int, Any], tuple[Tensor, Tensor]],
    autocast: Callable[[], torch.autocast],
    scaler: torch.amp.GradScaler,
    device: torch.device,
    *,
    distillation: Callable[[Tensor, Tensor], Tensor] | None = None,
    accumulate: int = 1,
    clip_grad_norm: float = 0.0,
) -> Engine:
    """An Engine over (iteration, uint8 pictures, labels, share), whose ``whole`` is the batch's size for all processes.

    Its output: ``loss`` (0-d), ``logits`` (b, K) and ``labels`` (b,), on the device; of mixed pictures, the label of
    the one with the larger share. Each process's are of its own pictures, which may be none.

    transform: (uint8 pictures as stored, labels, 0-based iteration, share) → float pictures as the network sees them,
    targets.
    distillation: (logits, pictures) → what is added to the loss.
    accumulate: how many parts a process computes its pictures in; the gradient is that of the mean over the batch.
    clip_grad_norm: the largest norm that the gradient may have; 0: any.
    Nothing in the step waits for the device, so that the next batch is prepared while this one is computed.
    """
    processes, unsynchronised = idist.get_world_size(), getattr(model, "no_sync", nullcontext)

    def loss_of(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if not len(images):  # a gradient of zeros, since the other processes wait for one; they exchange float32
            logits = model(images)
            return logits.sum(), logits.detach()
        with autocast():
            logits = model(images)
            loss = criterion(logits, targets)
            return (loss + distillation(logits, images) if distillation else loss), logits.detach()

    def step(engine: Engine, batch: tuple[int, Tensor, Tensor, Any]) -> dict[str, Tensor]:
        iteration, stored, labels, share = batch
        stored, labels = (tensor.to(device, non_blocking=True) for tensor in (stored, labels))
        images, targets = transform(stored, labels, iteration, share)
        optimizer.zero_grad(set_to_none=True)
        # As many for each process, and two pictures in each part, for BatchNorm.
        parts = max(min(accumulate, share.whole // processes // 2), 1)
        weight = len(images) * processes / share.whole  # DistributedDataParallel takes the mean over the processes
        total, logits = torch.zeros((), device=device), []
        for number, part, wanted in zip(
            range(parts), images.tensor_split(parts), targets.tensor_split(parts), strict=True
        ):
            with nullcontext() if number == parts - 1 else unsynchronised():
                loss, seen = loss_of(part, wanted)
                loss = loss * (len(part) / max(len(images), 1))
                scaler.scale(loss * weight).backward()
            total += loss.detach()
            logits.append(seen)
        if clip_grad_norm:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        return {
            "loss": total,
            "logits": torch.cat(logits),
            "labels": targets if targets.ndim == 1 else targets.argmax(1),
        }

    trainer = Engine(step)
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: model.train())
    return trainer


def attach_training_metrics(trainer: Engine, epoch_length: int, device: torch.device) -> dict[str, Metric]:
    """``loss`` and ``accuracy`` over the epoch so far, as the network was at each step, accumulated on the device.

    With mixup, a prediction is right where it is the class of the picture with the larger share.
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
