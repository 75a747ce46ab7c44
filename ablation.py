"""Ablations: every combination of some options' values, once for each seed, and what each one changes."""

import gc
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from plumage.data.store import Cache
from plumage.engine.prepare import list_labelled, load_teacher, load_weights
from plumage.engine.signals import StopSignals
from plumage.engine.train import train
from plumage.errors import Diverged, Stopped, UserError, visible
from plumage.files import read_object, write_json
from plumage.hardware.device import Machine
from plumage.recipe import Recipe, option_name
from plumage.report.statistics import difference_over_seeds
from plumage.rundir.choose import newest, next_run
from plumage.rundir.folder import RunDir
from plumage.tables import write_table

log = logging.getLogger("plumage")


@dataclass(frozen=True)
class Trial:
    """One training: the varied options' ``values`` as they were given, and the recipe that they make with its seed.

    All trials of one seed have the same split, which is drawn by it, unless one of the options on data is varied.
    """

    values: dict[str, Any]
    recipe: Recipe

    @property
    def combination(self) -> str:
        return title(self.values)

    @property
    def name(self) -> str:
        """Of the run's folder, safe on every disk: what had to be changed or cut for that is told apart by a hash."""
        pairs = ((option_name(name)[2:], re.sub(r"[^a-z0-9.+-]+", "-", show(v))) for name, v in self.values.items())
        safe = ",".join(f"{name}={value}" for name, value in pairs)[:150]
        if safe != self.combination:
            safe += "-" + sha256(repr(self.values).encode()).hexdigest()[:8]
        return f"{safe},seed={self.recipe.seed}"


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: with ``exit_code`` 0, or for the reason ``error``."""

    trial: Trial
    run: RunDir
    exit_code: int = 0
    error: str = ""


def title(values: Mapping[str, Any]) -> str:
    return ",".join(f"{option_name(name)[2:]}={show(value)}" for name, value in values.items())


def show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return visible(str(value))


def plan(given: Mapping[str, Any], varied: Sequence[tuple[str, list[Any]]], seeds: Sequence[int] | None) -> list[Trial]:
    """Return the trials, seed by seed, with the options ``given`` by hand. UserError for what cannot be trained."""
    names = [name for name, _ in varied]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--vary {option_name(name)[2:]}: is given twice; put all of its values into one")
        if name in given:
            raise UserError(f"--vary: {option_name(name)} is given by hand too; leave one of them out")
    if seeds and "seed" in given:
        raise UserError("--seeds: --seed is given too; leave one of them out")
    trials: dict[Recipe, Trial] = {}
    for seed in seeds or [given.get("seed", Recipe.seed)]:
        for combination in product(*(values for _, values in varied)):
            values = dict(zip(names, combination, strict=True))
            try:
                trial = Trial(values, Recipe.create({**given, **values, "seed": seed}))
            except UserError as error:
                raise UserError(f"--vary {title(values)} --seeds {seed}: {error}") from error
            if same := trials.get(trial.recipe):
                raise UserError(f"--vary, --seeds: {trial.name} would train the same as {same.name}; take one out")
            trials[trial.recipe] = trial
    return list(trials.values())


def find_folder(home: Path, trials: list[Trial]) -> Path:
    """Where these very trials were begun last below ``home``, else a new ``home/ablation-<data name>-<n>``."""
    files = home.glob("ablation-*/ablation.json")
    if same := newest(file for file in files if begun(file.parent) == description(trials)):
        return same.parent
    return next_run(home, f"ablation-{Path(trials[0].recipe.data).name}").path


def description(trials: list[Trial]) -> dict[str, Any]:
    """Return what ablation.json holds: the options varied, and each run's recipe, in order."""
    return {
        "vary": list(trials[0].values),
        "runs": [{"run": trial.name, "values": trial.values, "recipe": asdict(trial.recipe)} for trial in trials],
    }


def begun(folder: Path) -> dict[str, Any]:
    """Return what ``folder``'s ablation.json holds; nothing where there is none, or a damaged one."""
    with suppress(UserError):
        return read_object(folder / "ablation.json")
    return {}


def ablate(
    trials: list[Trial], folder: Path, machine: Machine, cache: Cache, signals: StopSignals, tensorboard: bool = False
) -> list[Outcome]:
    """Train each of ``trials`` into its own run below ``folder``, or go on with it; one that fails stops no other.

    Writes ablation.json and ablation.csv beside the runs. Raises Stopped, with everything saved.
    """
    pairs = [(trial, RunDir(folder / trial.name)) for trial in trials]
    try:
        check(pairs, folder, cache)
    finally:
        with suppress(OSError):
            folder.rmdir()  # if nothing came into it
    with RunDir(folder).locked():
        write_json(folder / "ablation.json", description(trials))
        outcomes = []
        for number, (trial, run) in enumerate(pairs, 1):
            log.info(f"[{number}/{len(trials)}] {run.path}")
            outcomes.append(train_one(trial, run, machine, cache, signals, tensorboard))
        write_results(outcomes, folder / "ablation.csv")
    return outcomes


