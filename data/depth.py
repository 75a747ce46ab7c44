"""Pictures of more than 8 bits a channel, with all their levels, of which Pillow keeps the upper byte; and their scale.

A data set has one scale, its ``Levels``: what a value means must not depend on the picture that it is in.
"""

import logging
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile

from plumage.data.samples import some

log = logging.getLogger("plumage")

Levels = tuple[float, float]  # the values that become 0 and 255
LEARN: Levels = (math.inf, -math.inf)  # the lowest and the highest of no value yet: to be found in the pictures
FULL: Levels = (0.0, 65535.0)
STRIP = 1_000_000  # pixels
BITS, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 258, 262, 284, 339  # tags of TIFF
Parts = tuple[Image.Image, ...]  # what a channel's numbers are made of: one image of them, or of upper and lower bytes


class Deep(NamedTuple):
    """A loaded picture of more than 8 bits a channel.

    channels: one of grey, or three. alpha: like a channel, 0 to 65535. key: the colour that is transparent.
    premultiplied: by alpha. known: the range is that of unsigned 16 bits. adapt: from the numbers to their meaning.
    """

    channels: Sequence[Parts]
    known: bool
    alpha: Parts | None = None
    key: tuple[int, ...] | None = None
    premultiplied: bool = False
    adapt: Callable[[np.ndarray], np.ndarray] = lambda numbers: numbers

    @property
    def size(self) -> tuple[int, int]:
        return self.channels[0][0].size

    def numbers(self, channel: Parts, rows: tuple[int, int]) -> np.ndarray:
        """Return the values of some rows, (n, width) of any type."""
        crops = [np.asarray(part.crop((0, rows[0], part.width, rows[1]))) for part in channel]
        return crops[0] if len(crops) == 1 else crops[0].astype(np.uint16) << 8 | crops[1]

    def strips(self) -> Iterator[tuple[int, int]]:
        width, height = self.size
        count = -(-STRIP // width)
        return ((top, min(top + count, height)) for top in range(0, height, count))

    def opacity(self, rows: tuple[int, int]) -> np.ndarray | None:
        """Return how opaque some rows are, (n, width) from 0 to 1; None where all is."""
        if self.alpha:
            return self.numbers(self.alpha, rows) / 65535
        if self.key:
            pairs = zip(self.channels, self.key, strict=True)
            return np.any([self.numbers(channel, rows) != value for channel, value in pairs], axis=0).astype(np.float64)
        return None

    def extremes(self) -> Levels:
        """Return the lowest and the highest finite value. Raises ValueError where there is none."""
        low, high = LEARN
        for rows in self.strips():
            for channel in self.channels:
                values = self.adapt(self.numbers(channel, rows))
                finite = values if values.dtype.kind in "iu" else values[np.isfinite(values)]
                if finite.size:
                    low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        if low > high:
            raise ValueError("has no pixel that is a finite number")
        return low, high

    def resized(self, shrink: Callable[[Image.Image], Image.Image], extremes: Levels, levels: Levels) -> np.ndarray:
        """Return (height, width, channels) uint8, from ``levels`` to 0 and 255, beyond them clipped, alpha over white.

        shrink: resizes an image of floating-point numbers. They are the values between the picture's own ``extremes``,
        from 0 to 1, so that none is too large for it; what is no number is the lowest.
        """
        (own, top), (low, high) = extremes, levels
        opacity = 1.0 if self.opacity((0, 1)) is None else self._shrunk(shrink, self._opaque)
        factor = 255 / (high - low) if high > low else 0.0
        start = own if self.premultiplied else own * opacity
        scaled = []
        for channel in self.channels:

            def between(rows: tuple[int, int], channel: Parts = channel) -> np.ndarray:
                values = (self.adapt(self.numbers(channel, rows)).astype(np.float64) - own) / ((top - own) or 1.0)
                values = np.nan_to_num(values, copy=False, nan=0.0, posinf=1.0, neginf=0.0)
                return values if self.premultiplied else values * self._opaque(rows)

            colour = (start + self._shrunk(shrink, between) * (top - own) - low * opacity) * factor
            scaled.append(np.clip(colour, 0, 255 * opacity) + 255 * (1 - opacity))
        return np.rint(np.stack(scaled, axis=-1)).astype(np.uint8)

    def _opaque(self, rows: tuple[int, int]) -> np.ndarray:
        opacity = self.opacity(rows)
        return np.ones(1) if opacity is None else opacity

    def _shrunk(
        self, shrink: Callable[[Image.Image], Image.Image], read: Callable[[tuple[int, int]], np.ndarray]
    ) -> np.ndarray:
        whole = Image.new("F", self.size)
        for rows in self.strips():
            whole.paste(Image.fromarray(read(rows).astype(np.float32)), (0, rows[0]))
        return np.asarray(shrink(whole)).astype(np.float64)


def count_beyond(extremes: Sequence[Sequence[float] | None], levels: Levels | None) -> int:
    """Count the pictures of more than 8 bits that levels clip, or that meet a run which has none. None: of 8 bits."""
    deep = [each for each in extremes if each]
    return sum(levels is None or each[0] < levels[0] or each[1] > levels[1] for each in deep)


def tell_beyond(where: str, count: int, levels: Levels | None) -> None:
    if count and levels:
        what = f"values beyond {levels[0]:g} to {levels[1]:g}, which the run has learnt from: they are clipped"
    else:
        what = "more than 8 bits, and the run has learnt from none such: 0 to 65535 is taken as their range"
    if count:
        log.warning(f"{where}{count} pictures have {what}")


def tell_levels(where: str, paths: Sequence[str], extremes: np.ndarray, levels: Levels | None) -> None:
    """Tell which levels were learnt, and from which picture the highest: a broken pixel may be all that reaches it.

    paths, (n, 2) float64 extremes: of the pictures, without numbers where one has 8 bits.
    """
    if levels:
        deep = np.flatnonzero(~np.isnan(extremes[:, 0]))
        brightest, usual = paths[deep[extremes[deep, 1].argmax()]], np.median(extremes[deep, 1])
        log.info(
            f"{where}{len(deep)} of {len(paths)} pictures have more than 8 bits: {levels[0]:g} becomes black and "
            f"{levels[1]:g}, of {some([brightest])}, white; half of them reach no more than {usual:g}"
        )


def is_deep(image: Image.Image) -> bool:
    """Return whether a picture, loaded or not, has more than 8 bits a channel or signs, and is no print in CMYK."""
    if image.mode.startswith("I") or image.mode == "F":
        return True
    if not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return False
    if image.format == "PPM":
        return _maxval(image) > 255
    deep = ";16" in _rawmode(image) and image.mode != "CMYK"
    return image.format in ("PNG", "TIFF") and (deep or _is_apart(image) or _has_signs(image))


def of_image(image: Image.Image) -> Deep:
    """Return a loaded image of the mode I;16, I or F."""
    known = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    key = image.info.get("transparency")
    return Deep([(image,)], known, key=(key,) if known and isinstance(key, int) else None)


def read_deep(opened: ImageFile.ImageFile, again: Callable[[], ImageFile.ImageFile]) -> Deep:
    """Load a deep picture, the opened and not yet loaded file; ``again`` opens it a second time.

    Raises ValueError where Pillow can give no more than the upper byte.
    """
    raw = _rawmode(opened)
    if opened.mode.startswith("I") or opened.mode == "F":
        return _read_grey(opened, raw)
    if _is_apart(opened):
        raise ValueError("has one channel after the other (planar): save it with interleaved channels")
    if _has_signs(opened):
        opened.load()
        return Deep([(opened,)], False, adapt=lambda numbers: numbers.view(np.int8))
    if opened.tile[0][0] == "ppm_plain":
        raise ValueError("has 16-bit colours as text: save it as PNG")
    if raw.startswith("LA;16"):
        opened._mode = "RGBA"
        value, value_low, alpha, alpha_low = _loaded(opened, "RGBA").split()  # the four bytes of a pixel
        return Deep([(value, value_low)], True, (alpha, alpha_low))
    most = 65535
    if opened.format == "PPM":
        most, raw = _maxval(opened), "RGB;16B"
    # Each of Pillow's two byte orders keeps the byte that it takes for the upper one.
    big = raw[-1] == "B" or (raw[-1] == "N" and sys.byteorder == "big")
    form, orders = raw[:-1].replace("RGBa", "RGBA"), "BL" if big else "LB"
    high, key = _loaded(opened, form + orders[0]).split(), opened.info.get("transparency")
    *colours, last = zip(high, _loaded(again(), form + orders[1]).split(), strict=True)
    keyed = isinstance(key, tuple) and len(key) == 3
    deep = Deep([*colours, last][:3], True, last if len(colours) == 3 else None, premultiplied=raw.startswith("RGBa"))
    deep = deep._replace(key=key) if keyed and not deep.alpha else deep
    return deep if most == 65535 else deep._replace(adapt=lambda numbers: numbers.clip(max=most) * (65535 / most))


def _read_grey(opened: ImageFile.ImageFile, raw: str) -> Deep:
    tags = getattr(opened, "tag_v2", {})
    if opened.tile[0][0] == "libtiff":
        # libtiff has brought the bytes into this machine's order, which Pillow knows of unsigned 16 bits alone.
        raw = re.sub(r"^([IF];(?:16|32))B?([SF])$", r"\1N\2", raw)
        _set_rawmode(opened, raw)
    opened.load()
    deep = of_image(opened)
    if raw == "I;32N" and opened.format == "TIFF":
        return deep._replace(adapt=lambda numbers: numbers.view(np.uint32))
    if tags.get(PHOTOMETRIC) == 0:  # white is zero
        return deep._replace(adapt=np.negative if opened.mode == "F" else lambda numbers: 65535 - numbers)
    return deep


def _loaded(opened: ImageFile.ImageFile, rawmode: str) -> Image.Image:
    _set_rawmode(opened, rawmode)
    opened.load()
    return opened


def _rawmode(opened: ImageFile.ImageFile) -> str:
    args = opened.tile[0][3] if opened.tile else ""
    return str(args[0] if isinstance(args, tuple) else args)


def _set_rawmode(opened: ImageFile.ImageFile, rawmode: str) -> None:
    """Have Pillow take the bytes of a file's pixels for those of another kind, of the same size."""
    tiles: list[tuple[Any, ...]] = []
    for decoder, extents, offset, args in opened.tile:
        if opened.format == "PPM":
            tiles.append(("raw", extents, offset, (rawmode, 0, 1)))
        else:
            tiles.append((decoder, extents, offset, (rawmode, *args[1:]) if isinstance(args, tuple) else rawmode))
    kind: Any = type(opened.tile[0])
    opened.tile = [getattr(kind, "_make", kind)(tile) for tile in tiles]


def _maxval(opened: ImageFile.ImageFile) -> int:
    args = opened.tile[0][3]
    return args[1] if isinstance(args, tuple) and len(args) == 2 else 255


def _is_apart(opened: ImageFile.ImageFile) -> bool:
    """Return whether a TIFF has one channel after the other, in a way of which Pillow reads other bytes."""
    tags = getattr(opened, "tag_v2", {})
    wrong = opened.mode in ("LA", "La", "LAB") or max(tags.get(BITS, (1,))) > 8
    return tags.get(PLANAR) == 2 and opened.mode in ("LA", "La", "LAB", "RGB", "RGBA", "CMYK") and wrong


def _has_signs(opened: ImageFile.ImageFile) -> bool:
    """Return whether a TIFF is of signed bytes, which Pillow takes for unsigned ones."""
    return opened.mode == "L" and getattr(opened, "tag_v2", {}).get(SAMPLE_FORMAT) == (2,)
