"""What a run goes on from: its last whole checkpoint, and a history that fits it."""

import logging
from functools import partial
from pathlib import Path

import ignite.distributed as idist

from plumage.engine.checkpoint import Reached, TrainingState, copy_checkpoint, is_whole, read_reached
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
            if history:
                log.warning(f"{run.path}: no checkpoint knows of its {len(history)} epochs, which are trained again")
            history.keep(0)
        return False
    load = partial(load_file, file, len(state.classes))
    reached = processes.in_turns("the last checkpoint", lambda: state.restore(load(), str(file)))
    problem = f"{file}: not the same on each host; the run has to be on a disk that they share"
    processes.must_agree(str(state.iteration), problem)
    if writes:
        if file != run.last:  # else the next save would keep the damaged one as the one before it
            copy_checkpoint(file, run.last)
        history.bring_back(reached.rows, reached.recorded, file)
        restore_best(run, history, state)
    log.info(f"{run.path}: going on after iteration {state.iteration}")
    return reached.due


def last_whole(run: RunDir) -> Path | None:
    """Return the checkpoint to go on from. Raises UserError where the run has lost what it had."""
    saved = [file for file in (run.last, run.previous) if file.exists()]
    if not saved:
        if run.best.exists():
            raise UserError(f"{run.last} is gone, and without it this run cannot go on; start another --run")
        return None
    classes = len(run.classes)
    file = next((file for file in saved if is_whole(file, classes)), saved[0])
    if file != run.last:
        log.warning(f"{run.last} is damaged or gone: going on from the one before it, {file}")
    return file


def restore_best(run: RunDir, history: History, state: TrainingState) -> None:
    """Have best.pt be the best epoch's: training may have ended between last.pt and it, or the history have changed."""
    if not history or (iteration := history.best.get("iteration")) is None:
        return
    for file in (run.last, run.best, run.previous):
        reached = look(file, state.recipe, len(state.classes))
        if reached and reached.iteration == iteration and not reached.due and is_whole(file, len(state.classes)):
            if file != run.best:
                copy_checkpoint(file, run.best)
            return
    log.warning(f"{run.best} is not of epoch {history.best['epoch']}, the best one, whose checkpoint is lost")


def is_finished(recipe: Recipe, run: RunDir) -> bool:
    """Return whether nothing is left to train in ``run``, nor to bring back, known without a picture or a network."""
    if not run.holds_run or run.recipe != recipe:
        return False
    history = run.readable_history(recipe.best)
    if not history.is_over(recipe) or history.damaged or history[-1]["epoch"] != len(history):
        return False
    # The history is not enough: who was killed as an epoch ended may have saved its row, and not its checkpoint.
    classes = len(run.classes)
    best, last = (look(file, recipe, classes) for file in (run.best, run.last))
    if best is None or best.iteration != history.best.get("iteration"):
        return False
    if not run.last.exists():
        return True
    return last is not None and last.iteration == history[-1].get("iteration") and last.rows in (None, history)


def look(checkpoint: Path, recipe: Recipe, classes: int) -> Reached | None:
    """Return what a checkpoint of a run says of it; None where it cannot be read. Its weights stay on the disk."""
    try:
        content = load_file(checkpoint, classes, mapped=True)
        return read_reached(content, recipe)
    except (UserError, ValueError):
        return None
