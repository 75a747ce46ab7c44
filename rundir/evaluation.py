"""What `eval` keeps in a run, written and read in one place: eval-<split>.json, .npz, and two tables for people."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np

from plumage.errors import UserError
from plumage.files import read_arrays, read_object, write_json, written_whole
from plumage.rundir.folder import RunDir
from plumage.rundir.scores import ClassScores, class_scores, count_pairs, wilson
from plumage.tables import write_table

SCORES = ("accuracy", "top5", "balanced_accuracy", "macro_f1", "loss", "nll")
MORE_SCORES = ("ece", "logit_gap")
TEXTS = ("checkpoint", "weights", "data", "precision")
ARRAYS = ("logits", "labels", "indices", "gaps", "bins")
CLASS_COLUMNS = ("class", "pictures", "predicted", "precision", "recall", "recall_low", "recall_high", "f1")
SAMPLES, MISTAKES, RIGHT = 12, 24, 8
EQUAL = 1e-6  # what a sum of single floats may be off by
PICTURES = {"samples": SAMPLES, "mistakes": MISTAKES, "right": RIGHT}  # how many there are of each, at most
VIEW, MOST_VIEW = 224, 448  # pixels: a picture worth looking at, and one that is no larger than that


class Shown(NamedTuple):
    """Pictures of an evaluation: pixels (m, s, s, 3) uint8, and which rows of its logits they show, (m,) int64.

    maps: (m, h, w) float32, where the evidence for the predicted class is; each covers its picture; (m, 0, 0): none.
    """

    pixels: np.ndarray
    rows: np.ndarray
    maps: np.ndarray


def view_side(crop: int) -> int:
    """Return the side at which pictures are kept to be looked at, of which the network saw ``crop`` pixels."""
    return min(max(crop, VIEW), MOST_VIEW)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation measured, on which pictures, and what a report shows of them.

    accuracy to logit_gap: over all pictures, as fractions and nats; loss with the recipe's label smoothing.
    checkpoint: best, last or a file; iteration: after which it was saved, None where that is not known; weights: its
    fingerprint. data: the folder of the pictures. precision: what was computed in.
    logits: (n, K) float32. labels: (n,) int64. indices: (n,) int64, rows of split.csv, or of the sorted pictures of
    another folder. gaps: (n,) float32, each picture's logit gap.
    bins: (3, bins) float32, predictions by confidence: how many, its sum, and how many are right.
    pictures: "samples" as the network saw them; "mistakes", the most confident first; "right", of the worst classes.
    """

    split: str
    accuracy: float
    top5: float
    balanced_accuracy: float
    macro_f1: float
    loss: float
    nll: float
    ece: float
    logit_gap: float
    checkpoint: str
    iteration: int | None
    weights: str
    data: str
    precision: str
    logits: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    gaps: np.ndarray
    bins: np.ndarray
    pictures: dict[str, Shown]

    @property
    def numbers(self) -> dict[str, Any]:
        """What the command prints."""
        others = {"never_right": len(self.class_scores.never_right), "always_guessing": self.majority[1]}
        return {"split": self.split, "n": len(self.labels)} | {name: getattr(self, name) for name in SCORES} | others

    @cached_property
    def predictions(self) -> np.ndarray:
        return self.logits.argmax(axis=1)

    @cached_property
    def right(self) -> np.ndarray:
        """(n,) bool."""
        return self.predictions == self.labels

    @cached_property
    def class_scores(self) -> ClassScores:
        return class_scores(self.labels, self.predictions, self.logits.shape[1])

    @property
    def majority(self) -> tuple[int, float]:
        """The class of the most pictures, the first of several, and the accuracy of always guessing it."""
        pictures = self.class_scores.pictures
        most = int(pictures.argmax())
        return most, float(pictures[most] / len(self.labels))

    def save(self, run: RunDir, stem: str) -> None:
        """Write what was measured into the run's folder, as files whose names begin with ``stem``.

        .npz and .json have one ``id``: another's may come between. -classes.csv: a row for each class.
        -confusion.csv: one for each pair of true and predicted class that occurs, since of 10,000 classes few do.
        """
        identifier = uuid4().hex
        arrays = {name: getattr(self, name) for name in ARRAYS} | {"id": np.array(identifier.encode())}
        for name, shown in self.pictures.items():
            arrays |= dict(zip(_names(name), shown, strict=True))
        with written_whole(run.path / f"{stem}.npz") as draft, draft.open("wb") as handle:
            np.savez(handle, **arrays)
        others = {name: getattr(self, name) for name in (*MORE_SCORES, *TEXTS, "iteration")}
        write_json(run.path / f"{stem}.json", {**self.numbers, **others, "id": identifier})
        names, pairs = run.classes, count_pairs(self.labels, self.predictions, self.logits.shape[1])
        write_table(run.path / f"{stem}-classes.csv", CLASS_COLUMNS, class_rows(names, self.class_scores))
        confusions = ((names[true], names[predicted], n) for true, predicted, n in zip(*pairs, strict=True))
        write_table(run.path / f"{stem}-confusion.csv", ("label", "predicted", "pictures"), confusions)


