"""torchvision's ResNets with a head for one's own classes, altered where He et al. 2019, section 4, alters ResNet-50.

torchvision's ``resnet50`` is the paper's B. ``resnet50v1`` is the original network, with the same state dict;
``resnet50c`` and ``resnet50d`` are the paper's C and D, with timm's state dicts.
"""

from typing import Any

import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.resnet import Bottleneck, ResNet, conv3x3
from torchvision.ops import Conv2dNormActivation

from plumage.models.convolution import Conv2d


def build_model(name: str, classes: int, zero_gamma: bool = False) -> nn.Module:
    """Build the ResNet called ``name``, initialised by torch's seed: (b, 3, h, w) → (b, classes) logits.

    zero_gamma: residual blocks begin as the identity, their last BatchNorm's γ being 0 (He et al. 2019, section 3.1).
    """
    base = "resnet50" if name in TWEAKS else name
    model: nn.Module = get_model(base, weights=None, num_classes=classes, zero_init_residual=zero_gamma)
    for tweak in TWEAKS.get(name, ()):
        tweak(model)
    for module in model.modules():
        if Conv2d.computes(module):
            module.__class__ = Conv2d  # which has the same attributes
    return model.to(memory_format=torch.channels_last)  # the fastest for convolutions in low precision


def parameter_groups(
    model: nn.Module, weight_decay: float, bias_decay: bool = True, head_lr_multiplier: float = 1.0
) -> list[dict[str, Any]]:
    """Sort the parameters into four groups for torch.optim.SGD: the body's weights, its others, and the head's two.

    Weights are those of convolutions and linear layers. Without bias_decay they alone decay, neither biases nor
    BatchNorms (He et al. 2019, section 3.1). The schedule multiplies a group's rate by its ``lr_scale``:
    head_lr_multiplier for the head, which is ``model.fc``, and 1 for the body.
    """
    head = set(model.get_submodule("fc").parameters())
    weights = {module.weight for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    return [
        {
            "params": [p for p in model.parameters() if (p in head) == of_head and (p in weights) == of_weights],
            "weight_decay": weight_decay if of_weights or bias_decay else 0.0,
            "lr_scale": head_lr_multiplier if of_head else 1.0,
        }
        for of_head in (False, True)
        for of_weights in (True, False)
    ]


def _stride_first(model: ResNet) -> None:
    """Let the first 1×1 convolution down-sample, as in the original block: it skips three quarters of its input."""
    for block in _blocks(model):
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _deep_stem(model: ResNet) -> None:
    """Replace the stem's 7×7 convolution by three of 3×3: C."""
    model.conv1 = nn.Sequential(*Conv2dNormActivation(3, 32, stride=2), *Conv2dNormActivation(32, 32), conv3x3(32, 64))
    for convolution in model.conv1[::3]:
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's others


def _pooled_shortcut(model: ResNet) -> None:
    """Down-sample in shortcuts by average pooling, so that their 1×1 convolution skips nothing: after C, D."""
    for block in _blocks(model):
        if block.downsample is not None:
            convolution, norm = block.downsample
            pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False) if block.stride == 2 else nn.Identity()
            convolution.stride = (1, 1)
            block.downsample = nn.Sequential(pool, convolution, norm)


def _blocks(model: ResNet) -> list[Bottleneck]:
    return [module for module in model.modules() if isinstance(module, Bottleneck)]


TWEAKS = {"resnet50v1": (_stride_first,), "resnet50c": (_deep_stem,), "resnet50d": (_deep_stem, _pooled_shortcut)}
