"""CUB-200-2011 by its own text files, and where it is fetched from."""

from pathlib import Path, PurePosixPath

import numpy as np

from plumage.data.cache import FETCHED, MARK
from plumage.data.samples import Samples
from plumage.errors import UserError
from plumage.files import flush, flush_all, is_below

CUB_LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
CUB_URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
CUB_MD5 = "97eceeb196236b17998738112f37df78"


def fetch_cub200(cache: Path, url: str = CUB_URL, md5: str = CUB_MD5) -> Path:
    """Return the folder of CUB-200-2011 in ``cache``; download (1.2 GB), check and unpack it if it is not there."""
    from torchvision.datasets.utils import download_and_extract_archive  # noqa: PLC0415 (slow, rarely needed)

    folder, partial = cache / FETCHED, cache / f"{FETCHED}.partial"
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # An archive that is whole is not fetched again, so a broken attempt costs only what it had not done.
        download_and_extract_archive(url, str(cache), extract_root=str(partial), md5=md5)
        (partial / folder.name / MARK).touch()
        flush_all(partial)
        (partial / folder.name).rename(folder)
        flush(cache)
    except (OSError, EOFError, RuntimeError) as error:
        way_out = "run again, or unpack it and give its folder"
        raise UserError(f"--data cub200: {url} was not fetched ({error}); {way_out}") from error
    return folder


def is_cub(folder: Path) -> bool:
    return all((folder / name).is_file() for name in CUB_LISTS)


def read_cub(folder: Path, anew: bool = False) -> Samples:
    """Read CUB-200-2011 by its text files, with its official split: its test set is the validation set.

    anew: it tests, and what validates is yet to be drawn.
    """
    images, labels, is_train, names = (_cub_list(folder / name) for name in CUB_LISTS)
    classes = sorted(names.values())
    label = {name: index for index, name in enumerate(classes)}
    rows = []
    for key, image in images.items():
        path = PurePosixPath("images", image)
        if not is_below(image):
            raise UserError(f"{folder / 'images.txt'}: {image!r} leaves the data folder")
        try:
            rows.append(
                (str(path), label[names[labels[key]]], "train" if is_train[key] == "1" else "test" if anew else "val")
            )
        except KeyError as error:
            raise UserError(f"{folder}: image {key} has no entry in one of {', '.join(CUB_LISTS[1:])}") from error
    if not rows:
        raise UserError(f"{folder / 'images.txt'} lists no pictures")
    if len({path for path, _, _ in rows}) < len(rows) or len(label) < len(names):
        raise UserError(f"{folder}: images.txt or classes.txt lists a picture or a class twice; leave each there once")
    paths, numbers, split = zip(*sorted(rows), strict=True)
    return Samples(folder, list(paths), np.array(numbers, np.int64), classes, np.array(split))


def _cub_list(path: Path) -> dict[str, str]:
    """Read the lines "id value" of ``path`` as {id: value}."""
    lines = path.read_text("utf-8-sig", "surrogateescape").splitlines()
    pairs = [line.strip().split(maxsplit=1) for line in lines if line.strip()]
    if bad := next((pair for pair in pairs if len(pair) != 2), None):
        raise UserError(f"{path}: '{bad[0]}' is no line of 'id value'")
    if len(values := dict(pairs)) < len(pairs):
        raise UserError(f"{path}: an id is there twice; leave each there once")
    return values
