"""Which trainings an ablation is: every combination of some options' values, for each seed and each fold."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

from plumage.errors import UserError, visible
from plumage.files import read_object
from plumage.recipe import Recipe, check_given, fold_of, option_name
from plumage.rundir.choose import newest, next_run
from plumage.rundir.folder import RunDir


@dataclass(frozen=True)
class Trial:
    """One training: the varied options' ``values`` as they were given, and the recipe that they make with its seed.

    All trials of one seed have the same split, or the same folds, which are drawn by it, unless one of the options on
    data is varied.
    """

    values: dict[str, Any]
    recipe: Recipe

    @property
    def combination(self) -> str:
        return title(self.values) or "all"

    @property
    def safe_combination(self) -> str:
        """The same, safe on every disk: what had to be changed or cut for that is told apart by a hash."""
        pairs = ((option_name(name)[2:], re.sub(r"[^a-z0-9.+-]+", "-", show(v))) for name, v in self.values.items())
        safe = ",".join(f"{name}={value}" for name, value in pairs)[:150]
        return safe if safe == title(self.values) else f"{safe}-{sha256(repr(self.values).encode()).hexdigest()[:8]}"

    @property
    def replicate(self) -> str:
        """What tells the trials of one combination apart: the seed, and the fold, if any."""
        fold = fold_of(self.recipe.fold)
        return f"seed={self.recipe.seed}" + (f",fold={fold[0]}of{fold[1]}" if fold else "")

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return ",".join(filter(None, (self.safe_combination, self.replicate)))


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: with ``exit_code`` 0, or for the reason ``error``."""

    trial: Trial
    run: RunDir
    exit_code: int = 0
    error: str = ""


def in_folds(outcomes: Sequence[Outcome]) -> bool:
    """Return whether each combination was trained with several folds."""
    return len({outcome.trial.recipe.fold for outcome in outcomes}) > 1


def title(values: Mapping[str, Any]) -> str:
    return ",".join(f"{option_name(name)[2:]}={show(value)}" for name, value in values.items())


def show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return visible(str(value))


def plan(
    given: Mapping[str, Any],
    varied: Sequence[tuple[str, list[Any]]],
    seeds: Sequence[int] | None,
    folds: int | None = None,
) -> list[Trial]:
    """Return the trials, seed by seed and fold by fold, with the options ``given`` by hand.

    folds: how many parts of the pictures validate in turn, if any. Raises UserError for what cannot be trained.
    """
    names = [name for name, _ in varied]
    if not varied and not folds:
        raise UserError("--vary: nothing is varied; give values, as --vary smoothing=0,0.1, or --folds 5")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--vary {option_name(name)[2:]}: is given twice; put all of its values into one")
        if name in given:
            raise UserError(f"--vary: {option_name(name)} is given by hand too; leave one of them out")
    if seeds and "seed" in given:
        raise UserError("--seeds: --seed is given too; leave one of them out")
    if folds and "fold" in given:
        raise UserError("--folds: --fold is given too; leave one of them out")
    trials: dict[Recipe, Trial] = {}
    each_seed = seeds or [given.get("seed", Recipe.seed)]
    each_fold = [{"fold": f"{number}/{folds}"} for number in range(1, folds + 1)] if folds else [{}]
    for seed, fold, combination in product(each_seed, each_fold, product(*(values for _, values in varied))):
        values = dict(zip(names, combination, strict=True))
        options = {**given, **values, **fold, "seed": seed}
        try:
            check_given(options)
            trial = Trial(values, Recipe.create(options))
        except UserError as error:
            asked = [f"--vary {title(values)}"] * bool(values) + [f"--seeds {seed}"] * bool(seeds or values)
            raise UserError(": ".join(filter(None, (" ".join(asked), str(error))))) from error
        if same := trials.get(trial.recipe):
            raise UserError(f"--vary, --seeds: {trial.name} would train the same as {same.name}; take one out")
        trials[trial.recipe] = trial
    return list(trials.values())


def find_folder(home: Path, trials: list[Trial]) -> Path:
    """Where these very trials were begun last below ``home``, else a new ``home/ablation-<data name>-<n>``."""
    files = home.glob("ablation-*/ablation.json")
    if same := newest(file for file in files if begun(file.parent) == description(trials)):
        return same.parent
    return next_run(home, f"ablation-{Path(trials[0].recipe.data).name}").path


def description(trials: list[Trial]) -> dict[str, Any]:
    """Return what ablation.json holds: the options varied, and each run's recipe, in order."""
    return {
        "vary": list(trials[0].values),
        "runs": [{"run": trial.name, "values": trial.values, "recipe": asdict(trial.recipe)} for trial in trials],
    }


def begun(folder: Path) -> dict[str, Any]:
    """Return what ``folder``'s ablation.json holds; nothing where there is none, or a damaged one.

    An option that an older one does not know yet has its default, as in ``Recipe.load``.
    """
    with suppress(UserError, TypeError, KeyError):
        content = read_object(folder / "ablation.json")
        defaults = {field.name: field.default for field in fields(Recipe)}
        runs = [{**run, "recipe": {**defaults, **run["recipe"]}} for run in content["runs"]]
        return {**content, "runs": runs}
    return {}
