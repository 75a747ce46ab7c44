"""The command line: parse, build a Recipe, call one function, print. Torch is imported by the commands that need it."""

import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import Field, fields
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engine.recipe import Recipe, option_name
from engine.signals import StopSignals
from errors import EarlyEnd, UserError

if TYPE_CHECKING:
    from data.store import Cache
    from engine.machine import Machine
    from engine.rundir import RunDir

RUNS = Path("runs")


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "plumage")


class LearningRate(click.ParamType):
    """A number, or ``auto``."""

    name = "auto|float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else click.FLOAT.convert(value, param, ctx)


class Place(click.Path):
    """A path, and not an empty one, which a script's unset variable makes and which would mean the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            self.fail("is empty; give a path", param, ctx)
        return super().convert(value, param, ctx)


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option for each field of Recipe. One that is not given by hand stays None: the preset decides."""

    def option(field: "Field[Any]") -> Callable[..., Any]:
        name, choices = option_name(field.name), field.metadata["choices"]
        kind: Any = LearningRate() if field.name == "lr" else click.Choice(choices) if choices else field.type
        default = {"lr": "auto", "preset": "demo for birds, else finetune"}.get(field.name, field.default)
        declaration = f"{name}/--no-{name[2:]}" if field.type is bool else name
        return click.option(declaration, type=kind, default=None, help=f"{field.metadata['help']}  [{default}]")

    for field in reversed(fields(Recipe)):
        command = option(field)(command)
    return command


def machine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that never change what is computed beyond rounding."""
    for option in (
        click.option("--no-cache", is_flag=True, help="Decode pictures whenever they are read, and store none."),
        click.option(
            "--cache",
            type=Place(path_type=Path),
            default=cache_folder,
            help="Folder for decoded pictures, birds and downloads.  [~/.cache/plumage]",
        ),
        click.option("--workers", type=click.IntRange(1, 1024), help="Threads that decode.  [one per core]"),
        click.option("--compile/--no-compile", default=False, help="Compile the model with torch.compile."),
        click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), default="auto"),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto"),
    ):
        command = option(command)
    return command


@click.group(no_args_is_help=False)
def cli() -> None:
    """Fine-tune ResNet-50 on your own image classes.

    python main.py train --data FOLDER trains on a folder with a folder of pictures per class; python main.py eval then
    says how good the result is. Without --data, 200 species of built-in birds are used.
    """


@cli.command()
@recipe_options
@click.option("--run", type=Place(path_type=Path), help="Where results go.  [runs/<data name>-<n>]")
@click.option(
    "--resume", is_flag=True, help="Go on with the run in --run (or the newest of this data), if there is one."
)
@click.option(
    "--checkpoint-minutes",
    type=click.IntRange(0, 10_000),
    default=10,
    help="Save inside epochs too, when the last time is this long ago; 0: after each step.  [10]",
)
@machine_options
def train(run: Path | None, resume: bool, checkpoint_minutes: int, **options: Any) -> None:
    """Train on the pictures in --data and write the results into --run."""
    signals = StopSignals()
    given = {name: options.pop(name) for name in [field.name for field in fields(Recipe)]}
    given = {name: value for name, value in given.items() if value is not None}
    recipe = Recipe.create(given)

    from engine.rundir import RunDir, newest_run, next_run  # noqa: PLC0415 (torch takes seconds, and --help needs none)
    from engine.train import train as run_training  # noqa: PLC0415

    found = RunDir(run) if run else (newest_run(RUNS, recipe.data) if resume else None) or next_run(RUNS, recipe.data)
    found.check_writable()
    with found.locked():
        if found.holds_run:
            recipe = recipe_to_go_on_with(found, given, resume)
        machine, cache = choose_machine(**options)
        click.echo(f"{found.path}: preset {recipe.preset}, {machine.device}, {machine.precision}", err=True)
        best = run_training(recipe, found, machine, cache, signals, checkpoint_minutes)
    click.echo(f"best epoch {best['epoch']}: validation accuracy {best['val_accuracy']:.2%}, in {found.path}")


@cli.command("eval")
@click.option("--run", type=Place(path_type=Path), help="The run to evaluate.  [the newest in runs/]")
@click.option("--checkpoint", type=Place(), default="best", help="best, last, or a file.  [best]")
@click.option("--data", type=Place(), help="Another labelled folder, matched by class name.  [the run's own pictures]")
@click.option("--split", type=click.Choice(["val", "train", "all"]), help="[val; with --data: all]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@machine_options
def evaluate(
    run: Path | None, as_json: bool, checkpoint: str, data: str | None, split: str | None, **options: Any
) -> None:
    """Accuracy, top-5 accuracy and loss of a run's best model."""
    StopSignals()
    from engine.evaluate import evaluate as run_evaluation  # noqa: PLC0415

    found = find_run(run)
    machine, cache = choose_machine(**options, as_trained=found.precision)
    result = run_evaluation(found, machine, cache, checkpoint, data, split)
    if as_json:
        click.echo(json.dumps(result))
    else:
        click.echo(f"{found.path}, {result['split']}, {result['n']} pictures")
        for name in ("accuracy", "top5"):
            click.echo(f"  {name:9} {result[name]:8.2%}")
        for name in ("loss", "nll"):
            click.echo(f"  {name:9} {result[name]:8.4f}")


def recipe_to_go_on_with(run: "RunDir", given: dict[str, Any], resume: bool) -> Recipe:
    """That of ``run``. Raises UserError where it is not to be resumed, or with other options."""
    if not resume:
        raise UserError(f"--run {run.path} holds a run already: --resume goes on with it, or give another --run")
    if contradictions := run.recipe.contradictions(given):
        raise UserError(
            f"--resume: {', '.join(contradictions)}: a run ends with the recipe it began with, "
            "since its schedule cannot be changed afterwards; start another --run"
        )
    return run.recipe


def find_run(run: Path | None) -> "RunDir":
    from engine.rundir import RunDir, newest_run  # noqa: PLC0415

    found = RunDir(run) if run else newest_run(RUNS)
    if found is None:
        raise UserError("there is no run in runs/; train one with python main.py train, or give --run DIR")
    if not found.holds_run:
        raise UserError(f"--run {found.path} holds no run (there is no recipe.json)")
    return found


def choose_machine(
    device: str,
    precision: str,
    compile: bool,
    cache: Path,
    no_cache: bool,
    workers: int | None,
    as_trained: str = "auto",
) -> "tuple[Machine, Cache]":
    """as_trained: the precision of the run that is evaluated."""
    from data.store import Cache, usable_cores  # noqa: PLC0415
    from engine.machine import Machine, choose_device, choose_precision  # noqa: PLC0415

    chosen = choose_device(device)
    machine = Machine(chosen, choose_precision(precision, chosen, as_trained), compile)
    return machine, Cache(cache, not no_cache, workers or usable_cores())


def main() -> None:
    for stream in (sys.stdout, sys.stderr):  # a file's name may be no text
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(message)s", force=True)
    logging.getLogger("plumage").setLevel(logging.INFO)
    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # it repeats each exception that is reported below
    try:
        sys.exit(cli.main(standalone_mode=False))
    except EarlyEnd as end:
        message, code = str(end), end.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" See python {context.command_path} --help." if context else ""
        message, code = error.format_message() + hint, error.exit_code
    except OSError as error:  # a full disk, a missing permission, a name that is too long
        message, code = f"{error.filename or 'a file'}: {error.strerror or error}", UserError.exit_code
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    click.echo(f"error: {message}".replace("\n", " "), err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
