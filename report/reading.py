"""Read from run directories what a report is made of. A damaged file is a UserError that names it."""

from array import array
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from plumage.errors import UserError
from plumage.files import read_object
from plumage.inference.calibration import CrossFitted, confidences, cross_fitted, useful_temperature
from plumage.recipe import Recipe
from plumage.rundir.choose import find_run
from plumage.rundir.evaluation import Evaluation, Scores, read_evaluation, read_scores
from plumage.rundir.history import History
from plumage.rundir.suspects import Suspect, readable_suspects
from plumage.tables import GROUP, SIDES, SKIPPED, SPLIT, read_table

NUMBERS = ("iteration", "lr", "train_loss", "train_accuracy", "val_loss", "val_top5", "val_nll", "seconds")


@dataclass(frozen=True)
class Run:
    """What the files of a run hold.

    files, labels, sides: of each row of split.csv its path, its class, (n,) int64, and which of SIDES it is on, (n,)
    int8. skipped: (path, reason). evaluation: None before `eval`; tested: None before `eval --split test`. folds: of
    what several runs validated, put together, these runs; it has no history. missing: the folds that are not among
    them. suspects: the most suspicious first. suspect_pictures: (s, s, 3) uint8 of some of these rows.
    """

    path: Path
    recipe: Recipe
    environment: dict[str, Any]
    classes: list[str]
    history: History
    files: list[str]
    labels: np.ndarray
    sides: np.ndarray
    skipped: list[tuple[str, ...]]
    evaluation: Evaluation | None
    tested: Scores | None
    folds: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    suspects: list[Suspect] = field(default_factory=list)
    suspect_pictures: dict[int, np.ndarray] = field(default_factory=dict)

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
        """Return (K,) int64: how many pictures of each class are on this one of SIDES.

        Of folds put together, those of a missing fold do not validate.
        """
        rows = self.sides == SIDES.index(side)
        if side == "val" and self.folds and self.evaluation:
            rows = self.evaluation.indices
        return np.bincount(self.labels[rows], minlength=len(self.classes))

    @cached_property
    def cross_fitted(self) -> CrossFitted:
        """How good the evaluation's probabilities are, each half divided by the temperature of the other."""
        assert self.evaluation
        return cross_fitted(self.evaluation.logits, self.evaluation.labels)

    @cached_property
    def calibrating(self) -> tuple[float | None, str]:
        """What calibrates the evaluation's logits, or None and why they tell no temperature."""
        if not self.evaluation:
            return None, ""
        return useful_temperature(self.evaluation.logits, self.evaluation.labels, self.cross_fitted)

    @property
    def temperature(self) -> float | None:
        return self.calibrating[0]

    @cached_property
    def confidences(self) -> np.ndarray:
        """(n,) float64, of each picture that was evaluated: how sure its prediction is, as ``rejection`` defines it."""
        assert self.evaluation
        return confidences(self.evaluation.logits, self.evaluation.labels, self.temperature or 1.0)

    @cached_property
    def validated(self) -> list[tuple[str, str]]:
        """(path, class name) of what was evaluated, in order: two runs that share them are compared in pairs."""
        rows = self.evaluation.indices if self.evaluation else ()
        return [(self.files[row], self.classes[self.labels[row]]) for row in rows]


def read_run(path: Path) -> Run:
    """Read the run at ``path``. Raises UserError where there is none, or a file of it is damaged."""
    run = find_run(path)
    classes, history = run.classes, run.history
    for row in history:
        if bad := [name for name in NUMBERS if type(row.get(name)) not in (int, float)]:
            raise UserError(f"{path / 'history.jsonl'} is damaged: epoch {row['epoch']} has no {bad[0]}")
    files, labels, sides = read_split(run.split, classes)
    skipped = [tuple(row) for _, row in read_table(run.skipped, SKIPPED)]
    evaluation, environment = read_evaluation(run, len(classes), len(files)), read_object(path / "environment.json")
    tested, suspects = read_scores(run, "test"), readable_suspects(run)
    found = (history, files, labels, sides, skipped, evaluation, tested, run.folds, run.missing_folds, *suspects)
    return Run(path, run.recipe, environment, classes, *found)


def read_split(file: Path, classes: list[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return files, labels and sides as ``Run`` has them: of a million rows, three lists of texts would be much."""
    number = {name: index for index, name in enumerate(classes)}
    files, labels, sides = list[str](), array("q"), array("b")
    for line, (path, name, side, *_) in read_table(file, SPLIT, GROUP):
        if name not in number or side not in SIDES:
            raise UserError(
                f"{file}, line {line}: needs a class of the run, and {', '.join(SIDES[:-1])} or {SIDES[-1]}"
            )
        files.append(path)
        labels.append(number[name])
        sides.append(SIDES.index(side))
    return files, np.array(labels, np.int64), np.array(sides, np.int8)
