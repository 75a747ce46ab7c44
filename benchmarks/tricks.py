"""What each trick of He et al. 2019 adds: ResNet-50 from scratch on the built-in birds, a line for each trick.

    python benchmarks/tricks.py --seeds 0,1,2 -o benchmarks/results/tricks.md

trains each line of the paper's Tables 4 to 6 and of two augmentations once for each seed, and prints Markdown tables.
The accuracy is that of the last epoch: the best epoch's would be chosen by the very pictures that measure it. A seed
draws the split as well as the training, so lines are compared seed by seed. Each training is a run of main.py in
--folder, its output in a .log beside it; the same command goes on where it was interrupted and trains nothing twice.
"""

import argparse
import csv
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from kill import MAIN, Options, words
from table import provenance, publish

BASELINE: Options = {
    "preset": "demo", "model": "resnet50", "weights": "none", "batch-size": 32, "lr": 0.1, "momentum": 0.9,
    "weight-decay": 1e-4, "schedule": "step", "warmup-epochs": 0, "zero-gamma": False, "bias-decay": True,
    "smoothing": 0, "teacher": "none", "temperature": 20, "mixup": 0, "augment": "crop",
}  # fmt: skip
# title, the line whose options the table starts from, and the lines with what each adds to the one before
TABLES: list[tuple[str, str, list[tuple[str, Options]]]] = [
    ("Efficient training (Table 4)", "", [
        ("baseline", {}),
        ("+ warm-up", {"warmup-epochs": 1}),
        ("+ zero gamma", {"zero-gamma": True}),
        ("+ no bias decay", {"bias-decay": False}),
    ]),
    ("Model tweaks (Table 5), trained as the last line above", "+ no bias decay", [
        ("ResNet-50, the original", {"model": "resnet50v1"}),
        ("ResNet-50-B", {"model": "resnet50"}),
        ("ResNet-50-C", {"model": "resnet50c"}),
        ("ResNet-50-D", {"model": "resnet50d"}),
    ]),
    ("Refinements (Table 6); the teacher is the seed's run of label smoothing, not a ResNet-152-D", "ResNet-50-D", [
        ("efficient ResNet-50-D", {}),
        ("+ cosine decay", {"schedule": "cosine"}),
        ("+ label smoothing", {"smoothing": 0.1}),
        ("+ distillation", {"teacher": "label-smoothing"}),
        ("+ mixup", {"mixup": 0.2}),
    ]),
    ("Augmentation, after label smoothing and without a teacher or mixup", "+ label smoothing", [
        ("crop", {}),
        ("resized-crop", {"augment": "resized-crop"}),
        ("paper", {"augment": "paper"}),
    ]),
]  # fmt: skip


def lines() -> Iterator[tuple[str, str, Options, Options, str]]:
    """Each line's title, label, options added, all its options, and its runs' name: the same for the same options."""
    of_label, names = {"": BASELINE}, dict[frozenset[tuple[str, Any]], str]()
    for title, start, rows in TABLES:
        options = of_label[start]
        for label, added in rows:
            options = of_label[label] = {**options, **added}
            slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
            yield title, label, added, options, names.setdefault(frozenset(options.items()), slug)


def accuracy(run: Path, options: Options, device: str) -> float | None:
    """The last epoch's validation accuracy of ``run``, trained now unless it has been; None where that failed."""
    command = [str(MAIN), "train", "--run", str(run), "--resume", "--no-report", "--device", device, *words(options)]
    try:
        began_as = json.loads((run / "environment.json").read_text(encoding="utf-8"))["command"]
        done = began_as == shlex.join(["python", *command]) and last_row(run)["epoch"] == options["epochs"]
    except (OSError, ValueError, IndexError):
        done = False
    start = time.monotonic()
    if not done:
        log = run.with_name(f"{run.name}.log")
        with log.open("wb") as output:
            code = subprocess.call([sys.executable, *command], stdout=output, stderr=output)
        if code in (130, 143, -signal.SIGINT, -signal.SIGTERM):
            sys.exit(f"{run.name}: stopped; the same command goes on from here")
        if code:
            print(f"{run.name}: failed with exit code {code}, see {log}", file=sys.stderr)
            return None
    share = last_row(run)["val_accuracy"]
    print(f"{run.name}: {share:.1%}, {time.monotonic() - start:.0f} s", file=sys.stderr)
    return share


