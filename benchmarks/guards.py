"""What being careful costs: training as `train` does it, with guards and checkpoints, against the bare steps.

    python benchmarks/guards.py -o benchmarks/results/guards-cpu.md

One training of ResNet-50, so that all see the same memory, is gone on with in blocks of a few steps, of three kinds:
the bare steps in a plain loop; the Engine of `train` with all that is attached to it (learning rate, metrics,
divergence guard, progress, history, checkpoints, stop signals); and the same with a checkpoint, whose writing it waits
for. A round has one block of each kind, in random order, so that whatever else the machine does hits all alike. Printed
are medians over the rounds with 95 % confidence intervals by the bootstrap: of the ratio of speeds to the bare block's
in the same round, and of what a checkpoint takes from training, the difference of the round's last two kinds. Together
they make the ratio of a training that saves every ten minutes; an epoch's end saves too.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter

import numpy as np
from ignite.engine import Events
from loop import Training
from table import provenance, publish

from plumage.engine.resume import save_state
from plumage.hardware.cores import usable_cores
from plumage.hardware.device import Machine, choose_device, choose_precision, set_up
from plumage.hardware.environment import environment
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir

MINUTES = 10  # --checkpoint-minutes of `train`, by default


def blocks(training: Training, run: RunDir, steps: int) -> dict[str, Callable[[], float]]:
    """The kinds of a block; each takes ``steps`` steps, to their end on the device, and returns its seconds."""
    trainer = training.trainer
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=steps), trainer.interrupt)

    def guarded() -> float:
        start = perf_counter()
        trainer.run(training.batches, max_epochs=1, epoch_length=training.steps)
        training.synchronise()
        return perf_counter() - start

    def with_checkpoint() -> float:
        start = perf_counter()
        save_state(training.state, run, training.writer)
        guarded()
        training.writer.wait()
        return perf_counter() - start

    return {"bare": lambda: training.plain(steps), "guards": guarded, "guards and a checkpoint": with_checkpoint}


def interval(values: list[float]) -> np.ndarray:
    """Low end, median and high end of ``values``: of the median, the 95 % confidence interval by the bootstrap."""
    drawn = np.random.default_rng(0).choice(values, (10_000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return np.array([low, median(values), high])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--steps", type=int, default=2, help="in a block")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--crop", type=int, default=56)
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # an Engine that is left inside an epoch complains
    device, draw = choose_device(args.device), Random(0)
    set_up(device, usable_cores())
    machine = Machine(device, choose_precision("auto", device), compile=False)
    options = {"weights": "none", "resize": args.crop + 8, "crop": args.crop, "batch_size": args.batch_size}
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder))
        training = Training(Recipe.create(options), machine, 10**9, run)
        kinds = blocks(training, run, args.steps)
        rounds = []
        for _ in range(args.rounds + 1):
            order = draw.sample(list(kinds), len(kinds))
            rounds.append({kind: kinds[kind]() for kind in order})
        del rounds[0]  # which warms up
        size = run.last.stat().st_size

    guards = interval([one["bare"] / one["guards"] for one in rounds])
    cost = interval([one["guards and a checkpoint"] - one["guards"] for one in rounds])
    every = 60 * MINUTES
    together = every / (every / guards + cost[::-1])
    step = median(one["bare"] for one in rounds) / args.steps

    def shown(values: np.ndarray, form: str) -> str:
        low, middle, high = (f"{value:{form}}" for value in values)
        return f"{middle} ({low} to {high})"

    lines = [
        "# What guards and checkpoints cost\n",
        *provenance(environment(machine)),
        f"- ResNet-50, {args.crop} px, batches of {args.batch_size}; {step * 1e3:.1f} ms a bare step",
        f"- {args.steps} steps a block, n = {args.rounds} rounds",
        "\n| What | Median (95 % interval) |",
        "| --- | --- |",
        f"| Speed with all that `train` attaches, to that of the bare steps | {shown(guards, '.4f')} |",
        f"| Seconds that a checkpoint of {size / 1e6:.0f} MB takes from training | {shown(cost, '.3f')} |",
        f"| The same with a checkpoint every {MINUTES} minutes | {shown(together, '.4f')} |",
        f"| Seconds of the shortest epoch whose checkpoint takes at most 1 % of it | {shown(100 * cost, '.0f')} |",
    ]
    text = "\n".join(lines)
    publish(text, args.output)


if __name__ == "__main__":
    main()
