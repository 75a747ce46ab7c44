"""Colours by the profile that a picture brings, turned into sRGB, which networks and screens take them for."""

from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE = 8_000_000  # bytes; printers' have one or two million
SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
Transform = Callable[[Image.Image], Image.Image]


def transform_for(profile: object, mode: str) -> Transform | None:
    """Return what makes RGB in sRGB of pictures in ``mode``: L, RGB or CMYK, as their ICC profile, some bytes, says.

    None where there is no profile, where it is broken or for another mode, or where it is sRGB already.
    """
    return _transform(profile, mode) if isinstance(profile, bytes) and 0 < len(profile) <= MAX_PROFILE else None


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> Transform | None:
    """Build the transform from a profile, in its perceptual intent, Pillow's default. Threads may share it."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if source.profile.xcolor_space.strip() != SPACES[mode]:
            return None
        built = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")

        def apply(image: Image.Image) -> Image.Image:
            converted: Any = ImageCms.applyTransform(image, built)
            return converted

        return None if mode != "CMYK" and _changes_nothing(apply, mode) else apply
    except Exception:  # whatever littleCMS makes of a broken profile, or Pillow where it is built without littleCMS
        return None


def _changes_nothing(apply: Transform, mode: str) -> bool:
    """Return whether a profile is sRGB by another name: no colour of an even grid moves by more than one level."""
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(64, 64, 3)
    image = Image.fromarray(grid) if mode == "RGB" else Image.fromarray(grid[..., 0])
    return int(np.abs(np.asarray(apply(image)).astype(int) - np.asarray(image.convert("RGB"))).max()) <= 1
