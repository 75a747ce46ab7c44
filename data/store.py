"""Every picture decoded and resized once, into one array on disk; and which files could not be read."""

import hashlib
import logging
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL

from plumage.data.cache import STORES, discard
from plumage.data.decode import DECODER, Square, decode_or_reason
from plumage.data.depth import LEARN, Levels
from plumage.data.facts import FACTS, NO_LEVELS, decode_all, learnt, still_readable
from plumage.data.pixels import PixelFile
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

# A store's arrays: the key of each listed picture, and which of them can be read; of each of these, its facts.
INDEX = {"keys": (np.uint64, ()), "readable": (np.int64, ()), **FACTS}
MOST = 20_000_000
FILES = ("index.npz", "skipped.csv", "pixels")


class Cache(NamedTuple):
    """Where fetched data and, if ``use_store``, decoded pictures are kept; and how many threads decode: ``workers``."""

    folder: Path
    use_store: bool = True
    workers: int = usable_cores()


@dataclass(frozen=True)
class Store:
    """The pictures below ``root`` that can be read, as ``square`` says: row i shows ``paths[readable[i]]``.

    readable: (n,) int64. digests: (n, 16) uint8, a hash of each row's pixels. hashes: (n, HASHES) uint64, of what it
    shows, as ``difference_hashes`` has them. extremes: (n, 2) float64, the lowest and the highest value of a picture of
    more than 8 bits, else no numbers. skipped: (path, reason) of the others.
    pixels: a file that holds the picture of row i at its own row ``places[i]``, (n,) int64; or None: then files are
    decoded whenever they are read.
    """

    root: Path
    paths: list[str]
    square: Square
    workers: int
    readable: np.ndarray
    digests: np.ndarray
    hashes: np.ndarray
    extremes: np.ndarray
    skipped: list[tuple[str, str]]
    pixels: PixelFile | None = None
    places: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.readable), self.square.side, self.square.side, 3

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return (len(rows), side, side, 3) uint8 RGB. Raises UserError when a file can no longer be read."""
        if self.pixels and self.places is not None:
            return self.pixels.read(self.places[rows])
        with ThreadPoolExecutor(self.workers) as pool:
            files = [self.root / self.paths[number] for number in self.readable[rows]]
            decoded = list(pool.map(partial(decode_or_reason, square=self.square), files))
        pictures = [still_readable(file, each).pixels for file, each in zip(files, decoded, strict=True)]
        return np.stack(pictures) if pictures else np.empty((0, *self.shape[1:]), np.uint8)


def open_store(root: Path, paths: list[str], square: Square, cache: Cache) -> Store:
    """Open a store that holds ``paths`` below ``root`` as ``square`` says; build it first where the cache has none.

    A store knows its pictures by their files' names, sizes and times, and is of one root, square and decoder. When one
    has been built, those of the same root, side and fit go that nobody has open. Without a store, or room for it, files
    are only checked here, and decoded whenever they are read. Levels that are to be learnt are those of just these
    pictures, whatever else the cache has.
    """
    workers = cache.workers
    if cache.use_store:
        name, keys = _name(root, square), _keys(root, paths)
        home = cache.folder / STORES / f"{name}-{_identity(keys, np.array(square.levels or NO_LEVELS))}"
        try:
            for found in _stores(home, name):
                try:
                    store = _load(found, root, paths, keys, square, workers)
                    if found == home and not store:
                        raise ValueError("its index lacks something")
                    if store and _still_unreadable(store):
                        return store
                except Exception as error:  # whatever numpy and zipfile make of a damaged file
                    log.warning(f"{found} is damaged ({first_line(error)}): decoding the pictures again")
                if found == home:  # another process that has it open goes on with what it has
                    with suppress(FileNotFoundError):
                        home.rename(draft := draft_of(home))
                        shutil.rmtree(draft, ignore_errors=True)
            _build(home, root, paths, keys, square, workers)
            _remove_stale(home, name)
            if store := _load(home, root, paths, keys, square, workers):
                return store
        except OSError as error:
            log.warning(f"no store in {cache.folder} ({error.strerror or error}): decoding on the fly, which is slower")
    whole = decode_all(root, paths, square, workers, "checking", lambda row, picture: None)
    digests, hashes, extremes = (whole.facts[name] for name in ("digests", "hashes", "extremes"))
    return Store(root, paths, whole.square, workers, whole.readable, digests, hashes, extremes, whole.skipped)


def _still_unreadable(store: Store) -> bool:
    """Return whether what a store skipped would be skipped again: a chmod leaves a file's time as it was."""
    again = (decode_or_reason(store.root / path, store.square) for path, _ in store.skipped)
    return all(isinstance(reason, str) for reason in again)


def write_skipped(file: Path, skipped: list[tuple[str, str]]) -> None:
    """Write (path, reason) of the files that could not be read as CSV."""
    write_table(file, SKIPPED, skipped)


def read_skipped(file: Path) -> list[tuple[str, str]]:
    """Read back what ``write_skipped`` wrote. Raises UserError when it is damaged."""
    rows = [(path, reason) for _, (path, reason) in read_table(file, SKIPPED)]
    if outside := [path for path, _ in rows if not is_below(path)]:
        raise UserError(f"{file} is damaged: {outside[0]!r} leaves the data folder")
    return rows


