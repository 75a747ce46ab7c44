"""A list of pictures, decoded by threads: which of them can be read, and what is noted of each."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import nan
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from plumage.data.ahead import map_ahead
from plumage.data.decode import Square, decode_or_reason
from plumage.data.depth import LEARN, Levels
from plumage.data.duplicates import HASHES, difference_hashes
from plumage.data.pixels import checksum
from plumage.errors import UserError

# Of each readable picture: a hash of its pixels, their checksum, hashes of what it shows, and the lowest and highest
# value of one of more than 8 bits, else no numbers. Their types, and their shapes.
FACTS = {
    "digests": (np.uint8, (16,)),
    "sums": (np.uint32, ()),
    "hashes": (np.uint64, (HASHES,)),
    "extremes": (np.float64, (2,)),
}
NO_LEVELS = (nan, nan)
T = TypeVar("T")


class Found(NamedTuple):
    """readable: (n,) int64, numbers in the list. facts: FACTS by row. skipped: (path, reason) of the others.

    square: with the levels that were learnt.
    """

    square: Square
    readable: np.ndarray
    facts: dict[str, np.ndarray]
    skipped: list[tuple[str, str]]


def decode_all(
    root: Path, paths: list[str], square: Square, workers: int, verb: str, write: Callable[[int, np.ndarray], object]
) -> Found:
    """Decode ``paths`` in order, and ``write`` each one's row and pixels.

    Where levels are to be learnt, pictures of more than 8 bits are looked through first, and written again when the
    levels are known.
    """
    readable: list[int] = []
    skipped: list[tuple[str, str]] = []
    facts = {name: np.zeros((len(paths), *shape), kind) for name, (kind, shape) in FACTS.items()}

    def note(row: int, one: Noted) -> None:
        for name, value in one.facts.items():
            facts[name][row] = value
        write(row, one.pixels)

    for number, one in enumerate(_noted((root / path for path in paths), len(paths), square, workers, verb)):
        if isinstance(one, str):
            skipped.append((paths[number], one))
        else:
            note(len(readable), one)
            readable.append(number)
    facts = {name: values[: len(readable)] for name, values in facts.items()}
    levels = learnt(facts["extremes"]) if square.levels == LEARN else square.levels
    if square.levels == LEARN and levels:
        rows = np.flatnonzero(~np.isnan(facts["extremes"][:, 0])).tolist()
        files = [root / paths[readable[row]] for row in rows]
        again = _noted(files, len(files), square._replace(levels=levels), workers, verb)
        for row, file, one in zip(rows, files, again, strict=True):
            note(row, still_readable(file, one))
    return Found(square._replace(levels=levels), np.array(readable, np.int64), facts, skipped)


class Noted(NamedTuple):
    """A picture's (side, side, 3) uint8 pixels, and its FACTS."""

    pixels: np.ndarray
    facts: dict[str, Any]


def decode_and_note(file: Path, square: Square) -> Noted | str:
    """Return a picture's pixels and FACTS, or in one line why it cannot be read."""
    decoded = decode_or_reason(file, square)
    if isinstance(decoded, str):
        return decoded
    pixels = decoded.pixels
    facts: dict[str, Any] = {
        "digests": np.frombuffer(hashlib.blake2b(pixels.data, digest_size=16).digest(), np.uint8),
        "sums": checksum(pixels),
        "hashes": difference_hashes(pixels),
        "extremes": decoded.extremes or NO_LEVELS,
    }
    return Noted(pixels, facts)


def _noted(files: Iterable[Path], count: int, square: Square, workers: int, verb: str) -> Iterator[Noted | str]:
    """Yield what ``decode_and_note`` makes of each of ``files``, in order, with a progress bar."""
    # Enough to go on with while a write waits for the disk, in 64 MiB.
    ahead = max(2 * workers, min(32 * workers, 2**26 // (3 * square.side**2)))
    # Threads do: Pillow releases the interpreter's lock while it decodes and resizes.
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(desc=verb, total=count, unit="img", disable=None, leave=False) as bar,
    ):
        for one in map_ahead(pool, partial(decode_and_note, square=square), files, ahead):
            bar.update()
            yield one


def learnt(extremes: np.ndarray) -> Levels | None:
    """Return the lowest and highest of (n, 2) float64 values of pictures; None where none has more than 8 bits."""
    deep = extremes[~np.isnan(extremes[:, 0])]
    return (float(deep[:, 0].min()), float(deep[:, 1].max())) if len(deep) else None


def still_readable(file: Path, found: T | str) -> T:
    """Return what was found in a picture. Raises UserError where that is why it cannot be read."""
    if isinstance(found, str):
        raise UserError(f"{file} can no longer be read ({found}); put it back and go on with --resume")
    return found
