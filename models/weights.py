"""Weights into a model, safely: nothing is unpickled beyond tensors and plain containers."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from errors import UserError

TORCHVISION = {"imagenet": "IMAGENET1K_V1", "imagenet-v2": "IMAGENET1K_V2"}


def pretrained_state(name: str, weights: str) -> dict[str, Tensor]:
    """The state dict of ``weights`` for the ResNet called ``name``: ``imagenet``, ``imagenet-v2`` or a file.

    Raises UserError when it cannot be had.
    """
    if weights in TORCHVISION:
        return _from_torchvision(name, weights)
    if not Path(weights).is_file():
        raise UserError(f"--weights {weights}: no such file; give one, or imagenet, imagenet-v2 or none")
    return state_dict_of(load_file(Path(weights)))


def load_pretrained(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Everything but the head, which stays as it is: it is for other classes. Raises UserError like ``load_state``."""
    head = {key: value for key, value in model.state_dict().items() if key.startswith("fc.")}
    load_state(model, {**state, **head}, source)


def load_state(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """``load_state_dict``, strict; what does not fit is a UserError of one line that begins with ``source``."""
    own = model.state_dict()
    if missing := sorted(own.keys() - state.keys()):
        raise UserError(
            f"{source}: not the weights of this model: {missing[0]} is not in it ({len(missing)} keys are missing)"
        )
    if extra := sorted(state.keys() - own.keys()):
        raise UserError(f"{source}: not the weights of this model: it has {extra[0]} ({len(extra)} keys too many)")
    for key, value in own.items():
        if not isinstance(state[key], Tensor) or state[key].shape != value.shape:
            shape = tuple(getattr(state[key], "shape", ()))
            raise UserError(
                f"{source}: not the weights of this model: {key} is {shape} and should be {tuple(value.shape)}"
            )
    model.load_state_dict(state)


def load_file(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The dictionary in a ``torch.save`` file. Raises UserError when it is absent, damaged or holds code."""
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except Exception as error:  # on a damaged file torch raises nearly anything
        raise UserError(f"{path} is no checkpoint, or a damaged one: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint: it holds a {type(content).__name__}, not a dictionary of weights")
    return content


def state_dict_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The weights in a checkpoint of this project, or in a bare state dict."""
    state = checkpoint.get("model", checkpoint)
    return state if isinstance(state, dict) else {}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:150]


def _from_torchvision(name: str, weights: str) -> dict[str, Tensor]:
    entries = get_model_weights(name).__members__
    if TORCHVISION[weights] not in entries:
        raise UserError(f"--weights {weights}: torchvision has none for {name}; take --weights imagenet")
    entry = entries[TORCHVISION[weights]]
    try:
        # The file's name carries the hash of its content: a download that broke off is noticed.
        with redirect_stdout(sys.stderr):  # torch announces a download there where results belong
            return entry.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:  # no network, or a damaged file
        cached = Path(torch.hub.get_dir(), "checkpoints", entry.url.rpartition("/")[2])
        way_out = f"delete {cached} and run again." if cached.exists() else "is there a network?"
        raise UserError(
            f"--weights {weights}: {entry.url} could not be loaded ({_first_line(error)}); {way_out} "
            "Otherwise take --weights FILE, or --weights none to train from scratch"
        ) from error
