"""The run directory: what is in it, and how to read it back."""

import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plumage.errors import UserError
from plumage.hardware.environment import environment
from plumage.recipe import Recipe

if TYPE_CHECKING:
    from plumage.hardware.device import Machine

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two trainings apart
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("plumage")


class RunDir:
    """The files of one training run below ``path``. It holds a run once recipe.json, written last, is there."""

    def __init__(self, path: Path):
        self.path = path
        self._lock, self.split, self.skipped = path / ".lock", path / "split.csv", path / "skipped.csv"
        self.last, self.previous, self.best = (
            path / "checkpoints" / f"{name}.pt" for name in ("last", "previous", "best")
        )

    @property
    def holds_run(self) -> bool:
        return (self.path / "recipe.json").exists()

    def check_writable(self) -> None:
        """Raises UserError, before any work, where a run cannot begin or go on."""
        above = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise UserError(f"--run {self.path}: {above} is no folder that can be written to; give another")
        if self.holds_run or self._lock.exists():  # files beside a lock are those of a training killed as it began
            return
        for name in ("split.csv", "skipped.csv", "classes.json", "environment.json", "history.jsonl", "checkpoints"):
            if os.path.lexists(self.path / name):
                raise UserError(f"--run {self.path}: holds a {name} but no recipe.json; give another folder")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For this process alone: the lock dies with it. Makes the folder, and takes it away if nothing came into it.

        Raises UserError where another process has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self._lock.open("a") as handle:
            if fcntl:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise UserError(f"--run {self.path}: another training is at work in it; give another") from error
                except OSError as error:
                    log.info(f"{self.path}: no locks here ({error.strerror}); start one training at a time")
            try:
                yield
            finally:
                if list(self.path.iterdir()) == [self._lock]:
                    with suppress(OSError):
                        self._lock.unlink()
                        self.path.rmdir()

    def describe(self, recipe: Recipe, classes: list[str], machine: "Machine") -> None:
        """environment.json, classes.json and recipe.json."""
        self.write_json("environment.json", environment(machine))
        self.write_json("classes.json", classes)
        self.write_json("recipe.json", asdict(recipe))

    @property
    def recipe(self) -> Recipe:
        return Recipe.load(self.path / "recipe.json")

    def is_of(self, data: str) -> bool:
        try:
            return self.recipe.data == data
        except UserError:  # another data set's damaged run is no reason to stop
            return False

    @property
    def classes(self) -> list[str]:
        names = self._read("classes.json")
        named = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not named or len(set(names)) < max(len(names), 1):
            raise UserError(f"{self.path / 'classes.json'} is no list of different class names")
        return names

    @property
    def precision(self) -> str:
        environment = self._read("environment.json")
        return str(environment.get("precision", "auto")) if isinstance(environment, dict) else "auto"

    @property
    def calibration(self) -> dict[str, Any] | None:
        """What ``eval --calibrate`` wrote: temperature, and weights, the fingerprint that it is for; None before."""
        file = self.path / "calibration.json"
        if not file.exists():
            return None
        found = self._read(file.name)
        try:
            sound = bool(0 < found["temperature"] < math.inf) and isinstance(found["weights"], str)
        except (TypeError, KeyError):
            sound = False
        if not sound:
            raise UserError(f"{file} is damaged; delete it, or calibrate again")
        return found

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of history.jsonl, one an epoch. A line that a crash cut short does not count."""
        file = self.path / "history.jsonl"
        try:
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
            rows = [json.loads(line) for line in lines if line.endswith("\n")]
            # By the numbers that each row has to have, which a row that has them not shows here.
            return sorted(rows, key=lambda row: (row["epoch"] + 0.0, row["val_accuracy"] + 0.0))
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise UserError(f"{file} is damaged: {error}") from error

    @property
    def best_epoch(self) -> dict[str, Any]:
        if not (rows := self.history):
            raise UserError(f"{self.path / 'history.jsonl'} has lost its epochs; start another --run")
        return best_of(rows)

    def keep_history(self, epochs: int) -> None:
        """Forget the rows after ``epochs``: those that no checkpoint knows of are written again."""
        rows = "".join(json.dumps(row) + "\n" for row in self.history if row["epoch"] <= epochs)
        replace_file(self.path / "history.jsonl", rows)

    def add_history(self, row: dict[str, Any]) -> None:
        file = self.path / "history.jsonl"
        with named_in_errors(file), file.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")

    def checkpoint(self, which: str) -> Path:
        """The file that ``--checkpoint`` means: best, last, or a path. UserError where no epoch has made it yet."""
        file = {"best": self.best, "last": self.last}.get(which)
        if file and not file.exists():
            raise UserError(f"{file} does not exist: no epoch is done; train --run {self.path} --resume goes on")
        return file or Path(which)

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{self.path / name} cannot be read: {error}") from error

    def write_json(self, name: str, content: Any) -> None:
        replace_file(self.path / name, json.dumps(content, indent=2) + "\n")

    def write_arrays(self, name: str, **arrays: np.ndarray) -> None:
        draft = self.path / f"{name}.tmp.npz"
        np.savez(draft, **arrays)  # type: ignore[arg-type]
        draft.replace(self.path / name)


def best_of(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The row with the highest validation accuracy; of equals, the earliest."""
    return max(history, key=lambda row: (row["val_accuracy"], -row["epoch"]))


def stopped_early(history: list[dict[str, Any]], patience: int) -> bool:
    """Whether the last ``patience`` epochs were no better than the best; never with a patience of 0."""
    return bool(history) and 0 < patience <= history[-1]["epoch"] - best_of(history)["epoch"]


def is_over(history: list[dict[str, Any]], recipe: Recipe) -> bool:
    """Whether every epoch is done, or early stopping has ended the run."""
    done = bool(history) and history[-1]["epoch"] >= recipe.epochs
    return done or stopped_early(history, recipe.early_stopping)


def replace_file(file: Path, text: str) -> None:
    """Write beside and rename: whoever reads ``file`` sees all of the old or all of the new."""
    temporary = file.with_name(file.name + ".tmp")
    with named_in_errors(file):
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)


@contextmanager
def named_in_errors(file: Path) -> Iterator[None]:
    """That a write fails, as on a full disk, comes without the file's name."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(file)
        raise


def weights_file(weights: str) -> str:
    """The file that a recipe's ``weights`` or ``teacher`` means: of a run's folder, its best checkpoint."""
    path = Path(weights)
    return str(RunDir(path).best) if path.is_absolute() and path.is_dir() else weights
