"""torchvision's ResNets with a head for one's own classes. Its ResNet-50 is the "B" of He et al. 2019, section 4."""

import torch
from torch import nn
from torchvision.models import get_model


def build_model(name: str, classes: int, zero_gamma: bool = False) -> nn.Module:
    """A ResNet by torchvision's name, initialised by torch's seed: (b, 3, h, w) → (b, classes) logits.

    In channels-last memory format, the fastest for convolutions in low precision.
    zero_gamma: residual blocks begin as the identity, their last BatchNorm's γ being 0 (He et al. 2019, section 3.1).
    """
    model: nn.Module = get_model(name, weights=None, num_classes=classes, zero_init_residual=zero_gamma)
    return model.to(memory_format=torch.channels_last)
