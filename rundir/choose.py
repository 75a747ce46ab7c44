"""Which run a command means: the one that is given, the newest, the next, or the one that is to go on."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from plumage.errors import UserError
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir

RUNS = Path("runs")


def open_run(
    stack: ExitStack, path: Path | None, given: dict[str, Any], recipe: Recipe, resume: bool, earlier: Path | None
) -> tuple[RunDir, Recipe]:
    """Return the run to train in, locked until ``stack`` closes, and its recipe: the given one where it is new.

    earlier: the run of this job's attempt before, if torchrun has started it again; it is resumed.
    Raises UserError where the run is not to be resumed, or with other options.
    """
    known = path or earlier
    run = RunDir(known) if known else (resume and newest_run(RUNS, recipe.data)) or next_run(RUNS, recipe.data)
    run.check_writable()
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
    return run, run.recipe


def find_run(path: Path | None) -> RunDir:
    """Return the run in ``path``, or the newest in runs/. Raises UserError where there is none."""
    run = RunDir(path) if path else newest_run(RUNS)
    if run is None:
        raise UserError("there is no run in runs/; train one with python main.py train, or give --run DIR")
    if not run.holds_run:
        raise UserError(f"{run.path} holds no run (there is no recipe.json)")
    return run


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
    return max(runs, key=lambda run: (run.path / "recipe.json").stat().st_mtime_ns, default=None)


def _folders(home: Path) -> Iterator[Path]:
    return (path for path in (home.iterdir() if home.is_dir() else ()) if path.is_dir())
