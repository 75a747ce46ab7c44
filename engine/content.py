"""What a checkpoint holds, checked before any of it is taken: it is data, and may be anything.

Nothing of it becomes part of the training: tensors are copied into the training's own, numbers are compared with what
the recipe and the pictures imply. Each function raises ValueError, saying what is wrong, where something does not fit.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import ignite.distributed as idist
import torch
from ignite.metrics import Metric
from torch import Tensor, nn

from plumage.models.weights import load_state
from plumage.recipe import Recipe, option_name

PER_PROCESS = "__metric_state_per_rank"  # as Ignite's Metric.state_dict has it


def part(content: Mapping[Any, Any], name: str) -> dict[Any, Any]:
    """Return the dictionary in ``content`` of this name, without the attributes that one of another class may bring."""
    if not isinstance(value := content.get(name), dict):
        raise ValueError(f"it has no {name}")
    return dict(dict.items(value))


def integer(value: Any, what: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{what} is no number from {least} to {most}")
    return value


def is_dense(value: Any) -> bool:
    return type(value) is Tensor and not (value.is_nested or value.is_meta) and value.layout == torch.strided


def plain(value: Any, own: Tensor, what: str) -> Tensor:
    """Return ``value``, a dense tensor of finite numbers, of the shape and type that ``own`` has."""
    if not is_dense(value) or value.shape != own.shape or value.dtype != own.dtype:
        raise ValueError(f"{what} is no {str(own.dtype).removeprefix('torch.')} tensor of the shape {tuple(own.shape)}")
    if not value.sum().isfinite():  # a tenth of the time that asking each number takes
        raise ValueError(f"{what} has a value that is no number")
    return value.detach()


def check_recipe(saved: dict[Any, Any], recipe: Recipe) -> None:
    """Compare the recipe in a checkpoint, but for the data's place. Those of earlier versions know fewer options."""
    own = asdict(recipe)
    for name, value in saved.items():
        if name not in own:
            raise ValueError("it is of another version: its recipe has an option that is not known here")
        if type(value) not in (str, bool, int, float) or (name != "data" and value != own[name]):
            raise ValueError(f"its {option_name(name)} is another than the run's")


def text(value: Any) -> bytes:
    """Return the bytes in a tensor (n,) uint8, which has them all."""
    if not is_dense(value) or value.dtype != torch.uint8 or value.ndim != 1 or not value.is_contiguous():
        raise ValueError("its history is no text")
    return value.numpy().tobytes()


def take_weights(model: nn.Module, content: Mapping[Any, Any], name: str, source: str) -> None:
    """Copy the state dict of this name. Raises UserError, beginning with ``source``, where it does not fit."""
    load_state(model, {str(key): value for key, value in part(content, name).items()}, source)
    if not all(value.sum().isfinite() for value in model.state_dict().values()):
        raise ValueError(f"its {name} has a value that is no number")


def take_momenta(optimizer: torch.optim.Optimizer, saved: dict[Any, Any]) -> None:
    """Copy each parameter's momentum. How the optimizer works follows from the recipe and the device, never from it."""
    states = part(saved, "state")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in enumerate(parameters):
        own = optimizer.state[parameter].get("momentum_buffer")
        if own is not None:
            values = states.get(number)
            value = dict.get(values, "momentum_buffer") if isinstance(values, dict) else None
            own.copy_(plain(value, own, f"the momentum of parameter {number}"))


def take_scale(scaler: torch.amp.GradScaler, saved: dict[Any, Any]) -> None:
    """Take the scale of gradients, and for how many steps it has held; nothing where either precision has none."""
    own, limits = scaler.state_dict(), torch.finfo(torch.float32)
    if not (own and saved):
        return
    if type(scale := saved.get("scale")) is not float or not limits.tiny <= scale <= limits.max:
        raise ValueError("the scale of its gradients is no number above 0")
    most = own["growth_interval"] - 1
    tracker = integer(saved.get("_growth_tracker"), "for how long the scale of its gradients has held", 0, most)
    scaler.load_state_dict({**own, "scale": scale, "_growth_tracker": tracker})


def take_metrics(metrics: dict[str, Metric], saved: dict[Any, Any], pictures: int) -> None:
    """Take the metrics over the epoch so far, which has trained on ``pictures``.

    Where there were other processes, the first takes what all had; the metrics are sums.
    """
    world_size, rank = idist.get_world_size(), idist.get_rank()
    for name, metric in metrics.items():
        states = part(saved, name).get(PER_PROCESS)
        if type(states) is not list:
            raise ValueError(f"its {name} has no values")
        values = [_metric_values(metric, state, name, pictures) for state in states]
        own = {key: getattr(metric, key) for key in metric._state_dict_all_req_keys}
        totals = {key: sum(value[key] for value in values) for key in own}
        if any(totals[key] != pictures for key in own if type(own[key]) is int):
            raise ValueError(f"its {name} is not over the {pictures} pictures that its epoch has had")
        none = {key: 0 * value for key, value in totals.items()}
        mine = values[rank] if len(values) == world_size else totals if rank == 0 else none
        for key, value in own.items():
            setattr(metric, key, mine[key] if type(value) is int else torch.zeros_like(value).copy_(mine[key]))


def _metric_values(metric: Metric, saved: Any, name: str, pictures: int) -> dict[str, Any]:
    """Return what one process's metric consists of: numbers of pictures, and tensors without dimensions."""
    saved = part({"values": saved}, "values")
    values: dict[str, Any] = {}
    for key in metric._state_dict_all_req_keys:
        own, what = getattr(metric, key), f"{key} of its {name}"
        values[key] = saved.get(key) if type(own) is int else plain(saved.get(key), own, what)
        if type(own) is int or own.dtype == torch.int64:  # so many pictures, or so many right
            integer(values[key] if type(own) is int else int(values[key]), what, 0, pictures)
    return values
