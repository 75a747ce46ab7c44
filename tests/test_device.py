import pytest
import torch

from plumage.errors import UserError
from plumage.hardware.device import choose_device, choose_precision, set_up

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def hardware(monkeypatch, *, cuda_bf16=False, avx512=False, amx=False):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: cuda_bf16)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


@pytest.mark.parametrize(
    ("device", "features", "precision"),
    [
        (CPU, {}, "fp32"),
        (CPU, {"avx512": True}, "bf16"),
        (CPU, {"amx": True}, "bf16"),
        (CUDA, {"cuda_bf16": True}, "bf16"),
        (CUDA, {}, "fp16"),  # such as a T4
        (torch.device("mps"), {"avx512": True}, "fp32"),
    ],
)
def test_auto_precision_is_what_the_hardware_computes_in(monkeypatch, device, features, precision):
    hardware(monkeypatch, **features)
    assert choose_precision("auto", device) == precision


@pytest.mark.parametrize(
    ("device", "as_trained", "precision"),
    [
        (CPU, "fp32", "fp32"),
        (CPU, "bf16", "bf16"),
        (CPU, "fp16", "fp32"),
        (CUDA, "fp16", "fp16"),
        (CPU, "auto", "fp32"),
    ],
)
def test_evaluation_takes_the_precision_of_the_training_where_it_can(monkeypatch, device, as_trained, precision):
    hardware(monkeypatch, cuda_bf16=True)
    assert choose_precision("auto", device, as_trained) == precision
    assert choose_precision("bf16", device, as_trained) == "bf16"


def test_what_the_machine_lacks_is_refused():
    with pytest.raises(UserError, match="--precision fp16"):
        choose_precision("fp16", CPU)
    for device in ("cuda", "mps"):
        if not getattr(torch, device).is_available():
            with pytest.raises(UserError, match=f"--device {device}"):
                choose_device(device)
    assert choose_device("cpu") == CPU


def test_the_granted_cores_bound_the_threads(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    for cores in (2, 8):
        set_up(CPU, cores)
    assert calls == [2, 4]
