"""From stored pictures to what the network sees: augment and normalise a whole batch at once, where it lies."""

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from plumage.data.loader import Shard
from plumage.data.seeding import Purpose, generator

# Of ImageNet; every set of torchvision's ResNet weights was trained with them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# RGB → YIQ. Y is the luminance of Rec. 601; I and Q, the chroma plane, are 0 for grey.
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
# RGB → RGB: to the luminance alone, and to the chroma alone, turned by 90° from I to Q.
GREY = np.tile(YIQ[0], (3, 1))
QUARTER_TURN = np.linalg.inv(YIQ) @ [[0, 0, 0], [0, 0, -1], [0, 1, 0]] @ YIQ
# The principal components of ImageNet's RGB values from 0 to 1; each column of EIGENVECTORS is one.
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def random_crop_flip(
    images: Tensor, crop: int, seed: int, iteration: int, shard: Shard | None = None, flip: bool = True
) -> Tensor:
    """Cut a square window at a random place of each picture and, with ``flip``, mirror it with probability 1/2.

    (b, side, side, 3) uint8 → (b, crop, crop, 3) uint8. Draws are made on the CPU: every device sees the same.
    shard: which pictures of a larger batch these are, so that each gets the draws of its place there.
    """
    batch, side = images.shape[:2]
    places, whole = shard or (slice(None), batch)
    rng = generator(seed, Purpose.CROP, iteration)
    corners, mirror = rng.integers(0, side - crop + 1, (2, whole, 1)), rng.random((1, whole, 1)) < 0.5 * flip
    top, left, mirrored = _send(np.concatenate([corners, mirror])[:, places], images.device)
    across = torch.arange(crop, device=images.device)
    rows, columns = top + across, left + torch.where(mirrored > 0, across.flip(0), across)
    picture = torch.arange(batch, device=images.device)
    return images[picture[:, None, None], rows[:, :, None], columns[:, None, :]]


def center_crop(images: Tensor, crop: int) -> Tensor:
    """Cut the centre, as torchvision does: (b, side, side, 3) → (b, crop, crop, 3)."""
    return functional.center_crop(images.permute(0, 3, 1, 2), [crop, crop]).permute(0, 2, 3, 1)


