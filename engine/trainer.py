"""The train step, and what is measured while it trains."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Accuracy, Loss, Metric
from torch import Tensor, nn

from plumage.data.loader import Batch
from plumage.hardware.device import Machine
from plumage.recipe import Recipe


def create_trainer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    transform: Callable[[Tensor, Tensor, int, Any], tuple[Tensor, Tensor]],
    machine: Machine,
    recipe: Recipe,
) -> Engine:
    """Return an Engine over ``Batch``es, whose shard says how large the batch of all processes is.

    Its output: ``loss`` (0-d), ``logits`` (b, K) and ``labels`` (b,), on the device; of mixed pictures, the label of
    the one with the larger λ. Each process's are of its own pictures, which may be none.

    loss: (logits, targets, images) → 0-d. transform: (uint8 pictures as stored, labels, 0-based iteration, shard) →
    float pictures as the network sees them, targets. recipe: of it, ``accumulate``, the micro-batches that a process
    computes its pictures in, with the gradient of the mean over the batch; and ``clip_grad_norm``.
    Nothing in the step waits for the device, so that the next batch is prepared while this one is computed.
    """
    world_size, unsynchronised = idist.get_world_size(), getattr(model, "no_sync", nullcontext)
    device = machine.device

    def loss_of(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if not len(images):  # a gradient of zeros, since the other processes wait for one; they exchange float32
            logits = model(images)
            return logits.sum(), logits.detach()
        with machine.autocast():
            logits = model(images)
            return loss(logits, targets, images), logits.detach()

    def step(engine: Engine, batch: Batch) -> dict[str, Tensor]:
        iteration, stored, labels, shard = batch
        stored, labels = (tensor.to(device, non_blocking=True) for tensor in (stored, labels))
        images, targets = transform(stored, labels, iteration, shard)
        optimizer.zero_grad(set_to_none=True)
        # As many for each process, and two pictures in each, for BatchNorm.
        micro_batches = max(min(recipe.accumulate, shard.whole // world_size // 2), 1)
        weight = len(images) * world_size / shard.whole  # DistributedDataParallel takes the mean over the processes
        total, logits = torch.zeros((), device=device), []
        splits = zip(images.tensor_split(micro_batches), targets.tensor_split(micro_batches), strict=True)
        for number, (some_images, some_targets) in enumerate(splits, 1):
            with nullcontext() if number == micro_batches else unsynchronised():
                value, seen = loss_of(some_images, some_targets)
                value = value * (len(some_images) / max(len(images), 1))
                scaler.scale(value * weight).backward()
            total += value.detach()
            logits.append(seen)
        if recipe.clip_grad_norm:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        labels = targets if targets.ndim == 1 else targets.argmax(1)
        return {"loss": total, "logits": torch.cat(logits), "labels": labels}

    trainer = Engine(step)
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: model.train())
    return trainer


def attach_training_metrics(trainer: Engine, epoch_length: int, device: torch.device) -> dict[str, Metric]:
    """Return ``loss`` and ``accuracy`` over the epoch so far, as the network was at each step, kept on the device.

    With mixup, a prediction is right where it is the class of the picture with the larger λ.
    They begin with the epoch's first iteration and not with EPOCH_STARTED, which fires again where an epoch is resumed.
    """
    metrics: dict[str, Metric] = {
        "loss": Loss(lambda loss, labels: loss, lambda out: (out["loss"], out["labels"]), device=device),
        "accuracy": Accuracy(lambda out: (out["logits"], out["labels"]), device=device),
    }
    first = Events.ITERATION_STARTED(event_filter=lambda engine, iteration: (iteration - 1) % epoch_length == 0)
    for metric in metrics.values():
        trainer.add_event_handler(first, metric.started)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, metric.iteration_completed)
    return metrics
