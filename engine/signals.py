"""SIGTERM, SIGINT and SLURM's SIGUSR1: they end a command at once or, where that loses something, once it is saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from plumage.errors import Stopped


class StopSignals:
    """Raises Stopped at once when a stop signal comes; while ``deferred``, the first one only sets ``received``."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._defer = False
        for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
            if hasattr(signal, name):  # Windows has not all
                signal.signal(getattr(signal, name), self._handle)

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
        before, self.received = self.received, number
        if not self._defer or before is not None:
            raise Stopped(number)
