"""What a run has reached: the rows of history.jsonl, one an epoch. Each checkpoint carries them too."""

import json
import logging
import math
from pathlib import Path
from typing import Any

from plumage.errors import UserError
from plumage.files import check_regular, flush, named_in_errors, write_text
from plumage.recipe import Recipe

Row = dict[str, Any]

log = logging.getLogger("plumage")

LONGEST = 4096  # bytes of a row
BY = {"accuracy": "val_accuracy", "balanced-accuracy": "val_balanced_accuracy", "loss": "val_loss"}  # by Recipe.best


class History(list[Row]):
    """The rows of ``file``, by epoch, read once, without a line that a crash cut short. UserError if it is damaged.

    by: what makes an epoch the best, as ``Recipe.best`` has it. salvage: leave out what is damaged instead, since a
    checkpoint will bring it back.
    """

    def __init__(self, file: Path, by: str, salvage: bool = False):
        self.file, self.by, self.damaged = file, by, False
        try:
            if exists := file.exists():
                check_regular(file)
            content = file.read_bytes() if exists else b""
            lines = content.decode(errors="replace" if salvage else "strict").splitlines(keepends=True)
        except (OSError, ValueError) as error:
            raise UserError(f"{file} is damaged: {error}") from error
        for line in lines:
            try:
                if line.endswith("\n"):
                    self.append(read_row(line, by))
            except ValueError as error:
                if not salvage:
                    raise UserError(f"{file} is damaged: {error}") from error
                self.damaged = True
        self.sort(key=lambda row: row["epoch"])

    @property
    def text(self) -> str:
        """What the file holds."""
        return "".join(json.dumps(row) + "\n" for row in self)

    @property
    def best(self) -> Row:
        """The row of the epoch that is best by the recipe's ``best``; of equals the lowest loss, then the earliest."""
        if not self:
            raise UserError(f"{self.file} has lost its epochs; start another --run")
        return max(self, key=self._rank)

    def _rank(self, row: Row) -> tuple[float, float, int]:
        # A mean over classes depends in its last digits on which of them are right.
        value = round(row[BY[self.by]], 12)
        # Of runs from before there was a choice, best.pt is the earliest of equals.
        loss = -math.inf if _is_old(row) else row["val_loss"]
        return -value if self.by == "loss" else value, -loss, -row["epoch"]

    @property
    def best_line(self) -> str:
        """What ``train`` ends with, as in "best epoch 3: validation accuracy 88.20%"; and what else chose the epoch."""
        best = self.best
        chosen = {"balanced-accuracy": "balanced accuracy {:.2%}", "loss": "loss {:.4f}"}.get(self.by, "")
        accuracy = f"best epoch {best['epoch']}: validation accuracy {best['val_accuracy']:.2%}"
        return f"{accuracy}, {chosen.format(best[BY[self.by]])}" if chosen else accuracy

    def add(self, row: Row) -> None:
        """Add a row, here and in the file, where it stays also after a power cut: its checkpoint comes after it."""
        new = not self.file.exists()
        with named_in_errors(self.file):
            with self.file.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row) + "\n")
            flush(self.file)
            if new:
                flush(self.file.parent)
        self.append(row)

    def keep(self, epochs: int) -> None:
        """Forget the rows after ``epochs``, here and in the file: what no checkpoint knows of is trained again."""
        self[:] = [row for row in self if row["epoch"] <= epochs]
        write_text(self.file, self.text)

    def bring_back(self, saved: list[Row] | None, epochs: int, checkpoint: Path) -> None:
        """Become what a checkpoint after ``epochs`` knows, here and in the file, and say what that changes.

        saved: its rows; None of an old one, which has none, so that the file's own have to do.
        """
        before = [row for row in self if row["epoch"] <= epochs]
        if saved is not None:
            if before != saved or self.damaged:
                log.warning(f"{self.file} was damaged: its {len(saved)} epochs are written again from {checkpoint}")
            self[:] = saved
        self.keep(epochs)
        if lost := epochs - len({row["epoch"] for row in self}):
            log.warning(
                f"{self.file} has lost {lost} of {epochs} epochs, which {checkpoint} does not know either: "
                "the best epoch is the best of the others"
            )

    def stopped_early(self, patience: int) -> bool:
        """Return whether the last ``patience`` epochs were no better than the best; never with a patience of 0."""
        return bool(self) and 0 < patience <= self[-1]["epoch"] - self.best["epoch"]

    def is_over(self, recipe: Recipe) -> bool:
        """Return whether every epoch of ``recipe`` is done, or early stopping has ended the run."""
        return bool(self) and (self[-1]["epoch"] >= recipe.epochs or self.stopped_early(recipe.early_stopping))


def _is_old(row: Row) -> bool:
    """Return whether a version wrote the row that always chose by accuracy, and of equals the earliest."""
    return "val_balanced_accuracy" not in row


def read_row(line: str, by: str) -> Row:
    """Return a row, with the numbers that epochs are compared by. Raises ValueError where it lacks them."""
    try:
        row = json.loads(line)
        compared = ["val_accuracy", BY[by], *(() if _is_old(row) else BY.values())]
        if type(row["epoch"]) is int and row["epoch"] > 0 and all(math.isfinite(row[name] + 0.0) for name in compared):
            return dict(row)
    except (TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"a row is none: {error}") from error
    raise ValueError(f"a row has no epoch, or what it is compared by is no number: {line[:80]!r}")


def read_rows(content: bytes, epochs: int, by: str) -> list[Row]:
    """Return the rows that a checkpoint after ``epochs`` carries as ``History.text``. Raises ValueError for others."""
    if len(content) > LONGEST * epochs:
        raise ValueError(f"its history is too long for {epochs} epochs")
    rows = [read_row(line, by) for line in content.decode().splitlines()]
    numbers = [row["epoch"] for row in rows]
    if numbers != sorted(set(numbers)) or not all(number <= epochs for number in numbers):
        raise ValueError(f"its history is not of {epochs} epochs")
    return rows
