"""Cuts the power at random instants of trainings, goes on from what the disk held, and compares the ends bit by bit.

    OMP_NUM_THREADS=1 python benchmarks/powercut.py --images 36 -o benchmarks/results/powercut-cpu.md

trains each configuration undisturbed on an ext4 with its default options, then again while images of that disk are
taken, at instants drawn uniformly from the start of the command to six seconds after its end, and one of each training
from the first quarter: start-up, drawing, decoding, steps, writes and the time until ext4 itself writes, five seconds,
are all hit. An image holds what had been written to the device by then and nothing that only memory held, as after a
power cut on a disk without a cache of its own. Each is mounted in the disk's place, where ext4 replays its journal, and
the same command goes on from it, while an image is taken of that too; in the end every tensor and value of its
checkpoints, its history (timings aside), recipe, classes and split have to be those of the undisturbed run. Exits with
1 where anything differs, needed a hand or was lost.

Lost is what an image has to hold and does not. When an epoch's line is printed, the checkpoint before the one of that
epoch's end is on the disk: the epoch before, or, where each step is saved, the epoch's last step. When the command has
ended, all is. Steps of which this does not speak may be trained again.

An image is a clone: the ext4 lies in a file on an xfs, where cloning a file is atomic and takes a few milliseconds, so
the training is not disturbed. It needs Linux, root, loop devices, e2fsprogs, xfsprogs and 4 GB, and without them says
so and measures nothing. --without-flush is the control, which has to fail: os.fsync does nothing then, nor does ext4
make up for it, which else writes a file early that replaces another (noauto_da_alloc).
"""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from kill import COMMON, MAIN, Options, contents, unequal, unreadable, words
from table import provenance, publish

TRAINING: Options = {**COMMON, "data": "birds:species=4,pictures=40", "batch_size": 16, "lr": 0.02, "epochs": 10}
# whether each step is saved, and whether the pictures and the cache lie on the disk too
CONFIGURATIONS = {
    "a checkpoint an epoch": (False, False),
    "a checkpoint a step": (True, False),
    "a checkpoint an epoch, pictures and cache on the disk": (False, True),
}
PHASES = ("Nothing yet", "Begun", "In training", "Finished")  # what an image holds
COLUMNS = ("Images", *PHASES, "Resumed", "Differences", "Needed a hand", "Lost")
AT_ONCE = 4  # images of one training, each of which may come to fill as much as the disk
DISK, CLONES = "640M", "3600M"
AFTERWARDS = 6  # seconds after the end: ext4 writes what nobody flushed after 5


@dataclass
class Cut:
    """An image of the disk, ``instant`` seconds after the command's start, and what is known of the run until then.

    printed: the last epoch that it told of. ended: with exit code 0. before: the steps that the command went on from.
    """

    image: Path
    instant: float
    printed: int
    ended: bool
    before: int = 0


