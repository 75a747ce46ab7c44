"""Plumage beside what people would use instead: accuracy against seconds, memory, and the code that the user writes.

    pip install -e ".[peers]"
    python benchmarks/peers.py --start scratch -o benchmarks/results/peers-birds-scratch-cpu.md
    python benchmarks/peers.py --start runs/species -o benchmarks/results/peers-birds-weights-cpu.md
    python benchmarks/peers.py --data FOLDER --start runs/species -o benchmarks/results/peers-FOLDER-weights-cpu.md

All get the same folder with train/ and val/, a fifth of each class, and the same weights: a run's, or a file of
torchvision's names. Each is a process of its own, in turns: the script in peers/ that its user writes by its
documentation. Each ends with the class that it takes each picture in val/ for, and these are counted here, alike for
all. What each gave is kept in raw/ beside the table: the same command trains what is missing, and writes it again.
The packages are only for measuring, Ultralytics under the AGPL-3.0: no code of the product imports them.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from math import inf
from pathlib import Path
from signal import SIG_DFL, SIGHUP, SIGKILL, SIGTERM, getsignal, signal
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import monotonic, perf_counter

import numpy as np
import torch
from table import lasting, publish

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().with_name("peers")))

from memory import Sample, peak, watch
from outcome import code_lines, page
from task import BEGINS, EVALUATED, Task
from trials import Row, add_row, read_rows, write_rows
from use_plumage import recipe_options

from plumage.birds.folder import draw_species, parse_birds
from plumage.birds.species import species_list
from plumage.data.sources import list_samples
from plumage.errors import UserError
from plumage.hardware.device import Machine, choose_device, choose_precision
from plumage.hardware.environment import environment
from plumage.models.weights import load_file, state_dict_of
from plumage.recipe import Recipe, is_birds
from plumage.rundir.folder import weights_file

SCRIPTS = Path(__file__).resolve().with_name("peers")
# the package of each, and the epochs it is given
PEERS = {
    "plumage": ("plumage", (5, 15)),
    "fastai": ("fastai", (5, 15)),
    "ultralytics": ("ultralytics", (5, 20)),
    "timm": ("timm", (5, 15)),
    "torchvision": ("torchvision", (5, 15)),
    "plain": ("torch", (5, 15)),
}
COMMANDS = ("plumage", "ultralytics")  # a line in a terminal, and no script
READ_BY_ALL = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
OFFLINE = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "HF_HUB_OFFLINE": "1"}
# of a row: which training it is of, and with what it was made
DECIDES = ("data", "pictures", "start", "side", "peer", "epochs", "seed", "script", "packages", "hardware", "recipe")


def make_folder(data: str, folder: Path) -> list[int]:
    """Copy pictures into ``folder``/train and /val, a fifth of each class, by seed 0. Return how many are in each.

    data: a folder with a folder for each class, or birds. Raises UserError where there is nothing to learn from.
    """
    source = Path(data)
    if is_birds(data):
        source, wanted = folder.with_name(f"{folder.name}-drawn"), parse_birds(data)
        source.mkdir()
        for bird in species_list(wanted["species"], wanted["seed"]):
            draw_species(bird, source, wanted["pictures"], wanted["seed"])
    samples, rng = list_samples(source), np.random.default_rng(0)
    usable = np.array([path.lower().endswith(READ_BY_ALL) for path in samples.paths])
    for label, name in enumerate(samples.classes):
        own = rng.permutation(np.flatnonzero((samples.labels == label) & usable))
        for number, row in enumerate(own if len(own) > 1 else ()):
            file = samples.root / samples.paths[row]
            side = "val" if number < max(1, round(len(own) / 5)) else "train"
            (folder / side / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / side / name / f"{number:05d}{file.suffix.lower()}")
    return [sum(1 for _ in (folder / side).glob("*/*")) for side in ("train", "val")]


def take_weights(start: str, file: Path) -> str:
    """Write the weights of ``start``, a run or a file, without the last layer. Return what to call them."""
    given = Path(weights_file(str(Path(start).resolve())))
    state = state_dict_of(load_file(given))
    torch.save({name: value for name, value in state.items() if not name.startswith("fc.")}, file)
    return f"{Path(start).name}, SHA-256 {hashlib.sha256(given.read_bytes()).hexdigest()[:8]}"


def accuracy_of(predictions: Path, val: Path) -> float:
    """Return the share of the pictures in ``val`` that are taken for the class of their folder."""
    found = json.loads(predictions.read_text(encoding="utf-8"))
    true = {path.relative_to(val).as_posix(): path.parent.name for path in val.glob("*/*")}
    assert found.keys() == true.keys(), "each picture has a prediction"
    return sum(found[path] == name for path, name in true.items()) / len(true)


def measured(peer: str, task: Task) -> Row | None:
    """Run the script of ``peer``, and return what was measured, None where it failed. All it started has ended."""
    script, errors = SCRIPTS / f"use_{peer}.py", task.folder / "errors.txt"
    begin, seconds, log, ended, samples = perf_counter(), 0.0, list[str](), Event(), list[Sample]()
    given = {"stdout": subprocess.PIPE, "cwd": task.folder, "start_new_session": True}
    given["env"] = os.environ | OFFLINE | {"YOLO_CONFIG_DIR": str(task.folder)}
    with (
        errors.open("wb") as file,
        subprocess.Popen([sys.executable, script, *task.arguments], stderr=file, **given) as process,
    ):
        watcher = Thread(target=watch, args=(process.pid, ended, samples))
        watcher.start()
        try:
            for said in process.stdout:
                line = said.decode(errors="replace").rstrip().rpartition("\r")[2]  # of a bar, how it ended
                if line == BEGINS:
                    begin = perf_counter()
                elif line == EVALUATED:
                    seconds = perf_counter() - begin
                    ended.set()
                elif line:
                    log.append(line)
            process.wait()
        finally:
            with suppress(ProcessLookupError):  # of the group: a command that the script gave, and its workers
                os.killpg(process.pid, SIGKILL)
            ended.set()
            watcher.join()
    if process.returncode or not seconds or not task.predictions.exists():
        said = errors.read_text(encoding="utf-8", errors="replace").split("\n")
        why = f"failed with exit code {process.returncode}" if process.returncode else "ended without a result"
        print(f"{peer} {why}:", *said[-20:], sep="\n", file=sys.stderr)
        return None
    accuracy, memory = accuracy_of(task.predictions, task.data / "val"), peak(samples, begin, seconds)
    lines = 1 if peer in COMMANDS else code_lines(script.read_text(encoding="utf-8"))
    return {"accuracy": accuracy, "seconds": seconds, "memory": memory, "lines": lines, "log": log}


def key_of(row: Row) -> str:
    return json.dumps([row.get(name) for name in DECIDES], sort_keys=True)


def made_with(peer: str, task: Task, here: Row) -> Row:
    """Return what a result of ``peer`` depends on beside the task, in JSON's types. here: the environment."""
    sources = [file.read_bytes() for file in sorted(SCRIPTS.glob("*.py")) if file.stem == "task" or peer in file.stem]
    own = {"script": hashlib.sha256(b"".join(sources)).hexdigest()}
    own |= {"packages": {name: here["packages"].get(name) for name in (PEERS[peer][0], "torch", "torchvision")}}
    own |= {"hardware": [here[name] for name in ("device", "gpu", "cpu", "threads")], "recipe": None}
    if peer == "plumage":  # whose script names a preset
        recipe = asdict(Recipe.create(recipe_options(task)))
        own["recipe"] = {name: value for name, value in recipe.items() if name not in ("data", "weights")}
    return own


