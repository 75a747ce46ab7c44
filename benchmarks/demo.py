"""The README's first command, from an empty folder to its accuracy and report.

    python benchmarks/demo.py -o benchmarks/results/demo-cpu.md
    python benchmarks/demo.py -o benchmarks/results/demo-before-cpu.md -- --resize 64 --crop 56 --batch-size 32 \\
        --lr 0.1 --weight-decay 1e-4 --epochs 5 --warmup-epochs 1

Each seed is a process of its own, one after the other, with a cache of its own: the birds are drawn, decoded and learnt
from, and evaluation, calibration, suspects and report are made. What follows ``--`` goes to train. The accuracy is that
of the best epoch on the validation pictures, as the command prints it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter

from table import lasting, provenance, publish
from trials import Row, write_rows

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from plumage.rundir.folder import RunDir

MAIN = Path(__file__).resolve().parents[1] / "main.py"


def run(seed: int, options: Sequence[str], folder: Path) -> Row:
    """Train once; return the seconds of the whole command, the history, and what it was computed on."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        home = Path(name)
        command = [sys.executable, str(MAIN), "train", "--smoothing", "0.1", "--seed", str(seed), *options]
        own, begun = {**os.environ, "XDG_CACHE_HOME": str(home / "cache")}, perf_counter()
        subprocess.run([*command, "--run", str(home / "run")], check=True, env=own)
        seconds, trained = perf_counter() - begun, RunDir(home / "run")
        environment = lasting(json.loads((trained.path / "environment.json").read_text(encoding="utf-8")))
        history = [dict(row) for row in trained.history]
    return {"seed": seed, "seconds": seconds, "environment": environment, "history": history}


def spread(values: Sequence[float], digits: int) -> str:
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"


def text(rows: Sequence[Row], options: Sequence[str]) -> Iterator[str]:
    yield "# The README's first command\n"
    yield from provenance(rows[0]["environment"])
    yield f"- `python main.py train {' '.join(['--smoothing 0.1 --seed S', *options])}`; ± is the standard deviation\n"
    yield "| seed | validation accuracy, % | seconds, whole command | of these, the epochs | epochs |\n|" + " --- |" * 5
    accuracies = [100 * max(each["val_accuracy"] for each in row["history"]) for row in rows]
    epochs = [sum(each["seconds"] for each in row["history"]) for row in rows]
    for row, accuracy, trained in zip(rows, accuracies, epochs, strict=True):
        yield f"| {row['seed']} | {accuracy:.2f} | {row['seconds']:.0f} | {trained:.0f} | {len(row['history'])} |"
    seconds = [row["seconds"] for row in rows]
    yield f"| all, n = {len(rows)} | {spread(accuracies, 2)} | {spread(seconds, 0)} | {spread(epochs, 0)} | |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2, 3, 4])
    parser.add_argument("--folder", type=Path, help="for what is in between")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("train", nargs="*", help="options of train")
    args = parser.parse_args()
    rows, raw = list[Row](), args.output.parent / "raw" / f"{args.output.stem}.jsonl.gz"
    raw.parent.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        rows.append(run(seed, args.train, args.folder))
        write_rows(raw, rows)
    publish("\n".join(text(rows, args.train)), args.output)


if __name__ == "__main__":
    main()
