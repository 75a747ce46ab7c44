"""From a recipe and a run to the pictures and networks that they name."""

import hashlib
import logging
import os
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch
from torch import nn

from plumage.data.dataset import Dataset, choose_classes, prepare, read_all, recall
from plumage.data.decode import Square
from plumage.data.depth import Levels
from plumage.data.folds import check_enough, pooled
from plumage.data.groups import group_by
from plumage.data.labels import read_labels
from plumage.data.samples import Samples, some
from plumage.data.sources import list_samples, locate
from plumage.data.split import MOVED, read_digests, read_split, write_digests, write_split
from plumage.data.store import Cache, write_skipped
from plumage.errors import UserError
from plumage.hardware import processes
from plumage.hardware.device import Machine
from plumage.hardware.environment import differences, environment
from plumage.models.resnet import build_model
from plumage.models.weights import (
    Weights,
    iteration_of,
    load_file,
    load_pretrained,
    network_of,
    pretrained_weights,
    trained_model,
)
from plumage.names import composed
from plumage.recipe import Recipe, fold_of
from plumage.rundir.folder import RunDir, weights_file

log = logging.getLogger("plumage")


def gather(recipe: Recipe, run: RunDir, begun: bool, cache: Cache) -> tuple[Dataset, nn.Module | None, Weights | None]:
    """Read the pictures, and teacher and weights to start from, if any. What needs no decoded picture comes first."""
    samples = None if begun else list_labelled(recipe, cache)
    classes = samples.classes if samples else run.classes
    teacher, pretrained = load_teacher(recipe, classes), load_weights(recipe, run)
    if samples is None:
        return recall_dataset(recipe, run, cache), teacher, pretrained
    dataset = prepare_dataset(recipe, samples, cache)
    if dataset.samples.classes != classes:  # some have too few readable pictures
        teacher = load_teacher(recipe, dataset.samples.classes)
    return dataset, teacher, pretrained


def list_labelled(recipe: Recipe, cache: Cache) -> Samples:
    """List a new run's pictures, with what they show and which are in a group. UserError where they will not do."""
    folder = locate(recipe.data, cache)
    fold = fold_of(recipe.fold)
    if recipe.labels == "none":
        samples = list_samples(folder, anew=fold is not None)
    else:
        samples = read_labels(Path(recipe.labels), folder, anew=fold is not None)
    samples, _ = choose_classes(pooled(samples) if fold else samples, recipe.min_pictures)
    samples = samples if recipe.group_by == "none" else group_by(samples, recipe.group_by)
    if fold:
        check_enough(samples, fold)
    return samples


def check_alike(dataset: Dataset, machine: Machine) -> None:
    """Raise UserError where the hosts of several processes differ in what would make them train different things."""
    if idist.get_world_size() == 1:
        return
    samples = dataset.samples
    assert samples.split is not None
    listed = repr([*zip(samples.paths, samples.labels.tolist(), samples.split.tolist(), strict=True)])
    digest = hashlib.blake2b(listed.encode(errors="surrogateescape"), digest_size=16)
    digest.update(dataset.store.digests[dataset.rows].tobytes())
    processes.must_agree(digest.hexdigest(), f"--data {samples.root}: not the same pictures on each host")
    computes = f"{machine.device.type} {machine.precision}"
    processes.must_agree(computes, "--precision: auto is not the same on each host; give --device and --precision")


def load_teacher(recipe: Recipe, classes: list[str]) -> nn.Module | None:
    file = weights_file(recipe.teacher)
    return None if recipe.teacher == "none" else trained_model(file, f"--teacher {file}", classes)


def load_weights(recipe: Recipe, run: RunDir) -> Weights | None:
    """Return what a run starts from that has no checkpoint yet and is not trained from scratch."""
    needed = recipe.weights != "none" and not run.last.exists()
    return pretrained_weights(recipe.model, weights_file(recipe.weights)) if needed else None


