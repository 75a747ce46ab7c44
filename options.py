"""How the command line's options are read: those of the recipe, one for each of its fields, and of the machine."""

import csv
import os
from collections.abc import Callable
from dataclasses import Field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from plumage.errors import UserError
from plumage.recipe import Recipe, option_name

RECIPE_FIELDS = {field.name: field for field in fields(Recipe)}


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "plumage")


class LearningRate(click.ParamType):
    """A number, or ``auto``."""

    name = "auto|float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else click.FLOAT.convert(value, param, ctx)


class Place(click.Path):
    """A path, and not an empty one, which a script's unset variable makes and which would mean the current folder.

    ``~`` is the home folder also where the shell leaves it alone, as in ``--run=~/run``.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            self.fail("is empty; give a path", param, ctx)
        return super().convert(os.path.expanduser(value), param, ctx)  # noqa: PTH111 (which leaves an unknown ~user)


def option_type(field: "Field[Any]") -> click.ParamType:
    """How an option of the recipe is read."""
    choices = field.metadata["choices"]
    kind = click.Choice(choices) if choices else click.types.convert_type(field.type)
    return LearningRate() if field.name == "lr" else kind


def comma_separated(
    kind: click.ParamType, value: str, param: click.Parameter | None, ctx: click.Context | None
) -> list[str]:
    """The texts between the commas, stripped. Quotes keep the commas of one together."""
    try:
        return [text.strip() for text in next(csv.reader([value], skipinitialspace=True), [])]
    except csv.Error as error:
        kind.fail(f"{value!r}: {error}", param, ctx)


class Values(click.ParamType):
    """``V1,V2``: values of ``field``, each read as if it were given by hand. Quotes keep the commas of one together."""

    name = "v1,v2"

    def __init__(self, field: "Field[Any]"):
        self.option, self.kind = option_name(field.name), option_type(field)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        texts = comma_separated(self, value, param, ctx)
        if not texts or "" in texts:
            self.fail(f"{value!r}: an empty value of {self.option}", param, ctx)
        return [self.kind.convert(text, param, ctx) for text in texts]


class Columns(click.ParamType):
    """``A,B,C``: one to three different names."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = comma_separated(self, value, param, ctx)
        if not 1 <= len(names) <= 3 or "" in names or len(set(names)) < len(names):
            self.fail(f"{value!r}: needs one to three different names, as in id,label", param, ctx)
        return tuple(names)


class Variation(click.ParamType):
    """``NAME=V1,V2``: an option of the recipe, and its values."""

    name = "name=v1,v2"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, list[Any]]:
        option, equals, values = value.partition("=")
        if not equals:
            self.fail(f"{value}: needs a name, = and values, as in smoothing=0,0.1", param, ctx)
        name = option.strip().lstrip("-").replace("-", "_")
        field = RECIPE_FIELDS.get(name)
        if field is None or name in ("data", "preset", "seed"):
            self.fail(f"{option}: is no option that can be varied (for seeds, there is --seeds)", param, ctx)
        return name, Values(field).convert(values, param, ctx)


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option for each field of Recipe. One that is not given by hand stays None: the preset decides."""

    def option(field: "Field[Any]") -> Callable[..., Any]:
        name = option_name(field.name)
        default = {"lr": "auto", "preset": "demo for birds, else finetune"}.get(field.name, field.default)
        declaration = f"{name}/--no-{name[2:]}" if field.type is bool else name
        return click.option(
            declaration, type=option_type(field), default=None, help=f"{field.metadata['help']}  [{default}]"
        )

    for field in reversed(fields(Recipe)):
        command = option(field)(command)
    return command


def take_recipe_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those that are given by hand, taken out of ``options``."""
    given = {name: options.pop(name) for name in RECIPE_FIELDS}
    return {name: value for name, value in given.items() if value is not None}


def all_of(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Several options as one decorator; ``--help`` lists them in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


cache_option = click.option(
    "--cache",
    type=Place(path_type=Path),
    default=cache_folder,
    help="Folder for decoded pictures, birds and downloads.  [~/.cache/plumage]",
)
# Options that never change what is computed beyond rounding: of a command that keeps no decoded pictures, and of all.
compute_options = all_of(
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto"),
    click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), default="auto"),
    click.option("--compile/--no-compile", default=False, help="Compile the model with torch.compile."),
    click.option("--workers", type=click.IntRange(1, 1024), help="Threads that decode.  [one per core]"),
)
machine_options = all_of(
    compute_options,
    cache_option,
    click.option("--no-cache", is_flag=True, help="Decode pictures whenever they are read, and store none."),
)
# Whose model it is.
trained_options = all_of(
    click.option("--run", type=Place(path_type=Path), help="The run whose model it is.  [the newest in runs/]"),
    click.option("--checkpoint", type=Place(), default="best", help="best, last, or a file.  [best]"),
)


deterministic_option = click.option(
    "--deterministic",
    is_flag=True,
    help="Compute on a GPU in ways that give the same bits each time, which are slower; a CPU always does.",
)


def need_tensorboard(ctx: click.Context, param: click.Parameter, wanted: bool) -> bool:
    if wanted and find_spec("tensorboard") is None:
        raise UserError('--tensorboard: the package is not there; pip install -e ".[tensorboard]" installs it')
    return wanted


tensorboard_option = click.option(
    "--tensorboard",
    is_flag=True,
    callback=need_tensorboard,
    help="Log the history, and each step's loss and rate, into the run's tensorboard/ too.",
)

report_option = click.option(
    "--report/--no-report", "with_report", default=True, help="Evaluate the best model and write report.html."
)
