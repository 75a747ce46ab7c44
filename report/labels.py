"""What several runs are called: by the options that vary between them, and nothing else."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from plumage.recipe import Recipe, fold_of, option_name
from plumage.report.reading import Run
from plumage.report.style import short

LONGEST = 60  # characters of a run's name

REPLICATES: dict[str, Any] = {"seed": 0, "fold": "none"}  # what only repeats a training, and its value without


def options_of(recipe: Recipe) -> dict[str, object]:
    return {option_name(name): value for name, value in asdict(recipe).items()}


def differing(settings: Sequence[dict[str, object]]) -> dict[str, list[object]]:
    """Return, by name, the values that are not the same in all ``settings``."""
    columns = {name: [each[name] for each in settings] for name in settings[0]}
    return {name: values for name, values in columns.items() if any(value != values[0] for value in values)}


def run_names(runs: Sequence[Run]) -> list[str]:
    """Return a short name of each run: what varies, its folder's name where that tells no two apart, or a number."""
    names = [name if len(name) <= LONGEST else "" for name in recipe_names([run.recipe for run in runs])]
    for others in ([run.name for run in runs], [f"{run.path.parent.name}/{run.name}" for run in runs]):
        times = Counter(names)
        pairs = zip(names, others, strict=True)
        names = [name if name and times[name] == 1 else short(other, LONGEST) for name, other in pairs]
    times = Counter(names)
    return [name if times[name] == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]


def recipe_names(recipes: Sequence[Recipe]) -> list[str]:
    """Return the options of each that vary, as ``smoothing 0.1, seed 0``: nothing where none does."""
    found = differing([options_of(recipe) for recipe in recipes])
    varied = {name: found[name] for name in sorted(found, key=lambda name: name[2:] in REPLICATES)}
    rows = zip(*varied.values(), strict=True) if varied else [()] * len(recipes)
    return [", ".join(f"{name[2:]} {told(value)}" for name, value in zip(varied, row, strict=True)) for row in rows]


def told(value: object) -> str:
    """Return an option's value as a name has it: of a path its last part."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return short(Path(str(value)).name or str(value)) if Path(str(value)).is_absolute() else short(str(value))


def kind_of(recipe: Recipe) -> Recipe:
    """Return what all repetitions of a training share: its recipe, whatever its seed and fold."""
    return replace(recipe, **REPLICATES)


def repetition_of(recipe: Recipe) -> tuple[object, ...]:
    """Return which repetition it is of its kind."""
    return tuple(getattr(recipe, name) for name in REPLICATES)


def folds_of(folds: Iterable[str]) -> int | None:
    """Return into how many parts the pictures were cut, the fewest of several; None where all have the same fold."""
    different = {*folds}
    parts = [fold[1] for fold in map(fold_of, different) if fold]
    return min(parts) if len(different) > 1 else None


def kind_names(runs: Sequence[Run]) -> list[str]:
    """Return the name of each run's kind, empty where there is one kind alone."""
    return recipe_names([kind_of(run.recipe) for run in runs])
