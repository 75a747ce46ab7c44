"""Where in a picture the evidence for a class is: class activation maps, which for a ResNet are exact."""

import torch
from torch import Tensor, nn

STRIDE = 32  # pixels from one of the last feature maps' cells to the next
GRID = 56


def class_maps(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return float32 logits (b, K), and each picture's map of its label, (b, h', w') float32 (Zhou et al. 2016, eq. 2).

    model: a ResNet of ``build_model``, for evaluation. images: (b, 3, h, w), normalised. labels: (b,) int64, of any.
    h', w': the last feature maps' size, a 32nd of the picture's, rounded up. After them comes nothing but their mean
    and the head ``fc``, so a map is the head's weights times the feature maps, and its mean plus the bias is the logit.
    """
    assert not model.training, "BatchNorm would take the statistics of these pictures"
    features: list[Tensor] = []
    kept = model.get_submodule("layer4").register_forward_hook(lambda module, args, output: features.append(output))
    try:
        logits = model.forward(images)  # not model(): a compiled one calls no hook that came later
    finally:
        kept.remove()
    weights = model.get_submodule("fc").get_parameter("weight")[labels].float()
    with torch.autocast(images.device.type, enabled=False):
        return logits.float(), torch.einsum("bk,bkhw->bhw", weights, features[0].float())


def over_pictures(maps: Tensor, side: int) -> Tensor:
    """Interpolate (b, h', w') ``class_maps`` of pictures of this side to (b, GRID, GRID), which covers them evenly.

    Cell i does not: all convolutions that skip pixels, padded by half their size, begin at the first, so that the cell
    is centred at pixel STRIDE · i. To spread the cells evenly, as is usual, puts the evidence half of one too far right
    and down: a quarter of a picture of 56 pixels. Beyond the last, its value holds.
    """
    cells = torch.arange(maps.shape[-1], device=maps.device)
    at = ((torch.arange(GRID, device=maps.device) + 0.5) * side / GRID - 0.5) / STRIDE
    share = (1 - (at.clamp(0, len(cells) - 1)[:, None] - cells).abs()).clamp(min=0)
    return share @ maps @ share.T
