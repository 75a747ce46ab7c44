"""Several runs as one, as folds or seeds: the mean of their probabilities, each calibrated by its own temperature."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from plumage.data.dataset import Dataset, reopen
from plumage.data.decode import Square
from plumage.data.samples import some
from plumage.data.store import Cache
from plumage.engine.learnt import tell_learnt
from plumage.engine.prepare import dataset_of
from plumage.errors import UserError
from plumage.hardware.device import Machine
from plumage.inference.predict import Picture, Predictor, load_predictor
from plumage.names import composed
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir
from plumage.rundir.scores import class_scores

log = logging.getLogger("plumage")


@dataclass(frozen=True)
class Member:
    """One of several: its ``predictor``, and of each of the first one's classes, (K,) int64, its number there."""

    predictor: Predictor
    classes: np.ndarray

    def probabilities(self, stored: Tensor) -> np.ndarray:
        """Return (b, K) float64, in the order of the first one's classes, of (b, side, side, 3) uint8."""
        return self.predictor.probabilities(stored)[:, self.classes]


@dataclass(frozen=True)
class Ensemble:
    """Pictures → the mean of the members' probabilities. Each prepares pictures in its own way."""

    members: list[Member]

    def stream(self, pictures: Sequence[Picture]) -> Iterator[np.ndarray | str]:
        """Yield what ``Predictor.stream`` does. Members that prepare pictures in the same way read them once."""
        alike: dict[Any, list[Member]] = {}
        for member in self.members:
            alike.setdefault((member.predictor.square, member.predictor.batch_size), []).append(member)

        def totals(members: list[Member]) -> Iterator[np.ndarray | str]:
            def total(stored: Tensor) -> np.ndarray:
                return np.sum([member.probabilities(stored) for member in members], axis=0)

            return members[0].predictor.stream(pictures, total)

        for rows in zip(*map(totals, alike.values()), strict=True):
            reasons = [row for row in rows if isinstance(row, str)]
            yield reasons[0] if reasons else np.sum(rows, axis=0) / len(self.members)


def load(runs: Sequence[RunDir], machines: Sequence[Machine], checkpoint: str, **how: Any) -> Predictor | Ensemble:
    """Load what predicts as ``runs`` do, each on its own of ``machines``; how: see ``load_predictor``."""
    if len(runs) == 1:
        return load_predictor(runs[0], machines[0], checkpoint, **how)
    return Ensemble(load_members(runs, machines, checkpoint, **how))


def load_members(runs: Sequence[RunDir], machines: Sequence[Machine], checkpoint: str, **how: Any) -> list[Member]:
    """Load each of several ``runs``. Raises UserError where they are not of the same classes."""
    numbers = match_classes(runs)
    if checkpoint not in ("best", "last"):
        raise UserError(f"--checkpoint {checkpoint}: is of one run, and {len(runs)} are given; give best or last")
    log.info(f"the probabilities of {len(runs)} runs are averaged: {some([str(run.path) for run in runs], len(runs))}")
    loaded = [load_predictor(run, each, checkpoint, **how) for run, each in zip(runs, machines, strict=True)]
    return list(map(Member, loaded, numbers))


def match_classes(runs: Sequence[RunDir]) -> list[np.ndarray]:
    """Return, of each run, where the first one's classes are in its own order. UserError where they are others."""
    for run in runs:
        run.check_one()
    first, *others = ([composed(name) for name in run.classes] for run in runs)
    for run, classes in zip(runs[1:], others, strict=True):
        if lacking := sorted({*first} ^ {*classes}):
            raise UserError(
                f"--run {run.path}: has not the classes of {runs[0].path}: {some(lacking)} are of one alone; give runs "
                "of the same classes"
            )
    return [np.array([classes.index(name) for name in first]) for classes in (first, *others)]


def evaluate(
    runs: Sequence[RunDir],
    machines: Sequence[Machine],
    cache: Cache,
    checkpoint: str,
    data: str | None,
    split: str | None,
) -> dict[str, Any]:
    """Return how good the averaged probabilities are, by name; nothing is kept in the runs.

    The pictures are those that the first run's evaluation would take: see ``engine.evaluate``. loss: with the first
    run's label smoothing. Tells of pictures that a run was trained on.
    """
    members = load_members(runs, machines, checkpoint)
    recipe, split = runs[0].recipe, split or ("val" if data is None else "all")
    dataset = dataset_of(runs[0], split, data, cache)
    place = recipe.data if data is None else Recipe.create({**asdict(recipe), "data": data}).data
    seen = [as_prepared(dataset, member.predictor.square, cache) for member in members]
    for run, own in zip(runs, seen, strict=True):
        where = f"--split {split}" if data is None else f"--data {data}"
        tell_learnt(where, run, replace(run.recipe, data=place), own, split)
    labels = dataset.pictures(split)[1]
    total = np.zeros((len(labels), len(runs[0].classes)))
    with tqdm(desc="evaluating", total=len(labels) * len(runs), unit="img", disable=None, leave=False) as bar:
        for member, own in zip(members, seen, strict=True):
            for rows, stored in batches(own, split, member.predictor.batch_size):
                total[rows] += member.probabilities(stored)
                bar.update(len(stored))
    scores = measure(total / len(runs), labels, recipe.smoothing)
    return {"runs": [str(run.path) for run in runs], "split": split, "n": len(labels), **scores}


def told(result: dict[str, Any]) -> Iterator[str]:
    """Yield what `eval` prints of what ``evaluate`` returns."""
    runs, split, n, *_ = result.values()
    yield f"the average of {len(runs)} runs, {some(runs, len(runs))}, {split}, {n} pictures"
    for score, value in [*result.items()][3:]:
        form = ".4f" if score in ("loss", "nll") else ".2%"
        yield f"  {score.replace('_', ' '):17} {value:8{form}}"


def as_prepared(dataset: Dataset, square: Square, cache: Cache) -> Dataset:
    """Return the same pictures as squares of this kind."""
    if dataset.store.square == square:
        return dataset
    return reopen(dataset.samples, square, [path for path, _ in dataset.store.skipped], cache)


def batches(dataset: Dataset, split: str, size: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield the places of at most ``size`` pictures of a split, and these, (b, side, side, 3) uint8."""
    rows, _ = dataset.pictures(split)
    for start in range(0, len(rows), size):
        places = slice(start, start + size)
        yield places, torch.from_numpy(dataset.store.read(rows[places]))


def measure(probabilities: np.ndarray, labels: np.ndarray, smoothing: float) -> dict[str, float]:
    """Return the scores of (n, K) float64 probabilities of (n,) int64 labels, as fractions and nats."""
    n, classes = probabilities.shape
    own = probabilities[np.arange(n), labels][:, None]
    before = np.arange(classes) < labels[:, None]  # of equals the first wins, as it does in argmax
    rank = ((probabilities > own) | (before & (probabilities == own))).sum(axis=1)
    logs = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    nll = -logs[np.arange(n), labels]
    others = -logs.sum(axis=1) - nll  # each of which has smoothing / (K - 1) of the target
    by_class = class_scores(labels, probabilities.argmax(axis=1), classes)
    return {
        "accuracy": float(by_class.right.sum() / n),
        "top5": float(np.mean(rank < 5)),
        "balanced_accuracy": by_class.balanced_accuracy,
        "macro_f1": by_class.macro_f1,
        "loss": float(np.mean((1 - smoothing) * nll + smoothing / (classes - 1) * others)),
        "nll": float(np.mean(nll)),
    }
