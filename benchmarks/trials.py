"""Trains many short runs, several at once, and measures each on pictures that neither trained it nor chose its epoch.

``benchmarks/studies.py`` says which. What a trial gave is kept as a line of JSON in a compressed file, from which its
table can be made again: the recipe, the versions and the hardware, the history, and the measures below.
"""

import csv
import gzip
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from itertools import islice
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import torch
from table import lasting

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from plumage.data.sources import list_samples
from plumage.data.store import Cache
from plumage.engine.evaluate import evaluate
from plumage.engine.signals import StopSignals
from plumage.engine.train import train
from plumage.files import written_whole
from plumage.hardware.cores import usable_cores
from plumage.hardware.device import Machine, choose_device, choose_precision, set_up
from plumage.hardware.environment import environment
from plumage.inference.calibration import confidences, cross_fitted, fitted_temperature
from plumage.inference.rejection import risk_coverage
from plumage.recipe import Recipe, as_given
from plumage.rundir.evaluation import Evaluation
from plumage.rundir.folder import RunDir, weights_file

Row = dict[str, Any]
Options = dict[str, Any]
PLACES = {"data", "labels", "weights", "teacher"}  # of a recipe
VALIDATE = 2  # pictures of each class, only so that there is a history


class Pictures(NamedTuple):
    """Of each class in ``folder``, how many train and test; the share of wrong labels among those that train."""

    folder: Path
    train: int
    test: int
    wrong: float = 0.0


class Trial(NamedTuple):
    """One training with these ``options`` of the recipe; a ``teacher`` among them is the options of its training."""

    pictures: Pictures
    options: Options
    seed: int

    def recipe(self, options: Options, **places: str) -> Recipe:
        given = {name: value for name, value in options.items() if name != "teacher"}
        return Recipe.create({"data": str(self.pictures.folder), "seed": self.seed, **given, **places})

    @property
    def told(self) -> Row:
        """What it trains, in JSON's types: of places only the name, of weights only what is in them."""
        teacher, recipe = self.options.get("teacher"), self.recipe(self.options)
        return {
            "pictures": self.pictures._asdict() | {"folder": self.pictures.folder.name},
            "recipe": without_places(recipe),
            "teacher": without_places(self.recipe(teacher)) if teacher else None,
            "weights": fingerprint(recipe.weights) if Path(recipe.weights).exists() else recipe.weights,
            "machine": [machine().device.type, machine().precision],
        }


def without_places(recipe: Recipe) -> Options:
    return {name: value for name, value in asdict(recipe).items() if name not in PLACES}


@cache
def fingerprint(weights: str) -> str:
    """Return the beginning of the SHA-256 of a run's best checkpoint, or of a file."""
    return hashlib.sha256(Path(weights_file(weights)).read_bytes()).hexdigest()[:16]


def changed(recipe: Options) -> str:
    """Return the options that are not the defaults, as one writes them."""
    defaults = asdict(Recipe())
    return " ".join(as_given(name, value) for name, value in recipe.items() if value != defaults[name])


def key_of(told: Row) -> str:
    """Tell what a row is of. An option that an older one does not know yet has its default."""
    defaults = without_places(Recipe())
    recipes = [each and defaults | each for each in (told["recipe"], told["teacher"])]
    return json.dumps([told["pictures"], told["weights"], told["machine"], *recipes], sort_keys=True)


