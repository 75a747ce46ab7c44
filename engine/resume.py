"""What a run goes on from: its last whole checkpoint, and a history that fits it."""

import logging
from functools import partial
from pathlib import Path

import ignite.distributed as idist
import torch

from plumage.engine.checkpoint import TrainingState, copy_checkpoint, is_whole
from plumage.errors import UserError
from plumage.hardware import processes
from plumage.models.weights import load_file
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir
from plumage.rundir.history import History

log = logging.getLogger("plumage")


def restore(state: TrainingState, run: RunDir, history: History) -> bool:
    """Bring ``state`` and the run's files to its last whole checkpoint. Return whether an epoch's end is still due."""
    writes = idist.get_rank() == 0
    file = processes.from_first("a look at the checkpoints", partial(last_whole, run))
    if file is None:
        if writes:
            history.keep(0)
        return False
    epoch_length, recorded = processes.in_turns("the last checkpoint", lambda: load_state(state, run, file))
    problem = f"{file}: not the same on each host; the run has to be on a disk that they share"
    processes.must_agree(str(state.iteration), problem)
    epochs, inside = divmod(state.iteration, epoch_length)
    unrecorded = not inside and not recorded
    if writes:
        if file != run.last:  # else the next save would keep the damaged one as the one before it
            copy_checkpoint(file, run.last)
        history.keep(epochs - unrecorded)
        if not inside and recorded and history.best["epoch"] == epochs:  # killed perhaps between last.pt and best.pt
            copy_checkpoint(file, run.best)
    log.info(f"{run.path}: going on after iteration {state.iteration}")
    return unrecorded


def last_whole(run: RunDir) -> Path | None:
    """Return the checkpoint to go on from. Raises UserError where the run has lost what it had."""
    saved = [file for file in (run.last, run.previous) if file.exists()]
    if not saved:
        if run.best.exists():
            raise UserError(f"{run.last} is gone, and without it this run cannot go on; start another --run")
        return None
    file = next((file for file in saved if is_whole(file)), saved[0])
    if file != run.last:
        log.warning(f"{run.last} is damaged or gone: going on from the one before it, {file}")
    return file


def load_state(state: TrainingState, run: RunDir, file: Path) -> tuple[int, bool]:
    """Load ``file`` into ``state``. Returns how long an epoch is, and whether the one that ended there was recorded."""
    content = load_file(file, state.machine.device)
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
    """Return whether nothing is left to train in ``run``, known without a picture or a network."""
    if not run.holds_run or run.recipe != recipe or not (history := run.history).is_over(recipe):
        return False
    # The history is not enough: who was killed as an epoch ended may have saved its row, and not its checkpoint.
    whole = saved_iteration(run.best) == history.best["iteration"]
    return whole and (not run.last.exists() or saved_iteration(run.last) == history[-1]["iteration"])


def saved_iteration(checkpoint: Path) -> int | None:
    """Return after which iteration a checkpoint was saved; None where it cannot be read."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        return int(content["trainer"]["iteration"])
    except Exception:  # on a damaged file torch raises nearly anything
        return None
