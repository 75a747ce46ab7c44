"""Run directories → what a report is made of. Whatever is unsound is one line that names the file."""

import csv
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from plumage.errors import UserError
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir, best_of, is_over

NUMBERS = ("iteration", "lr", "train_loss", "train_accuracy", "val_loss", "val_top5", "val_nll", "seconds")
PICTURES = {"samples": "sample_rows", "thumbnails": "thumbnail_rows"}


@dataclass(frozen=True)
class Evaluation:
    """What `eval` computed on the validation pictures.

    iteration: after which the checkpoint was saved, None where that is not known. ece, logit_gap: over all pictures.
    logits: (n, K) float64. labels: (n,) int64.
    indices: (n,) int64, rows of split.csv. gaps: (n,), each picture's.
    bins: (3, bins), predictions by confidence: how many, its sum, and how many are right.
    pictures: "samples" and "thumbnails" → (m, s, s, 3) uint8 and (m,) the rows of logits that they show.
    """

    accuracy: float
    ece: float
    logit_gap: float
    checkpoint: str
    iteration: int | None
    logits: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    gaps: np.ndarray
    bins: np.ndarray
    pictures: dict[str, tuple[np.ndarray, np.ndarray]]

    @cached_property
    def predictions(self) -> np.ndarray:
        return self.logits.argmax(axis=1)

    @cached_property
    def right(self) -> np.ndarray:
        """(n,) bool."""
        return self.predictions == self.labels


@dataclass(frozen=True)
class Run:
    """split: (path, class name, "train" or "val"). skipped: (path, reason). evaluation: None before `eval`."""

    path: Path
    recipe: Recipe
    environment: dict[str, Any]
    classes: list[str]
    history: list[dict[str, Any]]
    split: list[tuple[str, ...]]
    skipped: list[tuple[str, ...]]
    evaluation: Evaluation | None

    @property
    def name(self) -> str:
        return self.path.absolute().name

    @property
    def best(self) -> dict[str, Any] | None:
        """The best epoch's row of the history."""
        return best_of(self.history) if self.history else None

    @property
    def epochs(self) -> int:
        return self.history[-1]["epoch"] if self.history else 0

    @property
    def finished(self) -> bool:
        """Whether every epoch is done, or early stopping has ended it."""
        return is_over(self.history, self.recipe)

    @property
    def command(self) -> str:
        return str(self.environment.get("command", "unknown: environment.json does not say"))

    @property
    def hardware(self) -> str:
        about = self.environment
        return about.get("gpu") or f"{about.get('cpu', 'an unknown CPU')}, threads: {about.get('threads', '?')}"

    def counts(self, side: str) -> np.ndarray:
        """(K,) int64: how many pictures of each class train, or validate."""
        number = {name: label for label, name in enumerate(self.classes)}
        labels = [number[label] for _, label, of in self.split if of == side]
        return np.bincount(np.array(labels, np.int64), minlength=len(self.classes))

    @cached_property
    def validated(self) -> list[tuple[str, ...]]:
        """The rows of ``split`` that were evaluated, in order: two runs that share them are compared in pairs."""
        return [self.split[index] for index in self.evaluation.indices] if self.evaluation else []


def read_run(path: Path) -> Run:
    """Raises UserError where ``path`` holds no run, or a file of it is damaged."""
    run = RunDir(path)
    if not run.holds_run:
        raise UserError(f"{path} holds no run (there is no recipe.json)")
    classes, history = run.classes, run.history
    for row in history:
        if bad := [name for name in NUMBERS if type(row.get(name)) not in (int, float)]:
            raise UserError(f"{path / 'history.jsonl'} is damaged: epoch {row['epoch']} has no {bad[0]}")
    split = read_table(run.split, ("path", "label", "split"))
    if unknown := {label for _, label, _ in split} - set(classes):
        raise UserError(f"{run.split} is damaged: {unknown.pop()!r} is no class of the run")
    skipped = read_table(run.skipped, ("path", "reason"))
    environment = read_object(path / "environment.json")
    evaluation = read_evaluation(path, len(classes), len(split))
    return Run(path, run.recipe, environment, classes, history, split, skipped, evaluation)


def read_table(file: Path, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as handle:
            head, *rows = (tuple(row) for row in csv.reader(handle))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if head != columns or any(len(row) != len(columns) for row in rows):
        raise UserError(f"{file} is damaged: needs the columns {', '.join(columns)}")
    return rows


def read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: it holds no object")
    return content


def read_evaluation(path: Path, classes: int, pictures: int) -> Evaluation | None:
    """None where eval-val.json or eval-val.npz is not there."""
    file, arrays = path / "eval-val.json", path / "eval-val.npz"
    if not (file.exists() and arrays.exists()):
        return None
    about = read_object(file)
    try:
        with np.load(arrays) as content:
            held = dict(content)
        logits, labels, indices, gaps, bins = (held[name] for name in ("logits", "labels", "indices", "gaps", "bins"))
        n, shown = len(labels), {name: (held[name], held[rows]) for name, rows in PICTURES.items() if name in held}
        sound = n > 0 and logits.shape == (n, classes) and classes > 1 and indices.shape == gaps.shape == (n,)
        sound = sound and bins.ndim == 2 and len(bins) == 3 and bins[0].sum() == n
        sound = sound and all(bool(np.isfinite(numbers).all()) for numbers in (logits, gaps, bins))
        for rows, end in ((labels, classes), (indices, pictures), *((rows, n) for _, rows in shown.values())):
            sound = sound and rows.dtype.kind == "i" and bool(((rows >= 0) & (rows < end)).all())
        for images, rows in shown.values():
            sound = sound and images.dtype == np.uint8 and images.ndim == 4 and len(images) == len(rows)
        if not sound:
            raise ValueError("its arrays do not fit this run")
        accuracy, ece, gap = (float(about[name]) for name in ("accuracy", "ece", "logit_gap"))
        logits, checkpoint, iteration = logits.astype(np.float64), str(about["checkpoint"]), about["iteration"]
        return Evaluation(accuracy, ece, gap, checkpoint, iteration, logits, labels, indices, gaps, bins, shown)
    except Exception as error:  # a damaged archive raises nearly anything
        again = f"python main.py eval --run {path} writes it anew"
        raise UserError(f"{arrays} is damaged or old ({' '.join(str(error).split())}): {again}") from error
