"""train(recipe, run): the pieces put together, in the order of a method section."""

import hashlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from math import ceil

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from torch import nn

from plumage.data.augment import Transform
from plumage.data.dataset import Dataset, prepare, recall
from plumage.data.feed import reader
from plumage.data.loader import epoch_length, eval_batches, train_batches
from plumage.data.samples import Samples
from plumage.data.sources import list_samples, locate
from plumage.data.split import write_split
from plumage.data.store import Cache, write_skipped
from plumage.engine import handlers
from plumage.engine.checkpoint import CheckpointWriter, TrainingState
from plumage.engine.criterion import DistillationLoss, LabelSmoothingLoss
from plumage.engine.evaluator import create_evaluator
from plumage.engine.resume import is_finished, resume, save_state
from plumage.engine.schedule import learning_rate
from plumage.engine.signals import StopSignals
from plumage.engine.trainer import attach_training_metrics, create_trainer
from plumage.errors import UserError
from plumage.hardware import processes
from plumage.hardware.device import Machine
from plumage.models.batchnorm import synchronise
from plumage.models.resnet import build_model, parameter_groups
from plumage.models.weights import Weights, load_pretrained, pretrained_weights, trained_model
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir, stopped_early, weights_file

log = logging.getLogger("plumage")


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
    gather = partial(prepare_all, recipe, run, begun, cache)
    dataset, teacher, pretrained = processes.in_turns("the pictures and weights", gather)
    check_alike(dataset, machine)
    classes, part = dataset.samples.classes, (idist.get_rank(), idist.get_world_size())
    read = reader(dataset.store, machine.device)
    (train_rows, train_labels), (val_rows, val_labels) = dataset.pictures("train"), dataset.pictures("val")
    steps = epoch_length(len(train_rows), recipe.batch_size)

    state, evaluator = build(recipe, machine, classes, steps, pretrained, teacher)
    trainer, writer = state.trainer, CheckpointWriter()

    def validate() -> dict[str, float]:
        processes.take_buffers(state.average or state.model)
        batches = eval_batches(read, val_rows, val_labels, recipe.batch_size, part)
        return evaluator.run(batches, epoch_length=ceil(len(val_rows) / recipe.batch_size)).metrics

    logs = attach_handlers(
        state, evaluator, validate, len(train_rows), run, machine.look_every, signals, writer, checkpoint_minutes,
        tensorboard,
    )  # fmt: skip
    if part[0] == 0 and not begun:
        begin(run, recipe, dataset, machine)
    with signals.deferred(), writer, logs:
        resume(state, run, machine.device)
        early = processes.first_says(lambda: stopped_early(run.history, recipe.early_stopping))
        if trainer.state.epoch < recipe.epochs and not early:
            batches = train_batches(
                read, train_rows, train_labels, recipe.batch_size, recipe.seed, trainer.state.iteration,
                part, with_neighbour=recipe.mixup > 0,
            )  # fmt: skip
            try:
                trainer.run(batches, max_epochs=recipe.epochs, epoch_length=steps)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"--batch-size {recipe.batch_size}: {machine.device} has too little memory; in another --run, take "
                    f"--accumulate {2 * recipe.accumulate}, which computes each batch in parts, or a smaller batch"
                ) from error
    return True


def build(
    recipe: Recipe,
    machine: Machine,
    classes: list[str],
    steps: int,
    pretrained: Weights | None,
    teacher: nn.Module | None,
) -> tuple[TrainingState, Engine]:
    """What is trained, as it begins, with the engine that trains it; and the engine that evaluates it.

    steps: how many an epoch has.
    """
    device = machine.device
    model = initial_model(recipe, pretrained, classes).to(device)
    if recipe.sync_bn and idist.get_world_size() > 1:
        model = synchronise(model, device)
    network = processes.wrap_ddp(model, device, recipe.freeze_backbone_epochs > 0)
    criterion = LabelSmoothingLoss(recipe.smoothing, len(classes))
    distillation = DistillationLoss(teacher.to(device), recipe.temperature) if teacher else None
    optimizer = torch.optim.SGD(
        parameter_groups(model, recipe.weight_decay, recipe.bias_decay, recipe.head_lr_multiplier),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        fused=device.type != "mps",
    )
    if recipe.momentum:  # a first step that the scaler skips would leave the fused optimizer's as memory happened to be
        for parameter in model.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    scaler = torch.amp.GradScaler(device.type, enabled=machine.precision == "fp16")
    view = Transform(recipe.crop, recipe.seed, recipe.augment, recipe.mixup, len(classes)).to(device)

    trainer = create_trainer(
        network, optimizer, criterion, view.random, machine.autocast, scaler, device,
        distillation=distillation, accumulate=recipe.accumulate, clip_grad_norm=recipe.clip_grad_norm,
    )  # fmt: skip
    average = handlers.attach_ema(trainer, model, recipe.ema) if recipe.ema else None
    evaluator = create_evaluator(average or network, criterion, view.center, machine.autocast, device, len(classes))
    metrics = attach_training_metrics(trainer, steps, device)
    for module in (network, average, teacher) if machine.compile else ():
        if module is not None:
            module.compile()
    return TrainingState(trainer, model, average, optimizer, scaler, metrics, classes, recipe), evaluator


