"""What a training step on a CPU gains where the C library keeps freed memory for the next one.

    python benchmarks/memory.py -o benchmarks/results/memory-cpu.md

The bare step of throughput.py in processes of its own, in turns: as `train` sets the machine up, and without that.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import throughput
from table import provenance, publish

import plumage.hardware.device
from plumage.hardware.device import Machine, choose_precision
from plumage.hardware.environment import environment

KINDS = {"given back": False, "kept": True}


def speed(args: argparse.Namespace, kept: bool) -> float:
    """Images/s of an epoch in a process of its own."""
    command = [__file__, "--crop", str(args.crop), "--batch", str(args.batch), "--steps", str(args.steps)]
    output = subprocess.check_output([sys.executable, *command, "--one", "kept" if kept else "given back"])
    return float(json.loads(output.splitlines()[-1]))


def main() -> None:
    parser = throughput.step_options(__doc__)
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device("cpu")
    machine = Machine(device, choose_precision("auto", device), compile=False)
    if args.one:
        if not KINDS[args.one]:
            plumage.hardware.device._keep_memory = lambda: None
        print(json.dumps(throughput.bare(args, machine)))
        return
    rounds = [{kind: speed(args, kept) for kind, kept in KINDS.items()} for _ in range(args.rounds)]
    lines = [
        "# Freed memory, given back to the system or kept\n",
        *provenance(environment(machine)),
        f"- ResNet-50's bare step, {args.crop} px, batches of {args.batch}, {args.steps} steps; n = {args.rounds}",
        "\n| Freed memory is | Images/s, median (range) | Ratio to given back, median (range) |\n| --- | --- | --- |",
    ]
    for kind in KINDS:
        rates = [one[kind] for one in rounds]
        ratios = [one[kind] / one["given back"] for one in rounds]
        row = (f"{median(found):.3g} ({min(found):.3g} to {max(found):.3g})" for found in (rates, ratios))
        lines.append(f"| {kind} | {' | '.join(row)} |")
    text = "\n".join(lines)
    publish(text, args.output)


if __name__ == "__main__":
    main()
