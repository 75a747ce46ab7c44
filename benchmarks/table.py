"""What every benchmark's table begins with, and where it goes."""

import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def provenance(now: Mapping[str, Any], **packages: str) -> Iterator[str]:
    """How, on what and with what it was measured. now: as engine.environment has it. packages: versions of others."""
    hardware = now["gpu"] or f"{now['threads']} threads of {now['cpu']}"
    versions = {"Python": now["python"], **now["packages"], **packages}
    yield f"- Command: `{shlex.join(['python', *sys.argv])}`, commit {str(now['git_commit'])[:7]}"
    yield f"- Hardware: {hardware}, {now['platform']}; {now['precision']}"
    yield f"- Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}"


def publish(text: str, file: Path | None) -> None:
    """Print it, and write it into ``file`` if there is one."""
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")
    print(text)
