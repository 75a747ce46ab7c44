"""What a training is at one instant, written so that it survives whatever comes, and brought back exactly."""

import shutil
import zipfile
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from torch import nn

from plumage.data.loader import epoch_length
from plumage.engine.metrics import check_finite, check_weights
from plumage.errors import UserError
from plumage.files import written_whole
from plumage.hardware.device import Machine
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir


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
        """Return what a progress bar shows: the metrics as they were computed last, and the rate."""
        metrics = {name: f"{value:.3f}" for name, value in self.trainer.state.metrics.items()}
        return {**metrics, "lr": f"{self.rate:.2g}"}

    def compute_metrics(self) -> None:
        """Bring trainer.state.metrics up to date. Several processes have to do so at the same time."""
        self.trainer.state.metrics.update({name: metric.compute() for name, metric in self.metrics.items()})

    def content(self, epoch_done: bool) -> dict[str, Any]:
        """Return what goes into a checkpoint, copied to the host's memory: training may go on while it is written.

        epoch_done: the epoch that ends here, if one does, is validated and recorded.
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
        }
        return _copy_to_host(content)

    def restore(self, content: dict[str, Any]) -> None:
        """Take a checkpoint's content, loaded to the device that is trained on: metrics stay where they come from."""
        self.model.load_state_dict(content["online" if self.average else "model"])
        if self.average:
            self.average.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        for group in self.optimizer.param_groups:  # which the other device's may be
            group["fused"] = self.optimizer.defaults["fused"]
        if content["scaler"]:  # empty where training was in another precision
            self.scaler.load_state_dict(content["scaler"])
        for name, metric in self.metrics.items():
            _load_metric(metric, content["metrics"][name])
        self.trainer.load_state_dict(content["trainer"])


class Saver(AbstractContextManager["Saver"]):
    """Saves a training into its run, in a thread, so that it goes on. As a context, ends when all is written."""

    def __init__(self, state: TrainingState, run: RunDir, minutes: float = 10):
        self.state, self.run, self.minutes = state, run, minutes
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
        content = state.content(epoch_done)
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
        file.parent.mkdir(exist_ok=True)
        with written_whole(file, durable=True) as draft:
            with draft.open("wb") as handle:
                torch.save(content, handle)
            if file.exists():
                copy_checkpoint(file, previous)
    except (OSError, RuntimeError) as error:  # torch's own writer reports a full disk as a RuntimeError
        raise UserError(f"{file} could not be saved ({error}); the checkpoint before it is as it was") from error


def copy_checkpoint(file: Path, to: Path) -> None:
    """Make ``to`` what ``file`` is now: a second name of it where the disk knows such, since saves replace files."""
    with written_whole(to, durable=True) as draft:
        draft.unlink()
        try:
            draft.hardlink_to(file)
        except OSError:
            shutil.copyfile(file, draft)


def is_whole(file: Path) -> bool:
    """Return whether a checkpoint's content is what was written, by the checksums that its zip archive holds."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, zlib.error):
        return False


def _metric_state(metric: Metric) -> dict[str, Any]:
    """Return Ignite's own, which with several processes would gather tensors on GPUs, and have each unpickle all."""
    if idist.get_world_size() == 1:
        return metric.state_dict()
    own = {name: getattr(metric, name) for name in metric._state_dict_all_req_keys}  # documented for new metrics
    return {"__metric_state_per_rank": idist.all_gather(_copy_to_host(own))}


def _load_metric(metric: Metric, saved: dict[str, Any]) -> None:
    """Restore a metric. Where there were other processes, the first takes what all had; the metrics are sums."""
    [(key, states)] = saved.items()
    world_size = idist.get_world_size()
    if len(states) != world_size:
        totals = {name: sum(state[name] for state in states) for name in states[0]}
        states = [totals, *({name: 0 * value for name, value in totals.items()} for _ in range(world_size - 1))]
    metric.load_state_dict({key: states})


def _copy_to_host(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy_to_host(item) for key, item in value.items()}
    return [_copy_to_host(item) for item in value] if isinstance(value, list) else value
