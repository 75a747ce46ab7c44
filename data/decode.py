"""Turn a picture file into an upright RGB square, or say in one line why it cannot be one."""

import threading
import warnings
from contextlib import nullcontext, suppress
from io import BufferedReader, FileIO
from pathlib import Path
from stat import S_ISREG

import numpy as np
from PIL import ExifTags, Image, ImageOps

# Named, so that no file is handed to a plug-in that starts another program (EPS does), whatever its suffix says.
Image.init()
FORMATS = sorted({"JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM"} & Image.OPEN.keys())
DECODER = 2  # part of a store's key: raise it whenever the same file would decode to other pixels
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
ORIENTATION = ExifTags.Base.Orientation
# Odd EXIF blocks, palettes and sizes: what matters of them comes as an error.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(file: Path, size: int) -> np.ndarray:
    """Decode a picture file to (size, size, 3) uint8 RGB: upright, alpha over white, the first frame of several.

    Resized to the square by Pillow's antialiased bilinear filter. A JPEG is decoded at 1/2, 1/4 or 1/8 of its scale
    where that leaves AMPLE times ``size``: the same within rounding, in a fraction of the time and memory.
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
        Image.open(source, formats=FORMATS) as opened,
    ):
        source.left, source.counted = MAX_TRAILER, STREAMED + 1
        if max(opened.size) > MAX_SIDE:
            raise ValueError(f"is {opened.width} by {opened.height} pixels: no side may have more than {MAX_SIDE}")
        huge = opened.width * opened.height > HUGE  # a progressive JPEG is, at any scale
        reduced = opened.draft(None, (AMPLE * size, AMPLE * size))
        box = reduced[1] if reduced else None  # where the scale does not divide a side, a fraction of a pixel less
        with one_huge_picture if huge and not large else nullcontext():
            opened.load()  # which may change its mode
            return to_square(opened, size, box)


class Source(BufferedReader):
    """A picture's file, of which ``left`` bytes can still be read in pieces of ``counted`` or more: all of its header.

    Pixels stream in smaller pieces. WebP and AVIF are read at once, in one piece without a size.
    """

    left, counted = MAX_HEADER, 1

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        if size is not None and size >= self.counted:
            self.left -= len(content)
            if self.left < 0:
                raise OSError(f"holds more than {MAX_HEADER // 10**6} MB beside its pixels")
        return content

    def __repr__(self) -> str:
        return "the file"


def to_square(image: Image.Image, size: int, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    """Turn a loaded picture, or its ``box``, into (size, size, 3) uint8 RGB as ``decode`` does; it stays as it is."""
    if not all(image.size):
        raise ValueError("has no pixels")
    square = to_rgb(image).resize((size, size), Image.Resampling.BILINEAR, box)
    with suppress(Exception):  # a picture whose EXIF block is broken is still a picture
        square.info = {}  # of which the orientation alone counts, whatever else the block holds
        if len(image.info.get("exif", b"")) <= MAX_HEADER:
            square.getexif()[ORIENTATION] = image.getexif()[ORIENTATION]
        square = ImageOps.exif_transpose(square)
    return np.asarray(square)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode but floating point to RGB: transparency over white, 16-bit grey by its upper byte."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if image.mode.startswith("I"):  # Pillow's own conversion would clip everything above 255
        pixels = np.asarray(image)
        shift = 0 if image.mode == "I" and pixels.max() <= 255 else 8
        image = Image.fromarray((pixels.clip(0, 65535) >> shift).astype(np.uint8))
    if image.has_transparency_data:
        return over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def over_white(image: Image.Image) -> Image.Image:
    """Paste a picture with transparency over white, in strips: all of it as RGBA would take four bytes a pixel more."""
    white = Image.new("RGB", image.size, "white")
    rows = -(-STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        white.paste(strip, (0, top), strip)
    return white


def decode_or_reason(file: Path, size: int) -> np.ndarray | str:
    """Return what ``decode`` does, or in one line why it cannot."""
    try:
        return decode(file, size)
    except Exception as error:  # damaged files raise nearly anything: struct.error, SyntaxError, MemoryError, …
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        for name in (str(file), repr(str(file))[1:-1]):
            reason = reason.replace(name, "the file")
        return " ".join(reason.split()) or type(error).__name__
