"""Load weights into a model, safely: nothing is unpickled but tensors and plain containers."""

import hashlib
import pickle
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights, list_models

from plumage.errors import UserError, first_line, shortage
from plumage.models.guard import check_file
from plumage.models.resnet import build_model
from plumage.names import composed

TORCHVISION = {"imagenet": "IMAGENET1K_V1", "imagenet-v2": "IMAGENET1K_V2"}
# The keys in which ResNets differ by design (He et al. 2019, section 4.2), the stem's before the shortcuts'.
DESIGNS = {
    "conv1.weight": "the plain stem, one 7×7 convolution",
    "conv1.0.weight": "the stem of ResNet-C and -D, three 3×3 convolutions",
    "layer2.0.downsample.0.weight": "shortcuts that down-sample by a strided convolution",
    "layer2.0.downsample.2.weight": "the down-sampling shortcuts of ResNet-D, with average pooling",
}


class Weights(NamedTuple):
    """A state dict; the class names of its head, where its file tells them; and what to call it in messages."""

    state: dict[str, Tensor]
    classes: list[str] | None
    source: str


def pretrained_weights(name: str, weights: str) -> Weights:
    """Load what the ResNet called ``name`` starts from. weights: ``imagenet``, ``imagenet-v2`` or a file's path.

    Raises UserError when it cannot be loaded, or when the file says that it is of another network.
    """
    source = f"--weights {weights}"
    if weights in TORCHVISION:
        return Weights(_from_torchvision(name, weights), None, source)
    if not Path(weights).is_file():
        raise UserError(f"{source}: no such file; give one, or a run, imagenet, imagenet-v2 or none")
    content = load_file(Path(weights))
    other = _network_of(content)
    if other not in (None, name):  # whose shapes may well be the same
        raise UserError(f"{source}: of a {str(other)[:50]!r}, not of a {name}; take that as --model, or other weights")
    return Weights(state_dict_of(content), _classes_of(content), source)


def trained_model(
    file: str | Path, source: str, classes: list[str], name: str | None = None, **sides: int
) -> nn.Module:
    """Build the network of a checkpoint, with its weights. Raises UserError, beginning with ``source``, if it cannot.

    classes: what it has to tell apart. name: which ResNet it is, where the file may not say so. sides: the resize and
    crop of the pictures that it gets.
    """
    return network_of(load_file(Path(file), len(classes)), source, classes, name, **sides)


def network_of(
    content: dict[str, Any], source: str, classes: list[str], name: str | None = None, **sides: int
) -> nn.Module:
    """Build the network of a checkpoint's content, as ``trained_model`` does."""
    recipe = _recipe_of(content)
    if any(recipe.get(side, value) != value for side, value in sides.items()):
        own = " and ".join(f"--{side} {recipe.get(side)}" for side in sides)
        raise UserError(f"{source}: learnt from pictures of another size, {own}; give its own --run")
    if "classes" in content and not _alike(_classes_of(content), classes):
        raise UserError(f"{source}: of other classes than the {len(classes)} here; take one of the same")
    if (name := _network_of(content) or name) is None:
        raise UserError(f"{source}: does not say which network it is of; take a run of this project")
    try:
        model = build_model(name, len(classes))
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: of an unknown network, {name[:50]!r}") from error
    load_state(model, state_dict_of(content), source)
    return model


def fingerprint(model: nn.Module) -> str:
    """Hash the weights, so that a checkpoint is known under any file name. Counters are no weights."""
    digest = hashlib.blake2b(digest_size=16)
    for key, value in model.state_dict().items():
        if not key.endswith(".num_batches_tracked"):
            digest.update(key.encode())
            digest.update(value.cpu().contiguous().numpy())
    return digest.hexdigest()


def load_pretrained(model: nn.Module, weights: Weights, classes: list[str]) -> bool:
    """Load ``weights``, the head (``fc``) only if it is for ``classes``. Return whether it is. Raises as load_state."""
    same_classes = _alike(weights.classes, classes)
    head = weights.state if same_classes else model.state_dict()
    body = {key: value for key, value in weights.state.items() if not key.startswith("fc.")}
    load_state(model, body | {key: value for key, value in head.items() if key.startswith("fc.")}, weights.source)
    return same_classes


