"""Which run a command means: the one that is given, the newest, the next, or the one that is to go on."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumage.errors import UserError
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir

if TYPE_CHECKING:
    from plumage.hardware.processes import Memory

RUNS = Path("runs")


def open_run(
    held: ExitStack, path: Path | None, given: dict[str, Any], recipe: Recipe, resume: bool, memory: "Memory"
) -> tuple[RunDir, Recipe]:
    """The run to train in, locked while ``held``, and its recipe: the given one where it is new."""
    if known := path or memory.run:
        run = RunDir(known)
    else:
        run = (newest_run(RUNS, recipe.data) if resume else None) or next_run(RUNS, recipe.data)
    run.check_writable()
    held.enter_context(run.locked())
    if run.holds_run:
        recipe = recipe_to_go_on_with(run, given, resume or memory.run == run.path)
    memory.run = run.path
    return run, recipe


def recipe_to_go_on_with(run: RunDir, given: dict[str, Any], resume: bool) -> Recipe:
    """That of ``run``. Raises UserError where it is not to be resumed, or with other options."""
    if not resume:
        raise UserError(f"--run {run.path} holds a run already: --resume goes on with it, or give another --run")
    if contradictions := run.recipe.contradictions(given):
        raise UserError(
            f"--resume: {', '.join(contradictions)}: a run ends with the recipe it began with, "
            "since its schedule cannot be changed afterwards; start another --run"
        )
    return run.recipe


def find_run(run: Path | None) -> RunDir:
    found = RunDir(run) if run else newest_run(RUNS)
    if found is None:
        raise UserError("there is no run in runs/; train one with python main.py train, or give --run DIR")
    if not found.holds_run:
        raise UserError(f"{found.path} holds no run (there is no recipe.json)")
    return found


def next_run(home: Path, data: str) -> RunDir:
    """``home/<data name>-<n>`` with the smallest n above all that are there; made at once, so that no other gets it."""
    name = Path(data).name.partition(":")[0][:100] or "data"
    taken = [
        int(match[1]) for path in _folders(home) if (match := re.fullmatch(re.escape(name) + r"-(\d+)", path.name))
    ]
    number = max(taken, default=0) + 1
    while True:
        run = RunDir(home / f"{name}-{number}")
        try:
            run.path.mkdir(parents=True)
            return run
        except FileExistsError:
            number += 1


def newest_run(home: Path, data: str | None = None) -> RunDir | None:
    """The run below ``home`` that was begun last, of this ``data`` if given."""
    runs = [RunDir(path) for path in _folders(home)]
    runs = [run for run in runs if run.holds_run and (data is None or run.is_of(data))]
    return max(runs, key=lambda run: (run.path / "recipe.json").stat().st_mtime_ns, default=None)


def _folders(home: Path) -> Iterator[Path]:
    return (path for path in (home.iterdir() if home.is_dir() else ()) if path.is_dir())
