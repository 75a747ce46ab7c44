"""What is attached to the engines: learning rate, progress, divergence guard, stop signals, history, checkpoints."""

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from datetime import timedelta
from functools import cache
from time import perf_counter
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler, ProgressBar, TensorboardLogger
from ignite.handlers.tensorboard_logger import OutputHandler
from ignite.metrics import Metric
from torch import Tensor, nn

from plumage.engine.signals import StopSignals
from plumage.errors import Diverged, Stopped
from plumage.hardware.processes import any_process, first_says
from plumage.rundir.folder import RunDir, stopped_early

log = logging.getLogger("plumage")


def attach_learning_rate(trainer: Engine, optimizer: torch.optim.Optimizer, rate: Callable[[int], float]) -> None:
    """``rate`` of the 0-based iteration, set before its step: a function of where training is, so there is no state.

    Each parameter group's rate is its ``lr_scale`` times that.
    """

    @trainer.on(Events.ITERATION_STARTED)
    def set_rate() -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["lr_scale"] * rate(trainer.state.iteration - 1)


def attach_freezing(trainer: Engine, model: nn.Module, head: nn.Module, epochs: int) -> None:
    """In the first ``epochs`` only ``head`` learns; the rest keeps its weights and its BatchNorms' statistics."""

    @trainer.on(Events.EPOCH_STARTED)
    def freeze() -> None:
        learns = trainer.state.epoch > epochs
        model.train(learns).requires_grad_(learns)
        head.train().requires_grad_(True)


def attach_ema(trainer: Engine, model: nn.Module, decay: float) -> nn.Module:
    """The exponential moving average of ``model``: decay·average + (1 − decay)·model after each step, buffers included.

    Attach before what reads it at the end of a step.
    """
    ema = EMAHandler(model, momentum=1 - decay, handle_buffers="update")
    ema.attach(trainer)
    return ema.ema_model


def attach_look(trainer: Engine, metrics: dict[str, Metric], every: int) -> None:
    """Bring trainer.state.metrics up to date, every ``every`` iterations. Attach before what reads them.

    Several processes have to do so at the same time, whichever of them then looks.
    """

    @trainer.on(Events.ITERATION_COMPLETED(every=every))
    def look() -> None:
        trainer.state.metrics.update({name: metric.compute() for name, metric in metrics.items()})


def attach_divergence_guard(trainer: Engine, optimizer: torch.optim.Optimizer, every: int) -> None:
    """Raise Diverged when the epoch's loss is not finite: every ``every`` iterations, and before the epoch is saved."""

    @trainer.on(Events.ITERATION_COMPLETED(every=every) | Events.EPOCH_COMPLETED)
    def check() -> None:
        check_finite(trainer.state.metrics["loss"], trainer, optimizer)


def check_finite(loss: float, trainer: Engine, optimizer: torch.optim.Optimizer) -> None:
    if not math.isfinite(loss):
        raise Diverged(
            f"the loss is {loss} at iteration {trainer.state.iteration}, at a rate of "
            f"{optimizer.param_groups[0]['lr']:.3g}: take a lower --lr or more --warmup-epochs, in another --run; "
            "what was saved before is as it was"
        )


def check_weights(weights: dict[str, Tensor], trainer: Engine, optimizer: torch.optim.Optimizer) -> None:
    """Raise Diverged where a step has ruined ``weights`` that the loss does not show yet."""
    finite = torch.stack([tensor.isfinite().all() for tensor in weights.values()])  # so that the device is asked once
    if any_process(not finite.all()):
        check_finite(math.nan, trainer, optimizer)


def attach_progress(
    engine: Engine, label: str, batch_size: int, every: int, show: Callable[[], dict[str, str]] = dict
) -> None:
    """A bar on standard error, if that is a terminal: pictures done, per second, time left, and ``show()``.

    It is drawn after every ``every``-th iteration, but at most ten times a second: that costs more than all else here.
    """
    drawn = 0.0
    bar = ProgressBar(
        desc=label,
        unit="img",
        unit_scale=batch_size,
        disable=None if idist.get_rank() == 0 else True,
        bar_format="{desc} {percentage:3.0f}%|{bar:20}| {rate_fmt} {remaining} left{postfix}",
    )

    def due(engine: Engine, iteration: int) -> bool:
        nonlocal drawn
        now = perf_counter()
        if iteration % every or (bar.pbar is not None and now - drawn < 0.1):
            return False
        drawn = now
        return True

    bar.attach(engine, output_transform=lambda out: show(), event_name=Events.ITERATION_COMPLETED(event_filter=due))


