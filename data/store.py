"""Every picture decoded and resized once, into one memory-mapped array on disk; and which files could not be read."""

import hashlib
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import PIL
from tqdm import tqdm

from plumage.data.decode import DECODER, decode_or_reason
from plumage.errors import UserError
from plumage.files import folder_written_whole, is_below, read_table, remove_abandoned, write_table
from plumage.hardware.cores import usable_cores

log = logging.getLogger("plumage")

A = TypeVar("A")
B = TypeVar("B")
SKIPPED = ("path", "reason")  # the columns of skipped.csv


class Cache(NamedTuple):
    """Where fetched data and, if ``use_store``, decoded pictures are kept; and how many threads decode: ``workers``."""

    folder: Path
    use_store: bool = True
    workers: int = usable_cores()


@dataclass(frozen=True)
class Store:
    """The pictures below ``root`` that can be read, as squares of side ``size``: row i shows ``paths[readable[i]]``.

    readable: (n,) int64. digests: (n, 16) uint8, a hash of each row's pixels. skipped: (path, reason) of the others.
    pixels: (n, size, size, 3) uint8 on disk, or None: then files are decoded whenever they are read.
    """

    root: Path
    paths: list[str]
    size: int
    workers: int
    readable: np.ndarray
    digests: np.ndarray
    skipped: list[tuple[str, str]]
    pixels: np.ndarray | None = None

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return (len(rows), size, size, 3) uint8 RGB. Raises UserError when a file can no longer be read."""
        if self.pixels is not None:
            return self.pixels[rows]
        with ThreadPoolExecutor(self.workers) as pool:
            files = [self.root / self.paths[number] for number in self.readable[rows]]
            pictures = list(pool.map(partial(decode_or_reason, size=self.size), files))
        for file, picture in zip(files, pictures, strict=True):
            if isinstance(picture, str):
                raise UserError(f"{file} can no longer be read ({picture}); put it back and go on with --resume")
        return np.stack(pictures) if pictures else np.empty((0, self.size, self.size, 3), np.uint8)


def open_store(root: Path, paths: list[str], size: int, cache: Cache) -> Store:
    """Open the store of ``paths`` below ``root`` at side ``size``; build it first where the cache does not hold it.

    A store is known by its files' names, sizes and times, by ``size`` and by the decoder. Without a store, or room for
    it, files are only checked here, and decoded whenever they are read.
    """
    workers = cache.workers
    if cache.use_store:
        home = cache.folder / "stores" / f"{root.resolve().name[:100]}-{size}px-{_key(root, paths, size)}"
        try:
            if home.is_dir():
                with suppress(Exception):  # whatever numpy and zipfile make of a damaged file
                    store = _load(home, root, paths, size, workers)
                    # A chmod makes a file readable without changing its time.
                    if all(isinstance(decode_or_reason(root / path, size), str) for path, _ in store.skipped):
                        return store
                shutil.rmtree(home)
            _build(home, root, paths, size, workers)
            return _load(home, root, paths, size, workers)
        except OSError as error:
            log.warning(f"no store in {cache.folder} ({error.strerror or error}): decoding on the fly, which is slower")
    return Store(root, paths, size, workers, *_decode_all(root, paths, size, workers, "checking", lambda pixels: None))


def map_ahead(pool: Executor, function: Callable[[A], B], items: Iterable[A], ahead: int) -> Iterator[B]:
    """Map in order over a pool, with at most ``ahead`` results waiting, so that memory does not grow with the items."""
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


def write_skipped(file: Path, skipped: list[tuple[str, str]]) -> None:
    """Write (path, reason) of the files that could not be read as CSV."""
    write_table(file, SKIPPED, skipped)


def read_skipped(file: Path) -> list[tuple[str, str]]:
    """Read back what ``write_skipped`` wrote. Raises UserError when it is damaged."""
    rows = [(path, reason) for _, (path, reason) in read_table(file, SKIPPED)]
    if outside := [path for path, _ in rows if not is_below(path)]:
        raise UserError(f"{file} is damaged: {outside[0]!r} leaves the data folder")
    return rows


def _key(root: Path, paths: list[str], size: int) -> str:
    """Hash what decides a store's pixels: the decoder, the side, and the files' names, sizes and times."""
    decoder = f"{DECODER} {PIL.__version__} {size} {root.resolve()}"
    key = hashlib.blake2b(decoder.encode(errors="surrogateescape"), digest_size=8)
    for path in paths:
        line = f"\n{path}"
        with suppress(OSError):  # a file that is gone shows when it is decoded
            status = os.stat(f"{root}{os.sep}{path}")  # noqa: PTH116 (pathlib would take most of the time)
            line += f"\0{status.st_size}\0{status.st_mtime_ns}"
        key.update(line.encode(errors="surrogateescape"))
    return key.hexdigest()


def _build(home: Path, root: Path, paths: list[str], size: int, workers: int) -> None:
    """Write a store whole: a killed build, or two at the same time, leave no half store."""
    home.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(home.parent)
    needed, free = len(paths) * size * size * 3, shutil.disk_usage(home.parent).free
    if needed > free:
        raise OSError(f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")
    with folder_written_whole(home) as draft:
        # Written in order rather than through a memory map: a full disk is then an error, not the process's death.
        with (draft / "pixels").open("wb") as out:
            readable, digests, skipped = _decode_all(root, paths, size, workers, "decoding", out.write)
        np.savez(draft / "index.npz", readable=readable, digests=digests)
        write_skipped(draft / "skipped.csv", skipped)


def _load(home: Path, root: Path, paths: list[str], size: int, workers: int) -> Store:
    index, skipped = np.load(home / "index.npz"), read_skipped(home / "skipped.csv")
    shape = (len(index["readable"]), size, size, 3)
    pixels = np.memmap(home / "pixels", np.uint8, "r", shape=shape) if shape[0] else np.empty(shape, np.uint8)
    return Store(root, paths, size, workers, index["readable"], index["digests"], skipped, pixels)


def _decode_all(
    root: Path, paths: list[str], size: int, workers: int, verb: str, write: Callable[[memoryview], object]
) -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]:
    """Decode ``paths`` in order, and ``write`` each one's pixels. Returns Store's readable, digests and skipped."""
    readable: list[int] = []
    digests: list[bytes] = []
    skipped: list[tuple[str, str]] = []
    # Enough to go on with while a write waits for the disk, in 64 MiB.
    ahead = max(2 * workers, min(32 * workers, 2**26 // (3 * size**2)))
    # Threads do: Pillow releases the interpreter's lock while it decodes and resizes.
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(desc=verb, total=len(paths), unit="img", disable=None, leave=False) as bar,
    ):
        files = (root / path for path in paths)
        results = map_ahead(pool, partial(decode_or_reason, size=size), files, ahead)
        for number, picture in enumerate(results):
            bar.update()
            if isinstance(picture, str):
                skipped.append((paths[number], picture))
            else:
                readable.append(number)
                pixels = picture.data  # no copy
                digests.append(hashlib.blake2b(pixels, digest_size=16).digest())
                write(pixels)
    return np.array(readable, np.int64), np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16), skipped
