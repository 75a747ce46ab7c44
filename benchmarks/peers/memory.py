"""How much memory a process takes, with those that it started."""

from collections.abc import Sequence
from contextlib import suppress
from threading import Event
from time import perf_counter
from typing import Any, NamedTuple


class Sample(NamedTuple):
    at: float
    taken: int


def watch(number: int, ended: Event, samples: list[Sample]) -> None:
    """Add the memory of process ``number`` and of all that it started, in bytes, twice a second until ``ended``."""
    import psutil  # noqa: PLC0415 (of the extra)

    while not ended.is_set():
        at, total = perf_counter(), 0
        with suppress(psutil.Error):
            process = psutil.Process(number)
            for each in (process, *process.children(recursive=True)):
                with suppress(psutil.Error):
                    total += own_part(each.memory_full_info())
        samples.append(Sample(at, total))
        ended.wait(0.5)


def own_part(memory: Any) -> int:
    """Return PSS, in which what several share is divided among them; where the system does not tell it, USS or RSS."""
    return next(getattr(memory, name) for name in ("pss", "uss", "rss") if hasattr(memory, name))


def peak(samples: Sequence[Sample], begin: float, seconds: float) -> int:
    return max((sample.taken for sample in samples if begin <= sample.at <= begin + seconds), default=0)
