"""What page.html shows of a run that was evaluated: its tables and pictures, as rows."""

from typing import Any, NamedTuple

import numpy as np

from plumage.inference.calibration import cross_rejected
from plumage.inference.rejection import best_threshold, thresholds
from plumage.report import words
from plumage.report.matrix import Confusions
from plumage.report.reading import Run
from plumage.report.style import short
from plumage.rundir.evaluation import Evaluation
from plumage.rundir.scores import count_pairs, wilson
from plumage.rundir.suspects import trained_are_searched

ERRORS = (0.01, 0.02, 0.05, 0.1)  # of which is told what predict --reject keeps
MOST_CLASSES, MOST_PAIRS, MOST_SUSPECTS = 1000, 16, 200  # rows of a table: of ten thousand, nobody reads the best


class Picture(NamedTuple):
    """A picture with what it is taken for, how surely once calibrated; map is None where none tells more."""

    pixels: np.ndarray
    map: np.ndarray | None
    file: str
    label: str
    prediction: str
    confidence: float


def evaluation_values(run: Run, evaluation: Evaluation, confusions: Confusions) -> dict[str, Any]:
    return {
        "scores": evaluation.class_scores,
        "samples": pictures(run, evaluation, "samples") or [],
        "calibrated": run.cross_fitted,
        "kept": kept_rows(run, evaluation),
        "confidence_words": words.confidence(evaluation),
        "gap_words": words.gap(run, evaluation),
        "worst_classes": class_rows(run, evaluation),
        "confusions": confusion_rows(run, confusions),
        "inside": confusion_rows(run, confusions, within=True),
        "matrix": matrix_rows(run, confusions),
        "named": confusions.named,
        "groups": group_rows(run, evaluation, confusions),
        "alone": sum(len(group) == 1 for group in confusions.groups),
        "zoomed": int(confusions.inside.argmax()) + 1,
        "mistakes": pictures(run, evaluation, "mistakes"),
        "rights": pictures(run, evaluation, "right") or [],
    }


