"""From ``--data`` to Samples: class folders, ``train/`` beside ``val/``, CUB-200-2011, or the built-in birds."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

import plumage.birds
from plumage.birds.folder import birds_folder, draw_birds, parse_birds
from plumage.data.cache import keep
from plumage.data.cub import fetch_cub200, is_cub, read_cub
from plumage.data.samples import Samples, some
from plumage.data.store import Cache
from plumage.errors import UserError, shortage
from plumage.recipe import is_birds

log = logging.getLogger("plumage")

SUFFIXES = {
    ".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"
}  # fmt: skip
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "test")  # the first that is there is the validation set
RUN_FILES = ("recipe.json", "classes.json", "split.csv")
Classes = dict[str, list[str]]  # class name → sorted paths of its pictures


def locate(data: str, cache: Cache) -> Path:
    """Return the folder that ``--data`` names. ``birds[:...]`` is drawn, ``cub200`` fetched into ``cache``, once."""
    if is_birds(data) or data == "cub200":
        if Path(data).is_dir() and not Path(data).samefile(Path(plumage.birds.__file__).parent):
            log.info(f"--data {data} is the built-in set; for the folder of that name write --data ./{data}")
        if data == "cub200":
            log.info("CUB-200-2011 shares pictures with ImageNet: from ImageNet's weights, its accuracies flatter")
        folder = _built_in_birds(data, cache) if is_birds(data) else fetch_cub200(cache.folder)
        keep(folder)
        return folder
    folder = Path(data)
    if not os.path.isdir(folder):  # noqa: PTH112 (pathlib may raise, as where a name is too long)
        what = "is a file, not a folder" if os.path.exists(folder) else "does not exist"  # noqa: PTH110
        raise UserError(f"--data {data}: {what}; give a folder with a folder of pictures for each class")
    return folder


def _built_in_birds(data: str, cache: Cache) -> Path:
    options = parse_birds(data)
    folder = cache.folder / birds_folder(options)
    if not folder.is_dir():
        log.info(f"drawing the birds into {folder} (once)")
        try:
            draw_birds(folder, **options, workers=cache.workers)
        except OSError as error:
            if shortage(error):
                raise
            raise UserError(f"--cache {cache.folder}: cannot be written ({error}); give another folder") from error
    return folder


def list_samples(folder: Path, least_classes: int = 2) -> Samples:
    """List every picture in ``folder``, sorted by path. Raises UserError when there is nothing to learn from."""
    samples = read_cub(folder) if is_cub(folder) else read_folders(folder)
    if len(samples.classes) < least_classes:
        raise UserError(f"--data {folder}: only one class ({samples.classes[0]}); two are needed{_hint(folder)}")
    return samples


def list_pictures(inputs: Iterable[str]) -> list[str]:
    """List each picture that ``inputs`` name, or that lies below a folder among them, once, sorted.

    As text: of a million paths, that is all that is kept. A named file counts as a picture whatever its suffix says.
    Raises UserError when one of ``inputs`` is not there, or is a folder without pictures.
    """
    pictures, missing, ignored = set[str](), list[str](), Counter[str]()
    for name in inputs:
        if os.path.isdir(name):  # noqa: PTH112 (pathlib may raise)
            inside = set(_pictures(Path(name), name if name.endswith("/") else f"{name}/", ignored))
            if not inside:
                raise UserError(f"{name} holds no pictures; give another folder, or files")
            pictures |= inside
        elif os.path.lexists(name):
            pictures.add(name)
        else:
            missing.append(name)
    if missing:
        raise UserError(f"no such picture or folder: {some(missing, 3)}")
    _name_ignored("", ignored)
    return sorted(pictures)


def read_folders(folder: Path) -> Samples:
    """List class folders, or ``train/`` and ``val/`` holding class folders, where the same name is the same class."""
    ignored: Counter[str] = Counter()
    sides = _sides(folder, ignored)
    _name_ignored(f"{folder}: ", ignored)
    for prefix, members in sides.values():
        if not members:
            raise UserError(_nothing_in(folder / prefix))
    has_split = len(sides) == 2
    if has_split:
        train, val = (members.keys() for _, members in sides.values())
        for lopsided, missing in ((val - train, "training"), (train - val, "validation")):
            if lopsided:
                log.warning(f"{folder}: no {missing} pictures of {some(sorted(lopsided))}")
    classes = sorted(set().union(*(members for _, members in sides.values())))
    label = {name: index for index, name in enumerate(classes)}
    # With the folders sorted, their slash included, all paths are, since each folder's own are.
    folders = sorted(
        (f"{prefix}{name}/", label[name], side, paths)
        for side, (prefix, members) in sides.items()
        for name, paths in members.items()
    )
    _, labels, names, paths = zip(*folders, strict=True)
    counts = [len(each) for each in paths]
    split = np.repeat(names, counts) if has_split else None
    return Samples(folder, list(chain(*paths)), np.repeat(np.array(labels, np.int64), counts), classes, split)


def _sides(folder: Path, ignored: Counter[str]) -> dict[str, tuple[str, Classes]]:
    """Find "train" and "val", or "" where there is no split: of each, what its paths begin with, and its classes."""
    names = [entry.name for entry in _visible(folder, Counter(), needed=True) if _is_folder(entry)]
    children = {name.lower(): name for name in names}
    train, val = (next(filter(None, map(children.get, usual)), None) for usual in (TRAIN_NAMES, VAL_NAMES))
    if train is None or val is None:
        return {"": ("", _class_folders(folder, "", ignored))}
    ignored.update(f"{name}/" for name in names if name not in (train, val))
    learnt, held_out = (_class_folders(folder, f"{name}/", ignored) for name in (train, val))
    if val.lower() == "test":
        if not learnt.keys() & held_out.keys():  # as in competitions
            log.info(f"{folder}: {val}/ has no folders of {train}/'s classes, so a part of {train}/ validates")
            return {"": (f"{train}/", learnt)}
        log.info(f"{folder}: no val/, so {val}/ is the validation set")
    return {"train": (f"{train}/", learnt), "val": (f"{val}/", held_out)}


def _class_folders(folder: Path, prefix: str, ignored: Counter[str]) -> Classes:
    """List every class folder in ``folder / prefix`` that has any pictures; paths are relative to ``folder``."""
    classes: Classes = {}
    for entry in _visible(folder / prefix, ignored):
        if not _is_folder(entry):
            ignored["files outside the class folders"] += 1
        elif paths := sorted(_pictures(Path(entry.path), f"{prefix}{entry.name}/", ignored)):
            classes[entry.name] = paths
        else:
            ignored[f"the empty class {entry.name}"] += 1
    return classes


def _pictures(folder: Path, prefix: str, ignored: Counter[str]) -> Iterator[str]:
    """Yield ``prefix`` and the way from ``folder`` to each picture below it.

    Follow a link to each folder once: links in circles, or from all folders to all others, come to an end.
    """
    waiting, followed = [(folder, prefix)], {_real(folder)}
    while waiting:
        here, prefix = waiting.pop()
        # A run, whose figures are no pictures to learn from.
        if all(os.path.isfile(here / name) for name in RUN_FILES):  # noqa: PTH113 (pathlib may raise)
            ignored[f"the run {here}"] += 1
            continue
        for entry in _visible(here, ignored):
            if _is_folder(entry):
                if entry.is_symlink():
                    target, real = _real(Path(entry.path)), _real(here)
                    if target in (real, *real.parents) or target in followed:
                        ignored[f"the circular or repeated link {entry.path}"] += 1
                        continue
                    followed.add(target)
                waiting.append((Path(entry.path), f"{prefix}{entry.name}/"))
            elif _is_picture(entry.name):
                yield prefix + entry.name
            else:
                ignored[f"{Path(entry.name).suffix or 'other'} files"] += 1


def _name_ignored(where: str, ignored: Counter[str]) -> None:
    if ignored:
        counted = [f"{count} {name}" if count > 1 else name for name, count in ignored.most_common()]
        log.info(f"{where}ignored {some(counted, 8)}")


def _is_picture(name: str) -> bool:
    return name[name.rfind(".") :].lower() in SUFFIXES


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry leads to a folder. One that leads nowhere, as a link in circles does, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _real(folder: Path) -> Path:
    return Path(os.path.realpath(folder))  # which does not raise where links go in circles


def _visible(folder: Path, ignored: Counter[str], needed: bool = False) -> "list[os.DirEntry[str]]":
    """List what is in ``folder`` and not hidden, sorted by name. UserError where that cannot be and is ``needed``."""
    try:
        with os.scandir(folder) as entries:
            everything = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if needed:
            raise UserError(f"{folder} cannot be listed: {error.strerror}") from error
        log.warning(f"{some([str(folder)])} cannot be listed ({error.strerror}): what is in it is left out")
        return []
    visible = [entry for entry in everything if not entry.name.startswith(".")]
    if hidden := len(everything) - len(visible):
        ignored["hidden files or folders"] += hidden
    return visible


def _nothing_in(folder: Path) -> str:
    loose = sum(_is_picture(entry.name) for entry in _visible(folder, Counter()))
    what = f"{loose} pictures but no class folders" if loose else "no pictures"
    return f"--data: {folder} holds {what}; put those of each class into a folder of its own, such as {folder / 'cat'}"


def _hint(folder: Path) -> str:
    """Name the folder inside that is meant: a download was unpacked one folder too deep, or only train/ is there."""
    for entry in _visible(folder, Counter()):
        if _is_folder(entry) and sum(map(_is_folder, _visible(Path(entry.path), Counter()))) >= 2:
            return f"; did you mean --data '{entry.path}'?"
    return ""
