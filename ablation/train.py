"""The trials of an ablation, trained in turn: each into a run of its own, and one that fails stops no other."""

import gc
import logging
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from plumage.ablation.plan import Outcome, Trial, begun, description
from plumage.ablation.table import write_results
from plumage.data.store import Cache
from plumage.engine.prepare import list_labelled, load_teacher, load_weights
from plumage.engine.signals import StopSignals
from plumage.engine.train import train
from plumage.errors import Diverged, Stopped, UserError
from plumage.files import write_json
from plumage.hardware.device import Machine
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir

log = logging.getLogger("plumage")


def train_all(
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
            classes[pictures] = list_classes(recipe, cache, len({trial.recipe.fold for trial, _ in pairs}) > 1)
        load_teacher(recipe, classes[pictures])
        load_weights(recipe, run)


def list_classes(recipe: Recipe, cache: Cache, in_folds: bool) -> list[str]:
    """Return the classes of the pictures; what is wrong with them is told of the option that was given."""
    try:
        return list_labelled(recipe, cache).classes
    except UserError as error:
        one, said = f"--fold {recipe.fold}:", str(error)
        if in_folds and said.startswith(one):
            said = f"--folds {recipe.fold.partition('/')[2]}:{said.removeprefix(one)}"
        raise UserError(said) from error


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
