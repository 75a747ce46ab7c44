"""What to compute on: device, precision, threads. None of it changes a result beyond rounding."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from errors import UserError

log = logging.getLogger("plumage")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """device; precision "fp32", "bf16" or "fp16"; cache: the folder for stores, or None to decode on the fly."""

    device: torch.device
    precision: str
    compile: bool
    workers: int | None
    cache: Path
    use_store: bool

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32")


def choose_device(device: str) -> torch.device:
    """``auto`` is a GPU where there is one. MPS has to be asked for: some of its operations give other numbers."""
    if device == "auto":
        if not torch.cuda.is_available() and torch.backends.mps.is_available():
            log.info("computing on the CPU; --device mps is faster, but its results can differ")
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if (device == "cuda" and not torch.cuda.is_available()) or (device == "mps" and not torch.backends.mps.is_available()):
        raise UserError(f"--device {device}: torch finds none on this machine; take --device auto")
    return torch.device(device)


def choose_precision(precision: str, device: torch.device, as_trained: str = "auto") -> str:
    """``auto`` is the fastest that the hardware computes in itself: bf16, else fp16 on CUDA, else fp32.

    as_trained: what ``auto`` was in training, and is again if the device has it, so that evaluation gives the same numbers.
    """
    if precision == "auto" and as_trained in ("fp32", "bf16"):
        return as_trained
    if precision == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        bf16 = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
        return "bf16" if bf16 else "fp32"
    if precision == "fp16" and device.type != "cuda":
        raise UserError(f"--precision fp16: loss scaling is for CUDA devices, not {device}; take bf16 or fp32")
    return precision
