"""Knowing when it does not know: which predictions are sure enough to be given. Imports no torch.

A picture's confidence is the largest of its calibrated probabilities (Hendrycks and Gimpel 2017). Label smoothing is
published to make it rank worse (Xia et al., ICLR 2025). On the built-in birds, with the temperature, it does not, and
logits over their norm, which that paper recommends in section 5, rank no better (benchmarks/results/rejection-cpu.md);
of two classes they rank nothing. Confidences are (n,) float64, and ``right`` is (n,) bool: which predictions are.
"""

import math
from typing import NamedTuple

import numpy as np

from plumage.errors import UserError
from plumage.rundir.folder import RunDir
from plumage.rundir.scores import wilson

MOST = 1000  # thresholds that are kept
TIE = 1e-9  # confidences that lie closer differ by rounding


class Curve(NamedTuple):
    """By the lowest confidence that is kept, (m,) from the highest: the share that is kept, and that of it is wrong."""

    coverage: np.ndarray
    risk: np.ndarray

    @property
    def area(self) -> float:
        """The area under the curve, AURC: the mean error over all coverages (Geifman et al. 2019)."""
        return float(self.risk @ np.diff(self.coverage, prepend=0))


class Threshold(NamedTuple):
    """Pictures whose confidence is below this get no label.

    coverage: the share of the validation pictures that get one. error: the share of these that is wrong at most, by
    the upper end of its 95 % interval.
    """

    confidence: float
    coverage: float
    error: float

    def rejects(self, probabilities: np.ndarray) -> bool:
        """Return whether a picture with these (K,) calibrated probabilities gets no label; nor does NaN."""
        return not confidence(probabilities[None])[0] >= self.confidence


def confidence(probabilities: np.ndarray) -> np.ndarray:
    """Return (n,) from (n, K) calibrated probabilities."""
    return probabilities.max(axis=1)


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> Curve:
    """Return what is kept, and how much of it is wrong, as the lowest confidence that is kept sinks."""
    _, kept, errors = _cuts(confidence, right)
    return Curve(kept / len(right), errors / kept)


def thresholds(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return (m, 3), at most MOST rows of a Threshold, so that more coverage is more error.

    Its error is the upper end of Wilson's 95 % interval of the share that is wrong: the share itself is too small, as
    the threshold is the luckiest of many. What another threshold betters in both is left out.
    """
    cuts, kept, errors = _cuts(confidence, right)
    _, highest = wilson(errors, kept)
    least = np.minimum.accumulate(highest[::-1])[::-1]  # of this threshold and all that keep more
    best = np.flatnonzero(highest < np.append(least[1:], np.inf))
    best = best[np.linspace(0, len(best) - 1, min(MOST, len(best))).round().astype(int)]
    return np.column_stack([cuts[best], kept[best] / len(right), highest[best]])


def best_threshold(points: np.ndarray, error: float) -> Threshold | None:
    """Return the one of ``thresholds`` that keeps most and promises at most this error, if there is any."""
    enough = points[points[:, 2] <= error]
    return Threshold(*map(float, enough[-1])) if len(enough) else None


def threshold_for(run: RunDir, weights: str, error: float) -> Threshold:
    """Return the threshold for ``predict --reject``, of the checkpoint with this fingerprint.

    Raises UserError where it is not calibrated, or no threshold promises so small an error.
    """
    fitted, file = run.calibration, run.path / "calibration.json"
    again = f"python main.py eval --run {run.path} --calibrate, with the same --checkpoint, writes it anew"
    if not fitted or fitted["weights"] != weights or "thresholds" not in fitted:
        raise UserError(f"--reject: {file} has no thresholds for this checkpoint; {again}")
    if (points := _checked(fitted["thresholds"])) is None:
        raise UserError(f"{file} is damaged: its thresholds are none; {again}")
    if (found := best_threshold(points, error)) is None:
        lowest = math.ceil(1e4 * points[0, 2]) / 1e4
        why = "the validation pictures are too few, or too many of the surest are wrong"
        raise UserError(f"--reject {error:g}: {why}; the lowest that can be promised is {lowest:g}")
    return found


def _checked(content: object) -> np.ndarray | None:
    """Return (m, 3) thresholds that some file gives; None where they cannot be what ``thresholds`` returned."""
    if not isinstance(content, list) or not 0 < len(content) <= MOST:
        return None
    if not all(isinstance(row, list) and [*map(type, row)] == [float] * 3 for row in content):
        return None
    points = np.array(content)
    steps = np.diff(points, axis=0) * (-1, 1, 1)
    return points if ((points >= 0) & (points <= 1)).all() and (steps > 0).all() else None


def _cuts(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (m,) each, from the surest picture: thresholds, how many each keeps, and how many of these are wrong.

    A threshold lies in the middle between two confidences, so that rounding does not matter.
    """
    order = np.argsort(-confidence, kind="stable")
    sure = np.append(confidence[order], confidence.min() - 2 * TIE)
    ends = np.flatnonzero(sure[:-1] - sure[1:] > TIE)
    return (sure[ends] + sure[ends + 1]) / 2, ends + 1, np.cumsum(~right[order])[ends]
