"""From stored pictures to what the network sees: crop, flip and normalise a whole batch at once, where it lies."""

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from data.seeding import Purpose, generator

# Of ImageNet; every set of torchvision's ResNet weights was trained with them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def random_crop_flip(images: Tensor, crop: int, seed: int, iteration: int) -> Tensor:
    """A square window at a random place of each picture, mirrored left to right with probability 1/2.

    (b, side, side, 3) uint8 → (b, crop, crop, 3) uint8. Draws are made on the CPU, so that every device sees the same.
    """
    batch, side = images.shape[:2]
    rng = generator(seed, Purpose.CROP, iteration)
    top, left = rng.integers(0, side - crop + 1, (2, batch, 1))
    across = torch.arange(crop)
    flip = torch.from_numpy(rng.random((batch, 1)) < 0.5)
    rows = torch.from_numpy(top) + across
    columns = torch.from_numpy(left) + torch.where(flip, across.flip(0), across)
    rows, columns = (index.to(images.device, non_blocking=True) for index in (rows, columns))
    picture = torch.arange(batch, device=images.device)
    return images[picture[:, None, None], rows[:, :, None], columns[:, None, :]]


def center_crop(images: Tensor, crop: int) -> Tensor:
    """(b, side, side, 3) → (b, crop, crop, 3), the same window that torchvision takes."""
    return functional.center_crop(images.permute(0, 3, 1, 2), [crop, crop]).permute(0, 2, 3, 1)


class Transform(nn.Module):
    """(b, side, side, 3) uint8 → (b, 3, crop, crop) float32, (x/255 − mean) / std, in channels-last memory format."""

    scale: Tensor
    shift: Tensor

    def __init__(self, crop: int, seed: int = 0):
        super().__init__()
        self.crop, self.seed = crop, seed
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def random(self, images: Tensor, iteration: int) -> Tensor:
        """What training sees at 0-based ``iteration``."""
        return self._normalise(random_crop_flip(images, self.crop, self.seed, iteration))

    def center(self, images: Tensor) -> Tensor:
        """What evaluation sees."""
        return self._normalise(center_crop(images, self.crop))

    def _normalise(self, images: Tensor) -> Tensor:
        return (images * self.scale + self.shift).permute(0, 3, 1, 2)
