"""evaluate(run, …): a run's model on its own pictures or on others."""

import json
import logging
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.handlers import EpochOutputStore

from data.augment import Transform
from data.dataset import Dataset, read_all
from data.loader import eval_batches
from data.sources import list_samples, locate, some
from engine.criterion import LabelSmoothingLoss
from engine.evaluator import create_evaluator
from engine.handlers import attach_progress
from engine.machine import Machine
from engine.recipe import Recipe
from engine.rundir import RunDir, replace_file
from engine.train import recall_dataset
from errors import UserError
from models.resnet import build_model
from models.weights import load_file, load_state, state_dict_of

log = logging.getLogger("plumage")


def evaluate(run: RunDir, machine: Machine, checkpoint: str = "best", data: str | None = None, split: str | None = None) -> dict[str, Any]:
    """split, n, accuracy, top5, loss (with the recipe's label smoothing) and nll; written to eval-<split>.json and .npz.

    checkpoint: best, last or a file. data: another labelled folder, matched by class name. split: train, val or all; the
    default is val for the run's own pictures and all for another folder.
    """
    recipe, classes = run.recipe, run.classes
    file = run.checkpoint(checkpoint)
    content = load_file(file)
    if (trained_on := content.get("classes", classes)) != classes:
        raise UserError(
            f"--checkpoint {file}: its {len(trained_on)} classes are not the {len(classes)} of {run.path}; give the --run it is from"
        )
    model = build_model(recipe.model, len(classes))
    load_state(model, state_dict_of(content), f"--checkpoint {file}")
    model.to(machine.device)
    if machine.compile:
        model.compile()

    if data is None:
        dataset, name, split = recall_dataset(recipe, run, machine), "", split or "val"
    else:
        dataset, name, split = other_dataset(data, recipe, classes, machine), f"{Path(data).resolve().name}-", split or "all"
    rows = dataset.rows(split)
    if not len(rows):
        raise UserError(f"--split {split}: {data} has no such split; take --split all")

    device, pin = machine.device, machine.device.type == "cuda"
    evaluator = create_evaluator(
        model,
        LabelSmoothingLoss(recipe.smoothing, len(classes)),
        Transform(recipe.crop).to(device).center,
        machine.autocast,
        device,
        len(classes),
    )
    outputs = EpochOutputStore(lambda output: output[0].cpu())
    outputs.attach(evaluator, "logits")
    attach_progress(evaluator, split, recipe.batch_size, 10 if pin else 1)
    labels = dataset.samples.labels[rows]
    # The batches of the training's own validation, so that the numbers are the history's to the last digit.
    batches = eval_batches(dataset.store, rows, labels, recipe.batch_size, pin)
    metrics = evaluator.run(batches, epoch_length=ceil(len(rows) / recipe.batch_size)).metrics

    result = {"split": split, "n": len(rows), **{key: metrics[key] for key in ("accuracy", "top5", "loss", "nll")}}
    stem = run.path / f"eval-{name}{split}"
    logits = torch.cat(evaluator.state.logits).numpy()
    np.savez(stem.with_name(stem.name + ".tmp.npz"), logits=logits, labels=labels, rows=rows)
    stem.with_name(stem.name + ".tmp.npz").replace(stem.with_name(stem.name + ".npz"))
    about = {"checkpoint": str(file), "data": str(dataset.samples.root), "precision": machine.precision}
    replace_file(stem.with_name(stem.name + ".json"), json.dumps({**result, **about}, indent=2) + "\n")
    return result


def other_dataset(data: str, recipe: Recipe, classes: list[str], machine: Machine) -> Dataset:
    """The readable pictures of another labelled folder, with the labels of the run's classes of the same names.

    Split as the folder itself is; else, where it holds the pictures that the run was split into, as the run is.
    """
    samples = list_samples(locate(data, machine.cache, machine.workers), least_classes=1)
    if unknown := sorted(set(samples.classes) - set(classes)):
        raise UserError(f"--data {data}: the run knows no class {some(unknown)}; its classes: {some(classes, 10)}")
    own = np.array([classes.index(name) for name in samples.classes])
    samples = replace(samples, labels=own[samples.labels], classes=classes)
    return read_all(samples, recipe.resize, machine.cache, machine.use_store, machine.workers)
