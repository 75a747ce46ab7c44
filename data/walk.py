"""What is in a folder: its pictures, however deep; without what is hidden, what systems leave behind, and runs."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from plumage.data.formats import is_picture
from plumage.data.samples import some
from plumage.errors import UserError

log = logging.getLogger("plumage")

RUN_FILES = ("recipe.json", "classes.json", "split.csv")
EXPLAINED = "explained.csv"  # in a folder of what predict --explain has drawn
# In lower case: thumbnails, bins and snapshots of Synology, QNAP, NetApp and others, Windows, macOS, Linux and Android.
# Names that begin with a full stop are hidden anyway, as ._*, .DS_Store, .Trashes and .@__thumb.
JUNK = {
    "@eadir", "@tmp", "@sharebin", "@sharesnap", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb",
    "@recycle_bin", "~snapshot", "$recycle.bin", "recycler", "system volume information", "$extend", "thumbs.db",
    "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "__macosx", "icon\r", "network trash folder", "temporary items",
    "thevolumesettingsfolder", "desktop db", "desktop df", "lost+found", "lost.dir",
}  # fmt: skip


class Inside(NamedTuple):
    """What lies directly in a folder: its sub-folders and the names of its pictures, sorted, and those of the rest."""

    folders: "list[os.DirEntry[str]]"
    pictures: list[str]
    others: list[str]


def look(folder: Path, ignored: "Counter[str]", needed: bool = False) -> Inside:
    """List what is in ``folder``, and count what is left out. UserError where that cannot be and is ``needed``."""
    folders, pictures, others = inside = Inside([], [], [])
    try:
        with os.scandir(folder) as entries:
            everything = list(entries)
    except OSError as error:
        if needed:
            raise UserError(f"{folder} cannot be listed: {error.strerror}") from error
        log.warning(f"{some([str(folder)])} cannot be listed ({error.strerror}): what is in it is left out")
        return inside
    for entry in everything:
        name, is_folder = entry.name, _is_folder(entry)
        if name[0] == ".":
            ignored["hidden files or folders"] += 1
        elif not is_folder and is_picture(name):
            pictures.append(name)
        elif name.lower() in JUNK:
            ignored[f"{name}/" if is_folder else name] += 1
        elif is_folder:
            folders.append(entry)
        else:
            others.append(name)
    pictures.sort()
    folders.sort(key=lambda entry: entry.name)
    return inside


def walk(folder: Path, prefix: str, ignored: "Counter[str]") -> Iterator[tuple[str, list[str]]]:
    """Yield ``folder`` and each below it: ``prefix`` and the way there, and the sorted names of the pictures in it.

    Follow a link to each folder once: links in circles, or from all folders to all others, come to an end.
    """
    waiting, followed = [(folder, prefix)], {_real(folder)}
    while waiting:
        here, prefix = waiting.pop()
        # A run, whose figures are no pictures to learn from.
        if all(os.path.isfile(here / name) for name in RUN_FILES):  # noqa: PTH113 (pathlib may raise)
            ignored[f"the run {here}"] += 1
            continue
        if os.path.isfile(here / EXPLAINED):  # noqa: PTH113
            ignored[f"the maps in {here}"] += 1
            continue
        inside = look(here, ignored)
        yield prefix, inside.pictures
        ignored.update(f"{Path(name).suffix or 'other'} files" for name in inside.others)
        for entry in inside.folders:
            if entry.is_symlink():
                target, real = _real(Path(entry.path)), _real(here)
                if target in (real, *real.parents) or target in followed:
                    ignored[f"the circular or repeated link {entry.path}"] += 1
                    continue
                followed.add(target)
            waiting.append((Path(entry.path), f"{prefix}{entry.name}/"))


def name_ignored(where: str, ignored: "Counter[str]") -> None:
    """Say in one line what was left out."""
    if ignored:
        counted = [f"{count} {name}" if count > 1 else name for name, count in ignored.most_common()]
        log.info(f"{where}ignored {some(counted, 8)}")


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry leads to a folder. One that leads nowhere, as a link in circles does, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _real(folder: Path) -> Path:
    return Path(os.path.realpath(folder))  # which does not raise where links go in circles
