"""Prediction from files against the forward pass that evaluation makes of decoded pictures.

    python benchmarks/predict.py -o benchmarks/results/predict.md

A ResNet-50 that has learnt nothing, which costs what a trained one does, takes built-in birds in two ways that take
turns: as eval's engine runs it over batches in memory, and as `predict` reads, decodes and resizes the files and writes
CSV. One round of each before warms up, also the file cache. Printed are the median pictures a second over the rounds,
and the ratio of predict's to the forward pass of the same round; who begins a round alternates.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from table import provenance, publish

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from plumage.data.cache import cache_folder
from plumage.data.decode import decode
from plumage.data.loader import Batch, shard_of
from plumage.data.sources import list_pictures, locate
from plumage.data.store import Cache
from plumage.engine.criterion import LabelSmoothingLoss
from plumage.engine.evaluator import create_evaluator
from plumage.hardware.cores import usable_cores
from plumage.hardware.device import Machine, choose_device, choose_precision, set_up
from plumage.hardware.environment import environment
from plumage.inference.predict import Predictor, load_predictor, predict
from plumage.inference.table import Table
from plumage.models.resnet import build_model
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir

CLASSES = [f"class {number}" for number in range(200)]


def untrained(folder: Path, machine: Machine, batch_size: int) -> RunDir:
    """A run with the finetune preset's sizes, and a checkpoint as its network begins."""
    run = RunDir(folder)
    run.best.parent.mkdir(parents=True)
    run.describe(Recipe.create({"preset": "finetune", "batch_size": batch_size}), CLASSES, environment(machine))
    torch.save({"model": build_model("resnet50", len(CLASSES)).state_dict()}, run.best)
    return run


def forward_pass(predictor: Predictor, machine: Machine, files: list[str]) -> Callable[[], object]:
    """What evaluation does with pictures that are decoded already."""
    stored = torch.from_numpy(np.stack([decode(Path(file), predictor.square).pixels for file in files]))
    batches = [
        Batch(0, pictures, torch.zeros(len(pictures), dtype=torch.int64), shard_of(len(pictures), 0, 1))
        for pictures in stored.split(predictor.batch_size)
    ]
    criterion = LabelSmoothingLoss(0.1, len(CLASSES))
    evaluator = create_evaluator(predictor.model, criterion, predictor.view.center, machine, len(CLASSES))
    return lambda: evaluator.run(batches)


def seconds(work: Callable[[], object]) -> float:
    """Both kinds end with numbers on the host, so that nothing is left to wait for."""
    start = perf_counter()
    work()
    return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="birds:species=2", help="a folder, or built-in birds")
    parser.add_argument("--pictures", type=int, default=512, help="in a round; the files are taken again and again")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    device = choose_device(args.device)
    set_up(device, usable_cores())
    machine = Machine(device, choose_precision(args.precision, device), compile=False)
    found = list_pictures([str(locate(args.data, Cache(cache_folder())))])
    files = [found[number % len(found)] for number in range(args.pictures)]
    with tempfile.TemporaryDirectory() as folder:
        run = untrained(Path(folder) / "run", machine, args.batch_size)
        predictor = load_predictor(run, machine, "best")
        table, output = Table(CLASSES), Path(folder) / "predictions.csv"
        kinds: dict[str, Callable[[], object]] = {
            "forward pass": forward_pass(predictor, machine, files),
            "predict": lambda: predict(predictor, files, table, output, False),
        }
        order, rounds = list(kinds), []
        for number in range(args.rounds + 1):
            taken = {kind: seconds(kinds[kind]) for kind in (order if number % 2 else reversed(order))}
            rounds += [taken] if number else []

    with Image.open(found[0]) as first:
        picture = f"{first.width} by {first.height} {first.format}"
    lines = [
        "# Prediction from files against the forward pass alone\n",
        *provenance(environment(machine)),
        f"- ResNet-50, {predictor.view.crop} px of {predictor.size}, batches of {args.batch_size}; {args.pictures} "
        f"pictures ({picture}) a round; n = {args.rounds}",
        "\n| | Pictures a second, median | Ratio to the forward pass, median (quartiles) |",
        "| --- | --- | --- |",
    ]
    for kind in kinds:
        rate = args.pictures / median(one[kind] for one in rounds)
        low, middle, high = quantiles([one["forward pass"] / one[kind] for one in rounds], n=4)
        lines.append(f"| {kind} | {rate:.1f} | {middle:.3f} ({low:.3f} to {high:.3f}) |")
    text = "\n".join(lines)
    publish(text, args.output)


if __name__ == "__main__":
    main()
