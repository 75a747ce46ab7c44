"""Weights into a model, safely: nothing is unpickled beyond tensors and plain containers."""

import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError
from zipfile import BadZipFile

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from errors import UserError

TORCHVISION = {"imagenet": "IMAGENET1K_V1", "imagenet-v2": "IMAGENET1K_V2"}


def load_pretrained(model: nn.Module, name: str, weights: str) -> None:
    """Everything but the head of ``weights`` (``imagenet``, ``imagenet-v2`` or a file) into the ResNet called ``name``.

    The head stays as it is: it is for other classes. Raises UserError when the weights cannot be had or do not fit.
    """
    state = _from_torchvision(name, weights) if weights in TORCHVISION else state_dict_of(load_file(Path(weights)))
    head = {key: value for key, value in model.state_dict().items() if key.startswith("fc.")}
    load_state(model, {**state, **head}, f"--weights {weights}")


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
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, BadZipFile, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path} is no checkpoint, or a damaged one: {reason[0][:150]}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint: it holds a {type(content).__name__}, not a dictionary of weights")
    return content


def state_dict_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The weights in a checkpoint of this project, or in a bare state dict."""
    state = checkpoint.get("model", checkpoint)
    return state if isinstance(state, dict) else {}


def _from_torchvision(name: str, weights: str) -> dict[str, Tensor]:
    entries = get_model_weights(name).__members__
    if TORCHVISION[weights] not in entries:
        raise UserError(f"--weights {weights}: torchvision has none for {name}; take --weights imagenet")
    entry = entries[TORCHVISION[weights]]
    try:
        # The file's name carries the hash of its content: a download that broke off is noticed.
        state: dict[str, Tensor] = entry.get_state_dict(
            progress=True, check_hash=True, map_location="cpu", weights_only=True
        )
    except (URLError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        cached = Path(torch.hub.get_dir(), "checkpoints", entry.url.rpartition("/")[2])
        way_out = f"delete {cached} and run again" if cached.exists() else "is there a network?"
        raise UserError(
            f"--weights {weights}: {entry.url} could not be loaded ({str(error).splitlines()[0][:100]}); {way_out} "
            "Otherwise take --weights FILE, or --weights none to train from scratch"
        ) from error
    return state