def missing(peers: Sequence[str]) -> Iterator[str]:
    for peer in peers:
        if find_spec(PEERS[peer][0]) is None:
            print(f'{peer}: is not installed, and left out; pip install -e ".[peers]"', file=sys.stderr)
            yield peer


def task_of(line: Row, tasks: Task) -> Task:
    return tasks._replace(epochs=line["epochs"], seed=line["seed"])


def rows_of(plan: Sequence[Row], tasks: Task, raw: Path, minutes: float = inf) -> list[Row]:
    """Return a row for each line of ``plan``, in its order: those that ``raw`` has, and others measured now.

    minutes: after so many no other is begun. Those, and what failed, have no row.
    """
    begun, found = monotonic(), {key_of(row): row for row in read_rows(raw)}
    write_rows(raw, list(found.values()))  # what a stop cut short is gone
    device = choose_device("auto")
    here = lasting(environment(Machine(device, choose_precision("auto", device), compile=False)))
    here["packages"] |= {name: version(name) for name, _ in PEERS.values() if find_spec(name) and name != "plumage"}
    plan = [line | made_with(line["peer"], task_of(line, tasks), here) for line in plan]
    for line in (line for line in plan if key_of(line) not in found):
        if monotonic() >= begun + 60 * minutes:
            break
        with TemporaryDirectory(dir=tasks.folder) as name:
            row = measured(line["peer"], task_of(line, tasks)._replace(folder=Path(name)))
        for cache in tasks.data.glob("*.cache"):  # Ultralytics', which its next training would find
            cache.unlink()
        if row:
            found[key_of(line)] = row = line | row | {"environment": here}
            add_row(raw, row)
            told = f"{row['accuracy']:.2%}, {row['seconds']:.0f} s, {row['memory'] / 2**30:.1f} GiB"
            print(f"{row['peer']}, {row['epochs']} epochs, seed {row['seed']}: {told}", file=sys.stderr, flush=True)
    write_rows(raw, list(found.values()))  # line by line it is larger
    return [found[key_of(line)] for line in plan if key_of(line) in found]


