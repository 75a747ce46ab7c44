"""Every picture decoded and resized once, into one array on disk; and which files could not be read."""

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from tqdm import tqdm

from plumage.data.ahead import map_ahead
from plumage.data.cache import STORES, discard
from plumage.data.decode import DECODER, decode_or_reason
from plumage.data.pixels import PixelFile, checksum
from plumage.errors import UserError, first_line
from plumage.files import (
    draft_of,
    folder_written_whole,
    is_below,
    read_arrays,
    remove_abandoned,
)
from plumage.hardware.cores import usable_cores
from plumage.tables import SKIPPED, read_table, write_table

log = logging.getLogger("plumage")

# A store's arrays: their type, and the bytes that a picture takes; of at most as many pictures.
INDEX = {"keys": (np.uint64, 8), "readable": (np.int64, 8), "digests": (np.uint8, 16), "sums": (np.uint32, 4)}
MOST = 20_000_000
FILES = ("index.npz", "skipped.csv", "pixels")


class Cache(NamedTuple):
    """Where fetched data and, if ``use_store``, decoded pictures are kept; and how many threads decode: ``workers``."""

    folder: Path
    use_store: bool = True
    workers: int = usable_cores()


@dataclass(frozen=True)
class Store:
    """The pictures below ``root`` that can be read, as squares of side ``size``: row i shows ``paths[readable[i]]``.

    readable: (n,) int64. digests: (n, 16) uint8, a hash of each row's pixels. skipped: (path, reason) of the others.
    pixels: a file that holds the picture of row i at its own row ``places[i]``, (n,) int64; or None: then files are
    decoded whenever they are read.
    """

    root: Path
    paths: list[str]
    size: int
    workers: int
    readable: np.ndarray
    digests: np.ndarray
    skipped: list[tuple[str, str]]
    pixels: PixelFile | None = None
    places: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.readable), self.size, self.size, 3

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return (len(rows), size, size, 3) uint8 RGB. Raises UserError when a file can no longer be read."""
        if self.pixels and self.places is not None:
            return self.pixels.read(self.places[rows])
        with ThreadPoolExecutor(self.workers) as pool:
            files = [self.root / self.paths[number] for number in self.readable[rows]]
            pictures = list(pool.map(partial(decode_or_reason, size=self.size), files))
        for file, picture in zip(files, pictures, strict=True):
            if isinstance(picture, str):
                raise UserError(f"{file} can no longer be read ({picture}); put it back and go on with --resume")
        return np.stack(pictures) if pictures else np.empty((0, self.size, self.size, 3), np.uint8)


def open_store(root: Path, paths: list[str], size: int, cache: Cache) -> Store:
    """Open a store that holds ``paths`` below ``root`` at side ``size``; build it first where the cache has none.

    A store knows its pictures by their files' names, sizes and times, and is of one root, size and decoder. When one
    has been built, those of the same root and size go that nobody has open. Without a store, or room for it, files are
    only checked here, and decoded whenever they are read.
    """
    workers = cache.workers
    if cache.use_store:
        name, keys = _name(root, size), _keys(root, paths)
        home = cache.folder / STORES / f"{name}-{_hash(keys.data)}"
        try:
            for found in _stores(home, name):
                try:
                    store = _load(found, root, paths, keys, size, workers)
                    # A chmod makes a file readable without changing its time.
                    if store and all(isinstance(decode_or_reason(root / path, size), str) for path, _ in store.skipped):
                        return store
                except Exception as error:  # whatever numpy and zipfile make of a damaged file
                    log.warning(f"{found} is damaged ({first_line(error)}): decoding the pictures again")
                if found == home:  # another process that has it open goes on with what it has
                    with suppress(FileNotFoundError):
                        home.rename(draft := draft_of(home))
                        shutil.rmtree(draft, ignore_errors=True)
            _build(home, root, paths, keys, size, workers)
            _remove_stale(home, name)
            if store := _load(home, root, paths, keys, size, workers):
                return store
        except OSError as error:
            log.warning(f"no store in {cache.folder} ({error.strerror or error}): decoding on the fly, which is slower")
    whole = _decode_all(root, paths, size, workers, "checking", lambda picture: None)
    return Store(root, paths, size, workers, *whole)


def write_skipped(file: Path, skipped: list[tuple[str, str]]) -> None:
    """Write (path, reason) of the files that could not be read as CSV."""
    write_table(file, SKIPPED, skipped)


def read_skipped(file: Path) -> list[tuple[str, str]]:
    """Read back what ``write_skipped`` wrote. Raises UserError when it is damaged."""
    rows = [(path, reason) for _, (path, reason) in read_table(file, SKIPPED)]
    if outside := [path for path, _ in rows if not is_below(path)]:
        raise UserError(f"{file} is damaged: {outside[0]!r} leaves the data folder")
    return rows


def _name(root: Path, size: int) -> str:
    """Return what the stores of a folder's pictures at a side are called, but for the hash of which pictures."""
    place = root.resolve()
    shown = os.fsencode(place.name)[:100].decode(errors="ignore")
    return f"{shown}-{size}px-{_hash(os.fsencode(place))}"


