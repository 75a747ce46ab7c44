"""What passes between `python main.py train` on the built-in birds and the end of its first step, and what it is for.

    python benchmarks/startup.py -o benchmarks/results/startup-cpu.md

The command runs in a process of its own, with a clock read where one part ends and the next begins: with an empty
cache, where the birds are drawn and decoded, and with a filled one, as every later run has it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any

from table import provenance, publish

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PARTS = {
    "imports": "Python, torch, torchvision, Ignite",
    "draw_birds": "drawing the birds",
    "list_labelled": "listing",
    "open_store": "decoding into the store, or finding it",
    "build": "the network, on its device, and the optimizer",
    "first step": "the split, the run's first files, the first batch and step",
}


def run_until_first_step(begun: float, arguments: list[str]) -> None:
    """In the process that is measured: prints {part: seconds since ``begun``} at its end, and leaves."""
    from ignite.engine import Events  # noqa: PLC0415

    import plumage.data.dataset  # noqa: PLC0415
    import plumage.data.sources  # noqa: PLC0415
    import plumage.engine.prepare  # noqa: PLC0415
    import plumage.engine.train  # noqa: PLC0415
    from plumage import main  # noqa: PLC0415

    ends = {"imports": time.time() - begun}

    def clocked(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            ends[function.__name__] = time.time() - begun
            return result

        return wrapped

    plumage.data.sources.draw_birds = clocked(plumage.data.sources.draw_birds)
    plumage.engine.prepare.list_labelled = clocked(plumage.engine.prepare.list_labelled)
    plumage.data.dataset.open_store = clocked(plumage.data.dataset.open_store)
    build = clocked(plumage.engine.train.build)

    def build_and_watch(*args: Any, **kwargs: Any) -> Any:
        state, evaluator = build(*args, **kwargs)

        @state.trainer.on(Events.ITERATION_COMPLETED(once=1))
        def leave() -> None:
            float(state.trainer.state.output["loss"])  # a GPU is done, too
            ends["first step"] = time.time() - begun
            print(json.dumps(ends), flush=True)
            os._exit(0)

        return state, evaluator

    plumage.engine.train.build = build_and_watch
    sys.argv = ["main.py", *arguments]
    main.main()


def measure(cache: Path, run: Path, device: str) -> dict[str, float]:
    """Seconds of each part of one start."""
    arguments = ["train", "--cache", str(cache), "--run", str(run), "--device", device]
    command = [sys.executable, __file__, "--begun", repr(time.time()), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    ends = json.loads(done.stdout.splitlines()[-1])
    before, parts = 0.0, dict[str, float]()
    for part in PARTS:
        parts[part] = ends.get(part, before) - before
        before = ends.get(part, before)
    return parts


def report(rounds: int, device: str) -> Iterator[str]:
    from plumage.hardware.device import Machine, choose_device, choose_precision  # noqa: PLC0415
    from plumage.hardware.environment import environment  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starts: dict[str, list[dict[str, float]]] = {"empty cache": [], "filled cache": []}
        for number in range(rounds):
            cache = folder / f"cache-{number}"
            for kind, found in starts.items():
                found.append(measure(cache, folder / f"{kind} {number}", device))
    chosen = choose_device(device)
    now = environment(Machine(chosen, choose_precision("auto", chosen), compile=False))
    yield "# From the command to its first step\n"
    yield from provenance(now)
    yield f"- `python main.py train`: 6,000 pictures of 500 by 375 pixels to 64 px, ResNet-50; n = {rounds}"
    yield f"\n| Part | {' | '.join(f'Seconds, {kind}: median (range)' for kind in starts)} |\n| --- | --- | --- |"

    def spread(seconds: list[float]) -> str:
        return f"{median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"

    for part, meaning in PARTS.items():
        yield f"| {meaning} | {' | '.join(spread([one[part] for one in found]) for found in starts.values())} |"
    yield f"| all | {' | '.join(spread([sum(one.values()) for one in found]) for found in starts.values())} |"


def main() -> None:
    if sys.argv[1:2] == ["--begun"]:
        run_until_first_step(float(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    text = "\n".join(report(args.rounds, args.device))
    publish(text, args.output)


if __name__ == "__main__":
    main()
