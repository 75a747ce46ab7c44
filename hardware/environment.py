"""What a result may depend on beyond the recipe: versions, hardware, the commit and the command."""

import platform
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plumage.hardware.device import Machine

DECISIVE = ("device", "gpu", "cpu", "threads", "processes", "precision", "compile", "deterministic")
PACKAGES = ("torch", "torchvision", "pytorch-ignite", "numpy", "pillow")


def environment(machine: "Machine") -> dict[str, Any]:
    """Collect what environment.json holds."""
    import ignite.distributed as idist  # noqa: PLC0415 (takes seconds, and who reads a run needs none)
    import torch  # noqa: PLC0415

    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": str(machine.device),
        "gpu": torch.cuda.get_device_name(machine.device) if machine.device.type == "cuda" else None,
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "processes": idist.get_world_size(),
        "precision": machine.precision,
        "compile": machine.compile,
        "deterministic": machine.deterministic,
        "git_commit": _git_commit(),
        "command": _command(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Name what the bits of a training depend on that has changed between two environments: "threads 1 (was 2)"."""
    was, has = ({**each, **_packages(each)} for each in (before, now))
    names = [name for name in (*DECISIVE, *PACKAGES) if name in was and was[name] != has.get(name)]
    changes = [f"{name} {has.get(name)} (was {was[name]})" for name in names]
    repeats = now["deterministic"] or str(now["device"]).startswith("cpu")
    return changes if repeats else [*changes, f"{now['device']} without --deterministic"]


def _packages(environment: dict[str, Any]) -> dict[str, Any]:
    packages = environment.get("packages")
    return packages if isinstance(packages, dict) else {}


def _command() -> str:
    """Return the command line to type again: of ``main.py``, or of the installed ``plumage``."""
    program, *arguments = sys.argv
    started = ["plumage"] if Path(program).name == "plumage" else ["python", program]
    return shlex.join([*started, *arguments])


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def _git_commit() -> str | None:
    here = Path(__file__).parent
    with suppress(OSError):
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
        return done.stdout.strip() or None
    return None
