"""Training images per second: `train` against the bare step, a plain PyTorch script, and timm.

    python benchmarks/throughput.py --crop 224 -o benchmarks/results/throughput-224.md

Each kind is a process of its own, in turns, so that all share whatever else the machine does:

    bare       a plain loop with train's model, precision, memory format and use of the machine, over one batch that
               lies on the device
    train      `main.py train` on the JPEG files of built-in birds, 500 by 375 pixels, decoded by an earlier run
    cold       the same with an empty cache: its decoding counts
    no-cache   the same with --no-cache
    plain      what most people write: ImageFolder, torchvision's transforms, DataLoader workers, float32, .item()
    timm       timm's loader and its script's loop, with bfloat16, channels-last and workers that stay

Speeds are of a first epoch, with all that a first step takes, and of timm's second, since its workers have started by
then. `cold` is train's speed with the seconds added that the whole command takes longer.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from table import provenance, publish
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from plumage.birds.folder import draw_birds
from plumage.engine.criterion import LabelSmoothingLoss
from plumage.hardware.cores import usable_cores
from plumage.hardware.device import Machine, choose_device, choose_precision, set_up
from plumage.hardware.environment import environment
from plumage.models.resnet import build_model, parameter_groups
from plumage.rundir.folder import RunDir

MAIN = Path(__file__).resolve().parents[1] / "main.py"
CLASSES = 8
Batches = Iterator[tuple[Tensor, Tensor]]


class Measured(NamedTuple):
    """Of one process: training pictures per second; seconds from start to end; its largest memory on the host, GiB."""

    rate: float
    wall: float
    memory: float


def rate_of(epoch: Batches, step: Callable[[Tensor, Tensor], object], device: torch.device) -> float:
    start, done = perf_counter(), 0
    for images, labels in epoch:
        step(images, labels)
        done += len(labels)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return done / (perf_counter() - start)


def bare(args: argparse.Namespace, machine: Machine) -> float:
    device = machine.device
    set_up(device, usable_cores())
    model = build_model("resnet50", CLASSES).to(device)
    criterion = LabelSmoothingLoss(0.1, CLASSES)
    optimizer = torch.optim.SGD(parameter_groups(model, 1e-4), lr=1e-3, momentum=0.9, nesterov=True, fused=True)
    if machine.compile:
        model.compile()
    images = torch.randn(args.batch, 3, args.crop, args.crop, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (args.batch,), device=device)

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with machine.autocast():
            loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()

    return rate_of(((images, labels) for _ in range(args.steps)), step, device)


def plain(args: argparse.Namespace, machine: Machine) -> float:
    from torchvision import datasets, models, transforms  # noqa: PLC0415

    device = machine.device
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(args.crop),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    folder = datasets.ImageFolder(args.data, transform)
    workers = min(usable_cores(), 8)
    loader = torch.utils.data.DataLoader(folder, args.batch, shuffle=True, num_workers=workers, drop_last=True)
    model = models.resnet50(num_classes=CLASSES).to(device)
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    losses = []

    def step(images: Tensor, labels: Tensor) -> None:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    model.train()
    return rate_of(iter(loader), step, device)


def timm(args: argparse.Namespace, machine: Machine) -> float:
    from timm import create_model, data, loss, optim  # noqa: PLC0415

    device = machine.device
    loader = data.create_loader(
        data.create_dataset("", args.data), (3, args.crop, args.crop), args.batch, is_training=True, color_jitter=0.0,
        num_workers=min(usable_cores(), 8), device=device, use_prefetcher=True, pin_memory=device.type == "cuda",
        persistent_workers=True,
    )  # fmt: skip
    model = create_model("resnet50", num_classes=CLASSES).to(device, memory_format=torch.channels_last)
    if machine.compile:
        model.compile()
    optimizer = optim.create_optimizer_v2(model, "sgd", lr=1e-3, momentum=0.9, weight_decay=1e-4, foreach=True)
    criterion = loss.LabelSmoothingCrossEntropy(0.1)

    def step(images: Tensor, labels: Tensor) -> None:
        images = images.contiguous(memory_format=torch.channels_last)
        with machine.autocast():
            value = criterion(model(images), labels)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    model.train()
    return [rate_of(iter(loader), step, device) for _ in range(2)][-1]


def measured(command: list[str]) -> tuple[str, float, float]:
    """Standard output, seconds and GiB of a process that has to succeed."""
    start = perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout
    output = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{shlex.join(command)} failed with exit code {process.returncode}")
    return output, perf_counter() - start, usage.ru_maxrss / 2**20


def measure_training(args: argparse.Namespace, folder: Path, cache: Path, *options: str) -> Measured:
    """An epoch by the command that people use."""
    run = RunDir(Path(tempfile.mkdtemp(dir=folder)))
    command = [
        str(MAIN), "train", "--data", str(args.data), "--run", str(run.path), "--cache", str(cache), "--no-report",
        "--preset", "finetune", "--weights", "none", "--lr", "0.001", "--epochs", "1", "--batch-size", str(args.batch),
        "--resize", str(round(args.crop * 8 / 7)), "--crop", str(args.crop), "--device", args.device, *options,
        *(["--compile"] if args.compile else []),
    ]  # fmt: skip
    _, wall, memory = measured(command)
    return Measured(run.history[0]["images_per_second"], wall, memory)


def measure_loop(args: argparse.Namespace, kind: str) -> Measured:
    """One of the loops of this script, in a process of its own."""
    command = [__file__, "--one", kind, "--data", str(args.data), "--device", args.device]
    command += [f"--{name}={getattr(args, name)}" for name in ("crop", "batch", "steps")]
    output, wall, memory = measured([*command, *(["--compile"] if args.compile else [])])
    return Measured(json.loads(output.splitlines()[-1]), wall, memory)


def one_round(args: argparse.Namespace, folder: Path) -> dict[str, Measured]:
    cold_cache = Path(tempfile.mkdtemp(dir=folder))
    train = measure_training(args, folder, folder / "cache")
    cold = measure_training(args, folder, cold_cache)
    pictures = args.steps * args.batch
    cold = cold._replace(rate=pictures / (pictures / train.rate + max(cold.wall - train.wall, 0)))
    return {
        "bare": measure_loop(args, "bare"),
        "train": train,
        "cold": cold,
        "no-cache": measure_training(args, folder, folder / "cache", "--no-cache"),
        "plain": measure_loop(args, "plain"),
        "timm": measure_loop(args, "timm"),
    }


def table(rounds: list[dict[str, Measured]]) -> Iterator[str]:
    yield "\n| Kind | Images/s, median (range) | Ratio to bare, median (range) | to plain | to timm | Memory, GiB |"
    yield "| --- | --- | --- | --- | --- | --- |"

    def spread(values: list[float], digits: int) -> str:
        return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"

    for kind in rounds[0]:
        ratios = {base: [each[kind].rate / each[base].rate for each in rounds] for base in ("bare", "plain", "timm")}
        speed, to_bare = spread([each[kind].rate for each in rounds], 1), spread(ratios["bare"], 3)
        others = " | ".join(f"{median(ratios[base]):.2f}" for base in ("plain", "timm"))
        yield f"| {kind} | {speed} | {to_bare} | {others} | {median(each[kind].memory for each in rounds):.1f} |"


def header(args: argparse.Namespace, machine: Machine) -> Iterator[str]:
    import timm  # noqa: PLC0415

    yield f"# Training images per second at {args.crop} px\n"
    yield from provenance(environment(machine), timm=timm.__version__)
    compiled = ", compiled but for plain" if args.compile else ""
    yield f"- ResNet-50{compiled}, batches of {args.batch}, {args.steps} steps an epoch, n = {args.rounds} rounds"
    yield "- Plain is fp32. Memory: of the largest process on the host; plain and timm have worker processes besides"


def step_options(description: str | None) -> argparse.ArgumentParser:
    """The options of whoever measures the step."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="in an epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    return parser


def main() -> None:
    parser = step_options(__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--one", choices=("bare", "plain", "timm"), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = choose_device(args.device)
    machine = Machine(device, choose_precision("auto", device), args.compile)
    if args.one:
        print(json.dumps({"bare": bare, "plain": plain, "timm": timm}[args.one](args, machine)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        args.data = folder / "birds"
        # A fifth of each class validates.
        draw_birds(args.data, CLASSES, args.steps * args.batch * 5 // 4 // CLASSES, workers=usable_cores())
        measure_training(args, folder, folder / "cache")  # decodes
        rounds = []
        for number in range(args.rounds):
            rounds.append(one_round(args, folder))
            rates = ", ".join(f"{kind} {found.rate:.1f}" for kind, found in rounds[-1].items())
            print(f"round {number + 1}: {rates}", file=sys.stderr)
    text = "\n".join([*header(args, machine), *table(rounds)])
    publish(text, args.output)


if __name__ == "__main__":
    main()
