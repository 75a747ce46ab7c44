"""What evaluation sees of pictures, for people: at a size worth looking at, from their files."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from plumage.data.decode import Square, decode_or_reason
from plumage.data.store import Store

LARGEST = 2048  # pixels: the side of the square that a view is cut from, which a small crop would make huge


def views(store: Store, rows: np.ndarray, crop: int, side: int) -> np.ndarray:
    """Return the centre of these rows of a store, (m, side, side, 3) uint8: sharper than it is there, if it is smaller.

    crop: the centre's side in the store. Where a file is gone or cannot be read any more, its centre is enlarged.
    """
    if side <= crop:
        seen: Sequence[np.ndarray | str] = [""] * len(rows)
    else:
        files = [store.root / store.paths[number] for number in store.readable[rows]]
        with ThreadPoolExecutor(store.workers) as pool:
            seen = list(pool.map(partial(view, square=store.square, crop=crop, side=side), files))
    small = iter(store.read(rows[[isinstance(each, str) for each in seen]]))
    pixels = [centre(next(small), crop, side) if isinstance(each, str) else each for each in seen]
    return np.array(pixels, np.uint8).reshape(-1, side, side, 3)


def view(file: Path, square: Square, crop: int, side: int) -> np.ndarray | str:
    """Return the centre of a picture's file, (side, side, 3) uint8, or in one line why it cannot be read.

    crop: the centre's side in a ``square``. The part of the picture is the same to a pixel of that.
    """
    whole = min(round(square.side * side / crop), max(square.side, LARGEST))
    decoded = decode_or_reason(file, square._replace(side=whole))
    return decoded if isinstance(decoded, str) else centre(decoded.pixels, round(crop * whole / square.side), side)


def centre(pixels: np.ndarray, crop: int, side: int) -> np.ndarray:
    """Return (side, side, 3) uint8: the centre of a square picture, cut as ``center_crop`` does it, and resized."""
    start = round((len(pixels) - crop) / 2)
    cut = pixels[start : start + crop, start : start + crop]
    return cut if crop == side else np.asarray(Image.fromarray(cut).resize((side, side)))