def kept_rows(run: Run, evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Return (E, share kept, cross-fitted error) of `predict --reject E` on the validation pictures, by E."""
    points = thresholds(run.confidences, evaluation.right)
    shares = [found.coverage if (found := best_threshold(points, error)) else None for error in ERRORS]
    wrong = cross_rejected(evaluation.logits, evaluation.labels, ERRORS)
    return [
        (f"{error:g}", "none" if kept is None else f"{kept:.1%}", "–" if bad is None else f"{bad:.2%}")
        for error, kept, bad in zip(ERRORS, shares, wrong, strict=True)
    ]


def class_rows(run: Run, evaluation: Evaluation) -> list[tuple[object, ...]]:
    """Return a row for each of the worst classes, the worst first, and of equals the one with most pictures.

    Class, accuracy, its 95 % interval, how many are right, precision, F1, training pictures, what it is taken for most.
    Without training pictures where each fold has others.
    """
    scores, train = evaluation.class_scores, run.counts("train")
    low, high = wilson(scores.right, scores.pictures)
    taken = most_taken_for(run, evaluation)
    worst = sorted(np.flatnonzero(scores.pictures).tolist(), key=lambda k: (scores.recall[k], -scores.pictures[k]))
    return [
        (
            run.classes[k],
            f"{scores.recall[k]:.1%}",
            f"{low[k]:.0%} to {high[k]:.0%}",
            f"{scores.right[k]} of {scores.pictures[k]}",
            f"{scores.precision[k]:.0%}" if scores.predicted[k] else "–",
            f"{scores.f1[k]:.2f}",
            *(() if run.folds else (f"{train[k]:,}",)),
            taken.get(k, "–"),
        )
        for k in worst[:MOST_CLASSES]
    ]


def most_taken_for(run: Run, evaluation: Evaluation) -> dict[int, str]:
    """Return, by class, the other class that most of its pictures are taken for, and how many of them."""
    wrong = ~evaluation.right
    pairs = count_pairs(evaluation.labels[wrong], evaluation.predictions[wrong], len(run.classes))
    order = np.argsort(pairs.pictures, kind="stable")  # the last of a class, which stays, has most
    rows = zip(*(column[order] for column in pairs), strict=True)
    return {int(true): f"{run.classes[predicted]} ({count})" for true, predicted, count in rows}


def confusion_rows(run: Run, confusions: Confusions, within: bool = False) -> list[tuple[str, str, str]]:
    """Return (true class, predicted class, pictures) of the pairs that were confused most, at most MOST_PAIRS.

    within: only those in the group that has most of them.
    """
    names, counts, pairs = run.classes, confusions.totals, confusions.pairs
    wrong = np.flatnonzero(pairs.true != pairs.predicted)
    if within:
        classes = confusions.block.classes
        wrong = wrong[np.isin(pairs.true[wrong], classes) & np.isin(pairs.predicted[wrong], classes)]
    most = wrong[np.argsort(-pairs.pictures[wrong], kind="stable")][:MOST_PAIRS]
    rows = zip(*(column[most] for column in pairs), strict=True)
    return [(names[i], names[j], f"{count} of {counts[i]}") for i, j, count in rows]


def matrix_rows(run: Run, confusions: Confusions) -> dict[str, Any]:
    """Return the matrix of all classes, or of the group with most confusions, as macros.html takes it."""
    block = confusions.block
    names = [(short(run.classes[number]), run.classes[number]) for number in block.classes]
    strengths = 0.08 + 0.5 * np.sqrt(block.shares)  # so that what is rare can be seen, and numbers can be read
    rows = zip(names, block.pictures, strengths, block.others, strict=True)
    return {
        "names": names,
        "rows": [(*name, list(zip(*cells, strict=True)), others) for name, *cells, others in rows],
        "others": bool(block.others.any()),
    }


def suspect_rows(run: Run) -> list[tuple[str, ...]]:
    """Return (picture, label, likely, how surely, why) of the first MOST_SUSPECTS."""
    return [
        (each.path, each.label, each.likely, "" if each.probability is None else f"{each.probability:.0%}", each.why)
        for each in run.suspects[:MOST_SUSPECTS]
    ]


def unsearched(run: Run) -> int:
    """Return how many training pictures were not searched for doubted labels, since they are too many.

    Of a fold that is not said: another fold knows better.
    """
    train = int(run.counts("train").sum())
    return 0 if run.recipe.fold != "none" or trained_are_searched(train, len(run.classes)) else train


def group_rows(run: Run, evaluation: Evaluation, confusions: Confusions) -> list[tuple[str, ...]]:
    """Return (number, classes, accuracy, pictures confused inside) of each group of several classes, in their order."""
    scores, rows = evaluation.class_scores, list[tuple[str, ...]]()
    for number, (group, inside) in enumerate(zip(confusions.groups, confusions.inside, strict=True), 1):
        if len(group) > 1 and scores.pictures[group].any():
            accuracy = scores.right[group].sum() / scores.pictures[group].sum()
            rows.append((str(number), ", ".join(run.classes[k] for k in group), f"{accuracy:.0%}", f"{inside:,}"))
    return rows


def pictures(run: Run, evaluation: Evaluation, kind: str) -> list[Picture] | None:
    """Return the pictures of this kind that the evaluation kept, None where it kept none of them."""
    if (kept := evaluation.pictures.get(kind)) is None:
        return None
    confidences = run.confidences[kept.rows]
    # The temperature may change their order, though not which class a picture is taken for.
    order = np.argsort(-confidences, kind="stable") if kind == "mistakes" else range(len(kept.rows))
    found = list[Picture]()
    for place in order:
        row = kept.rows[place]
        label, prediction = (run.classes[of[row]] for of in (evaluation.labels, evaluation.predictions))
        texts = (run.validated[row][0], label, prediction)
        found.append(Picture(kept.pixels[place], telling(kept.maps[place]), *texts, confidences[place]))
    return found


def telling(map: np.ndarray) -> np.ndarray | None:
    """Return the map; None where there is none, or all of it is alike, as of small pictures with one cell."""
    return map if map.size and np.ptp(map) > 1e-4 * np.abs(map).max() else None
