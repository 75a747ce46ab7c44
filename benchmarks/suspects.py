"""How many planted errors are among the first suspects.

    python benchmarks/suspects.py -o benchmarks/results/suspects-cpu.md
    python benchmarks/suspects.py --species 10 --pictures 20 --copies 4 -- --epochs 4    # to try it

In the built-in birds, a twentieth of the labels is made wrong: another species, each as likely. Of others, some
pictures are there once more on the other side of the split, byte for byte, or changed in one or two of the ways of
benchmarks/duplicates.py. The split is given, so that nothing keeps them together. A network is trained on this, and the
list of suspects read up to one and a half times as many rows as errors were planted:

    validation   the doubted labels of validation pictures, and copies
    all          of training pictures too, which the network has learnt from
    out of fold  (--folds K) of all pictures, each by a network that has not learnt from it: without copies, since folds
                 keep these together

What follows ``--`` goes to train, and to ablate.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from duplicates import CHANGES, changed
from PIL import Image
from table import provenance, publish

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from plumage.birds.folder import draw_birds
from plumage.data.sources import list_samples
from plumage.data.split import stratified_split
from plumage.hardware.cores import usable_cores
from plumage.hardware.device import Machine
from plumage.hardware.environment import environment
from plumage.inference.calibration import log_softmax
from plumage.rundir.folder import RunDir
from plumage.rundir.suspects import Suspect, read_suspects

MAIN = Path(__file__).resolve().parents[1] / "main.py"
OTHER = {"train": "val", "val": "train"}


class Planted(NamedTuple):
    """The paths of wrong labels, by side, and of copies, exact and near: the one that is the suspect."""

    wrong: dict[str, set[str]]
    exact: set[str]
    near: set[str]


def plant(folder: Path, labels: Path, share: float, copies: int, seed: int) -> Planted:
    """Make a ``share`` of the labels of the birds in ``folder`` wrong, and ``copies`` of each kind; write them down."""
    samples, rng = list_samples(folder), np.random.default_rng(seed)
    n, species = len(samples), len(samples.classes)
    split, wrong = stratified_split(samples.labels, 0.2, seed), rng.permutation(n)
    wrong, right = np.split(wrong, [round(share * n)])
    said = samples.labels.copy()
    said[wrong] = (said[wrong] + rng.integers(1, species, len(wrong))) % species
    rows = [(path, samples.classes[label], side) for path, label, side in zip(samples.paths, said, split, strict=True)]
    planted = Planted(
        {side: {samples.paths[row] for row in wrong if split[row] == side} for side in OTHER}, set(), set()
    )
    (folder / "planted").mkdir()
    for number, row in enumerate(right[: 2 * copies]):
        path, label, side = rows[row]
        copy = f"planted/{number:04}.jpg"
        content = (folder / path).read_bytes()
        (folder / copy).write_bytes(content)
        if number >= copies:
            with Image.open(folder / path) as opened:
                image = opened.convert("RGB")
            for kind in CHANGES[number % len(CHANGES)]:
                image = changed(image, kind, rng)
            image.save(folder / copy, quality=90)
        rows.append((copy, label, OTHER[side]))
        (planted.exact if number < copies else planted.near).add(path if side == "val" else copy)
    with labels.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("path", "label", "split"), *rows])
    return planted


def command(*arguments: object) -> None:
    subprocess.run([sys.executable, str(MAIN), *map(str, arguments)], check=True)


def among_first(suspects: list[Suspect], planted: list[set[str]]) -> list[str]:
    """Return how many of each of ``planted`` are among the first one and a half times as many as these together."""
    first = {each.path for each in suspects[: round(1.5 * sum(map(len, planted)))]}
    return [f"{len(each & first)} of {len(each)} ({len(each & first) / max(len(each), 1):.1%})" for each in planted]


def by_thresholds(run: RunDir, wrong: set[str]) -> str:
    """Return how many of the ``wrong`` labels of validation pictures confident learning doubts, and of how many.

    It doubts a label where another class has at least the mean probability that it has for its own pictures.
    """
    with np.load(run.path / "eval-val.npz") as kept:
        logits, labels, indices = (kept[name] for name in ("logits", "labels", "indices"))
    p, rows = np.exp(log_softmax(logits.astype(np.float64))), np.arange(len(labels))
    usual = np.array([p[labels == label, label].mean() if label in labels else 1 for label in range(p.shape[1])])
    p[rows, labels] = -1
    doubted = {run.listed[indices[row]][0] for row in np.flatnonzero((p >= usual).any(axis=1))}
    return (
        f"{len(doubted & wrong)} of {len(wrong)} ({len(doubted & wrong) / max(len(wrong), 1):.1%}), of {len(doubted)}"
    )


def table(run: RunDir, planted: Planted, folds: list[RunDir]) -> Iterator[str]:
    listed, copies = read_suspects(run), [planted.exact, planted.near]
    val, every = planted.wrong["val"], planted.wrong["val"] | planted.wrong["train"]
    fresh = [each for each in listed if not each.why.endswith("trained on")]
    yield "\n| Suspects | rows | wrong labels | exact copies | near copies |\n| --- | --- | --- | --- | --- |"
    yield f"| validation | {len(fresh)} | {' | '.join(among_first(fresh, [val, *copies]))} |"
    yield f"| all | {len(listed)} | {' | '.join(among_first(listed, [every, *copies]))} |"
    for fold in folds:
        suspects = read_suspects(fold)
        yield f"| out of fold | {len(suspects)} | {among_first(suspects, [every])[0]} | – | – |"
    best = run.history.best
    yield f"\nThe network's validation accuracy, of labels with the errors planted: {best['val_accuracy']:.1%}."
    yield f"Of the wrong validation labels, the thresholds of confident learning doubt {by_thresholds(run, val)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--species", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=30, help="of each species")
    parser.add_argument("--wrong", type=float, default=0.05, help="share of the labels")
    parser.add_argument("--copies", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the errors; the birds' is 0")
    parser.add_argument("--folds", type=int, default=0, help="also out of so many folds")
    parser.add_argument("--folder", type=Path, help="where pictures and runs lie, and are taken away again")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("train", nargs="*", help="options of train")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="plumage-suspects-", dir=args.folder) as name:
        home = Path(name)
        draw_birds(home / "birds", args.species, args.pictures, 0, workers=usable_cores())
        planted = plant(home / "birds", home / "labels.csv", args.wrong, args.copies, args.seed)
        how = ["--data", home / "birds", "--labels", home / "labels.csv", "--cache", home / "cache", "--preset", "demo"]
        command("train", *how, *args.train, "--run", home / "run")
        if args.folds:
            command("ablate", *how, *args.train, "--folds", args.folds, "--run", home / "folds")
        folds = [RunDir(file.parent) for file in sorted((home / "folds").glob("out-of-fold*/suspects.csv"))]
        run = RunDir(home / "run")
        lines = ["# Planted errors among the first suspects\n"]
        lines += provenance(environment(Machine(torch.device("cpu"), str(run.precision), compile=False)))
        publish("\n".join([*lines, *table(run, planted, folds)]), args.output)


if __name__ == "__main__":
    main()
