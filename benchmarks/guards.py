"""What being careful costs: training with divergence guard, stop signals and checkpoints against training without.

    python benchmarks/guards.py -o benchmarks/results/guards.md

Three copies of one training take turns, a block of steps each: bare; with what looks at every step; and with that and a
checkpoint saved after each block's first step, by the code that `train` uses. Turns make them share whatever else the
machine does. Printed are the median seconds of a block over the rounds, and the ratio to the bare block of the same
round. What one checkpoint takes from training is the difference of the last two, stated as its share of ten minutes.
"""

import argparse
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

import torch
from ignite.engine import Events

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.loader import Batch
from engine import handlers
from engine.checkpoint import CheckpointWriter
from engine.machine import Machine, choose_device, choose_precision
from engine.recipe import Recipe
from engine.rundir import RunDir, environment
from engine.signals import StopSignals
from engine.train import build, write_checkpoint

CLASSES = [f"class {number}" for number in range(200)]


def batches(recipe: Recipe) -> Iterator[Batch]:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (recipe.batch_size, recipe.resize, recipe.resize, 3), dtype=torch.uint8, generator=rng)
    labels = torch.randint(len(CLASSES), (recipe.batch_size,), generator=rng)
    return (Batch(iteration, images, labels) for iteration in count())


class Training:
    """One of the copies; ``block`` takes its next steps and returns their seconds."""

    def __init__(self, recipe: Recipe, machine: Machine, steps: int, run: RunDir, guards: bool, checkpoints: bool):
        self.state, _ = build(recipe, machine, CLASSES, steps, None, None)
        self.steps, self.batches, self.device = steps, batches(recipe), machine.device
        self.writer = CheckpointWriter()
        trainer, optimizer, loss = self.state.trainer, self.state.optimizer, self.state.metrics["loss"]
        handlers.attach_learning_rate(trainer, optimizer, lambda iteration: 1e-4)

        def save(epoch_done: bool = False) -> None:
            handlers.check_finite(loss.compute(), trainer, optimizer)
            content = self.state.content(epoch_done)
            handlers.check_weights(content["model"], trainer, optimizer)
            self.writer.submit(partial(write_checkpoint, run, content, False))

        if guards:
            handlers.attach_divergence_guard(trainer, loss, optimizer, machine.look_every)
            handlers.attach_stop(trainer, StopSignals(), save)
        if checkpoints:
            first = Events.ITERATION_COMPLETED(event_filter=lambda engine, iteration: iteration % steps == 1)
            trainer.add_event_handler(first, lambda: save())

    def block(self) -> float:
        """From the start to when the device has done all steps and the checkpoint is written."""
        start = perf_counter()
        done = self.state.trainer.state.epoch
        self.state.trainer.run(self.batches, max_epochs=done + 1, epoch_length=self.steps)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.writer.wait()
        return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20, help="in a block")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--crop", type=int, default=56)
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    device = choose_device(args.device)
    machine = Machine(device, choose_precision("auto", device), compile=False)
    recipe = Recipe.create(
        {"preset": "demo", "resize": args.crop + 8, "crop": args.crop, "batch_size": args.batch_size}
    )
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder))
        kinds = {"bare": (False, False), "guards": (True, False), "guards and a checkpoint": (True, True)}
        trainings = {kind: Training(recipe, machine, args.steps, run, *which) for kind, which in kinds.items()}
        for training in trainings.values():  # warm up
            training.block()
        rounds = [{kind: training.block() for kind, training in trainings.items()} for _ in range(args.rounds)]
        size = run.last.stat().st_size

    now = environment(machine)
    hardware = now["gpu"] or f"{now['threads']} threads of {now['cpu']}"
    cost = median(one["guards and a checkpoint"] - one["guards"] for one in rounds)
    lines = [
        "# What guards and checkpoints cost\n",
        f"- Command: `{shlex.join(['python', *sys.argv])}`",
        f"- {hardware}, {now['precision']}; Python {platform.python_version()}, torch {torch.__version__}",
        f"- ResNet-50, {args.crop} px, batches of {args.batch_size}; {args.steps} steps a block; n = {args.rounds}",
        "\n| Training | Seconds a block, median | Images/s | Ratio of images/s to bare, median (quartiles) |",
        "| --- | --- | --- | --- |",
    ]
    for kind in trainings:
        seconds = median(one[kind] for one in rounds)
        low, middle, high = quantiles([one["bare"] / one[kind] for one in rounds], n=4)
        rate = args.steps * args.batch_size / seconds
        lines.append(f"| {kind} | {seconds:.2f} | {rate:.1f} | {middle:.4f} ({low:.4f} to {high:.4f}) |")
    lines.append(
        f"\nA checkpoint of {size / 1e6:.0f} MB takes {cost:.2f} s from training: "
        f"{cost / 600:.2%} of the time at one every ten minutes."
    )
    text = "\n".join(lines)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