def initial_model(recipe: Recipe, pretrained: Weights | None, classes: list[str]) -> nn.Module:
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, len(classes), recipe.zero_gamma)
    if pretrained is not None:
        same = load_pretrained(model, pretrained, classes)
        log.info(f"{pretrained.source}: the head is {'taken over' if same else f'new, for {len(classes)} classes'}")
    return model


def model_of(run: RunDir, checkpoint: str) -> nn.Module:
    """Return the network of a run's checkpoint: best, last or a file. UserError where it does not fit the run."""
    return model_and_iteration(run, checkpoint)[0]


def model_and_iteration(run: RunDir, checkpoint: str) -> tuple[nn.Module, int | None]:
    """Return the same, and after which iteration it was saved: of one content, since training replaces its files."""
    file, recipe, classes = run.checkpoint(checkpoint), run.recipe, run.classes
    content = load_file(file, len(classes))
    sides = {"resize": recipe.resize, "crop": recipe.crop}
    return network_of(content, f"--checkpoint {file}", classes, recipe.model, **sides), iteration_of(content)


def square_of(recipe: Recipe, levels: Levels | None = None) -> Square:
    """Return what pictures become in a run of this recipe, and of these levels."""
    return Square(recipe.resize, recipe.fit, levels)


def prepare_dataset(recipe: Recipe, samples: Samples, cache: Cache) -> Dataset:
    """Decode and split the pictures of a new run. Raises UserError where the recipe does not go with them."""
    dataset = prepare(
        samples,
        square_of(recipe),
        fold_of(recipe.fold) or recipe.val_fraction,
        recipe.seed,
        cache,
        recipe.min_pictures,
        recipe.group_duplicates,
    )
    classes, smoothing, batch_size = len(dataset.samples.classes), recipe.smoothing, recipe.batch_size
    train, val = (len(dataset.indices(side)) for side in ("train", "val"))
    if smoothing > (most := (classes - 1) / classes):
        raise UserError(f"--smoothing {smoothing}: with {classes} classes at most {most:.3g}, the uniform target")
    test = f"; eval --split test has {held} more" if (held := len(dataset.indices("test"))) else ""
    log.info(f"{classes} classes, {train} training and {val} validation pictures{test}")
    if batch_size > train:
        log.warning(f"--batch-size {batch_size}: each step takes the {train} training pictures that there are")
    if (idle := idist.get_world_size() - batch_size // 2) > 0:
        log.warning(f"--batch-size {batch_size}: {idle} processes have nothing to do, since each needs two pictures")
    return dataset


def samples_of(run: RunDir, recipe: Recipe, cache: Cache) -> Samples:
    """List the run's pictures, split as they were, in ``recipe.data``. Raises UserError where they are not there."""
    folder = Path(recipe.data)
    if folder.is_absolute() and not os.path.isdir(folder):  # noqa: PTH112 (pathlib raises where a name is too long)
        raise UserError(f"{folder}: the pictures of {run.path} are not there; {MOVED}")
    return read_split(run.split, locate(recipe.data, cache), run.classes)


def recall_dataset(recipe: Recipe, run: RunDir, cache: Cache) -> Dataset:
    """Read the pictures of a run that has begun, split as they were, from where ``recipe.data`` says that they are.

    Raises UserError where they are not there, or where others are in a place that the run does not know.
    """
    dataset = recall(samples_of(run, recipe, cache), square_of(recipe, run.levels), run.skipped, cache)
    if others := changed_pictures(run, dataset):
        which = f"{len(others)} pictures are not what they were when {run.path} began: {some(others, 3)}"
        if recipe.data != run.recipe.data:
            raise UserError(f"--data {recipe.data}: {which}; give the folder that it began with, or another --run")
        log.warning(f"--data {recipe.data}: {which}")
    return dataset


def changed_pictures(run: RunDir, dataset: Dataset) -> list[str]:
    """Return the paths of the run's pictures whose pixels have changed since it began, as far as that is known."""
    digests = read_digests(run.digests, len(dataset.samples))
    if digests is None:
        return []
    changed = (dataset.store.digests[dataset.rows] != digests).any(axis=1)
    return [dataset.samples.paths[row] for row in np.flatnonzero(changed)]


def follow(run: RunDir, data: str, cache: Cache) -> bool:
    """Return whether the run's pictures have moved to ``data``, which it then remembers; they are gone where they were.

    Other pictures under the same names have not moved: they are another data set.
    """
    was, now = run.recipe, Recipe.create({**asdict(run.recipe), "data": data})
    if not Path(was.data).is_absolute():  # drawn or fetched again wherever they are needed
        return False
    with suppress(UserError):
        samples_of(run, was, cache)
        return False
    try:
        samples_of(run, now, cache)
        recall_dataset(now, run, cache)
    except UserError as error:
        if os.path.isdir(now.data):  # noqa: PTH112 (pathlib raises where a name is too long)
            log.warning(f"{error}: it is taken for another data set")
        return False
    log.info(f"{run.path}: its pictures are in {now.data} now")
    run.remember(now)
    return True


def dataset_of(run: RunDir, split: str, data: str | None, cache: Cache) -> Dataset:
    """Read the run's own pictures, or those in ``data``. Raises UserError where none are of this split."""
    dataset = recall_dataset(run.recipe, run, cache) if data is None else other_dataset(data, split, run, cache)
    if not len(dataset.indices(split)):
        needs = " (a data set with train/, val/ and test/ has some)" if split == "test" else ""
        raise UserError(f"--split {split}: {dataset.samples.root} has no such pictures{needs}; take another split")
    return dataset


def other_dataset(data: str, split: str, run: RunDir, cache: Cache) -> Dataset:
    """Read another labelled folder, with the run's labels of the classes of the same names.

    Split as the folder itself is; if it is not, and must be, as the run was, whose pictures it then has to hold.
    """
    recipe, classes, square = replace(run.recipe, data=data), run.classes, square_of(run.recipe, run.levels)
    chosen = recipe.labels != "none" or recipe.min_pictures > 1  # so that not all of its folders are the run's classes
    if chosen and Recipe.create(asdict(recipe)).data == run.recipe.data:
        return recall_dataset(recipe, run, cache)
    samples = list_samples(locate(data, cache), least_classes=1)
    number = {composed(name): label for label, name in enumerate(classes)}  # of an older run they may be in any form
    if unknown := [name for name in samples.classes if name not in number]:
        learnt = some(classes, 10)
        raise UserError(
            f"--data {data}: the run was not trained on {some(unknown)}; its classes are {learnt}; leave out others"
        )
    if samples.split is None and split != "all":
        return recall(samples_of(run, recipe, cache), square, run.skipped, cache)
    labels = np.array([number[name] for name in samples.classes])[samples.labels]
    return read_all(replace(samples, labels=labels, classes=classes), square, cache)


def begin(run: RunDir, recipe: Recipe, dataset: Dataset, machine: Machine) -> None:
    """Write the run directory, with all that is known before training. A power cut leaves all of it, or no run."""
    run.path.mkdir(parents=True, exist_ok=True)
    write_split(run.split, dataset.samples)
    write_digests(run.digests, dataset.store.digests[dataset.rows])
    write_skipped(run.skipped, dataset.store.skipped)
    run.keep_levels(dataset.store.square.levels)
    run.describe(recipe, dataset.samples.classes, environment(machine))


def go_on(run: RunDir, recipe: Recipe, dataset: Dataset, machine: Machine) -> None:
    """Remember where the pictures are now; tell, and keep in environment.json, why the bits cannot be the same."""
    if recipe != run.recipe:
        run.remember(recipe)
    before, now = run.environment, environment(machine)
    changes = differences(before, now) if before else ["no environment.json that says where it began"]
    if changed := changed_pictures(run, dataset):
        changes.append(f"{len(changed)} pictures changed")
    if not changes:
        return
    what = ", ".join(changes)
    log.warning(f"{run.path}: goes on with {what}: it ends close to where it would have, but not with the same bits")
    earlier = before.get("resumed")
    resumed = [*(earlier if isinstance(earlier, list) else ()), f"{now['started']}: {what}"]
    run.keep_environment({**(before or now), "resumed": resumed})
