"""Labels from a file: a CSV or TSV that somebody wrote of the pictures in a folder, or a run's own split.csv."""

import csv
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from posixpath import basename, normpath, splitext
from typing import NamedTuple

import numpy as np

from plumage.data.layout import side_of
from plumage.data.mended import mended_labels
from plumage.data.samples import Samples, some
from plumage.data.sources import pictures_below
from plumage.errors import UserError, first_line
from plumage.files import is_below
from plumage.names import composed, finder
from plumage.tables import FOLDS, GROUP, SPLIT, SUSPECTS_ARCHIVE, lines_of_any, plain, written_labels

log = logging.getLogger("plumage")

# What the columns may be called, the best first: spaces, low lines and case do not count.
NAMES = {
    "picture": ("path", "file", "filename", "image", "image_path", "image_name", "id", "image_id"),
    "label": ("label", "class", "target", "species", "category"),
    "split": ("split",),
    "group": ("group",),
}


class Row(NamedTuple):
    """What the file says of a picture; "" where it says nothing. side: "train", "val", "held out" or "test"."""

    picture: str
    label: str
    side: str
    group: str


def read_labels(file: Path, folder: Path, anew: bool = False) -> Samples:
    """Read what the pictures below ``folder`` show and, where the file says it, their sides and groups.

    anew: what trains and what validates is yet to be drawn, so that test is no validation set.
    Raises UserError where the file is no such table, is of other pictures, or contradicts itself.
    """
    chosen = match(file, folder, *read_rows(file))
    spelled = dict[str, str]()
    for name, _ in Counter(row.label for row in chosen.values()).most_common():  # mended by hand, it may have a space
        spelled.setdefault(composed(name.strip()), name)
    classes = sorted(spelled.values())
    if len(classes) < 2:
        raise UserError(f"--labels {file}: has only one class ({_few(classes)}); two are needed")
    bare = {name: _bare(name).removesuffix(".0") for name in classes}  # a column of numbers with gaps becomes 1.0
    often = Counter(bare.values())
    if doubtful := sorted((name for name in classes if often[bare[name]] > 1), key=bare.__getitem__):
        log.warning(f"--labels {file}: {_few(doubtful, 4)} are classes of their own; spell alike what is the same")
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[spelled[composed(row.label.strip())]] for row in chosen.values()], np.int64)
    split = sides(file, chosen, anew)
    for side in ("train", "val") if split is not None and "train" in split and not anew else ():
        if lacking := [classes[label] for label in np.setdiff1d(labels, labels[split == side])]:
            log.warning(f"--labels {file}: no {side} pictures of {_few(lacking)}")
    groups = np.array([row.group for row in chosen.values()], object)
    return Samples(folder, list(chosen), labels, classes, split, groups if (groups != "").any() else None)


def match(file: Path, folder: Path, rows: list[Row], own: bool) -> dict[str, Row]:
    """Return path → row of each picture, sorted by path. UserError where too many are not there, or rows disagree."""
    where = f"--labels {file}"
    listed = pictures_below(folder)
    find = picture_finder(folder, listed, own)
    missing, ambiguous, again, chosen = list[str](), list[str](), list[str](), dict[str, Row]()
    at_odds = dict[str, None]()
    for row in rows:
        path = find(row.picture)
        if not path:
            (missing if path is None else ambiguous).append(row.picture)
        elif (first := chosen.setdefault(path, row)) is not row:
            again.append(path)
            if first[1:] != row[1:]:
                at_odds[path] = None
    if 2 * len(missing) > len(rows):
        problem = f"{len(missing)} of {len(rows)} pictures are not below --data {folder}: {_few(missing)}"
        above = folder.resolve().parent
        meant = picture_finder(above, [], own)(missing[0])
        way_out = f"did you mean --data '{above}'?" if meant else "give their paths below it, or just their names"
        raise UserError(f"{where}: {problem}; {way_out}")
    if ambiguous:
        problem = f"{len(ambiguous)} names are those of several pictures below --data {folder}"
        raise UserError(f"{where}: {problem}: {_few(ambiguous)}; give their paths below it")
    if at_odds:
        problem = f"{len(at_odds)} pictures are there twice, with different labels, splits or groups"
        raise UserError(f"{where}: {problem}: {_few([*at_odds])}; leave one row of each")
    if missing:
        log.warning(f"{where}: {len(missing)} pictures are not below {folder}, and are left out: {_few(missing)}")
    if again:
        log.info(f"{where}: {len(again)} rows say again what another says, and count once: {_few(again)}")
    if others := len(set(listed).difference(chosen)):
        log.info(f"{where}: {others} pictures below {folder} have no row, and are left out")
    return dict(sorted(chosen.items()))


