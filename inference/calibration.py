"""Probabilities that can be trusted: a temperature for a run's logits, fitted on its validation pictures.

Guo et al., "On Calibration of Modern Neural Networks" (2017). Logits are (n, K), of any float, and labels (n,) int64.
Of many classes and pictures they take gigabytes, so that all is computed over ``parts`` of them, in float64.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from plumage.files import write_json
from plumage.inference import rejection
from plumage.rundir.evaluation import Evaluation
from plumage.rundir.folder import RunDir

log = logging.getLogger("plumage")

MOST = 20.0
PART = 2**17  # logits at a time: a megabyte, which stays near the processor
BINS = 15  # of the calibration error, as engine/metrics.py has them


class CrossFitted(NamedTuple):
    """What a temperature does to pictures that it was not fitted on: their mean nll, in nats, and calibration error."""

    nll: float
    ece: float


def parts(
    logits: np.ndarray, labels: np.ndarray, rows: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the logits, in float64, and labels of some rows after the other: of all, or of those in ``rows``, (m,)."""
    step, count = max(1, PART // logits.shape[1]), len(labels) if rows is None else len(rows)
    for start in range(0, count, step):
        some = slice(start, start + step) if rows is None else rows[start : start + step]
        yield logits[some].astype(np.float64), labels[some]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def nll(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Return the mean negative log-likelihood of the labels by logits / temperature, in nats."""
    each = (log_softmax(part / temperature)[np.arange(len(of)), of].sum() for part, of in parts(logits, labels))
    return -math.fsum(each) / len(labels)


def best_temperature(logits: np.ndarray, labels: np.ndarray, rows: np.ndarray | None = None) -> float:
    """Return the T from 1 / MOST to MOST at which logits / T have the smallest nll (Guo et al. 2017).

    In 1 / T the nll is convex: its slope, the mean of E[logit] − logit of the label, is bisected. Where every picture
    is right, or where guessing is best, T is one of the bounds. rows: which pictures, all by default.
    """
    low, high = -math.log(MOST), math.log(MOST)  # of log(1 / T)
    for _ in range(24):
        middle = (low + high) / 2
        slope = math.fsum(_slope(part, of, math.exp(middle)) for part, of in parts(logits, labels, rows))
        low, high = (low, middle) if slope > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def fitted_temperature(logits: np.ndarray, labels: np.ndarray, rows: np.ndarray | None = None) -> float | None:
    """Return the best temperature, which may be one of the bounds; or None where all are right, which tells none."""
    if all((part.argmax(axis=1) == of).all() for part, of in parts(logits, labels, rows)):
        return None
    return best_temperature(logits, labels, rows)


def useful_temperature(
    logits: np.ndarray, labels: np.ndarray, fitted: CrossFitted | None = None
) -> tuple[float | None, str]:
    """Return the temperature to divide by; or None, and why it is better to divide by none.

    fitted: what ``cross_fitted`` returns of these, where that is known.
    """
    found = fitted_temperature(logits, labels)
    if found is None:
        return None, "all are right"
    if (fitted or cross_fitted(logits, labels)).nll >= nll(logits, labels):
        return None, "they are too few, since what fits one half of them makes the other half worse"
    return found, ""


def _slope(logits: np.ndarray, labels: np.ndarray, scale: float) -> float:
    """Return the slope of the nll's sum in ``scale``, which multiplies the logits."""
    weights = np.exp(scale * (logits - logits.max(axis=1, keepdims=True)))
    expected = (weights * logits).sum(axis=1) / weights.sum(axis=1)
    return float((expected - logits[np.arange(len(labels)), labels]).sum())


def cross_fitted(logits: np.ndarray, labels: np.ndarray) -> CrossFitted:
    """Divide each half of the pictures by the temperature of the other half, and measure both together.

    Where a half tells no temperature the other is not divided.
    """
    n = len(labels)
    losses, sums = list[float](), np.zeros((3, BINS))
    for own, other in halves(labels):
        temperature = (fitted_temperature(logits, labels, other) if len(other) else None) or 1.0
        for part, of in parts(logits, labels, own):
            log_probabilities = log_softmax(part / temperature)
            losses.append(float(log_probabilities[np.arange(len(of)), of].sum()))
            sure, right = np.exp(log_probabilities.max(axis=1)), part.argmax(axis=1) == of
            bins = np.ceil(sure * BINS).astype(int).clip(1, BINS) - 1
            sums += [np.bincount(bins, weights, BINS) for weights in (np.ones(len(of)), sure, right)]
    return CrossFitted(-math.fsum(losses) / n, float(np.abs(sums[2] - sums[1]).sum() / n))


def halves(labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each half of the pictures with the other, (m,) int64 rows: one is to be measured, the other fits.

    They have, of each class, the same number of pictures or one more; which, is drawn with a fixed seed.
    """
    order = np.lexsort((np.random.default_rng(0).permutation(len(labels)), labels))  # by class, within it as drawn
    return [(order[::2], order[1::2]), (order[1::2], order[::2])]


def cross_rejected(logits: np.ndarray, labels: np.ndarray, errors: Sequence[float]) -> list[float | None]:
    """Return, of each of ``errors``, which share of the kept is wrong, of pictures that nothing was fitted on.

    Each half is kept by the temperature and the threshold of the other half. None: neither half keeps a picture.
    """
    kept, wrong = np.zeros((2, len(errors)), int)
    for own, other in halves(labels) if len(labels) > 1 else ():
        sure = confidences(logits, labels, fitted_temperature(logits, labels, other) or 1.0)
        right = logits.argmax(axis=1) == labels
        points = rejection.thresholds(sure[other], right[other])
        for number, error in enumerate(errors):
            if found := rejection.best_threshold(points, error):
                inside = own[sure[own] >= found.confidence]
                kept[number] += len(inside)
                wrong[number] += np.count_nonzero(~right[inside])
    return [float(bad / all_) if all_ else None for bad, all_ in zip(wrong, kept, strict=True)]


def confidences(logits: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """Return (n,) float64, each picture's confidence as ``rejection`` defines it."""
    each = [rejection.confidence(np.exp(log_softmax(part / temperature))) for part, _ in parts(logits, labels)]
    return np.concatenate(each)


def calibrate(run: RunDir, evaluation: Evaluation) -> dict[str, Any]:
    """Fit a temperature and thresholds for ``predict --reject``, and write calibration.json, which is returned.

    Where the pictures tell no temperature, that is said, and it is 1.
    """
    logits, labels = evaluation.logits, evaluation.labels
    before, fitted = CrossFitted(nll(logits, labels), evaluation.ece), cross_fitted(logits, labels)
    found, why = useful_temperature(logits, labels, fitted)
    if found is None:
        log.warning(f"{run.path}: {len(labels)} validation pictures tell no temperature: {why}; probabilities stay")
        fitted = before
    temperature = found or 1.0
    result: dict[str, Any] = {"temperature": temperature, "n": len(labels), "nll": before.nll, "ece": before.ece}
    result |= {"calibrated_nll": fitted.nll, "calibrated_ece": fitted.ece}
    result |= {"checkpoint": evaluation.checkpoint, "weights": evaluation.weights}
    if evaluation.checkpoint != "best":
        where = run.path / "calibration.json"
        log.info(f"{where}: is now of --checkpoint {evaluation.checkpoint}, which predict has to be given too")
    sure = confidences(logits, labels, temperature)
    write_json(
        run.path / "calibration.json", result | {"thresholds": rejection.thresholds(sure, evaluation.right).tolist()}
    )
    return result


def temperature_for(run: RunDir, weights: str) -> float:
    """Return what to divide the logits of the checkpoint with this fingerprint by; 1 if the run is not calibrated."""
    fitted = run.calibration
    if fitted and fitted["weights"] == weights:
        return float(fitted["temperature"])
    if fitted:
        log.warning(f"{run.path / 'calibration.json'} is of another checkpoint and is not used; eval --calibrate again")
    return 1.0
