"""Turn a picture file into an upright RGB square, or say in one line why it cannot be one."""

import threading
import warnings
from contextlib import nullcontext, suppress
from io import BufferedReader, FileIO
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from plumage.data.colour import transform_for
from plumage.data.depth import FULL, LEARN, Deep, Levels, is_deep, of_image, read_deep
from plumage.data.fit import ORIENTATION, finished, frame_of
from plumage.data.formats import check_kind, formats_of, why_unreadable

DECODER = 3  # part of a store's key: raise it whenever the same file would decode to other pixels
# Pillow refuses at twice this number: 100 megapixels, before anything is decoded.
Image.MAX_IMAGE_PIXELS = 50_000_000
MAX_SIDE = 65_535  # JPEG's own; resizing takes 32 bytes for each pixel of a side
AMPLE = 3  # times the square: a JPEG is decoded at no smaller scale
# Room for 100 megapixels of three bytes. Sparse files may be longer than any memory, and some decoders take twice that.
MAX_BYTES = 320_000_000
# Of what a file holds beside its pixels: Pillow makes some 50 bytes of each number there.
MAX_HEADER, MAX_TRAILER, STREAMED = 64_000_000, 128_000_000, 65_536
# A file of a hundred bytes may decode to gigabytes. One such, or one that is long itself, at a time: memory does not
# grow with the threads.
HUGE = 25_000_000
LARGE = 32_000_000
STRIP = 1_000_000  # pixels
one_huge_picture = threading.Lock()
# What a profile of a picture of these modes is for, if not for RGB.
GREY_OR_INK = {"1": "L", "L": "L", "LA": "L", "La": "L", "CMYK": "CMYK"}
# Odd EXIF blocks, palettes and sizes: what matters of them comes as an error.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Square(NamedTuple):
    """What pictures become: squares of this side, in pixels.

    fit: how others are brought to that form, see Recipe. levels: the values of pictures of more than 8 bits that become
    0 and 255; None where none are known, and LEARN where they are to be found in the pictures.
    """

    side: int
    fit: str = "squash"
    levels: Levels | None = None


class Decoded(NamedTuple):
    """pixels: (side, side, 3) uint8 RGB. extremes: the lowest and highest value of one of more than 8 bits, or None.

    With levels that are still to be learnt, pixels of such a picture mean nothing.
    """

    pixels: np.ndarray
    extremes: Levels | None = None


def decode(file: Path, square: Square) -> Decoded:
    """Decode a picture file to an RGB square: upright, in sRGB, alpha over white, the first page or frame of several.

    Resized by Pillow's antialiased bilinear filter. A JPEG is decoded at 1/2, 1/4 or 1/8 of its scale where that leaves
    AMPLE times the side: the same within rounding, in a fraction of the time and memory.
    Raises whatever Pillow raises on a file that it cannot read.
    """
    status = file.stat()
    if not S_ISREG(status.st_mode):
        raise ValueError("is no regular file")  # opening a pipe would wait for ever
    if status.st_size > MAX_BYTES:
        raise ValueError(f"has {status.st_size / 1e6:,.0f} MB: no picture may have more than {MAX_BYTES // 10**6}")
    large = status.st_size > LARGE
    with (
        one_huge_picture if large else nullcontext(),
        Source(FileIO(file)) as source,
        open_picture(source, file.name) as opened,
    ):
        size = opened.size
        if max(size) > MAX_SIDE:
            raise ValueError(f"is {opened.width} by {opened.height} pixels: no side may have more than {MAX_SIDE}")
        huge = opened.width * opened.height > HUGE  # a progressive JPEG is, at any scale
        reduced = opened.draft(None, (AMPLE * square.side, AMPLE * square.side))
        draft = (size, reduced[1]) if reduced else None  # a fraction of a pixel less where the scale divides no side
        with one_huge_picture if huge and not large else nullcontext():
            if is_deep(opened):
                deep = read_deep(opened, lambda: open_picture(source, file.name))
                return deep_to_square(deep, opened, square)
            opened.load()  # which may change its mode
            return Decoded(to_square(opened, square, draft))


class Source(BufferedReader):
    """A picture's file, of which ``left`` bytes can still be read in pieces of ``counted`` or more: all of its header.

    Pixels stream in smaller pieces. WebP, AVIF and HEIC are read at once, in one piece without a size.
    """

    left, counted = MAX_HEADER, 1

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        if size is not None and size >= self.counted:
            self.left -= len(content)
            if self.left < 0:
                raise OSError(f"holds more than {MAX_HEADER // 10**6} MB beside its pixels")
        return content

    def head(self) -> bytes:
        """Return the file's first bytes, from where reading goes on as it would have."""
        place = self.tell()
        self.seek(0)
        content = super().read(4096)
        self.seek(place)
        return content

    def __repr__(self) -> str:
        return "the file"


