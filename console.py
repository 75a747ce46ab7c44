"""Around every command: what its streams do when nobody reads them, and how it ends."""

import atexit
import errno
import logging
import os
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from io import BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from typing import Any

import click

from plumage.errors import STOPS, ClosedPipe, EarlyEnd, Stopped, UserError, first_line, shortage, visible

log = logging.getLogger("plumage")


def run_command(cli: click.Command) -> None:
    """Run what the command line says, and exit. Whatever a user did wrong is one line on standard error."""
    hook = sys.unraisablehook
    # What a __del__ raises is only told; that would be a traceback for a Ctrl-C.
    sys.unraisablehook = lambda about: None if about.exc_type is Stopped else hook(about)
    try:
        _run_command(cli)
    except Stopped as stop:  # it came while the command was ending already
        sys.exit(stop.exit_code)
    finally:
        _ignore_stops()
        sys.unraisablehook = hook


def _ignore_stops() -> None:
    """Let no Ctrl-C abort Python while it ends: threads are joined, then what modules hold is taken apart."""
    for number in STOPS:
        if callable(signal.getsignal(number)):
            signal.signal(number, lambda *_: None)
            atexit.register(signal.signal, number, signal.SIG_IGN)


def _run_command(cli: click.Command) -> None:
    _open_streams()
    handler = Notices()
    handler.setFormatter(Notice("%(message)s"))
    logging.basicConfig(handlers=[handler], force=True)
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
        _ignore_stops()  # the first of several is told
        message, code = str(end), end.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" See {context.command_path} --help." if context else ""
        message, code = " ".join(error.format_message().split()) + hint, error.exit_code
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except Exception as error:
        if not (message := _outside_cause(error)):
            raise
    if message and os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes on a machine, one says it
        with beside_bars():
            click.echo(visible(f"error: {message}"), err=True)
            sys.exit(code)  # inside, so that no bar is drawn again
    sys.exit(code)


def _outside_cause(error: Exception) -> str:
    """Say what the machine or a disk did, and the way out; "" where ``error`` is a bug."""
    lacking, what = shortage(error), first_line(error)
    if lacking == "threads":
        return f"no more threads or processes can be started ({what}); end others, or take --workers 1"
    if lacking and type(error).__name__ in ("OutOfMemoryError", "AcceleratorError"):  # torch's, not imported here
        return f"the GPU has too little memory left ({what}); take --device cpu"
    if lacking:
        return f"memory ran out ({what}); end other programs, take fewer --workers, or a machine with more memory"
    if isinstance(error, OSError):  # a full disk, a missing permission, a name that is too long
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    return ""


def beside_bars() -> AbstractContextManager[None]:
    """Return a context in which no bar is drawn on the terminal; what is printed begins on a line of its own."""
    loaded = sys.modules.get("tqdm.std")  # else there are no bars
    return loaded.tqdm.external_write_mode(sys.stderr) if loaded else nullcontext()


class Notices(logging.StreamHandler):
    def emit(self, record: logging.LogRecord) -> None:
        with beside_bars():
            super().emit(record)


class Notice(logging.Formatter):
    """A line on standard error, whatever names it holds; what libraries say may have several."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), keep="" if record.name == log.name else "\n\t")


class Screen(TextIOWrapper):
    """Standard output where that is a terminal: lines of text, whatever names it holds."""

    def write(self, text: str) -> int:
        super().write(visible(text, keep="\n"))
        return len(text)


def _open_streams() -> None:
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed; what is opened next must not take its place
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: PTH123, SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text
            if stream is getattr(sys, f"__{name}__"):
                outlet = Outlet(stream.fileno(), "w", closefd=False)
                outlet.terminal = stream.isatty()
                kind = Screen if outlet.terminal and name == "stdout" else TextIOWrapper
                by_line, buffer = outlet.terminal or name == "stderr", BufferedWriter(outlet)
                setattr(sys, name, kind(buffer, stream.encoding, stream.errors, line_buffering=by_line))


class Outlet(FileIO):
    """A stream whose reader may go, as with ``| head`` or a closed ``terminal``, or whose disk may be full.

    A training is not lost by that. needed: the output is all that the command is for, which ends instead. failure: what
    went wrong, unless it was the reader that went.
    """

    needed = terminal = False
    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            needed, self.needed = self.needed, False  # for what is left in the buffers
            gone = isinstance(error, BrokenPipeError) or (self.terminal and error.errno == errno.EIO)
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
        if (outlet := _outlet()) and not outlet.terminal:
            outlet.needed = True
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def _outlet() -> Outlet | None:
    """Return where standard output goes; None where that is not Python's own, as in a notebook."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw if isinstance(raw, Outlet) else None
