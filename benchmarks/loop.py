"""What the loop around a step costs: Ignite's with every handler that `train` attaches, against a plain one.

    python benchmarks/loop.py -o benchmarks/results/loop-cpu.md

Four loops take the same step of a network of no size, in turns: a plain `for`; an Engine without handlers; the Engine
of `train`, with learning rate, metrics, divergence guard, progress bar (on a pseudo-terminal, which it draws on as
users see it), history, checkpoints and stop signals; and this with the bar drawn after each iteration, as it is where a
step takes a tenth of a second or longer. Each round's mean microseconds per iteration are taken, and the medians over
the rounds printed; what a loop takes above the plain one of its round; and that as a share of a real step, which is
ResNet-50's, measured here unless --step-ms gives it. What happens as an epoch ends is no part of it. The network of no
size has one thread: there is nothing to share, and threads that wait for each other would be measured.
"""

import argparse
import fcntl
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import count, islice
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from unittest.mock import patch

import torch
from ignite.engine import Engine
from table import provenance, publish
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import plumage.engine.train
from plumage.data.loader import Batch
from plumage.data.share import share_of
from plumage.engine.checkpoint import CheckpointWriter
from plumage.engine.signals import StopSignals
from plumage.hardware.cores import usable_cores
from plumage.hardware.device import Machine, choose_device, choose_precision, set_up
from plumage.hardware.environment import environment
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir

CLASSES = [f"class {number}" for number in range(200)]
VALIDATION = {"loss": 1.0, "accuracy": 0.5, "top5": 0.5, "nll": 1.0}


class NoSize(nn.Module):
    """A network whose step is next to nothing: of each picture's mean colour, a linear layer."""

    def __init__(self, name: str, classes: int, zero_gamma: bool = False):
        super().__init__()
        self.fc = nn.Linear(3, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.mean((2, 3)))


class Training:
    """A training on made-up pictures, with all that `train` attaches to it. ``steps``: how many an epoch has.

    Its checkpoints are asked for by hand, or come as an epoch ends.
    """

    def __init__(self, recipe: Recipe, machine: Machine, steps: int, run: RunDir):
        self.state, evaluator = plumage.engine.train.build(recipe, machine, CLASSES, steps, None, None)
        self.trainer, self.writer, self.steps = self.state.trainer, CheckpointWriter(), steps
        self.step, self.device = self.trainer._process_function, machine.device
        plumage.engine.train.attach_handlers(
            self.state, evaluator, lambda: VALIDATION, steps * recipe.batch_size, run, machine.look_every,
            StopSignals(), self.writer, 10_000,
        )  # fmt: skip
        rng = torch.Generator().manual_seed(0)
        shape, classes = (recipe.batch_size, recipe.resize, recipe.resize, 3), len(CLASSES)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=rng)
        labels = torch.randint(classes, (recipe.batch_size,), generator=rng)
        self.batches = (Batch(iteration, images, labels, share_of(len(images), 0, 1)) for iteration in count())

    def plain(self, steps: int) -> float:
        """The seconds of ``steps`` steps in a plain loop."""
        start = perf_counter()
        for batch in islice(self.batches, steps):
            self.step(self.trainer, batch)
        self.synchronise()
        return perf_counter() - start

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def seconds_inside(loop: Engine, batches: Iterable[Batch], steps: int, epoch: int) -> float:
    """The mean of an iteration in an epoch of ``steps``, from the first one's batch to the last one's."""
    times = []

    def stamped() -> Iterator[Batch]:
        for batch in batches:
            times.append(perf_counter())
            yield batch

    loop.run(stamped(), max_epochs=epoch, epoch_length=steps)
    return (times[steps - 1] - times[0]) / (steps - 1)


@contextmanager
def terminal() -> Iterator[None]:
    """What is printed goes to a terminal, which a process of its own reads, as a terminal's window does."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # no bar fits into none
    with subprocess.Popen(["cat"], stdin=ours, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as window:
        os.close(ours)
        before = sys.stderr
        try:
            with os.fdopen(theirs, "w") as sys.stderr, redirect_stdout(sys.stderr):
                yield
        finally:
            sys.stderr = before
        window.wait()


def measure(machine: Machine, steps: int, rounds: int, batch_size: int) -> Iterator[dict[str, float]]:
    """Each round's seconds per iteration of the loops."""
    plumage.engine.train.build_model = NoSize
    torch.set_num_threads(1)
    options = {"weights": "none", "resize": 4, "crop": 4, "batch_size": batch_size, "epochs": 2 * rounds + 2}
    slow = count(step=1)  # a clock by which each iteration takes seconds
    with tempfile.TemporaryDirectory() as folder, terminal():
        training = Training(Recipe.create(options), machine, steps, RunDir(Path(folder)))
        bare, full = Engine(training.step), training.trainer
        for number in range(rounds + 1):
            row = {
                "plain": training.plain(steps) / steps,
                "an Engine without handlers": seconds_inside(bare, training.batches, steps, number + 1),
                "the Engine of `train`": seconds_inside(full, training.batches, steps, 2 * number + 1),
            }
            training.writer.wait()  # for the checkpoint that an epoch ends with
            with patch("plumage.engine.handlers.perf_counter", slow.__next__):
                row["the same, its bar always drawn"] = seconds_inside(full, training.batches, steps, 2 * number + 2)
            training.writer.wait()
            training.synchronise()
            yield row


def real_step(machine: Machine, crop: int, batch_size: int) -> float:
    """Seconds of a step of ResNet-50, the median of nine."""
    recipe = Recipe.create({"weights": "none", "resize": crop, "crop": crop, "batch_size": batch_size})
    with tempfile.TemporaryDirectory() as folder:
        training = Training(recipe, machine, 1000, RunDir(Path(folder)))
        training.plain(2)
        return median(training.plain(1) for _ in range(9))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--steps", type=int, default=300, help="in a round")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--crop", type=int, default=224, help="side of the real step's pictures")
    parser.add_argument("--step-ms", type=float, help="of the real step, instead of measuring it")
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    device = choose_device(args.device)
    set_up(device, usable_cores())
    machine = Machine(device, choose_precision("auto", device), compile=False)
    step = args.step_ms / 1e3 if args.step_ms else real_step(machine, args.crop, args.batch_size)
    now = environment(machine)
    _, *rounds = measure(machine, args.steps, args.rounds, args.batch_size)  # the first is to warm up

    given = "as given" if args.step_ms else f"ResNet-50's at {args.crop} px, measured"
    lines = [
        "# What the loop costs\n",
        *provenance(now),
        f"- Batches of {args.batch_size}, {len(CLASSES)} classes; {args.steps} iterations a round, n = {args.rounds}",
        f"- Real step: {step * 1e3:.1f} ms, {given}",
        "\n| Loop | µs per iteration, median | Above the plain one, median (quartiles) | Share of the real step |",
        "| --- | --- | --- | --- |",
    ]
    for name in rounds[0]:
        low, middle, high = quantiles([(one[name] - one["plain"]) * 1e6 for one in rounds], n=4)
        above = f"{middle:.0f} ({low:.0f} to {high:.0f}) | {middle / 1e6 / step:.3%}" if name != "plain" else " | "
        lines.append(f"| {name} | {median(one[name] for one in rounds) * 1e6:.0f} | {above} |")
    text = "\n".join(lines)
    publish(text, args.output)


if __name__ == "__main__":
    main()
