"""Several runs compared: what differs between their recipes, and between their results. compare.html words it."""

from collections.abc import Sequence
from dataclasses import asdict, astuple, replace
from math import inf

import numpy as np

from plumage.inference.calibration import best_temperature
from plumage.recipe import Recipe, option_name
from plumage.report import figures, statistics
from plumage.report.html import render
from plumage.report.reading import Run


def comparison_page(runs: Sequence[Run]) -> str:
    """Return the page that compares ``runs``."""
    labels = [figures.label_of(number, run) for number, run in enumerate(runs, 1)]
    settings = differing([settings_of(run) for run in runs])
    return render(
        "compare.html",
        runs=runs,
        figures=figures.several_runs(runs),
        results=[(label, *result_cells(run)) for label, run in zip(labels, runs, strict=True)],
        settings=[name.replace("_", " ") for name in settings],
        setting_rows=list(zip(labels, *settings.values(), strict=True)),
        setting_numbers=[n for n, values in enumerate(settings.values(), 1) if {*map(type, values)} <= {int, float}],
        pairs=pair_rows(labels, runs),
        over_seeds=seed_rows(runs),
        commands=[(label, run.command) for label, run in zip(labels, runs, strict=True)],
    )


def result_cells(run: Run) -> list[str]:
    """Return the cells of a run in the table of results, with a dash for what is not known yet."""
    best, evaluation = run.best, run.evaluation
    trained, evaluated = ["–"] * 6, ["–"] * 4
    if best:
        trained = [f"{best['epoch']} of {run.epochs}" + ("" if run.finished else ", unfinished")]
        trained += [f"{best[name]:.2%}" for name in ("val_accuracy", "val_top5")]
        trained += [f"{best[name]:.4f}" for name in ("val_loss", "val_nll")]
        trained += [f"{best['train_accuracy']:.2%}"]
    if evaluation:
        theory = statistics.theoretical_gap(len(run.classes), run.recipe.smoothing)
        evaluated = [f"{evaluation.logit_gap:.2f}", "none" if theory is None else f"{theory:.2f}"]
        evaluated += [f"{evaluation.ece:.2%}", f"{best_temperature(evaluation.logits, evaluation.labels):.3f}"]
    return [*trained, *evaluated, f"{sum(row['seconds'] for row in run.history):,.0f} s"]


def options_of(recipe: Recipe) -> dict[str, object]:
    return {option_name(name): value for name, value in asdict(recipe).items()}


def settings_of(run: Run) -> dict[str, object]:
    """Return the options of a run by name, and what else decides over its results."""
    environment = {name: run.environment.get(name) for name in ("precision", "git_commit")}
    return {**options_of(run.recipe), **environment, "hardware": run.hardware}


def differing(settings: Sequence[dict[str, object]]) -> dict[str, list[object]]:
    """Return, by name, the values that are not the same in all ``settings``."""
    columns = {name: [each[name] for each in settings] for name in settings[0]}
    return {name: values for name, values in columns.items() if any(value != values[0] for value in values)}


def pair_rows(labels: Sequence[str], runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Return each run less the first one that was evaluated on the same pictures, as the table of pairs has them."""
    rows = list[tuple[str, ...]]()
    firsts = dict[tuple[tuple[str, ...], ...], tuple[str, np.ndarray]]()
    for label, run in zip(labels, runs, strict=True):
        if run.evaluation is None:
            continue
        right = run.evaluation.right
        first_label, first_right = firsts.setdefault(tuple(run.validated), (label, right))
        if label != first_label:
            difference = statistics.paired_difference(right, first_right)
            p = statistics.mcnemar(right, first_right)
            rows.append((label, first_label, *interval_cells(difference), f"{difference.n:,}", f"{p:.3g}"))
    return rows


def seed_rows(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Return the accuracy of each recipe over its seeds, and its difference from the first recipe's.

    Recipes are the same that differ in the seed alone. None are returned where no recipe has two seeds.
    """
    accuracies = dict[Recipe, dict[int, float]]()  # by recipe, then by seed
    for run in runs:
        if run.finished and run.best:
            accuracies.setdefault(replace(run.recipe, seed=0), {})[run.recipe.seed] = run.best["val_accuracy"]
    if all(len(by_seed) < 2 for by_seed in accuracies.values()):
        return []
    rows, options = list[tuple[str, ...]](), differing([options_of(recipe) for recipe in accuracies])
    first, *_ = accuracies.values()
    for number, by_seed in enumerate(accuracies.values()):
        percent = 100 * np.array(list(by_seed.values()))
        spread = f" ± {percent.std(ddof=1):.2f}" if len(percent) > 1 else ""
        difference = None if by_seed is first else statistics.difference_over_seeds(by_seed, first)
        cells = interval_cells(difference) if difference else ("–", "–")
        recipe = ", ".join(f"{name} {values[number]}" for name, values in options.items()) or "all"
        rows.append((recipe, f"{percent.mean():.2f}{spread}", *cells, str(len(percent))))
    return rows


def interval_cells(difference: statistics.Difference) -> tuple[str, str]:
    """Return a difference and its interval in percentage points."""
    value, low, high = (f"{100 * each:+.2f}".replace("-", "−") for each in astuple(difference)[:3])
    return value, f"{low} to {high}" if difference.high < inf else "none"
