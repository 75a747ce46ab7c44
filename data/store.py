"""Every picture decoded and resized once, into one memory-mapped array on disk; and which files could not be read."""

import csv
import hashlib
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
from PIL import Image, ImageOps
from tqdm import tqdm

log = logging.getLogger("plumage")

A = TypeVar("A")
B = TypeVar("B")

# Named, so that a file is never handed to a plug-in that starts other programs (EPS does), whatever its suffix says.
Image.init()
FORMATS = sorted({"JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"} & Image.OPEN.keys())
DECODER = 1  # part of a store's key: raise it whenever the same file would decode to other pixels
# Pillow refuses at twice this number: 100 megapixels, before anything is decoded.
Image.MAX_IMAGE_PIXELS = 50_000_000
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Store:
    """The readable pictures among ``paths``, as squares of side ``size``.

    readable: (n,) int64, which of the paths could be read; row i of the store is picture ``readable[i]``.
    digests: (n, 16) uint8, a hash of each row's pixels.
    skipped: (path, reason) of the others.
    pixels: (n, size, size, 3) uint8 on disk, or None: then files are decoded whenever they are read.
    """

    root: Path
    paths: list[str]
    size: int
    readable: np.ndarray
    digests: np.ndarray
    skipped: list[tuple[str, str]]
    pixels: np.ndarray | None
    workers: int

    def read(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows), size, size, 3) uint8 RGB."""
        if self.pixels is not None:
            return self.pixels[rows]
        files = [self.root / self.paths[picture] for picture in self.readable[rows]]
        with ThreadPoolExecutor(self.workers) as pool:
            return np.stack(list(pool.map(lambda file: decode(file, self.size), files)))


def open_store(root: Path, paths: list[str], size: int, cache: Path | None, workers: int | None = None) -> Store:
    """The store of these files, built unless ``cache`` holds it; without room there, or a cache, decoded on the fly.

    A store is known by its files' names, sizes and times, by ``size`` and by the decoder.
    """
    workers = workers or usable_cores()
    if cache is not None:
        home = cache / "stores" / f"{root.resolve().name}-{size}px-{_key(root, paths, size)}"
        try:
            # What could not be read is tried again: a changed permission does not change a file's time.
            if home.is_dir() and any(_is_readable(root / path, size) for path, _ in read_skipped(home / "skipped.csv")):
                shutil.rmtree(home)
            if not home.is_dir():
                _build(home, root, paths, size, workers)
            return _load(home, root, paths, size, workers)
        except OSError as error:
            log.warning(f"no store in {cache} ({error.strerror or error}): decoding on the fly, which is slower")
    readable, digests, skipped = _decode_all(root, paths, size, workers, lambda pixels: None, "checking")
    return Store(root, paths, size, readable, digests, skipped, None, workers)


def decode(file: Path, size: int) -> np.ndarray:
    """(size, size, 3) uint8 RGB of a picture file: upright, alpha over white, the first frame of several.

    Resized to the square by Pillow's antialiased bilinear filter. Raises whatever Pillow does on a file it cannot read.
    """
    with Image.open(file, formats=FORMATS) as opened:
        opened.load()
        image: Image.Image = opened
        with suppress(Exception):  # a picture whose EXIF block is broken is still a picture
            image = ImageOps.exif_transpose(opened)
        return np.asarray(to_rgb(image).resize((size, size), Image.Resampling.BILINEAR))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode → RGB, 8 bits a channel: transparency over white, 16-bit grey by its upper byte."""
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers of unknown range")
    if image.mode.startswith("I"):  # Pillow's own conversion would clip everything above 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return image.convert("RGB")


def map_ahead(pool: Executor, function: Callable[[A], B], items: Iterable[A], ahead: int) -> Iterator[B]:
    """``map`` in order over a pool, with at most ``ahead`` results waiting: memory stays flat however many items."""
    rest = iter(items)
    waiting = deque(pool.submit(function, item) for item in islice(rest, ahead))
    try:
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(rest, 1))
            yield result
    finally:
        for future in waiting:
            future.cancel()


