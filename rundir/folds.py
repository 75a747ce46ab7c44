"""What several runs validated, each the pictures of its own fold, put together as one evaluation."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from math import fsum
from typing import Any

import numpy as np

from plumage.rundir.evaluation import PICTURES, SCORES, Evaluation, Shown, read_evaluation
from plumage.rundir.folder import RunDir
from plumage.rundir.scores import class_scores


def kept(run: RunDir) -> Evaluation | None:
    """Return what was kept of a run's validation pictures and its best epoch, or of what folds put together.

    None where nothing was, or of an earlier epoch. Raises UserError where it is damaged.
    """
    evaluation = read_evaluation(run, len(run.classes), len(run.listed))
    if evaluation is None or run.folds:
        return evaluation
    best = ("best", run.history.best["iteration"])
    return evaluation if (evaluation.checkpoint, evaluation.iteration) == best else None


def joined(evaluations: Sequence[Evaluation], temperatures: Sequence[float]) -> Evaluation:
    """Return the ``evaluations`` of several networks, each of other rows of one split.csv, as one, in their order.

    Networks differ in the scale of their logits, so that each one's are divided by its own temperature: what is ranked
    across them is on one scale. Numbers that are means over pictures, ``gaps`` and ``bins`` stay as they were measured.
    """
    n = sum(len(each.labels) for each in evaluations)
    indices = np.concatenate([each.indices for each in evaluations])
    order = np.argsort(indices)
    places = np.split(np.argsort(order), np.cumsum([len(each.labels) for each in evaluations])[:-1])
    first = evaluations[0]
    logits = np.empty((n, first.logits.shape[1]), np.float32)
    for each, place, temperature in zip(evaluations, places, temperatures, strict=True):
        logits[place] = each.logits / np.float32(temperature)
    labels, gaps = (np.concatenate([getattr(each, name) for each in evaluations])[order] for name in ("labels", "gaps"))
    bins = np.sum([each.bins for each in evaluations], axis=0)
    by_class = class_scores(labels, logits.argmax(axis=1), logits.shape[1])
    # What is no mean over pictures, as that over classes, is told by the counts.
    scores: dict[str, Any] = {
        name: getattr(by_class, name)
        if hasattr(by_class, name)
        else fsum(getattr(each, name) * len(each.labels) for each in evaluations) / n
        for name in (*SCORES, "logit_gap")
    }
    scores |= {"accuracy": float(by_class.right.sum() / n), "ece": float(np.abs(bins[2] - bins[1]).sum() / n)}
    return replace(
        first,
        **scores,
        iteration=None,
        weights=blake2b("".join(each.weights for each in evaluations).encode(), digest_size=16).hexdigest(),
        logits=logits,
        labels=labels,
        indices=indices[order],
        gaps=gaps,
        bins=bins,
        pictures=shown(evaluations, places, logits, labels),
    )


def shown(
    evaluations: Sequence[Evaluation], places: Sequence[np.ndarray], logits: np.ndarray, labels: np.ndarray
) -> dict[str, Shown]:
    """Choose, of the pictures that ``evaluations`` keep, as many as one of them may: see ``Evaluation.pictures``.

    places: of each evaluation, the rows of ``logits`` and ``labels`` that are its own.
    """
    chosen, recall = {}, class_scores(labels, logits.argmax(axis=1), logits.shape[1]).recall
    for name, most in PICTURES.items():
        each = [(evaluation.pictures[name], place) for evaluation, place in zip(evaluations, places, strict=True)]
        each = [(shown, place) for shown, place in each if len(shown.rows)] or each[:1]
        rows = np.concatenate([place[shown.rows] for shown, place in each])
        if name == "samples":
            order = np.argsort(labels[rows], kind="stable")
            order = order[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)]
        else:  # the most confident first, and of what is right that of the worst classes
            of = logits[rows].astype(np.float64)
            confidence = 1 / np.exp(of - of.max(axis=1, keepdims=True)).sum(axis=1)
            worst = recall[labels[rows]] if name == "right" else np.zeros(len(rows))
            order = np.lexsort((-confidence, worst))[:most]
        pixels = np.concatenate([shown.pixels for shown, _ in each])[order]
        chosen[name] = Shown(pixels, rows[order], np.concatenate([shown.maps for shown, _ in each])[order])
    return chosen
