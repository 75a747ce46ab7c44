"""What a training ends with, and `eval` does: a run evaluated and calibrated, its suspects, and the report."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plumage.data.store import Cache
from plumage.engine.evaluate import evaluate, told
from plumage.errors import UserError
from plumage.hardware.device import Machine
from plumage.inference.calibration import calibrate
from plumage.inference.suspects import keep_suspects
from plumage.rundir.folder import RunDir
from plumage.rundir.folds import kept

log = logging.getLogger("plumage")


def review(run: RunDir, machine: Machine, cache: Cache) -> None:
    """Evaluate and calibrate a trained ``run``, and list its suspects.

    Of what folds put together, which has no network of its own, what they said is taken. Whatever goes wrong, the run
    is whole: it costs a line.
    """
    with telling(f"{run.path}: trained, but not evaluated"):
        evaluation = kept(run) if run.folds else evaluate(run, machine, cache)
        if evaluation is None:
            raise UserError("what its folds said could not be kept")
        if not run.folds:  # each of which has a temperature of its own
            calibrate(run, evaluation)
        with telling(f"{run.suspects}: not written"):
            keep_suspects(run, evaluation, machine, cache)


def measure(
    run: RunDir, machine: Machine, cache: Cache, calibrated: bool, suspected: bool, **which: Any
) -> tuple[dict[str, Any], list[str]]:
    """Evaluate a run and, if asked, calibrate it and list its suspects. Return the numbers by name, and lines on them.

    which: the checkpoint, data and split of ``engine.evaluate.evaluate``.
    """
    evaluation = evaluate(run, machine, cache, **which)
    result = evaluation.numbers
    lines = [f"{run.path}, {result['split']}, {result['n']} pictures"]
    lines += [f"  {line}" for line in told(evaluation, run.classes)]
    if calibrated:
        fitted = calibrate(run, evaluation)
        result |= {name: fitted[name] for name in ("temperature", "calibrated_nll")}
        better = f"nll {fitted['nll']:.4f} → {fitted['calibrated_nll']:.4f} (each half of them by the other's)"
        lines.append(f"  temperature {fitted['temperature']:.4f}: {better}")
    if suspected and (count := keep_suspects(run, evaluation, machine, cache)) is not None:
        result["suspects"] = count
        lines.append(f"  suspects  {count}, in {run.suspects}")
    return result, lines


def write_page(runs: Sequence[RunDir], file: Path) -> None:
    """Write the report of trained ``runs``; whatever goes wrong costs a line."""
    with telling(f"{file}: trained, but without a report"):
        from plumage.report.page import write_report  # noqa: PLC0415 (matplotlib may want what is not there)

        write_report([run.path for run in runs], file)


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Tell in one line whatever goes wrong."""
    try:
        yield
    except Exception as error:
        log.warning(f"{what}: {' '.join(str(error).split())}")