def picture_finder(folder: Path, listed: list[str], own: bool) -> Callable[[str], str | None]:
    """Return a function from a picture's name in a file to its path below ``folder``; None where there is none.

    It is "" where there are several. A picture is named by its path, or by its name, with or without the suffix, and
    in any Unicode form. own: the file is a run's own, where each cell is a path as ``tables.row_writer`` writes it.
    """
    exact, known = set(listed), list[dict[str, str]]()
    keys: list[Callable[[str], str]] = [composed, lambda path: splitext(composed(path))[0]]
    keys += [lambda path: basename(composed(path)), lambda path: splitext(basename(composed(path)))[0]]
    above, find_file = (f"{folder.as_posix()}/", f"{folder.resolve().as_posix()}/"), finder(folder)

    def find(cell: str) -> str | None:
        spellings = list(dict.fromkeys((plain(cell), cell) if own else (cell, plain(cell))))
        if found := next((text for text in spellings if text in exact), None):
            return found
        tidy = [normpath(text.strip().replace("\\", "/")) for text in spellings]
        tidy = [text.removeprefix(above[0]).removeprefix(above[1]) for text in tidy]
        for number, key in enumerate(keys[:1] if own else keys):
            if number == len(known):  # made when there is need: of a million pictures each takes seconds
                known.append(by_key(listed, key))
            for text in tidy:
                if (path := known[number].get(composed(text))) is not None:
                    return path
        # A file that is named counts as a picture whatever its suffix says.
        return next((there for text in tidy if is_below(text) and (there := find_file(text))), None)

    return find


def by_key(paths: list[str], key: Callable[[str], str]) -> dict[str, str]:
    """Return each path by its key; "" where several have the same."""
    found = dict[str, str]()
    for path in paths:
        name = key(path)
        found[name] = "" if name in found else path
    return found


def sides(file: Path, chosen: dict[str, Row], anew: bool) -> np.ndarray | None:
    """Return (n,) "train", "val" or "test"; None where the split is yet to be drawn. UserError where some lack one.

    Of what folds put together, where all have validated, it is "" where it is yet to be drawn.
    """
    split = np.array([row.side for row in chosen.values()])
    split[split == "held out"] = "test" if "val" in split else "val"
    where, there = f"--labels {file}", set(split.tolist())
    if there <= {"train"} or there == {""}:
        return None
    if "" in there:
        lacking = [path for path, row in chosen.items() if not row.side]
        raise UserError(
            f"{where}: {len(lacking)} rows have no split while others have one: {_few(lacking)}; fill it in"
        )
    if there <= {"val", "test"} and file.with_name(FOLDS).exists():  # where all but tests validates, in its fold
        return None if there == {"val"} else np.where(split == "test", "test", "").astype("U5")
    if "train" not in there:
        raise UserError(f"{where}: its column split has no train; give some pictures to train on")
    if "val" not in there and not anew:
        log.info(f"{where}: its column split has no val, so test is the validation set")
        split[split == "test"] = "val"
    return split


def read_rows(file: Path) -> tuple[list[Row], bool]:
    """Return the rows that have a label, and whether the file is as a run writes its split.csv. UserError names it.

    A run's suspects.csv stands for the split.csv beside it, with the labels that a person has mended. It is known by
    its name or by its column likely, whatever else a person or a spreadsheet has done to its columns.
    """
    where = f"--labels {file}"
    header, own, rows = read_any(where, file)
    if file.name != "split.csv" and (file.name.casefold() == "suspects.csv" or "likely" in map(_bare, header)):
        own, rows = True, mended(where, rows, file.with_name("split.csv"))
    if bare := [row.picture for row in rows if not row.label]:
        log.info(f"{where}: {len(bare)} rows have no label, and are left out: {_few(bare)}")
    if len(bare) == len(rows):
        raise UserError(f"{where}: has no row with a label; give a table with a line for each picture")
    foreign = [name for name in {row.label: None for row in rows} if not own and not _is_text(name)]
    if foreign:
        log.warning(f"{where}: is not UTF-8, so that letters of {_few(foreign)} are lost; save it as CSV UTF-8")
    return [row for row in rows if row.label], own


