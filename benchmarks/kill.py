"""Kills trainings at random instants, resumes them, and compares their ends with an undisturbed run's, bit by bit.

    OMP_NUM_THREADS=1 python benchmarks/kill.py --kills 100 -o benchmarks/results/kill.md

trains each configuration once undisturbed, then again and again while killing it, at instants drawn uniformly from the
time that the undisturbed run took: start-up, drawing, decoding, steps, validation, writes and the end are all hit. What
was killed is resumed by the same command until it ends; then every tensor and value of its checkpoints, its history
(timings aside), recipe, classes and split have to be those of the undisturbed run. In every second run a checkpoint is
saved after each step, so that many kills fall into writes. Exits with 1 where anything differs or did not resume.

--signal, which may be given several times, says what it kills with instead; of several, each kill draws one. A run that
is asked to end, by TERM, INT, HUP or USR1, has to do so with the signal's exit code.

--full-disk makes each write fail from the instant on instead (by the limit on a file's size, EFBIG for ENOSPC, which
needs no rights but Linux): the run has to end with one line and exit code 2, every checkpoint readable, and goes on
without the limit. On a CPU, bits are the same for the same number of threads.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from table import provenance, publish

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from plumage.recipe import as_given

MAIN = Path(__file__).resolve().parents[1] / "main.py"
Options = dict[str, Any]
COMMON: Options = {
    "data": "birds:species=4,pictures=10", "preset": "finetune", "model": "resnet18", "weights": "none", "resize": 36,
    "crop": 32, "batch_size": 8, "lr": 0.05, "epochs": 4, "device": "cpu", "precision": "fp32",
}  # fmt: skip
# what teaches, or is started from, is the undisturbed plain run, which is the first
CONFIGURATIONS: dict[str, Options] = {
    "plain": {},
    "ema-mixup-paper": {"ema": 0.9, "mixup": 0.2, "augment": "paper"},
    "freeze-accumulate-clip-stop": {
        "weights": "plain", "freeze_backbone_epochs": 1, "accumulate": 2, "clip_grad_norm": 1, "early_stopping": 1
    },
    "teacher": {"teacher": "plain", "temperature": 4},
    "precision-auto": {"precision": "auto"},
}  # fmt: skip
TIMINGS = ("seconds", "images_per_second")


@dataclass
class Row:
    """A line of the table."""

    name: str
    kills: int = 0
    resumes: int = 0
    runs: int = 0
    differences: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass
class Way:
    """How a training is disturbed, and the exit codes that it may then have."""

    name: str

    def strike(self, process: "subprocess.Popen[str]") -> None:
        if self.name == "full disk":
            import resource  # noqa: PLC0415 (not on Windows)

            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        else:
            os.killpg(process.pid, signal.Signals[f"SIG{self.name}"])

    def explains(self, code: int, errors: str) -> bool:
        """Whether a struck process may end like that; by a signal also before it has its handlers."""
        if self.name == "full disk":
            return code == 2 and errors.count("error: ") == 1 and "Traceback" not in errors
        number = signal.Signals[f"SIG{self.name}"]
        return code == -number or (number != signal.SIGKILL and code == 128 + number)


def words(options: Options) -> list[str]:
    """Return the options as main.py takes them."""
    return [word for name, value in options.items() for word in as_given(name, value).split(" ", 1)]


def attempt(command: list[str], way: Way, instant: float | None = None) -> tuple[int, str, bool]:
    """Exit code, standard error, and whether it was struck before its end, ``instant`` seconds after its start."""
    pipe = subprocess.PIPE  # no file, which a limit on files' sizes would hit too
    process = subprocess.Popen(
        [sys.executable, *command], stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True
    )
    struck = False
    try:
        try:
            _, errors = process.communicate(timeout=instant)
        except subprocess.TimeoutExpired:
            way.strike(process)
            struck = True
            _, errors = process.communicate()
    finally:
        if process.poll() is None:  # this ends itself
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, errors, struck


def unequal(one: Any, other: Any, where: str) -> Iterator[str]:
    """The places in which two checkpoints' contents differ in a bit."""
    if type(one) is not type(other):
        yield where
    elif isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield where
    elif isinstance(one, dict) and one.keys() == other.keys():
        for key in one:
            yield from unequal(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, list | tuple) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from unequal(*pair, f"{where}[{number}]")
    elif one != other:
        yield where


def contents(run: Path) -> dict[str, Any]:
    """All of a finished run that has to be the same however often it was stopped."""
    history = without_timings((run / "history.jsonl").read_text(encoding="utf-8"))
    files = {name: (run / name).read_bytes() for name in ("recipe.json", "classes.json", "split.csv", "skipped.csv")}
    return {**files, "history.jsonl": history, **{f"{name}.pt": load(run, name) for name in ("best", "last")}}


def load(run: Path, name: str) -> Any:
    content = torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)
    return content | {"history": without_timings(bytes(content["history"].tolist()).decode())}


