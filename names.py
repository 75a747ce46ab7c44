"""Names of files and classes, which systems spell differently: compared in one form, opened as the disk has them."""

import os
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path


def composed(name: str) -> str:
    """Return a name in Unicode's composed form, NFC: macOS, and archives made there, have é as e and its accent."""
    return unicodedata.normalize("NFC", name)


def finder(root: Path | None = None, is_there: Callable[[str], bool] = os.path.isfile) -> Callable[[str], str | None]:
    """Return a function that gives a path below ``root``, or any, as the disk has it; None where nothing is there.

    Where a path is missing, each folder on its way is listed, once, for names that differ in Unicode's form alone.
    """
    above, names = f"{root}{os.sep}" if root else "", cache(_names)

    def find(path: str) -> str | None:
        if is_there(above + path):
            return path
        if path.isascii():
            return None
        found: list[str] = []
        for name in path.split("/"):
            there = names(above + "/".join([*found, ""]))
            found.append(there.get(name) or there.get(composed(name), name))
        real = "/".join(found)
        return real if is_there(above + real) else None

    return find


def _names(folder: str) -> dict[str, str]:
    """Return what lies in a folder, by its names and by their composed forms."""
    try:
        names = os.listdir(folder or ".")  # noqa: PTH208 (it takes text of any length)
    except (OSError, ValueError):  # no folder, or no name that could be one's
        return {}
    return {composed(name): name for name in names} | {name: name for name in names}
