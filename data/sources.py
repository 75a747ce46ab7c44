"""``--data`` → Samples: which pictures there are, and what each shows.

Class folders, ``train/`` beside ``val/``, or CUB-200-2011's text files. The built-in birds become class folders.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np

from data.birds import birds_folder, draw_birds, parse_birds
from data.store import Cache, is_below
from errors import UserError

log = logging.getLogger("plumage")

SUFFIXES = {
    ".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"
}  # fmt: skip
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "test")  # the first that is there is the validation set
CUB_LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
CUB_URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
CUB_MD5 = "97eceeb196236b17998738112f37df78"


@dataclass(frozen=True)
class Samples:
    """Labelled pictures: ``root / paths[i]`` shows ``classes[labels[i]]``.

    paths: relative to ``root``, with forward slashes, sorted.
    labels: (n,) int64. classes: the names in label order.
    split: (n,) "train" or "val" where the source has its own split, else None.
    """

    root: Path
    paths: list[str]
    labels: np.ndarray
    classes: list[str]
    split: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: np.ndarray) -> "Samples":
        """The samples of these rows (int64 indices), in their order, over the same classes."""
        paths = [self.paths[row] for row in rows]
        return replace(
            self, paths=paths, labels=self.labels[rows], split=None if self.split is None else self.split[rows]
        )


def locate(data: str, cache: Cache) -> Path:
    """The folder that ``--data`` names: ``birds[:...]`` and ``cub200`` are drawn or fetched into ``cache`` once."""
    birds = data.partition(":")[0] == "birds"
    if birds or data == "cub200":
        if Path(data).is_dir():
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
    samples = read_cub(folder) if all((folder / name).is_file() for name in CUB_LISTS) else read_folders(folder)
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


def fetch_cub200(cache: Path, url: str = CUB_URL, md5: str = CUB_MD5) -> Path:
    """The folder of CUB-200-2011, downloaded (1.2 GB) and unpacked into ``cache`` unless it is there already."""
    from torchvision.datasets.utils import download_and_extract_archive  # noqa: PLC0415 (slow, rarely needed)

    folder, partial = cache / "CUB_200_2011", cache / "CUB_200_2011.partial"
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # An archive that is whole is not fetched again, so a broken attempt costs only what it had not done.
        download_and_extract_archive(url, str(cache), extract_root=str(partial), md5=md5)
        (partial / folder.name).rename(folder)
    except (OSError, EOFError, RuntimeError) as error:
        raise UserError(
            f"--data cub200: {url} was not fetched ({error}); run again, or unpack it and give its folder"
        ) from error
    return folder


def read_folders(folder: Path) -> Samples:
    """Class folders, or ``train/`` and ``val/`` holding class folders. Labels go by name, from one list."""
    ignored: Counter[str] = Counter()
    names = [entry.name for entry in _visible(folder, Counter()) if entry.is_dir()]
    children = {name.lower(): name for name in names}
    train, val = (
        next((children[name] for name in usual if name in children), None) for usual in (TRAIN_NAMES, VAL_NAMES)
    )
    if train is not None and val is not None:
        parts = {"train": train + "/", "val": val + "/"}
        ignored.update(f"{name}/" for name in names if name not in (train, val))
        if val.lower() == "test":
            log.info(f"{folder}: no val/, so {val}/ is the validation set")
    else:
        parts = {"": ""}
    found = {part: list(_class_folders(folder, prefix, ignored)) for part, prefix in parts.items()}
    if ignored:
        log.info(f"{folder}: ignored {some(_counted(ignored), 8)}")
    for part, members in found.items():
        if not members:
            raise UserError(_nothing_in(folder / parts[part]))
    classes = sorted({name for members in found.values() for name, _ in members})
    if len(found) == 2:
        _name_lopsided_classes(folder, *({name for name, _ in members} for members in found.values()))
    label = {name: index for index, name in enumerate(classes)}
    # With the folders sorted, their slash included, all paths are, since each folder's own are.
    folders = sorted(
        (f"{parts[part]}{name}/", label[name], part, paths)
        for part, members in found.items()
        for name, paths in members
    )
    _, labels, sides, paths = zip(*folders, strict=True)
    counts = [len(each) for each in paths]
    split = np.repeat(sides, counts) if len(found) == 2 else None
    return Samples(folder, list(chain(*paths)), np.repeat(np.array(labels, np.int64), counts), classes, split)


def read_cub(folder: Path) -> Samples:
    """CUB-200-2011 by its text files, with its official split (its test set is the validation set)."""
    names = _cub_list(folder / "classes.txt")
    images = _cub_list(folder / "images.txt")
    labels = _cub_list(folder / "image_class_labels.txt")
    is_train = _cub_list(folder / "train_test_split.txt")
    classes = sorted(names.values())
    label = {name: index for index, name in enumerate(classes)}
    rows = []
    for key, image in images.items():
        path = PurePosixPath("images", image)
        if not is_below(image):
            raise UserError(f"{folder / 'images.txt'}: {image!r} leaves the data folder")
        try:
            rows.append((str(path), label[names[labels[key]]], "train" if is_train[key] == "1" else "val"))
        except KeyError as error:
            raise UserError(f"{folder}: image {key} has no entry in one of {', '.join(CUB_LISTS[1:])}") from error
    if not rows:
        raise UserError(f"{folder / 'images.txt'} lists no pictures")
    if len({path for path, _, _ in rows}) < len(rows) or len(label) < len(names):
        raise UserError(f"{folder}: images.txt or classes.txt lists a picture or a class twice; leave each there once")
    return _sorted_samples(folder, rows, classes)


def _sorted_samples(folder: Path, rows: list[tuple[str, int, str]], classes: list[str]) -> Samples:
    paths, labels, split = zip(*sorted(rows), strict=True)
    return Samples(folder, list(paths), np.array(labels, np.int64), classes, np.array(split))


def _cub_list(path: Path) -> dict[str, str]:
    pairs = [
        line.split(maxsplit=1) for line in path.read_text("utf-8-sig", "surrogateescape").splitlines() if line.strip()
    ]
    if bad := next((pair for pair in pairs if len(pair) != 2), None):
        raise UserError(f"{path}: '{bad[0]}' is no line of 'id value'")
    if len({key for key, _ in pairs}) < len(pairs):
        raise UserError(f"{path}: an id is there twice; leave each there once")
    return {key: value.strip() for key, value in pairs}


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


def some(names: Sequence[str], most: int = 5) -> str:
    """``names`` for a message of one line: the first few, what cannot be printed escaped, and how many more."""
    shown = (name if name.isprintable() else repr(name)[1:-1] for name in names[:most])
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")
