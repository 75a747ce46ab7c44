"""Trains many short runs, several at once, and measures each on pictures that neither trained it nor chose its epoch.

``benchmarks/studies.py`` says which. What a trial gave is kept as a line of JSON in a compressed file, from which its
table can be made again: the recipe, the versions and the hardware, the history, and the measures below.
"""

import csv
import gzip
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
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from plumage.data.sources import list_samples
from plumage.data.store import Cache
from plumage.engine.evaluate import evaluate
from plumage.engine.signals import StopSignals
from plumage.engine.train import train
from plumage.hardware.cores import usable_cores
from plumage.hardware.device import Machine, choose_device, choose_precision, set_up
from plumage.hardware.environment import environment
from plumage.inference.calibration import confidences, cross_fitted, fitted_temperature
from plumage.inference.rejection import risk_coverage
from plumage.recipe import Recipe
from plumage.rundir.evaluation import Evaluation
from plumage.rundir.folder import RunDir

Row = dict[str, Any]
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
    options: dict[str, Any]
    seed: int

    @property
    def told(self) -> Row:
        """What it trains, in JSON's types. The place of the pictures, or of the weights to start from, is no part."""
        pictures = self.pictures._asdict() | {"folder": self.pictures.folder.name}
        weights = {name: Path(value).name for name, value in self.options.items() if name == "weights"}
        return {"pictures": pictures, "options": self.options | weights, "seed": self.seed}


def key_of(told: Row) -> str:
    return json.dumps([told[name] for name in ("pictures", "options", "seed")], sort_keys=True)


def results_of(trials: Sequence[Trial], file: Path, work: Path, jobs: int, minutes: float = inf) -> list[Row | None]:
    """Return a row for each of ``trials``, in their order: those that ``file`` has, and the others trained now.

    work: a folder for what is in between. jobs: how many train at once, each on a core of its own. minutes: after so
    many no other is begun; those have no row.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    keys, found = [key_of(trial.told) for trial in trials], {key_of(row): row for row in read_rows(file)}
    missing = {key: trial for key, trial in zip(keys, trials, strict=True) if key not in found}
    write_rows(file, list(found.values()), "wt")  # what a stop cut short is gone
    for number, row in enumerate(train_all(missing.values(), work, jobs, minutes), 1):
        found[key_of(row)] = row
        write_rows(file, [row], "at")
        told = f"{row['pictures']}, {row['options']}, seed {row['seed']}: {row['accuracy']:.2%}"
        print(f"[{number}/{len(missing)}] {told} in {row['seconds']:.0f} s", file=sys.stderr, flush=True)
    write_rows(file, list(found.values()), "wt")  # line by line it is several times as large
    return [found.get(key) for key in keys]


def train_all(trials: Iterable[Trial], work: Path, jobs: int, minutes: float) -> Iterator[Row]:
    """Yield a row for each trial when it has been measured."""
    begun, waiting, spawn = monotonic(), iter(trials), multiprocessing.get_context("spawn")
    cores: Any = spawn.Queue()
    for number in range(jobs):
        cores.put(sorted(os.sched_getaffinity(0))[number % usable_cores()] if jobs > 1 else None)
    with ProcessPoolExecutor(jobs, spawn, take_core, (cores,)) as pool:
        running = {pool.submit(train_and_measure, trial, work) for trial in islice(waiting, jobs)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            if monotonic() < begun + 60 * minutes:
                running |= {pool.submit(train_and_measure, trial, work) for trial in islice(waiting, len(done))}
            yield from (task.result() for task in done)


def read_rows(file: Path) -> list[Row]:
    """Return the rows of ``file``; of one that was stopped while it wrote, those that are whole."""
    if not file.exists():
        return []
    rows = list[Row]()
    with gzip.open(file, "rt", encoding="utf-8") as lines, suppress(EOFError):
        rows.extend(json.loads(line) for line in lines if line.endswith("\n"))
    return rows


def write_rows(file: Path, rows: Sequence[Row], mode: str) -> None:
    with gzip.open(file, mode, encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


def take_core(cores: Any) -> None:
    """Keep this process to a core of its own; what it prints is for nobody."""
    if (core := cores.get()) is not None:
        os.sched_setaffinity(0, {core})
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (for as long as the process lives)


@cache
def machine() -> Machine:
    device = choose_device("auto")
    set_up(device, usable_cores())
    return Machine(device, choose_precision("auto", device), compile=False)


def train_and_measure(trial: Trial, work: Path) -> Row:
    """Train a trial, and measure its last epoch on the test pictures."""
    here, store = machine(), Cache(work / "cache", workers=1)
    with TemporaryDirectory(dir=work) as name:
        home, options = Path(name), dict(trial.options)
        write_labels(home / "labels.csv", trial.pictures, trial.seed)
        shared = {"data": str(trial.pictures.folder), "labels": str(home / "labels.csv"), "seed": trial.seed}
        if teacher := options.pop("teacher", None):
            train(Recipe.create(shared | teacher), RunDir(home / "teacher"), here, store, StopSignals())
            options["teacher"] = str(home / "teacher" / "checkpoints" / "last.pt")
        recipe, run = Recipe.create(shared | options), RunDir(home / "run")
        train(recipe, run, here, store, StopSignals())
        evaluation = evaluate(run, here, store, checkpoint="last", split="test")
        history = [dict(row) for row in run.history]
    places = {"data", "labels", "weights", "teacher", "command", "started"}
    about = {"recipe": asdict(recipe), "environment": environment(here)}
    about = {name: {k: v for k, v in each.items() if k not in places} for name, each in about.items()}
    seconds = {"seconds": sum(row["seconds"] for row in history)}
    return trial.told | measures(evaluation) | seconds | about | {"history": history}


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
