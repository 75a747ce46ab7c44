"""Plumage's own command, with all that it ends with: the report, the calibration, the suspects.

From README.md: the preset ``demo`` is the one from scratch, ``finetune`` the one from weights, as they are but for the
side of the pictures and the epochs. The cache is an empty one. Predictions are the last epoch's, not those of the best
one, which val/ itself has chosen.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from task import Task, read_task

MAIN = Path(__file__).resolve().parents[2] / "main.py"


def plumage(*arguments: object) -> None:
    subprocess.run([sys.executable, str(MAIN), *map(str, arguments)], check=True, stdout=sys.stderr)


def recipe_options(task: Task) -> dict[str, Any]:
    start = {"preset": "finetune", "weights": str(task.weights)} if task.weights else {"preset": "demo"}
    own = {"resize": task.resize, "crop": task.side, "epochs": task.epochs, "seed": task.seed}
    return {"data": str(task.data)} | start | own


def main() -> None:
    task = read_task()
    run, rows = task.folder / "run", task.folder / "rows.jsonl"
    given = (part for name, value in recipe_options(task).items() for part in (f"--{name}", value))
    plumage("train", *given, "--run", run, "--cache", task.folder / "cache")
    task.evaluated()
    print((run / "history.jsonl").read_text(encoding="utf-8"))
    plumage("predict", task.data / "val", "--run", run, "--checkpoint", "last", "--format", "jsonl", "-o", rows)
    found = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    task.predicted([row["path"] for row in found], [row["label"] for row in found])


if __name__ == "__main__":
    main()
