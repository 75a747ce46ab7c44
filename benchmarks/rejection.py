"""Which score ranks right predictions before wrong ones, and whether what predict --reject promises holds.

    python main.py ablate --vary smoothing=0,0.1 --seeds 0,1,2 --run runs/smoothing
    python benchmarks/rejection.py runs/smoothing/*/ -o benchmarks/results/rejection-cpu.md

The runs need an evaluation. Of each, by the logits of its validation pictures:

    largest probability   calibrated, as the product has it; and as the network gives it
    logits over norm      the largest of the logits less their mean, over the p-norm of these (Xia et al., ICLR 2025,
                          section 5; Cattelan and Silva 2024): p = 2, and the best p of 1 to 10 on these very pictures

Then the temperature and the thresholds are fitted on a random half of the pictures, and the other half is measured.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from table import provenance, publish

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from plumage.hardware.device import Machine
from plumage.hardware.environment import environment
from plumage.inference.calibration import confidences, fitted_temperature
from plumage.inference.rejection import best_threshold, risk_coverage, thresholds
from plumage.report.reading import Run, read_run

ERRORS = (0.01, 0.02, 0.05)


def over_norm(logits: np.ndarray, p: int) -> np.ndarray:
    """Return (n,): the largest of the centred (n, K) logits over their p-norm."""
    centred = logits - logits.mean(axis=1, keepdims=True)
    return centred.max(axis=1) / (np.abs(centred) ** p).sum(axis=1) ** (1 / p)


def scores(run: Run) -> dict[str, np.ndarray]:
    """Return each score by its name: of every validation picture, the higher the surer."""
    assert run.evaluation
    logits, right = run.evaluation.logits.astype(np.float64), run.evaluation.right
    normalised = [over_norm(logits, p) for p in range(1, 11)]
    best = min(normalised, key=lambda score: risk_coverage(score, right).area)
    return {
        "largest probability, calibrated": run.confidences,
        "largest probability, as it is": confidences(run.evaluation.logits, run.evaluation.labels, 1.0),
        "logits over norm, p = 2": normalised[1],
        "logits over norm, best p": best,
    }


def measures(score: np.ndarray, right: np.ndarray) -> list[float]:
    """Return AURC and, for each of ERRORS, which share is kept, in percent; 0 where none can be promised."""
    found = [best_threshold(thresholds(score, right), error) for error in ERRORS]
    return [100 * risk_coverage(score, right).area, *(100 * one.coverage if one else 0.0 for one in found)]


def on_the_other_half(run: Run, halves: int) -> list[float]:
    """Return, for each of ERRORS, the kept share and its error, in percent of the half that nothing was fitted on."""
    assert run.evaluation
    logits, labels, right = run.evaluation.logits, run.evaluation.labels, run.evaluation.right
    counts, rng = np.zeros((len(ERRORS), 3)), np.random.default_rng(0)
    for _ in range(halves):
        fit, other = np.array_split(rng.permutation(len(labels)), 2)
        sure = confidences(logits, labels, fitted_temperature(logits, labels, fit) or 1.0)
        points = thresholds(sure[fit], right[fit])
        for number, error in enumerate(ERRORS):
            threshold = best_threshold(points, error)
            kept = other[sure[other] >= threshold.confidence] if threshold else other[:0]
            counts[number] += len(kept), np.sum(~right[kept]), len(other)
    kept, wrong, pictures = counts.T
    return [*np.column_stack([100 * kept / pictures, 100 * wrong / np.maximum(kept, 1)]).ravel()]


def line(names: Sequence[str], values: Sequence[list[float]], digits: Callable[[int], int]) -> str:
    """Return a line of the table: mean ± standard deviation over the runs of each column."""
    cells = []
    for number, column in enumerate(np.array(values).T):
        spread = f" ± {column.std(ddof=1):.{digits(number)}f}" if len(column) > 1 else ""
        cells.append(f"{column.mean():.{digits(number)}f}{spread}")
    return f"| {' | '.join([*names, *cells])} |"


def table(runs: Sequence[Run], halves: int) -> Iterator[str]:
    groups = defaultdict[float, list[Run]](list)
    for run in runs:
        groups[run.recipe.smoothing].append(run)
    yield "\nAll in percent, mean ± standard deviation over the seeds (n). AURC: the mean error over all coverages.\n"
    heads = [f"kept at {error:.0%}" for error in ERRORS]
    yield f"| smoothing | n | error | ranked by | AURC | {' | '.join(heads)} |"
    yield "| " + " | ".join(["---"] * (5 + len(heads))) + " |"
    for smoothing, group in groups.items():
        evaluations = [run.evaluation for run in group if run.evaluation]
        wrong = f"{100 * np.mean([1 - each.accuracy for each in evaluations]):.1f}"
        ranked = [scores(run) for run in group]
        for name in ranked[0]:
            each = [measures(score[name], one.right) for score, one in zip(ranked, evaluations, strict=True)]
            yield line([f"{smoothing:g}", str(len(group)), wrong, name], each, lambda number: 1 if number else 2)
    yield f"\nFitted on one half, measured on the other, over {halves} random halves of each run:\n"
    heads = [f"{error:.0%}: kept | {error:.0%}: wrong of it" for error in ERRORS]
    yield f"| smoothing | {' | '.join(heads)} |"
    yield "| " + " | ".join(["---"] * (1 + 2 * len(heads))) + " |"
    for smoothing, group in groups.items():
        each = [on_the_other_half(run, halves) for run in group]
        yield line([f"{smoothing:g}"], each, lambda number: 1 + number % 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--halves", type=int, default=100)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    runs = [read_run(path) for path in args.runs]
    if missing := [run.name for run in runs if not run.evaluation]:
        raise SystemExit(f"{missing[0]} is not evaluated: python main.py eval --run does")
    lines = ["# Knowing when it does not know\n"]
    lines += provenance(environment(Machine(torch.device("cpu"), "fp32", compile=False)))
    publish("\n".join([*lines, *table(runs, args.halves)]), args.output)


if __name__ == "__main__":
    main()