def _name(root: Path, square: Square) -> str:
    """Return what the stores of a folder's pictures at a side and fit are called, but for which pictures."""
    place = root.resolve()
    shown = os.fsencode(place.name)[:100].decode(errors="ignore")
    fit = "" if square.fit == "squash" else f"-{square.fit}"
    return f"{shown}{fit}-{square.side}px-{_hash(os.fsencode(f'{place}{fit}'))}"


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


def _build(home: Path, root: Path, paths: list[str], keys: np.ndarray, square: Square, workers: int) -> None:
    """Write a store whole: a killed build, or two at the same time, leave no half store."""
    home.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(home.parent)
    needed, free = len(paths) * square.side**2 * 3, shutil.disk_usage(home.parent).free
    if needed > free:
        raise OSError(f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")
    with folder_written_whole(home) as draft:
        with (draft / "pixels").open("wb") as out:

            def write(row: int, picture: np.ndarray) -> None:
                out.seek(row * picture.nbytes)
                out.write(picture.data)

            found = decode_all(root, paths, square, workers, "decoding", write)
        asked = np.array(square.levels or NO_LEVELS)
        index: dict[str, Any] = {"keys": keys, "readable": found.readable, "asked": asked, **found.facts}
        np.savez(draft / "index.npz", **index)
        write_skipped(draft / "skipped.csv", found.skipped)


def _load(home: Path, root: Path, paths: list[str], keys: np.ndarray, square: Square, workers: int) -> Store | None:
    """Return the store in ``home`` as one of ``paths``; None where it lacks some. Raises something if it is damaged."""
    if not all((home / name).is_file() for name in FILES):  # opening a pipe would wait for ever
        raise ValueError("it lacks a file")
    if (index := _read_index(home)) is None:
        return None
    own, readable = index["keys"], index["readable"]
    order = np.argsort(own)
    listed = order[np.searchsorted(own, keys, sorter=order).clip(max=len(own) - 1)]
    if not np.array_equal(own[listed], keys):
        return None
    row_of = np.full(len(own), -1)
    row_of[readable] = np.arange(len(readable))
    rows = row_of[listed]
    places = rows[rows >= 0]
    extremes = index["extremes"][places]
    levels = learnt(extremes) if square.levels == LEARN else square.levels
    if learnt(extremes) and levels != _levels_of(index):
        return None
    reasons = dict(read_skipped(home / "skipped.csv"))
    if len(readable) + len(reasons) != len(own):
        raise ValueError("its lists do not go together")
    pixels = PixelFile(home / "pixels", len(readable), square.side)
    if not pixels.holds(index["sums"], workers):
        raise ValueError("its pixels are not those that were written")
    skipped = [(paths[number], reasons[paths[number]]) for number in np.flatnonzero(rows < 0)]
    with suppress(OSError):  # another's
        os.utime(home)
    own_square, numbers = square._replace(levels=levels), np.flatnonzero(rows >= 0)
    digests, hashes = index["digests"][places], index["hashes"][places]
    return Store(root, paths, own_square, workers, numbers, digests, hashes, extremes, skipped, pixels, places)


def _read_index(home: Path) -> dict[str, np.ndarray] | None:
    """Return the arrays of INDEX, and (2,) float64 ``asked``, the levels; None where some lack, as in earlier versions.

    Raises something where they are damaged.
    """
    most = {name: MOST * np.dtype(kind).itemsize * prod(shape) for name, (kind, shape) in INDEX.items()}
    index = read_arrays(home / "index.npz", most | {"asked": 16})
    if len(index) <= len(INDEX):
        return None
    keys, readable, asked = index["keys"], index["readable"], index["asked"]
    fits = all(index[name].dtype == kind for name, (kind, _) in INDEX.items()) and keys.ndim == readable.ndim == 1
    fits = fits and all(index[name].shape == (len(readable), *shape) for name, (_, shape) in FACTS.items())
    fits = fits and (asked.dtype, asked.shape) == (np.float64, (2,)) and _identity(keys, asked) == home.name[-16:]
    low, high = index["extremes"].T if fits else (keys, keys)
    largest = np.finfo(np.float32).max  # that a picture has
    ordered = (-largest <= low) & (low <= high) & (high <= largest)
    fits = fits and bool(np.all(ordered | np.isnan(low) & np.isnan(high)))
    if not fits or (np.diff(readable, prepend=-1, append=len(keys)) < 1).any():
        raise ValueError("its index is not what was written")
    return index


def _levels_of(index: dict[str, np.ndarray]) -> Levels | None:
    """Return by which levels the pictures of more than 8 bits in a store were scaled."""
    asked = index["asked"].tolist()
    if tuple(asked) == LEARN:
        return learnt(index["extremes"])
    return None if np.isnan(asked).any() else (asked[0], asked[1])


def _identity(keys: np.ndarray, levels: np.ndarray) -> str:
    """Return the hash of which pictures a store has, and by which levels; of none, since it is built by the first."""
    return _hash(keys.tobytes() + levels.tobytes())


def _hash(content: bytes | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
