"""The HTML report of a run, or of several compared: one file that needs no other. page.html words the one of a run."""

import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from plumage.files import write_text, written_whole
from plumage.inference.calibration import best_temperature, log_softmax, nll
from plumage.recipe import Recipe, option_name
from plumage.report import figures, statistics
from plumage.report.compare import comparison_page
from plumage.report.html import render
from plumage.report.reading import Run, read_run
from plumage.rundir.evaluation import Evaluation
from plumage.tables import SIDES

log = logging.getLogger("plumage")

MOST_CLASSES, MOST_PAIRS = 1000, 15  # rows of a table: of ten thousand, nobody reads the best


def write_report(paths: Sequence[Path], file: Path) -> None:
    """Write one HTML page about the runs at ``paths``: of one, whose figures also go to its figures/, or a comparison.

    Raises UserError where a path holds no run, or a file of it is damaged.
    """
    runs = [read_run(path) for path in paths]
    if len(runs) > 1:
        page = comparison_page(runs)
    else:
        run, drawn = runs[0], figures.single_run(runs[0])
        try:
            (run.path / "figures").mkdir(exist_ok=True)
            for name, figure in drawn.items():
                with written_whole(run.path / "figures" / f"{name}.png") as draft:
                    figure.savefig(draft, dpi=150, format="png")
        except OSError as error:
            log.warning(f"{run.path}: no figures/ there: {error.strerror}")
        page = run_page(run, drawn)
    write_text(file, page)


def run_page(run: Run, drawn: dict[str, Figure]) -> str:
    """Return the page of one run, with its figures by name."""
    train, val, test = map(run.counts, SIDES)
    every = train + val + test
    return render(
        "page.html",
        run=run,
        figures=drawn,
        data_name=Path(run.recipe.data).name or run.recipe.data,
        eval_command=f"python main.py eval --run {shlex.quote(str(run.path))}",
        time=timedelta(seconds=round(sum(row["seconds"] for row in run.history))),
        environment=environment_rows(run.environment),
        pictures=(train.sum(), val.sum(), test.sum(), every.min(), np.median(every), every.max()),
        unvalidated=[name for name, count in zip(run.classes, val, strict=True) if not count],
        options=option_rows(run.recipe),
        recipe_json=json.dumps(asdict(run.recipe), indent=2),
        **(evaluation_values(run, run.evaluation) if run.evaluation else {"samples": []}),
    )


def environment_rows(environment: dict[str, Any]) -> list[tuple[str, object]]:
    """Return (property, value) of all but the command, which ends the report; a package's version is a property."""
    facts = {name: value for name, value in environment.items() if name not in ("command", "packages")}
    packages = environment.get("packages")
    facts |= packages if isinstance(packages, dict) else {}
    facts |= {name: "; ".join(map(str, value)) for name, value in facts.items() if isinstance(value, list)}
    return [(name.replace("_", " "), "none" if value is None else value) for name, value in facts.items()]


def option_rows(recipe: Recipe) -> list[tuple[str, object, object]]:
    """Return (option, value, the preset's value) of every option."""
    given = {"preset": recipe.preset, "data": recipe.data}
    # The learning rate follows from the batch size, unless it was given.
    usual = asdict(Recipe.create(given)) | {"lr": Recipe.create({**given, "batch_size": recipe.batch_size}).lr}
    return [(option_name(name), value, usual[name]) for name, value in asdict(recipe).items()]


def evaluation_values(run: Run, evaluation: Evaluation) -> dict[str, object]:
    """Return what page.html says only of a run that was evaluated."""
    logits, labels = evaluation.logits, evaluation.labels
    temperature = best_temperature(logits, labels)
    samples = evaluation.pictures.get("samples", ((), ()))
    return {
        "samples": [(pixels, run.classes[labels[row]]) for pixels, row in zip(*samples, strict=True)],
        "theoretical_gap": statistics.theoretical_gap(len(run.classes), run.recipe.smoothing),
        "temperature": temperature,
        "nll": (nll(logits, labels), nll(logits, labels, temperature)),
        "worst_classes": class_rows(run, evaluation)[:MOST_CLASSES],
        "validated_classes": len(np.unique(labels)),
        "confusions": confusion_rows(run, evaluation),
        "mistakes": mistakes(run, evaluation),
    }


def class_rows(run: Run, evaluation: Evaluation) -> list[tuple[object, ...]]:
    """Return (class, accuracy, how many are right, training pictures) of every validated class, the worst first."""
    labels, right = evaluation.labels, evaluation.right
    counts, right = (np.bincount(of, minlength=len(run.classes)) for of in (labels, labels[right]))
    accuracy, train = right / np.maximum(counts, 1), run.counts("train")
    order = sorted(np.flatnonzero(counts), key=lambda k: (accuracy[k], -counts[k]))
    return [(run.classes[k], f"{accuracy[k]:.1%}", f"{right[k]} of {counts[k]}", train[k]) for k in order]


def confusion_rows(run: Run, evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Return (true class, predicted class, pictures) of the pairs that were confused most, at most MOST_PAIRS."""
    names, counts = run.classes, np.bincount(evaluation.labels)
    pairs = statistics.count_pairs(evaluation.labels, evaluation.predictions, len(names))
    wrong = np.flatnonzero(pairs.true != pairs.predicted)
    most = wrong[np.argsort(-pairs.pictures[wrong], kind="stable")][:MOST_PAIRS]
    rows = zip(*(column[most] for column in pairs), strict=True)
    return [(names[i], names[j], f"{count} of {counts[i]}") for i, j, count in rows]


def mistakes(run: Run, evaluation: Evaluation) -> list[tuple[np.ndarray, str, str, str, float]] | None:
    """Return (pixels, file, true class, predicted class, confidence) of each mistake of which there is a picture.

    None where the evaluation kept no pictures.
    """
    if "thumbnails" not in evaluation.pictures:
        return None
    thumbnails, rows = evaluation.pictures["thumbnails"]
    confidences = np.exp(log_softmax(evaluation.logits[rows].astype(np.float64)).max(axis=1))
    files = [run.validated[row][0] for row in rows]
    labels, predictions = ([run.classes[k] for k in of[rows]] for of in (evaluation.labels, evaluation.predictions))
    return list(zip(thumbnails, files, labels, predictions, confidences, strict=True))
