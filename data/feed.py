"""The way of stored pixels to the device, so that training does not wait for it."""

import logging
from collections.abc import Callable
from math import prod

import numpy as np
import torch
from torch import Tensor

from plumage.data.store import Store

log = logging.getLogger("plumage")

Reader = Callable[[np.ndarray], Tensor]


def reader(store: Store, device: torch.device) -> Reader:
    """Return a function (b,) int64 rows of ``store`` → (b, side, side, 3) uint8, for a thread to call ahead of need.

    A CUDA device keeps all pictures in its memory if they take less than a third of what is free; otherwise they are
    copied to it while it computes. For other devices, the pictures stay on the CPU.
    """
    if device.type == "cuda" and store.pixels:
        torch.cuda.empty_cache()  # memory of a training before, which would count as taken
        needed, free = prod(store.shape), torch.cuda.mem_get_info(device)[0]
        if 3 * needed < free:
            log.info(f"all pictures move to {device}: {needed / 1e9:.1f} of {free / 1e9:.1f} GB free")
            return resident(store, device)
    move = mover(device)
    return lambda rows: move(store.read(rows))


def resident(store: Store, device: torch.device) -> Reader:
    """Copy all pictures of ``store`` to ``device``, and return a reader from that copy."""
    copy, move = torch.empty(store.shape, dtype=torch.uint8, device=device), mover(device)
    for rows in np.split(np.arange(len(copy)), range(1024, len(copy), 1024)):  # since each goes through locked memory
        copy[rows[0] : rows[-1] + 1] = move(store.read(rows))
    return lambda rows: copy[move(rows)]


def mover(device: torch.device) -> Callable[[np.ndarray], Tensor]:
    """Return a function that brings an array to ``device``, and waits for that. A CUDA device goes on computing."""
    if device.type != "cuda":
        return torch.from_numpy
    stream = torch.cuda.Stream(device)

    def move(array: np.ndarray) -> Tensor:
        with torch.cuda.device(device), torch.cuda.stream(stream):  # a thread begins on the first device
            moved = torch.from_numpy(array).pin_memory().to(device, non_blocking=True)
        stream.synchronize()
        # Else its memory could be given to the next copy while the stream that computes still reads it.
        moved.record_stream(torch.cuda.default_stream(device))
        return moved

    return move
