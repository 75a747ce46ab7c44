"""What surrounds the step of training costs: three measurements, one table each.

    python benchmarks/loop.py -o benchmarks/results/loop-cpu.md
    python benchmarks/loop.py guards -o benchmarks/results/guards-cpu.md
    python benchmarks/loop.py memory -o benchmarks/results/memory-cpu.md

loop: four loops take the same step of a network of no size, in turns: a plain `for`; an Ignite Engine without handlers;
the Engine of `train`, with learning rate, metrics, divergence guard, progress bar (on a pseudo-terminal, since it draws
on nothing else), history, checkpoints and stop signals; and the same with the bar drawn after each iteration, as it is
where a step takes a tenth of a second or longer. Printed are medians over the rounds of each round's mean microseconds
per iteration; what a loop takes more than the plain one of its round; and this as a share of a real step, ResNet-50's.
What happens at an epoch's end is not counted. There is one thread: more would find no work, and be waited for.

guards: one training of ResNet-50, so that all use the same memory, continues in blocks of a few steps, of three kinds:
bare steps in a plain loop; the Engine of `train` with all its handlers; and the same with a checkpoint, waited for
until it is written. A round has one block of each kind, in random order, so that whatever else the machine does hits
all alike. Printed are medians over the rounds with 95 % confidence intervals by the bootstrap: of the ratio of speeds
to the bare block's in the same round, and of the seconds that a checkpoint takes from training, the difference of the
last two kinds. Together they give the ratio of a training that saves every ten minutes; epochs' ends save besides.

memory: the bare step of throughput.py on a CPU, in processes of their own, in turns: as `train` sets the machine up, so
that the C library keeps freed memory for the next step, and without that.
"""

import argparse
import fcntl
import logging
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from random import Random
from statistics import median, quantiles
from time import perf_counter
from unittest.mock import patch

import numpy as np
import throughput
import torch
from ignite.engine import Engine, Events
from table import provenance, publish
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from plumage.data.loader import Batch, shard_of
from plumage.engine.checkpoint import Saver
from plumage.engine.handlers import attach_progress
from plumage.engine.signals import StopSignals
from plumage.engine.train import attach_after_step, attach_at_epoch_end, attach_before_step, build
from plumage.hardware.cores import usable_cores
from plumage.hardware.device import Machine, choose_device, choose_precision, set_up
from plumage.hardware.environment import environment
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir

CLASSES = [f"class {number}" for number in range(200)]
VALIDATION = {"loss": 1.0, "accuracy": 0.5, "balanced_accuracy": 0.5, "macro_f1": 0.5, "top5": 0.5, "nll": 1.0}
MINUTES = 10  # --checkpoint-minutes of `train`, by default
# What is replaced in the product: the network's builder, and what keeps freed memory.
BUILD_MODEL = "plumage.engine.prepare.build_model"
KEEP_MEMORY = "plumage.hardware.device._keep_memory"


class Training:
    """A training on made-up pictures, with all that `train` attaches to it: the one place that knows the engine.

    steps: iterations per epoch. Checkpoints are saved by ``saver``, or at an epoch's end.
    """

    def __init__(self, recipe: Recipe, machine: Machine, steps: int, run: RunDir):
        state, evaluator = build(recipe, machine, CLASSES, steps * recipe.batch_size, None, None)
        history = run.history
        self.saver, self.run = Saver(state, run, history, minutes=10_000), run
        attach_before_step(state)
        attach_after_step(state, evaluator, self.saver, StopSignals())
        self.bar_clock = perf_counter
        for engine, label, show in ((state.trainer, "training", state.status), (evaluator, "validating", dict)):
            attach_progress(engine, label, recipe.batch_size, machine.look_every, show, lambda: self.bar_clock())
        attach_at_epoch_end(state, lambda: VALIDATION, self.saver, history)
        self.trainer, self.steps, self.device = state.trainer, steps, machine.device
        self.step = state.trainer._process_function
        rng = torch.Generator().manual_seed(0)
        shape = (recipe.batch_size, recipe.resize, recipe.resize, 3)  # NHWC
        images = torch.randint(256, shape, dtype=torch.uint8, generator=rng)
        labels = torch.randint(len(CLASSES), (recipe.batch_size,), generator=rng)
        self.batches = (Batch(iteration, images, labels, shard_of(len(images), 0, 1)) for iteration in count())

    def plain(self, steps: int) -> float:
        """Return the seconds that ``steps`` steps take in a plain loop."""
        start = perf_counter()
        for batch in islice(self.batches, steps):
            self.step(self.trainer, batch)
        self.synchronise()
        return perf_counter() - start

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@contextmanager
def new_training(machine: Machine, steps: int, **options: int) -> Iterator[Training]:
    """Begin a training of ``options`` in a temporary folder."""
    recipe = Recipe.create({"weights": "none", **options})
    with tempfile.TemporaryDirectory() as folder:
        training = Training(recipe, machine, steps, RunDir(Path(folder)))
        with training.saver:
            yield training


