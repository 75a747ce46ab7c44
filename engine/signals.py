"""SIGTERM, SIGINT, SIGHUP and SLURM's SIGUSR1: they end a command at once or, where that loses something, once saved.

A SIGHUP is what a process gets whose terminal is closed.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from plumage.errors import STOPS, Stopped


class StopSignals:
    """Raises Stopped at once when a stop signal comes; while ``deferred``, the first one only sets ``received``.

    Then a second Ctrl-C raises it. Of other signals a closed terminal or a scheduler may send several for one end. A
    SIGHUP that is ignored already, as under nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._defer = False
        for number in STOPS:
            if signal.Signals(number).name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        self._defer = True
        try:
            if self.received is not None:  # and raised where Python ignores it, as in a __del__
                raise Stopped(self.received)
            yield
        finally:
            self._defer = False
        if self.received is not None:  # it came after the last step: everything is saved
            raise Stopped(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if isinstance(sys.exc_info()[1], Stopped):  # on its way out: what cleans up behind it is not disturbed
            return
        before, self.received = self.received, number
        if not self._defer or (before is not None and number == signal.SIGINT):
            raise Stopped(number)