def usable_cores() -> int:
    """The cores that this process may use, which in a container or under a scheduler are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _key(root: Path, paths: list[str], size: int) -> str:
    key = hashlib.blake2b(f"{DECODER} {PIL.__version__} {size} {root.resolve()}".encode(errors="surrogateescape"), digest_size=8)
    for path in paths:
        with suppress(OSError):  # a file that is gone shows when it is decoded
            status = os.stat(f"{root}/{path}")
            key.update(f"\n{path}\0{status.st_size}\0{status.st_mtime_ns}".encode(errors="surrogateescape"))
    return key.hexdigest()


def _build(home: Path, root: Path, paths: list[str], size: int, workers: int) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(home.parent)
    needed, free = len(paths) * size * size * 3, shutil.disk_usage(home.parent).free
    if needed > free:
        raise OSError(f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")
    partial = Path(tempfile.mkdtemp(dir=home.parent, prefix=".partial-"))
    try:
        # Written in order rather than through a memory map: a full disk is then an error, not the process's death.
        with (partial / "pixels").open("wb") as file:
            readable, digests, skipped = _decode_all(root, paths, size, workers, file.write, "decoding")
        np.savez(partial / "index.npz", readable=readable, digests=digests)
        write_skipped(partial / "skipped.csv", skipped)
        with suppress(FileExistsError):
            try:
                partial.rename(home)
            except OSError:
                if not home.is_dir():  # else another process was faster, and its store is as good
                    raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _load(home: Path, root: Path, paths: list[str], size: int, workers: int) -> Store:
    index = np.load(home / "index.npz")
    readable = index["readable"]
    shape = (len(readable), size, size, 3)
    pixels = np.memmap(home / "pixels", np.uint8, "r", shape=shape) if len(readable) else np.empty(shape, np.uint8)
    return Store(root, paths, size, readable, index["digests"], read_skipped(home / "skipped.csv"), pixels, workers)


def _remove_abandoned(stores: Path) -> None:
    """What killed builds left behind. A build at work writes all the time, so a day of silence means that it is dead."""
    for partial in stores.glob(".partial-*"):
        with suppress(OSError):
            if time.time() - max(path.stat().st_mtime for path in (partial, *partial.iterdir())) > 86_400:
                shutil.rmtree(partial)


def _decode_or_reason(file: Path, size: int) -> np.ndarray | str:
    try:
        return decode(file, size)
    except Exception as error:  # damaged files raise nearly anything: struct.error, SyntaxError, MemoryError, …
        return " ".join(str(error).replace(str(file), "the file").split()) or type(error).__name__


def _is_readable(file: Path, size: int) -> bool:
    return not isinstance(_decode_or_reason(file, size), str)


def _decode_all(
    root: Path, paths: list[str], size: int, workers: int, write: Callable[[np.ndarray], object], verb: str
) -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]:
    readable: list[int] = []
    digests: list[bytes] = []
    skipped: list[tuple[str, str]] = []

    # Threads do: Pillow releases the interpreter's lock while it decodes and resizes.
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(paths), desc=verb, unit="img", disable=None, leave=False) as bar:
        for number, result in enumerate(map_ahead(pool, partial(_decode_or_reason, size=size), (root / path for path in paths), 4 * workers)):
            bar.update()
            if isinstance(result, str):
                skipped.append((paths[number], result))
            else:
                readable.append(number)
                digests.append(hashlib.blake2b(result, digest_size=16).digest())
                write(result)
    return np.array(readable, np.int64), np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16), skipped


def write_skipped(file: Path, skipped: list[tuple[str, str]]) -> None:
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as handle:
        csv.writer(handle).writerows([("path", "reason"), *skipped])


def read_skipped(file: Path) -> list[tuple[str, str]]:
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as handle:
        return [(path, reason) for path, reason in csv.reader(handle)][1:]
