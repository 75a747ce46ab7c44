"""``--data`` → Samples: which pictures there are, and what each shows.

Class folders, ``train/`` beside ``val/``, or CUB-200-2011. The built-in birds become class folders.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

import plumage.birds
from plumage.birds.folder import birds_folder, draw_birds, parse_birds
from plumage.data.cub import fetch_cub200, is_cub, read_cub
from plumage.data.samples import Samples, some
from plumage.data.store import Cache
from plumage.errors import UserError

log = logging.getLogger("plumage")

SUFFIXES = {
    ".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"
}  # fmt: skip
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "test")  # the first that is there is the validation set
RUN_FILES = ("recipe.json", "classes.json", "split.csv")


def locate(data: str, cache: Cache) -> Path:
    """The folder that ``--data`` names: ``birds[:...]`` and ``cub200`` are drawn or fetched into ``cache`` once."""
    birds = data.partition(":")[0] == "birds"
    if birds or data == "cub200":
        if Path(data).is_dir() and not Path(data).samefile(Path(plumage.birds.__file__).parent):
            log.info(f"--data {data} is the built-in set; for the folder of that name write --data ./{data}")
        if data == "cub200":
            log.info("CUB-200-2011 shares pictures with ImageNet: from ImageNet's weights, its accuracies flatter")
        return built_in_birds(data, cache) if birds else fetch_cub200(cache.folder)
    folder = Path(os.path.expanduser(data))  # noqa: PTH111 (which leaves an unknown ~user as it is)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"--data {data}: {what}; give a folder with a folder of pictures for each class")
    return folder


def list_samples(folder: Path, least_classes: int = 2) -> Samples:
    """Every picture in ``folder``, sorted by path. Raises UserError when there is nothing to learn from."""
    samples = read_cub(folder) if is_cub(folder) else read_folders(folder)
    if len(samples.classes) < least_classes:
        raise UserError(f"--data {folder}: only one class ({samples.classes[0]}); two are needed{_hint(folder)}")
    return samples


def list_pictures(inputs: Iterable[str]) -> list[str]:
    """Paths of all pictures that ``inputs`` name or that lie below the folders among them: each once, sorted.

    As text: of a million paths, that is all that is kept. A file that is named is one whatever its suffix says.
    """
    found, missing, ignored = set[str](), list[str](), Counter[str]()
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            inside = set(_pictures(path, name if name.endswith("/") else f"{name}/", ignored))
            if not inside:
                raise UserError(f"{name} holds no pictures; give another folder, or files")
            found |= inside
        elif path.exists():
            found.add(name)
        else:
            missing.append(name)
    if missing:
        raise UserError(f"no such picture or folder: {some(missing, 3)}")
    if ignored:
        log.info(f"ignored {some(_counted(ignored), 8)}")
    return sorted(found)


def built_in_birds(data: str, cache: Cache) -> Path:
    asked = parse_birds(data)
    folder = cache.folder / birds_folder(asked)
    if not folder.is_dir():
        log.info(f"drawing the birds into {folder} (once)")
        try:
            draw_birds(folder, **asked, workers=cache.workers)
        except OSError as error:
            raise UserError(f"--cache {cache.folder}: cannot be written ({error}); give another folder") from error
    return folder


def read_folders(folder: Path) -> Samples:
    """Class folders, or ``train/`` and ``val/`` holding class folders. Labels go by name, from one list."""
    ignored: Counter[str] = Counter()
    sides = _sides(folder, ignored)
    if ignored:
        log.info(f"{folder}: ignored {some(_counted(ignored), 8)}")
    for prefix, members in sides.values():
        if not members:
            raise UserError(_nothing_in(folder / prefix))
    classes = sorted({name for _, members in sides.values() for name, _ in members})
    if len(sides) == 2:
        _name_lopsided_classes(folder, *({name for name, _ in members} for _, members in sides.values()))
    label = {name: index for index, name in enumerate(classes)}
    # With the folders sorted, their slash included, all paths are, since each folder's own are.
    folders = sorted(
        (f"{prefix}{name}/", label[name], side, paths)
        for side, (prefix, members) in sides.items()
        for name, paths in members
    )
    _, labels, names, paths = zip(*folders, strict=True)
    counts = [len(each) for each in paths]
    split = np.repeat(names, counts) if len(sides) == 2 else None
    return Samples(folder, list(chain(*paths)), np.repeat(np.array(labels, np.int64), counts), classes, split)


def _sides(folder: Path, ignored: Counter[str]) -> dict[str, tuple[str, list[tuple[str, list[str]]]]]:
    """Of train and val, or of "" that is yet to be split: what the paths begin with, and the class folders."""

    def side(prefix: str) -> tuple[str, list[tuple[str, list[str]]]]:
        return prefix, list(_class_folders(folder, prefix, ignored))

    names = [entry.name for entry in _visible(folder, Counter()) if entry.is_dir()]
    children = {name.lower(): name for name in names}
    train, val = (
        next((children[name] for name in usual if name in children), None) for usual in (TRAIN_NAMES, VAL_NAMES)
    )
    if train is None or val is None:
        return {"": side("")}
    ignored.update(f"{name}/" for name in names if name not in (train, val))
    sides = {"train": side(f"{train}/"), "val": side(f"{val}/")}
    if val.lower() == "test":
        learnt, asked = ({name for name, _ in members} for _, members in sides.values())
        if not learnt & asked:  # as in competitions
            log.info(f"{folder}: {val}/ has no folders of {train}/'s classes, so a part of {train}/ validates")
            return {"": sides["train"]}
        log.info(f"{folder}: no val/, so {val}/ is the validation set")
    return sides


def _class_folders(folder: Path, prefix: str, ignored: Counter[str]) -> Iterator[tuple[str, list[str]]]:
    """(class name, sorted relative paths of its pictures) of every class folder that has any."""
    for entry in _visible(folder / prefix, ignored):
        if not entry.is_dir():
            ignored["files outside the class folders"] += 1
        elif paths := sorted(_pictures(Path(entry.path), f"{prefix}{entry.name}/", ignored)):
            yield entry.name, paths
        else:
            ignored[f"the empty class {entry.name}"] += 1


def _pictures(folder: Path, prefix: str, ignored: Counter[str]) -> Iterator[str]:
    """``prefix`` and the way from ``folder`` to each picture below it.

    Follows a link to each folder once: links in circles, or from all folders to all others, come to an end.
    """
    waiting, followed = [(folder, prefix)], {folder.resolve()}
    while waiting:
        here, prefix = waiting.pop()
        if all((here / name).is_file() for name in RUN_FILES):  # a run, whose figures are no pictures to learn from
            ignored[f"the run {here}"] += 1
            continue
        for entry in _visible(here, ignored):
            if entry.is_dir():
                if entry.is_symlink():
                    target, real = Path(entry.path).resolve(), here.resolve()
                    if target in (real, *real.parents) or target in followed:
                        ignored[f"the circular or repeated link {entry.path}"] += 1
                        continue
                    followed.add(target)
                waiting.append((Path(entry.path), f"{prefix}{entry.name}/"))
            elif _is_picture(entry.name):
                yield prefix + entry.name
            else:
                ignored[f"{Path(entry.name).suffix or 'other'} files"] += 1


def _counted(ignored: Counter[str]) -> list[str]:
    return [f"{count} {name}" if count > 1 else name for name, count in ignored.most_common()]


def _is_picture(name: str) -> bool:
    return name[name.rfind(".") :].lower() in SUFFIXES


def _visible(folder: Path, ignored: Counter[str]) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as entries:
            everything = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}") from error
    visible = [entry for entry in everything if not entry.name.startswith(".")]
    if hidden := len(everything) - len(visible):
        ignored["hidden files or folders"] += hidden
    return visible


def _name_lopsided_classes(folder: Path, train: set[str], val: set[str]) -> None:
    for names, missing in ((val - train, "training"), (train - val, "validation")):
        if names:
            log.warning(f"{folder}: no {missing} pictures of {some(sorted(names))}")


def _nothing_in(folder: Path) -> str:
    loose = sum(_is_picture(entry.name) for entry in _visible(folder, Counter()))
    what = f"{loose} pictures but no class folders" if loose else "no pictures"
    return f"--data: {folder} holds {what}; put those of each class into a folder of its own, such as {folder / 'cat'}"


def _hint(folder: Path) -> str:
    """Where a download was unpacked one folder too deep, or only train/ is there, its folder is what the user means."""
    for entry in _visible(folder, Counter()):
        if entry.is_dir() and sum(inner.is_dir() for inner in _visible(Path(entry.path), Counter())) >= 2:
            return f"; did you mean --data '{entry.path}'?"
    return ""
