"""How many planted near-duplicates are found, by the kind of change, and which pairs are none.

    python benchmarks/duplicates.py --clipart FOLDER -o benchmarks/results/duplicates-cpu.md

Copies of built-in birds, of every tenth, and of clip art, of all pictures, are changed in one way or in two:

    resized       to half to double the size, and another form: width over height times 0.8 to 1.25
    recompressed  as JPEG of quality 30 to 90
    cropped       by up to a twentieth at each of the four sides
    brightened    or darkened: by a gamma of 0.75 to 1.33, or times 0.75 to 1.25

each evenly at random. They lie beside the originals, and what data.duplicates finds is compared with what was planted.
Candidates are the pairs whose pixels are compared. All else that is found is printed, to be looked at.
"""

import argparse
import io
import sys
import tempfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from table import provenance, publish

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from plumage.birds.folder import draw_birds
from plumage.data.decode import Square, to_rgb
from plumage.data.duplicates import candidates, connected, near_duplicates
from plumage.data.sources import list_pictures
from plumage.data.store import Cache, Store, open_store
from plumage.hardware.cores import usable_cores
from plumage.hardware.device import Machine
from plumage.hardware.environment import environment

KINDS = ("cropped", "resized", "brightened", "recompressed")  # in the order in which they are done
CHANGES = [*((kind,) for kind in KINDS), *combinations(KINDS, 2)]


def changed(image: Image.Image, kind: str, rng: np.random.Generator) -> Image.Image:
    """Return an RGB picture as ``kind`` of KINDS has it."""
    width, height = image.size
    if kind == "cropped":
        left, top, right, bottom = np.round(rng.uniform(0, 0.05, 4) * (width, height, width, height)).astype(int)
        return image.crop((left, top, width - right, height - bottom))
    if kind == "resized":
        size, form = np.exp(rng.uniform(np.log(0.5), np.log(2))), np.exp(rng.uniform(np.log(0.8), np.log(1.25))) ** 0.5
        sides = max(1, round(width * size * form)), max(1, round(height * size / form))
        return image.resize(sides, Image.Resampling.BICUBIC)
    if kind == "brightened":
        levels = np.arange(256) / 255
        gamma = rng.random() < 0.5
        levels = levels ** np.exp(rng.uniform(*np.log([0.75, 4 / 3]))) if gamma else levels * rng.uniform(0.75, 1.25)
        return image.point(np.round(levels.clip(0, 1) * 255).astype(int).tolist() * 3)
    memory = io.BytesIO()
    image.save(memory, "JPEG", quality=int(rng.integers(30, 91)))
    return Image.open(memory).convert("RGB")


def plant(files: list[Path], folder: Path, turn: int) -> list[str]:
    """Save a changed copy of each file, and return how each was changed."""
    folder.mkdir(parents=True)
    done = []
    for number, file in enumerate(files):
        change, rng = CHANGES[(number + turn) % len(CHANGES)], np.random.default_rng([turn, number])
        with Image.open(file) as opened:
            image = to_rgb(opened).copy()
        for kind in change:
            image = changed(image, kind, rng)
        image.save(folder / f"{number:06}.png")
        done.append(" and ".join(change))
    return done


class Found(NamedTuple):
    """Of each copy, how it was changed, and whether its pair was a candidate and found; other pairs; and the cost."""

    changes: np.ndarray
    candidate: np.ndarray
    found: np.ndarray
    others: list[tuple[str, str]]
    pictures: int
    largest: int
    compared: int
    seconds: float


def search(originals: list[Path], every: int, side: int, folder: Path, turn: int) -> Found:
    """Plant a copy of each ``every``-th of the originals, and look for it."""
    changes = plant(originals[::every], folder / "planted", turn)
    planted = [Path(path) for path in list_pictures([str(folder / "planted")])]
    root = Path("/")
    paths = [str(path.resolve().relative_to(root)) for path in (*originals, *planted)]
    store: Store = open_store(root, paths, Square(side), Cache(folder / "cache"))
    assert not store.skipped
    start = perf_counter()
    pairs = near_duplicates(store.hashes, store.digests, store.read, store.workers)
    seconds = perf_counter() - start
    compared, n = candidates(store.hashes), len(originals)
    number = np.arange(len(planted))
    expected = codes(np.stack([number * every, n + number], axis=1), len(paths))
    others = [(paths[one], paths[other]) for one, other in pairs[(pairs < n).all(axis=1)].tolist()]
    sizes = np.bincount(connected(len(paths), pairs))
    hits = (np.isin(expected, codes(those, len(paths))) for those in (compared, pairs))
    return Found(np.array(changes), *hits, others, len(paths), sizes.max(), len(compared), seconds)


def codes(pairs: np.ndarray, n: int) -> np.ndarray:
    return pairs[:, 0] * n + pairs[:, 1]


def table(found: dict[str, list[Found]]) -> Iterator[str]:
    yield f"\n| Found of those planted | {' | '.join(found)} |\n| --- |{' --- |' * len(found)}"
    for change in [*(" and ".join(change) for change in CHANGES), "all", "of which candidates"]:
        cells = []
        for rounds in found.values():
            which = "candidate" if "candidates" in change else "found"
            rows = [
                getattr(each, which)[(each.changes == change) | change.startswith(("all", "of"))] for each in rounds
            ]
            hits = np.concatenate(rows)
            cells.append(f"{100 * hits.mean():.1f} % of {len(hits)}")
        yield f"| {change} | {' | '.join(cells)} |"
    for what, tell in {
        "other pairs of originals": lambda each: len(each.others),
        "pictures": lambda each: each.pictures,
        "largest group": lambda each: each.largest,
        "pairs compared": lambda each: each.compared,
        "seconds": lambda each: f"{each.seconds:.1f}",
    }.items():
        yield f"| {what} | {' | '.join(', '.join(str(tell(each)) for each in rounds) for rounds in found.values())} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clipart", type=Path, help="a folder of other pictures")
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--pictures", type=int, default=50, help="of each of 200 species of birds")
    parser.add_argument("--seed", type=int, default=0, help="of the birds")
    parser.add_argument("--rounds", type=int, default=3, help="of planting in the other pictures")
    parser.add_argument("--folder", type=Path, help="where pictures are drawn, and taken away again")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    found: dict[str, list[Found]] = {}
    with tempfile.TemporaryDirectory(prefix="plumage-duplicates-", dir=args.folder) as name:
        folder = Path(name)
        draw_birds(folder / "birds", 200, args.pictures, args.seed, workers=usable_cores())
        sets = {"birds": (folder / "birds", 10, 1)}
        if args.clipart:
            sets["other pictures"] = (args.clipart.resolve(), 1, args.rounds)
        for kind, (root, every, rounds) in sets.items():
            originals = [Path(path) for path in list_pictures([str(root)])]
            for side in args.sides:
                found[f"{kind}, {side} px"] = [
                    search(originals, every, side, folder / f"{kind}-{side}-{turn}", turn) for turn in range(rounds)
                ]
    lines = ["# Near-duplicates found\n", *provenance(environment(Machine(torch.device("cpu"), "fp32", compile=False)))]
    lines += table(found)
    for kind, rounds in found.items():
        shown = [" ~ ".join(Path(path).name for path in pair) for pair in rounds[0].others]
        lines.append(f"\nOther pairs, {kind}: {', '.join(shown) or 'none'}.")
    publish("\n".join(lines), args.output)


if __name__ == "__main__":
    main()
