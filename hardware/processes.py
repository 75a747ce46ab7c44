"""Several processes as torchrun starts them: how they meet, agree, take turns and end. One alone waits for nobody."""

import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from inspect import signature
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TypeVar
from uuid import uuid4

import ignite.distributed as idist
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from plumage.errors import Diverged, EarlyEnd, Stopped, UserError, first_line

log = logging.getLogger("plumage")

T = TypeVar("T")

STEP = timedelta(minutes=10)  # how long a step may wait for another process
PREPARATION = timedelta(hours=4)  # how long they may wait for one that downloads, draws or decodes


@contextmanager
def joined(device: torch.device) -> Iterator[bool]:
    """Meet the other processes that torchrun has started, over nccl on GPUs, else over gloo.

    Gives whether this process is the first, which alone writes and speaks. It alone reports what ends
    all of them alike; what ends another by itself is reported with its rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if device.type == "cuda" and (gpus := torch.cuda.device_count()) > 1:
            log.info(f"using one of {gpus} GPUs; torchrun --nproc-per-node={gpus} -- main.py train … uses them all")
        yield True
        return
    rank = int(os.environ["RANK"])
    if rank:
        log.setLevel(logging.CRITICAL)
    os.environ.pop("SLURM_JOB_ID", None)  # Ignite would take SLURM's word for what torchrun has said already
    try:
        _meet(rank, device)
        yield rank == 0
    except EarlyEnd as end:
        if rank == 0:
            raise
        if not isinstance(end, (Diverged, Stopped)):
            log.critical(f"error: process {rank} on {socket.gethostname()}: {end}")
        raise SystemExit(end.exit_code) from end
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        log.critical(f"error: process {rank} on {socket.gethostname()} has lost another: {first_line(error)}")
        raise SystemExit(1) from error
    _patient_group.cache_clear()
    idist.finalize()


def _meet(rank: int, device: torch.device) -> None:
    """Do what idist.initialize does, under this attempt's own name: else the store would give addresses of the dead."""
    world, store = int(os.environ["WORLD_SIZE"]), _store(master=rank == 0)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    named = distributed.PrefixStore(_name_of_attempt(store, rank, world), store)  # type: ignore[attr-defined]
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=named, rank=rank, world_size=world, timeout=STEP)
    idist.sync()


def _name_of_attempt(store: Any, rank: int, world: int) -> str:
    """Agree on a name that the first process makes up. The others know it is no earlier attempt's once it answers them.

    torchrun's own count of restarts will not do: one host may count what is a change of members to another.
    """
    own = uuid4().hex
    if rank == 0:
        store.set("plumage/attempt", own)
        for other in range(1, world):
            store.set(f"plumage/{store.get(f'{own}/{other}').decode()}", own)
        return own
    deadline = monotonic() + STEP.total_seconds()
    while not store.check([f"plumage/{own}"]):
        if monotonic() > deadline:
            raise RuntimeError(f"gloo: waited {STEP} for the first process")
        store.set(f"{store.get('plumage/attempt').decode()}/{rank}", own)
        sleep(0.05)
    return store.get(f"plumage/{own}").decode()


def _store(master: bool = False) -> Any:
    """Connect to torchrun's own store, where it keeps one."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return distributed.TCPStore(address, port, is_master=master and not _store_is_kept(), timeout=STEP)  # type: ignore[attr-defined]


def _store_is_kept() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def any_process(number: int) -> int:
    """Return the largest ``number`` that any process gives."""
    return int(idist.all_reduce(int(number), "MAX"))


def first_says(condition: Callable[[], bool]) -> bool:
    """Return what the first process finds ``condition`` to be. One process alone asks nobody."""
    return bool(any_process(idist.get_rank() == 0 and condition()))


def from_first(what: str, work: Callable[[], T]) -> T:
    """Return what ``work()`` returns in the first process, in all. Its UserError ends all."""
    if idist.get_world_size() == 1:
        return work()
    return _exchange(what, work if idist.get_rank() == 0 else None)[0]  # type: ignore[return-value]


def in_turns(what: str, work: Callable[[], T]) -> T:
    """Do ``work()`` in the first process, then in the first of each other host, then in the rest, which find it done.

    So what goes to a disk is made once, or once on each host where they share none. A UserError of one ends all.
    """
    if idist.get_world_size() == 1:
        return work()
    turn = 0 if idist.get_rank() == 0 else 1 if idist.get_local_rank() == 0 else 2
    results: list[T] = []
    for now in range(3):
        _exchange(what, (lambda: results.append(work())) if now == turn else None)
    return results[0]


def must_agree(value: str, problem: str) -> None:
    """End all with the UserError ``problem`` unless each process gives the same ``value``."""
    if idist.get_world_size() > 1 and len(set(_exchange(problem, lambda: value))) > 1:
        _end_alike(problem)


def wrap_ddp(model: nn.Module, device: torch.device, freezes: bool) -> nn.Module:
    """Wrap ``model`` to be trained together: gradients are the processes' mean, sent while others are still computed.

    freezes: not every step gives each parameter a gradient. Buffers, such as BatchNorm's statistics, stay each
    process's own; the first one's are saved, and evaluated by all.
    """
    if idist.get_world_size() == 1:
        return model
    known = signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.14
    options: dict[str, Any] = {name: False, "find_unused_parameters": freezes, "gradient_as_bucket_view": True}
    return DistributedDataParallel(model, [device] if device.type == "cuda" else None, **options)


def take_buffers(model: nn.Module) -> None:
    """Take the buffers that ``model`` has in the first process."""
    for buffer in model.buffers() if idist.get_world_size() > 1 else ():
        distributed.broadcast(buffer, 0)


class Memory:
    """The run's folder for this job's next attempt, kept by torchrun's store, which outlives this one; else None."""

    KEY = "plumage/run"

    def __init__(self) -> None:
        self._store = _store() if _store_is_kept() else None

    @property
    def run(self) -> Path | None:
        if self._store is None or not self._store.check([self.KEY]):
            return None
        return Path(json.loads(self._store.get(self.KEY)))

    @run.setter
    def run(self, path: Path) -> None:
        if self._store is not None:
            self._store.set(self.KEY, json.dumps(str(path)))


def _exchange(what: str, work: Callable[[], T] | None) -> list[T | None]:
    """Return what ``work()`` returns in each process that has some, in all. What one raises as UserError ends all."""
    group, value, problem = _patient_group(), None, ""
    try:
        value = work() if work else None
    except UserError as error:
        problem = str(error)
    outcomes: list[tuple[T | None, str]] = [(None, "")] * idist.get_world_size()
    try:
        distributed.all_gather_object(outcomes, (value, problem), group)
    except RuntimeError as error:
        raise RuntimeError(f"gloo: waited up to {PREPARATION} for {what}: {first_line(error)}") from error
    if problems := [problem for _, problem in outcomes if problem]:
        _end_alike(problems[0])
    return [value for value, _ in outcomes]


@cache
def _patient_group() -> Any:
    """Return the group of all processes that waits as long as a preparation takes.

    Made once and kept: torch 2.6 hung where a group was let go right after an exchange, waiting, with the interpreter
    locked, for a thread of its own that needed the interpreter.
    """
    return distributed.new_group(backend="gloo", timeout=PREPARATION)


def _end_alike(problem: str) -> None:
    """End every process with the same ``problem``, of which the first one tells."""
    if idist.get_rank() == 0:
        raise UserError(problem)
    raise SystemExit(UserError.exit_code)