def budget(text: str) -> dict[str, list[int]]:
    """Read the epochs of a peer, ``fastai=5,15``, or of all, ``5,15``."""
    peers, _, epochs = text.rpartition("=")
    if peers and peers not in PEERS:
        raise argparse.ArgumentTypeError(f"{peers} is not among {', '.join(PEERS)}")
    return {peer: [int(number) for number in epochs.split(",")] for peer in ([peers] if peers else PEERS)}


def peer_list(text: str) -> list[str]:
    if unknown := [name for name in text.split(",") if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is not among {', '.join(PEERS)}")
    return text.split(",")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="birds", help="birds, others as birds:species=50, or a folder of classes")
    parser.add_argument("--start", default="scratch", help="scratch, or a run or a file whose weights all start from")
    parser.add_argument("--side", type=int, default=56, help="of the square that networks see, in pixels")
    parser.add_argument("--budgets", type=budget, nargs="*", default=[], metavar="[PEER=]EPOCHS,EPOCHS")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--only", type=peer_list, default=list(PEERS), help="these, as plumage,fastai")
    parser.add_argument("--minutes", type=float, default=inf, help="begin no other training after so many")
    parser.add_argument("--folder", type=Path, help="where all lies that is in between, and is taken away again")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    epochs = {peer: list(own) for peer, (_, own) in PEERS.items()}
    for each in args.budgets:
        epochs |= each
    absent = set(missing(args.only))
    peers = [peer for peer in args.only if peer not in absent]
    if not peers or find_spec("psutil") is None:
        sys.exit('--only: none of them is installed, or psutil is not, which measures; pip install -e ".[peers]"')
    raw = args.output.parent / "raw" / f"{args.output.stem}.jsonl.gz"
    raw.parent.mkdir(parents=True, exist_ok=True)
    for number in (SIGTERM, SIGHUP):
        if getsignal(number) == SIG_DFL:  # nohup's is another
            signal(number, lambda number, _: sys.exit(128 + number))  # what runs, in a session of its own, is ended too
    with TemporaryDirectory(prefix="plumage-peers-", dir=args.folder) as name:
        data, weights = Path(name).resolve() / "pictures", Path(name).resolve() / "weights.pth"
        try:
            pictures = make_folder(args.data, data)
            start = "scratch" if args.start == "scratch" else take_weights(args.start, weights)
            shared = {"data": args.data if is_birds(args.data) else Path(args.data).absolute().name}
            shared |= {"pictures": pictures, "start": start, "side": args.side}
            turns = range(max(len(epochs[peer]) for peer in peers))
            order = [(seed, turn, peer) for seed in args.seeds for turn in turns for peer in peers]
            plan = [
                shared | {"peer": peer, "epochs": epochs[peer][turn], "seed": seed}
                for seed, turn, peer in order
                if turn < len(epochs[peer])
            ]
            task = Task(data, weights if weights.exists() else None, 0, 0, args.side, Path(name).resolve())
            rows = rows_of(plan, task, raw, args.minutes)
        except UserError as error:
            sys.exit(str(error))
    if rows:
        publish("\n".join(page(rows)), args.output)


if __name__ == "__main__":
    main()
