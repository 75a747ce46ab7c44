"""Predictions as rows, of CSV or of JSON lines, under the names and in the order that someone else asks for."""

import csv
import json
import logging
from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TextIO

import numpy as np

from plumage.errors import UserError
from plumage.tables import plain, row_writer

log = logging.getLogger("plumage")


@dataclass(frozen=True)
class Table:
    """A row for each picture: its name, its label and the label's probability, then those of the next top_k ranks.

    form: csv or jsonl. columns: the names of these three; one without a name is left out. identity: what names a
    picture, its path, name or stem. label: what names a class, its name or its index. probabilities: whether those of
    all classes follow, in the order of ``classes``. exact: whether a CSV too has names exactly.
    """

    classes: list[str]
    form: str = "csv"
    columns: tuple[str, ...] = ("path", "label", "probability")
    identity: str = "path"
    label: str = "name"
    top_k: int = 1
    probabilities: bool = False
    exact: bool = False

    def __post_init__(self) -> None:
        if len(self.columns) == 1 and not self.probabilities:
            raise UserError(f"--columns {self.columns[0]}: names no label; give two names, or --probabilities as well")
        of_classes = ["probabilities"] if self.form == "jsonl" else self.classes
        names = Counter([*self.header, *(of_classes if self.probabilities else ())])
        if (twice := names.most_common(1)[0])[1] > 1:
            raise UserError(f"--columns {','.join(self.columns)}: {twice[0]!r} would be there twice; give other names")

    @property
    def header(self) -> list[str]:
        """The columns' names, without the classes. Those of the second rank and below end in their number."""
        ranks = range(2, min(self.top_k, len(self.classes)) + 1)
        return [*self.columns, *(f"{name}_{rank}" for rank in ranks for name in self.columns[1:])]

    def name(self, path: str) -> str:
        return path if self.identity == "path" else getattr(PurePath(path), self.identity)

    def row(self, path: str, probabilities: np.ndarray | None) -> list[Any]:
        """Return the values under ``header``. probabilities: (K,), or None where the picture could not be read."""
        values: list[Any] = [self.name(path)]
        if probabilities is None:
            return values + [None] * (len(self.header) - 1)
        for label in np.argsort(-probabilities, kind="stable")[: self.top_k]:
            name = int(label) if self.label == "index" else self.classes[label]
            values += (name, rounded(probabilities[label]))[: len(self.columns) - 1]
        return values

    def writer(self, out: TextIO) -> Callable[[str, np.ndarray | None], None]:
        """Return a function that writes a picture's row and takes what ``row`` takes; a CSV gets its header at once.

        JSON has names exactly, a CSV as ``row_writer`` writes them.
        """
        header, classes = self.header, self.classes if self.probabilities else []
        write_row = row_writer(out, "\n", self.exact)
        if self.form == "csv":
            write_row(header + classes)

        def write(path: str, probabilities: np.ndarray | None) -> None:
            row = self.row(path, probabilities)
            of_classes = [None if probabilities is None else rounded(probabilities[k]) for k in range(len(classes))]
            if self.form == "csv":
                write_row(row + of_classes)
                return
            named = dict(zip(header, row, strict=True))
            if classes:
                named["probabilities"] = dict(zip(classes, of_classes, strict=True))
            out.write(json.dumps(named) + "\n")

        return write

    def arrange(self, paths: list[str], order: Path | None) -> list[str]:
        """Return ``paths`` in the order of the rows: their own, or that of ``order``, a list or a sample submission.

        Raises UserError where two pictures would have the same name, or where ``order`` names others.
        """
        if self.identity == "path" and order is None:
            return paths
        by_name: dict[str, str] = {}
        for path in paths:
            name = self.name(path)
            if by_name.setdefault(name, path) != path:
                raise UserError(f"--id {self.identity}: {by_name[name]} and {path} are both {name!r}; take --id path")
        if order is None:
            return paths
        wanted = read_order(order, by_name, self.columns[0])
        if missing := [name for name in wanted if name not in by_name]:
            listed = ", ".join(map(repr, missing[:3])) + ", …" * (len(missing) > 3)
            count = f"{len(missing)} of its {len(wanted)} pictures"
            raise UserError(f"--order {order}: by --id {self.identity}, {count} are missing from the inputs: {listed}")
        if others := len(by_name) - len(wanted):
            log.info(f"--order {order}: leaves out {others} pictures that it does not name")
        return [by_name[name] for name in wanted]


def rounded(probability: float) -> float:
    """Round to six significant digits, more than any probability is good for."""
    return float(f"{probability:.6g}")


def read_order(file: Path, known: Container[str], column: str) -> list[str]:
    """Return the pictures that ``file`` names, line by line: the whole line if it is in ``known``, else its first cell.

    A cell that is not in ``known`` counts as what it was before ``row_writer`` wrote it. The first line is a header if
    it names no picture and has several columns, or if it is ``column``.
    """
    try:
        lines = [line for line in file.read_text("utf-8-sig", "surrogateescape").split("\n") if line.strip()]
        cells = [line if line in known else next(csv.reader([line]))[0] for line in lines]
        names = [cell if cell in known else plain(cell) for cell in cells]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"--order {file}: cannot be read: {error}") from error
    if lines and names[0] not in known and (cells[0] != lines[0].strip('"') or cells[0] == column):
        names = names[1:]
    if not names:
        raise UserError(f"--order {file}: names no pictures; give a list of them, or a sample submission")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"--order {file}: names {twice[0]!r} twice; leave each there once")
    return names
