"""What a run has reached: the rows of history.jsonl, one an epoch."""

import json
from pathlib import Path
from typing import Any

from plumage.errors import UserError
from plumage.files import named_in_errors, write_text
from plumage.recipe import Recipe


class History(list[dict[str, Any]]):
    """The rows of ``file``, by epoch, read once, without a line that a crash cut short. UserError if it is damaged."""

    def __init__(self, file: Path):
        self.file = file
        try:
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
            rows = [json.loads(line) for line in lines if line.endswith("\n")]
            # By the numbers that each row needs, so that a row without them shows here.
            super().__init__(sorted(rows, key=lambda row: (row["epoch"] + 0.0, row["val_accuracy"] + 0.0)))
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise UserError(f"{file} is damaged: {error}") from error

    @property
    def best(self) -> dict[str, Any]:
        """The row with the highest validation accuracy; of equals, the earliest."""
        if not self:
            raise UserError(f"{self.file} has lost its epochs; start another --run")
        return max(self, key=lambda row: (row["val_accuracy"], -row["epoch"]))

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, here and in the file."""
        with named_in_errors(self.file), self.file.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")
        self.append(row)

    def keep(self, epochs: int) -> None:
        """Forget the rows after ``epochs``, here and in the file: what no checkpoint knows of is trained again."""
        self[:] = [row for row in self if row["epoch"] <= epochs]
        write_text(self.file, "".join(json.dumps(row) + "\n" for row in self))

    def stopped_early(self, patience: int) -> bool:
        """Return whether the last ``patience`` epochs were no better than the best; never with a patience of 0."""
        return bool(self) and 0 < patience <= self[-1]["epoch"] - self.best["epoch"]

    def is_over(self, recipe: Recipe) -> bool:
        """Return whether every epoch of ``recipe`` is done, or early stopping has ended the run."""
        return bool(self) and (self[-1]["epoch"] >= recipe.epochs or self.stopped_early(recipe.early_stopping))
