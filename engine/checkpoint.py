"""Durable save, exact restore."""

import errno
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from torch import nn

from plumage.errors import UserError
from plumage.recipe import Recipe


@dataclass(frozen=True)
class TrainingState:
    """All that training consists of at one instant; what is random or scheduled follows from the iteration.

    average: the moving average of ``model``, where there is one; it is then the checkpoint's ``model``.
    """

    trainer: Engine
    model: nn.Module
    average: nn.Module | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    metrics: dict[str, Metric]
    classes: list[str]
    recipe: Recipe

    def content(self, epoch_done: bool) -> dict[str, Any]:
        """What goes into a checkpoint, copied to the host's memory: training may go on while it is written.

        epoch_done: the epoch that ends here, if one does, is validated and recorded.
        """
        online = {"online": self.model.state_dict()} if self.average else {}
        content = {
            "model": (self.average or self.model).state_dict(),
            **online,
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
        """From a checkpoint's content, loaded to the device that is trained on: metrics stay where they come from."""
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


class CheckpointWriter:
    """Writes in a thread, so that training goes on; one at a time. As a context, it ends when all is written."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        with self._pool:
            self.wait()

    def submit(self, write: Callable[[], None]) -> None:
        self.wait()
        self._pending = self._pool.submit(write)

    def wait(self) -> None:
        """Until all is written. Raises what went wrong with it, once."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def save_checkpoint(file: Path, content: dict[str, Any], previous: Path) -> None:
    """``torch.save`` such that ``file`` is whole at every instant, the old one or the new, also after a power cut.

    previous: what the old one is kept as.
    """
    temporary = file.with_name(file.name + ".tmp")
    try:
        file.parent.mkdir(exist_ok=True)
        with temporary.open("wb") as handle:
            torch.save(content, handle)
            handle.flush()
            os.fsync(handle.fileno())
        if file.exists():
            copy_checkpoint(file, previous)
        temporary.replace(file)
        _sync_folder(file.parent)
    except (OSError, RuntimeError) as error:  # torch's own writer reports a full disk as a RuntimeError
        temporary.unlink(missing_ok=True)
        raise UserError(f"{file} could not be saved ({error}); the checkpoint before it is as it was") from error


def is_whole(file: Path) -> bool:
    """Whether a checkpoint's content is what was written, by the checksums that its zip archive holds."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, zlib.error):
        return False


def copy_checkpoint(file: Path, to: Path) -> None:
    """``to`` becomes what ``file`` is now: a second name of it where the disk knows such, since saves replace files."""
    temporary = to.with_name(to.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, temporary)
    temporary.replace(to)
    temporary.unlink(missing_ok=True)  # where both were names of one file already, replace does nothing
    _sync_folder(to.parent)


def _metric_state(metric: Metric) -> dict[str, Any]:
    """Ignite's own. Of several processes it would gather tensors on GPUs, which each then unpickles on all of these."""
    if idist.get_world_size() == 1:
        return metric.state_dict()
    own = {name: getattr(metric, name) for name in metric._state_dict_all_req_keys}
    return {"__metric_state_per_rank": idist.all_gather(_copy_to_host(own))}


def _load_metric(metric: Metric, saved: dict[str, Any]) -> None:
    """Where there were other processes, the first takes what all had; the metrics are sums."""
    [(key, states)] = saved.items()
    processes = idist.get_world_size()
    if len(states) != processes:
        totals = {name: sum(state[name] for state in states) for name in states[0]}
        states = [totals, *({name: 0 * value for name, value in totals.items()} for _ in range(processes - 1))]
    metric.load_state_dict({key: states})


def _copy_to_host(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy_to_host(item) for key, item in value.items()}
    return [_copy_to_host(item) for item in value] if isinstance(value, list) else value


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks know no such thing
                raise
        finally:
            os.close(handle)
