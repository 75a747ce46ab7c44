"""A run's checkpoints: what is written into them while it trains, and what it goes on from."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events

from plumage.engine import handlers
from plumage.engine.checkpoint import CheckpointWriter, TrainingState, copy_checkpoint, is_whole, save_checkpoint
from plumage.errors import UserError
from plumage.hardware import processes
from plumage.models.weights import load_file
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir, best_of, is_over

log = logging.getLogger("plumage")


def save_state(state: TrainingState, run: RunDir, writer: CheckpointWriter, epoch_done: bool = False) -> None:
    """Have a checkpoint written, which is the best one too where the epoch that ends here is. Raises Diverged."""
    handlers.check_finite(state.metrics["loss"].compute(), state.trainer, state.optimizer)
    handlers.check_weights((state.average or state.model).state_dict(), state.trainer, state.optimizer)
    content = state.content(epoch_done)
    if idist.get_rank() == 0:
        best = epoch_done and run.best_epoch["epoch"] == state.trainer.state.epoch
        writer.submit(partial(write_checkpoint, run, content, best))


def write_checkpoint(run: RunDir, content: dict[str, Any], best: bool) -> None:
    save_checkpoint(run.last, content, run.previous)
    if best:
        copy_checkpoint(run.last, run.best)


def resume(state: TrainingState, run: RunDir, device: torch.device) -> None:
    """Bring ``state`` to the last whole checkpoint, if there is one, and the run's other files with it."""
    first, trainer = idist.get_rank() == 0, state.trainer
    file = processes.from_first("a look at the checkpoints", partial(last_whole, run))
    if file is None:
        if first:
            run.keep_history(0)
        return
    saved, done = processes.in_turns("the last checkpoint", lambda: restore(state, run, file, device))
    processes.must_agree(
        f"{trainer.state.iteration}", f"{file}: not the same on each host; the run has to be on a disk that they share"
    )
    epochs, inside = divmod(trainer.state.iteration, saved)
    unrecorded = not inside and not done
    if first:
        if file != run.last:  # else the next save would keep the damaged one as the one before it
            copy_checkpoint(file, run.last)
        run.keep_history(epochs - unrecorded)
    log.info(f"{run.path}: going on after iteration {trainer.state.iteration}")
    if unrecorded:  # it was stopped between an epoch's last step and its row in the history
        trainer.fire_event(Events.EPOCH_COMPLETED)
    elif first and not inside and run.best_epoch["epoch"] == epochs:  # or perhaps between last.pt and best.pt
        copy_checkpoint(file, run.best)


def last_whole(run: RunDir) -> Path | None:
    """The checkpoint to go on from. Raises UserError where the run has lost what it had."""
    saved = [file for file in (run.last, run.previous) if file.exists()]
    if not saved:
        if run.best.exists():
            raise UserError(f"{run.last} is gone, and without it this run cannot go on; start another --run")
        return None
    file = next((file for file in saved if is_whole(file)), saved[0])
    if file != run.last:
        log.warning(f"{run.last} is damaged or gone: going on from the one before it, {file}")
    return file


def restore(state: TrainingState, run: RunDir, file: Path, device: torch.device) -> tuple[int, bool]:
    """``state`` as it was; and how long an epoch is, and whether the one that ended there was recorded."""
    content = load_file(file, device)
    if content.get("classes") != state.classes:
        raise UserError(f"{file} is of other classes than {run.path / 'classes.json'}; start another --run")
    try:
        state.restore(content)
        return content["trainer"]["epoch_length"], content["epoch_done"]
    except torch.OutOfMemoryError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"{file} is no checkpoint of this run: {str(error).splitlines()[0]}") from error


def is_finished(recipe: Recipe, run: RunDir) -> bool:
    """Whether nothing is left to train in ``run``, known without a picture or a network.

    The history is not enough: who was killed as an epoch ended may have saved its row, and not its checkpoint.
    """
    if not run.holds_run or run.recipe != recipe or not is_over(rows := run.history, recipe):
        return False
    whole = saved_iteration(run.best) == best_of(rows)["iteration"]
    return whole and (not run.last.exists() or saved_iteration(run.last) == rows[-1]["iteration"])


def saved_iteration(checkpoint: Path) -> int | None:
    """After which iteration it was saved; None where it cannot be read."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        return int(content["trainer"]["iteration"])
    except Exception:  # on a damaged file torch raises nearly anything
        return None
