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
from plumage.recipe import Recipe, option_name
from plumage.report import figures
from plumage.report.compare import comparison_page
from plumage.report.html import render
from plumage.report.matrix import Confusions
from plumage.report.reading import Run, read_run
from plumage.report.sections import evaluation_values, suspect_rows, unsearched
from plumage.report.words import findings
from plumage.tables import SIDES

log = logging.getLogger("plumage")


def write_report(paths: Sequence[Path], file: Path) -> None:
    """Write one HTML page about the runs at ``paths``: of one, whose figures also go to its figures/, or a comparison.

    Raises UserError where a path holds no run, or a file of it is damaged.
    """
    runs = [read_run(path) for path in paths]
    write_text(file, comparison_page(runs) if len(runs) > 1 else run_page(runs[0]))


def run_page(run: Run) -> str:
    """Return the page of one run, and write its figures beside it."""
    drawn, values = figures.single_run(run), dict[str, Any](samples=[])
    if evaluation := run.evaluation:
        confusions = Confusions(evaluation, len(run.classes))
        if matrix := confusions.draw(run.classes):
            drawn["confusion"] = matrix
        values = evaluation_values(run, evaluation, confusions)
    write_figures(run, drawn)
    train, val, test = map(run.counts, SIDES)
    every = train + val + test
    return render(
        "page.html",
        run=run,
        figures=drawn,
        data_name=Path(run.recipe.data).name or run.recipe.data,
        home=shlex.quote(str(run.path)),
        findings=findings(run),
        time=timedelta(seconds=round(sum(row["seconds"] for row in run.history))),
        environment=environment_rows(run.environment),
        pictures=(train.sum(), val.sum(), test.sum(), every.min(), np.median(every), every.max()),
        unvalidated=[name for name, count in zip(run.classes, val, strict=True) if not count],
        options=option_rows(run.recipe),
        unsearched=unsearched(run),
        suspect_rows=(suspected := suspect_rows(run)),
        suspects=[(pixels, suspected[row]) for row, pixels in run.suspect_pictures.items() if row < len(suspected)],
        recipe_json=json.dumps(asdict(run.recipe), indent=2),
        **values,
    )


def write_figures(run: Run, drawn: dict[str, Figure]) -> None:
    """Write each figure into the run's figures/: where that cannot be, the page has them nevertheless."""
    try:
        (run.path / "figures").mkdir(exist_ok=True)
        for name, figure in drawn.items():
            with written_whole(run.path / "figures" / f"{name}.png") as draft:
                figure.savefig(draft, dpi=150, format="png")
    except OSError as error:
        log.warning(f"{run.path}: no figures/ there: {error.strerror}")


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
