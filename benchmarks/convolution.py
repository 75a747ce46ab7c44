"""What it brings to multiply small maps as matrices: a training step of ResNet-50 with models/convolution.py, without.

    python benchmarks/convolution.py -o benchmarks/results/convolution-cpu.md

Whole steps on one batch in memory, forward, backward and SGD, in turns with torch's own convolutions, whose weights and
pictures are the same. A ratio is of the two medians of its rounds.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from table import provenance, publish
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from plumage.hardware.cores import usable_cores
from plumage.hardware.device import Machine, set_up
from plumage.hardware.environment import environment
from plumage.models.convolution import Conv2d
from plumage.models.resnet import build_model

CPU = torch.device("cpu")


def seconds_of_steps(model: nn.Module, side: int, batch: int, machine: Machine, steps: int) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, nesterov=True, fused=True)
    images = torch.randn(batch, 3, side, side).to(memory_format=torch.channels_last)
    labels, found = torch.arange(batch) % 200, list[float]()
    for _ in range(steps + 1):  # of which the first prepares kernels
        start = perf_counter()
        with machine.autocast():
            loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found.append(perf_counter() - start)
    return found[1:]


def networks() -> dict[str, nn.Module]:
    own, plain = build_model("resnet50", 200), build_model("resnet50", 200)
    for module in plain.modules():
        if isinstance(module, Conv2d):
            module.__class__ = nn.Conv2d
    return {"own": own, "plain": plain}


def table(sides: list[int], batches: list[int], rounds: int) -> Iterator[str]:
    heads = ["precision", "side, px", "batch", "torch's, img/s", "small maps multiplied, img/s", "ratio (its range)"]
    yield f"\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}"
    for precision in ("bf16", "fp32"):
        machine = Machine(CPU, precision, compile=False)
        for side, batch in ((side, batch) for side in sides for batch in batches):
            measured: dict[str, list[float]] = {"own": [], "plain": []}
            for _ in range(rounds):
                for name, model in networks().items():
                    measured[name].append(median(seconds_of_steps(model, side, batch, machine, 3)))
            own, plain = (batch / median(measured[name]) for name in ("own", "plain"))
            ratios = [other / mine for mine, other in zip(measured["own"], measured["plain"], strict=True)]
            spread = f"{own / plain:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            yield f"| {precision} | {side} | {batch} | {plain:.0f} | {own:.0f} | {spread} |"


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=numbers, default=[32, 48, 56, 64, 96, 224])
    parser.add_argument("--batches", type=numbers, default=[32, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    set_up(CPU, usable_cores())
    lines = ["# Small maps, multiplied as matrices\n"]
    lines += provenance(environment(Machine(CPU, "bf16 and fp32", compile=False)))
    lines.append(
        f"- ResNet-50; medians of {args.rounds} rounds in turns, each of 3 steps after one that prepares kernels"
    )
    publish("\n".join([*lines, *table(args.sides, args.batches, args.rounds)]), args.output)


if __name__ == "__main__":
    main()
