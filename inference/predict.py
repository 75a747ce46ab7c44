"""A run's model on pictures that have no labels: files in a stream, or whatever Python hands over."""

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from plumage.data.ahead import map_ahead
from plumage.data.augment import Transform
from plumage.data.decode import Decoded, Square, decode_or_reason, of_pillow
from plumage.data.depth import count_beyond, tell_beyond
from plumage.data.samples import some
from plumage.data.sources import list_pictures
from plumage.engine.evaluator import forward, forward_maps
from plumage.engine.prepare import model_of, square_of
from plumage.errors import UserError, first_line
from plumage.files import expanded, text_output
from plumage.hardware.cores import usable_cores
from plumage.hardware.device import Machine
from plumage.inference.calibration import temperature_for
from plumage.inference.rejection import Threshold, threshold_for
from plumage.inference.table import Table
from plumage.models.weights import fingerprint
from plumage.rundir.folder import RunDir
from plumage.tables import text_of

log = logging.getLogger("plumage")

Picture: TypeAlias = str | Path | Image.Image
# Two threads would otherwise read one file at once, where an image is in the list twice.
reading_an_image = threading.Lock()


class Prediction(NamedTuple):
    """The most probable class, its probability, and the probabilities of all classes by name."""

    label: str
    probability: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Predictor:
    """Pictures → probabilities, prepared and computed as evaluation does: the same size, crop, batches and precision.

    temperature: divides the logits. tta: average a picture's probabilities with its mirror image's. workers: threads
    that decode.
    """

    model: nn.Module
    classes: list[str]
    square: Square
    view: Transform
    batch_size: int
    machine: Machine
    temperature: float
    tta: bool
    workers: int

    def __call__(self, pictures: Iterable[Picture]) -> list[Prediction]:
        """Return each picture's prediction, in their order. Raises ValueError naming the first that cannot be read."""
        if isinstance(pictures, Picture):
            raise TypeError("needs a list of pictures, even of one: predictor([picture])")
        pictures = [expanded(str(each)) if isinstance(each, str | Path) else each for each in pictures]
        predictions = []
        for picture, row in zip(pictures, self.stream(pictures), strict=True):
            if isinstance(row, str):
                raise ValueError(f"{getattr(picture, 'filename', '') or picture}: {row}")
            label = int(row.argmax())
            by_name = dict(zip(self.classes, row.tolist(), strict=True))
            predictions.append(Prediction(self.classes[label], float(row[label]), by_name))
        return predictions

    def stream(
        self, pictures: Iterable[Picture], compute: Callable[[Tensor], np.ndarray] | None = None
    ) -> Iterator[np.ndarray | str]:
        """Yield each picture's (K,) float64 probabilities, or why it cannot be read, in their order and flat memory.

        compute: what to do with a batch instead of ``probabilities``.
        """
        compute = compute or self.probabilities
        # Not as a context: a stream that is left early must not wait in the garbage collector, see data/loader.py.
        pool = ThreadPoolExecutor(self.workers)
        try:
            decode = partial(read_picture, square=self.square)
            decoded = map_ahead(pool, decode, pictures, self.batch_size + 2 * self.workers)
            beyond, levels = 0, self.square.levels
            for group in in_batches(decoded, self.batch_size):
                readable = [each for each in group if isinstance(each, Decoded)]
                beyond += count_beyond([each.extremes for each in readable], levels)
                stored = [each.pixels for each in readable]
                rows = iter(compute(torch.from_numpy(np.stack(stored))) if stored else ())
                yield from (each if isinstance(each, str) else next(rows) for each in group)
            tell_beyond("", beyond, levels)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    @torch.inference_mode()
    def probabilities(self, stored: Tensor) -> np.ndarray:
        """Return (b, K) float64, in which different logits stay different, of (b, side, side, 3) uint8."""
        views = [self.view.center, lambda stored: self.view.center(stored).flip(3)][: 1 + self.tta]
        run = partial(forward, self.model, machine=self.machine, stored=stored)
        each = [(run(transform=view).cpu().double() / self.temperature).softmax(dim=1) for view in views]
        return torch.stack(each).mean(dim=0).numpy()

    def maps(self, stored: Tensor, labels: Tensor) -> np.ndarray:
        """Return (b, h, w) float32, where the evidence for these labels (b,) is in pictures as above.

        With tta, the mean with the mirror image's, turned back.
        """
        run = partial(forward_maps, self.model, machine=self.machine, labels=labels)
        maps = run(transform=self.view.center, stored=stored).cpu()
        if self.tta:
            mirrored = run(transform=lambda stored: self.view.center(stored).flip(3), stored=stored).cpu()
            maps = (maps + mirrored.flip(2)) / 2
        return maps.numpy()