def without_timings(history: str) -> list[dict[str, Any]]:
    rows = map(json.loads, history.splitlines())
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def unreadable(run: Path) -> Iterator[str]:
    """The checkpoints of a run that has just been stopped that are not whole."""
    for file in run.glob("checkpoints/*.pt"):
        try:
            torch.load(file, weights_only=True)
        except Exception as error:  # on a damaged file torch raises nearly anything
            yield f"{file.name} cannot be read: {error}"


def disturb(
    row: Row, folder: Path, command: list[str], ways: list[Way], kills: int, seconds: float, draw: Random
) -> None:
    """Another run of ``row``, struck while the row has less than ``kills``, resumed to its end and compared."""
    row.runs += 1
    whole, run = folder / row.name, folder / f"{row.name}-{row.runs}"
    pictures = run.with_suffix(".cache")
    command = [*command, "--run", str(run), "--cache", str(pictures)]
    if row.runs % 2 == 0:
        command += ["--checkpoint-minutes", "0"]
    found: list[str] = []
    code, attempts = -1, 0
    while code:
        way, instant = draw.choice(ways), draw.uniform(0, seconds) if row.kills < kills else None
        code, errors, struck = attempt(command, way, instant)
        row.resumes += attempts > 0
        attempts += 1
        found += unreadable(run)
        if code and not (struck and way.explains(code, errors)):
            row.failures.append(f"`{shlex.join(command)}`, attempt {attempts}: exit code {code}: {errors[-500:]!r}")
            break
        row.kills += code != 0
        print(f"{run.name}: {f'{way.name} after {instant:.1f} s' if code else 'finished'}", file=sys.stderr)
    else:
        found += unequal(contents(whole), contents(run), "")
    row.differences += [f"{run}: {difference}" for difference in found]
    if not code and not found:
        shutil.rmtree(run)
    shutil.rmtree(pictures, ignore_errors=True)


def soak(row: Row, folder: Path, options: Options, ways: list[Way], kills: int, draw: Random) -> None:
    """An undisturbed run of ``options``, and as many others as it takes to strike ``kills`` times."""
    given = {name: folder / "plain" if value == "plain" else value for name, value in {**COMMON, **options}.items()}
    command = [str(MAIN), "train", "--resume", "--no-report", *words(given)]
    start = time.monotonic()
    whole, pictures = folder / row.name, folder / f"{row.name}.cache"
    code, errors, _ = attempt([*command, "--run", str(whole), "--cache", str(pictures)], ways[0])
    if code:
        sys.exit(f"{row.name}: failed undisturbed with exit code {code}: {errors}")
    seconds = time.monotonic() - start
    print(f"{row.name}: undisturbed in {seconds:.1f} s", file=sys.stderr)
    while row.kills < kills and len(row.failures) < 5:
        disturb(row, folder, command, ways, kills, seconds, draw)


def report(rows: list[Row], folder: Path, ways: list[Way], seed: int) -> Iterator[str]:
    now = json.loads((folder / "plain" / "environment.json").read_text(encoding="utf-8"))
    auto = json.loads((folder / "precision-auto" / "environment.json").read_text(encoding="utf-8"))["precision"]
    names = ", ".join(way.name for way in ways)
    yield f"# Trainings disturbed by {names}, resumed, and compared with undisturbed ones\n"
    yield from provenance(now)
    yield f"- Precision auto is {auto}; seed {seed}"
    yield f"- Training: `{shlex.join(words(COMMON))}`, every second run with"
    yield "  `--checkpoint-minutes 0`, a checkpoint after each step"
    yield f"\n| Configuration | Options | Kills | Resumes | Runs | Differences | Needed a hand |\n|{' --- |' * 7}"
    for row in rows:
        options = f"`{shlex.join(words(CONFIGURATIONS[row.name]))}`" if CONFIGURATIONS[row.name] else ""
        found = f"{len(row.differences)} | {len(row.failures)}"
        yield f"| {row.name} | {options} | {row.kills} | {row.resumes} | {row.runs} | {found} |"
    for row in rows:
        yield from (f"\n- {problem}" for problem in row.differences + row.failures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT", "HUP", "USR1"), action="append", help="[KILL]")
    parser.add_argument("--full-disk", action="store_true")
    parser.add_argument("--folder", type=Path, help="where a folder is made for the runs; those that differ stay there")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    for place in (args.folder, args.output.parent if args.output else None):
        if place:
            place.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # and the training ends with this
    folder = Path(tempfile.mkdtemp(prefix="plumage-kill-", dir=args.folder))
    names = ["full disk"] if args.full_disk else args.signal or ["KILL"]
    ways, draw = [Way(name) for name in names], Random(args.seed)

    rows = [Row(name) for name in CONFIGURATIONS]
    for number, row in enumerate(rows):
        share = (args.kills + len(rows) - 1 - number) // len(rows)
        soak(row, folder, CONFIGURATIONS[row.name], ways, share, draw)
    text = "\n".join(report(rows, folder, ways, args.seed))
    publish(text, args.output)
    if any(row.differences or row.failures for row in rows):
        sys.exit(f"what differs is in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