def open_picture(source: Source, name: str) -> ImageFile.ImageFile:
    """Read the header of a picture of this name, from the file's beginning."""
    source.seek(0)
    source.left, source.counted = MAX_HEADER, 1
    try:
        opened = Image.open(source, formats=formats_of(name))
    except UnidentifiedImageError as error:
        raise ValueError(why_unreadable(name, source.head())) from error
    source.left, source.counted = MAX_TRAILER, STREAMED + 1
    check_kind(opened, name, source.head)
    return opened


def of_pillow(image: Image.Image, square: Square) -> Decoded:
    """Turn an image of Pillow's into a square as ``decode`` does. It stays as it is, but for being loaded."""
    if isinstance(image, ImageFile.ImageFile) and image.tile and is_deep(image) and image.mode[0] not in "IF":
        raise ValueError("has colours of 16 bits, of which Pillow's image keeps 8: give its path")
    image.load()
    if is_deep(image):
        return deep_to_square(of_image(image), image, square)
    return Decoded(to_square(image, square))


def to_square(
    image: Image.Image,
    square: Square,
    draft: tuple[tuple[int, int], tuple[float, float, float, float]] | None = None,
) -> np.ndarray:
    """Turn a loaded picture of 8 bits into (side, side, 3) uint8 RGB as ``decode`` does; it stays as it is.

    draft: its own size, and which part of this smaller one it fills.
    """
    if not all(image.size):
        raise ValueError("has no pixels")
    orientation, (size, part) = orientation_of(image), draft or (image.size, (0, 0, *image.size))
    frame = frame_of(size, part[2:], square.side, square.fit, orientation)
    mode = GREY_OR_INK.get(image.mode, "RGB")
    to_srgb = transform_for(image.info.get("icc_profile"), mode)
    whole = image if to_srgb and mode == "CMYK" else to_rgb(image)
    small = whole.resize(frame.size, Image.Resampling.BILINEAR, frame.box)
    if to_srgb:
        small = to_srgb(small.getchannel(0) if mode == "L" else small)
    return finished(small, frame, square.side, orientation)


def deep_to_square(deep: Deep, image: Image.Image, square: Square) -> Decoded:
    """Do the same with a picture of more than 8 bits; ``image`` has what else its file says."""
    if not all(image.size):
        raise ValueError("has no pixels")
    extremes, orientation = deep.extremes(), orientation_of(image)
    if square.levels == LEARN:
        return Decoded(np.zeros((square.side, square.side, 3), np.uint8), extremes)
    levels = square.levels or (FULL if deep.known else None)
    if levels is None:
        raise ValueError("has signed, 32-bit or floating-point numbers, of which the run has learnt no range")
    frame = frame_of(deep.size, deep.size, square.side, square.fit, orientation)
    pixels = deep.resized(
        lambda whole: whole.resize(frame.size, Image.Resampling.BILINEAR, frame.box), extremes, levels
    )
    small = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    to_srgb = transform_for(image.info.get("icc_profile"), small.mode)
    small = to_srgb(small) if to_srgb else small.convert("RGB")
    return Decoded(finished(small, frame, square.side, orientation), extremes)


def orientation_of(image: Image.Image) -> int:
    with suppress(Exception):  # a picture whose EXIF block is broken is still a picture
        if len(image.info.get("exif", b"")) <= MAX_HEADER and (value := image.getexif()[ORIENTATION]) in range(2, 9):
            return int(value)
    return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode of 8 bits to RGB: transparency over white."""
    if image.has_transparency_data:
        return over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def over_white(image: Image.Image) -> Image.Image:
    """Paste a picture with transparency over white, in strips: all of it as RGBA would take four bytes a pixel more."""
    image = image.convert("LA") if image.mode == "La" else image
    white = Image.new("RGB", image.size, "white")
    rows = -(-STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        white.paste(strip, (0, top), strip)
    return white


def decode_or_reason(file: Path, square: Square) -> Decoded | str:
    """Return what ``decode`` does, or in one line why it cannot."""
    try:
        return decode(file, square)
    except Exception as error:  # damaged files raise nearly anything: struct.error, SyntaxError, MemoryError, …
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        for name in (str(file), repr(str(file))[1:-1]):
            reason = reason.replace(name, "the file")
        return " ".join(reason.split()) or type(error).__name__
