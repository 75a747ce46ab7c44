"""How a picture of any shape becomes a square, whichever way it lies in its file."""

from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

ORIENTATION = ExifTags.Base.Orientation
GREY = (128, 128, 128)


class Frame(NamedTuple):
    """Where a picture goes: its part ``box``, in its pixels, is resized to ``size``, and put at ``corner`` on grey."""

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    corner: tuple[int, int]


def frame_of(size: tuple[int, int], extent: tuple[float, ...], side: int, fit: str, orientation: int) -> Frame:
    """Return where a picture of ``size`` goes, of which pixels fill ``extent``, and which is turned upright afterwards.

    As ImageOps.pad does it, and torchvision's Resize of the short side with CenterCrop: so that what cannot be halved
    lies on the same side of the upright picture, it changes sides where turning mirrors an axis.
    """
    reference = {"squash": 0, "crop": min(size), "pad": max(size)}[fit]
    mirrored = (orientation in (2, 3, 7, 8), orientation in (3, 4, 6, 7))
    sides = []
    for length, pixels, mirror in zip(size, extent, mirrored, strict=True):
        scaled = side if length == reference or not reference else side * length / reference
        whole = max(1, int(scaled) if fit == "crop" else round(scaled))
        over = whole - side
        start = over - round(over / 2) if mirror else round(over / 2)
        seen = min(whole, side)
        first, last = (edge / whole * pixels for edge in (max(start, 0), max(start, 0) + seen))
        sides.append((first, last, seen, max(-start, 0)))
    (left, right, width, x), (top, bottom, height, y) = sides
    return Frame((left, top, right, bottom), (width, height), (x, y))


def finished(small: Image.Image, frame: Frame, side: int, orientation: int) -> np.ndarray:
    """Return the pixels of a resized picture as a whole square, upright."""
    if small.size != (side, side):
        sheet = Image.new("RGB", (side, side), GREY)
        sheet.paste(small, frame.corner)
        small = sheet
    if orientation != 1:
        small.info = {}  # of which the orientation alone counts, whatever else the block holds
        small.getexif()[ORIENTATION] = orientation
        small = ImageOps.exif_transpose(small)
    return np.asarray(small)
