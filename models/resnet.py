"""torchvision's ResNets with a head for one's own classes. Its ResNet-50 is the "B" of He et al. 2019, section 4."""

import torch
from torch import nn
from torchvision.models import get_model


def build_model(name: str, classes: int) -> nn.Module:
    """A randomly initialised ``resnet18`` … ``resnet152``: (b, 3, h, w) → (b, classes) logits; torch's seed decides.

    In channels-last memory format, which convolutions in low precision are fastest in.
    """
    model: nn.Module = get_model(name, weights=None, num_classes=classes)
    return model.to(memory_format=torch.channels_last)
