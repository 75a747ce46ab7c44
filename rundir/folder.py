"""The run directory: what is in it, and how to read it back."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plumage.errors import UserError
from plumage.files import DRAFTS, read_json, read_object, remove_abandoned, write_json
from plumage.recipe import Recipe
from plumage.rundir.history import History

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
        self.last, self.previous, self.best = (path / f"checkpoints/{name}.pt" for name in ("last", "previous", "best"))

    @property
    def holds_run(self) -> bool:
        return (self.path / "recipe.json").exists()

    def check_writable(self) -> None:
        """Raise UserError, before any work, where a run cannot begin or go on."""
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
        """Keep the run for this process: the lock dies with it. Removes what a killed training left half written.

        Makes the folder, and takes it away if nothing came into it. Raises UserError where another process has it.
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
                else:
                    self._remove_drafts()
            try:
                yield
            finally:
                if list(self.path.iterdir()) == [self._lock]:
                    with suppress(OSError):
                        self._lock.unlink()
                        self.path.rmdir()

    def _remove_drafts(self) -> None:
        """Remove what was left half written. Only a training writes checkpoints; an evaluation may be at work now."""
        for draft in self.last.parent.glob(DRAFTS):
            with suppress(OSError):
                draft.unlink()
        for folder in (self.path, self.path / "figures"):
            remove_abandoned(folder)

    def describe(self, recipe: Recipe, classes: list[str], environment: dict[str, Any]) -> None:
        """Write environment.json, classes.json and recipe.json."""
        write_json(self.path / "environment.json", environment)
        write_json(self.path / "classes.json", classes)
        write_json(self.path / "recipe.json", asdict(recipe))

    @property
    def recipe(self) -> Recipe:
        return Recipe.load(self.path / "recipe.json")

    def is_of(self, data: str) -> bool:
        with suppress(UserError):  # another data set's damaged run is no reason to stop
            return self.recipe.data == data
        return False

    @property
    def classes(self) -> list[str]:
        """The class names in label order. Raises UserError where they cannot be read."""
        names = read_json(self.path / "classes.json")
        named = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not named or len(set(names)) < max(len(names), 1):
            raise UserError(f"{self.path / 'classes.json'} is no list of different class names")
        return names

    @property
    def precision(self) -> str:
        """The precision of training, or "auto" where environment.json does not say."""
        environment = read_json(self.path / "environment.json")
        return str(environment.get("precision", "auto")) if isinstance(environment, dict) else "auto"

    @property
    def calibration(self) -> dict[str, Any] | None:
        """What ``eval --calibrate`` wrote: temperature, and weights, the fingerprint that it is for; None before."""
        file = self.path / "calibration.json"
        if not file.exists():
            return None
        calibration = read_object(file)
        with suppress(TypeError, KeyError):
            if 0 < calibration["temperature"] < math.inf and isinstance(calibration["weights"], str):
                return calibration
        raise UserError(f"{file} is damaged; delete it, or calibrate again")

    @property
    def history(self) -> History:
        """The epochs as the file has them now."""
        return History(self.path / "history.jsonl")

    def checkpoint(self, which: str) -> Path:
        """Return the file that ``--checkpoint`` means: best, last, or a path. UserError where no epoch made it yet."""
        file = {"best": self.best, "last": self.last}.get(which)
        if file and not file.exists():
            raise UserError(f"{file} does not exist: no epoch is done; train --run {self.path} --resume goes on")
        return file or Path(which)


def weights_file(weights: str) -> str:
    """Return the file that a recipe's ``weights`` or ``teacher`` means: of a run's folder, its best checkpoint."""
    path = Path(weights)
    return str(RunDir(path).best) if path.is_absolute() and path.is_dir() else weights
