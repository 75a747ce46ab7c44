"""evaluate(run, …): a run's model on its own pictures, or on others."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from ignite.handlers import EpochOutputStore
from PIL import Image
from torch import Tensor

from plumage.data.augment import Transform, center_crop
from plumage.data.feed import reader
from plumage.data.loader import Pictures
from plumage.data.store import Cache
from plumage.engine.criterion import LabelSmoothingLoss
from plumage.engine.evaluator import create_evaluator, run_evaluator
from plumage.engine.handlers import attach_progress
from plumage.engine.learnt import tell_learnt
from plumage.engine.metrics import calibration_bins, logit_gap
from plumage.engine.prepare import model_and_iteration, other_dataset, recall_dataset
from plumage.errors import UserError
from plumage.hardware.device import Machine
from plumage.models.weights import fingerprint
from plumage.recipe import Recipe
from plumage.rundir.evaluation import MISTAKES, SAMPLES, THUMBNAIL, Evaluation
from plumage.rundir.folder import RunDir

log = logging.getLogger("plumage")


def evaluate(
    run: RunDir,
    machine: Machine,
    cache: Cache,
    checkpoint: str = "best",
    data: str | None = None,
    split: str | None = None,
) -> Evaluation:
    """Evaluate a run's model, and keep what it measured in the run, as eval-<split>.json and .npz.

    checkpoint: best, last or a file. data: another labelled folder, matched by class name, whose results go to
    eval-<folder>-<split>.json. split: train, val, test, or all of them; by default val of the run's own pictures, else
    all.
    """
    recipe, classes, device = run.recipe, run.classes, machine.device
    split = split or ("val" if data is None else "all")
    model, iteration = model_and_iteration(run, checkpoint)
    weights = fingerprint(model)
    model.to(device)
    if machine.compile:
        model.compile()
    dataset = recall_dataset(recipe, run, cache) if data is None else other_dataset(data, split, run, cache)
    if data is not None:
        tell_learnt(f"--data {data}", run, Recipe.create({**asdict(recipe), "data": data}), dataset, split)
    rows, labels = dataset.pictures(split)
    if not len(rows):
        needs = " (a data set with train/, val/ and test/ has some)" if split == "test" else ""
        raise UserError(f"--split {split}: {dataset.samples.root} has no such pictures{needs}; take another split")

    criterion = LabelSmoothingLoss(recipe.smoothing, len(classes))
    view = Transform(recipe.crop).to(device)
    evaluator = create_evaluator(model, criterion, view.center, machine, len(classes))
    outputs = EpochOutputStore(lambda output: output[0].cpu())
    outputs.attach(evaluator)
    attach_progress(evaluator, "evaluating", recipe.batch_size, machine.look_every)
    # In batches as in training, so that the numbers are those of the history to the last digit.
    pictures = Pictures(reader(dataset.store, device), rows, labels, recipe.batch_size)
    scores = run_evaluator(evaluator, pictures, model)

    def centers(chosen: np.ndarray) -> np.ndarray:
        return center_crop(torch.from_numpy(dataset.store.read(rows[chosen])), recipe.crop).numpy()

    logits = torch.cat(outputs.data)
    evaluation = Evaluation(
        split=split,
        **scores,
        checkpoint=checkpoint,
        iteration=iteration,
        weights=weights,
        data=str(dataset.samples.root),
        precision=machine.precision,
        logits=logits.numpy(),
        labels=labels,
        indices=dataset.indices(split),
        gaps=logit_gap(logits).numpy(),
        bins=calibration_bins(logits, torch.from_numpy(labels)).numpy(),
        pictures=pictures_to_show(logits, labels, centers),
    )
    try:
        evaluation.save(run, f"eval-{split}" if data is None else f"eval-{Path(data).resolve().name[:100]}-{split}")
    except OSError as error:
        log.warning(f"{run.path}: what was computed is not kept there: {error.strerror}")
    return evaluation


def pictures_to_show(
    logits: Tensor, labels: np.ndarray, read: Callable[[np.ndarray], np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Choose pictures for the report: as uint8, and which rows of ``logits`` (n, K) they are, (m,) int64.

    samples (m, crop, crop, 3): up to SAMPLES, of different classes where there are as many.
    thumbnails (m, s, s, 3): up to MISTAKES, most confident first, with s at most THUMBNAIL.
    """
    order = np.argsort(labels, kind="stable")
    rank = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])  # within its class
    classes = max(int(np.sum(rank == 0)), SAMPLES)
    pool = order[np.argsort(rank, kind="stable")][:classes]
    samples = pool[np.linspace(0, len(pool) - 1, min(SAMPLES, len(pool))).round().astype(int)]
    confidence, predicted = (values.numpy() for values in logits.softmax(dim=1).max(dim=1))
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
    shown = read(samples)
    side = min(shown.shape[1], THUMBNAIL)
    small = [np.asarray(Image.fromarray(picture).resize((side, side))) for picture in read(wrong)]
    thumbnails = np.array(small, np.uint8).reshape(-1, side, side, 3)
    return {"samples": (shown, samples), "thumbnails": (thumbnails, wrong)}
