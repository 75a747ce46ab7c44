"""From ``--data`` to Samples: class folders, ``train/`` beside ``val/``, CUB-200-2011, or the built-in birds."""

import logging
import os
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np

import plumage.birds
from plumage.birds.folder import birds_folder, draw_birds, parse_birds
from plumage.data.cache import keep
from plumage.data.cub import fetch_cub200, is_cub, read_cub
from plumage.data.layout import find_sides, nothing_in
from plumage.data.samples import Samples, some
from plumage.data.store import Cache
from plumage.data.walk import look, name_ignored, walk
from plumage.errors import UserError, shortage
from plumage.names import finder
from plumage.recipe import is_birds

log = logging.getLogger("plumage")

ARCHIVES = (
    ".zip", ".zipx", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"
)  # fmt: skip


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
        if not os.path.exists(folder):  # noqa: PTH110
            what = "does not exist"
        else:
            what = "is an archive: unpack it" if data.lower().endswith(ARCHIVES) else "is a file, not a folder"
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


def list_samples(folder: Path, least_classes: int = 2, anew: bool = False) -> Samples:
    """List every picture in ``folder``, sorted by path. Raises UserError when there is nothing to learn from.

    anew: what trains and what validates is yet to be drawn, so that a test folder tests, though nothing else validates.
    """
    samples = read_cub(folder, anew) if is_cub(folder) else read_folders(folder, anew)
    if len(samples.classes) < least_classes:
        raise UserError(f"--data {folder}: only one class ({samples.classes[0]}); two are needed{_hint(folder)}")
    return samples


def list_pictures(inputs: Iterable[str]) -> list[str]:
    """List each picture that ``inputs`` name, or that lies below a folder among them, once, sorted.

    As text: of a million paths, that is all that is kept. A named file counts as a picture whatever its suffix says.
    A name in another of Unicode's forms than the disk's is found too. Raises UserError when one of ``inputs`` is not
    there, or is a folder without pictures.
    """
    pictures, missing, ignored, find = set[str](), list[str](), Counter[str](), finder(is_there=os.path.lexists)
    for given in inputs:
        name = find(given) or given
        if os.path.isdir(name):  # noqa: PTH112 (pathlib may raise)
            folders = walk(Path(name), name if name.endswith("/") else f"{name}/", ignored)
            inside = {way + picture for way, names in folders for picture in names}
            if not inside:
                raise UserError(f"{name} holds no pictures; give another folder, or files")
            pictures |= inside
        elif os.path.lexists(name):
            pictures.add(name)
        else:
            missing.append(name)
    if missing:
        raise UserError(f"no such picture or folder: {some(missing, 3)}")
    name_ignored("", ignored)
    return sorted(pictures)


def pictures_below(folder: Path) -> list[str]:
    """List each picture below ``folder``, by its path there, sorted."""
    ignored: Counter[str] = Counter()
    paths = sorted(way + name for way, names in walk(folder, "", ignored) for name in names)
    name_ignored(f"{folder}: ", ignored)
    return paths


def read_folders(folder: Path, anew: bool = False) -> Samples:
    """List class folders, or ``train/``, ``val/`` and ``test/`` that hold some; the same name is the same class."""
    ignored: Counter[str] = Counter()
    sides = find_sides(folder, ignored, anew)
    name_ignored(f"{folder}: ", ignored)
    if not any(level.classes for level in sides.values()):
        raise UserError(nothing_in(folder))
    if merged := [way for level in sides.values() for ways in level.classes.values() if len(ways) > 1 for way in ways]:
        log.info(f"{folder}: {some(merged)} differ in Unicode's form alone, and those that look the same are one class")
    if len(sides) > 1:
        train, *others = (level.classes.keys() for level in sides.values())
        checks = [(others[0] - train, "training")]
        named = {"val": "validation"}
        checks += [(train - other, named.get(side, side)) for other, side in zip(others, [*sides][1:], strict=True)]
        for lopsided, missing in checks:
            if lopsided:
                log.warning(f"{folder}: no {missing} pictures of {some(sorted(lopsided))}")
    classes = sorted(set().union(*(level.classes for level in sides.values())))
    label = {name: index for index, name in enumerate(classes)}
    # With the folders sorted, their slash included, all paths are, since each folder's own are.
    folders = sorted(
        (way, label[name], side, sorted(paths))
        for side, level in sides.items()
        for name, ways in level.classes.items()
        for way, paths in ways.items()
    )
    _, labels, names, paths = zip(*folders, strict=True)
    counts = [len(each) for each in paths]
    split = np.repeat(names, counts) if len(sides) > 1 else None
    return Samples(folder, list(chain(*paths)), np.repeat(np.array(labels, np.int64), counts), classes, split)


def _hint(folder: Path) -> str:
    """Name the folder inside that is meant: a download was unpacked some folders too deep, or only train/ is there."""
    inside = look(folder, Counter()).folders
    for entry in inside:
        if len(look(Path(entry.path), Counter()).folders) >= 2:
            return f"; did you mean --data '{entry.path}'?"
    return _hint(Path(inside[0].path)) if len(inside) == 1 and not inside[0].is_symlink() else ""
