"""The ways a command ends early that are no bug. Each is one line on standard error and an exit code."""

import signal


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
