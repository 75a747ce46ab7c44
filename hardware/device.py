"""What to compute on: device, precision, threads. None of it changes a result beyond rounding."""

import ctypes
import logging
import os
from contextlib import suppress
from dataclasses import dataclass

import torch

from plumage.errors import UserError

log = logging.getLogger("plumage")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


@dataclass(frozen=True)
class Machine:
    """What a command computes on. precision: "fp32", "bf16" or "fp16". deterministic: see set_up."""

    device: torch.device
    precision: str
    compile: bool
    deterministic: bool = False

    @property
    def look_every(self) -> int:
        """Iterations from one look at the metrics to the next: each look has to wait for a GPU."""
        return 1 if self.device.type == "cpu" else 10

    def autocast(self) -> torch.autocast:
        """Return the context in which a network computes in ``precision``."""
        return torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32")


def set_up(device: torch.device, cores: int, deterministic: bool = False) -> None:
    """Set torch's switches for the whole process, before anything is computed: cuBLAS looks only once.

    cores: more threads than these would wait for each other. deterministic: use only algorithms that give the same
    bits each time, as a CPU's always do with the same number of threads.
    """
    torch.set_num_threads(min(torch.get_num_threads(), cores))
    torch.backends.cuda.matmul.allow_tf32 = True  # as cuDNN's convolutions do; only with fp32 is there any to use it
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    if device.type == "cpu":
        _keep_memory()


def _keep_memory() -> None:
    """Let the C library keep what is freed, as torch does on GPUs.

    In every step, glibc gives blocks as large as a network's activations back to the system, and gets them anew page
    by page: on a CPU, a fifth of the step's time (benchmarks/results/memory-cpu.md).
    """
    with suppress(AttributeError, OSError, TypeError):  # another library has no such function
        glibc = ctypes.CDLL(None)
        glibc.mallopt(M_MMAP_MAX, 0)
        glibc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def choose_device(device: str) -> torch.device:
    """Choose what to compute on; ``auto``: CUDA or the CPU, never MPS, whose numbers can differ. Raises UserError."""
    if device == "cpu" and "LOCAL_RANK" in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ignite would reduce on a GPU wherever torch sees one
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        if available["mps"] and not available["cuda"]:
            log.info("computing on the CPU; --device mps is faster, but its results can differ")
        device = "cuda" if available["cuda"] else "cpu"
    if not available.get(device):
        raise UserError(f"--device {device}: torch finds none on this machine; take --device auto")
    if device == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun starts a process for each
        device, gpus = f"cuda:{os.environ['LOCAL_RANK']}", torch.cuda.device_count()
        if int(os.environ["LOCAL_RANK"]) >= gpus:
            raise UserError(f"torchrun --nproc-per-node: this machine has {gpus} GPUs; start no more processes")
    return torch.device(device)


def choose_precision(precision: str, device: torch.device, as_trained: str = "auto") -> str:
    """Choose the precision: ``auto`` is the fastest that the hardware has: bf16, else fp16 on CUDA, else fp32.

    as_trained: what training had; ``auto`` then takes that where the device can, so that it gives the same numbers.
    Raises UserError for fp16 without CUDA.
    """
    if precision == "fp16" and device.type != "cuda":
        raise UserError(f"--precision fp16: needs a CUDA device, not {device}; take bf16 or fp32")
    if precision != "auto":
        return precision
    if as_trained in ("fp32", "bf16") or (as_trained == "fp16" and device.type == "cuda"):
        return as_trained
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Private, since torch 2.6 has no public way to ask; its later get_capabilities can take over when it is required.
    bf16 = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "bf16" if bf16 else "fp32"
