"""What a training is at one instant, written so that it survives whatever comes, and brought back exactly."""

import shutil
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from torch import nn

from plumage.data.loader import epoch_length
from plumage.engine import content as checked
from plumage.engine.metrics import check_finite, check_weights
from plumage.errors import UserError, first_line
from plumage.files import flush, written_whole
from plumage.hardware.device import Machine
from plumage.models.guard import check_file
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir
from plumage.rundir.history import History, Row, read_rows


class Reached(NamedTuple):
    """What a checkpoint says of the run. iteration: how many steps were done. rows: of its history, if it has one.

    recorded: how many epochs were done, validated and recorded. due: an epoch had ended that was not, yet.
    """

    iteration: int
    recorded: int
    due: bool
    rows: list[Row] | None


@dataclass(frozen=True)
class TrainingState:
    """All that training consists of at one instant; what is random or scheduled follows from the iteration.

    average: the moving average of ``model``, where there is one; it is then the checkpoint's ``model``.
    metrics: over the epoch so far. pictures: how many an epoch trains on.
    """

    trainer: Engine
    model: nn.Module
    average: nn.Module | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    metrics: dict[str, Metric]
    classes: list[str]
    pictures: int
    recipe: Recipe
    machine: Machine

    @property
    def iteration(self) -> int:
        """How many steps are done."""
        return self.trainer.state.iteration

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def epoch_length(self) -> int:
        """How many steps an epoch has."""
        return epoch_length(self.pictures, self.recipe.batch_size)

    def status(self) -> dict[str, str]:
        """Return what progress shows: the metrics as they were computed last."""
        return {name: f"{value:.3f}" for name, value in self.trainer.state.metrics.items()}

    def compute_metrics(self) -> None:
        """Bring trainer.state.metrics up to date. Several processes have to do so at the same time."""
        self.trainer.state.metrics.update({name: metric.compute() for name, metric in self.metrics.items()})

    def content(self, epoch_done: bool, history: str = "") -> dict[str, Any]:
        """Return what goes into a checkpoint, copied to the host's memory: training may go on while it is written.

        epoch_done: the epoch that ends here, if one does, is validated and recorded. history: its text, which goes into
        a tensor, as UTF-8, since the other values of a checkpoint are read back up to a certain number only.
        """
        content = {
            "model": (self.average or self.model).state_dict(),
            **({"online": self.model.state_dict()} if self.average else {}),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "metrics": {name: _metric_state(metric) for name, metric in self.metrics.items()},
            "trainer": self.trainer.state_dict(),
            "epoch_done": epoch_done,
            "classes": self.classes,
            "recipe": asdict(self.recipe),
            "history": torch.from_numpy(np.frombuffer(bytearray(history.encode()), np.uint8)),
        }
        return _copy_to_host(content)

    def restore(self, content: dict[str, Any], source: str) -> Reached:
        """Take a checkpoint's content. Raises UserError, beginning with ``source``, where it is none of this run."""
        try:
            reached = read_reached(content, self.recipe, self.epoch_length)
            if type(content.get("classes")) is not list or content["classes"] != self.classes:
                raise ValueError("it is of other classes than the run's classes.json")
            checked.check_recipe(checked.part(content, "recipe"), self.recipe)
            checked.take_weights(self.model, content, "online" if self.average else "model", source)
            if self.average:
                checked.take_weights(self.average, content, "model", source)
            checked.take_momenta(self.optimizer, checked.part(content, "optimizer"))
            checked.take_scale(self.scaler, checked.part(content, "scaler"))
            steps = (reached.iteration - 1) % self.epoch_length + 1
            pictures = min(steps * self.recipe.batch_size, self.pictures)
            checked.take_metrics(self.metrics, checked.part(content, "metrics"), pictures)
        except ValueError as error:
            raise UserError(f"{source} is no checkpoint of this run: {error}; start another --run") from error
        about = {"iteration": reached.iteration, "epoch_length": self.epoch_length, "max_epochs": self.recipe.epochs}
        self.trainer.load_state_dict(about)
        return reached


