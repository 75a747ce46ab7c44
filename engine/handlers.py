"""What happens beside the steps: small handlers, and plain functions, which the handlers of train.py put in order."""

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import perf_counter, process_time, thread_time
from typing import TYPE_CHECKING, Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from torch import nn
from tqdm import tqdm

from plumage.engine.signals import StopSignals
from plumage.errors import Stopped
from plumage.hardware.processes import any_process
from plumage.recipe import Recipe

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger("plumage")

CLOCKS = (perf_counter, thread_time, process_time)


def attach_learning_rate(trainer: Engine, optimizer: torch.optim.Optimizer, rate: Callable[[int], float]) -> None:
    """Set each group's rate before a step: ``lr_scale`` times ``rate`` of the 0-based iteration. No state is kept.

    Where training goes on, it begins with the rate of the last step, which an epoch's end may have yet to record.
    """

    @trainer.on(Events.ITERATION_STARTED)
    def set_rate() -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["lr_scale"] * rate(trainer.state.iteration - 1)

    if trainer.state.iteration:
        set_rate()


def attach_freezing(trainer: Engine, model: nn.Module, head: nn.Module, epochs: int) -> None:
    """Let only ``head`` learn in the first ``epochs``; the rest keeps its weights and its BatchNorms' statistics."""

    @trainer.on(Events.EPOCH_STARTED)
    def freeze() -> None:
        learns = trainer.state.epoch > epochs
        model.train(learns).requires_grad_(learns)
        head.train().requires_grad_(True)


def attach_ema(trainer: Engine, model: nn.Module, decay: float) -> nn.Module:
    """Return the moving average of ``model``, buffers too: decay·average + (1 − decay)·model after each step."""
    ema = EMAHandler(model, momentum=1 - decay, handle_buffers="update")
    ema.attach(trainer)
    return ema.ema_model


@dataclass
class Progress(AbstractContextManager["Progress"]):
    """How far an epoch is, on standard error: a bar on a terminal, elsewhere a line about every half minute.

    Steps are counted from the first look: what is slow about the first, as compiling, says nothing of those to come.
    As a context, takes the bar of an epoch that did not end off the terminal.
    """

    label: str
    batch_size: int
    show: Callable[[], dict[str, str]]
    clock: Callable[[], float]
    bar: tqdm | None = None
    last: tuple[float, int] | None = None  # when, and after which of the epoch's steps, it was told last

    def look(self, engine: Engine) -> None:
        """Tell of the step that ``engine`` has done, if it is time."""
        steps = engine.state.epoch_length or 1
        now, step = self.clock(), (engine.state.iteration - 1) % steps + 1
        if self.last is None:
            self.bar = self._draw(self._title(engine), step, steps) if sys.stderr.isatty() else None
        # At most ten times a second: drawing costs more than all else here.
        elif now - self.last[0] < (0.1 if self.bar else 30):
            return
        elif self.bar:
            self.bar.set_postfix_str(self._shown(), refresh=False)
            self.bar.update(step * self.batch_size - self.bar.n)
        elif step < steps:
            speed = (step - self.last[1]) / (now - self.last[0])  # steps a second, lately
            rate, left = f"{speed * self.batch_size:,.1f} img/s", timedelta(seconds=round((steps - step) / speed))
            told = filter(None, (f"step {step:,} of {steps:,}", rate, self._shown(), f"{left} left"))
            log.info(f"{self._title(engine)}: {', '.join(told)}")
        self.last = now, step

    def _title(self, engine: Engine) -> str:
        epochs = engine.state.max_epochs or 1
        return self.label + (f" [{engine.state.epoch}/{epochs}]" if epochs > 1 else "")

    def _shown(self) -> str:
        return " ".join(f"{name} {value}" for name, value in self.show().items())

    def _draw(self, title: str, step: int, steps: int) -> tqdm:
        return tqdm(
            desc=title,
            initial=step * self.batch_size,
            total=steps * self.batch_size,
            unit="img",
            unit_scale=True,  # 12.3kimg/s
            postfix=self._shown(),
            bar_format="{desc} {percentage:3.0f}%|{bar}| {rate_fmt} {remaining} left{postfix}",
            dynamic_ncols=True,
            leave=False,
            mininterval=0,
            miniters=1,
        )

    def close(self) -> None:
        """End the epoch: whatever is printed next begins on a line of its own."""
        if self.bar is not None:
            self.bar.close()
        self.bar = self.last = None

    def __exit__(self, *exception: object) -> None:
        self.close()


