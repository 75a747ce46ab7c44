"""Read from run directories what a report is made of. A damaged file is a UserError that names it."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from plumage.errors import UserError
from plumage.files import read_object, read_table
from plumage.recipe import Recipe
from plumage.rundir.choose import find_run
from plumage.rundir.evaluation import Evaluation, read_evaluation
from plumage.rundir.history import History

NUMBERS = ("iteration", "lr", "train_loss", "train_accuracy", "val_loss", "val_top5", "val_nll", "seconds")


@dataclass(frozen=True)
class Run:
    """split: (path, class name, "train" or "val"). skipped: (path, reason). evaluation: None before `eval`."""

    path: Path
    recipe: Recipe
    environment: dict[str, Any]
    classes: list[str]
    history: History
    split: list[tuple[str, ...]]
    skipped: list[tuple[str, ...]]
    evaluation: Evaluation | None

    @property
    def name(self) -> str:
        return self.path.absolute().name

    @property
    def best(self) -> dict[str, Any] | None:
        """The best epoch's row of the history, None before the first."""
        return self.history.best if self.history else None

    @property
    def epochs(self) -> int:
        return self.history[-1]["epoch"] if self.history else 0

    @property
    def finished(self) -> bool:
        """Whether every epoch is done, or early stopping has ended it."""
        return self.history.is_over(self.recipe)

    @property
    def command(self) -> str:
        return str(self.environment.get("command", "unknown: environment.json does not say"))

    @property
    def hardware(self) -> str:
        about = self.environment
        return about.get("gpu") or f"{about.get('cpu', 'an unknown CPU')}, threads: {about.get('threads', '?')}"

    def counts(self, side: str) -> np.ndarray:
        """Return (K,) int64: how many pictures of each class are on this side of the split, "train" or "val"."""
        counts = Counter(label for _, label, of in self.split if of == side)
        return np.array([counts[name] for name in self.classes])

    @cached_property
    def validated(self) -> list[tuple[str, ...]]:
        """The rows of ``split`` that were evaluated, in order: two runs that share them are compared in pairs."""
        return [self.split[index] for index in self.evaluation.indices] if self.evaluation else []


def read_run(path: Path) -> Run:
    """Read the run at ``path``. Raises UserError where there is none, or a file of it is damaged."""
    run = find_run(path)
    classes, history = run.classes, run.history
    for row in history:
        if bad := [name for name in NUMBERS if type(row.get(name)) not in (int, float)]:
            raise UserError(f"{path / 'history.jsonl'} is damaged: epoch {row['epoch']} has no {bad[0]}")
    split = [tuple(row) for _, row in read_table(run.split, ("path", "label", "split"))]
    if unknown := {label for _, label, _ in split} - set(classes):
        raise UserError(f"{run.split} is damaged: {unknown.pop()!r} is no class of the run")
    skipped = [tuple(row) for _, row in read_table(run.skipped, ("path", "reason"))]
    evaluation = read_evaluation(run, len(classes), len(split))
    return Run(path, run.recipe, read_object(path / "environment.json"), classes, history, split, skipped, evaluation)
