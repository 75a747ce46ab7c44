"""What a command is told to write: whole under its name, or not at all."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO
from uuid import uuid4

from plumage.errors import UserError
from plumage.rundir.folder import named_in_errors


def check_output(file: Path, force: bool) -> None:
    """Raises UserError, before any work, where ``file`` cannot be written or is there already. force: it may be."""
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
def written_beside(file: Path) -> Iterator[Path]:
    """Where to write what gets the name ``file`` when all went well; else nothing is left of it."""
    temporary = file.with_name(f".{uuid4().hex}.tmp")  # no file of the user's
    try:
        with named_in_errors(file):
            yield temporary
            temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def text_output(file: Path | None) -> Iterator[TextIO]:
    """``file``, written beside, or standard output."""
    if file is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    with (
        written_beside(file) as draft,
        draft.open("w", newline="", encoding="utf-8", errors="surrogateescape") as out,
    ):
        yield out