def attach_progress(
    engine: Engine,
    label: str,
    batch_size: int,
    every: int,
    show: Callable[[], dict[str, str]] = dict,
    clock: Callable[[], float] = perf_counter,
) -> Progress:
    """Tell how far ``engine`` is, with what ``show()`` returns, looking after every ``every``-th iteration.

    What prints at an epoch's end has to be attached after it.
    """
    progress = Progress(label, batch_size, show, clock)
    if idist.get_rank() == 0:
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=every), progress.look)
        engine.add_event_handler(Events.EPOCH_COMPLETED, progress.close)
    return progress


def attach_busy_notice(trainer: Engine, share: float, clocks: Sequence[Callable[[], float]] = CLOCKS) -> None:
    """Say once where other work has the cores on which one process trains alone: its threads wait for each other.

    share: how many seconds the process may compute in one. clocks: of the wall, this thread and the process, in
    seconds. A step is slow that takes twice its own thread's time, while the process, whose other threads decode and
    write, does not compute that much either. Steps below 20 ms wait for Python more than for a core. Of a dozen steps
    and ten seconds, two thirds have to be slow: compiling, or a process that was halted, makes a few steps so.
    """
    begun: list[float] = []
    ratios: list[float] = []
    seconds, told = 0.0, False

    @trainer.on(Events.ITERATION_STARTED)
    def start() -> None:
        begun[:] = [clock() for clock in clocks]

    @trainer.on(Events.ITERATION_COMPLETED)
    def stop() -> None:
        nonlocal seconds, told
        if told:
            return
        wall, own, all_threads = (clock() - then for clock, then in zip(clocks, begun, strict=True))
        slow = wall > 0.02 and own < wall / 2 and all_threads < 0.6 * share * wall
        ratios.append(wall / max(own, 1e-3) if slow else 1)
        seconds += wall
        if len(ratios) < 12 or seconds < 10:
            return
        typical = sorted(ratios)[len(ratios) // 3]
        if told := typical > 1:
            log.warning(
                f"the cores are shared with other work: a step takes {typical:.1f} times its own computing time; "
                "end that work, or stop this and go on with OMP_NUM_THREADS=1 and --resume: one thread suffers less"
            )
        ratios.clear()
        seconds = 0.0


def stop_if_signalled(signals: StopSignals, save: Callable[[], None]) -> None:
    """Where a stop signal came to any process: ``save``, then raise Stopped. All processes have to ask at once."""
    if number := any_process(signals.received or 0):
        save()
        raise Stopped(number, "; --resume goes on from here")


def epoch_line(row: dict[str, Any], recipe: Recipe, best: bool) -> str:
    """Return the line that stays of an epoch, the ``row``'s. best: it is the best so far, by the recipe's ``best``."""
    epochs = recipe.epochs
    left = timedelta(seconds=round((epochs - row["epoch"]) * row["seconds"]))
    balanced = f" balanced {row['val_balanced_accuracy']:6.1%}" if recipe.best == "balanced-accuracy" else ""
    return (
        f"epoch {row['epoch']:{len(str(epochs))}}/{epochs}"
        f"  train loss {row['train_loss']:.3f} accuracy {row['train_accuracy']:6.1%}"
        f"  val loss {row['val_loss']:.3f} accuracy {row['val_accuracy']:6.1%}{balanced} top-5 {row['val_top5']:6.1%}"
        f"  {row['images_per_second']:.0f} img/s {row['seconds']:.0f} s"
        + (" *" if best else "  ")
        + (f" {left} left" if left else "")
    )


def open_log(run: Path, iteration: int) -> "SummaryWriter":
    """Open a run's tensorboard/ after ``iteration`` steps. What is trained anew replaces what was logged of it."""
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (an extra)

    return SummaryWriter(str(run / "tensorboard"), purge_step=iteration + 1)


def log_scalars(writer: "SummaryWriter", tag: str, numbers: dict[str, Any], iteration: int) -> None:
    """Log ``numbers`` as tag/name over the iteration."""
    for name, value in numbers.items():
        writer.add_scalar(f"{tag}/{name}", value, iteration)
