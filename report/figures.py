"""Figures of curves and histograms, one function for each: of one run, or of several that lie over each other."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from plumage.engine.schedule import learning_rate
from plumage.inference import rejection
from plumage.report import statistics
from plumage.report.labels import kind_names, run_names
from plumage.report.reading import Run
from plumage.report.style import BLUE, INK, NAMED, ORANGE, drawable, legend, line_styles, new_axes

BARS = 1000


def single_run(run: Run) -> dict[str, Figure]:
    """Return, by name, the figures of one run that its files suffice for."""
    figures = several_runs([run])
    if np.ptp(run.counts("train") + run.counts("val")):
        figures["classes"] = images_per_class(run)
    if run.evaluation:
        figures["calibration"] = reliability(run)
        figures["risk-coverage"] = risk_coverage(run)
    return figures


def several_runs(runs: Sequence[Run]) -> dict[str, Figure]:
    """Return, by name, the figures in which several runs lie over each other."""
    figures = dict[str, Figure]()
    if begun := [run for run in runs if run.history]:
        figures["loss"] = curves(begun, "loss", "loss, label smoothing included, nats")
        figures["accuracy"] = curves(begun, "accuracy", "accuracy, %", 100)
        figures["learning-rate"] = learning_rates(begun)
    if evaluated := [run for run in runs if run.evaluation]:
        figures["gap"] = logit_gaps(evaluated)
    return figures


def images_per_class(run: Run) -> Figure:
    """Draw how many pictures the classes have, by name; of many, in order; of more than BARS, at even distances."""
    train, val = run.counts("train"), run.counts("val")
    classes, trained = len(run.classes), "training" if train.any() else None  # folds put together have none
    order = np.argsort(-(train + val), kind="stable")
    if classes <= NAMED:
        figure, axes = new_axes("pictures", "", 0.9 + 0.21 * classes)
        places = np.arange(classes)
        axes.barh(places, train[order], color=BLUE, label=trained)
        axes.barh(places, val[order], left=train[order], color=ORANGE, label="validation")
        axes.set_yticks(places, [drawable(run.classes[number]) for number in order], fontsize="small")
        axes.set_ylim(classes - 0.4, -0.6)
        axes.grid(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        shown = np.linspace(0, classes - 1, min(classes, BARS)).round().astype(int)
        figure, axes = new_axes("classes, most pictures first", "pictures")
        bottom, top = train[order[shown]], (train + val)[order[shown]]
        edges = np.linspace(0.5, classes + 0.5, len(shown) + 1)
        axes.stairs(bottom, edges, fill=True, color=BLUE, label=trained)
        axes.stairs(top, edges, baseline=bottom, fill=True, color=ORANGE, label="validation")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
    legend(axes)
    return figure


def curves(runs: Sequence[Run], quantity: str, label: str, scale: float = 1) -> Figure:
    """Draw validation with the best epoch marked, and training, which is faint where there are several runs."""
    figure, axes = new_axes("epoch", label)
    alone, values = len(runs) == 1, [0.0]
    for run, colour, dashes, name in _styled(runs):
        epochs = [row["epoch"] for row in run.history]
        train, val = ([scale * row[f"{side}_{quantity}"] for row in run.history] for side in ("train", "val"))
        values += train + val
        dot = "." if len(epochs) < 30 else ""
        axes.plot(epochs, val, dashes, color=colour, marker=dot, label="validation" if alone else name, zorder=3)
        faint: dict[str, Any] = {"color": ORANGE} if alone else {"color": colour, "alpha": 0.35, "linewidth": 0.8}
        axes.plot(epochs, train, "--" if alone else dashes, marker=dot, label="training" if alone else None, **faint)
        if run.best:
            at = run.best["epoch"]
            best = f"best epoch, {at}" if alone else None
            axes.plot(at, val[epochs.index(at)], "o", color=colour, fillstyle="none", markersize=9, label=best)
    if scale == 1 and max(values) > 20 * min(filter(None, values), default=1):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes)
    return figure


def learning_rates(runs: Sequence[Run]) -> Figure:
    """Draw the schedule so far, with the recorded rates; faint, the rest of it, and step decay to compare."""
    figure, axes = new_axes("epoch", "learning rate")
    for run, colour, dashes, name in _styled(runs):
        recipe, last = run.recipe, run.history[-1]
        steps = last["iteration"] / last["epoch"]
        total, warmup = round(recipe.epochs * steps), round(recipe.warmup_epochs * steps)
        when = np.unique(np.linspace(0, total - 1, 600).round())
        done = when < last["iteration"]
        rates, stepped = (
            np.array([learning_rate(int(at), total, warmup, recipe.lr, schedule) for at in when])
            for schedule in (recipe.schedule, "step")
        )
        epochs, alone = (when + 1) / steps, len(runs) == 1
        axes.plot(epochs[done], rates[done], dashes, color=colour, label=recipe.schedule if alone else name, zorder=3)
        axes.plot(epochs[~done], rates[~done], ":", color=colour, alpha=0.6)
        recorded = [(row["epoch"], row["lr"]) for row in run.history]
        axes.plot(*zip(*recorded, strict=True), ".", color=colour, label="recorded" if alone else None, zorder=3)
        if alone and recipe.schedule != "step":
            axes.plot(epochs, stepped, color=INK, alpha=0.35, linewidth=1, label="step decay, to compare")
    axes.set_ylim(bottom=0)
    legend(axes)
    return figure


def logit_gaps(runs: Sequence[Run]) -> Figure:
    """Draw histograms of the measured gap, and the gap at which label smoothing has its optimum."""
    figure, axes = new_axes("largest logit − mean of the others", "validation pictures, %")
    gaps = [run.evaluation.gaps for run in runs if run.evaluation]
    edges = np.histogram_bin_edges(np.concatenate(gaps), bins=50)
    alone, drawn = len(runs) == 1, set()
    for (run, colour, dashes, name), of in zip(_styled(runs), gaps, strict=True):
        several: dict[str, Any] = {"histtype": "step", "linestyle": dashes, "label": name}
        style = {"histtype": "stepfilled", "alpha": 0.6, "label": "measured"} if alone else several
        axes.hist(of, list(edges), color=colour, weights=np.full(len(of), 100 / len(of)), **style)
        theory = statistics.theoretical_gap(len(run.classes), run.recipe.smoothing)
        if theory is not None and theory not in drawn:
            drawn.add(theory)
            label = f"theory, {theory:.2f}" if alone else "theory" if len(drawn) == 1 else None
            axes.axvline(theory, color=ORANGE if alone else INK, ls="--", lw=1.5, label=label)
    legend(axes)
    return figure


def reliability(run: Run) -> Figure:
    """Draw accuracy over confidence in bins: below the diagonal the network is surer than it should be."""
    assert run.evaluation
    counts, confidence, right = run.evaluation.bins
    used, width = counts > 0, 100 / len(counts)
    centers = width * (np.flatnonzero(used) + 0.5)
    sure, accuracy = (100 * sums[used] / counts[used] for sums in (confidence, right))
    figure, axes = new_axes("confidence of the prediction, %", "accuracy, %")
    axes.plot([0, 100], [0, 100], color=INK, alpha=0.5, linewidth=1, linestyle="--", label="calibrated")
    for x, y, fullness in zip(centers, accuracy, counts[used] / counts.max(), strict=True):
        axes.bar(x, y, width=0.92 * width, color=BLUE, alpha=0.25 + 0.6 * fullness)
    axes.plot(sure, accuracy, "o", color=ORANGE, markersize=4, label="measured", clip_on=False, zorder=3)
    axes.set(xlim=(0, 100), ylim=(0, 100))
    legend(axes)
    return figure


def risk_coverage(run: Run) -> Figure:
    """Draw how much is wrong of what is kept, if the least sure predictions are left out; of all it is the error."""
    assert run.evaluation
    measure = (run.confidences, run.evaluation.right)
    curve, points = rejection.risk_coverage(*measure), rejection.thresholds(*measure)
    shown = np.unique(np.linspace(0, len(curve.risk) - 1, 1000).round().astype(int))
    coverage, risk = (100 * values[shown] for values in curve)
    figure, axes = new_axes("predictions that are kept, the surest first, %", "wrong among them, %")
    axes.plot(coverage, risk, color=BLUE, label="measured", zorder=3)
    promised: dict[str, Any] = {"color": ORANGE, "linewidth": 1, "label": "at most, as --reject promises"}
    axes.plot(100 * points[:, 1], 100 * points[:, 2], "--", **promised)
    # Among the first few, one that is wrong is much.
    axes.set(xlim=(0, 100), ylim=(0, 1.1 * max(risk[-1], *risk[coverage >= 10], 1)))
    legend(axes)
    return figure


def _styled(runs: Sequence[Run]) -> list[tuple[Run, str, str, str | None]]:
    """Return each run with its colour, dashes and label: those of one kind share them, where there are several kinds.

    Then the first of each kind has the label.
    """
    kinds, styles = kind_names(runs), line_styles()
    repeated = 1 < len(set(kinds)) < len(runs)
    names, count = kinds if repeated else run_names(runs), Counter(kinds)
    style_of = {name: styles[number % len(styles)] for number, name in enumerate(dict.fromkeys(names))}
    labels: dict[str, str | None] = {name: drawable(name, 40) for name in names}
    if repeated:
        labels = {name: f"{label} ({count[name]} runs)" for name, label in labels.items()}
    return [(run, *style_of[name], labels.pop(name, None)) for run, name in zip(runs, names, strict=True)]