def check(pairs: list[tuple[Trial, RunDir]], folder: Path, cache: Cache) -> None:
    """Raise UserError, before any training, where ``folder``, the pictures or a file of weights will not do."""
    if RunDir(folder).holds_run:
        raise UserError(f"--run {folder}: is a run itself; give the folder that is to hold the ablation's runs")
    others: set[str] = set()
    with suppress(TypeError, KeyError):  # it may be of another form
        others = {run["run"] for run in begun(folder)["runs"]} - {trial.name for trial, _ in pairs}
    if others:
        raise UserError(
            f"--run {folder}: holds another ablation, with {min(others)}; give another, or all of its values"
        )
    for trial, run in pairs:
        run.check_writable()
        changes = []
        with suppress(UserError):  # a damaged run fails when its turn comes, and takes no other along
            changes = run.recipe.contradictions(asdict(trial.recipe))
        if changes:
            raise UserError(f"--run {run.path}: was trained with another recipe: {', '.join(changes)}; give another")
    new = [(trial.recipe, run) for trial, run in pairs if not run.holds_run]
    classes: dict[tuple[Any, ...], list[str]] = {}
    for recipe, run in {_inputs(recipe): (recipe, run) for recipe, run in new}.values():
        pictures = _inputs(recipe)[:3]
        if pictures not in classes:
            classes[pictures] = list_labelled(recipe, cache).classes
        load_teacher(recipe, classes[pictures])
        load_weights(recipe, run)


def _inputs(recipe: Recipe) -> tuple[Any, ...]:
    """Return what decides on the pictures that are listed, three values, and what on the networks that are loaded."""
    return recipe.labels, recipe.min_pictures, recipe.group_by, recipe.model, recipe.weights, recipe.teacher


def train_one(
    trial: Trial, run: RunDir, machine: Machine, cache: Cache, signals: StopSignals, tensorboard: bool
) -> Outcome:
    gc.collect()  # the run before is held in circles, and with it the device's memory
    if machine.compile:
        torch.compiler.reset()  # keeps a few networks, and refuses more
    try:
        with run.locked():
            recipe = replace(run.recipe, data=trial.recipe.data) if run.holds_run else trial.recipe
            train(recipe, run, machine, cache, signals, tensorboard=tensorboard)
        return Outcome(trial, run)
    except Stopped as stop:
        raise Stopped(stop.exit_code - 128, "; the same command goes on from here") from None
    except (UserError, Diverged, RuntimeError, OSError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        log.error(f"{trial.name} failed: {reason}")
        return Outcome(trial, run, getattr(error, "exit_code", UserError.exit_code), reason)


def write_results(outcomes: list[Outcome], file: Path) -> None:
    """Write ablation.csv: a line for each run, with its best epoch's numbers and the seconds of all its epochs."""
    numbers = ("epoch", "val_accuracy", "val_loss", "val_nll", "train_accuracy")

    def row(outcome: Outcome) -> tuple[Any, ...]:
        results: list[Any] = [""] * 6
        if not outcome.error:
            history = outcome.run.history
            results = [*(history.best[name] for name in numbers), round(sum(epoch["seconds"] for epoch in history), 3)]
        trial = outcome.trial
        return (trial.name, *map(show, trial.values.values()), trial.recipe.seed, *results, outcome.error)

    columns = ("run", *outcomes[0].trial.values, "seed", "best_epoch", *numbers[1:], "seconds", "error")
    write_table(file, columns, map(row, outcomes))


def table(outcomes: list[Outcome]) -> Iterator[str]:
    """Yield lines: for each combination its accuracy, and how far that lies from the first combination's."""
    accuracies: dict[str, dict[int, float]] = {outcome.trial.combination: {} for outcome in outcomes}
    for outcome in outcomes:
        if not outcome.error:
            accuracy = 100 * outcome.run.history.best["val_accuracy"]
            accuracies[outcome.trial.combination][outcome.trial.recipe.seed] = accuracy
    first, *_ = accuracies.values()
    width = max(map(len, accuracies))
    yield "Validation accuracy of the best epoch: mean ± standard deviation over n seeds; then the difference to the"
    yield "first line, seed by seed, with the 95 % confidence interval of its mean by Student's t."
    for combination, by_seed in accuracies.items():
        failed = len(outcomes) // len(accuracies) - len(by_seed)
        spread = f" ± {stdev(by_seed.values()):.2f}" if len(by_seed) > 1 else ""
        cells = f"{mean(by_seed.values()):6.2f}{spread} %" if by_seed else "     -"
        line = f"{combination:{width}}  {cells:16}  n = {len(by_seed)}" + (f" ({failed} failed)" if failed else "")
        if by_seed is not first and (gap := difference_over_seeds(by_seed, first)):
            interval = f"{gap.low:+.2f} to {gap.high:+.2f}, n = {gap.n}" if gap.n > 1 else "n = 1: no interval"
            line += f"  {gap.value:+.2f} points ({interval})"
        yield line
