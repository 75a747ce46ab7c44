"""Several runs compared: what differs between their recipes, and between their results. compare.html words it."""

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from plumage.recipe import Recipe
from plumage.report import figures, statistics
from plumage.report.html import render
from plumage.report.labels import differing, folds_of, kind_of, options_of, recipe_names, repetition_of, run_names
from plumage.report.reading import Run
from plumage.rundir.evaluation import read_scores
from plumage.rundir.folder import RunDir
from plumage.rundir.scores import wilson


def comparison_page(runs: Sequence[Run]) -> str:
    """Return the page that compares ``runs``."""
    names = run_names(runs)
    settings = differing([settings_of(run) for run in runs])
    numbers = [n for n, values in enumerate(settings.values(), 1) if {*map(type, values)} <= {int, float}]
    commands = dict[str, list[str]]()  # runs of an ablation have one in common
    for name, run in zip(names, runs, strict=True):
        commands.setdefault(run.command, []).append(name)
    return render(
        "compare.html",
        runs=runs,
        same=same_in_all(runs),
        varied=[name[2:] for name in differing([options_of(run.recipe) for run in runs])],
        figures=figures.several_runs(runs),
        results=[(name, *result_cells(run)) for name, run in zip(names, runs, strict=True)],
        unevaluated=[str(run.path) for run in runs if not run.evaluation],
        settings=[name.replace("_", " ") for name in settings],
        setting_rows=list(zip(names, *settings.values(), strict=True)),
        setting_numbers=numbers,
        pairs=pair_rows(names, runs),
        over_seeds=seed_rows(runs),
        pooled=pooled_rows(runs),
        ablation=all((home / "ablation.json").exists() for home in homes(runs)),
        commands=[(", ".join(of) if len(commands) > 1 else "", command) for command, of in commands.items()],
    )


def same_in_all(runs: Sequence[Run]) -> dict[str, Any]:
    """Return model, data and hardware, where all runs have the same."""
    of_runs = [{"model": run.recipe.model, "data": run.recipe.data, "hardware": run.hardware} for run in runs]
    return {name: value for name, value in of_runs[0].items() if all(other[name] == value for other in of_runs)}


def result_cells(run: Run) -> list[str]:
    """Return the cells of a run in the table of results, with a dash for what is not known yet."""
    best, evaluation, dash = run.best, run.evaluation, "–"
    accuracy, trained, balanced, evaluated = dash, [dash] * 5, dash, [dash] * 3
    if best:
        accuracy = f"{best['val_accuracy']:.2%}"
        trained = [f"{best['epoch']} of {run.epochs}" + ("" if run.finished else ", unfinished")]
        trained += [f"{best[name]:.2%}" for name in ("val_top5", "train_accuracy")]
        trained += [f"{best[name]:.4f}" for name in ("val_loss", "val_nll")]
    if evaluation:
        balanced = f"{evaluation.class_scores.balanced_accuracy:.2%}"
        temperature = dash if run.temperature is None else f"{run.temperature:.3f}"
        evaluated = [f"{evaluation.logit_gap:.2f}", f"{evaluation.ece:.2%}", temperature]
    return [accuracy, balanced, *trained, *evaluated, f"{sum(row['seconds'] for row in run.history):,.0f} s"]


def settings_of(run: Run) -> dict[str, object]:
    """Return the options of a run by name, and what else decides over its results."""
    environment = {name: run.environment.get(name) for name in ("precision", "git_commit")}
    return {**options_of(run.recipe), **environment, "hardware": run.hardware}


def pair_rows(labels: Sequence[str], runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Return each run less the first one that was evaluated on the same pictures, as the table of pairs has them.

    Where recipes are compared, that is the first one of the same seed and fold.
    """
    rows, several = list[tuple[str, ...]](), len({kind_of(run.recipe) for run in runs}) > 1
    firsts = dict[tuple[object, ...], tuple[str, np.ndarray]]()
    for label, run in zip(labels, runs, strict=True):
        if run.evaluation is None:
            continue
        right, repetition = run.evaluation.right, repetition_of(run.recipe) if several else ()
        first_label, first_right = firsts.setdefault((repetition, *run.validated), (label, right))
        if label != first_label:
            difference = statistics.paired_difference(right, first_right)
            p = statistics.mcnemar(right, first_right)
            rows.append((label, first_label, *difference_cells(difference), f"{difference.n:,}", f"{p:.3g}"))
    return rows


def seed_rows(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Return the accuracy of each recipe over its seeds and folds, and its difference from the first recipe's.

    Recipes are the same that differ in those alone. None are returned where no recipe was repeated.
    """
    accuracies = dict[Recipe, dict[tuple[object, ...], float]]()  # by recipe, then by seed and fold
    for run in runs:
        if run.finished and run.best:
            accuracies.setdefault(kind_of(run.recipe), {})[repetition_of(run.recipe)] = run.best["val_accuracy"]
    if all(len(repetitions) < 2 for repetitions in accuracies.values()):
        return []
    rows, (first, *_) = list[tuple[str, ...]](), accuracies.values()
    for name, repetitions in zip(recipe_names([*accuracies]), accuracies.values(), strict=True):
        folds = folds_of(str(fold) for _, fold in repetitions)
        mean = statistics.mean_over([*repetitions.values()], folds)
        spread = f"{100 * np.std([*repetitions.values()], ddof=1):.2f}" if mean.n > 1 else "–"
        difference = None if repetitions is first else statistics.difference_over_seeds(repetitions, first, folds)
        cells = difference_cells(difference) if difference else ("–", "–")
        rows.append((name or "all", str(mean.n), f"{100 * mean.value:.2f}", spread, interval_of(mean, ".2f"), *cells))
    return rows


def homes(runs: Sequence[Run]) -> list[Path]:
    """Return the folders that hold the runs."""
    return sorted({run.path.absolute().parent for run in runs})


def pooled_rows(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Return folder, pictures, accuracy and its interval of each evaluation of several folds put together."""
    rows = list[tuple[str, ...]]()
    for file in (file for home in homes(runs) for file in sorted(home.glob("*/folds.json"))):
        if scores := read_scores(RunDir(file.parent), "val"):
            low, high = wilson(np.array([scores.accuracy * scores.n]), np.array([scores.n]))
            interval = f"{100 * low[0]:.2f} to {100 * high[0]:.2f}"
            rows.append((file.parent.name, f"{scores.n:,}", f"{100 * scores.accuracy:.2f}", interval))
    return rows


def difference_cells(difference: statistics.Difference) -> tuple[str, str]:
    """Return a difference and its interval in percentage points."""
    return signed(100 * difference.value, "+.2f"), interval_of(difference, "+.2f")


def interval_of(mean: statistics.Difference, form: str) -> str:
    """Return the interval in percentage points, or why it cannot be told."""
    if mean.high < inf:
        return " to ".join(signed(100 * each, form) for each in (mean.low, mean.high))
    return f"n = {mean.n}, all equal: none" if mean.n > 1 else "n = 1: none"


def signed(value: float, form: str) -> str:
    return format(value, form).replace("-", "−")
