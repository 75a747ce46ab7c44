"""The pictures of an evaluation that a report shows: which, and where the evidence for what was predicted is."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from plumage.data.store import Store
from plumage.data.view import centre, views
from plumage.rundir.evaluation import MISTAKES, MOST_VIEW, RIGHT, SAMPLES, Shown, view_side
from plumage.rundir.scores import class_scores


def pictures_to_show(
    logits: Tensor,
    labels: np.ndarray,
    store: Store,
    rows: np.ndarray,
    crop: int,
    explain: Callable[[Tensor, Tensor], Tensor],
    batch_size: int,
) -> dict[str, Shown]:
    """Return what ``Evaluation.pictures`` keeps of an evaluation's ``logits`` (n, K) and ``labels`` (n,).

    rows: (n,) int64, where the pictures are in the store. crop: the side of what the network saw of them. explain:
    gives (b, h, w) maps of (b, side, side, 3) uint8 pictures and (b,) classes, at most ``batch_size`` at once.
    """
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    shown = {}
    for name, chosen in choose(confidence.numpy(), predicted.numpy(), labels, logits.shape[1]).items():
        stored, classes = torch.from_numpy(store.read(rows[chosen])), predicted[torch.from_numpy(chosen)]
        if name == "samples":
            side, maps = min(crop, MOST_VIEW), np.zeros((len(chosen), 0, 0), np.float32)
            pixels = [centre(picture, crop, side) for picture in stored.numpy()]
            shown[name] = Shown(np.array(pixels, np.uint8).reshape(-1, side, side, 3), chosen, maps)
            continue
        parts = zip(stored.split(batch_size), classes.split(batch_size), strict=True)
        maps = torch.cat([explain(*part).cpu() for part in parts]).numpy() if len(chosen) else np.zeros((0, 0, 0), "f4")
        shown[name] = Shown(views(store, rows[chosen], crop, view_side(crop)), chosen, maps)
    return shown


def choose(confidence: np.ndarray, predicted: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """Return rows of predictions, (m,) int64 each, of different classes where there are as many.

    samples: up to SAMPLES, of classes that are spread evenly. mistakes: up to MISTAKES of any class, the most confident
    first. right: up to RIGHT, the worst classes' before others', a class's most confident first.
    """
    pool = by_turns(labels, np.arange(classes), np.arange(len(labels)))
    pool = pool[: max(len(np.unique(labels)), SAMPLES)]
    sure = np.argsort(-confidence, kind="stable")
    scores, right = class_scores(labels, predicted, classes), predicted == labels
    place = np.argsort(np.lexsort((-scores.pictures, scores.recall)))  # the worst class is at 0
    return {
        "samples": pool[np.linspace(0, len(pool) - 1, min(SAMPLES, len(pool))).round().astype(int)],
        "mistakes": sure[~right[sure]][:MISTAKES],
        "right": by_turns(labels, place, sure[right[sure]])[:RIGHT],
    }


def by_turns(labels: np.ndarray, place: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Sort ``rows``: the first of each class, then the second of each, and so on; classes in the order of ``place``."""
    places = place[labels[rows]]
    order = np.argsort(places, kind="stable")
    rank = np.arange(len(rows)) - np.searchsorted(places[order], places[order])
    return rows[order][np.argsort(rank, kind="stable")]
