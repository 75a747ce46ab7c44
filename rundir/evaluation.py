"""What `eval` keeps in a run, written and read in one place: eval-<split>.json, and eval-<split>.npz beside it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np

from plumage.errors import UserError
from plumage.files import read_arrays, read_object, write_json, written_whole
from plumage.rundir.folder import RunDir

SCORES = ("accuracy", "top5", "loss", "nll")
MORE_SCORES = ("ece", "logit_gap")
TEXTS = ("checkpoint", "weights", "data", "precision")
ARRAYS = ("logits", "labels", "indices", "gaps", "bins")
PICTURES = {"samples": "sample_rows", "thumbnails": "thumbnail_rows"}
SAMPLES, MISTAKES, THUMBNAIL = 12, 24, 112  # how many there are of each, and a thumbnail's side, at most


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation measured, on which pictures, and what a report shows of them.

    accuracy to logit_gap: over all pictures, as fractions and nats; loss with the recipe's label smoothing.
    checkpoint: best, last or a file; iteration: after which it was saved, None where that is not known; weights: its
    fingerprint. data: the folder of the pictures. precision: what was computed in.
    logits: (n, K) float32. labels: (n,) int64. indices: (n,) int64, rows of split.csv, or of the sorted pictures of
    another folder. gaps: (n,) float32, each picture's logit gap.
    bins: (3, bins) float32, predictions by confidence: how many, its sum, and how many are right.
    pictures: "samples" and "thumbnails" → (m, s, s, 3) uint8 and (m,) int64, the rows of logits that they show.
    """

    split: str
    accuracy: float
    top5: float
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
    pictures: dict[str, tuple[np.ndarray, np.ndarray]]

    @property
    def numbers(self) -> dict[str, Any]:
        """What the command prints."""
        return {"split": self.split, "n": len(self.labels), **{name: getattr(self, name) for name in SCORES}}

    @cached_property
    def predictions(self) -> np.ndarray:
        return self.logits.argmax(axis=1)

    @cached_property
    def right(self) -> np.ndarray:
        """(n,) bool."""
        return self.predictions == self.labels

    def save(self, run: RunDir, stem: str) -> None:
        """Write ``stem``.npz and ``stem``.json into the run's folder, with one ``id``: another's may come between."""
        identifier = uuid4().hex
        arrays = {name: getattr(self, name) for name in ARRAYS} | {"id": np.array(identifier.encode())}
        for name, rows in PICTURES.items():
            arrays[name], arrays[rows] = self.pictures[name]
        with written_whole(run.path / f"{stem}.npz") as draft, draft.open("wb") as handle:
            np.savez(handle, **arrays)
        others = {name: getattr(self, name) for name in (*MORE_SCORES, *TEXTS, "iteration")}
        write_json(run.path / f"{stem}.json", {**self.numbers, **others, "id": identifier})


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
        shown = {name: (arrays[name], arrays[rows]) for name, rows in PICTURES.items() if name in arrays}
        if not _fits(arrays, shown, classes, pictures):
            raise ValueError("its arrays do not fit this run")
        fields: dict[str, Any] = {name: float(about[name]) for name in (*SCORES, *MORE_SCORES)}
        fields |= {name: str(about.get(name, "")) for name in TEXTS}  # of which older runs lack the weights
        fields |= {name: arrays[name] for name in ARRAYS}
        return Evaluation(split="val", iteration=about["iteration"], pictures=shown, **fields)
    except Exception as error:  # a damaged archive raises nearly anything
        again = f"python main.py eval --run {run.path} writes it anew"
        raise UserError(f"{archive} is damaged or old ({' '.join(str(error).split())}): {again}") from error


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
    most |= {"samples": SAMPLES * 3 * run.recipe.crop**2, "sample_rows": 8 * SAMPLES}
    return most | {"thumbnails": MISTAKES * 3 * THUMBNAIL**2, "thumbnail_rows": 8 * MISTAKES}


def _fits(
    arrays: dict[str, np.ndarray], shown: dict[str, tuple[np.ndarray, np.ndarray]], classes: int, pictures: int
) -> bool:
    """Return whether shapes, types and numbers are those that ``Evaluation`` promises."""
    logits, labels, indices, gaps, bins = (arrays[name] for name in ARRAYS)
    n = len(labels)
    places = ((labels, classes), (indices, pictures), *((rows, n) for _, rows in shown.values()))
    return bool(
        n > 0
        and classes > 1
        and (logits.shape, indices.shape, gaps.shape, bins.shape[:-1]) == ((n, classes), (n,), (n,), (3,))
        and bins[0].sum() == n
        and all(numbers.dtype.kind == "f" and np.isfinite(numbers).all() for numbers in (logits, gaps, bins))
        and all(rows.dtype.kind == "i" and ((rows >= 0) & (rows < end)).all() for rows, end in places)
        and all(
            (images.dtype, images.ndim, images.shape[:1]) == ("u1", 4, rows.shape) for images, rows in shown.values()
        )
    )