def load_state(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict, strictly. Raises UserError, beginning with ``source``, when it does not fit.

    Floats of another precision are converted. BatchNorm's counters, which old files lack, may be missing.
    """
    own = model.state_dict()
    state = {key: value for key, value in own.items() if key.endswith(".num_batches_tracked")} | state
    if misfit := _misfit(own, state):
        raise UserError(f"{source}: not the weights of this model: {misfit}; take weights of the same network")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # quantised, or of another kind that cannot be converted
        reason = " ".join(str(error).split())[-200:]
        raise UserError(f"{source}: cannot be copied into this model: …{reason}; take plain tensors") from error


def iteration_of(checkpoint: dict[str, Any]) -> int | None:
    """Return after how many steps of training it was saved, None where it does not say so."""
    trainer = checkpoint.get("trainer")
    iteration = dict.get(trainer, "iteration") if isinstance(trainer, dict) else None
    return iteration if type(iteration) is int else None


def _recipe_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    recipe = checkpoint.get("recipe")
    return dict(dict.items(recipe)) if isinstance(recipe, dict) else {}


def _network_of(checkpoint: dict[str, Any]) -> str | None:
    name = _recipe_of(checkpoint).get("model")
    return name if isinstance(name, str) else None


def _classes_of(checkpoint: dict[str, Any]) -> list[str] | None:
    classes = checkpoint.get("classes")
    return classes if isinstance(classes, list) and all(isinstance(name, str) for name in classes) else None


def _misfit(own: dict[str, Tensor], state: dict[str, Tensor]) -> str:
    """Say why ``state`` does not fit a model of the state dict ``own``; "" where it does."""
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    model_design, file_design = ([DESIGNS[key] for key in DESIGNS if key in keys] for keys in (missing, extra))
    if model_design and file_design:
        return f"they have {file_design[0]}, and it has {model_design[0]}"
    if missing or extra:
        sides = (("missing", missing), ("superfluous", extra))
        return " and ".join(f"{what} is {keys[0][:80]!r} (1 of {len(keys)})" for what, keys in sides if keys)
    for key, value in own.items():
        new = state[key]
        plain = type(new) in (Tensor, nn.Parameter) and not new.is_nested
        shape = tuple(new.shape) if plain else f"a {type(new).__name__}"
        if shape != tuple(value.shape):
            return f"{key} is {shape} and should be {tuple(value.shape)}"
        if new.layout != value.layout or new.is_meta or new.is_floating_point() < value.is_floating_point():
            return f"{key} is no dense tensor of floats"
    return ""


def _alike(classes: list[str] | None, others: list[str]) -> bool:
    """Return whether these are the same classes, in whichever of Unicode's forms."""
    return classes is not None and [*map(composed, classes)] == [*map(composed, others)]


def load_file(path: Path, classes: int = 0, mapped: bool = False) -> dict[str, Any]:
    """Read the dictionary in a ``torch.save`` or ``.safetensors`` file, into the host's memory: never more than it has.

    classes: how many its network is known to have. mapped: leave the tensors on the disk, for who needs none of them.
    Raises UserError for any other content.
    """
    try:
        check_file(path, classes)
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:  # whose text recommends to unpickle it nevertheless
        way_out = "save its weights alone, torch.save(model.state_dict(), FILE)"
        raise UserError(f"{path} is no checkpoint, or holds more than weights and plain values: {way_out}") from error
    except UserError:
        raise
    except Exception as error:  # on a damaged file torch raises nearly anything
        if shortage(error):
            raise
        raise UserError(f"{path} is no checkpoint, or a damaged one: {first_line(error)[:150]}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint: it holds a {type(content).__name__}, not a dictionary of weights")
    return dict(dict.items(content))  # without the attributes that an OrderedDict may bring, named like its methods


def state_dict_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Return a checkpoint's weights (``model``, ``state_dict`` or all of it), without DDP's and compile's prefixes."""
    wrapped = (checkpoint.get(key) for key in ("model", "state_dict"))
    state = next((value for value in wrapped if isinstance(value, dict)), checkpoint)
    state = {str(key): value for key, value in dict.items(state)}
    for prefix in ("module.", "_orig_mod.", "module."):  # each may be around the other
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _from_torchvision(name: str, weights: str) -> dict[str, Tensor]:
    """Load torchvision's weights, downloaded once. Raises UserError when there are none, or no network."""
    entries = get_model_weights(name).__members__ if name in list_models() else {}
    if TORCHVISION[weights] not in entries:
        way_out = "--weights imagenet" if entries else "--weights FILE with timm's, --weights none, or --model resnet50"
        raise UserError(f"--weights {weights}: torchvision has none for {name}; take {way_out}")
    entry = entries[TORCHVISION[weights]]
    try:
        # The file's name carries the hash of its content: a download that broke off is noticed.
        with redirect_stdout(sys.stderr):  # torch announces a download there where results belong
            return entry.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:  # no network, or a damaged file
        cached = Path(torch.hub.get_dir(), "checkpoints", entry.url.rpartition("/")[2])
        way_out = f"delete {cached} and run again." if cached.exists() else "is there a network?"
        raise UserError(
            f"--weights {weights}: {entry.url} could not be loaded ({first_line(error)[:150]}); {way_out} "
            "Otherwise take --weights FILE, or --weights none to train from scratch"
        ) from error
