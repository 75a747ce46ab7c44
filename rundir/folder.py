"""The run directory: what is in it, and how to read it back."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from plumage.errors import UserError, visible
from plumage.files import DRAFTS, flush, is_below, lock, read_json, read_object, remove_abandoned, write_json
from plumage.names import composed, finder
from plumage.recipe import Recipe
from plumage.rundir.history import History
from plumage.tables import FOLDS, GROUP, SPLIT, read_table

log = logging.getLogger("plumage")

LOCK_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)  # Windows lacks it


class RunDir:
    """The files of one training run below ``path``. It holds a run once recipe.json, written last, is there."""

    def __init__(self, path: Path):
        self.path = path
        self._lock, self.split, self.skipped = path / ".lock", path / "split.csv", path / "skipped.csv"
        self.suspects = path / "suspects.csv"
        self.digests = path / "digests.npz"
        self.last, self.previous, self.best = (path / f"checkpoints/{name}.pt" for name in ("last", "previous", "best"))

    @property
    def holds_run(self) -> bool:
        return (self.path / "recipe.json").exists()

    def check_writable(self) -> None:
        """Raise UserError, before any work, where a run cannot begin or go on."""
        above = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise UserError(f"--run {self.path}: {above} is no folder that can be written to; give another")
        if self.holds_run:
            return
        # Those that come before recipe.json are, beside a lock, of a training that was killed as it began.
        early = ("split.csv", "digests.npz", "skipped.csv", "levels.json", "classes.json", "environment.json")
        for name in (*(() if self._lock.exists() else early), "history.jsonl", "checkpoints"):
            if os.path.lexists(self.path / name):
                raise UserError(f"--run {self.path}: holds a {name} but no recipe.json; give another folder")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the run for this process: the lock dies with it. Removes what a killed training left half written.

        Makes the folder, and takes it away if nothing came into it. Raises UserError where another process has it.
        """
        with self._take_lock() as handle:
            try:
                yield
            finally:
                with suppress(OSError):
                    if self._is_lock(handle) and list(self.path.iterdir()) == [self._lock]:
                        self._lock.unlink()
                        self.path.rmdir()

    def _take_lock(self) -> BinaryIO:
        """Open and lock the lock's file: again where a training that wrote nothing takes it and the folder away."""
        for chances in reversed(range(100)):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                handle = os.fdopen(os.open(self._lock, LOCK_FLAGS, 0o666), "ab")
            except (FileNotFoundError, FileExistsError):
                if not chances:
                    raise
                continue
            if self._try_lock(handle):
                return handle
            handle.close()
        raise UserError(f"--run {self.path}: other trainings come and go in it; give another")

    def _try_lock(self, handle: BinaryIO) -> bool:
        """Lock the open file. Returns whether it still has its name: a lock on one that is gone keeps nobody out."""
        try:
            lock(handle.fileno())
        except BlockingIOError as error:
            handle.close()
            raise UserError(f"--run {self.path}: another training is at work in it; give another") from error
        except OSError as error:
            log.info(f"{self.path}: no locks here ({error.strerror}); start one training at a time")
            return True
        if held := self._is_lock(handle):
            self._remove_drafts()
        return held

    def _is_lock(self, handle: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.fstat(handle.fileno()), self._lock.lstat())
        except FileNotFoundError:
            return False

    def _remove_drafts(self) -> None:
        """Remove what was left half written. Only a training writes checkpoints; an evaluation may be at work now."""
        for draft in self.last.parent.glob(DRAFTS):
            with suppress(OSError):
                draft.unlink()
        for folder in (self.path, self.path / "figures"):
            remove_abandoned(folder)

    def describe(self, recipe: Recipe, classes: list[str], environment: dict[str, Any]) -> None:
        """Write environment.json, classes.json and, when all else and the folders are on the disk, recipe.json."""
        self.keep_environment(environment)
        write_json(self.path / "classes.json", classes)
        for folder in self.path.resolve().parents:
            with suppress(OSError):  # one that may not be opened is not one that was made for this run
                flush(folder)
        self.remember(recipe)

    def keep_environment(self, environment: dict[str, Any]) -> None:
        write_json(self.path / "environment.json", environment)

    @property
    def environment(self) -> dict[str, Any]:
        """What environment.json says; nothing where it cannot be read, since a training does not need it."""
        with suppress(UserError):
            return read_object(self.path / "environment.json")
        return {}

    @property
    def recipe(self) -> Recipe:
        return Recipe.load(self.path / "recipe.json")

    def is_of(self, data: str) -> bool:
        """Return whether the run learnt from ``data``, or its pictures are there now, in a folder of the same name."""
        with suppress(UserError):  # another data set's damaged run is no reason to stop
            own, other = Path(self.recipe.data), Path(data)
            if str(own) == data or not own.is_absolute() or composed(own.name) != composed(other.name) or own.exists():
                return str(own) == data
            find = finder(other)
            return all(is_below(path) and find(path) for path, _ in self.listed)
        return False

    @property
    def listed(self) -> list[tuple[str, str]]:
        """Path and side of each row of split.csv, wherever the pictures are. Raises UserError where it is damaged."""
        return [(path, side) for _, (path, _, side, *_) in read_table(self.split, SPLIT, GROUP)]

    def remember(self, recipe: Recipe) -> None:
        """Write recipe.json, whose ``data`` may have moved since. Its time stays that of the run's beginning."""
        file = self.path / "recipe.json"
        begun = file.stat() if file.exists() else None
        write_json(file, asdict(recipe))
        if begun:
            os.utime(file, ns=(begun.st_atime_ns, begun.st_mtime_ns))

    @property
    def classes(self) -> list[str]:
        """The class names in label order. Raises UserError where they cannot be read."""
        names = read_json(self.path / "classes.json")
        named = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not named or len(set(names)) < max(len(names), 1):
            raise UserError(f"{self.path / 'classes.json'} is no list of different class names")
        return names

    def keep_levels(self, levels: tuple[float, float] | None) -> None:
        """Write levels.json: the values that become black and white; or nothing where no picture has over 8 bits."""
        file = self.path / "levels.json"
        if levels:
            write_json(file, dict(zip(("low", "high"), levels, strict=True)))
        else:
            file.unlink(missing_ok=True)  # of a training that was killed as it began

    @property
    def levels(self) -> tuple[float, float] | None:
        """What levels.json says; None where there is none. Raises UserError where it is damaged."""
        file = self.path / "levels.json"
        if not file.exists():
            return None
        kept = read_object(file)
        with suppress(TypeError, KeyError, OverflowError):
            low, high = (kept[name] + 0.0 for name in ("low", "high"))
            if low <= high and math.isfinite(high - low):
                return low, high
        raise UserError(f"{file} is damaged: it needs two numbers, low and high")

    @property
    def precision(self) -> str:
        """The precision of training, or "auto" where environment.json does not say."""
        if "precision" not in (environment := self.environment):
            log.warning(
                f"{self.path / 'environment.json'} does not say in which precision was trained; --precision does"
            )
        return str(environment.get("precision", "auto"))

    @property
    def calibration(self) -> dict[str, Any] | None:
        """What ``calibrate`` wrote: temperature, and weights, the fingerprint that it is for; None before."""
        file = self.path / "calibration.json"
        if not file.exists():
            return None
        calibration = read_object(file)
        with suppress(TypeError, KeyError):
            if 1e-3 < calibration["temperature"] < 1e3 and isinstance(calibration["weights"], str):
                return calibration
        raise UserError(f"{file} is damaged; delete it, or calibrate again")

    @property
    def history(self) -> History:
        """The epochs as the file has them now."""
        by = Recipe.best
        with suppress(UserError):  # there is no recipe yet, or who reads it is told that it is damaged
            by = self.recipe.best
        return History(self.path / "history.jsonl", by)

    def readable_history(self, by: str) -> History:
        """What can be read of them where the file is damaged, since the last checkpoint brings the others back.

        by: the recipe's ``best``, which the first process may not have written yet.
        """
        return History(self.path / "history.jsonl", by, salvage=True)

    @property
    def folds(self) -> list[Path]:
        """The runs whose validation pictures this puts together; none where it is a run. UserError if it is damaged."""
        return [Path(os.path.normpath(self.path / name)) for name in self._of_folds("runs", least=1)]

    @property
    def missing_folds(self) -> list[str]:
        """The names of the folds that are not among ``folds``, though they should be. UserError if it is damaged."""
        return self._of_folds("missing")

    def _of_folds(self, name: str, least: int = 0) -> list[str]:
        file = self.path / FOLDS
        if not file.exists():
            return []
        texts = read_object(file).get(name, [])
        if isinstance(texts, list) and len(texts) >= least and all(isinstance(text, str) for text in texts):
            return texts
        raise UserError(f"{file} is damaged: it needs {name}, a list of texts")

    def renewal(self, options: str = "") -> str:
        """Say what writes anew what `eval` with ``options`` keeps of this run, or `ablate` of folds put together."""
        if (self.path / FOLDS).exists():
            return "the same ablate command writes it anew"
        return f"python main.py eval --run {self.path}{options} writes it anew"

    def check_one(self) -> None:
        """Raise UserError where this is no run of its own."""
        if folds := self.folds:
            some = " ".join(f"--run '{visible(str(path))}'" for path in folds[:10])
            raise UserError(
                f"{self.path}: is what {len(folds)} runs validated, put together, and has no network of its own; give "
                f"one of them, or predict and eval with all: {some}" + (" …" if len(folds) > 10 else "")
            )

    def checkpoint(self, which: str) -> Path:
        """Return the file that ``--checkpoint`` means: best, last, or a path. UserError where no epoch made it yet."""
        self.check_one()
        file = {"best": self.best, "last": self.last}.get(which)
        if file and not file.exists():
            why = "it is lost, try --checkpoint last" if which == "best" and self.last.exists() else "no epoch is done"
            raise UserError(f"{file} does not exist: {why}; train --run {self.path} --resume goes on")
        return file or Path(which)


def weights_file(weights: str) -> str:
    """Return the file that a recipe's ``weights`` or ``teacher`` means: of a run's folder, its best checkpoint."""
    path = Path(weights)
    if not (path.is_absolute() and path.is_dir()):
        return weights
    RunDir(path).check_one()
    return str(RunDir(path).best)


def run_of(weights: str) -> RunDir | None:
    """Return the run that a recipe's ``weights`` or ``teacher`` is of: its folder, or a checkpoint in it, is meant."""
    path = Path(weights)
    places = (path, path.parent, path.parent.parent) if path.is_absolute() else ()
    return next((run for run in map(RunDir, places) if run.holds_run), None)
