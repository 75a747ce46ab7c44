"""train(recipe, run): the pieces put together, in the order of a method section."""

import logging
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from plumage.data.augment import Transform
from plumage.data.feed import reader
from plumage.data.loader import Pictures, epoch_length, train_batches
from plumage.data.store import Cache
from plumage.engine import handlers, prepare
from plumage.engine.checkpoint import Saver, TrainingState
from plumage.engine.criterion import DistillationLoss, LabelSmoothingLoss
from plumage.engine.evaluator import create_evaluator, run_evaluator
from plumage.engine.learnt import tell_weights
from plumage.engine.metrics import check_finite
from plumage.engine.resume import is_finished, restore
from plumage.engine.schedule import learning_rate
from plumage.engine.signals import StopSignals
from plumage.engine.trainer import attach_training_metrics, create_trainer
from plumage.errors import UserError, shortage
from plumage.hardware import processes
from plumage.hardware.cores import usable_time
from plumage.hardware.device import Machine
from plumage.models.batchnorm import synchronise
from plumage.models.resnet import parameter_groups
from plumage.models.weights import Weights
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir
from plumage.rundir.history import History

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger("plumage")

VALIDATED = ("loss", "accuracy", "balanced_accuracy", "macro_f1", "top5", "nll")  # what the history keeps of it


def train(
    recipe: Recipe,
    run: RunDir,
    machine: Machine,
    cache: Cache,
    signals: StopSignals,
    checkpoint_minutes: float = 10,
    tensorboard: bool = False,
) -> bool:
    """Train ``recipe`` into ``run``, or go on from its last checkpoint. Returns whether anything was left to do.

    checkpoint_minutes: how old the last checkpoint may become before another is saved inside an epoch.
    tensorboard: log what goes into the history, and each step, for TensorBoard too.
    """
    begun, finished = processes.from_first("a look at the run", lambda: (run.holds_run, is_finished(recipe, run)))
    if finished:
        log.info(f"{run.path}: finished; nothing is left to do")
        return False
    gather = partial(prepare.gather, recipe, run, begun, cache)
    dataset, teacher, pretrained = processes.in_turns("the pictures and weights", gather)
    prepare.check_alike(dataset, machine)

    rank, world_size = idist.get_rank(), idist.get_world_size()
    read = reader(dataset.store, machine.device)
    training, validation = (
        Pictures(read, *dataset.pictures(side), recipe.batch_size, rank, world_size) for side in ("train", "val")
    )
    state, evaluator = build(recipe, machine, dataset.samples.classes, len(training.rows), pretrained, teacher)
    validate = partial(run_evaluator, evaluator, validation, state.average or state.model)
    if rank == 0:
        if not begun:
            tell_weights(recipe, dataset)
        note = prepare.go_on if begun else prepare.begin
        note(run, recipe, dataset, machine)

    history = run.readable_history(recipe.best)
    with signals.deferred(), Saver(state, run, history, checkpoint_minutes) as saver, ExitStack() as screen:
        unrecorded = restore(state, run, history)
        with handlers.open_log(run.path, state.iteration) if tensorboard and rank == 0 else nullcontext() as writer:
            attach_before_step(state)
            if world_size == 1 and machine.device.type == "cpu":
                handlers.attach_busy_notice(state.trainer, min(torch.get_num_threads(), usable_time()))
            attach_after_step(state, evaluator, saver, signals, writer)
            for engine, label, show in ((state.trainer, "training", state.status), (evaluator, "validating", dict)):
                progress = handlers.attach_progress(engine, label, recipe.batch_size, machine.look_every, show)
                screen.enter_context(progress)
            attach_at_epoch_end(state, validate, saver, history, writer)
            if unrecorded:  # it was stopped between an epoch's last step and its row in the history
                state.trainer.fire_event(Events.EPOCH_COMPLETED)
            if state.trainer.state.epoch < recipe.epochs and not ends_early(history, recipe):
                run_trainer(state, training)
    return True