def _keys(root: Path, paths: list[str]) -> np.ndarray:
    """Return (len(paths),) uint64: of each picture, a hash of its name, size and time, and of the decoder."""
    decoder = f"{DECODER} {PIL.__version__}\0"
    keys = bytearray()
    for path in paths:
        line = decoder + path
        with suppress(OSError):  # a file that is gone shows when it is decoded
            status = os.stat(f"{root}{os.sep}{path}")  # noqa: PTH116 (pathlib would take most of the time)
            line += f"\0{status.st_size}\0{status.st_mtime_ns}"
        keys += hashlib.blake2b(line.encode(errors="surrogateescape"), digest_size=8).digest()
    return np.frombuffer(keys, np.uint64)


def _stores(home: Path, name: str) -> list[Path]:
    """List the stores of ``name``, that of this very list first."""
    stores = home.parent.glob(f"*-{name[-16:]}-*") if home.parent.is_dir() else ()
    return sorted((store for store in stores if store.name[:-17] == name), key=lambda store: store != home)


def _remove_stale(home: Path, name: str) -> None:
    """Remove what else there is of a new store's folder and side, but what another process has open."""
    # Until lists had a hash of their own, there was one for both, and no store of that time is read any more.
    earlier = re.compile(rf"{re.escape(name[:-17])}-[0-9a-f]{{16}}")
    others = [store for store in home.parent.iterdir() if earlier.fullmatch(store.name)]
    others += [store for store in _stores(home, name) if store != home]
    if gone := sum(map(discard, others)):
        log.info(f"{home}: takes the place of {gone} earlier ones, which are removed")


def _build(home: Path, root: Path, paths: list[str], keys: np.ndarray, size: int, workers: int) -> None:
    """Write a store whole: a killed build, or two at the same time, leave no half store."""
    home.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(home.parent)
    needed, free = len(paths) * size * size * 3, shutil.disk_usage(home.parent).free
    if needed > free:
        raise OSError(f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")
    sums: list[int] = []
    with folder_written_whole(home) as draft:
        with (draft / "pixels").open("wb") as out:

            def write(picture: np.ndarray) -> None:
                sums.append(checksum(picture))
                out.write(picture.data)

            readable, digests, skipped = _decode_all(root, paths, size, workers, "decoding", write)
        checksums = np.array(sums, np.uint32)
        np.savez(draft / "index.npz", keys=keys, readable=readable, digests=digests, sums=checksums)
        write_skipped(draft / "skipped.csv", skipped)


def _load(home: Path, root: Path, paths: list[str], keys: np.ndarray, size: int, workers: int) -> Store | None:
    """Return the store in ``home`` as one of ``paths``; None where it lacks some. Raises something if it is damaged."""
    if not all((home / name).is_file() for name in FILES):  # opening a pipe would wait for ever
        raise ValueError("it lacks a file")
    own, readable, digests, sums = _read_index(home)
    order = np.argsort(own)
    listed = order[np.searchsorted(own, keys, sorter=order).clip(max=len(own) - 1)]
    if not np.array_equal(own[listed], keys):
        return None
    reasons = dict(read_skipped(home / "skipped.csv"))
    if len(readable) + len(reasons) != len(own):
        raise ValueError("its lists do not go together")
    pixels = PixelFile(home / "pixels", len(readable), size)
    if not pixels.holds(sums, workers):
        raise ValueError("its pixels are not those that were written")
    row_of = np.full(len(own), -1)
    row_of[readable] = np.arange(len(readable))
    rows = row_of[listed]
    skipped = [(paths[number], reasons[paths[number]]) for number in np.flatnonzero(rows < 0)]
    with suppress(OSError):  # another's
        os.utime(home)
    places = rows[rows >= 0]
    return Store(root, paths, size, workers, np.flatnonzero(rows >= 0), digests[places], skipped, pixels, places)


def _read_index(home: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the keys of what a store lists, which of them are readable, and the digests and checksums of these."""
    index = read_arrays(home / "index.npz", {name: MOST * width for name, (_, width) in INDEX.items()})
    keys, readable, digests, sums = (index[name] for name in INDEX)
    fits = all(index[name].dtype == kind for name, (kind, _) in INDEX.items())
    fits = fits and keys.ndim == readable.ndim == 1 and sums.shape == readable.shape
    fits = fits and digests.shape == (len(readable), 16) and _hash(keys.data) == home.name[-16:]
    if not fits or (np.diff(readable, prepend=-1, append=len(keys)) < 1).any():
        raise ValueError("its index is not what was written")
    return keys, readable, digests, sums


def _hash(content: bytes | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _decode_all(
    root: Path, paths: list[str], size: int, workers: int, verb: str, write: Callable[[np.ndarray], object]
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
                digests.append(hashlib.blake2b(picture.data, digest_size=16).digest())
                write(picture)
    return np.array(readable, np.int64), np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16), skipped
