"""The ways a command ends early that are no bug. Each is one line on standard error and an exit code."""

import errno
import signal
import unicodedata

# How torch, its libraries and Python's threads say what MemoryError and ENOMEM say elsewhere.
NO_MEMORY = ("out of memory", "not enough memory", "allocate memory", "bad_alloc", "ALLOC_FAILED", "map segment from")
NO_THREAD = ("can't start new thread", "Resource temporarily unavailable")

# What asks for the end: a scheduler, Ctrl-C, a terminal that is closed, SLURM's warning. Windows has not all.
STOPS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


class UserError(Exception):
    """Wrong use or bad input. The message names the file or option, and the way out."""

    exit_code = 2


class Diverged(Exception):
    """The loss is no longer a number. The message names the iteration, the rate and the way out."""

    exit_code = 3


class ClosedPipe(BaseException):
    """Whoever read the output has had enough of it, as ``head`` has: no error, and nothing to say."""

    exit_code = 128 + 13  # of SIGPIPE, which Windows lacks


class Stopped(BaseException):
    """A signal asked for the end; what was reached has been saved. Exits with 128 + the signal's number.

    No Exception, since libraries swallow those: a signal may come while one of them tries something.
    """

    def __init__(self, signum: int, message: str = ""):
        super().__init__(f"stopped by {signal.Signals(signum).name}{message}")
        self.exit_code = 128 + signum


EarlyEnd = (UserError, Diverged, ClosedPipe, Stopped)


def first_line(error: BaseException) -> str:
    """Return what ``error`` says, for a message of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shortage(error: BaseException) -> str:
    """Return what the machine has run out of, "memory" or "threads" (or processes); "" if ``error`` is another."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return "memory"
    if not isinstance(error, (RuntimeError, ImportError, BlockingIOError)):
        return ""
    said = {"memory": NO_MEMORY, "threads": NO_THREAD}
    return next((what for what, signs in said.items() if any(sign in str(error) for sign in signs)), "")


def visible(text: str, keep: str = "") -> str:
    """Return ``text`` as it may be shown: what a terminal or a page would obey is escaped, as \\x1b and \\u202e.

    Such are control characters, line ends among them, and what is unseen, turns the text's direction, or is no text.
    keep: which of them stay.
    """
    if text.isprintable():
        return text
    return "".join(repr(one)[1:-1] if _obeyed(one) and one not in keep else one for one in text)


def _obeyed(one: str) -> bool:
    # The two joiners belong to the spelling of many languages, and to emoji.
    return unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp") and one not in "\u200c\u200d"