def load_predictor(
    run: RunDir,
    machine: Machine,
    checkpoint: str,
    calibrated: bool = True,
    tta: bool = False,
    workers: int | None = None,
) -> Predictor:
    """Load the model of a run's checkpoint: best, last or a file.

    calibrated: divide by the temperature that was fitted to this checkpoint, if any. workers: by default, one per core.
    """
    recipe, classes = run.recipe, run.classes
    if tta and not recipe.flip:
        raise UserError(
            f"--tta: {run.path} was trained with --no-flip: a mirror image may show another class; leave it out"
        )
    model = model_of(run, checkpoint)
    temperature = temperature_for(run, fingerprint(model)) if calibrated else 1.0
    model = model.to(machine.device).eval()
    if machine.compile:
        model.compile()
    view = Transform(recipe.crop).to(machine.device)
    threads = workers or usable_cores()
    return Predictor(
        model, classes, square_of(recipe, run.levels), view, recipe.batch_size, machine, temperature, tta, threads
    )


def threshold_of(run: RunDir, predictor: Predictor, error: float) -> Threshold:
    """Return the threshold for ``predict --reject``. Raises UserError as ``threshold_for`` does."""
    if predictor.tta:
        log.warning("--reject: its thresholds were fitted without --tta, whose errors may differ")
    return threshold_for(run, fingerprint(predictor.model), error)


def list_inputs(inputs: Iterable[str]) -> list[str]:
    """Return the pictures that the command line names. ``-`` stands for standard input, a file or folder per line."""
    named: list[str] = []
    for name in inputs:
        if name == "-":
            try:
                lines = text_of(sys.stdin.buffer.read()).split("\n")
            except ValueError as error:
                raise UserError(f"-: standard input is no text ({error}); give a file or folder a line") from error
            named += [line.rstrip("\r") for line in lines if line.strip()]
        else:
            named.append(name)
    if not named:
        raise UserError("-: standard input names no pictures; give a file or folder a line")
    return list_pictures(named)


class Streams(Protocol):
    """What predicts: a ``Predictor``, or several as one."""

    def stream(self, pictures: list[str], /) -> Iterator[np.ndarray | str]: ...


def predict(
    predictor: Streams,
    paths: list[str],
    table: Table,
    output: Path | None,
    skip_unreadable: bool,
    explain: AbstractContextManager[Callable[[str, np.ndarray], None] | None] = nullcontext(),  # noqa: B008
) -> None:
    """Write a row for each of ``paths`` to ``output``, or to standard output.

    A picture that the table's threshold rejects has no label, which is no error. A file that cannot be read is named,
    and its row has no label; when all is written, a UserError is raised. With skip_unreadable, there is no such row and
    no error. explain: gets each readable picture and its probabilities.
    """
    unreadable = rejected = 0
    hidden = True if output is None and sys.stdout.isatty() else None  # None: where standard error is no terminal
    with (
        text_output(output) as out,
        explain as explainer,
        tqdm(desc="predicting", total=len(paths), unit="img", disable=hidden) as bar,
    ):
        write = table.writer(out)
        for path, probabilities in zip(paths, predictor.stream(paths), strict=True):
            bar.update()
            if not isinstance(probabilities, str):
                rejected += table.rejects(probabilities)
                write(path, probabilities)
                if explainer:
                    explainer(path, probabilities)
                continue
            unreadable += 1
            log.warning(f"{some([path])}: {probabilities}")
            if not skip_unreadable:
                write(path, None)
    if table.threshold:
        usual = f"of the validation pictures, {1 - table.threshold.coverage:.1%} would be"
        log.info(f"--reject: {rejected} of {len(paths) - unreadable} pictures are left without a label; {usual}")
    if unreadable and not skip_unreadable:
        count = f"{unreadable} of {len(paths)} pictures"
        raise UserError(f"{count} cannot be read: their rows have no label; --skip-unreadable leaves them out")


def in_batches(decoded: Iterable[Decoded | str], size: int) -> Iterator[list[Decoded | str]]:
    """Group ``decoded`` by ``size`` pictures, as evaluation does; what cannot be read does not count."""
    group: list[Decoded | str] = []
    pictures = 0
    for item in decoded:
        group.append(item)
        pictures += not isinstance(item, str)
        if pictures == size:
            yield group
            group, pictures = [], 0
    if group:
        yield group


def read_picture(picture: Picture, square: Square) -> Decoded | str:
    """Return what ``decode`` makes of a picture, or why it cannot. A Pillow image is not changed."""
    if not isinstance(picture, Image.Image):
        return decode_or_reason(Path(picture), square)
    try:
        with reading_an_image:
            return of_pillow(picture, square)
    except Exception as error:  # as in data/decode.py
        return first_line(error)
