"""Suspects: pictures whose label a network doubts, that are there under two labels, or on two sides of the split.

A label is doubted where another class is more probable: the more so, the more times as probable it is, which is a
difference of logits, whatever the temperature. Confident learning (Northcutt et al., JAIR 2021) asks also that this
class be as probable as for its own pictures on average: of wrong labels, that passes over a third
(benchmarks/suspects.py).
"""

import logging
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from plumage.data.augment import Transform
from plumage.data.copies import contradictions, first_alike, repeated
from plumage.data.dataset import Dataset, find_twins, recall
from plumage.data.duplicates import connected
from plumage.data.feed import reader
from plumage.data.loader import Pictures, eval_batches
from plumage.data.samples import Samples
from plumage.data.store import Cache
from plumage.data.view import views
from plumage.engine.evaluator import forward
from plumage.engine.prepare import model_of, samples_of, square_of
from plumage.errors import UserError
from plumage.hardware.device import Machine
from plumage.inference.calibration import log_softmax, parts, temperature_for
from plumage.models.weights import fingerprint
from plumage.rundir import suspects as kept
from plumage.rundir.evaluation import Evaluation
from plumage.rundir.folder import RunDir
from plumage.rundir.suspects import Suspect
from plumage.tables import SIDES

log = logging.getLogger("plumage")

# What is wrong with a picture, the worst first. path: the picture that it is like, on this side.
WHY = (
    "copy of {path} under another label",
    "nearly {path} under another label",
    "copy of {path} in {side}",
    "nearly {path} in {side}",
    "doubted",
)
CONTRADICTORY, NEARLY_CONTRADICTORY, COPY, TWIN, DOUBTED, FINE = range(6)


class Findings(NamedTuple):
    """Of each sample, (n,) int64: what is wrong, the sample that it is like, or -1, and a group.

    The group is the same for contradictory samples that look the same, which stay together in the list.
    """

    kind: np.ndarray
    other: np.ndarray
    group: np.ndarray


class Verdicts(NamedTuple):
    """What the network says of each sample, (n,): a class, int64, -1 for none, its probability, nan for unknown.

    margin: (n,) float64, by how many nats another class than the label is more probable; -inf where it was not asked.
    """

    likely: np.ndarray
    probability: np.ndarray
    margin: np.ndarray


def keep_suspects(run: RunDir, evaluation: Evaluation, machine: Machine, cache: Cache) -> int | None:
    """Write a run's suspects.csv and return how many there are; None where a person has mended it, so that it stays.

    evaluation: of the run's validation pictures, which may be all of them, out of fold. Training pictures are asked
    too, but for those of a fold, of which another fold knows better. Test pictures are not: mended by what a network
    says, they would praise it.
    """
    if kept.is_mended(run):
        return None
    recipe = run.recipe
    dataset = recall(samples_of(run, recipe, cache), square_of(recipe, run.levels), run.skipped, cache)
    samples, train = dataset.samples, dataset.indices("train" if recipe.fold == "none" else "none")
    found = find_copies(dataset, recipe.group_duplicates)
    seen, tells = [(evaluation.indices, evaluation.logits)], evaluation.class_scores.tells_classes
    if not tells:
        log.warning(f"{run.path}: is, over classes, no better than a guess, so that its suspects are copies alone")
    elif kept.trained_are_searched(len(train), len(samples.classes)):
        seen += [(train, compute_logits(run, evaluation, dataset, train, machine))] if len(train) else []
    else:
        way_out = "ablate --folds finds them"
        log.warning(f"{run.path}: too many training pictures to look for doubted labels among them; {way_out}")
    # Of contradictory pictures, the other's label is the likely one.
    asked = np.where(found.kind <= NEARLY_CONTRADICTORY, samples.labels[found.other], -1)
    said = ask(seen, samples.labels, asked, temperature_for(run, evaluation.weights))
    found = found._replace(kind=np.where((found.kind == FINE) & (said.margin > 0) & tells, DOUBTED, found.kind))
    order = ranked(found, said.margin, np.isin(np.arange(len(samples)), train))
    paths = [path for path, _ in run.listed]  # as split.csv spells them
    suspects = [describe(samples, paths, found, said, row) for row in order.tolist()]
    pixels = views(dataset.store, dataset.rows[order[: kept.PICTURES]], recipe.crop, kept.SIDE)
    kept.write_suspects(run, suspects, pixels)
    return len(suspects)


