"""What every benchmark's table begins with, and where it goes."""

import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def provenance(now: Mapping[str, Any], **packages: str) -> Iterator[str]:
    """How, on what and with what it was measured. now: as engine.environment has it. packages: versions of others."""
    hardware = now["gpu"] or f"{now['threads']} thread{'s'[: now['threads'] > 1]} of {now['cpu']}"
    versions = {"Python": now["python"], **now["packages"], **packages}
    commits = ", ".join(commit[:7] for commit in str(now["git_commit"]).split(", "))
    yield f"- Command: `{shlex.join(['python', *sys.argv])}`, commit {commits}"
    yield f"- Hardware: {hardware}, {now['platform']}; {now['precision']}"
    yield f"- Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}"


def lasting(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return it without what is of one process alone: the command, whose folders are gone, and when it began."""
    return {name: value for name, value in environment.items() if name not in ("command", "started")}


def alike(environments: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each environment once: those that differ in the commit alone as one, with all commits."""
    commits: dict[str, dict[str, None]] = {}
    for each in environments:
        rest = {name: value for name, value in each.items() if name != "git_commit"}
        commits.setdefault(json.dumps(rest), {})[str(each["git_commit"])] = None
    for rest_of_all, own in commits.items():
        yield json.loads(rest_of_all) | {"git_commit": ", ".join(own)}


def publish(text: str, file: Path | None) -> None:
    """Print it, and write it into ``file`` if there is one."""
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")
    print(text)
