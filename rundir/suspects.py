"""Pictures that a person should look at: suspects.csv, the most suspicious first, and small pictures of the first."""

import csv
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from plumage.errors import UserError, first_line
from plumage.files import read_arrays, written_whole
from plumage.rundir.folder import RunDir
from plumage.tables import (
    GROUP,
    SPLIT,
    SUSPECTS,
    SUSPECTS_ARCHIVE,
    lines_of_any,
    plain,
    read_table,
    write_table,
    written_labels,
)

log = logging.getLogger("plumage")

PICTURES, SIDE = 24, 224  # how many are shown, and the side of such a picture
NAMES = 2**20  # bytes of their names, at most
MOST_LOGITS = 10**9  # bytes that those of the training pictures may take


class Suspect(NamedTuple):
    """A picture, its label, what it may show instead, how probable that is (None where unknown), and what is wrong."""

    path: str
    label: str
    likely: str
    probability: float | None
    why: str


def trained_are_searched(pictures: int, classes: int) -> bool:
    """Return whether so many training pictures are asked for doubted labels too, or would take too much memory."""
    return 4 * pictures * classes <= MOST_LOGITS


def write_suspects(run: RunDir, suspects: Sequence[Suspect], pixels: np.ndarray) -> None:
    """Write suspects.csv, and suspects.npz with ``pixels``, (m, s, s, 3) uint8, of the first m.

    The archive also keeps the table as it is written, by which one tells what a person has mended in it.
    """
    names = "\0".join(suspect.path for suspect in suspects[: len(pixels)]).encode(errors="surrogateescape")
    archive = run.path / SUSPECTS_ARCHIVE
    archive.unlink(missing_ok=True)  # after a stop here there is none, rather than one of another table
    cells = ((*each[:3], "" if each.probability is None else f"{each.probability:.4f}", each.why) for each in suspects)
    write_table(run.suspects, SUSPECTS, cells)
    names_kept, written = (np.frombuffer(text, np.uint8) for text in (names, run.suspects.read_bytes()))
    with written_whole(archive) as draft, draft.open("wb") as handle:
        np.savez(handle, pixels=pixels, names=names_kept, written=written)


def read_suspects(run: RunDir) -> list[Suspect]:
    """Read suspects.csv, which a person may have mended and a spreadsheet saved; [] where there is none.

    Its columns may be in any order and case; all but path and label may be missing. Raises UserError, naming the wrong
    line.
    """
    file = run.suspects
    if not file.exists():
        return []
    try:
        with lines_of_any(file) as rows:
            first = next(rows, "")
            delimiter = next((mark for mark in ",;\t" if mark in first), ",")
            header = [name.strip().casefold() for name in next(csv.reader([first], delimiter=delimiter), [])]
            if not {"path", "label"} <= {*header}:
                raise UserError(f"{file}, line 1: needs the columns path and label")
            places = [header.index(name) if name in header else None for name in SUSPECTS]
            lines = csv.reader(rows, delimiter=delimiter)
            return [_suspect(row, places, f"{file}, line {lines.line_num + 1}") for row in lines if any(row)]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from error


def _suspect(row: list[str], places: list[int | None], where: str) -> Suspect:
    cells = [plain(row[place]) if place is not None and place < len(row) else "" for place in places]
    path, label, likely, sure, why = cells
    if not path:
        raise UserError(f"{where}: names no picture")
    try:
        probability = float(sure.replace(",", ".")) if sure.strip() else None  # as some countries write it
    except ValueError:
        probability = -1.0
    if probability is not None and not 0 <= probability <= 1:
        raise UserError(f"{where}: the probability is no number from 0 to 1")
    return Suspect(path, label, likely, probability, why)


def read_pictures(run: RunDir, suspects: Sequence[Suspect]) -> dict[int, np.ndarray]:
    """Return row of ``suspects`` → (s, s, 3) uint8, of those of which a picture was kept; {} if none was.

    They are known by name, since a person may have sorted the rows. Raises UserError where the file is damaged.
    """
    file = run.path / SUSPECTS_ARCHIVE
    if not (suspects and file.exists()):
        return {}
    try:
        arrays = read_arrays(file, {"pixels": PICTURES * SIDE**2 * 3, "names": NAMES})
        pixels, names = arrays["pixels"], arrays["names"].tobytes().decode(errors="surrogateescape").split("\0")
        sides = pixels.shape[1:3]
        if (pixels.dtype, pixels.ndim, pixels.shape[3:]) != (np.uint8, 4, (3,)) or sides != sides[::-1] or 0 in sides:
            raise ValueError("it holds no pictures")
        kept = dict(zip(names, pixels, strict=True)) if len(pixels) else {}
    except Exception as error:  # a damaged archive raises nearly anything
        raise UserError(f"{file} is damaged ({' '.join(str(error).split())}): {run.renewal(' --suspects')}") from error
    rows = dict[str, int]()
    for row, suspect in enumerate(suspects):
        rows.setdefault(suspect.path, row)
    return {rows[name]: picture for name, picture in kept.items() if name in rows}


def readable_suspects(run: RunDir) -> tuple[list[Suspect], dict[int, np.ndarray]]:
    """Return what ``read_suspects`` and ``read_pictures`` do; of damaged files nothing, of which it warns."""
    try:
        suspects = read_suspects(run)
        return suspects, read_pictures(run, suspects)
    except UserError as error:
        log.warning(f"{error}; the report is without suspects")
        return [], {}


def is_mended(run: RunDir) -> bool:
    """Return whether a person has changed labels in suspects.csv, which is then to be kept, and warn of it."""
    try:
        suspects = read_suspects(run)
        labels = {path: label for _, (path, label, *_) in read_table(run.split, SPLIT, GROUP)} if suspects else {}
        labels |= written_labels(run.path / SUSPECTS_ARCHIVE) if suspects else {}
        mended = sum(labels.get(each.path) != each.label for each in suspects)
        what = f"{run.suspects}: {mended} of its labels {'is' if mended == 1 else 'are'} mended"
    except UserError as error:
        mended, what = 1, str(error)
    if mended:
        log.warning(f"{what}, so that it is kept as it is; move it away to have it written anew")
    return mended > 0
