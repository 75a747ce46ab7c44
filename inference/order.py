"""The rows that someone else asks for: a list of pictures, or a sample submission, whose header is taken over."""

import csv
import logging
from collections import Counter
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from plumage.errors import UserError
from plumage.files import check_regular
from plumage.inference.table import Table
from plumage.names import composed
from plumage.tables import plain, text_of

log = logging.getLogger("plumage")


class Order(NamedTuple):
    """The names of pictures, line by line, and the header above them, or nothing where there is none."""

    names: list[str]
    header: list[str]


def arrange(table: Table, paths: list[str], file: Path | None, takes_header: bool = True) -> tuple[Table, list[str]]:
    """Return ``paths`` in the order of the rows: their own, or that of ``file``, a list or a sample submission.

    With takes_header, the table gets that file's columns. Raises UserError where two pictures would have the same name,
    where ``file`` names others, or where it has columns that the table has not.
    """
    if table.identity == "path" and file is None:
        return table, paths
    by_name: dict[str, str] = {}
    for path in paths:
        name = table.name(path)
        if by_name.setdefault(name, path) != path:
            raise UserError(f"--id {table.identity}: {by_name[name]} and {path} are both {name!r}; take --id path")
    if file is None:
        return table, paths
    known = AnyForm({composed(name): path for name, path in by_name.items()} | by_name)
    wanted, header = read_order(file, known, table.columns[0])
    if missing := [name for name in wanted if name not in known]:
        listed = ", ".join(map(repr, missing[:3])) + ", …" * (len(missing) > 3)
        count = f"{len(missing)} of its {len(wanted)} pictures"
        raise UserError(f"--order {file}: by --id {table.identity}, {count} are missing from the inputs: {listed}")
    if others := len(by_name) - len(wanted):
        log.info(f"--order {file}: leaves out {others} pictures that it does not name")
    asked = {known[name]: name for name in wanted}
    if twice := [name for name in wanted if asked[known[name]] != name]:
        raise UserError(f"--order {file}: names {twice[0]!r} twice; leave each there once")
    table = under(table, file, header) if takes_header and header else table
    return replace(table, asked=asked), list(asked)


class AnyForm(dict[str, str]):
    """Texts by name; each is found in any of Unicode's forms of its name, if it is there in the composed one."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or super().__contains__(composed(str(name)))

    def __missing__(self, name: str) -> str:
        return dict.get(self, composed(name)) or dict.__getitem__(self, name)


def under(table: Table, file: Path, header: list[str]) -> Table:
    """Return a table of the columns in ``header``: the picture; its label and the probability; those of classes."""
    picture, *others = header
    if not others:
        return replace(table, columns=(picture, *table.columns[1:]))
    number = {composed(name): index for index, name in enumerate(table.classes)}
    of_classes = [(name, number[composed(name)]) for name in others if composed(name) in number]
    if len(of_classes) == len(others) and not table.probabilities:
        raise UserError(f"--order {file}: its columns are classes; add --probabilities, or name others by --columns")
    others = [name for name in others if composed(name) not in number] if table.probabilities else others
    shown = of_classes if table.probabilities and of_classes else None
    ordered = replace(table, columns=(picture, *others[:2]), shown=shown)
    written = [*ordered.header, *(name for name, _ in ordered.of_classes)]
    if written[: len(header)] != header:
        would = ",".join(written)
        raise UserError(f"--order {file}: its columns would come out as {would}; name those to write by --columns")
    if shown and (lacks := len(table.classes) - len(shown)):
        log.info(f"--order {file}: has no columns for {lacks} classes, whose probabilities are left out")
    return ordered


def read_order(file: Path, known: Container[str], column: str) -> Order:
    """Return the pictures that ``file`` names, line by line: the whole line if it is in ``known``, else its first cell.

    A cell that is not in ``known`` counts as what it was before ``row_writer`` wrote it. The first line is a header if
    it names no picture and has several columns, or if it is ``column``.
    """
    try:
        check_regular(file)
        lines = [line for line in text_of(file.read_bytes()).replace("\r\n", "\n").split("\n") if line.strip()]
        cells = [line if line in known else next(csv.reader([line]))[0] for line in lines]
        names = [cell if cell in known else plain(cell) for cell in cells]
        header = next(csv.reader(lines[:1]), [])
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"--order {file}: cannot be read: {error}") from error
    if lines and names[0] not in known and (len(header) > 1 or cells[0] == column):
        names = names[1:]
    else:
        header = []
    if not names:
        raise UserError(f"--order {file}: names no pictures; give a list of them, or a sample submission")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"--order {file}: names {twice[0]!r} twice; leave each there once")
    return Order(names, [plain(cell) for cell in header])