def build(
    recipe: Recipe,
    machine: Machine,
    classes: list[str],
    pictures: int,
    pretrained: Weights | None,
    teacher: nn.Module | None,
) -> tuple[TrainingState, Engine]:
    """Build what is trained, as it begins, on ``pictures`` an epoch; and the engine that evaluates it."""
    device = machine.device
    model = prepare.initial_model(recipe, pretrained, classes).to(device)
    if recipe.sync_bn and idist.get_world_size() > 1:
        model = synchronise(model, device)
    network = processes.wrap_ddp(model, device, recipe.freeze_backbone_epochs > 0)
    criterion = LabelSmoothingLoss(recipe.smoothing, len(classes))
    distillation = DistillationLoss(teacher.to(device), recipe.temperature) if teacher else None

    def loss(logits: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        own: Tensor = criterion(logits, targets)
        return own + distillation(logits, images) if distillation else own

    momentum = recipe.momentum
    groups = parameter_groups(model, recipe.weight_decay, recipe.bias_decay, recipe.head_lr_multiplier)
    optimizer = torch.optim.SGD(groups, recipe.lr, momentum, nesterov=momentum > 0, fused=device.type != "mps")
    if momentum:  # a first step that the scaler skips would leave the fused optimizer's as memory happened to be
        for parameter in model.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    scaler = torch.amp.GradScaler(device.type, enabled=machine.precision == "fp16")
    view = Transform(recipe.crop, recipe.seed, recipe.augment, recipe.mixup, len(classes), recipe.flip).to(device)

    trainer = create_trainer(network, optimizer, scaler, loss, view.random, machine, recipe)
    average = handlers.attach_ema(trainer, model, recipe.ema) if recipe.ema else None
    evaluator = create_evaluator(average or network, criterion, view.center, machine, len(classes))
    metrics = attach_training_metrics(trainer, epoch_length(pictures, recipe.batch_size), device)
    for module in filter(None, (network, average, teacher) if machine.compile else ()):
        module.compile()
    state = TrainingState(trainer, model, average, optimizer, scaler, metrics, classes, pictures, recipe, machine)
    return state, evaluator


def attach_before_step(state: TrainingState) -> None:
    """Attach what comes before a step: its learning rate, and which layers learn."""
    trainer, recipe = state.trainer, state.recipe
    total, warmup = recipe.epochs * state.epoch_length, round(recipe.warmup_epochs * state.epoch_length)
    rate = partial(learning_rate, total=total, warmup=warmup, peak=recipe.lr, schedule=recipe.schedule)
    handlers.attach_learning_rate(trainer, state.optimizer, rate)
    if recipe.freeze_backbone_epochs:
        handlers.attach_freezing(trainer, state.model, state.model.get_submodule("fc"), recipe.freeze_backbone_epochs)


def attach_after_step(
    state: TrainingState, evaluator: Engine, saver: Saver, signals: StopSignals, writer: "SummaryWriter | None" = None
) -> None:
    """Attach what follows a step of training, in this order, and of validation."""
    trainer, every = state.trainer, state.machine.look_every
    alone = idist.get_world_size() == 1  # several processes wait for each other where they agree on something

    @trainer.on(Events.ITERATION_COMPLETED)
    def after_step() -> None:
        looks = state.iteration % every == 0
        if looks:
            state.compute_metrics()
            check_finite(trainer.state.metrics["loss"], state.iteration, state.rate)
        if looks and writer:
            output: Any = trainer.state.output
            handlers.log_scalars(writer, "step", {"loss": output["loss"], "lr": state.rate}, state.iteration)
        if looks or alone:
            if processes.first_says(saver.is_due):
                saver.save()
            handlers.stop_if_signalled(signals, saver.save)

    @evaluator.on(Events.ITERATION_COMPLETED(every=1 if alone else every))
    def after_validation_step() -> None:
        handlers.stop_if_signalled(signals, saver.save)


def attach_at_epoch_end(
    state: TrainingState,
    validate: Callable[[], dict[str, float]],
    saver: Saver,
    history: History,
    writer: "SummaryWriter | None" = None,
) -> None:
    """Attach what ends an epoch, in this order: what is recorded has been checked, what is saved is recorded.

    A row's seconds cover training and validation, its images_per_second training alone.
    """
    trainer, recipe, writes = state.trainer, state.recipe, idist.get_rank() == 0
    begun, start = perf_counter(), None  # where an epoch's end alone is made up for, its speed is not known

    @trainer.on(Events.EPOCH_STARTED)
    def start_clock() -> None:
        nonlocal begun, start
        begun, start = perf_counter(), state.iteration

    @trainer.on(Events.EPOCH_COMPLETED)
    def at_epoch_end() -> None:
        state.compute_metrics()
        check_finite(trainer.state.metrics["loss"], state.iteration, state.rate)
        trained = perf_counter() - begun  # the metrics are computed, so the device has finished
        validated = validate()
        check_finite(validated["nll"], state.iteration, state.rate)
        row = {"epoch": trainer.state.epoch, "iteration": state.iteration, "lr": state.rate}
        row |= {f"train_{name}": trainer.state.metrics[name] for name in ("loss", "accuracy")}
        row |= {f"val_{name}": validated[name] for name in VALIDATED}
        done = 0 if start is None else state.pictures * (state.iteration - start) / state.epoch_length
        row |= {"seconds": round(perf_counter() - begun, 3), "images_per_second": round(done / trained, 1)}
        if writes:
            history.add(row)
        best = writes and history.best is row
        saver.save(epoch_done=True, best=best)
        if writes:
            print(handlers.epoch_line(row, recipe, best), flush=True)
        if writer:
            handlers.log_scalars(writer, "epoch", row, state.iteration)
        if ends_early(history, recipe):
            log.info(f"stopping early: {recipe.early_stopping} epochs were no better than the best")
            trainer.terminate()


def ends_early(history: History, recipe: Recipe) -> bool:
    return processes.first_says(lambda: history.stopped_early(recipe.early_stopping))


def run_trainer(state: TrainingState, pictures: Pictures) -> None:
    """Train from where ``state`` is to the end. Raises UserError where there is too little memory."""
    recipe, device = state.recipe, state.machine.device
    batches = train_batches(pictures, recipe.seed, state.iteration, recipe.mixup > 0, recipe.balance)
    try:
        state.trainer.run(batches, max_epochs=recipe.epochs, epoch_length=state.epoch_length)
    except Exception as error:
        if shortage(error) != "memory":
            raise
        raise UserError(
            f"--batch-size {recipe.batch_size}: {device} has too little memory; in another --run, take "
            f"--accumulate {2 * recipe.accumulate}, which computes each batch in parts, or a smaller batch"
        ) from error