def read_any(where: str, file: Path) -> tuple[list[str], bool, list[Row]]:
    """Return the header of a table, whether it is a run's split.csv, and all rows."""
    try:
        with lines_of_any(file) as lines:
            first = next((line for line in lines if line.strip()), None)
            if first is None:
                raise UserError(f"{where}: is empty; give a table with a line for each picture")
            delimiter = max(",\t;", key=lambda mark: _score(first, mark))
            table = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
            header = next(table)
            columns, own = choose_columns(where, header), header in ([*SPLIT], [*SPLIT, *GROUP])
            return header, own, list(parse(where, table, len(header), columns, own))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{where}: cannot be read ({first_line(error)}); give a CSV or TSV file") from error


def mended(where: str, suspects: list[Row], split: Path) -> list[Row]:
    """Return the rows of a run's split.csv with the labels that were mended in its suspects.csv."""
    if not split.exists():
        what = "only mends the split.csv of its run, as its name or its column likely says, which is not beside it"
        raise UserError(f"{where}: {what}; leave it there, or rename what is a table of its own")
    _, _, rows = read_any(f"--labels {split}", split)
    said, was = ([(plain(row.picture), row.label) for row in of] for of in (suspects, rows))
    labels = mended_labels(where, said, split, was, written_labels(split.with_name(SUSPECTS_ARCHIVE)))
    return [row._replace(label=labels.get(path, row.label)) for row, (path, _) in zip(rows, was, strict=True)]


def parse(where: str, table: Iterator[list[str]], width: int, columns: dict[str, int], own: bool) -> Iterator[Row]:
    """Yield each row that is not blank. own: texts are exact; else Unicode's form and outer spaces do not count."""
    for number, cells in enumerate(table, 2):
        if not any(map(str.strip, cells)):
            continue
        if any(map(str.strip, cells[width:])):
            raise UserError(
                f"{where}, row {number}: has {len(cells)} cells, not {width}; put cells with a delimiter into quotes"
            )
        picture, label, side, group = (
            cells[columns[name]] if columns.get(name, len(cells)) < len(cells) else "" for name in NAMES
        )
        label, group = (plain(text) if own else composed(plain(text).strip()) for text in (label, group))
        known = side_of(side)
        if label and side.strip() and not known:
            raise UserError(f"{where}, row {number}: the split is {_few([side])}; needs train, val or test")
        yield Row(picture, label, known, group)


def choose_columns(where: str, header: list[str]) -> dict[str, int]:
    """Return the place of each of the NAMES that is there. UserError where the picture's or the label's is not."""
    names = list(map(_bare, header))
    known = ((kind, _bare(one)) for kind, wanted in NAMES.items() for one in reversed(wanted))
    columns = {kind: names.index(one) for kind, one in known if one in names}
    if not {"picture", "label"} <= columns.keys():
        needs = (
            f"one for the picture ({', '.join(NAMES['picture'])}) and one for the label ({', '.join(NAMES['label'])})"
        )
        raise UserError(f"{where}: has the columns {_few(header, 8)}; needs {needs}")
    if twice := [header[place] for place in columns.values() if names.count(names[place]) > 1]:
        raise UserError(f"{where}: has the column {_few(twice)} twice; leave one")
    return columns


def _score(line: str, delimiter: str) -> tuple[int, int]:
    """Return how many columns a header has, by this delimiter, that are known, and how many in all."""
    names = list(map(_bare, next(csv.reader([line], delimiter=delimiter))))
    return sum(name == _bare(one) for name in names for wanted in NAMES.values() for one in wanted), len(names)


def _bare(name: str) -> str:
    return "".join(name.split()).replace("_", "").casefold()


def _is_text(name: str) -> bool:
    return name.encode(errors="ignore").decode() == name  # a byte that is no part of UTF-8 is kept as a surrogate


def _few(texts: list[str], most: int = 3) -> str:
    """Join texts of a file for a message: the first few, each cut to what a line can hold."""
    return some([text if len(text) <= 100 else f"{text[:100]}…" for text in texts], most)
