"""Probabilities that can be trusted: a temperature for a run's logits, fitted on its validation pictures.

Guo et al., "On Calibration of Modern Neural Networks" (2017). Logits are (n, K), of any float, and labels (n,) int64.
Of many classes and pictures they take gigabytes, so that all is computed over ``parts`` of them, in float64.
"""

import logging
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from plumage.errors import UserError
from plumage.files import write_json
from plumage.rundir.evaluation import Evaluation
from plumage.rundir.folder import RunDir

log = logging.getLogger("plumage")

MOST = 20.0
PART = 2**17  # logits at a time: a megabyte, which stays near the processor


def parts(logits: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the logits, in float64, and labels of some rows after the other."""
    step = max(1, PART // logits.shape[1])
    for start in range(0, len(labels), step):
        yield logits[start : start + step].astype(np.float64), labels[start : start + step]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def nll(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Return the mean negative log-likelihood of the labels by logits / temperature, in nats."""
    each = (log_softmax(part / temperature)[np.arange(len(of)), of].sum() for part, of in parts(logits, labels))
    return -math.fsum(each) / len(labels)


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the T from 1 / MOST to MOST at which logits / T have the smallest nll (Guo et al. 2017).

    In 1 / T the nll is convex: its slope, the mean of E[logit] − logit of the label, is bisected. Where every picture
    is right, or where guessing is best, T is one of the bounds.
    """
    low, high = -math.log(MOST), math.log(MOST)  # of log(1 / T)
    for _ in range(24):
        middle = (low + high) / 2
        slope = math.fsum(_slope(part, of, math.exp(middle)) for part, of in parts(logits, labels))
        low, high = (low, middle) if slope > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def _slope(logits: np.ndarray, labels: np.ndarray, scale: float) -> float:
    """Return the slope of the nll's sum in ``scale``, which multiplies the logits."""
    weights = np.exp(scale * (logits - logits.max(axis=1, keepdims=True)))
    expected = (weights * logits).sum(axis=1) / weights.sum(axis=1)
    return float((expected - logits[np.arange(len(labels)), labels]).sum())


def calibrate(run: RunDir, evaluation: Evaluation) -> dict[str, Any]:
    """Fit a temperature and write calibration.json, which is returned. Raises UserError where none is best."""
    logits, labels = evaluation.logits, evaluation.labels
    temperature = best_temperature(logits, labels)
    if abs(math.log(temperature)) > math.log(MOST) - 1e-3:
        what = "all are right" if temperature < 1 else "none is better than a guess"
        raise UserError(
            f"--calibrate: {len(labels)} validation pictures tell no temperature: {what}; take more of them"
        )
    result: dict[str, Any] = {"temperature": temperature, "n": len(labels), "nll": nll(logits, labels)}
    result |= {"calibrated_nll": nll(logits, labels, temperature)}
    result |= {"checkpoint": evaluation.checkpoint, "weights": evaluation.weights}
    write_json(run.path / "calibration.json", result)
    return result


def temperature_for(run: RunDir, weights: str) -> float:
    """Return what to divide the logits of the checkpoint with this fingerprint by; 1 if the run is not calibrated."""
    fitted = run.calibration
    if fitted and fitted["weights"] == weights:
        return float(fitted["temperature"])
    if fitted:
        log.warning(f"{run.path / 'calibration.json'} is of another checkpoint and is not used; eval --calibrate again")
    return 1.0
