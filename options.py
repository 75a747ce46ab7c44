"""How the command line's options are read: the recipe's, one for each of its fields, and those that commands share."""

import csv
import os
from collections.abc import Callable, Iterable
from dataclasses import Field, fields
from functools import partial, reduce
from importlib.util import find_spec
from math import isnan
from pathlib import Path
from typing import Any

import click
from click import Choice, IntRange

from plumage.data.cache import cache_folder
from plumage.errors import UserError
from plumage.files import expanded
from plumage.recipe import GROUPS, Recipe, check_given, option_name

RECIPE_FIELDS = {field.name: field for field in fields(Recipe)}

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class GroupedOption(click.Option):
    """An option that ``--help`` lists under the heading ``group``."""

    def __init__(self, *args: Any, group: str, **attributes: Any):
        super().__init__(*args, **attributes)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose ``--help`` lists its options by group, in the order of each group's first option."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (line := param.get_help_record(ctx)):
                groups.setdefault(getattr(param, "group", "Options"), []).append(line)
        for group, lines in groups.items():
            with formatter.section(group):
                formatter.write_dl(lines)


class Commands(click.Group):
    command_class = GroupedCommand


class LearningRate(click.ParamType):
    name = "auto|float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else click.FLOAT.convert(value, param, ctx)


class Place(click.Path):
    """A path that may begin with ``~``, as in ``--run=~/run``, and is not empty, as a script's unset variable is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            self.fail("is empty; give a path", param, ctx)
        place = expanded(value)
        if place == value and value.startswith("~/") and not os.path.lexists(value):
            self.fail(f"{value}: there is no home folder; give the whole path", param, ctx)
        return super().convert(place, param, ctx)


class Between(click.FloatRange):
    """A number above ``min`` and below ``max``; NaN, which compares with nothing, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if isnan(number):
            self.fail(f"{value} is not in the range {self.min:g}<x<{self.max:g}.", param, ctx)
        return number


BETWEEN_0_AND_1 = Between(0, 1, min_open=True, max_open=True)
PATH, FOLDER = Place(path_type=Path), Place(path_type=Path, exists=True, file_okay=False)


def option_type(field: "Field[Any]") -> click.ParamType:
    """Return the type that reads the option of a recipe's field."""
    choices = field.metadata["choices"]
    kind = Choice(choices) if choices else click.types.convert_type(field.type)
    return LearningRate() if field.name == "lr" else kind


def comma_separated(value: str) -> list[str]:
    """Return the texts between the commas, stripped. Quotes keep a text together that has commas of its own."""
    try:
        return [text.strip() for text in next(csv.reader([value], skipinitialspace=True), [])]
    except csv.Error as error:
        raise click.BadParameter(f"{value!r}: {error}") from error


def column_names(value: str) -> tuple[str, ...]:
    names = tuple(comma_separated(value))
    if not 1 <= len(names) <= 3 or "" in names or len(set(names)) < len(names):
        raise click.BadParameter(f"{value!r}: needs one to three different names, as in id,label")
    return names


class Values(click.ParamType):
    """``V1,V2``: values of a recipe's field, each read as if it were given by hand."""

    name = "v1,v2"

    def __init__(self, field: "Field[Any]"):
        self.option, self.kind = option_name(field.name), option_type(field)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        texts = comma_separated(value)
        if not texts or "" in texts:
            self.fail(f"{value!r}: an empty value of {self.option}", param, ctx)
        return [self.kind.convert(text, param, ctx) for text in texts]


class Variation(click.ParamType):
    """``NAME=V1,V2``: an option of the recipe, and its values."""

    name = "name=v1,v2"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, list[Any]]:
        option, equals, values = value.partition("=")
        if not equals:
            self.fail(f"{value}: needs a name, = and values, as in smoothing=0,0.1", param, ctx)
        name = option.strip().lstrip("-").replace("-", "_")
        field = RECIPE_FIELDS.get(name)
        if field is None or name in ("data", "preset", "seed", "fold"):
            self.fail(f"{option}: is no option that can be varied (there are --seeds and --folds)", param, ctx)
        return name, Values(field).convert(values, param, ctx)


SEEDS, FOLDS, MINUTES = Values(RECIPE_FIELDS["seed"]), IntRange(2, 9999), IntRange(0, 10_000)


def all_of(*options: Decorator) -> Decorator:
    """Return several options as one decorator; ``--help`` lists them in this order."""

    return lambda command: reduce(lambda decorated, option: option(decorated), reversed(options), command)


