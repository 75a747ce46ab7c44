"""Every picture decoded and resized once, into one memory-mapped array on disk; and which files could not be read."""

import csv
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePath
from typing import NamedTuple, TypeVar

import numpy as np
import PIL
from tqdm import tqdm

from plumage.data.decode import DECODER, decode_or_reason
from plumage.errors import UserError
from plumage.hardware.cores import usable_cores

log = logging.getLogger("plumage")

A = TypeVar("A")
B = TypeVar("B")


class Cache(NamedTuple):
    """Where decoded pictures and fetched data are kept. Without ``use_store``, pictures are decoded when they are read.

    workers: threads that decode; one for each usable core unless it is given.
    """

    folder: Path
    use_store: bool = True
    workers: int = usable_cores()


@dataclass(frozen=True)
class Store:
    """The readable ones of ``root / paths[i]``, as squares of side ``size``: row i is that of ``paths[readable[i]]``.

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
        """(len(rows), size, size, 3) uint8 RGB. Raises UserError where a file can no longer be read."""
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
    """The store of ``paths`` below ``root`` at side ``size``; built where the cache does not hold it yet.

    It is known by its files' names, sizes and times, by ``size`` and by the decoder. Without a store, or room for it,
    files are only checked here and decoded whenever they are read.
    """
    workers = cache.workers
    if cache.use_store:
        home = cache.folder / "stores" / f"{root.resolve().name[:100]}-{size}px-{_key(root, paths, size)}"
        try:
            if home.is_dir():
                if store := _load_whole(home, root, paths, size, workers):
                    return store
                shutil.rmtree(home)
            _build(home, root, paths, size, workers)
            return _load(home, root, paths, size, workers)
        except OSError as error:
            log.warning(f"no store in {cache.folder} ({error.strerror or error}): decoding on the fly, which is slower")
    return Store(root, paths, size, workers, *_decode_all(root, paths, size, workers, "checking", lambda pixels: None))


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


def is_below(path: str) -> bool:
    """Whether a path that some file gives, relative to a folder, stays in that folder."""
    pure = PurePath(path)
    return not pure.anchor and ".." not in pure.parts and "\0" not in path


def write_skipped(file: Path, skipped: list[tuple[str, str]]) -> None:
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as handle:
        csv.writer(handle).writerows([("path", "reason"), *skipped])


def read_skipped(file: Path) -> list[tuple[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as handle:
            rows = [(path, reason) for path, reason in csv.reader(handle)][1:]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if outside := [path for path, _ in rows if not is_below(path)]:
        raise UserError(f"{file} is damaged: {outside[0]!r} leaves the data folder")
    return rows


def _load_whole(home: Path, root: Path, paths: list[str], size: int, workers: int) -> Store | None:
    """None where a store is damaged, or what could not be read now can: a chmod does not change a file's time."""
    try:
        store = _load(home, root, paths, size, workers)
    except (Exception, UserError):  # whatever numpy and zipfile make of a damaged file
        return None
    return store if all(isinstance(decode_or_reason(root / path, size), str) for path, _ in store.skipped) else None


def _key(root: Path, paths: list[str], size: int) -> str:
    about = f"{DECODER} {PIL.__version__} {size} {root.resolve()}"
    key = hashlib.blake2b(about.encode(errors="surrogateescape"), digest_size=8)
    for path in paths:
        line = f"\n{path}"
        with suppress(OSError):  # a file that is gone shows when it is decoded
            status = os.stat(f"{root}{os.sep}{path}")  # noqa: PTH116 (pathlib would take most of the time)
            line += f"\0{status.st_size}\0{status.st_mtime_ns}"
        key.update(line.encode(errors="surrogateescape"))
    return key.hexdigest()


def _build(home: Path, root: Path, paths: list[str], size: int, workers: int) -> None:
    """Beside, then renamed: a build that is killed, or a second one at the same time, leaves no half store."""
    home.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(home.parent)
    needed, free = len(paths) * size * size * 3, shutil.disk_usage(home.parent).free
    if needed > free:
        raise OSError(f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")
    draft = Path(tempfile.mkdtemp(dir=home.parent, prefix=".draft-"))
    try:
        # Written in order rather than through a memory map: a full disk is then an error, not the process's death.
        with (draft / "pixels").open("wb") as out:
            readable, digests, skipped = _decode_all(root, paths, size, workers, "decoding", out.write)
        np.savez(draft / "index.npz", readable=readable, digests=digests)
        write_skipped(draft / "skipped.csv", skipped)
        with suppress(OSError):  # another process may have been faster: its store is as good
            draft.rename(home)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _load(home: Path, root: Path, paths: list[str], size: int, workers: int) -> Store:
    index, skipped = np.load(home / "index.npz"), read_skipped(home / "skipped.csv")
    shape = (len(index["readable"]), size, size, 3)
    pixels = np.memmap(home / "pixels", np.uint8, "r", shape=shape) if shape[0] else np.empty(shape, np.uint8)
    return Store(root, paths, size, workers, index["readable"], index["digests"], skipped, pixels)


def _remove_abandoned(stores: Path) -> None:
    """What killed builds left behind. A build at work writes all the time: a day of silence means that it is dead."""
    for draft in stores.glob(".draft-*"):
        with suppress(OSError):
            if time.time() - max(path.stat().st_mtime for path in (draft, *draft.iterdir())) > 86_400:
                shutil.rmtree(draft)


def _decode_all(
    root: Path, paths: list[str], size: int, workers: int, verb: str, write: Callable[[memoryview], object]
) -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]:
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
