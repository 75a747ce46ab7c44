"""Files: written whole or not at all; JSON and CSV read back as data that may be anything."""

import csv
import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, TextIO
from uuid import uuid4

from plumage.errors import UserError

DRAFTS = ".draft-*"


def draft_of(path: Path) -> Path:
    """Return where to write what is to become ``path``: beside it, under a name that nobody can foresee."""
    return path.with_name(f".draft-{uuid4().hex}")


@contextmanager
def written_whole(file: Path, durable: bool = False) -> Iterator[Path]:
    """Give an empty draft, which becomes ``file`` when the block has ended well; else nothing is left of it.

    Whoever reads ``file`` sees all of the old or all of the new. durable: content and name are on the disk when the
    block has ended, also after a power cut. Raises OSError that names ``file``, as on a full disk.
    """
    draft = draft_of(file)
    with named_in_errors(file, draft):
        try:
            draft.touch(exist_ok=False)  # nobody's link is followed
            yield draft
            if durable:
                flush(draft)
            draft.replace(file)
            if durable:
                flush(file.parent)
        finally:
            draft.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """Give a draft folder, which becomes ``folder`` when the block has ended well; else nothing is left of it."""
    draft = draft_of(folder)
    try:
        draft.mkdir(parents=True)
        yield draft
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process has put it there meanwhile, and that one stays
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def remove_abandoned(folder: Path) -> None:
    """Remove the drafts that killed processes left in ``folder``. One that nobody has written to for a day is such."""
    for draft in folder.glob(DRAFTS):
        with suppress(OSError):
            if time.time() - max(path.stat().st_mtime for path in (draft, *draft.glob("*"))) > 86_400:
                shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


def flush(path: Path) -> None:
    """Have the disk keep a file's content, or the names in a folder, before this returns."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
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


def write_table(file: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write CSV with a header. A path that is no text goes through as the bytes that it is."""
    with text_output(file) as out:
        csv.writer(out).writerows(chain([columns], rows))


def read_json(file: Path) -> Any:
    """Return what a JSON file holds. Raises UserError where it cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def read_object(file: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds. Raises UserError where it holds none."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: it holds no object")
    return content


def read_table(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of each row of a CSV with this header. Raises UserError, naming the wrong line."""
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as handle:
            lines = csv.reader(handle)
            if next(lines, None) != list(columns):
                raise UserError(f"{file}, line 1: needs the columns {', '.join(columns)}")
            for row in lines:
                if len(row) != len(columns):
                    raise UserError(f"{file}, line {lines.line_num}: has {len(row)} columns, not {len(columns)}")
                yield lines.line_num, row
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


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
