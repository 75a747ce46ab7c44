"""Whether pictures to evaluate on are ones that a network was trained on, which flatters it."""

import logging
from contextlib import suppress

import numpy as np

from plumage.data.copies import first_alike
from plumage.data.dataset import Dataset
from plumage.data.samples import some
from plumage.data.split import read_digests
from plumage.engine.prepare import square_of
from plumage.errors import UserError
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir, run_of

log = logging.getLogger("plumage")


def tell_weights(recipe: Recipe, dataset: Dataset) -> None:
    """Tell how many validation pictures of a new run its --weights, or its --teacher, were trained on."""
    for option, source in {"--weights": recipe.weights, "--teacher": recipe.teacher}.items():
        if run := run_of(source):
            tell_learnt(f"{option} {source}", run, recipe, dataset, "val")


def tell_learnt(where: str, run: RunDir, recipe: Recipe, dataset: Dataset, split: str) -> None:
    """Tell how many pictures of a split of ``dataset``, made by ``recipe``, ``run`` was trained on.

    They are known by their pixels where both make the same squares, and by their paths where the folder is the same.
    Nothing is said of a run whose files cannot be read.
    """
    with suppress(UserError):
        rows, was = dataset.indices(split), run.recipe
        table = run.listed
        train = np.flatnonzero([side == "train" for _, side in table])
        learnt = np.zeros(len(rows), bool)
        if recipe.data == was.data:
            paths = {table[row][0] for row in train}
            learnt |= [dataset.samples.paths[row] in paths for row in rows]
        if square_of(recipe) == square_of(was) and (digests := read_digests(run.digests, len(table))) is not None:
            first = first_alike(np.concatenate([digests[train], dataset.store.digests[dataset.rows[rows]]]))
            learnt |= first[len(train) :] < len(train)
        if learnt.any():
            named = some([dataset.samples.paths[row] for row in rows[learnt]], 3)
            what = f"{len(rows)} {'pictures' if split == 'all' else f'{split} pictures'}"
            log.warning(
                f"{where}: {run.path} was trained on {learnt.sum()} of these {what}, which flatters it: {named}"
            )
