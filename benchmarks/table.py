"""Where a benchmark's table goes."""

from pathlib import Path


def publish(text: str, file: Path | None) -> None:
    """Print it, and write it into ``file`` if there is one."""
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")
    print(text)
