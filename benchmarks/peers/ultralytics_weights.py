"""Hand torchvision's weights to Ultralytics: python ultralytics_weights.py WEIGHTS FOLDER

yolov8-cls-resnet50.yaml has torchvision's shapes, but SiLU where that has ReLU, and before the last layer a convolution
to 1280 channels of its own. A file like it that asks for ReLU (its ``activation``) computes the very features of
torchvision's network; with SiLU, their cosine is 0.84. All tensors but torchvision's last layer are taken over. The
convolution, its BatchNorm and the last layer begin at random.
"""

import sys
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn
from torchvision.models import resnet50
from ultralytics.nn.tasks import ClassificationModel, yaml_model_load

PARTS = {"conv": "conv", "bn": "bn", "0": "conv", "1": "bn"}


def own_name(name: str) -> str:
    """Return Ultralytics' name of torchvision's tensor ``name``: model.2.layer.0.cv1.conv… of layer2.0.conv1…"""
    first, *middle, kind = name.split(".")
    if not middle:
        return f"model.0.layer.0.{first[:-1]}.{kind}"
    block, part, *of_shortcut = middle
    place = "shortcut.0" if of_shortcut else f"cv{part[-1]}"
    return f"model.{first[-1]}.layer.{block}.{place}.{PARTS[of_shortcut[0] if of_shortcut else part[:-1]]}.{kind}"


def same_features(state: dict[str, Tensor], model: nn.Module) -> bool:
    """Tell whether ``model`` finds in a batch, before its head, what torchvision's network of ``state`` does."""
    network = resnet50()
    network.load_state_dict(state, strict=False)
    bodies = nn.Sequential(*list(network.children())[:-2]), model.model[:-1]
    batch = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.allclose(*(body.eval()(batch) for body in bodies), rtol=1e-4, atol=1e-4)


def main() -> None:
    weights, folder = map(Path, sys.argv[1:])
    network = {**yaml_model_load("yolov8-cls-resnet50.yaml"), "activation": "torch.nn.ReLU()"}
    description = folder / "resnet50-relu-cls.yaml"
    description.write_text(yaml.safe_dump({name: network[name] for name in ("nc", "activation", "backbone", "head")}))
    model = ClassificationModel(str(description), verbose=False)
    state = torch.load(weights)
    missing, unknown = model.load_state_dict({own_name(name): value for name, value in state.items()}, strict=False)
    assert not unknown, unknown
    assert all(name.startswith("model.5.") for name in missing), missing
    assert same_features(state, model)
    torch.save({"model": model}, folder / "weights.pt")


if __name__ == "__main__":
    main()
