"""evaluate(run, …): a run's model on its own pictures, or on others."""

import logging
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from ignite.handlers import EpochOutputStore

from plumage.data.augment import Transform
from plumage.data.feed import reader
from plumage.data.loader import Pictures
from plumage.data.samples import some
from plumage.data.store import Cache
from plumage.engine.criterion import LabelSmoothingLoss
from plumage.engine.evaluator import create_evaluator, forward_maps, run_evaluator
from plumage.engine.handlers import attach_progress
from plumage.engine.learnt import tell_learnt
from plumage.engine.metrics import calibration_bins, logit_gap
from plumage.engine.prepare import dataset_of, model_and_iteration
from plumage.engine.shown import pictures_to_show
from plumage.hardware.device import Machine
from plumage.models.weights import fingerprint
from plumage.recipe import Recipe
from plumage.rundir.evaluation import SCORES, Evaluation
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
    """Evaluate a run's model, and keep what it measured in the run, as eval-<split>.json, .npz and two tables.

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
    dataset = dataset_of(run, split, data, cache)
    if data is not None:
        tell_learnt(f"--data {data}", run, Recipe.create({**asdict(recipe), "data": data}), dataset, split)
    rows, labels = dataset.pictures(split)
    criterion = LabelSmoothingLoss(recipe.smoothing, len(classes))
    view = Transform(recipe.crop).to(device)
    evaluator = create_evaluator(model, criterion, view.center, machine, len(classes))
    outputs = EpochOutputStore(lambda output: output[0].cpu())
    outputs.attach(evaluator)
    # In batches as in training, so that the numbers are those of the history to the last digit.
    pictures = Pictures(reader(dataset.store, device), rows, labels, recipe.batch_size)
    with attach_progress(evaluator, "evaluating", recipe.batch_size, machine.look_every):
        scores = run_evaluator(evaluator, pictures, model)

    logits, explain = torch.cat(outputs.data), partial(forward_maps, model, view.center, machine)
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
        pictures=pictures_to_show(logits, labels, dataset.store, rows, recipe.crop, explain, recipe.batch_size),
    )
    try:
        evaluation.save(run, f"eval-{split}" if data is None else f"eval-{Path(data).resolve().name[:100]}-{split}")
    except OSError as error:
        log.warning(f"{run.path}: what was computed is not kept there: {error.strerror}")
    return evaluation


def told(evaluation: Evaluation, classes: list[str]) -> Iterator[str]:
    """Yield what `eval` prints: a line for each number, which classes are never right, and what guessing gives."""
    for name in SCORES:
        form = ".4f" if name in ("loss", "nll") else ".2%"
        yield f"{name.replace('_', ' '):17} {getattr(evaluation, name):8{form}}"
    scores = evaluation.class_scores
    never, evaluated = [classes[k] for k in scores.never_right], int((scores.pictures > 0).sum())
    yield f"never right: {len(never)} of {evaluated} classes" + (f": {some(never)}" if never else "")
    most, share = evaluation.majority
    yield f"always guessing the most frequent class, {some([classes[most]])}, would give {share:.2%}"