def class_rows(names: list[str], scores: ClassScores) -> Iterator[list[Any]]:
    """Yield a row of CLASS_COLUMNS for each class, in label order; recall_low and recall_high are its 95 % interval.

    Cells are empty of what a class has not: recall without pictures, precision without predictions, F1 without either.
    """
    interval = wilson(scores.right, scores.pictures)
    columns = (scores.pictures, scores.predicted, scores.precision, scores.recall, *interval, scores.f1)
    for name, *numbers in zip(names, *(column.tolist() for column in columns), strict=True):
        pictures, predicted, precision, *recall, f1 = numbers
        recall, precision = recall if pictures else [""] * 3, precision if predicted else ""
        yield [name, pictures, predicted, precision, *recall, f1 if pictures or predicted else ""]


def read_evaluation(run: RunDir, classes: int, pictures: int) -> Evaluation | None:
    """Return what `eval` kept of the validation pictures, or None where it kept nothing.

    classes, pictures: how many the run has. Raises UserError where the files are damaged, or do not fit the run.
    """
    file, archive = run.path / "eval-val.json", run.path / "eval-val.npz"
    if not (file.exists() and archive.exists()):
        return None
    about, most = read_object(file), _most_bytes(run, classes, pictures)
    try:
        arrays = read_arrays(archive, most)
        if about.get("id") != (arrays["id"].tobytes().decode() if "id" in arrays else None):  # as older ones are
            raise ValueError(f"it is of another evaluation than {file.name}")
        kept = {name: [arrays[part] for part in _names(name) if part in arrays] for name in PICTURES}
        shown = {name: Shown(*parts) for name, parts in kept.items() if len(parts) == len(Shown._fields)}
        if not _fits(arrays, shown, classes, pictures):
            raise ValueError("its arrays do not fit this run")
        fields = _scores(arrays, about, classes)
        fields |= {name: str(about.get(name, "")) for name in TEXTS}  # of which older runs lack the weights
        fields |= {name: arrays[name] for name in ARRAYS}
        return Evaluation(split="val", iteration=_iteration(about), pictures=shown, **fields)
    except Exception as error:  # a damaged archive raises nearly anything
        again = f"python main.py eval --run {run.path} writes it anew"
        raise UserError(f"{archive} is damaged or old ({' '.join(str(error).split())}): {again}") from error


def _scores(arrays: dict[str, np.ndarray], about: dict[str, Any], classes: int) -> dict[str, Any]:
    """Return the numbers of an ``Evaluation``: by the arrays where these tell them, else checked. Raises ValueError."""
    labels = arrays["labels"]
    by_class = class_scores(labels, arrays["logits"].argmax(axis=1), classes)
    told = {"balanced_accuracy": by_class.balanced_accuracy, "macro_f1": by_class.macro_f1}
    told["accuracy"] = float(by_class.right.sum() / len(labels))
    for name in {*SCORES, *MORE_SCORES} - {*told}:
        value, most = about[name], 1 + EQUAL if name in ("top5", "ece") else sys.float_info.max
        if type(value) not in (int, float) or not -EQUAL <= value <= most:
            raise ValueError(f"its {name} is none")
        told[name] = float(value)
    return told