@dataclass
class Row:
    """A line of the table: ``counts`` of images, by the names of columns."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    again: int = 0  # the most steps of epochs that had been told of and were trained again


def tool(*command: object) -> None:
    """Run a command of the system, which a Ctrl-C does not reach. Raises CalledProcessError, OSError."""
    given = list(map(str, command))
    subprocess.run(given, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, start_new_session=True)


@contextmanager
def mounted(image: Path, place: Path, options: str = "loop") -> Iterator[None]:
    place.mkdir(exist_ok=True)
    try:
        tool("mount", "-o", options, image, place)
        yield
    finally:
        if place.is_mount():
            tool("umount", place)


@contextmanager
def file_system(image: Path, place: Path, size: str, make: list[str], options: str = "loop") -> Iterator[Path]:
    """A new file system, made by ``make``, in a file of ``size``, and mounted with ``options``."""
    try:
        tool("truncate", "-s", size, image)
        tool(*make, "-q", image)
        with mounted(image, place, options):
            yield place
    finally:
        image.unlink(missing_ok=True)


@contextmanager
def clones(folder: Path) -> Iterator[Path]:
    """A folder below ``folder`` in which files can be cloned."""
    with file_system(folder / "clones.xfs", folder / "clones", CLONES, ["mkfs.xfs", "-m", "reflink=1"]) as place:
        yield place


@contextmanager
def disk(clones: Path, place: Path, options: str = "loop") -> Iterator[Path]:
    """A new ext4, of default options but for ``options``, mounted at ``place``. Gives the file that is its device."""
    image = clones / "disk.ext4"
    with file_system(image, place, DISK, ["mkfs.ext4"], options):
        yield image


def clone(image: Path, to: Path) -> None:
    """Copy a disk as it is at one instant: writes to it wait for some milliseconds."""
    tool("cp", "--reflink=always", image, to)


def refusal(folder: Path) -> str | None:
    """Why no power can be cut here, or None where it can."""
    try:
        with clones(folder) as place, disk(place, folder / "disk") as image:
            clone(image, place / "image")
    except (OSError, subprocess.CalledProcessError) as error:
        reason = str(getattr(error, "stderr", "")).strip() or str(error)
        return f"no power can be cut here, which needs root, loop devices, ext4 and xfs: {reason.splitlines()[0]}"
    return None


@dataclass
class Bench:
    """Where it happens: ``place`` is the disk's, with the ``run`` on it; ``whole`` is how undisturbed trainings end."""

    folder: Path
    clones: Path
    environment: dict[str, str]
    draw: Random
    options: str = "loop"
    whole: dict[str, Any] = field(default_factory=dict)
    now: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.place = self.folder / "disk"
        self.run = self.place / "runs" / "cut"

    def command(self, row: Row) -> list[str]:
        each_step, on_disk = CONFIGURATIONS[row.name]
        cache = (self.place if on_disk else self.folder) / "cache"
        options = ["--run", str(self.run), "--cache", str(cache), *(["--checkpoint-minutes", "0"] if each_step else [])]
        return [str(MAIN), "train", "--resume", "--no-report", *words(TRAINING), *options]

    def watch(self, row: Row, image: Path, instants: list[float]) -> tuple[int, str, list[Cut]]:
        """Train on the disk that is ``image``, and clone it at ``instants``. Returns exit code and output too."""
        cuts: list[Cut] = []
        log = self.folder / "log"
        with log.open("w") as out:
            command, start = [sys.executable, *self.command(row)], time.monotonic()
            process = subprocess.Popen(command, stdout=out, stderr=out, env=self.environment, start_new_session=True)
        try:
            for instant in sorted(instants):
                time.sleep(max(0, start + instant - time.monotonic()))
                ended = process.poll() == 0  # before the image: nothing is asked of what comes meanwhile
                said = log.read_text(encoding="utf-8", errors="replace")
                copy = image.with_name(f"{image.stem}-{len(cuts)}.ext4")
                clone(image, copy)
                printed = re.findall(r"^epoch +(\d+)/.*\n", said, re.MULTILINE)
                cuts.append(Cut(copy, time.monotonic() - start, int([0, *printed][-1]), ended))
            process.wait()
        finally:
            if process.poll() is None:  # this ends itself
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return process.returncode, log.read_text(encoding="utf-8", errors="replace"), cuts

    def watch_whole(self, row: Row, instants: list[float]) -> list[Cut]:
        """Train on a new disk, and clone it at ``instants``. Exits unless the training ends as the first did."""
        with disk(self.clones, self.place, self.options) as image:
            code, said, cuts = self.watch(row, image, instants)
            if code:
                sys.exit(f"{row.name}: failed undisturbed with exit code {code}: {said[-500:]}")
            self.now = self.now or json.loads((self.run / "environment.json").read_text(encoding="utf-8"))
            self.whole = self.whole or contents(self.run)
            if found := list(self.differences()):
                sys.exit(f"{row.name}: undisturbed, two trainings differ in {', '.join(found)}")
        return cuts

    def differences(self) -> Iterator[str]:
        """Where the run that has now ended is not as the first undisturbed one."""
        try:
            yield from unequal(self.whole, contents(self.run), "")
        except Exception as error:  # on a damaged file torch raises nearly anything
            yield f"the run cannot be read: {error}"

    def fill(self, row: Row, images: int) -> None:
        """Train ``row`` undisturbed, and as often as it takes to restore ``images``: of it, and of what is resumed."""
        start = time.monotonic()
        self.watch_whole(row, [])
        seconds = time.monotonic() - start
        print(f"{row.name}: undisturbed in {seconds:.1f} s", file=sys.stderr)
        while row.counts["Images"] < images:
            taken = min(AT_ONCE, (images - row.counts["Images"] + 1) // 2)
            lasts = [(seconds + AFTERWARDS) / (1 if number else 4) for number in range(taken)]
            for cut in self.watch_whole(row, [self.draw.uniform(0, last) for last in lasts]):
                rest = max(0, seconds - cut.instant) + AFTERWARDS
                for again in self.restore(row, cut, [self.draw.uniform(0, rest)]):
                    self.restore(row, again, [])

    def restore(self, row: Row, cut: Cut, instants: list[float]) -> list[Cut]:
        """Go on from an image, note in ``row`` what came of it, and return images of that, if there is use in them."""
        with mounted(cut.image, self.place):  # which replays the journal
            pass
        tool("e2fsck", "-fn", cut.image)  # so it is files that power cuts take something of, not the file system
        with mounted(cut.image, self.place):
            held = {path.relative_to(self.run).as_posix(): path.stat().st_size for path in self.run.rglob("*.*")}
            differences = list(unreadable(self.run))
            code, said, cuts = self.watch(row, cut.image, instants)
            differences += [] if code else self.differences()
        cut.image.unlink()
        finished, kept = "nothing is left to do" in said, self.steps_before(said)
        problems = [f"exit code {code}: {said[-500:]!r}"] if code else []
        problems += differences
        if kept < (least := self.promised(row, cut)):
            problems.append(f"lost: went on after step {kept}, not {least}")
        counts = {"Differences": len(differences), "Needed a hand": code != 0, "Lost": kept < least}
        row.counts.update({"Images": 1, phase(held, finished): 1, "Resumed": kept > 0, **counts})
        row.again = max(row.again, cut.printed * self.epoch_length - kept)

        empty = ", ".join(name for name, size in held.items() if not size and name != ".lock")
        about = f"{row.name}, image at {cut.instant:.1f} s{f' of going on after {cut.before}' if cut.before else ''}"
        about += f", {cut.printed} epochs printed{', ended' if cut.ended else ''}; empty: {empty or 'no file'}"
        print(f"{about}: after {kept} {'; '.join(problems) or 'the same'}", file=sys.stderr)
        row.problems += [f"{about}: {'; '.join(problems)}"] if problems else []
        useful = not problems and not finished
        for again in cuts:
            again.before = kept
            if not useful:
                again.image.unlink()
        return cuts if useful else []

    @property
    def epoch_length(self) -> int:
        return int(self.whole["history.jsonl"][0]["iteration"])

    def promised(self, row: Row, cut: Cut) -> int:
        """The steps that an image has to hold."""
        each_step, _ = CONFIGURATIONS[row.name]
        epochs = TRAINING["epochs"] if cut.ended else cut.printed - (not each_step)
        return max(cut.before, epochs * self.epoch_length)

    def steps_before(self, said: str) -> int:
        """The steps that a training goes on from, by what it said."""
        if "nothing is left to do" in said:
            return int(TRAINING["epochs"] * self.epoch_length)
        after = re.search(r"going on after iteration (\d+)", said)
        return int(after[1]) if after else 0


def phase(held: dict[str, int], finished: bool) -> str:
    """What an image of the disk holds of a run, by its files."""
    nothing, begun, training, over = PHASES
    if finished:
        return over
    return training if "checkpoints/last.pt" in held else begun if "recipe.json" in held else nothing


def report(rows: list[Row], bench: Bench, seed: int, without_flush: bool) -> Iterator[str]:
    title = "Trainings whose power was cut, resumed, and compared with undisturbed ones"
    yield f"# {title}{', without flushes' if without_flush else ''}\n"
    yield from provenance(bench.now)
    yield f"- Disk: ext4 of {DISK}, made with default options, mounted with `-o {bench.options}`; seed {seed}"
    yield f"- Training: `{shlex.join(words(TRAINING))}`; a checkpoint a step by"
    yield f"  `--checkpoint-minutes 0`; {bench.epoch_length} steps an epoch"
    yield f"\n| Configuration | {' | '.join(COLUMNS)} | Most steps of printed epochs trained again |"
    yield f"|{' --- |' * (len(COLUMNS) + 2)}"
    for row in rows:
        cells = [row.name, *(row.counts[column] for column in COLUMNS), row.again]
        yield f"| {' | '.join(map(str, cells))} |"
    for row in rows:
        yield from (f"\n- {problem}" for problem in row.problems)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=36)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=CONFIGURATIONS, action="append", help="[all configurations]")
    parser.add_argument("--without-flush", action="store_true", help="have os.fsync do nothing while images are taken")
    parser.add_argument("--folder", type=Path, help="where a folder is made for the disk and its images, 4 GB")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # and all is unmounted and removed
    with tempfile.TemporaryDirectory(prefix="plumage-powercut-", dir=args.folder) as made:
        folder = Path(made).resolve()
        if why := refusal(folder):
            print(f"skipped: {why}")
            return
        environment, rows = {**os.environ}, [Row(name) for name in args.only or CONFIGURATIONS]
        if args.without_flush:
            (folder / "sitecustomize.py").write_text("import os\nos.fsync = os.fdatasync = lambda handle: None\n")
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
        with clones(folder) as place:
            options = "loop,noauto_da_alloc" if args.without_flush else "loop"
            bench = Bench(folder, place, environment, Random(args.seed), options)
            for number, row in enumerate(rows):
                bench.fill(row, (args.images + len(rows) - 1 - number) // len(rows))
    publish("\n".join(report(rows, bench, args.seed, args.without_flush)), args.output)
    if any(row.problems for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
