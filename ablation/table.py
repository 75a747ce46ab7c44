"""What an ablation found: a line for each run in ablation.csv, and one for each combination in the terminal."""

from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from plumage.ablation.plan import Outcome, in_folds, show
from plumage.data.samples import some
from plumage.recipe import fold_of
from plumage.report.labels import folds_of
from plumage.report.statistics import Difference, difference_over_seeds, mean_over
from plumage.tables import write_table


def write_results(outcomes: list[Outcome], file: Path) -> None:
    """Write ablation.csv: a line for each run, with its best epoch's numbers and the seconds of all its epochs."""
    numbers = ("epoch", "val_accuracy", "val_balanced_accuracy", "val_loss", "val_nll", "train_accuracy")
    folds = in_folds(outcomes)

    def row(outcome: Outcome) -> tuple[Any, ...]:
        results: list[Any] = [""] * (len(numbers) + 1)
        if not outcome.error:
            history = outcome.run.history
            seconds = round(sum(epoch["seconds"] for epoch in history), 3)
            results = [*(history.best.get(name, "") for name in numbers), seconds]  # older rows lack some
        trial = outcome.trial
        fold = (fold_of(trial.recipe.fold) or ("",))[:1] if folds else ()  # a spreadsheet takes 1/5 for a day
        return (trial.name, *map(show, trial.values.values()), trial.recipe.seed, *fold, *results, outcome.error)

    varied = outcomes[0].trial.values
    columns = ("run", *varied, "seed", *(["fold"] if folds else ()), "best_epoch", *numbers[1:], "seconds", "error")
    write_table(file, columns, map(row, outcomes))


def table(outcomes: list[Outcome]) -> Iterator[str]:
    """Yield lines: for each combination its accuracy, and how far that lies from the first combination's."""
    accuracies: dict[str, dict[str, float]] = {outcome.trial.combination: {} for outcome in outcomes}
    failed: dict[str, list[str]] = {combination: [] for combination in accuracies}
    for outcome in outcomes:
        combination, replicate = outcome.trial.combination, outcome.trial.replicate
        if outcome.error:
            failed[combination].append(replicate)
        else:
            accuracies[combination][replicate] = 100 * outcome.run.history.best["val_accuracy"]
    first, *_ = accuracies.values()
    width, folds = max(map(len, accuracies)), folds_of(outcome.trial.recipe.fold for outcome in outcomes)
    yield from (FOLDS_HEADER if folds else SEEDS_HEADER)[: min(len(accuracies), 2)]
    for combination, by_replicate in accuracies.items():
        values, lacking = list(by_replicate.values()), failed[combination]
        spread = (interval_of(values, folds) if folds else f" ± {stdev(values):.2f}") if len(values) > 1 else ""
        cells = f"{mean(values):6.2f}{spread} %" if values else "     -"
        note = f" (without {some(lacking)})" if folds else f" ({len(lacking)} failed)"
        line = f"{combination:{width}}  {cells:16}  n = {len(values)}" + (note if lacking else "")
        if by_replicate is not first and (gap := difference_over_seeds(by_replicate, first, folds)):
            line += f"  {gap.value:+.2f} points ({describe(gap)})"
        yield line


# What the means are, and what the differences are, where there is something to compare.
SEEDS_HEADER = (
    "Validation accuracy of the best epoch: mean ± standard deviation over n seeds.",
    "Then the difference to the first line, seed by seed, with the 95 % interval of its mean by Student's t.",
)
FOLDS_HEADER = (
    "Validation accuracy of the best epoch: mean ± 95 % interval over n folds (Student's t; Nadeau and Bengio 2003).",
    "Then the difference to the first line, fold by fold, with the interval of its mean.",
)


def interval_of(values: Sequence[float], folds: int) -> str:
    interval = mean_over(values, folds)
    return f" ± {interval.high - interval.value:.2f}" if interval.high < inf else " ± ?"


def describe(gap: Difference) -> str:
    """Return the interval of a difference, or why there is none."""
    if gap.high < inf:
        return f"{gap.low:+.2f} to {gap.high:+.2f}, n = {gap.n}"
    return f"n = {gap.n}, all equal: no interval" if gap.n > 1 else "n = 1: no interval"