def attach_handlers(
    state: TrainingState,
    evaluator: Engine,
    validate: Callable[[], dict[str, float]],
    pictures: int,
    run: RunDir,
    look_every: int,
    signals: StopSignals,
    writer: CheckpointWriter,
    checkpoint_minutes: float,
    tensorboard: bool = False,
) -> AbstractContextManager[object]:
    """All that happens beside the steps, in its order: what is recorded has been checked, what is saved is recorded.

    pictures: how many an epoch trains on. What is returned closes the logs.
    """
    recipe, trainer, optimizer, metrics = state.recipe, state.trainer, state.optimizer, state.metrics
    steps = epoch_length(pictures, recipe.batch_size)
    rate = partial(
        learning_rate,
        total=recipe.epochs * steps,
        warmup=round(recipe.warmup_epochs * steps),
        peak=recipe.lr,
        schedule=recipe.schedule,
    )
    save = partial(save_state, state, run, writer)

    handlers.attach_learning_rate(trainer, optimizer, rate)
    if recipe.freeze_backbone_epochs:
        handlers.attach_freezing(trainer, state.model, state.model.get_submodule("fc"), recipe.freeze_backbone_epochs)
    handlers.attach_look(trainer, metrics, look_every)
    handlers.attach_divergence_guard(trainer, optimizer, look_every)
    status = partial(handlers.status, trainer, optimizer)
    handlers.attach_progress(trainer, "training", recipe.batch_size, look_every, status)
    handlers.attach_progress(evaluator, "validating", recipe.batch_size, look_every)
    handlers.attach_history(trainer, validate, optimizer, pictures, run)
    every = 1 if idist.get_world_size() == 1 else look_every
    handlers.attach_checkpoints(trainer, save, checkpoint_minutes, every)
    logs: AbstractContextManager[object] = nullcontext()
    if idist.get_rank() == 0:
        handlers.attach_epoch_line(trainer, run)
        logs = handlers.attach_tensorboard(trainer, optimizer, look_every, run) if tensorboard else logs
    handlers.attach_early_stopping(trainer, recipe.early_stopping, run)
    for engine in (trainer, evaluator):
        handlers.attach_stop(engine, signals, save, every)
    return logs


def prepare_all(
    recipe: Recipe, run: RunDir, begun: bool, cache: Cache
) -> tuple[Dataset, nn.Module | None, Weights | None]:
    """The pictures, the teacher and the weights to start from. All that needs no decoded picture comes first."""
    samples = None if begun else list_samples(locate(recipe.data, cache))
    classes = samples.classes if samples else run.classes
    teacher, pretrained = load_teacher(recipe, classes), load_weights(recipe, run)
    dataset = prepare_dataset(recipe, samples, cache) if samples else recall_dataset(recipe, run, cache)
    return dataset, teacher, pretrained


def check_alike(dataset: Dataset, machine: Machine) -> None:
    """Raises UserError where the hosts of several processes differ in what would make them train different things."""
    if idist.get_world_size() == 1:
        return
    samples = dataset.samples
    assert samples.split is not None
    listed = repr([*zip(samples.paths, samples.labels.tolist(), samples.split.tolist(), strict=True)])
    seen = hashlib.blake2b(listed.encode(errors="surrogateescape"), digest_size=16)
    seen.update(dataset.store.digests[dataset.rows].tobytes())
    processes.must_agree(seen.hexdigest(), f"--data {samples.root}: not the same pictures on each host")
    computes = f"{machine.device.type} {machine.precision}"
    processes.must_agree(computes, "--precision: auto is not the same on each host; give --device and --precision")


def load_teacher(recipe: Recipe, classes: list[str]) -> nn.Module | None:
    file = weights_file(recipe.teacher)
    return None if recipe.teacher == "none" else trained_model(file, f"--teacher {file}", classes)


def load_weights(recipe: Recipe, run: RunDir) -> Weights | None:
    """What a run starts from that has not begun and is not trained from scratch."""
    needed = recipe.weights != "none" and not run.last.exists()
    return pretrained_weights(recipe.model, weights_file(recipe.weights)) if needed else None


def initial_model(recipe: Recipe, pretrained: Weights | None, classes: list[str]) -> nn.Module:
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, len(classes), recipe.zero_gamma)
    if pretrained is not None:
        same = load_pretrained(model, pretrained, classes)
        log.info(f"{pretrained.source}: the head is {'taken over' if same else f'new, for {len(classes)} classes'}")
    return model


def prepare_dataset(recipe: Recipe, samples: Samples, cache: Cache) -> Dataset:
    """The pictures of a new run, split. Raises UserError where the recipe does not go with them."""
    dataset = prepare(samples, recipe.resize, recipe.val_fraction, recipe.seed, cache)
    classes, train, val = (
        len(part) for part in (dataset.samples.classes, dataset.indices("train"), dataset.indices("val"))
    )
    if recipe.smoothing > (most := (classes - 1) / classes):
        raise UserError(
            f"--smoothing {recipe.smoothing}: with {classes} classes at most {most:.3g}, the uniform target"
        )
    log.info(f"{classes} classes, {train} training and {val} validation pictures")
    if recipe.batch_size > train:
        log.warning(f"--batch-size {recipe.batch_size}: each step takes the {train} training pictures that there are")
    if (idle := idist.get_world_size() - recipe.batch_size // 2) > 0:
        log.warning(
            f"--batch-size {recipe.batch_size}: {idle} processes have nothing to do, since each needs two pictures"
        )
    return dataset


def begin(run: RunDir, recipe: Recipe, dataset: Dataset, machine: Machine) -> None:
    """The run directory, with all that is known before training."""
    run.path.mkdir(parents=True, exist_ok=True)
    write_split(run.split, dataset.samples)
    write_skipped(run.skipped, dataset.store.skipped)
    run.describe(recipe, dataset.samples.classes, machine)


def recall_dataset(recipe: Recipe, run: RunDir, cache: Cache) -> Dataset:
    """The pictures of a run that has begun, split as they were."""
    return recall(recipe.data, recipe.resize, run.classes, run.split, run.skipped, cache)