# --- loop --------------------------------------------------------------------------------------------------------


class NoSize(nn.Module):
    """A network whose step is next to nothing: a linear layer on each picture's mean colour."""

    def __init__(self, name: str, classes: int, zero_gamma: bool = False):
        super().__init__()
        self.fc = nn.Linear(3, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.mean((2, 3)))


def seconds_inside(loop: Engine, batches: Iterable[Batch], steps: int, epoch: int) -> float:
    """Return an iteration's mean in an epoch of ``steps``, from the first one's batch to the last one's."""
    times = []

    def stamped() -> Iterator[Batch]:
        for batch in batches:
            times.append(perf_counter())
            yield batch

    loop.run(stamped(), max_epochs=epoch, epoch_length=steps)
    return (times[steps - 1] - times[0]) / (steps - 1)


@contextmanager
def terminal() -> Iterator[None]:
    """Print to a terminal, which a process of its own reads, as a terminal's window does."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # in a window of no size fits no bar
    with subprocess.Popen(["cat"], stdin=ours, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as window:
        os.close(ours)
        with os.fdopen(theirs, "w") as screen, redirect_stdout(screen), redirect_stderr(screen):
            yield
        window.wait()


def loop_rounds(machine: Machine, args: argparse.Namespace) -> Iterator[dict[str, float]]:
    """Yield each round's seconds per iteration of the loops. The first round is to warm up."""
    torch.set_num_threads(1)
    slow = count(step=1)  # a clock by which each iteration takes seconds
    options = {"resize": 4, "crop": 4, "batch_size": args.batch, "epochs": 2 * args.rounds + 2}
    with patch(BUILD_MODEL, NoSize), new_training(machine, args.steps, **options) as training, terminal():
        bare, full = Engine(training.step), training.trainer
        inside = partial(seconds_inside, batches=training.batches, steps=args.steps)
        for number in range(args.rounds + 1):
            row = {
                "plain": training.plain(args.steps) / args.steps,
                "an Engine without handlers": inside(bare, epoch=number + 1),
                "the Engine of `train`": inside(full, epoch=2 * number + 1),
            }
            training.saver.wait()  # for the checkpoint of the epoch's end
            with patch.object(full, "bar_clock", slow.__next__):
                row["the same, its bar always drawn"] = inside(full, epoch=2 * number + 2)
            training.saver.wait()
            training.synchronise()
            yield row


def loop_table(args: argparse.Namespace, machine: Machine) -> Iterator[str]:
    yield "# What the loop costs\n"
    yield from provenance(environment(machine))
    with new_training(machine, 1000, resize=args.crop, crop=args.crop, batch_size=args.batch) as training:
        training.plain(2)
        step = median(training.plain(1) for _ in range(9))
    _, *rounds = loop_rounds(machine, args)
    yield f"- Batches of {args.batch}, {len(CLASSES)} classes; {args.steps} iterations a round, n = {args.rounds}"
    yield f"- Real step: {step * 1e3:.1f} ms, ResNet-50's at {args.crop} px, measured"
    yield "\n| Loop | µs per iteration, median | Above the plain one, median (quartiles) | Share of the real step |"
    yield "| --- | --- | --- | --- |"
    for name in rounds[0]:
        low, middle, high = quantiles([(one[name] - one["plain"]) * 1e6 for one in rounds], n=4)
        above = f"{middle:.0f} ({low:.0f} to {high:.0f}) | {middle / 1e6 / step:.3%}" if name != "plain" else " | "
        yield f"| {name} | {median(one[name] for one in rounds) * 1e6:.0f} | {above} |"


# --- guards ------------------------------------------------------------------------------------------------------


def blocks(training: Training, steps: int) -> dict[str, Callable[[], float]]:
    """Return the kinds of a block: each takes ``steps`` steps, to their end on the device, and returns its seconds."""
    trainer = training.trainer
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=steps), trainer.interrupt)

    def guarded() -> float:
        start = perf_counter()
        trainer.run(training.batches, max_epochs=1, epoch_length=training.steps)
        training.synchronise()
        return perf_counter() - start

    def with_checkpoint() -> float:
        start = perf_counter()
        training.saver.save()
        guarded()
        training.saver.wait()
        return perf_counter() - start

    return {"bare": lambda: training.plain(steps), "guards": guarded, "guards and a checkpoint": with_checkpoint}


