"""What pictures cost: to decode them once, against all cores' limit, and to read them back in each epoch.

    python benchmarks/store.py -o benchmarks/results/store-cpu.md

    limit   a process on each core that decodes its share and does nothing else
    build   data.store.open_store with an empty cache: decode, digest, write
    warm    an epoch's batches from the finished store, in training's order, by data.loader

are timed in turns on JPEG files of built-in birds, 500 by 375 pixels. Then two processes build and read a small and a
large store, for their peak memory.
"""

import argparse
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from table import provenance, publish

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from plumage.birds.folder import draw_birds
from plumage.data.decode import Square, decode
from plumage.data.feed import reader
from plumage.data.loader import Pictures, epoch_length, train_batches
from plumage.data.store import Cache, Store, open_store
from plumage.hardware.cores import usable_cores
from plumage.hardware.device import Machine
from plumage.hardware.environment import environment

BATCH = 32


def paths_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob("*/*.jpg"))


def decode_share(files: list[Path], size: int, ready: "multiprocessing.Barrier") -> None:  # type: ignore[valid-type]
    ready.wait()
    for file in files:
        decode(file, Square(size))


def limit(files: list[Path], size: int) -> float:
    """Seconds in which all cores decode ``files``, their processes' starts left out."""
    cores, context = usable_cores(), multiprocessing.get_context("spawn")
    ready = context.Barrier(cores + 1)
    shares = [files[core::cores] for core in range(cores)]
    processes = [context.Process(target=decode_share, args=(share, size, ready)) for share in shares]
    for process in processes:
        process.start()
    ready.wait()
    start = perf_counter()
    for process in processes:
        process.join()
    return perf_counter() - start


def build(folder: Path, size: int, cache: Path) -> tuple[Store, float]:
    start = perf_counter()
    store = open_store(folder, paths_below(folder), Square(size), Cache(cache))
    return store, perf_counter() - start


def warm(store: Store) -> float:
    """Seconds of an epoch's batches, the last partial one included."""
    rows, labels = np.arange(len(store.readable)), np.zeros(len(store.readable), np.int64)
    start = perf_counter()
    pictures = Pictures(reader(store, torch.device("cpu")), rows, labels, BATCH)
    for _ in islice(train_batches(pictures, seed=0), epoch_length(len(rows), BATCH)):
        pass
    return perf_counter() - start


def memory(folder: Path, size: int) -> tuple[int, float, float]:
    """Pictures, and what a process of its own holds that builds their store and reads an epoch from it, GiB: its own
    memory, and the peak of that with what it maps, libraries above all."""
    output = subprocess.check_output([sys.executable, __file__, "--one", str(folder), "--size", str(size)])
    return len(paths_below(folder)), *json.loads(output.splitlines()[-1])


def held() -> tuple[float, float]:
    status = Path("/proc/self/status").read_text()
    own, peak = (re.search(rf"^{name}:\s*(\d+) kB", status, re.MULTILINE) for name in ("RssAnon", "VmHWM"))
    assert own
    assert peak
    return int(own[1]) / 2**20, int(peak[1]) / 2**20


def report(args: argparse.Namespace, folder: Path) -> Iterator[str]:
    small, large = folder / "small", folder / "large"
    draw_birds(small, 20, args.pictures // 200, workers=usable_cores())
    draw_birds(large, 20, args.pictures // 20, workers=usable_cores())
    files = [large / path for path in paths_below(large)]
    rates: dict[str, list[float]] = {"limit": [], "build": [], "warm": []}
    for number in range(args.rounds):
        store, building = build(large, args.size, folder / f"cache-{number}")
        for kind, seconds in (("limit", limit(files, args.size)), ("build", building), ("warm", warm(store))):
            rates[kind].append(len(files) / seconds)
    yield "# What pictures cost\n"
    yield from provenance(environment(Machine(torch.device("cpu"), "fp32", compile=False)))
    yield f"- {len(files)} JPEG files of 500 by 375 pixels to {args.size} px, batches of {BATCH}; n = {args.rounds}"
    yield "\n| Kind | Images/s, median (range) | Ratio to limit, median (range) |\n| --- | --- | --- |"
    for kind, found in rates.items():
        ratios = [rate / most for rate, most in zip(found, rates["limit"], strict=True)]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        yield f"| {kind} | {median(found):,.0f} ({min(found):,.0f} to {max(found):,.0f}) | {spread} |"
    yield ""
    yield "| Pictures | Pixels, GiB | Memory of its own, GiB | The peak of that, with libraries, GiB |"
    yield "| --- | --- | --- | --- |"
    for pictures, own, peak in (memory(small, args.size), memory(large, args.size)):
        yield f"| {pictures:,} | {pictures * args.size**2 * 3 / 2**30:.2f} | {own:.2f} | {peak:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.one:
            store, _ = build(args.one, args.size, Path(folder))
            warm(store)
            print(json.dumps(held()))
            return
        text = "\n".join(report(args, Path(folder)))
    publish(text, args.output)


if __name__ == "__main__":
    main()
