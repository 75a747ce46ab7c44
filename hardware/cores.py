"""How many cores this process may use: in a container or under a scheduler, fewer than the machine has."""

import os
from contextlib import suppress
from math import ceil, inf
from pathlib import Path


def usable_cores() -> int:
    """Count the cores that the process may run on, as far as their time is granted to it."""
    return max(1, ceil(usable_time()))


def usable_time() -> float:
    """Return how many seconds the process may compute in a second, on all cores together."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, granted_cores(Path("/sys/fs/cgroup")))


def granted_cores(groups: Path) -> float:
    """Return how many cores' time the control group in ``groups`` grants (``docker --cpus``); inf without a limit."""
    with suppress(OSError, ValueError):  # version 2: "150000 100000", or "max 100000"
        quota, period = (groups / "cpu.max").read_text().split()
        return int(quota) / int(period)
    with suppress(OSError, ValueError):  # version 1: −1 is no limit
        limit, each = (int((groups / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return limit / each if limit > 0 else inf
    return inf
