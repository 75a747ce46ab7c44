"""predict --explain: each picture beside itself with the map of its label, as files in a folder."""

import io
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path, PurePath

import numpy as np
import torch
from PIL import Image

from plumage.data.decode import decode_or_reason
from plumage.data.samples import some
from plumage.data.view import view
from plumage.data.walk import EXPLAINED, walk
from plumage.errors import UserError
from plumage.files import named_in_errors, written_whole
from plumage.inference.heat import laid_over
from plumage.inference.predict import Predictor
from plumage.inference.table import rounded
from plumage.names import composed
from plumage.rundir.evaluation import view_side
from plumage.tables import read_table, row_writer

log = logging.getLogger("plumage")

COLUMNS = ("file", "path", "label", "probability")
MOST = 300
LONGEST = 200  # bytes of a stem: file systems have names of up to 255


def check_folder(folder: Path, force: bool, paths: Iterable[str]) -> None:
    """Raise UserError, before any work, where maps of ``paths`` cannot go into ``folder``, or it holds something.

    force: it may hold earlier maps, or anything but pictures, which no one could tell from these any more.
    """
    option = f"--explain {some([str(folder)])}"
    try:
        full = any(folder.iterdir())
    except FileNotFoundError:
        full = False
    except OSError as error:  # a file, or a name that is too long
        raise UserError(f"{option}: {error.strerror}; give another") from error
    above = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"{option}: {some([str(above)])} is no folder that can be written to; give another")
    if full and not force:
        raise UserError(f"{option}: is not empty; --force writes into it, or give another")
    place = Path(os.path.realpath(folder))
    inside = {above for above in {os.path.dirname(path) for path in paths} if _is_in(Path(above), place)}  # noqa: PTH120
    if inside or (full and any(pictures for _, pictures in walk(folder, "", Counter()))):
        raise UserError(f"{option}: holds pictures of its own; give another folder")


def _is_in(folder: Path, place: Path) -> bool:
    real = Path(os.path.realpath(folder))
    return place in (real, *real.parents)


def remove_earlier(folder: Path) -> None:
    """Remove the maps that an earlier call's EXPLAINED names in ``folder``, and nothing else."""
    file = folder / EXPLAINED
    if file.is_symlink() or not file.exists():
        return
    try:
        names = [name for _, (name, *_) in read_table(file, COLUMNS)]
    except UserError as error:
        log.warning(f"{error}; the maps of an earlier call stay in {some([str(folder)])}")
        return
    for name in names:
        there = os.path.join(folder, name)  # noqa: PTH118 (a name may be anything)
        if name == os.path.basename(name) and name.endswith(".jpg") and os.path.isfile(there):  # noqa: PTH119, PTH113
            Path(there).unlink()


class Explainer:
    """Draws the first ``most`` pictures, by default MOST, that it is given, a batch at a time: in flat memory.

    Beside them goes EXPLAINED, which says of which picture each is; by that, predict and train know them for no
    pictures to learn from. rejects: whether one with these (K,) probabilities gets no label. Raises OSError, naming the
    file, as on a full disk.
    """

    def __init__(
        self,
        predictor: Predictor,
        folder: Path,
        most: int | None,
        rejects: Callable[[np.ndarray], bool] = lambda probabilities: False,
    ):
        self.predictor, self.folder, self.most, self.rejects = predictor, folder, most or MOST, rejects
        self._given, self._waiting, self._names = 0, list[tuple[str, np.ndarray]](), Names()

    @contextmanager
    def opened(self) -> Iterator["Explainer"]:
        """Make the folder, without earlier maps, and draw what is left when the block has ended well."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # which root may not see before, as in /proc
            raise UserError(f"--explain {some([str(self.folder)])}: {error.strerror}; give another folder") from error
        remove_earlier(self.folder)
        (self.folder / EXPLAINED).unlink(missing_ok=True)  # nobody's link is followed
        self._note([COLUMNS])
        yield self
        self._draw_waiting()
        if self._given > self.most:
            which = f"the first {self.most:,} of {self._given:,} pictures"
            log.info(f"{some([str(self.folder)])}: {which}; --explain-most N asks for more")

    def __call__(self, path: str, probabilities: np.ndarray) -> None:
        """Take a picture that could be read, and its (K,) probabilities."""
        self._given += 1
        if self._given <= self.most:
            self._waiting.append((path, probabilities))
        if len(self._waiting) == self.predictor.batch_size:
            self._draw_waiting()

    def _draw_waiting(self) -> None:
        predictor, waiting, self._waiting = self.predictor, self._waiting, []
        with ThreadPoolExecutor(predictor.workers) as pool:
            read = list(pool.map(self._read, (path for path, _ in waiting)))
            stored, views = ([pair[part] for pair in read if pair] for part in (0, 1))
            if not stored:
                return
            named = [one for one, pair in zip(waiting, read, strict=True) if pair]
            labels = [int(probabilities.argmax()) for _, probabilities in named]
            maps = predictor.maps(torch.from_numpy(np.stack(stored)), torch.tensor(labels))
            files = [self._names.of(path) for path, _ in named]
            list(pool.map(self._draw, files, views, maps))
        rows = zip(files, named, labels, strict=True)
        names = ["" if self.rejects(sure) else predictor.classes[k] for k, (_, sure) in zip(labels, named, strict=True)]
        told = zip(rows, names, strict=True)
        self._note((file, path, name, rounded(sure[k])) for (file, (path, sure), k), name in told)

    def _read(self, path: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return a picture as the network gets it, and as people do; None where it has gone since it was predicted."""
        square, crop = self.predictor.square, self.predictor.view.crop
        stored, seen = decode_or_reason(Path(path), square), view(Path(path), square, crop, view_side(crop))
        return None if isinstance(stored, str) or isinstance(seen, str) else (stored.pixels, seen)

    def _draw(self, name: str, pixels: np.ndarray, evidence: np.ndarray) -> None:
        content = io.BytesIO()
        Image.fromarray(np.concatenate([pixels, laid_over(pixels, evidence)], axis=1)).save(content, "JPEG", quality=90)
        with written_whole(self.folder / name) as draft:
            draft.write_bytes(content.getvalue())  # Pillow would not say that the disk is full

    def _note(self, rows: Iterable[Iterable[object]]) -> None:
        file = self.folder / EXPLAINED
        with named_in_errors(file), file.open("a", newline="", encoding="utf-8", errors="surrogateescape") as out:
            write = row_writer(out)
            for row in rows:
                write(row)


class Names:
    """Names of JPEG files after pictures' stems, never two the same, whichever letters a disk takes for the same."""

    def __init__(self) -> None:
        self._taken, self._numbers = set[str](), defaultdict[str, Iterator[int]](lambda: count(2))

    def of(self, path: str) -> str:
        stem = PurePath(path).stem.lstrip(".") or "picture"
        while len(os.fsencode(stem)) > LONGEST:
            stem = stem[:-1]
        name, key = stem, self._key(stem)
        while self._key(name) in self._taken:
            name = f"{stem}-{next(self._numbers[key])}"
        self._taken.add(self._key(name))
        return f"{name}.jpg"

    @staticmethod
    def _key(name: str) -> str:
        return composed(composed(name).casefold())
