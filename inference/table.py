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

log = logging.getLogger("plumage")

IDS: dict[str, Callable[[str], str]] = {
    "path": str,
    "name": lambda path: PurePath(path).name,
    "stem": lambda path: PurePath(path).stem,
}


@dataclass(frozen=True)
class Table:
    """A row for each picture: what it is called, its label and that one's probability, then those of the next ranks.

    columns: the names of these three; what has none is left out. identity: path, name or stem. index: labels by number.
    probabilities: those of all classes as well, in the order of ``classes``, behind the rest.
    """

    classes: list[str]
    form: str = "csv"
    columns: tuple[str, ...] = ("path", "label", "probability")
    identity: str = "path"
    index: bool = False
    top_k: int = 1
    probabilities: bool = False

    def __post_init__(self) -> None:
        if len(self.columns) == 1 and not self.probabilities:
            raise UserError(f"--columns {self.columns[0]}: names no label; give two names, or --probabilities as well")
        of_classes = ["probabilities"] if self.form == "jsonl" else self.classes
        names = Counter([*self.header, *(of_classes if self.probabilities else ())])
        if (twice := names.most_common(1)[0])[1] > 1:
            raise UserError(f"--columns {','.join(self.columns)}: {twice[0]!r} would be there twice; give other names")

    @property
    def header(self) -> list[str]:
        """Without the classes. Ranks from the second on are named by their number."""
        ranks = range(2, min(self.top_k, len(self.classes)) + 1)
        return [*self.columns, *(f"{name}_{rank}" for rank in ranks for name in self.columns[1:])]

    def row(self, path: str, probabilities: np.ndarray | None) -> list[Any]:
        """The values under ``header``. probabilities: (K,), or None where the picture could not be read."""
        values: list[Any] = [IDS[self.identity](path)]
        if probabilities is None:
            return values + [None] * (len(self.header) - 1)
        for label in np.argsort(-probabilities, kind="stable")[: self.top_k]:
            name = int(label) if self.index else self.classes[label]
            values += (name, rounded(probabilities[label]))[: len(self.columns) - 1]
        return values

    def writer(self, out: TextIO) -> Callable[[str, np.ndarray | None], None]:
        """A function that writes a picture's row; arguments as of ``row``."""
        header = self.header

        def of_classes(probabilities: np.ndarray | None) -> list[Any]:
            if not self.probabilities:
                return []
            return [None] * len(self.classes) if probabilities is None else [rounded(p) for p in probabilities]

        def write_json(path: str, probabilities: np.ndarray | None) -> None:
            row = dict(zip(header, self.row(path, probabilities), strict=True))
            if self.probabilities:
                row["probabilities"] = dict(zip(self.classes, of_classes(probabilities), strict=True))
            out.write(json.dumps(row) + "\n")

        def write_csv(path: str, probabilities: np.ndarray | None) -> None:
            lines.writerow([*self.row(path, probabilities), *of_classes(probabilities)])

        if self.form == "jsonl":
            return write_json
        lines = csv.writer(out, lineterminator="\n")
        lines.writerow([*header, *(self.classes if self.probabilities else ())])
        return write_csv

    def arrange(self, paths: list[str], order: Path | None) -> list[str]:
        """``paths`` in the order of the rows, which is theirs, or that of the list or sample submission ``order``.

        Raises UserError where two would be called the same, or where ``order`` names others.
        """
        if self.identity == "path" and order is None:
            return paths
        called: dict[str, str] = {}
        for path in paths:
            name = IDS[self.identity](path)
            if called.setdefault(name, path) != path:
                raise UserError(f"--id {self.identity}: {called[name]} and {path} are both {name!r}; take --id path")
        if order is None:
            return paths
        wanted = read_order(order, called, self.columns[0])
        if missing := [name for name in wanted if name not in called]:
            listed = ", ".join(map(repr, missing[:3])) + ", …" * (len(missing) > 3)
            raise UserError(
                f"--order {order}: {len(missing)} of its {len(wanted)} pictures are missing from what was given, "
                f"where pictures go by --id {self.identity}: {listed}"
            )
        if others := len(called) - len(wanted):
            log.info(f"--order {order}: leaves out {others} pictures that it does not name")
        return [called[name] for name in wanted]


def rounded(probability: float) -> float:
    """To six significant digits: more than any of them is good for."""
    return float(f"{probability:.6g}")


def read_order(file: Path, known: Container[str], column: str) -> list[str]:
    """What a plain list's lines name, or the first column of a CSV.

    The first line is a header if it names no picture and has several columns, or is called as the rows' ``column`` is.
    """
    try:
        text = file.read_text("utf-8-sig", "surrogateescape")
        lines = [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
        names = [line if line in known else first_cell(line) for line in lines]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"--order {file}: cannot be read: {error}") from error
    if lines and names[0] not in known and (names[0] != lines[0].strip('"') or names[0] == column):
        names = names[1:]
    if not names:
        raise UserError(f"--order {file}: names no pictures; give a list of them, or a sample submission")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"--order {file}: names {twice[0]!r} twice; leave each there once")
    return names


def first_cell(line: str) -> str:
    return next(iter(next(csv.reader([line]), [])), "")