def find_copies(dataset: Dataset, near: bool) -> Findings:
    """Find what is there under two labels, or on two sides: pixel for pixel and, if ``near``, nearly so.

    Of two sides, the picture in the later of SIDES is the suspect, since it is not as new as it should be.
    """
    samples, digests = dataset.samples, dataset.store.digests[dataset.rows]
    n, labels, first = len(samples), samples.labels, first_alike(digests)
    found = Findings(np.full(n, FINE), np.full(n, -1), np.arange(n))

    def mark(kind: int, pairs: np.ndarray) -> None:
        rows, others = pairs[::-1].T  # where a row is there again, its first pair stays
        found.kind[rows], found.other[rows] = kind, others

    twins = find_twins(dataset, tell=False) if near else np.empty((0, 2), np.int64)
    twins = twins[(digests[twins[:, 0]] != digests[twins[:, 1]]).any(axis=1)]
    side = np.argmax([samples.split == each for each in SIDES], axis=0)
    parted = twins[side[twins[:, 0]] != side[twins[:, 1]]]
    mark(TWIN, np.take_along_axis(parted, np.argsort(-side[parted], axis=1), axis=1))

    train, val, test = (dataset.indices(each) for each in SIDES)
    again = repeated(first, labels, train, val) + repeated(first, labels, np.concatenate([train, val]), test)
    mark(COPY, pairs_of(again)[:, ::-1])

    at_odds = twins[labels[twins[:, 0]] != labels[twins[:, 1]]]
    mark(NEARLY_CONTRADICTORY, np.concatenate([at_odds, at_odds[:, ::-1]]))
    found.group[at_odds] = connected(n, at_odds)[at_odds]

    against = np.full(n, -1)  # of each first of its kind, one with another label
    heads, odd = pairs_of(contradictions(first, labels))[::-1].T
    against[heads] = odd
    rows = np.flatnonzero(against[first] >= 0)
    heads = first[rows]
    mark(CONTRADICTORY, np.stack([rows, np.where(labels[rows] == labels[heads], against[heads], heads)], axis=1))
    found.group[rows] = heads
    return found


def pairs_of(pairs: list[tuple[int, int]]) -> np.ndarray:
    return np.array(pairs, np.int64).reshape(-1, 2)


def compute_logits(
    run: RunDir, evaluation: Evaluation, dataset: Dataset, samples: np.ndarray, machine: Machine
) -> np.ndarray:
    """Return (m, K) float32, what the evaluated network says of these samples, (m,) int64, as evaluation sees them.

    Raises UserError where a training has replaced its checkpoint since.
    """
    recipe, device = run.recipe, machine.device
    model = model_of(run, evaluation.checkpoint)
    if fingerprint(model) != evaluation.weights:
        raise UserError(f"--checkpoint {evaluation.checkpoint}: {run.path} has replaced it meanwhile; do it again")
    model, view = model.to(device).eval(), Transform(recipe.crop).to(device)
    if machine.compile:
        model.compile()
    rows, labels = dataset.rows[samples], dataset.samples.labels[samples]
    batches = eval_batches(Pictures(reader(dataset.store, device), rows, labels, recipe.batch_size))
    logits, left = np.empty((len(rows), len(dataset.samples.classes)), np.float32), np.arange(len(rows))
    with torch.inference_mode(), tqdm(desc="doubting", total=len(rows), unit="img", disable=None, leave=False) as bar:
        for batch in batches:
            these, left = np.split(left, [len(batch.labels)])
            logits[these] = forward(model, view.center, machine, batch.images).cpu()
            bar.update(len(these))
    return logits


def ask(
    seen: Iterable[tuple[np.ndarray, np.ndarray]], labels: np.ndarray, asked: np.ndarray, temperature: float
) -> Verdicts:
    """Return what the network says of each sample.

    seen: rows, (m,) int64, and their logits, (m, K). labels: (n,) int64. asked: (n,) int64, the class whose probability
    is wanted; where it is -1, that of the most probable one.
    """
    said = Verdicts(asked.copy(), np.full(len(labels), np.nan), np.full(len(labels), -np.inf))
    for rows, logits in seen:
        done = 0
        for part, of in parts(logits, labels[rows]):
            these, places = rows[done : done + len(of)], np.arange(len(of))
            logs = log_softmax(part / temperature)
            said.likely[these] = np.where(asked[these] < 0, logs.argmax(axis=1), asked[these])
            said.probability[these] = np.exp(logs[places, said.likely[these]])
            own, logs[places, of] = logs[places, of], -np.inf
            said.margin[these] = logs.max(axis=1) - own
            done += len(of)
    return said


def ranked(found: Findings, margin: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Return (m,) int64, the samples with which something is wrong, the most suspicious first.

    trained: (n,) bool, which the network learnt from, so that of equal doubts, (n,) ``margin``, theirs weighs less.
    """
    rows = np.flatnonzero(found.kind != FINE)
    kind, group, own = found.kind[rows], found.group[rows], margin[rows]
    most = np.full(len(margin), -np.inf)
    np.maximum.at(most, group, own)
    return rows[np.lexsort((-own, group, trained[rows] & (kind == DOUBTED), -most[group], kind))]


def describe(samples: Samples, paths: list[str], found: Findings, said: Verdicts, row: int) -> Suspect:
    assert samples.split is not None
    kind, other, likely, probability = found.kind[row], found.other[row], said.likely[row], said.probability[row]
    why = WHY[kind].format(path=paths[other], side=samples.split[other])
    if kind == DOUBTED and samples.split[row] == "train":
        why += ", trained on"
    names = samples.classes[samples.labels[row]], samples.classes[likely] if likely >= 0 else ""
    return Suspect(paths[row], *names, None if np.isnan(probability) else float(probability), why)
