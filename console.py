"""Around every command: what its streams do when nobody reads them, and how it ends."""

import logging
import os
import sys
from io import BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from typing import Any

import click

from plumage.errors import ClosedPipe, EarlyEnd, UserError, first_line

log = logging.getLogger("plumage")


def run_command(cli: click.Command) -> None:
    """Run what the command line says, and exit. Whatever a user did wrong is one line on standard error."""
    _open_streams()
    logging.basicConfig(format="%(message)s", force=True)
    log.setLevel(logging.INFO)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it speaks of its fonts
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it says of a picture is in skipped.csv
    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # it repeats each exception that is reported below
    script, code = Path(sys.argv[0]), UserError.exit_code
    typed = f"python {script}" if script.suffix == ".py" else script.stem  # to start this program
    try:
        result = cli.main(prog_name=typed, standalone_mode=False)
        sys.stdout.flush()
        outlet = _outlet()
        if not outlet or not outlet.failure:
            sys.exit(result)
        message = f"standard output: {outlet.failure.strerror}"
    except EarlyEnd as end:
        message, code = str(end), end.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" See {context.command_path} --help." if context else ""
        message, code = error.format_message() + hint, error.exit_code
    except OSError as error:  # a full disk, a missing permission, a name that is too long
        message = f"{error.filename or 'a file'}: {error.strerror or error}"
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        message = f"the GPU has too little memory left ({first_line(error)}); take --device cpu"
    if message and os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes on a machine, one says it
        click.echo(f"error: {message}".replace("\n", " "), err=True)
    sys.exit(code)


def _open_streams() -> None:
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed; what is opened next must not take its place
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: PTH123, SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text
            if stream is getattr(sys, f"__{name}__") and not stream.isatty():
                outlet = BufferedWriter(Outlet(stream.fileno(), "w", closefd=False))
                by_line = name == "stderr"
                setattr(sys, name, TextIOWrapper(outlet, stream.encoding, stream.errors, line_buffering=by_line))


class Outlet(FileIO):
    """A stream whose reader may go, as with ``| head``, or whose disk may be full: a training is not lost by that.

    needed: the output is all that the command is for, which ends instead. failure: what went wrong, unless it was the
    reader that went.
    """

    needed = False
    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            needed, self.needed = self.needed, False  # for what is left in the buffers
            gone = isinstance(error, BrokenPipeError)
            self.failure = self.failure if gone else error
            if not needed:
                return len(data)
            if gone:
                raise ClosedPipe from error
            error.filename = "standard output"
            raise


def need_reader() -> None:
    """Say that the command is for its standard output: written line by line, with file names as the bytes they are."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
        if outlet := _outlet():
            outlet.needed = True
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def _outlet() -> Outlet | None:
    """Return where standard output goes; None where that is a terminal, or not Python's own, as in a notebook."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw if isinstance(raw, Outlet) else None