def _iteration(about: dict[str, Any]) -> int | None:
    """Return after which iteration the checkpoint was saved. Raises ValueError for what is none."""
    iteration = about["iteration"]
    if iteration is not None and (type(iteration) is not int or iteration < 0):
        raise ValueError("its iteration is none")
    return iteration


class Scores(NamedTuple):
    """The numbers to publish of an evaluation: its accuracy, a fraction, on ``n`` pictures, and which checkpoint's."""

    accuracy: float
    n: int
    checkpoint: str
    iteration: int | None


def read_scores(run: RunDir, split: str) -> Scores | None:
    """Return what `eval` measured on a split, None before. Raises UserError where the file is damaged."""
    file = run.path / f"eval-{split}.json"
    if not file.exists():
        return None
    about = read_object(file)
    accuracy, n = about.get("accuracy"), about.get("n")
    if not isinstance(accuracy, int | float) or not 0 <= accuracy <= 1 or not isinstance(n, int) or n < 1:
        raise UserError(f"{file} is damaged: python main.py eval --run {run.path} --split {split} writes it anew")
    return Scores(accuracy, n, str(about.get("checkpoint")), about.get("iteration"))


def _most_bytes(run: RunDir, classes: int, pictures: int) -> dict[str, int]:
    """Return how many bytes each array may have, of numbers of up to 8 bytes."""
    most = {"logits": 8 * pictures * classes, "bins": 8 * 3 * 1000, "id": 100}
    most |= dict.fromkeys(("labels", "indices", "gaps"), 8 * pictures)
    pixels, cells = 3 * MOST_VIEW**2, 4 * VIEW**2  # a map is coarser than a picture
    for name, count in PICTURES.items():
        most |= dict(zip(_names(name), (count * pixels, 8 * count, count * cells), strict=True))
    return most


def _names(name: str) -> tuple[str, str, str]:
    """Return what the arrays of a ``Shown`` are called in the archive."""
    return f"{name}_pixels", f"{name}_rows", f"{name}_maps"


def _fits(arrays: dict[str, np.ndarray], shown: dict[str, Shown], classes: int, pictures: int) -> bool:
    """Return whether shapes, types and numbers are those that ``Evaluation`` promises."""
    logits, labels, indices, gaps, bins = (arrays[name] for name in ARRAYS)
    n = len(labels)
    places = ((labels, classes), (indices, pictures), *((each.rows, n) for each in shown.values()))
    return bool(
        n > 0
        and classes > 1
        and (logits.shape, indices.shape, gaps.shape, bins.shape[:-1]) == ((n, classes), (n,), (n,), (3,))
        and bins[0].sum() == n
        and all(numbers.dtype.kind == "f" and np.isfinite(numbers).all() for numbers in (logits, gaps, bins))
        and all(rows.dtype.kind == "i" and ((rows >= 0) & (rows < end)).all() for rows, end in places)
        and all(_is_sound(each, PICTURES[name]) for name, each in shown.items())
    )


def _is_sound(shown: Shown, most: int) -> bool:
    """Return whether these are at most so many square pictures, each with a map of finite numbers, or all without."""
    pixels, rows, maps = shown
    side, cells, count = pixels.shape[1:2], maps.shape[1:], len(rows)
    return bool(
        (rows.ndim, pixels.dtype, pixels.shape) == (1, "u1", (count, *side, *side, 3))
        and (maps.dtype, maps.shape) == ("f4", (count, *cells))
        and count <= most
        and side > (0,)
        and len(cells) == 2
        and np.isfinite(maps).all()
        and (all(cells) or not any(cells))
    )