def take(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the options of these ``names``, taken out of ``options``."""
    return {name: options.pop(name) for name in names}


def take_recipe_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe's options that are given by hand, taken out of ``options``."""
    given = {name: value for name, value in take(options, RECIPE_FIELDS).items() if value is not None}
    check_given(given)
    return given


def recipe_option(field: "Field[Any]") -> Decorator:
    """Return a field's option. One that is not given by hand stays None: the preset decides."""
    name, kind, help = option_name(field.name), option_type(field), field.metadata["help"]
    default: Any = {"lr": "auto", "preset": "(demo for birds, else finetune)"}.get(field.name, field.default)
    if field.type is bool:
        name, default = f"{name}/--no-{name[2:]}", name[2:] if default else f"no-{name[2:]}"
    option = partial(click.option, name, type=kind, default=None, help=f"{help}  [default: {default}]")
    return option(cls=GroupedOption, group=field.metadata["group"])


def need_tensorboard(ctx: click.Context, param: click.Parameter, wanted: bool) -> bool:
    if wanted and find_spec("tensorboard") is None:
        raise UserError('--tensorboard: the package is not there; pip install -e ".[tensorboard]" installs it')
    return wanted


ablation_option, run_option, rows, machine = (
    partial(click.option, cls=GroupedOption, group=group) for group in ("Ablation", "Run", "Rows", "Machine")
)
by_group = sorted(RECIPE_FIELDS.values(), key=lambda field: GROUPS.index(field.metadata["group"]))
recipe_options = all_of(*map(recipe_option, by_group))
cache_option = machine(
    "--cache",
    type=PATH,
    callback=lambda context, param, given: cache_folder(given),
    show_default="~/.cache/plumage",
    help="Folder for decoded pictures, drawn birds and downloads.",
)
# Options that never change what is computed beyond rounding: of a command that keeps no decoded pictures, and of all.
compute_options = all_of(
    machine(
        "--device",
        type=Choice(["auto", "cpu", "cuda", "mps"]),
        default="auto",
        help="auto: a CUDA GPU if there is one, else the CPU.",
    ),
    machine(
        "--precision",
        type=Choice(["auto", "fp32", "bf16", "fp16"]),
        default="auto",
        help="Number format. auto is the fastest on this hardware; for a trained model, the one it was trained in.",
    ),
    machine("--compile/--no-compile", default=False, help="Compile the model with torch.compile."),
    machine("--workers", type=IntRange(1, 1024), show_default="one per core", help="Threads that decode pictures."),
)
machine_options = all_of(
    compute_options,
    cache_option,
    machine("--no-cache", is_flag=True, help="Decode pictures each time they are read, and keep none."),
)
training_options = all_of(
    run_option(
        "--report/--no-report",
        "with_report",
        default=True,
        help="Evaluate and calibrate the model, list its suspects, and write report.html.",
    ),
    run_option(
        "--tensorboard",
        is_flag=True,
        callback=need_tensorboard,
        help="Also log the history, and each step's loss and rate, in tensorboard/.",
    ),
    machine_options,
    machine("--deterministic", is_flag=True, help="Compute the same bits each time on a GPU too, which is slower."),
)
# Which trained model, and which models.
which_run = partial(click.option, "--run", type=PATH, show_default="the newest in runs/")
which_checkpoint = click.option("--checkpoint", type=Place(), default="best", help="best, last, or a checkpoint file.")
model_options = all_of(which_run("folder", help="Folder of the trained run."), which_checkpoint)
models_options = all_of(
    which_run(
        "folders",
        multiple=True,
        help="Folder of the trained run. Given several times, as --run A --run B, the probabilities are averaged.",
    ),
    which_checkpoint,
)
TABLE_FIELDS = ("form", "identity", "label", "top_k", "probabilities")
rows_options = all_of(
    rows("--format", "form", type=Choice(["csv", "jsonl"]), default="csv", help="CSV, or JSON lines."),
    rows(
        "--columns",
        type=column_names,
        metavar="NAMES",
        show_default="--order's header, else path,label,probability",
        help="Names of the columns for the picture, its label, and its probability. Fewer names give fewer columns.",
    ),
    rows(
        "--id",
        "identity",
        type=Choice(["path", "name", "stem"]),
        default="path",
        help="How to name a picture: by its path, its file name, or its file name without the suffix.",
    ),
    rows(
        "--label",
        type=Choice(["name", "index"]),
        default="name",
        help="How to name a class: index is its row in classes.json, from 0.",
    ),
    rows("--top-k", type=IntRange(1), default=1, help="Classes per picture, the most probable first."),
    rows("--probabilities", is_flag=True, help="Add the probability of every class, in the order of classes.json."),
    rows(
        "--order",
        type=PATH,
        help="Write the rows of this list or sample submission alone, in its order; see --id. Its header is taken "
        "over, with --probabilities also its order of classes.",
    ),
)

explain_options = all_of(
    click.option(
        "--explain",
        type=PATH,
        help="Folder for a JPEG of each picture: as the network saw it, beside itself with the map of its label, "
        "yellow where the evidence for it is. It must be empty, or --force be given.",
    ),
    click.option("--explain-most", type=IntRange(1), show_default="300", help="Draw at most so many, the first ones."),
)


def output_options(default: str) -> Decorator:
    """Return --output, whose ``default`` the help text tells, and --force."""
    return all_of(
        click.option("-o", "--output", type=PATH, show_default=default, help="File to write."),
        click.option("--force", is_flag=True, help="Overwrite --output if it exists."),
    )
