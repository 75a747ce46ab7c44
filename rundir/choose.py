"""Which run a command means: the one that is given, the newest, the next, or the one that is to go on."""

import logging
import re
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from plumage.errors import UserError
from plumage.files import read_object
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir

log = logging.getLogger("plumage")

RUNS = Path("runs")
MOST_NAMED = 10  # of an ablation's runs, in a message
CLOCKS = 60  # seconds by which those of two machines may differ


def open_run(
    stack: ExitStack, path: Path | None, given: dict[str, Any], recipe: Recipe, resume: bool, earlier: Path | None
) -> tuple[RunDir, Recipe]:
    """Return the run to train in, locked until ``stack`` closes, and its recipe: the given one where it is new.

    earlier: the run of this job's attempt before, if torchrun has started it again; it is resumed.
    Raises UserError where the run is not to be resumed, or with other options.
    """
    known = path or earlier
    run = RunDir(known) if known else (resume and _newest_named(recipe.data)) or next_run(RUNS, recipe.data)
    run.check_writable()
    run.check_one()
    stack.enter_context(run.locked())
    if not run.holds_run:
        return run, recipe
    if not resume and earlier != run.path:
        raise UserError(f"--run {run.path} holds a run already: --resume goes on with it, or give another --run")
    if contradictions := run.recipe.contradictions(given):
        raise UserError(
            f"--resume: {', '.join(contradictions)}: a run ends with the recipe it began with, "
            "since its schedule cannot be changed afterwards; start another --run"
        )
    if "labels" in given:
        log.info(f"{run.path}: its labels are those in its split.csv, and --labels is not read again")
    return run, replace(run.recipe, data=recipe.data) if "data" in given else run.recipe


def find_run(path: Path | None) -> RunDir:
    """Return the run in ``path``, or the newest in runs/, which is named. Raises UserError where there is none."""
    run = RunDir(path) if path else _newest_named()
    if run is None:
        raise UserError("there is no run in runs/; train one with python main.py train, or give --run DIR")
    if not run.holds_run:
        if (run.path / "ablation.json").exists():
            runs = [f"--run {shlex.quote(str(each))}" for each in runs_of(run.path)]
            which = " ".join(runs[:MOST_NAMED]) + (" …" if len(runs) > MOST_NAMED else "")
            raise UserError(f"{run.path} is an ablation, and no run itself; give one or several of its runs: {which}")
        raise UserError(f"{run.path} holds no run (there is no recipe.json)")
    return run


def find_runs(paths: Sequence[Path]) -> list[RunDir]:
    """Return the runs in ``paths``, each once, or else the newest, as ``find_run`` does."""
    runs = dict[Path, RunDir]()
    for run in map(find_run, paths):
        if (first := runs.setdefault(run.path.resolve(), run)) is not run:
            log.info(f"--run {run.path}: is given already, as {first.path}, and counts once")
    return list(runs.values()) or [find_run(None)]


def runs_of(folder: Path) -> list[Path]:
    """Return the run in ``folder``, or those of the ablation in it that have begun. UserError where there is none."""
    file = folder / "ablation.json"
    if RunDir(folder).holds_run or not file.exists():
        return [find_run(folder).path]
    planned = read_object(file).get("runs")
    listed = planned if isinstance(planned, list) else []
    names = [str(run.get("run")) for run in listed if isinstance(run, dict)]
    if not names or any(name != Path(name).name or name == ".." for name in names):
        raise UserError(f"{file} is damaged: it names no runs; give the runs' folders themselves")
    begun = [folder / name for name in names if RunDir(folder / name).holds_run]
    if not begun:
        raise UserError(f"{folder}: none of its {len(names)} runs has begun; the same ablate command trains them")
    if waiting := len(names) - len(begun):
        log.info(f"{folder}: {waiting} of its {len(names)} runs have not begun; the same ablate command goes on")
    return begun


def next_run(home: Path, data: str) -> RunDir:
    """Make ``home/<data name>-<n>``, with the next n after all that are there: no other process gets the same."""
    name = Path(data).name.partition(":")[0][:100] or "data"
    taken = (re.fullmatch(rf"{re.escape(name)}-(\d+)", path.name) for path in _folders(home))
    number = max((int(match[1]) for match in taken if match), default=0) + 1
    while True:
        run = RunDir(home / f"{name}-{number}")
        with suppress(FileExistsError):
            run.path.mkdir(parents=True)
            return run
        number += 1


def newest_run(home: Path, data: str | None = None) -> RunDir | None:
    """Return the run below ``home`` that was begun last, of this ``data`` if given."""
    runs = (run for run in map(RunDir, _folders(home)) if run.holds_run and (data is None or run.is_of(data)))
    file = newest(run.path / "recipe.json" for run in runs)
    return RunDir(file.parent) if file else None


def newest(files: Iterable[Path]) -> Path | None:
    """Return the file whose folder was begun last.

    Of folders called <name>-<n> that is the one with the highest n, whatever the times say: a copy, or a clock that was
    wrong, changes them. Of several names it is the one whose file is the latest; a time to come tells nothing.
    """
    last = dict[str, tuple[int, float, Path]]()  # by name
    latest = time.time() + CLOCKS
    for file in files:
        match, changed = re.fullmatch(r"(.+)-(\d+)", file.parent.name, re.DOTALL), file.stat().st_mtime
        name, number = (match[1], int(match[2])) if match else (file.parent.name, 0)
        here = number, changed if changed <= latest else 0.0, file
        last[name] = max(last.get(name, here), here)
    return max(last.values(), key=lambda found: (found[1], found[0]))[2] if last else None


def _newest_named(data: str | None = None) -> RunDir | None:
    if run := newest_run(RUNS, data):
        log.info(f"{run.path}: the newest run" + (f" of {data}" if data else ""))
    return run


def _folders(home: Path) -> Iterator[Path]:
    return (path for path in (home.iterdir() if home.is_dir() else ()) if path.is_dir())
