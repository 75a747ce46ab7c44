"""Hand torchvision's weights to Ultralytics: python ultralytics_weights.py WEIGHTS FOLDER

yolov8-cls-resnet50.yaml has torchvision's shapes, but SiLU where that has ReLU, and before the last layer a convolution
to 1280 channels of its own. A file like it that asks for ReLU (its ``activation``) computes the very features of
torchvision's network; with SiLU, their cosine is 0.84. All tensors but torchvision's last layer are taken over. The
convolution, its BatchNorm and the last layer begin at random.

Ultralytics shows its network pictures from 0 to 1 (DEFAULT_MEAN is 0, DEFAULT_STD 1), and these weights have learnt on
normalised ones: the first layer is made to normalise. Two things remain that its user would not notice: around a
picture the network sees black instead of the mean colour, and the first layer learns at another pace than elsewhere,
since its weights are 1 / STD times as large.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.transforms.functional import normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PARTS = {"conv": "conv", "bn": "bn", "0": "conv", "1": "bn"}


def own_name(name: str) -> str:
    """Return Ultralytics' name of torchvision's tensor ``name``: model.2.layer.0.cv1.conv… of layer2.0.conv1…"""
    first, *middle, kind = name.split(".")
    if not middle:
        return f"model.0.layer.0.{first[:-1]}.{kind}"
    block, part, *of_shortcut = middle
    place = "shortcut.0" if of_shortcut else f"cv{part[-1]}"
    return f"model.{first[-1]}.layer.{block}.{place}.{PARTS[of_shortcut[0] if of_shortcut else part[:-1]]}.{kind}"


def normalising(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` with a first layer that makes of pictures from 0 to 1 what it made of normalised ones.

    w · (x − MEAN) / STD is (w / STD) · x − w · MEAN / STD, and the BatchNorm subtracts its mean from that.
    """
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    weight = state["conv1.weight"] / std
    shift = (weight * mean).sum((1, 2, 3))
    return state | {"conv1.weight": weight, "bn1.running_mean": state["bn1.running_mean"] + shift}


def same_features(state: dict[str, Tensor], body: nn.Module) -> bool:
    """Tell whether ``body`` finds in pictures what torchvision's network of ``state`` does in the normalised ones.

    That one gets the black border of ``body`` normalised too: with its own, of the mean colour, no pixel of the last
    layer would be quite the same.
    """
    network = resnet50()
    network.load_state_dict(state, strict=False)
    border, network.conv1.padding = network.conv1.padding[0], (0, 0)
    batch = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = normalize(nn.functional.pad(batch, [border] * 4), MEAN, STD)
    with torch.no_grad():
        found, wanted = body.eval()(batch), nn.Sequential(*list(network.children())[:-2]).eval()(seen)
    return torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())


def main() -> None:
    import yaml  # noqa: PLC0415 (of the extra, as the other: the rest is tested without them)
    from ultralytics.nn.tasks import ClassificationModel, yaml_model_load  # noqa: PLC0415

    weights, folder = map(Path, sys.argv[1:])
    network = {**yaml_model_load("yolov8-cls-resnet50.yaml"), "activation": "torch.nn.ReLU()"}
    description = folder / "resnet50-relu-cls.yaml"
    description.write_text(yaml.safe_dump({name: network[name] for name in ("nc", "activation", "backbone", "head")}))
    model = ClassificationModel(str(description), verbose=False)
    state = torch.load(weights)
    own = {own_name(name): value for name, value in normalising(state).items()}
    missing, unknown = model.load_state_dict(own, strict=False)
    assert not unknown, unknown
    assert all(name.startswith("model.5.") for name in missing), missing
    assert same_features(state, model.model[:-1])
    torch.save({"model": model}, folder / "weights.pt")


if __name__ == "__main__":
    main()
