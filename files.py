"""Files: written whole or not at all, locked, and read back as data that may be anything."""

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path, PurePath
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, TextIO
from uuid import uuid4
from zipfile import ZIP_STORED, ZipFile

from plumage.errors import UserError
from plumage.names import finder

if TYPE_CHECKING:
    import numpy as np

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

DRAFTS = ".draft-*"
HEADER = 10_000  # bytes of an array's own header, at most


def draft_of(path: Path) -> Path:
    """Return where to write what is to become ``path``: beside it, under a name that nobody can foresee."""
    return path.with_name(f".draft-{uuid4().hex}")


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """Give an empty draft, which becomes ``file`` when the block has ended well; else nothing is left of it.

    Whoever reads ``file`` sees all of the old or all of the new; when the block has ended, all of the new is on the
    disk, also after a power cut. Raises OSError that names ``file``, as on a full disk.
    """
    draft = draft_of(file)
    with named_in_errors(file, draft):
        try:
            draft.touch(exist_ok=False)  # nobody's link is followed
            yield draft
            flush(draft)
            draft.replace(file)
            flush(file.parent)
        finally:
            draft.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """Give a draft folder, which becomes ``folder`` when the block has ended well; else nothing is left of it.

    When the block has ended, all of it is on the disk. Where another process was faster, its folder stays.
    """
    draft, held = draft_of(folder), None
    try:
        draft.mkdir(parents=True)
        with suppress(OSError):  # some disks have no locks, and some systems open no folders
            held = os.open(draft, os.O_RDONLY)
            lock(held)
        yield draft
        flush_all(draft)
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
        flush(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if held is not None:
            os.close(held)


def remove_abandoned(folder: Path) -> None:
    """Remove the drafts that killed processes left in ``folder``.

    Such is a folder that nobody holds, but for a second to begin in, and whatever nobody has written to for a day.
    """
    for draft in folder.glob(DRAFTS):
        with suppress(OSError):
            unchanged = time.time() - max(path.stat().st_mtime for path in (draft, *draft.glob("*")))
            if unchanged > (1 if _is_let_go(draft) else 86_400):
                shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


def lock(handle: int, shared: bool = False) -> None:
    """Lock an open file or folder until it is closed, or the process is dead.

    shared: as several processes may. Raises BlockingIOError where another has it, or OSError where there are no locks.
    """
    if not fcntl:
        raise OSError(errno.ENOLCK, "this system has none")
    fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def _is_let_go(draft: Path) -> bool:
    """Return whether ``draft`` is a folder of which is known that no process holds it."""
    if not draft.is_dir():
        return False
    handle = os.open(draft, os.O_RDONLY)
    try:
        lock(handle)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def flush_all(folder: Path) -> None:
    """Do ``flush`` with a folder and all below it: many at a time, of which a disk makes one write."""
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(flush, (path for path in (folder, *folder.rglob("*")) if not path.is_symlink())))


def flush(path: Path) -> None:
    """Have the disk keep a file's content, or the names in a folder, before this returns."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot flush a folder
            raise
    finally:
        os.close(handle)


@contextmanager
def named_in_errors(file: Path, draft: Path | None = None) -> Iterator[None]:
    """Name ``file`` in an OSError that names none, as that of a full disk, or the draft of it."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, draft, str(draft)):
            error.filename = str(file)
        raise


def write_text(file: Path, text: str) -> None:
    with written_whole(file) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(file: Path, content: Any) -> None:
    write_text(file, json.dumps(content, indent=2) + "\n")


def check_regular(file: Path) -> None:
    """Raise OSError where ``file`` is no regular file: opening a pipe would wait for ever."""
    if not S_ISREG(file.stat().st_mode):
        raise OSError(errno.EINVAL, "Is no regular file", str(file))


def read_json(file: Path) -> Any:
    """Return what a JSON file holds. Raises UserError where it cannot be read."""
    try:
        check_regular(file)
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def read_object(file: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds. Raises UserError where it holds none."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: it holds no object")
    return content


def read_arrays(file: Path, most: Mapping[str, int]) -> "dict[str, np.ndarray]":
    """Return those arrays of ``most`` that an archive of np.savez holds; nothing else of it is read.

    most: of each array's name, how many bytes it may have. Checked before memory is taken. Raises ValueError, or what
    zipfile and numpy raise on a damaged file.
    """
    import numpy as np  # noqa: PLC0415 (takes a tenth of a second, and --help needs none)

    arrays = {}
    check_regular(file)
    with ZipFile(file) as archive:
        for name in most.keys() & {member.removesuffix(".npy") for member in archive.namelist()}:
            about = archive.getinfo(f"{name}.npy")
            if about.compress_type != ZIP_STORED or not about.file_size <= most[name] + HEADER:
                raise ValueError(f"{name} has {about.file_size} bytes, of at most {most[name]}, or is compressed")
            with archive.open(about) as member:
                if np.lib.format.read_magic(member) != (1, 0):
                    raise ValueError(f"{name} is of another format")
                shape, by_columns, dtype = np.lib.format.read_array_header_1_0(member)
                size = about.file_size - member.tell()
                if by_columns or dtype.hasobject or prod(shape) * dtype.itemsize != size:
                    raise ValueError(f"{name} is not what its header says")
                content = np.empty(size, np.uint8)
                for start in range(0, size, 2**20):  # in parts, since zipfile makes copies
                    content[start : start + 2**20] = np.frombuffer(member.read(2**20), np.uint8)
            arrays[name] = content.view(dtype).reshape(shape)
    return arrays


def expanded(path: str) -> str:
    """Return a path that a person gave, ``~`` as the home folder; unless a file is called so, or that is unknown.

    Where it is there in another of Unicode's forms, as the disk has it.
    """
    if os.path.lexists(path):
        return path
    whole = os.path.expanduser(path)  # noqa: PTH111 (pathlib raises)
    return finder(is_there=os.path.lexists)(whole) or whole


def is_below(path: str) -> bool:
    """Return whether a path that some file gives, relative to a folder, stays in that folder."""
    pure = PurePath(path)
    return not pure.anchor and ".." not in pure.parts and "\0" not in path


def check_output(file: Path, force: bool) -> None:
    """Raise UserError, before any work, where ``file`` cannot be written or is there already. force: it may be."""
    try:
        usable = file.parent.is_dir() and os.access(file.parent, os.W_OK)
        there, regular = os.path.lexists(file), file.is_file()
    except OSError as error:  # a name that is too long
        raise UserError(f"--output {file}: {error.strerror}; give another") from error
    if not usable:
        raise UserError(f"--output {file}: {file.parent} is no folder that can be written to; give another")
    if there and not regular:
        raise UserError(f"--output {file}: is no regular file; give another")
    if there and not force:
        raise UserError(f"--output {file}: exists; --force overwrites it, or give another")


@contextmanager
def text_output(file: Path | None) -> Iterator[TextIO]:
    """Give ``file``, written whole, or standard output."""
    if file is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    with written_whole(file) as draft, draft.open("w", newline="", encoding="utf-8", errors="surrogateescape") as out:
        yield out
