"""What the benchmark gives to the script of each peer, and what it wants back. No user writes any of this."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

BEGINS, EVALUATED = "the command begins", "the model is trained and evaluated"


class Task(NamedTuple):
    """One training.

    data: a folder with ``train`` and ``val``, each with a folder for each class. weights: a file that ``torch.save``
    wrote, the state dict of torchvision's ResNet-50 without its last layer; None from scratch. side: of the square that
    the network sees, in pixels. folder: an empty one, for whatever is written.
    """

    data: Path
    weights: Path | None
    epochs: int
    seed: int
    side: int
    folder: Path

    @property
    def resize(self) -> int:
        """To what pictures are resized before their centre is cut out: 256 at 224, as all of them have it."""
        return round(self.side * 256 / 224)

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions.json"

    @property
    def arguments(self) -> list[str]:
        given = {name: value for name, value in self._asdict().items() if value is not None}
        return [f"--{name}={value}" for name, value in given.items()]

    def begins(self) -> None:
        """Say that what no user of this peer has to prepare is done: here the time begins, not with the script."""
        print(f"\n{BEGINS}", flush=True)

    def evaluated(self) -> None:
        """Say that the user now has what was asked for: here the time ends."""
        print(f"\n{EVALUATED}", flush=True)

    def predicted(self, pictures: Sequence[str | Path], classes: Sequence[str]) -> None:
        """Hand in what the peer takes each picture in ``val`` for."""
        names = [Path(picture).resolve().relative_to((self.data / "val").resolve()).as_posix() for picture in pictures]
        self.predictions.write_text(json.dumps(dict(zip(names, classes, strict=True))), encoding="utf-8")


def read_task() -> Task:
    parser = argparse.ArgumentParser()
    for name in ("data", "weights", "folder"):
        parser.add_argument(f"--{name}", type=Path)
    for name in ("epochs", "seed", "side"):
        parser.add_argument(f"--{name}", type=int)
    return Task(**vars(parser.parse_args()))
