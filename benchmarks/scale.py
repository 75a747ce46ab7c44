"""How seconds and memory grow with the number of pictures, from 10^3 to 10^6, in all that is done without their pixels.

    python benchmarks/scale.py -o benchmarks/results/scale-cpu.md

The pictures are hard links to a tiny file in each of 100 class folders, made below --folder; their store is one of
pictures of a single pixel, and holds zeros. Their difference hashes are random, but that every hundredth picture has
one of the next one's but for two bits, so that the pixels of both are compared; groups are of two pictures. Each stage
runs --repeat times, in a process of its own, by the code of `train`: listing; finding the store, whose key is of each
file's name, size and time, and splitting; the same where near-duplicates are looked for, and where there are groups
besides; writing the split; what --resume does instead, reading the split and finding the store; and an epoch, its
order and all of its batches. Printed are the median seconds, and how much of them the CPU computed; the largest peak
memory of the process, with all that leads up to the stage, above what its imports take; and the exponent of n in a
power law through the three largest n: 1 is a straight line.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np
from table import provenance, publish

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

NAMES = [f"class {number:02}" for number in range(100)]
SIDE, BATCH_SIZE = 1, 64
ALIKE, GROUPS = "the same with near-duplicates", "the same with near-duplicates and groups"
STAGES = ("list", "find the store and split", ALIKE, GROUPS, "write the split", "resume", "an epoch")


def make_pictures(root: Path, pictures: int) -> None:
    for name in NAMES:
        (root / name).mkdir(parents=True)
        (first := root / name / "picture 0000000.jpg").write_bytes(b"tiny")
        for index in range(1, pictures // len(NAMES)):
            os.link(first, root / name / f"picture {index:07}.jpg")


def make_store(folder: Path) -> None:
    """As if the pictures had been decoded."""
    from plumage.data.decode import Square  # noqa: PLC0415 (the process that starts the others stays small)
    from plumage.data.depth import LEARN  # noqa: PLC0415
    from plumage.data.duplicates import HASHES  # noqa: PLC0415
    from plumage.data.sources import list_samples  # noqa: PLC0415
    from plumage.data.store import _identity, _keys, _name, write_skipped  # noqa: PLC0415

    root = folder / "pictures"
    paths = list_samples(root).paths
    keys, asked = _keys(root, paths), np.array(LEARN)
    home = folder / "stores" / f"{_name(root, Square(SIDE))}-{_identity(keys, asked)}"
    home.mkdir(parents=True)
    with (home / "pixels").open("wb") as file:
        file.truncate(len(paths) * SIDE * SIDE * 3)
    rng = np.random.default_rng(0)
    digests = rng.integers(0, 256, (len(paths), 16), np.uint8)
    hashes = rng.integers(0, 2**64, (len(paths), HASHES), np.uint64)
    hashes[:-1:100, 0] = hashes[1::100, -1] ^ np.uint64(2**7 + 2**40)
    sums = np.full(len(paths), zlib.crc32(bytes(3 * SIDE**2)), np.uint32)
    facts = {"digests": digests, "hashes": hashes, "sums": sums, "extremes": np.full((len(paths), 2), np.nan)}
    np.savez(home / "index.npz", keys=keys, readable=np.arange(len(paths)), asked=asked, **facts)
    for file in (home / "skipped.csv", folder / "skipped.csv"):
        write_skipped(file, [])


def go(until: str, folder: Path) -> None:
    """All that leads to stage ``until``, and it; then print its seconds, those of the CPU, and the peak memory."""
    import torch  # noqa: PLC0415

    from plumage.data.dataset import Dataset, prepare, recall  # noqa: PLC0415
    from plumage.data.decode import Square  # noqa: PLC0415
    from plumage.data.feed import reader  # noqa: PLC0415
    from plumage.data.loader import Pictures, epoch_length, train_batches  # noqa: PLC0415
    from plumage.data.sources import list_samples  # noqa: PLC0415
    from plumage.data.split import read_split, write_split  # noqa: PLC0415
    from plumage.data.store import Cache  # noqa: PLC0415

    root, split, cache, before = folder / "pictures", folder / "split.csv", Cache(folder), peak()

    def timed(stage: str, work, *arguments):  # type: ignore[no-untyped-def]
        start, cpu = perf_counter(), process_time()
        result = work(*arguments)
        if stage == until:
            print(json.dumps((perf_counter() - start, process_time() - cpu, peak() - before)))
            sys.exit()
        return result

    def resume() -> Dataset:
        return recall(read_split(split, root, NAMES), Square(SIDE), folder / "skipped.csv", cache)

    if until == "resume":
        timed("resume", resume)
    samples = timed("list", list_samples, root)
    how = Square(SIDE), 0.2, 0, cache
    if until == ALIKE:
        timed(ALIKE, prepare, samples, *how)
    if until == GROUPS:
        groups = np.array([f"group {row // 2}" for row in range(len(samples))], object)
        timed(GROUPS, prepare, replace(samples, groups=groups), *how)
    dataset = timed("find the store and split", prepare, samples, *how, 1, False)
    timed("write the split", write_split, split, dataset.samples)

    read = reader(dataset.store, torch.device("cpu"))

    def epoch() -> None:
        pictures = Pictures(read, *dataset.pictures("train"), BATCH_SIZE)
        for _ in islice(train_batches(pictures, seed=0), epoch_length(len(pictures.rows), BATCH_SIZE)):
            pass

    timed("an epoch", epoch)


def peak() -> int:
    """Bytes. A process begins with the peak of the one that started it."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_a_process(call: str, folder: Path) -> str:
    command = [sys.executable, "-c", f"import scale; scale.{call}", str(folder)]
    return subprocess.run(command, cwd=Path(__file__).parent, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(pictures: int, folder: Path, repeat: int) -> Iterator[tuple[str, float, float, int]]:
    """Each stage's name, median seconds, median seconds of the CPU, and largest peak in bytes."""
    print(f"{pictures} pictures", file=sys.stderr)
    make_pictures(folder / "pictures", pictures)
    in_a_process("make_store(scale.Path(scale.sys.argv[1]))", folder)
    for stage in STAGES:
        call = f"go({stage!r}, scale.Path(scale.sys.argv[1]))"
        found = [json.loads(in_a_process(call, folder)) for _ in range(repeat)]
        seconds, cpu, sizes = zip(*found, strict=True)
        yield stage, median(seconds), median(cpu), max(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the pictures are made, and taken away again")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    rows: dict[str, list[tuple[int, float, float, int]]] = {stage: [] for stage in STAGES}
    for pictures in args.pictures:
        with tempfile.TemporaryDirectory(prefix="plumage-scale-", dir=args.folder) as folder:
            for stage, *numbers in measure(pictures, Path(folder), args.repeat):
                rows[stage].append((pictures, *numbers))
    import torch  # noqa: PLC0415 (now that nothing is measured any more)

    from plumage.hardware.device import Machine  # noqa: PLC0415
    from plumage.hardware.environment import environment  # noqa: PLC0415

    lines = [
        "# Seconds and memory by the number of pictures\n",
        *provenance(environment(Machine(torch.device("cpu"), "fp32", compile=False))),
        f"- n = {args.repeat}",
        "\n| Stage | Pictures | Seconds | µs per picture | Of the CPU | Peak MB | Bytes per picture | Exponent |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for stage, found in rows.items():
        n, seconds, cpu, sizes = (np.array(column, float) for column in zip(*found, strict=True))
        exponent = np.polyfit(np.log(n[-3:]), np.log(seconds[-3:]), 1)[0] if len(n) > 1 else np.nan
        for number, row in enumerate(zip(n, seconds, cpu, sizes, strict=True)):
            last = f"{exponent:.2f}" if number == len(n) - 1 else ""
            count, took, computed, size = row
            cells = f"{count:.0f} | {took:.3f} | {took / count * 1e6:.1f} | {computed / count * 1e6:.1f}"
            cells += f" | {size / 1e6:.1f} | {size / count:.0f}"
            lines.append(f"| {stage} | {cells} | {last} |")
    text = "\n".join(lines)
    publish(text, args.output)


if __name__ == "__main__":
    main()
