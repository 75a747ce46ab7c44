"""Out of fold: what the folds of an ablation validated, put together, of each combination and seed."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from plumage.ablation.plan import Outcome, in_folds
from plumage.data.samples import some
from plumage.data.split import read_digests, write_digests
from plumage.data.store import Cache
from plumage.engine.evaluate import evaluate
from plumage.errors import UserError
from plumage.files import write_json
from plumage.hardware.device import Machine
from plumage.inference.calibration import useful_temperature
from plumage.review import review, write_page
from plumage.rundir.evaluation import Evaluation
from plumage.rundir.folder import RunDir
from plumage.rundir.folds import joined, kept
from plumage.tables import FOLDS, GROUP, SKIPPED, SPLIT, read_table, write_table

log = logging.getLogger("plumage")


def conclude(
    outcomes: Sequence[Outcome], home: Path, machine: Machine, cache: Cache, with_report: bool
) -> Iterator[str]:
    """Put together what folds validated and, if ``with_report``, evaluate all that was trained and write the pages.

    Yields a line on each that is put together.
    """
    trained = [outcome.run for outcome in outcomes if not outcome.error]
    with RunDir(home).locked():
        for run in trained if with_report else ():
            review(run, machine, cache)
        for run, line in put_together(outcomes, home, machine, cache):
            if with_report:
                review(run, machine, cache)
                write_page([run], run.path / "report.html")
            yield line
        if trained and with_report:
            write_page(trained, home / "report.html")
            yield f"all of it side by side: {home / 'report.html'}"


def put_together(
    outcomes: Sequence[Outcome], home: Path, machine: Machine, cache: Cache
) -> Iterator[tuple[RunDir, str]]:
    """Yield what the folds of each combination and seed validated as a run's folder below ``home``, and a line on it.

    What cannot be evaluated is missing, and named. Nothing is yielded where all were trained with one fold, or none.
    """
    several = len({outcome.trial.recipe.seed for outcome in outcomes}) > 1
    together: dict[str, list[Outcome]] = {}
    for outcome in outcomes if in_folds(outcomes) else ():
        seed = f"seed={outcome.trial.recipe.seed}" if several else ""
        name = ",".join(filter(None, ("out-of-fold", outcome.trial.safe_combination, seed)))
        together.setdefault(name, []).append(outcome)
    for name, trained in together.items():
        run = RunDir(home / name)
        try:
            line = keep(run, trained, machine, cache)
        except Exception as error:  # the folds are trained, and whole
            log.warning(f"{run.path}: is not put together: {' '.join(str(error).split())}")
            continue
        yield run, line


def keep(run: RunDir, trained: list[Outcome], machine: Machine, cache: Cache) -> str:
    """Write what these folds validated into ``run``, as if one had validated it all. Returns a line on it."""
    evaluations: dict[RunDir, Evaluation] = {}
    for outcome in trained:
        if not outcome.error and (evaluation := evaluation_of(outcome.run, machine, cache)):
            evaluations[outcome.run] = evaluation
    if not evaluations:
        raise UserError("none of its folds was evaluated")
    check_whole(list(evaluations), list(evaluations.values()))
    each = evaluations.values()
    evaluation = joined(list(each), [useful_temperature(one.logits, one.labels)[0] or 1.0 for one in each])
    lacking = [outcome.trial.replicate for outcome in trained if outcome.run not in evaluations]
    describe(run, list(evaluations), lacking)
    evaluation.save(run, "eval-val")
    without = f", without {some(lacking)}" if lacking else ""
    which = f"out of fold, {trained[0].trial.combination}, seed {trained[0].trial.recipe.seed}"
    return f"{which}: accuracy {evaluation.accuracy:.2%} of {len(evaluation.labels)} pictures{without}, in {run.path}"


def evaluation_of(run: RunDir, machine: Machine, cache: Cache) -> Evaluation | None:
    """Return what a fold's best epoch says of its validation pictures; None where it cannot be told, which is."""
    try:
        with suppress(UserError):  # what is damaged is computed again
            if evaluation := kept(run):
                return evaluation
        return evaluate(run, machine, cache)
    except (UserError, RuntimeError, OSError, MemoryError) as error:
        log.warning(f"{run.path}: its fold is left out: {' '.join(str(error).split())}")
        return None


def check_whole(runs: Sequence[RunDir], evaluations: Sequence[Evaluation]) -> None:
    """Raise UserError where ``runs`` are no folds of the same pictures: these have changed in between."""
    first, *others = map(listing, runs)
    if different := [run for run, other in zip(runs[1:], others, strict=True) if other != first]:
        raise UserError(
            f"{different[0].path} has other pictures or classes than {runs[0].path}: they changed in between"
        )
    rows = [row for evaluation in evaluations for row in evaluation.indices.tolist()]
    if len(set(rows)) < len(rows):
        raise UserError(f"{runs[0].path} and others validate the same pictures, and are no folds")


def listing(run: RunDir) -> str:
    """Return a hash of what all folds share: the classes, and split.csv but for what trains and what validates."""
    digest = blake2b(repr(run.classes).encode(errors="surrogateescape"))
    for _, (path, label, side, *group) in read_table(run.split, SPLIT, GROUP):
        digest.update(repr((path, label, side == "test", group)).encode(errors="surrogateescape"))
    return digest.hexdigest()


def describe(run: RunDir, folds: Sequence[RunDir], lacking: Sequence[str]) -> None:
    """Write what a run's folder has beside its results, from what ``folds`` share: all validates but what tests."""
    first = folds[0]
    run.path.mkdir(exist_ok=True)
    names = [os.path.relpath(fold.path, run.path) for fold in folds]
    write_json(run.path / FOLDS, {"runs": names, "missing": list(lacking)})
    rows = [cells for _, cells in read_table(first.split, SPLIT, GROUP)]
    sides = ((path, label, side if side == "test" else "val", *group) for path, label, side, *group in rows)
    write_table(run.split, (*SPLIT, *GROUP)[: len(rows[0])], sides)
    if (digests := read_digests(first.digests, len(rows))) is not None:
        write_digests(run.digests, digests)
    write_table(run.skipped, SKIPPED, (cells for _, cells in read_table(first.skipped, SKIPPED)))
    run.keep_levels(first.levels)
    run.describe(replace(first.recipe, fold="none"), first.classes, first.environment)
