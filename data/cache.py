"""The cache folder: where it is, what lies in it, who has it in use, and how it goes again."""

import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR
from tempfile import gettempdir
from typing import NamedTuple

from plumage.errors import UserError, visible
from plumage.files import draft_of, lock

log = logging.getLogger("plumage")

STORES, FETCHED, MARK, TORCH = "stores", "CUB_200_2011", ".fetched-by-plumage", "torch-home"
DRAFT = r"\.draft-[0-9a-f]{32}"
# What Plumage writes, by its place: only that is ever removed, wherever --cache points.
KINDS = {
    "": {r"birds-v\d+(-(species|pictures|seed)\d+)*": "drawn birds", DRAFT: "unfinished"},
    STORES: {r"(?s).*-\d+px-[0-9a-f]{16}(-[0-9a-f]{16})?": "decoded pictures", DRAFT: "unfinished"},
}
DOWNLOADS = (FETCHED, f"{FETCHED}.tgz", f"{FETCHED}.partial", TORCH)
RECENT = 600  # seconds in which whoever writes something has written to it
_kept: dict[Path, int] = {}


class Entry(NamedTuple):
    """Something of Plumage's own in the cache: what it is, its size in bytes, and when it was last used or written."""

    path: Path
    kind: str
    size: int
    used: float


def cache_folder(given: Path | None = None) -> Path:
    """Return the folder ``given``, or the default: below XDG_CACHE_HOME or ~/.cache, or else for temporary files.

    The last is for who has no home folder that can be written to, as in a container. Raises UserError where it is open
    to others, who would choose what is learnt from.
    """
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return given or Path(cache, "plumage")
    home = Path(os.path.expanduser("~/.cache/plumage"))  # noqa: PTH111 (pathlib raises where there is none)
    there = next(place for place in (home, *home.parents) if os.path.lexists(place))
    if home.is_absolute() and os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK):  # noqa: PTH112
        return given or home
    folder = given or _temporary_folder()
    os.environ.setdefault("TORCH_HOME", str(folder / TORCH))  # else torch would make a folder that is called ~
    return folder


def _temporary_folder() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(gettempdir(), f"plumage-{user}")
    with suppress(FileExistsError):
        folder.mkdir(0o700)
    status = folder.lstat()
    if not S_ISDIR(status.st_mode) or (hasattr(os, "getuid") and (status.st_uid != user or status.st_mode & 0o077)):
        raise UserError(f"--cache: there is no home folder, and {folder} is open to others; give another folder")
    log.info(f"there is no home folder to write to: the cache is {folder}; --cache gives another")
    return folder


def hold(handle: int) -> None:
    """Hold an open file or folder against ``discard``, of any process, until it is closed."""
    with suppress(OSError):  # a network disk without locks
        lock(handle, shared=True)


def keep(folder: Path) -> None:
    """Hold ``folder`` until the process ends, and note that it is used."""
    with suppress(OSError):  # another's
        os.utime(folder)
    if folder not in _kept:
        with suppress(OSError):
            _kept[folder] = os.open(folder, os.O_RDONLY)
            hold(_kept[folder])


def discard(path: Path) -> bool:
    """Remove a store, a data set or a file if nobody has it in use, and return whether it is gone."""
    try:
        with _alone(path):
            path.rename(draft := draft_of(path))
        shutil.rmtree(draft) if draft.is_dir() else draft.unlink()
    except OSError:  # in use, another's, or gone by now
        return False
    return True


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Raise OSError where another has ``path`` in use, or owns it. Of a store, its pixels are held."""
    if not os.access(path, os.W_OK):
        raise PermissionError
    if sys.platform == "win32":  # where what is open cannot be renamed, and so stays
        yield
        return
    pixels = path / "pixels"
    # Some network disks lock a file only for those who may write to it.
    handle = os.open(pixels, os.O_RDWR) if pixels.is_file() else os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        lock(handle)
        yield
    finally:
        os.close(handle)


def entries(folder: Path) -> list[Entry]:
    """List what Plumage keeps in a cache folder, the largest first. UserError where ``folder`` is none."""
    found = []
    # A folder that is not Plumage's alone may hold its owner's data set of the same name.
    own = folder.name == "plumage" or (folder / FETCHED / MARK).exists() or (folder / f"{FETCHED}.partial").exists()
    for place, kinds in KINDS.items():
        try:
            paths = [path for path in (folder / place).iterdir() if not path.is_symlink()]
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"--cache {folder / place}: {error.strerror}; give another folder") from error
        for path in paths:
            kind = next((kind for form, kind in kinds.items() if re.fullmatch(form, path.name)), None)
            if kind or (own and not place and path.name in DOWNLOADS):
                found.append(Entry(path, kind or "download", *_size_and_use(path)))
    return sorted(found, key=lambda entry: (-entry.size, entry.path))


def listing(folder: Path, clear: bool) -> Iterator[str]:
    """Yield a line for each of ``entries``, and the total. clear: remove each first, if nobody has it in use."""
    found, freed = entries(folder), 0
    for path, kind, size, used in found:
        written = kind in ("unfinished", "download") and time.time() - used < RECENT
        gone = clear and not written and discard(path)
        freed += gone * size
        name, day = str(path.relative_to(folder)), time.strftime("%Y-%m-%d", time.localtime(used))
        fate = ", removed" if gone else ", in use or not yours: stays" if clear else ""
        yield f"{size / 1e6:10,.1f} MB  {kind:16}  {day}  {visible(name)}{fate}"
    total = sum(entry.size for entry in found)
    if clear:
        yield f"{freed / 1e6:10,.1f} MB of {total / 1e6:,.1f} MB freed in {folder}"
    else:
        yield f"{total / 1e6:10,.1f} MB in {folder}" + ("; --clear removes what is not in use" if found else "")


def _size_and_use(path: Path) -> tuple[int, float]:
    """Return the bytes of a file, or of all below a folder, and the last time that it was used or written to."""
    size, used = 0, 0.0
    for place in [path, *path.rglob("*")]:
        with suppress(OSError):
            status = place.lstat()
            size, used = size + status.st_size * (not S_ISDIR(status.st_mode)), max(used, status.st_mtime)
    return size, used