def read_reached(content: dict[str, Any], recipe: Recipe, epoch_length: int | None = None) -> Reached:
    """Read what a checkpoint says of a run of ``recipe``. Raises ValueError where that cannot be.

    epoch_length: how many steps an epoch has; None where the pictures are not at hand, and its word is taken.
    """
    trainer, done, history = checked.part(content, "trainer"), content.get("epoch_done"), content.get("history")
    steps = checked.integer(trainer.get("epoch_length"), "the length of its epochs", 1, 2**62)
    if epoch_length not in (None, steps):
        raise ValueError(f"its epochs have {steps} steps, and not the {epoch_length} that the pictures make")
    iteration = checked.integer(trainer.get("iteration"), "its iteration", 1, recipe.epochs * steps)
    ended, inside = divmod(iteration, steps)
    if type(done) is not bool or (done and inside):
        raise ValueError("whether its epoch is done is not clear")
    due = not inside and not done
    rows = None if history is None else read_rows(checked.text(history), ended - due, recipe.best)
    return Reached(iteration, ended - due, due, rows)


class Saver(AbstractContextManager["Saver"]):
    """Saves a training into its run, in a thread, so that it goes on. As a context, ends when all is written."""

    def __init__(self, state: TrainingState, run: RunDir, history: History, minutes: float = 10):
        self.state, self.run, self.history, self.minutes = state, run, history, minutes
        self._saved = perf_counter()
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def __exit__(self, *exception: object) -> None:
        with self._pool:
            self.wait()

    def is_due(self) -> bool:
        """Return whether the last checkpoint is ``minutes`` old."""
        return perf_counter() - self._saved >= 60 * self.minutes

    def save(self, epoch_done: bool = False, best: bool = False) -> None:
        """Have last.pt written, and best.pt if ``best``. Raises Diverged, and the error of the write before it."""
        state = self.state
        check_finite(state.metrics["loss"].compute(), state.iteration, state.rate)
        check_weights((state.average or state.model).state_dict(), state.iteration, state.rate)
        content = state.content(epoch_done, self.history.text)
        if idist.get_rank() == 0:
            self.wait()
            self._pending = self._pool.submit(write_checkpoint, self.run, content, best)
        self._saved = perf_counter()

    def wait(self) -> None:
        """Wait until all is written. Raises what went wrong with it, once."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def write_checkpoint(run: RunDir, content: dict[str, Any], best: bool) -> None:
    save_checkpoint(run.last, content, run.previous)
    if best:
        copy_checkpoint(run.last, run.best)


def save_checkpoint(file: Path, content: dict[str, Any], previous: Path) -> None:
    """Do ``torch.save`` with ``file`` whole at every instant, even in a power cut; keep the old one as ``previous``."""
    try:
        if not file.parent.exists():
            file.parent.mkdir()
            flush(file.parent.parent)
        with written_whole(file) as draft:
            with draft.open("wb") as handle:
                torch.save(content, handle)
            if file.exists():
                copy_checkpoint(file, previous)
    except (OSError, RuntimeError) as error:
        # So torch's own writer reports a full disk.
        why = f"the disk may be full: {first_line(error)}" if isinstance(error, RuntimeError) else str(error)
        raise UserError(f"{file} could not be saved ({why}); the checkpoint before it is as it was") from error


def copy_checkpoint(file: Path, to: Path) -> None:
    """Make ``to`` what ``file`` is now: a second name of it where the disk knows such, since saves replace files."""
    with written_whole(to) as draft:
        draft.unlink()
        try:
            draft.hardlink_to(file)
        except OSError:
            shutil.copyfile(file, draft)


def is_whole(file: Path, classes: int = 0) -> bool:
    """Return whether a checkpoint's content is what was written, by the checksums that its zip archive holds."""
    try:
        check_file(file, classes)
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except Exception:  # on a damaged file zipfile raises nearly anything
        return False


def _metric_state(metric: Metric) -> dict[str, Any]:
    """Return Ignite's own, which with several processes would gather tensors on GPUs, and have each unpickle all."""
    if idist.get_world_size() == 1:
        return metric.state_dict()
    own = {name: getattr(metric, name) for name in metric._state_dict_all_req_keys}  # documented for new metrics
    return {checked.PER_PROCESS: idist.all_gather(_copy_to_host(own))}


def _copy_to_host(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy_to_host(item) for key, item in value.items()}
    return [_copy_to_host(item) for item in value] if isinstance(value, list) else value