def status(trainer: Engine, optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """What a progress bar shows of training."""
    now = {name: f"{value:.3f}" for name, value in trainer.state.metrics.items()}
    return {**now, "lr": f"{optimizer.param_groups[0]['lr']:.2g}"}


def attach_stop(engine: Engine, signals: StopSignals, save: Callable[[], None], every: int = 1) -> None:
    """After a step in or before which a stop signal came to any process: ``save``, then raise Stopped.

    every: iterations from one look to the next, for which several processes have to wait for each other.
    """

    @engine.on(Events.ITERATION_COMPLETED(every=every))
    def stop() -> None:
        if number := any_process(signals.received or 0):
            save()
            raise Stopped(number, "; --resume goes on from here")


def attach_history(
    trainer: Engine,
    validate: Callable[[], dict[str, float]],
    optimizer: torch.optim.Optimizer,
    pictures: int,
    run: RunDir,
) -> None:
    """At each epoch's end ``validate`` and write a row of history.jsonl.

    pictures: how many an epoch has. In the row, seconds cover training and validation, images_per_second training.
    """
    begun, first = perf_counter(), None  # where an epoch's end alone is made up for, its speed is not known

    @trainer.on(Events.EPOCH_STARTED)
    def start() -> None:
        nonlocal begun, first
        begun, first = perf_counter(), trainer.state.iteration

    @trainer.on(Events.EPOCH_COMPLETED)
    def record() -> None:
        state = trainer.state
        assert state.epoch_length
        trained = perf_counter() - begun  # the metrics are computed, so the device has finished
        val = validate()
        check_finite(val["nll"], trainer, optimizer)
        done = 0 if first is None else pictures * (state.iteration - first) / state.epoch_length
        if idist.get_rank() != 0:
            return
        run.add_history(
            {
                "epoch": state.epoch,
                "iteration": state.iteration,
                "lr": optimizer.param_groups[0]["lr"],
                "train_loss": state.metrics["loss"],
                "train_accuracy": state.metrics["accuracy"],
                **{f"val_{name}": val[name] for name in ("loss", "accuracy", "top5", "nll")},
                "seconds": round(perf_counter() - begun, 3),
                "images_per_second": round(done / trained, 1),
            }
        )


def attach_epoch_line(trainer: Engine, run: RunDir) -> None:
    """The line that stays of each epoch, on standard output. Attach after the checkpoints, which it must not cost."""

    @trainer.on(Events.EPOCH_COMPLETED)
    def show() -> None:
        row, epochs = run.history[-1], trainer.state.max_epochs
        assert epochs
        left = timedelta(seconds=round((epochs - row["epoch"]) * row["seconds"]))
        print(
            f"epoch {row['epoch']:{len(str(epochs))}}/{epochs}"
            f"  train loss {row['train_loss']:.3f} accuracy {row['train_accuracy']:6.1%}"
            f"  val loss {row['val_loss']:.3f} accuracy {row['val_accuracy']:6.1%} top-5 {row['val_top5']:6.1%}"
            f"  {row['images_per_second']:.0f} img/s {row['seconds']:.0f} s"
            + (" *" if run.best_epoch == row else "  ")
            + (f" {left} left" if left else ""),
            flush=True,
        )


def attach_tensorboard(
    trainer: Engine, optimizer: torch.optim.Optimizer, every: int, run: RunDir
) -> AbstractContextManager[object]:
    """The history's rows, and every ``every`` iterations the step's loss and rate, into the run's tensorboard/.

    Both over the iteration, so that what is trained anew after a stop takes the place of what was logged of it.
    Attach after the history, which it reads. What is returned closes the log.
    """
    session = ExitStack()

    @cache
    def logger() -> TensorboardLogger:  # opened at the first event, when it is known where this session begins
        opened = TensorboardLogger(log_dir=str(run.path / "tensorboard"), purge_step=trainer.state.iteration)
        session.enter_context(opened)
        return opened

    def rate_and_loss(output: dict[str, Tensor]) -> dict[str, Any]:
        return {"loss": output["loss"], "lr": optimizer.param_groups[0]["lr"]}

    steps, epochs = (
        OutputHandler(tag, output_transform=numbers, global_step_transform=lambda *_: trainer.state.iteration)
        for tag, numbers in (("step", rate_and_loss), ("epoch", lambda output: run.history[-1]))
    )
    trainer.on(Events.ITERATION_COMPLETED(every=every))(lambda: steps(trainer, logger(), Events.ITERATION_COMPLETED))
    trainer.on(Events.EPOCH_COMPLETED)(lambda: epochs(trainer, logger(), Events.EPOCH_COMPLETED))
    return session


def attach_checkpoints(trainer: Engine, save: Callable[[bool], None], minutes: float, every: int = 1) -> None:
    """``save`` at each epoch's end, and inside it where the last time is ``minutes`` ago. Attach after the history.

    What it is told is whether the epoch is over, validated and recorded. every: as attach_stop's.
    """
    saved = perf_counter()

    @trainer.on(Events.ITERATION_COMPLETED(every=every))
    def inside() -> None:
        nonlocal saved
        if first_says(lambda: perf_counter() - saved >= 60 * minutes):
            save(False)
            saved = perf_counter()

    @trainer.on(Events.EPOCH_COMPLETED)
    def at_the_end() -> None:
        nonlocal saved
        save(True)
        saved = perf_counter()


def attach_early_stopping(trainer: Engine, patience: int, run: RunDir) -> None:
    """Stop after ``patience`` epochs that were no better than the best. Attach last. Its only state is the history."""

    @trainer.on(Events.EPOCH_COMPLETED)
    def stop() -> None:
        if first_says(lambda: stopped_early(run.history, patience)):
            log.info(f"stopping early: {patience} epochs were no better than the best")
            trainer.terminate()
