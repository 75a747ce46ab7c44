"""Several runs against each other: what differs between their recipes, and between their results."""

from collections.abc import Sequence
from dataclasses import asdict
from math import inf

import numpy as np

from plumage.inference.calibration import best_temperature
from plumage.recipe import option_name
from plumage.report import figures, statistics
from plumage.report.html import Markup, drawing, element, page, section, table
from plumage.report.interval import Difference, difference_over_seeds
from plumage.report.reading import Run

CAPTIONS = {
    "loss": "Validation loss, and faint training loss, as trained: with each run's own label smoothing.",
    "accuracy": "Validation accuracy, and faint that on the augmented training pictures.",
    "learning-rate": "",
    "gap": "Of the runs that were evaluated; dashed, the optimum of label smoothing.",
}


def comparison(runs: Sequence[Run]) -> str:
    names = [figures.label_of(number, run) for number, run in enumerate(runs, 1)]
    drawn = [drawing(figure, name, CAPTIONS[name]) for name, figure in figures.several_runs(runs).items()]
    title = f"{len(runs)} runs compared"
    return page(
        title,
        element("header", element("h1", title), element("p", ", ".join(run.name for run in runs), class_="lead")),
        section("Results", results(runs), unevaluated(runs)),
        section("What differs between them", recipes(runs)),
        section("Differences in accuracy", *differences(runs)),
        section("Figures", element("div", *drawn, class_="pair")) if drawn else Markup(),
        section("To reproduce them", *(commands(name, run) for name, run in zip(names, runs, strict=True))),
    )


def results(runs: Sequence[Run]) -> Markup:
    head = ["run", "best epoch", "accuracy", "top-5", "loss", "NLL", "training accuracy", "mean gap", "in theory"]
    rows: list[Sequence[object]] = []
    for number, run in enumerate(runs, 1):
        found, best = run.evaluation, run.best
        row: list[object] = [figures.label_of(number, run), *["–"] * (len(head) + 2)]
        if best:
            row[1] = f"{best['epoch']} of {run.epochs}" + ("" if run.finished else ", unfinished")
            row[2:4] = (f"{best[name]:.2%}" for name in ("val_accuracy", "val_top5"))
            row[4:6] = (f"{best[name]:.4f}" for name in ("val_loss", "val_nll"))
            row[6] = f"{best['train_accuracy']:.2%}"
        if found:
            theory = statistics.theoretical_gap(len(run.classes), run.recipe.smoothing)
            row[7] = f"{found.logit_gap:.2f}"
            row[8] = "none" if theory is None else f"{theory:.2f}"
            row[9] = f"{found.ece:.2%}"
            row[10] = f"{best_temperature(found.logits, found.labels):.3f}"
        row[11] = f"{sum(each['seconds'] for each in run.history):,.0f} s"
        rows.append(row)
    return table([*head, "ECE", "temperature", "time"], rows)


def unevaluated(runs: Sequence[Run]) -> Markup:
    lacking = ", ".join(str(run.path) for run in runs if run.evaluation is None)
    says = f"Not evaluated yet: {lacking}. python main.py eval --run RUN does it."
    return element("p", says, class_="missing") if lacking else Markup()


def recipes(runs: Sequence[Run]) -> Markup:
    about = [
        {
            **{option_name(name): value for name, value in asdict(run.recipe).items()},
            **{name: run.environment.get(name) for name in ("precision", "git_commit")},
            "hardware": run.hardware,
        }
        for run in runs
    ]
    names = differing(about)
    if not names:
        return element("p", "Nothing: recipe, precision, commit and hardware are the same.")
    rows = [
        [figures.label_of(number, run), *(str(facts[name]) for name in names)]
        for number, (run, facts) in enumerate(zip(runs, about, strict=True), 1)
    ]
    return table(["run", *(name.replace("_", " ") for name in names)], rows)


def differing(about: Sequence[dict[str, object]]) -> list[str]:
    return [name for name in about[0] if any(facts[name] != about[0][name] for facts in about)]


def differences(runs: Sequence[Run]) -> list[Markup]:
    """Between runs evaluated on the same pictures, each with the first of them; and between recipes, over seeds."""
    parts, bases, rows = [], dict[tuple[object, ...], tuple[int, Run]](), list[Sequence[object]]()
    for number, run in enumerate(runs, 1):
        if run.evaluation is None:
            continue
        first, base = bases.setdefault(tuple(run.validated), (number, run))
        if run is not base:
            assert base.evaluation
            right, others = run.evaluation.right, base.evaluation.right
            pair = (figures.label_of(number, run), figures.label_of(first, base))
            found = statistics.paired_difference(right, others)
            rows.append((*pair, *interval(found), f"{found.n:,}", f"{statistics.mcnemar(right, others):.3g}"))
    if rows:
        note = (
            "Over the same validation pictures, in pairs: the interval by bootstrap, p by McNemar's exact "
            "test. It covers which pictures were drawn, not the chance of training."
        )
        parts += [
            table(("run", "less run", "points", "95 % interval", "n", "p"), rows),
            element("p", note, class_="soft"),
        ]
    else:
        parts.append(element("p", "No two of these runs were evaluated on the same validation pictures."))
    return parts + over_seeds(runs)


def over_seeds(runs: Sequence[Run]) -> list[Markup]:
    """Recipes that differ in more than the seed, each with the first of them; nothing where none has two seeds."""
    groups = dict[str, tuple[dict[str, object], dict[int, float]]]()
    for run in runs:
        if run.finished and run.best:
            facts = {option_name(name): value for name, value in asdict(run.recipe).items() if name != "seed"}
            _, values = groups.setdefault(repr(facts), (facts, {}))
            values[run.recipe.seed] = run.best["val_accuracy"]
    if not any(len(values) > 1 for _, values in groups.values()):
        return []
    names = differing([facts for facts, _ in groups.values()])
    base = next(values for _, values in groups.values())
    rows = []
    for facts, values in groups.values():
        shares = 100 * np.array(list(values.values()))
        spread = f" ± {shares.std(ddof=1):.2f}" if len(shares) > 1 else ""
        gap = None if values is base else difference_over_seeds(values, base)
        shown = interval(gap) if gap else ("–", "–")
        rows.append(
            [
                ", ".join(f"{name} {facts[name]}" for name in names) or "all",
                f"{shares.mean():.2f}{spread}",
                *shown,
                str(len(shares)),
            ]
        )
    note = (
        "Accuracy of the best epoch, mean ± standard deviation over n seeds; the interval is Student's, of the "
        "differences seed by seed."
    )
    head = ("recipe", "accuracy, %", "points more than the first", "95 % interval", "n")
    return [element("h3", "Over seeds"), table(head, rows), element("p", note, class_="soft")]


def interval(difference: Difference) -> tuple[str, str]:
    """In percentage points."""
    value, low, high = (
        f"{100 * part:+.2f}".replace("-", "−") for part in (difference.value, difference.low, difference.high)
    )
    return value, f"{low} to {high}" if difference.high < inf else "none"


def commands(name: str, run: Run) -> Markup:
    return element("div", element("h3", name), element("pre", run.command))
