"""evaluate(run, …): a run's model on its own pictures, or on others."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.handlers import EpochOutputStore
from PIL import Image
from torch import Tensor, nn

from plumage.data.augment import Transform, center_crop
from plumage.data.dataset import Dataset, read_all
from plumage.data.feed import reader
from plumage.data.loader import eval_batches
from plumage.data.samples import some
from plumage.data.sources import list_samples, locate
from plumage.data.store import Cache
from plumage.engine.criterion import LabelSmoothingLoss
from plumage.engine.evaluator import create_evaluator
from plumage.engine.handlers import attach_progress
from plumage.engine.metrics import calibration_bins, logit_gap
from plumage.engine.resume import saved_iteration
from plumage.engine.train import recall_dataset
from plumage.errors import UserError
from plumage.hardware.device import Machine
from plumage.inference import calibration
from plumage.models.weights import fingerprint, trained_model
from plumage.rundir.folder import RunDir

log = logging.getLogger("plumage")

SAMPLES, MISTAKES, THUMBNAIL = 12, 24, 112


def evaluate(
    run: RunDir,
    machine: Machine,
    cache: Cache,
    checkpoint: str = "best",
    data: str | None = None,
    split: str | None = None,
    calibrate: bool = False,
) -> dict[str, Any]:
    """split, n, accuracy, top5, loss (with the recipe's label smoothing) and nll; with more also in eval-<split>.json.

    checkpoint: best, last or a file. data: another labelled folder, matched by class name, whose results go to
    eval-<folder>-<split>.json. split: train, val or all; by default val of the run's own pictures, else all.
    In the .npz of the same name: logits (n, K) float32, labels (n,), and indices (n,) into the sorted paths; for the
    report, gaps (n,), the `calibration_bins`, and what `pictures_to_show` returns.
    calibrate: fit a temperature on the run's own val pictures, into calibration.json; then its temperature and
    calibrated_nll are returned too.
    """
    if calibrate and (data is not None or split not in (None, "val")):
        raise UserError("--calibrate: is done on the run's own validation pictures; leave out --data and --split")
    recipe, classes, device = run.recipe, run.classes, machine.device
    split = split or ("val" if data is None else "all")
    model = model_of(run, checkpoint).to(device)
    weights = fingerprint(model) if calibrate else ""
    if machine.compile:
        model.compile()
    dataset = recall_dataset(recipe, run, cache) if data is None else other_dataset(data, split, run, cache)
    rows, labels = dataset.pictures(split)
    if not len(rows):
        raise UserError(f"--split {split}: {dataset.samples.root} has no such pictures; take another split")

    criterion = LabelSmoothingLoss(recipe.smoothing, len(classes))
    view = Transform(recipe.crop).to(device)
    evaluator = create_evaluator(model, criterion, view.center, machine.autocast, device, len(classes))
    logits = EpochOutputStore(lambda output: output[0].cpu())
    logits.attach(evaluator)
    attach_progress(evaluator, "evaluating", recipe.batch_size, machine.look_every)
    # In batches as in training, so that the numbers are those of the history to the last digit.
    batches = eval_batches(reader(dataset.store, device), rows, labels, recipe.batch_size)
    metrics = evaluator.run(batches, epoch_length=ceil(len(rows) / recipe.batch_size)).metrics

    result = {"split": split, "n": len(rows), **{name: metrics[name] for name in ("accuracy", "top5", "loss", "nll")}}
    stem = f"eval-{split}" if data is None else f"eval-{Path(data).resolve().name[:100]}-{split}"
    about = {"checkpoint": checkpoint, "iteration": saved_iteration(run.checkpoint(checkpoint))}
    about |= {"data": str(dataset.samples.root), "precision": machine.precision}
    about |= {name: metrics[name] for name in ("ece", "logit_gap")}
    found = torch.cat(logits.data)
    shown = pictures_to_show(found, labels, partial(center_pictures, dataset, split, recipe.crop))
    shown |= {"gaps": logit_gap(found).numpy(), "bins": calibration_bins(found, torch.from_numpy(labels)).numpy()}
    try:
        run.write_arrays(f"{stem}.npz", logits=found.numpy(), labels=labels, indices=dataset.indices(split), **shown)
        run.write_json(f"{stem}.json", {**result, **about})
    except OSError as error:
        log.warning(f"{run.path}: what was computed is not kept there: {error.strerror}")
    if calibrate:
        fitted = calibration.calibrate(run, found.numpy(), labels, checkpoint, weights)
        result |= {name: fitted[name] for name in ("temperature", "calibrated_nll")}
    return result


def model_of(run: RunDir, checkpoint: str) -> nn.Module:
    """The network of a run's checkpoint: best, last or a file. Raises UserError where it does not go with the run."""
    file, recipe = run.checkpoint(checkpoint), run.recipe
    sides = {"resize": recipe.resize, "crop": recipe.crop}
    return trained_model(file, f"--checkpoint {file}", run.classes, recipe.model, **sides)


def pictures_to_show(
    logits: Tensor, labels: np.ndarray, read: Callable[[np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """Pictures for the report, uint8, and which rows of ``logits`` (n, K) they are.

    samples (m, crop, crop, 3) and sample_rows (m,): up to SAMPLES, of different classes where there are as many.
    thumbnails (m, s, s, 3) and thumbnail_rows (m,): up to MISTAKES, most confident first, with s at most THUMBNAIL.
    """
    order = np.argsort(labels, kind="stable")
    among = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])  # the how-manieth of its class
    classes = max(int(np.sum(among == 0)), SAMPLES)
    pool = order[np.argsort(among, kind="stable")][:classes]
    samples = pool[np.linspace(0, len(pool) - 1, min(SAMPLES, len(pool))).round().astype(int)]
    confidence, predicted = (part.numpy() for part in logits.softmax(dim=1).max(dim=1))
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
    return {
        "samples": read(samples),
        "sample_rows": samples,
        "thumbnails": shrink(read(wrong), THUMBNAIL),
        "thumbnail_rows": wrong,
    }


def center_pictures(dataset: Dataset, split: str, crop: int, rows: np.ndarray) -> np.ndarray:
    """(m, crop, crop, 3) uint8: what the network sees of these of the split's pictures."""
    if not len(rows):
        return np.empty((0, crop, crop, 3), np.uint8)
    stored = dataset.store.read(dataset.pictures(split)[0][rows])
    return center_crop(torch.from_numpy(np.ascontiguousarray(stored)), crop).numpy()


def shrink(pictures: np.ndarray, side: int) -> np.ndarray:
    """(m, s, s, 3) uint8 → the same, of at most ``side``."""
    if pictures.shape[1] <= side:
        return pictures
    small = [np.asarray(Image.fromarray(picture).resize((side, side))) for picture in pictures]
    return np.array(small, np.uint8).reshape(-1, side, side, 3)


def other_dataset(data: str, split: str, run: RunDir, cache: Cache) -> Dataset:
    """The readable pictures of another labelled folder, with the run's labels of the classes of the same names.

    Split as the folder itself is; if it is not, and must be, as the run was, whose pictures it then has to hold.
    """
    recipe, classes = run.recipe, run.classes
    samples = list_samples(locate(data, cache), least_classes=1)
    if unknown := [name for name in samples.classes if name not in classes]:
        raise UserError(
            f"--data {data}: the run was not trained on {some(unknown)}; its classes are {some(classes, 10)}"
        )
    if samples.split is None and split != "all":
        return recall_dataset(replace(recipe, data=data), run, cache)
    labels = np.array([classes.index(name) for name in samples.classes])[samples.labels]
    return read_all(replace(samples, labels=labels, classes=classes), recipe.resize, cache)