def results_of(trials: Sequence[Trial], file: Path, work: Path, jobs: int, minutes: float = inf) -> list[Row | None]:
    """Return a row for each of ``trials``, in their order: those that ``file`` has, and the others trained now.

    work: a folder for what is in between. jobs: how many train at once, each on a core of its own. minutes: after so
    many no other is begun; those have no row.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    keys, found = [key_of(trial.told) for trial in trials], {key_of(row): row for row in read_rows(file)}
    missing = {key: trial for key, trial in zip(keys, trials, strict=True) if key not in found}
    if missing:
        write_rows(file, list(found.values()))  # what a stop cut short is gone
    for number, row in enumerate(train_all(missing.values(), work, jobs, minutes), 1):
        found[key_of(row)] = row
        add_row(file, row)
        told = f"{row['pictures']}, {changed(row['recipe'])}: {row['accuracy']:.2%}"
        print(f"[{number}/{len(missing)}] {told} in {row['seconds']:.0f} s", file=sys.stderr, flush=True)
    if missing:
        write_rows(file, list(found.values()))  # line by line it is several times as large
    return [found.get(key) for key in keys]


def train_all(trials: Iterable[Trial], work: Path, jobs: int, minutes: float) -> Iterator[Row]:
    """Yield a row for each trial when it has been measured."""
    begun, waiting, spawn = monotonic(), iter(trials), multiprocessing.get_context("spawn")
    own: Any = spawn.Queue()
    for number in range(jobs):
        own.put(number if jobs > 1 else None)
    with ProcessPoolExecutor(jobs, spawn, take_core, (own,)) as pool:
        running = {pool.submit(train_and_measure, trial, work) for trial in islice(waiting, jobs)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            if monotonic() < begun + 60 * minutes:
                running |= {pool.submit(train_and_measure, trial, work) for trial in islice(waiting, len(done))}
            yield from (task.result() for task in sorted(done, key=lambda task: task.exception() is not None))


def read_rows(file: Path) -> list[Row]:
    """Return the rows of ``file``; of one that was stopped while it wrote, those that are whole."""
    if not file.exists():
        return []
    rows = list[Row]()
    with gzip.open(file, "rt", encoding="utf-8") as lines, suppress(EOFError):
        rows.extend(json.loads(line) for line in lines if line.endswith("\n"))
    return rows


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    """Write them whole, or leave what is there."""
    with written_whole(file) as draft, gzip.open(draft, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


def add_row(file: Path, row: Row) -> None:
    with gzip.open(file, "at", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")


def take_core(own: Any) -> None:
    """Keep this process to a core of its own, and end it with its parent; what it prints is for nobody."""
    Thread(target=end_with_parent, daemon=True).start()
    number = own.get()
    if number is not None:
        torch.set_num_threads(1)
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[number % len(cores)]})
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (for as long as the process lives)


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # one that is killed tells nobody, and those who wait for work from it would wait for ever


@cache
def machine() -> Machine:
    device = choose_device("auto")
    set_up(device, usable_cores())
    return Machine(device, choose_precision("auto", device), compile=False)


def train_and_measure(trial: Trial, work: Path) -> Row:
    """Train a trial, and measure its last epoch on the test pictures."""
    here, store = machine(), Cache(work / "cache", workers=1)
    with TemporaryDirectory(dir=work) as name:
        home, places = Path(name), {"labels": str(Path(name) / "labels.csv")}
        write_labels(home / "labels.csv", trial.pictures, trial.seed)
        if teacher := trial.options.get("teacher"):
            train(trial.recipe(teacher, **places), RunDir(home / "teacher"), here, store, StopSignals())
            places["teacher"] = str(home / "teacher" / "checkpoints" / "last.pt")
        recipe, run = trial.recipe(trial.options, **places), RunDir(home / "run")
        train(recipe, run, here, store, StopSignals())
        evaluation = evaluate(run, here, store, checkpoint="last", split="test")
        history = [dict(row) for row in run.history]
    seconds = {"seconds": sum(row["seconds"] for row in history)}
    return trial.told | measures(evaluation) | seconds | {"environment": lasting(environment(here)), "history": history}


def measures(evaluation: Evaluation) -> dict[str, Any]:
    logits, labels = evaluation.logits, evaluation.labels
    fitted = cross_fitted(logits, labels)
    sure = confidences(logits, labels, fitted_temperature(logits, labels) or 1.0)
    own = {name: getattr(evaluation, name) for name in ("accuracy", "nll", "ece", "logit_gap")}
    own |= {"calibrated_nll": fitted.nll, "calibrated_ece": fitted.ece}
    own |= {"aurc": risk_coverage(sure, evaluation.right).area}
    return own | {"n": len(labels), "classes": logits.shape[1]}


def write_labels(file: Path, pictures: Pictures, seed: int) -> None:
    """Draw by ``seed`` what trains, validates and tests, and write it down as ``--labels`` reads it.

    The test pictures of a seed, and the first to train, are the same however many train. A wrong label is another
    class, each as likely.
    """
    samples, rng = list_samples(pictures.folder), np.random.default_rng(seed)
    classes, rows, wrong = len(samples.classes), [], np.random.default_rng([seed, 1])
    for label in range(classes):
        own = rng.permutation(np.flatnonzero(samples.labels == label))
        assert len(own) >= pictures.test + VALIDATE + pictures.train, "each class has enough pictures"
        test, val, train = np.split(own, [pictures.test, pictures.test + VALIDATE])
        sides = [(test, "test"), (val, "val"), (train[: pictures.train], "train")]
        rows += [[samples.paths[one], label, side] for some, side in sides for one in some]
    learn = [row for row in rows if row[2] == "train"]
    for number in wrong.permutation(len(learn))[: round(pictures.wrong * len(learn))]:
        learn[number][1] = (learn[number][1] + int(wrong.integers(1, classes))) % classes
    with file.open("w", newline="", encoding="utf-8") as handle:
        table = csv.writer(handle)
        table.writerow(("path", "label", "split"))
        table.writerows((path, samples.classes[label], side) for path, label, side in rows)