def interval(values: list[float]) -> np.ndarray:
    """Return low end, median and high end of the median's 95 % confidence interval, by the bootstrap."""
    drawn = np.random.default_rng(0).choice(values, (10_000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return np.array([low, median(values), high])


def guards_table(args: argparse.Namespace, machine: Machine) -> Iterator[str]:
    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # an Engine that is left inside an epoch complains
    order = Random(0)
    with new_training(machine, 10**9, resize=args.crop + 8, crop=args.crop, batch_size=args.batch) as training:
        kinds = blocks(training, args.steps)
        shuffled = (order.sample(list(kinds), len(kinds)) for _ in range(args.rounds + 1))
        _, *rounds = [{kind: kinds[kind]() for kind in one} for one in shuffled]  # the first is to warm up
        size = training.run.last.stat().st_size
    guards = interval([one["bare"] / one["guards"] for one in rounds])
    cost = interval([one["guards and a checkpoint"] - one["guards"] for one in rounds])
    together = 60 * MINUTES / (60 * MINUTES / guards + cost[::-1])
    step = median(one["bare"] for one in rounds) / args.steps

    def shown(values: np.ndarray, form: str) -> str:
        return f"{values[1]:{form}} ({values[0]:{form}} to {values[2]:{form}})"

    yield "# What guards and checkpoints cost\n"
    yield from provenance(environment(machine))
    yield f"- ResNet-50, {args.crop} px, batches of {args.batch}; {step * 1e3:.1f} ms a bare step"
    yield f"- {args.steps} steps a block, n = {args.rounds} rounds"
    yield "\n| What | Median (95 % interval) |\n| --- | --- |"
    yield f"| Speed with all that `train` attaches, to that of the bare steps | {shown(guards, '.4f')} |"
    yield f"| Seconds that a checkpoint of {size / 1e6:.0f} MB takes from training | {shown(cost, '.3f')} |"
    yield f"| The same with a checkpoint every {MINUTES} minutes | {shown(together, '.4f')} |"
    yield f"| Seconds of the shortest epoch whose checkpoint takes at most 1 % of it | {shown(100 * cost, '.0f')} |"


# --- memory ------------------------------------------------------------------------------------------------------

KINDS = {"given back": patch(KEEP_MEMORY), "kept": nullcontext()}


def bare_speed(args: argparse.Namespace, machine: Machine, kind: str) -> float:
    """Return images/s of an epoch of bare steps. Call it in a process of its own, which it sets up."""
    with KINDS[kind]:
        return throughput.bare(args, machine)


def memory_table(args: argparse.Namespace, machine: Machine) -> Iterator[str]:
    def apart(kind: str) -> float:
        with get_context("spawn").Pool(1) as process:
            return process.apply(bare_speed, (args, machine, kind))

    rounds = [{kind: apart(kind) for kind in KINDS} for _ in range(args.rounds)]
    yield "# Freed memory, given back to the system or kept\n"
    yield from provenance(environment(machine))
    yield f"- ResNet-50's bare step, {args.crop} px, batches of {args.batch}, {args.steps} steps; n = {args.rounds}"
    yield "\n| Freed memory is | Images/s, median (range) | Ratio to given back, median (range) |\n| --- | --- | --- |"
    for kind in KINDS:
        rates = [one[kind] for one in rounds]
        ratios = [one[kind] / one["given back"] for one in rounds]
        row = (f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g})" for values in (rates, ratios))
        yield f"| {kind} | {' | '.join(row)} |"


TABLES = {"loop": loop_table, "guards": guards_table, "memory": memory_table}
DEFAULTS = {"loop": {"rounds": 50, "steps": 300}, "guards": {"rounds": 150, "steps": 2, "crop": 56}, "memory": {}}


def main() -> None:
    parser = throughput.step_options(__doc__)
    parser.add_argument("what", nargs="?", choices=TABLES, default="loop")
    parser.add_argument("--device", default="auto", help="of loop and guards")
    parser.set_defaults(**DEFAULTS[parser.parse_known_args()[0].what])
    args = parser.parse_args()
    device = choose_device("cpu" if args.what == "memory" else args.device)
    machine = Machine(device, choose_precision("auto", device), compile=False)
    set_up(device, usable_cores())
    publish("\n".join(TABLES[args.what](args, machine)), args.output)


if __name__ == "__main__":
    main()
