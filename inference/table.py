"""Predictions as rows, of CSV or of JSON lines, under the names that someone else asks for."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, TextIO

import numpy as np

from plumage.errors import UserError
from plumage.inference.rejection import Threshold
from plumage.tables import row_writer

COLUMNS = ("path", "label", "probability")


@dataclass(frozen=True)
class Table:
    """A row for each picture: its name, its label and the label's probability, then those of the next top_k ranks.

    form: csv or jsonl. columns: the names of these three; one without a name is left out. identity: what names a
    picture, its path, name or stem. label: what names a class, its name or its index. probabilities: whether those of
    classes follow: of all in the order of ``classes``, or those ``shown``, (column's name, class) each. exact: whether
    a CSV too has names exactly. asked: the names that someone else asked for, by path, where they differ. threshold:
    which pictures get no label, of no rank, though the probability of the first.
    """

    classes: list[str]
    form: str = "csv"
    columns: tuple[str, ...] = COLUMNS
    identity: str = "path"
    label: str = "name"
    top_k: int = 1
    probabilities: bool = False
    exact: bool = False
    shown: Sequence[tuple[str, int]] | None = None
    asked: Mapping[str, str] = field(default_factory=dict)
    threshold: Threshold | None = None

    def __post_init__(self) -> None:
        if self.threshold and len(self.columns) == 1:
            raise UserError(f"--reject: there is no column for a label beside {self.columns[0]}; name one by --columns")
        if len(self.columns) == 1 and not self.probabilities:
            raise UserError(f"--columns {self.columns[0]}: names no label; give two names, or --probabilities as well")
        if (twice := Counter(self.columns_written).most_common(1)[0])[1] > 1:
            raise UserError(f"--columns {','.join(self.columns)}: {twice[0]!r} would be there twice; give other names")

    @property
    def header(self) -> list[str]:
        """The columns' names, without the classes. Those of the second rank and below end in their number."""
        ranks = range(2, min(self.top_k, len(self.classes)) + 1)
        return [*self.columns, *(f"{name}_{rank}" for rank in ranks for name in self.columns[1:])]

    @property
    def columns_written(self) -> list[str]:
        """All columns' names, of JSON lines the keys."""
        of_classes = ["probabilities"] if self.form == "jsonl" else [name for name, _ in self.of_classes]
        return [*self.header, *(of_classes if self.probabilities else ())]

    @property
    def of_classes(self) -> list[tuple[str, int]]:
        """(name, class) of each class whose probability is told."""
        shown = [(name, number) for number, name in enumerate(self.classes)] if self.shown is None else self.shown
        return [*shown] if self.probabilities else []

    def name(self, path: str) -> str:
        return self.asked.get(path) or (path if self.identity == "path" else getattr(PurePath(path), self.identity))

    def rejects(self, probabilities: np.ndarray) -> bool:
        """Return whether a picture with these (K,) probabilities gets no label."""
        return self.threshold is not None and self.threshold.rejects(probabilities)

    def row(self, path: str, probabilities: np.ndarray | None) -> list[Any]:
        """Return the values under ``header``. probabilities: (K,), or None where the picture could not be read."""
        values: list[Any] = [self.name(path)]
        if probabilities is None:
            return values + [None] * (len(self.header) - 1)
        rejected = self.rejects(probabilities)
        for rank, label in enumerate(np.argsort(-probabilities, kind="stable")[: self.top_k]):
            name = None if rejected else int(label) if self.label == "index" else self.classes[label]
            sure = None if rejected and rank else rounded(probabilities[label])
            values += (name, sure)[: len(self.columns) - 1]
        return values

    def writer(self, out: TextIO) -> Callable[[str, np.ndarray | None], None]:
        """Return a function that writes a picture's row and takes what ``row`` takes; a CSV gets its header at once.

        JSON has names exactly, a CSV as ``row_writer`` writes them.
        """
        header, shown = self.header, self.of_classes
        write_row = row_writer(out, "\n", self.exact)
        if self.form == "csv":
            write_row(self.columns_written)

        def write(path: str, probabilities: np.ndarray | None) -> None:
            row = self.row(path, probabilities)
            of_classes = [None if probabilities is None else rounded(probabilities[number]) for _, number in shown]
            if self.form == "csv":
                write_row(row + of_classes)
                return
            named = dict(zip(header, row, strict=True))
            if shown:
                named["probabilities"] = {name: each for (name, _), each in zip(shown, of_classes, strict=True)}
            out.write(json.dumps(named) + "\n")

        return write


def rounded(probability: float) -> float:
    """Round to six significant digits, more than any probability is good for."""
    return float(f"{probability:.6g}")