def last_row(run: Path) -> dict[str, Any]:
    return json.loads((run / "history.jsonl").read_text(encoding="utf-8").splitlines()[-1])


def spread(shares: list[float], sign: str = "") -> str:
    """Mean and standard deviation, in per cent."""
    deviation = f" ± {100 * stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{100 * mean(shares):{sign}.1f}{deviation}" if shares else ""


def header(runs: list[Path], common: Options, seeds: list[int]) -> Iterator[str]:
    """What was measured, how and on what, by the files of ``runs``."""
    yield f"# The bag of tricks on {common['data']}\n"
    places = {tuple(provenance(json.loads((run / "environment.json").read_text(encoding="utf-8")))) for run in runs}
    for place in sorted(places):
        yield from place
    for run in runs[:1]:
        with (run / "split.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
        classes, train = len({row["label"] for row in rows}), sum(row["split"] == "train" for row in rows)
        yield f"- Data: {classes} classes, {train} training and {len(rows) - train} validation pictures"
    yield f"- Baseline: `{shlex.join(words({**common, **BASELINE}))}`"
    yield "- Accuracy: of the last epoch on the validation pictures, in %, mean ± standard deviation over n seeds of"
    yield f"  {', '.join(map(str, seeds))}. Difference: to the line before, whose options are kept, taken seed by seed"


def tables(results: dict[str, dict[int, float]], seeds: list[int]) -> Iterator[str]:
    last_title, before = "", dict[int, float]()
    for title, label, added, _, name in lines():
        if title != last_title:
            yield f"\n## {title}\n\n| Line | Options added | Accuracy | n | Difference |\n|{' --- |' * 5}"
            last_title, before = title, {}
        found = results[name]
        options = f"`{shlex.join(words(added))}`" if added else ""
        n = f"{len(found)}" + (f" ({len(seeds) - len(found)} failed)" if len(found) < len(seeds) else "")
        gaps = [share - before[seed] for seed, share in found.items() if seed in before]
        yield f"| {label} | {options} | {spread(list(found.values()))} | {n} | {spread(gaps, '+')} |"
        before = found


def seed_list(text: str) -> list[int]:
    return sorted({int(seed) for seed in text.split(",")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="birds:species=100")
    parser.add_argument("--seeds", type=seed_list, default="0,1,2")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--resize", type=int, default=64)
    parser.add_argument("--crop", type=int, default=56)
    parser.add_argument("--folder", type=Path, default=Path("runs/tricks"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    common = {"data": args.data, "epochs": args.epochs, "resize": args.resize, "crop": args.crop}
    for folder in (args.folder, args.output.parent if args.output else args.folder):
        folder.mkdir(parents=True, exist_ok=True)
    # Ctrl-C reaches the training as well, which saves before it ends: wait for that.
    signal.signal(signal.SIGINT, lambda *_: None)

    results: dict[str, dict[int, float]] = {}
    for *_, options, name in lines():
        for seed in args.seeds if name not in results else ():
            chosen = {**common, **options, "seed": seed}
            if options["teacher"] != "none":
                chosen["teacher"] = args.folder / f"{options['teacher']}-{seed}" / "checkpoints" / "last.pt"
            share = accuracy(args.folder / f"{name}-{seed}", chosen, args.device)
            results.setdefault(name, {}).update({} if share is None else {seed: share})
    runs = [args.folder / f"{name}-{seed}" for name, shares in results.items() for seed in shares]
    text = "\n".join([*header(runs, common, args.seeds), *tables(results, args.seeds)])
    publish(text, args.output)


if __name__ == "__main__":
    main()
