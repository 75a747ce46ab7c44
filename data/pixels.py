"""A file of pictures as raw pixels: read row by row, and compared with what was written."""

import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from stat import S_ISREG

import numpy as np

from plumage.data.cache import hold
from plumage.errors import UserError

# Bytes of each picture that a check reads, on average: all of up to 418 by 418 pixels.
CHECKED = 2**19


class PixelFile:
    """Pictures of (side, side, 3) uint8 in a file that stays open, and is held against whoever clears the cache.

    It is not mapped into memory: where a file is cut short meanwhile, or a disk fails, a mapping ends the process.
    """

    def __init__(self, path: Path, pictures: int, side: int):
        """Raise ValueError where the file has another size than ``pictures`` have, OSError where it is not there."""
        self.path, self.picture, self._each = path, (side, side, 3), side * side * 3
        status = path.stat()
        if not S_ISREG(status.st_mode) or status.st_size != pictures * self._each:
            raise ValueError(f"{path.name} has {status.st_size} bytes, not {pictures * self._each}")
        self._file, self._lock = path.open("rb", buffering=0), threading.Lock()  # a file has one position
        hold(self._file.fileno())

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return (len(rows), side, side, 3) uint8. Raises UserError when the file has lost them since it was opened."""
        pixels = np.empty((len(rows), *self.picture), np.uint8)
        try:
            for row, picture in zip(rows.tolist(), pixels, strict=True):
                left = picture.data.cast("B")
                with self._lock:
                    self._file.seek(row * self._each)
                    while left:
                        if not (count := self._file.readinto(left)):
                            raise OSError("it has been cut short")
                        left = left[count:]
        except OSError as error:
            way_out = "the same command builds it again (train, with --resume)"
            raise UserError(f"{self.path} can no longer be read: {error.strerror or error}; {way_out}") from error
        return pixels

    def holds(self, sums: np.ndarray, workers: int) -> bool:
        """Return whether the pictures are still those of ``sums``, (n,) uint32; of large ones, an even part is read."""
        part = ceil(len(sums) * min(1, CHECKED / self._each))
        rows = np.linspace(0, len(sums) - 1, part).round().astype(np.int64)
        groups = np.array_split(rows, max(1, len(rows) * self._each // 2**20))  # what a processor's cache holds

        def same(group: np.ndarray) -> bool:
            return all(map(int.__eq__, map(checksum, self.read(group)), sums[group].tolist()))

        with ThreadPoolExecutor(workers) as pool:
            return all(pool.map(same, groups))


def checksum(picture: np.ndarray) -> int:
    """Return the CRC-32 of a picture: four times as quick as a digest, so that all can be compared each time."""
    return zlib.crc32(picture.data)
