"""The HTML report of a run, or of several against each other: one file that needs nothing else."""

import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from plumage.inference.calibration import best_temperature, log_softmax, nll
from plumage.recipe import Recipe, option_name
from plumage.report import figures, statistics
from plumage.report.compare import comparison
from plumage.report.html import Markup, drawing, element, fold, page, picture, safe, section, table, tiles
from plumage.report.reading import Evaluation, Run, read_run
from plumage.rundir.folder import replace_file

log = logging.getLogger("plumage")

SHOWN = 15  # rows of a long table before the rest is folded away


def write_report(paths: Sequence[Path], file: Path) -> None:
    """One HTML page into ``file``: of a run, whose figures also go to its figures/ as PNG, or of several, compared.

    Raises UserError where a path holds no run, or a file of it is damaged.
    """
    runs = [read_run(path) for path in paths]
    if len(runs) == 1:
        drawn = figures.single_run(runs[0])
        try:
            save_figures(drawn, runs[0].path / "figures")
        except OSError as error:
            log.warning(f"{runs[0].path}: no figures/ there: {error.strerror}")
        text = single(runs[0], drawn)
    else:
        text = comparison(runs)
    replace_file(file, text.encode("utf-8", "replace").decode())  # a file's name may be no text


def save_figures(drawn: dict[str, Figure], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, figure in drawn.items():
        draft = folder / f"{name}.tmp.png"
        figure.savefig(draft, dpi=150)
        draft.replace(folder / f"{name}.png")


def single(run: Run, drawn: dict[str, Figure]) -> str:
    parts = [headline(run), environment(run), data(run, drawn), model_and_recipe(run), curves(run, drawn)]
    if run.evaluation is None:
        needs = "The logit gap, calibration, classes and mistakes need an evaluation: "
        parts.append(section("Evaluation", missing(needs, run)))
    else:
        parts += [gap(run, run.evaluation, drawn), calibration(run.evaluation, drawn)]
        parts += [per_class(run, run.evaluation), confusions(run, run.evaluation, drawn), mistakes(run, run.evaluation)]
    return page(f"{run.name}: report", *parts, reproduce(run))


def missing(what: str, run: Run) -> Markup:
    command = f"python main.py eval --run {shlex.quote(str(run.path))}"
    return element("p", what, element("code", command), class_="missing")


def headline(run: Run) -> Markup:
    recipe, best = run.recipe, run.best
    shown: list[tuple[str, object]] = []
    if best:
        shown = [
            ("validation accuracy", f"{best['val_accuracy']:.2%}"),
            ("validation top-5", f"{best['val_top5']:.2%}"),
            ("validation loss", f"{best['val_loss']:.4f}"),
            ("training accuracy", f"{best['train_accuracy']:.2%}"),
            ("training loss", f"{best['train_loss']:.4f}"),
            ("time", timedelta(seconds=round(sum(row["seconds"] for row in run.history)))),
        ]
    shown += [("classes", f"{len(run.classes):,}"), ("pictures", f"{len(run.split):,}")]
    about = f"{recipe.model} on {Path(recipe.data).name or recipe.data}, {run.hardware}. "
    state = f"Epoch {best['epoch']} of {recipe.epochs} is the best." if best else "No epoch is done yet."
    unfinished = f"Unfinished: {run.epochs} of {recipe.epochs} epochs are done."
    notes = [element("p", unfinished, class_="missing")] if not run.finished else []
    if best and run.evaluation and run.evaluation.iteration != best["iteration"]:
        other = f"What follows the curves is of an evaluation with accuracy {run.evaluation.accuracy:.2%} (checkpoint "
        other += f"{run.evaluation.checkpoint}), not of the best epoch. To refresh it: "
        notes.append(missing(other, run))
    lead = element("p", about, state, class_="lead")
    return element("header", element("h1", run.name), lead, *notes, tiles(shown))


def environment(run: Run) -> Markup:
    facts = {**run.environment}
    facts.pop("command", None)  # which ends the report
    versions = facts.pop("packages", None)
    facts |= versions if isinstance(versions, dict) else {}
    rows = [(name.replace("_", " "), "none" if value is None else str(value)) for name, value in facts.items()]
    return section("Environment", in_two(("property", "value"), rows))


def data(run: Run, drawn: dict[str, Figure]) -> Markup:
    train, val = run.counts("train"), run.counts("val")
    both = train + val
    least, most = both.min(), both.max()
    spread = f"{least:,} to {most:,}, in the median {np.median(both):,.0f}" if least < most else f"{most:,}"
    parts: list[Markup] = [
        element(
            "p",
            f"{len(run.classes):,} classes, {train.sum():,} training and {val.sum():,} validation pictures; of each "
            f"class {spread}. From {run.recipe.data}.",
        )
    ]
    if absent := [name for name, count in zip(run.classes, val, strict=True) if not count]:
        parts.append(
            element("p", f"Without validation pictures: {', '.join(absent[:SHOWN])}{' …' * (len(absent) > SHOWN)}")
        )
    parts.append(drawing(drawn["classes"], "Pictures per class"))
    if run.skipped:
        parts.append(
            fold(f"{len(run.skipped):,} files could not be read", table(("file", "reason"), run.skipped[:200]))
        )
    if run.evaluation and "samples" in run.evaluation.pictures:
        shown = []
        for pixels, row in zip(*run.evaluation.pictures["samples"], strict=True):
            name = run.classes[run.evaluation.labels[row]]
            shown.append(element("figure", picture(pixels, name), name))
        parts += [element("h3", "As the network sees them"), element("div", *shown, class_="strip")]
    return section("Data", *parts)


def model_and_recipe(run: Run) -> Markup:
    recipe = run.recipe
    # The rate follows from the size of a batch, unless it was given.
    preset = Recipe.create({"preset": recipe.preset, "data": recipe.data, "batch_size": recipe.batch_size})
    usual = {**asdict(preset), "batch_size": Recipe.create({"preset": recipe.preset, "data": recipe.data}).batch_size}
    rows = list[tuple[object, ...]]()
    for name, value in asdict(recipe).items():
        if value == usual[name]:
            rows.append((element("code", option_name(name)), str(value)))
        else:
            changed = element("code", element("b", option_name(name), class_="changed"))
            rows.append((changed, Markup(element("b", value) + safe(f" (preset: {usual[name]})"))))
    note = element("p", f"Every option; those that differ from the preset {recipe.preset} are marked.", class_="soft")
    return section("Model and recipe", note, in_two(("option", "value"), rows))


def in_two(head: Sequence[object], rows: Sequence[Sequence[object]]) -> Markup:
    """A long table as two, side by side where there is room."""
    half = (len(rows) + 1) // 2
    return element("div", table(head, rows[:half]), table(head, rows[half:]), class_="pair")


def curves(run: Run, drawn: dict[str, Figure]) -> Markup:
    if not run.history:
        return section("Learning curves", element("p", "No epoch is done yet.", class_="missing"))
    smoothed = f"with label smoothing {run.recipe.smoothing:g}" if run.recipe.smoothing else "without label smoothing"
    pair = element(
        "div",
        drawing(drawn["loss"], "Loss by epoch", f"As trained, {smoothed}."),
        drawing(
            drawn["accuracy"], "Accuracy by epoch", "Training: of the augmented pictures, while the weights change."
        ),
        class_="pair",
    )
    rate = section("Learning rate", drawing(drawn["learning-rate"], "Learning rate by epoch"))
    return Markup(section("Learning curves", pair) + rate)


def gap(run: Run, found: Evaluation, drawn: dict[str, Figure]) -> Markup:
    smoothing, classes = run.recipe.smoothing, len(run.classes)
    theory = statistics.theoretical_gap(classes, smoothing)
    says = f"The mean is {found.logit_gap:.2f}. "
    if theory is None:
        says += "Without label smoothing no finite gap is optimal: the loss falls as the gap grows."
    else:
        formula = f"log((K − 1)(1 − ε) / ε) = {theory:.2f}, with K = {classes} and ε = {smoothing:g}"
        says += f"Label smoothing alone has its optimum at {formula}."
    return section("Logit gap", drawing(drawn["gap"], "Histogram of the logit gap", says))


def calibration(found: Evaluation, drawn: dict[str, Figure]) -> Markup:
    logits, labels = found.logits, found.labels
    temperature = best_temperature(logits, labels)
    before, after = (nll(each, labels) for each in (logits, logits / temperature))
    shown = [
        ("expected calibration error", f"{found.ece:.2%}"),
        ("calibrating temperature", f"{temperature:.3f}"),
        ("NLL, before and after", f"{before:.4f} → {after:.4f}"),
    ]
    says = (
        f"In {found.bins.shape[1]} bins, the stronger the more pictures. The network is too "
        f"{'unsure' if temperature < 1 else 'sure'} of itself: divided by {temperature:.3f}, its logits have the "
        "smallest NLL on these pictures."
    )
    figure = drawing(drawn["calibration"], "Reliability diagram", says)
    return section("Calibration", element("div", figure, tiles(shown), class_="pair"))


def per_class(run: Run, found: Evaluation) -> Markup:
    counts = np.bincount(found.labels, minlength=len(run.classes))
    right = np.bincount(found.labels[found.right], minlength=len(run.classes))
    share = right / np.maximum(counts, 1)
    train = run.counts("train")
    order = sorted(np.flatnonzero(counts), key=lambda label: (share[label], -counts[label]))
    rows = [(run.classes[k], f"{share[k]:.1%}", f"{right[k]} of {counts[k]}", train[k]) for k in order]
    head = ("class", "accuracy", "right", "trained on")
    rest = [fold(f"the other {len(rows) - SHOWN} classes", table(head, rows[SHOWN:]))] if len(rows) > SHOWN else []
    return section("Accuracy per class, worst first", table(head, rows[:SHOWN]), *rest)


def confusions(run: Run, found: Evaluation, drawn: dict[str, Figure]) -> Markup:
    matrix = statistics.confusion_matrix(found.labels, found.predictions, len(run.classes))
    counts = matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    most = np.argsort(-matrix, axis=None, kind="stable")[:SHOWN]
    pairs = [
        (true, taken) for true, taken in zip(*np.unravel_index(most, matrix.shape), strict=True) if matrix[true, taken]
    ]
    rows = [(run.classes[i], run.classes[j], f"{matrix[i, j]} of {counts[i]}") for i, j in pairs]
    shown = table(("true class", "taken for", "pictures"), rows) if rows else element("p", "None was confused.")
    figure = drawing(drawn["confusion"], "Confusion matrix")
    return section("Confusions", element("div", figure, shown, class_="pair"))


def mistakes(run: Run, found: Evaluation) -> Markup:
    title = "The most confident mistakes"
    if found.right.all():
        return section(title, element("p", "There are none."))
    if "thumbnails" not in found.pictures:
        return section(title, missing("The evaluation kept no pictures. To make them: ", run))
    _, rows = found.pictures["thumbnails"]
    confidence = np.exp(log_softmax(found.logits[rows]).max(axis=1))
    shown = []
    for pixels, row, sure in zip(*found.pictures["thumbnails"], confidence, strict=True):
        true, taken = run.classes[found.labels[row]], run.classes[found.predictions[row]]
        words = (element("b", taken), f" {sure:.0%}", Markup("<br>"), f"is {true}")
        shown.append(element("figure", picture(pixels, run.validated[row][0]), *words, title=run.validated[row][0]))
    note = element("p", "What was predicted and how surely, and what it is.", class_="soft")
    return section(title, note, element("div", *shown, class_="strip"))


def reproduce(run: Run) -> Markup:
    commit = run.environment.get("git_commit")
    lines = ([f"git checkout {commit}"] if commit else []) + [run.command]
    recipe = fold("recipe.json", element("pre", json.dumps(asdict(run.recipe), indent=2)))
    return section("To reproduce it", element("pre", "\n".join(lines)), recipe)
