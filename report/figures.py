"""One function for each figure. Text and lines that belong to no run are drawn in INK, which a page may replace."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from plumage.engine.schedule import learning_rate
from plumage.errors import visible
from plumage.report import statistics
from plumage.report.reading import Run

INK = "#404040"
# Okabe and Ito's colours, which colour-blind readers can tell apart, without those that are too pale for lines.
BLUE, ORANGE, *_ = COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("-", "--", ":", "-.")
MATRIX = 400  # classes: a matrix of more has cells that nobody can tell apart, and memory for their square
BARS = 1000


def single_run(run: Run) -> dict[str, Figure]:
    """Return, by name, the figures of one run that its files suffice for."""
    figures = {"classes": images_per_class(run), **several_runs([run])}
    if run.evaluation:
        figures["calibration"] = reliability(run)
    if run.evaluation and len(run.classes) <= MATRIX:
        figures["confusion"] = confusions(run)
    return figures


def several_runs(runs: Sequence[Run]) -> dict[str, Figure]:
    """Return, by name, the figures in which several runs lie over each other."""
    figures = dict[str, Figure]()
    if begun := [run for run in runs if run.history]:
        figures["loss"] = curves(runs, "loss", "loss, label smoothing included, nats")
        figures["accuracy"] = curves(runs, "accuracy", "accuracy, %", 100)
        figures["learning-rate"] = learning_rates(begun)
    if any(run.evaluation for run in runs):
        figures["gap"] = logit_gaps(runs)
    return figures


def images_per_class(run: Run) -> Figure:
    """Draw how many pictures the classes have; of more than BARS, classes at even distances in that order."""
    figure, axes = _axes("class, most pictures first", "pictures")
    train, val = run.counts("train"), run.counts("val")
    classes, bars = len(run.classes), min(len(run.classes), BARS)
    shown = np.linspace(0, classes - 1, bars).round().astype(int)
    order, edges = np.argsort(-(train + val), kind="stable")[shown], np.linspace(0.5, classes + 0.5, bars + 1)
    axes.stairs(train[order], edges, fill=True, color=BLUE, label="training")
    both = (train + val)[order]
    axes.stairs(both, edges, baseline=train[order], fill=True, color=ORANGE, label="validation")
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def curves(runs: Sequence[Run], quantity: str, label: str, scale: float = 1) -> Figure:
    """Draw validation with the best epoch marked, and training, which is faint where there are several runs."""
    figure, axes = _axes("epoch", label)
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
    _legend(axes)
    return figure


def learning_rates(runs: Sequence[Run]) -> Figure:
    """Draw the schedule so far, with the recorded rates; faint, the rest of it, and step decay to compare."""
    figure, axes = _axes("epoch", "learning rate")
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
    _legend(axes)
    return figure


def logit_gaps(runs: Sequence[Run]) -> Figure:
    """Draw histograms of the measured gap, and the gap at which label smoothing has its optimum."""
    figure, axes = _axes("largest logit − mean of the others", "validation pictures, %")
    gaps = {run.path: run.evaluation.gaps for run in runs if run.evaluation}
    edges = np.histogram_bin_edges(np.concatenate(list(gaps.values())), bins=50)
    alone, drawn = len(runs) == 1, set()
    for run, colour, dashes, name in _styled(runs):
        if run.path not in gaps:
            continue
        several: dict[str, Any] = {"histtype": "step", "linestyle": dashes, "label": name}
        style = {"histtype": "stepfilled", "alpha": 0.6, "label": "measured"} if alone else several
        style["weights"] = np.full(len(gaps[run.path]), 100 / len(gaps[run.path]))
        axes.hist(gaps[run.path], list(edges), color=colour, **style)
        theory = statistics.theoretical_gap(len(run.classes), run.recipe.smoothing)
        if theory is not None and theory not in drawn:
            drawn.add(theory)
            axes.axvline(theory, color=ORANGE if alone else INK, ls="--", lw=1.5, label=f"theory, {theory:.2f}")
    _legend(axes)
    return figure


def reliability(run: Run) -> Figure:
    """Draw accuracy over confidence in bins: below the diagonal the network is surer than it should be."""
    assert run.evaluation
    counts, confidence, right = run.evaluation.bins
    used, width = counts > 0, 100 / len(counts)
    centers = width * (np.flatnonzero(used) + 0.5)
    sure, accuracy = (100 * sums[used] / counts[used] for sums in (confidence, right))
    figure, axes = _axes("confidence of the prediction, %", "accuracy, %")
    axes.plot([0, 100], [0, 100], color=INK, alpha=0.5, linewidth=1, linestyle="--", label="calibrated")
    for x, y, fullness in zip(centers, accuracy, counts[used] / counts.max(), strict=True):
        axes.bar(x, y, width=0.92 * width, color=BLUE, alpha=0.25 + 0.6 * fullness)
    axes.plot(sure, accuracy, "o", color=ORANGE, markersize=4, label="measured", clip_on=False, zorder=3)
    axes.set(xlim=(0, 100), ylim=(0, 100))
    _legend(axes, loc="upper left")
    return figure


def confusions(run: Run) -> Figure:
    """Draw the confusion matrix: each row in percent of its class's pictures, similar classes side by side."""
    assert run.evaluation
    evaluation, classes = run.evaluation, len(run.classes)
    order = statistics.similar_order(evaluation.logits, evaluation.labels)
    pairs, matrix = statistics.count_pairs(evaluation.labels, evaluation.predictions, classes), np.zeros((classes,) * 2)
    matrix[pairs.true, pairs.predicted] = pairs.pictures
    matrix = matrix[np.ix_(order, order)]
    percent = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    times = max(1, 600 // classes)  # enlarged here, since browsers would blur it
    enlarged, edges = percent.repeat(times, 0).repeat(times, 1), (0.5, classes + 0.5, classes + 0.5, 0.5)
    norm = PowerNorm(0.5, 0, 100)  # so that what is rare can be seen
    figure, axes = _axes("predicted class, similar ones side by side", "true class, in the same order", 5.2, 4.4)
    axes.grid(False)
    image = axes.imshow(enlarged, cmap="cividis", norm=norm, interpolation="none", extent=edges)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    bar = figure.colorbar(image, ticks=[0, 1, 5, 20, 50, 100])
    bar.set_label("of the true class's pictures, %", color=INK)
    bar.ax.tick_params(colors=INK)
    bar.outline.set_visible(False)
    return figure


def label_of(number: int, run: Run) -> str:
    """Return the name of a run among several, in characters that every font has."""
    name = visible(run.name)
    name = name if len(name) <= 30 else name[:27] + "..."
    return f"{number} {name.encode('ascii', 'replace').decode()}".replace("$", r"\$")


def _styled(runs: Sequence[Run]) -> list[tuple[Run, str, str, str]]:
    """Return each run with a colour and dashes of its own, as long as they last, and its label."""
    styles = [(colour, dashes) for dashes in DASHES for colour in COLOURS]
    return [(run, *styles[n % len(styles)], label_of(n + 1, run)) for n, run in enumerate(runs)]


def _axes(x: str, y: str, width: float = 5.2, height: float = 3.4) -> tuple[Figure, Axes]:
    figure = Figure((width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _legend(axes: Axes, **place: Any) -> None:
    axes.legend(frameon=False, labelcolor=INK, fontsize="small", **place)
