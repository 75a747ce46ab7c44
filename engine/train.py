"""train(recipe, run): the pieces put together, in the order of a method section."""

import logging
from functools import partial
from math import ceil
from typing import Any

import torch
from ignite.engine import Events

from data.augment import Transform
from data.dataset import Dataset, prepare, recall
from data.loader import epoch_length, eval_batches, train_batches
from data.split import write_split
from data.store import write_skipped
from engine.checkpoint import TrainingState, save_checkpoint
from engine.criterion import LabelSmoothingLoss
from engine.evaluator import create_evaluator
from engine.handlers import (
    attach_checkpoints,
    attach_divergence_guard,
    attach_history,
    attach_learning_rate,
    attach_progress,
    attach_stop,
    check_finite,
    keep_best,
    learning_rate,
)
from engine.machine import Machine
from engine.recipe import Recipe
from engine.rundir import RunDir
from engine.signals import StopSignals
from engine.trainer import attach_training_metrics, create_trainer
from errors import UserError
from models.resnet import build_model
from models.weights import load_file, load_pretrained

log = logging.getLogger("plumage")


def train(recipe: Recipe, run: RunDir, machine: Machine, signals: StopSignals) -> dict[str, Any]:
    """Train ``recipe`` into ``run``, or go on from its last checkpoint. Returns the best epoch's row of the history."""
    dataset = load_dataset(recipe, run, machine)
    classes, labels = dataset.samples.classes, dataset.samples.labels
    train_rows, val_rows = dataset.rows("train"), dataset.rows("val")
    steps = epoch_length(len(train_rows), recipe.batch_size)
    device, pin = machine.device, machine.device.type == "cuda"
    every = 10 if pin else 1  # iterations between looks at the metrics, which a GPU has to be waited for

    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, len(classes))
    if recipe.weights != "none" and not run.last.exists():
        load_pretrained(model, recipe.model, recipe.weights)
    model.to(device)
    if machine.compile:
        model.compile()
    criterion = LabelSmoothingLoss(recipe.smoothing, len(classes))
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
        fused=device.type != "mps",
    )
    scaler = torch.amp.GradScaler(device.type, enabled=machine.precision == "fp16")
    view = Transform(recipe.crop, recipe.seed).to(device)
    rate = partial(
        learning_rate,
        total=recipe.epochs * steps,
        warmup=round(recipe.warmup_epochs * steps),
        peak=recipe.lr,
        schedule=recipe.schedule,
    )

    def validate() -> dict[str, float]:
        batches = eval_batches(dataset.store, val_rows, labels[val_rows], recipe.batch_size, pin)
        return evaluator.run(batches, epoch_length=ceil(len(val_rows) / recipe.batch_size)).metrics

    def save(epoch_done: bool = False) -> None:
        check_finite(metrics["loss"].compute(), trainer)
        save_checkpoint(run.last, state.content(epoch_done))

    trainer = create_trainer(model, optimizer, criterion, view.random, machine.autocast, scaler, device)
    evaluator = create_evaluator(model, criterion, view.center, machine.autocast, device, len(classes))
    metrics = attach_training_metrics(trainer, steps, device)
    state = TrainingState(trainer, model, optimizer, scaler, metrics, classes, device)

    def show() -> dict[str, str]:
        now = {name: f"{metric.compute():.3f}" for name, metric in metrics.items()}
        return {**now, "lr": f"{optimizer.param_groups[0]['lr']:.2g}"}

    attach_learning_rate(trainer, optimizer, rate)
    attach_divergence_guard(trainer, metrics["loss"], every)
    attach_progress(trainer, "epoch", recipe.batch_size, every, show)
    attach_progress(evaluator, "validation", recipe.batch_size, every)
    attach_history(trainer, validate, optimizer, len(train_rows), run)
    attach_checkpoints(trainer, save, run)
    for engine in (trainer, evaluator):
        attach_stop(engine, signals, save)

    with signals.deferred():
        resume(state, run)
        if trainer.state.epoch < recipe.epochs:
            start = trainer.state.iteration
            batches = train_batches(dataset.store, train_rows, labels[train_rows], recipe.batch_size, recipe.seed, start, pin)
            trainer.run(batches, max_epochs=recipe.epochs, epoch_length=steps)
        else:
            log.info(f"{run.path}: all {recipe.epochs} epochs are done")
    return run.best_epoch


def load_dataset(recipe: Recipe, run: RunDir, machine: Machine) -> Dataset:
    """The pictures of a run: as its files say where it has begun, else prepared and written down."""
    if run.holds_run:
        return recall_dataset(recipe, run, machine)
    dataset = prepare(
        recipe.data, recipe.resize, recipe.val_fraction, recipe.seed, machine.cache, machine.use_store, machine.workers
    )
    classes = dataset.samples.classes
    if recipe.smoothing > (most := (len(classes) - 1) / len(classes)):
        raise UserError(f"--smoothing {recipe.smoothing}: with {len(classes)} classes at most {most:.3g}, the uniform target")
    write_split(run.split, dataset.samples)
    write_skipped(run.skipped, dataset.store.skipped)
    run.describe(recipe, classes, machine)
    return dataset


def recall_dataset(recipe: Recipe, run: RunDir, machine: Machine) -> Dataset:
    return recall(
        recipe.data, recipe.resize, run.classes, run.split, run.skipped, machine.cache, machine.use_store, machine.workers
    )


def resume(state: TrainingState, run: RunDir) -> None:
    """Bring ``state`` to the last checkpoint, if there is one, and the run's other files with it."""
    if run.last.exists():
        content = load_file(run.last)
        state.restore(content)
        trainer = state.trainer
        recorded, inside = divmod(trainer.state.iteration, trainer.state.epoch_length)
        unrecorded = not inside and not content["epoch_done"]
        run.keep_history(recorded - unrecorded)
        log.info(f"going on from iteration {trainer.state.iteration}")
        if unrecorded:  # stopped between an epoch's last step and its row in the history
            trainer.fire_event(Events.EPOCH_COMPLETED)
        elif not inside:  # perhaps stopped between last.pt and best.pt
            keep_best(run, recorded)
    else:
        run.keep_history(0)