def random_windows(batch: int, seed: int, iteration: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw windows of 8 to 100 % of a square picture, ratio 3/4 to 4/3 (log-uniform), as RandomResizedCrop does.

    Returns (4, b) top, left, height, width as fractions of the side, and (b,) bool: mirror it, with probability 1/2.
    """
    tries = 10
    draws = generator(seed, Purpose.CROP, iteration).random((batch, 2 * tries + 3))
    area, ratio = 0.08 + 0.92 * draws[:, :tries], (4 / 3) ** (2 * draws[:, tries:-3] - 1)
    sizes = np.sqrt([area / ratio, area * ratio])
    sizes = np.concatenate([sizes, np.ones((2, batch, 1))], axis=2)  # the whole picture, where no try fits
    first_fit = (sizes <= 1).all(axis=0).argmax(axis=1)
    size = sizes[:, np.arange(batch), first_fit]
    corner = draws[:, -3:-1].T * (1 - size)
    return np.concatenate([corner, size]), draws[:, -1] < 0.5


def resized_crop(images: Tensor, windows: np.ndarray, flip: np.ndarray, crop: int) -> Tensor:
    """Resize each picture's window bilinearly, and mirror it where ``flip``. windows, flip: from random_windows.

    (b, side, side, 3) uint8 → (b, crop, crop, 3) float32, 0 to 255. Without antialiasing: most windows are smaller than
    ``crop``, and none is more than side / crop times as large (256 / 224 by default).
    """
    centers, side = (np.arange(crop) + 0.5) / crop, images.shape[1]
    top, left, height, width = windows[..., None]
    rows, columns = top + height * centers, left + width * np.where(flip[:, None], centers[::-1], centers)
    # Border padding is done here: grid_sample lacks it on MPS before torch 2.13. And affine_grid is a matrix product,
    # which autocast or TF32 would round by a fraction of a pixel.
    edge = 1 - 1 / side
    y, x = (_send((2 * at - 1).clip(-edge, edge).astype(np.float32), images.device) for at in (rows, columns))
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    out = nn.functional.grid_sample(images.permute(0, 3, 1, 2).float(), grid, align_corners=False)
    return out.permute(0, 2, 3, 1).contiguous()


def random_colours(batch: int, seed: int, iteration: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw (3, b) coefficients of hue, saturation, brightness from [0.6, 1.4], and (b, 3) noise for RGB from 0 to 1.

    He et al. 2019, section 2.1. The noise is N(0, 0.1) eigenvalues along each eigenvector (Krizhevsky et al. 2012).
    """
    rng = generator(seed, Purpose.COLOUR, iteration)
    coefficients = rng.uniform(0.6, 1.4, (batch, 3)).T
    return coefficients, (rng.normal(0, 0.1, (batch, 3)) * EIGENVALUES) @ EIGENVECTORS.T


def colour_maps(coefficients: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute each picture's affine colour map, normalisation included: (b, 3, 3), (b, 3) float32, of RGB 0 to 255.

    Hue turns the chroma plane of YIQ by (coefficient − 1)·π, as MXNet does, where the paper's networks were trained.
    Saturation, a blend with the luminance, stretches that plane; brightness is a factor; then the noise is added.
    """
    hue, saturation, brightness = coefficients[..., None, None]
    turn = saturation * np.exp(1j * np.pi * (hue - 1))
    matrix = brightness * (GREY + turn.real * (np.eye(3) - GREY) + turn.imag * QUARTER_TURN)
    matrix, shift = matrix / (255 * np.array(STD)[:, None]), (noise - MEAN) / STD
    return matrix.astype(np.float32), shift.astype(np.float32)


def apply_colours(images: Tensor, matrix: np.ndarray, shift: np.ndarray) -> Tensor:
    """Map the colours of (b, h, w, 3) float32 by colour_maps' result, unclamped: a network takes what no file can."""
    linear, offset = (_send(array, images.device) for array in (matrix, shift))
    with torch.autocast(images.device.type, enabled=False):
        return torch.baddbmm(offset[:, None], images.flatten(1, 2), linear.mT).view_as(images)


def mixup(images: Tensor, labels: Tensor, classes: int, lam: float) -> tuple[Tensor, Tensor]:
    """Mix each picture x to λ·x + (1 − λ)·x', x' being the one before it (Zhang et al. 2018; He et al., section 5.4).

    images: (b, …) float. labels: (b,) int64. lam: λ. Returns the mixed images and (b, classes) float32 targets.
    torchvision's MixUp is the same, but draws from torch's global generator, whose state depends on what ran before.
    """
    targets = nn.functional.one_hot(labels, classes).float()
    return images.roll(1, 0).lerp(images, lam), targets.roll(1, 0).lerp(targets, lam)


def _send(array: np.ndarray, device: torch.device) -> Tensor:
    """Send to the device without waiting for it, as a copy from memory that is not page-locked would have to."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Transform(nn.Module):
    """Turn (b, side, side, 3) uint8 into (b, 3, crop, crop) float32, (x/255 − mean) / std, channels-last in memory.

    augment: "crop" (window and flip), "resized-crop" (Inception's), or "paper": that, then colours (He et al. 2019,
    section 2.1). mixup: α of λ ~ Beta(α, α), one for each batch, or 0 for none; it needs the number of ``classes``.
    flip: whether pictures may be mirrored.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        crop: int,
        seed: int = 0,
        augment: str = "crop",
        mixup: float = 0.0,
        classes: int = 0,
        flip: bool = True,
    ):
        super().__init__()
        assert augment in ("crop", "resized-crop", "paper")
        assert mixup == 0 or classes
        self.crop, self.seed, self.augment, self.mixup, self.classes, self.flip = (
            crop,
            seed,
            augment,
            mixup,
            classes,
            flip,
        )
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def random(
        self, images: Tensor, labels: Tensor, iteration: int, shard: Shard | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what training sees at 0-based ``iteration``, and the targets: ``labels``, or (b, classes) with mixup.

        shard: which pictures of a larger batch these are; with mixup, the first is only there to be mixed with.
        """
        views = self._augment(images, iteration, shard)
        if self.mixup:
            lam = generator(self.seed, Purpose.MIXUP, iteration).beta(self.mixup, self.mixup)
            views, labels = mixup(views, labels, self.classes, lam)
            if shard and len(images) < shard.whole:
                views, labels = views[1:], labels[1:]
        return views.permute(0, 3, 1, 2), labels

    def center(self, images: Tensor) -> Tensor:
        """Return what evaluation sees."""
        return self.normalise(center_crop(images, self.crop)).permute(0, 3, 1, 2)

    def _augment(self, images: Tensor, iteration: int, shard: Shard | None) -> Tensor:
        """Turn (b, side, side, 3) uint8 into normalised (b, crop, crop, 3) float32."""
        if self.augment == "crop":
            return self.normalise(random_crop_flip(images, self.crop, self.seed, iteration, shard, self.flip))
        places, whole = shard or (slice(None), len(images))
        windows, mirror = random_windows(whole, self.seed, iteration)
        views = resized_crop(images, windows[:, places], mirror[places] & self.flip, self.crop)
        if self.augment == "resized-crop":
            return self.normalise(views)
        coefficients, noise = random_colours(whole, self.seed, iteration)
        return apply_colours(views, *colour_maps(coefficients[:, places], noise[places]))

    def normalise(self, images: Tensor) -> Tensor:
        """Turn RGB from 0 to 255, in the last dimension, into (x/255 − mean) / std, float32."""
        return images * self.scale + self.shift
