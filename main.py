"""The command line: parse, build a Recipe, call one function, print. Torch is imported by the commands that need it."""

import json
import logging
import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plumage.console import need_reader, run_command
from plumage.engine.signals import StopSignals
from plumage.errors import UserError
from plumage.options import (
    RECIPE_FIELDS,
    Columns,
    Place,
    Values,
    Variation,
    cache_folder,
    cache_option,
    compute_options,
    deterministic_option,
    machine_options,
    recipe_options,
    report_option,
    take_recipe_options,
    tensorboard_option,
    trained_options,
)
from plumage.recipe import Recipe
from plumage.rundir.choose import RUNS, find_run, open_run

if TYPE_CHECKING:
    from plumage.data.store import Cache
    from plumage.hardware.device import Machine
    from plumage.rundir.folder import RunDir

log = logging.getLogger("plumage")


@click.group(no_args_is_help=False)
@click.pass_context
def cli(context: click.Context) -> None:
    """Fine-tune ResNet-50 on your own image classes.

    python main.py train --data FOLDER trains on a folder with a folder of pictures per class; python main.py eval then
    says how good the result is. Without --data, 200 species of built-in birds are used.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and context.invoked_subcommand != "train":
        raise UserError(
            f"torchrun: only train is for several processes; run python main.py {context.invoked_subcommand}"
        )


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
@report_option
@deterministic_option
@tensorboard_option
@machine_options
def train(
    run: Path | None, resume: bool, checkpoint_minutes: int, with_report: bool, tensorboard: bool, **options: Any
) -> None:
    """Train on the pictures in --data and write the results into --run."""
    signals = StopSignals()
    given = take_recipe_options(options)
    recipe = Recipe.create(given)

    from plumage.engine.train import train as run_training  # noqa: PLC0415
    from plumage.hardware import processes  # noqa: PLC0415 (torch takes seconds, and --help needs none)

    machine, cache = choose_machine(**options)
    with ExitStack() as held:
        with processes.joined(machine.device) as first:
            choice = partial(open_run, held, run, given, recipe, resume, processes.Memory())
            found, recipe = processes.from_first("the run's folder", choice)
            log.info(f"{found.path}: preset {recipe.preset}, {machine.device}, {machine.precision}")
            trained = run_training(recipe, found, machine, cache, signals, checkpoint_minutes, tensorboard)
        if first:
            best, page = found.best_epoch, found.path / "report.html"
            click.echo(f"best epoch {best['epoch']}: validation accuracy {best['val_accuracy']:.2%}, in {found.path}")
            if with_report and (trained or not page.exists()):
                report_on([found], page, machine, cache)


def report_on(runs: "list[RunDir]", file: Path, machine: "Machine", cache: "Cache") -> None:
    """Evaluate trained runs and write their report. Whatever goes wrong, the runs are whole: it costs a line."""
    try:
        from plumage.engine.evaluate import evaluate as run_evaluation  # noqa: PLC0415
        from plumage.report.page import write_report  # noqa: PLC0415

        for run in runs:
            run_evaluation(run, machine, cache)
        write_report([run.path for run in runs], file)
    except (Exception, UserError) as error:
        log.warning(f"{file}: trained, but without a report: {' '.join(str(error).split())}")


@cli.command("eval")
@trained_options
@click.option("--data", type=Place(), help="Another labelled folder, matched by class name.  [the run's own pictures]")
@click.option("--split", type=click.Choice(["val", "train", "all"]), help="[val; with --data: all]")
@click.option(
    "--calibrate",
    is_flag=True,
    help="Fit a temperature that makes probabilities trustworthy on the validation pictures, and keep it with the run, "
    "for predict. Label smoothing never asks for more than 1 - smoothing, so a network that learnt with it says less "
    "than it knows: its temperature is often below 1.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@machine_options
def evaluate(
    run: Path | None,
    as_json: bool,
    checkpoint: str,
    data: str | None,
    split: str | None,
    calibrate: bool,
    **options: Any,
) -> None:
    """Accuracy, top-5 accuracy and loss of a run's best model."""
    StopSignals()
    from plumage.engine.evaluate import evaluate as run_evaluation  # noqa: PLC0415

    found = find_run(run)
    machine, cache = choose_machine(**options, as_trained=found.precision)
    result = run_evaluation(found, machine, cache, checkpoint, data, split, calibrate)
    if as_json:
        click.echo(json.dumps(result))
    else:
        click.echo(f"{found.path}, {result['split']}, {result['n']} pictures")
        for name in ("accuracy", "top5"):
            click.echo(f"  {name:9} {result[name]:8.2%}")
        for name in ("loss", "nll"):
            click.echo(f"  {name:9} {result[name]:8.4f}")
        if calibrate:
            click.echo(f"  temperature {result['temperature']:.4f}, with which nll is {result['calibrated_nll']:.4f}")


@cli.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...", type=Place())
@trained_options
@click.option("-o", "--output", type=Place(path_type=Path), help="A file to write to.  [standard output]")
@click.option("--force", is_flag=True, help="Overwrite --output.")
@click.option("--format", "form", type=click.Choice(["csv", "jsonl"]), default="csv", help="[csv]")
@click.option("--top-k", type=click.IntRange(1), default=1, help="Classes of each picture, the likeliest first.  [1]")
@click.option("--probabilities", is_flag=True, help="Add the probability of every class.")
@click.option(
    "--columns",
    type=Columns(),
    default="path,label,probability",
    help="What the picture's, the label's and its probability's columns are called; of fewer names, the first of these "
    "columns alone.  [path,label,probability]",
)
@click.option(
    "--id",
    "identity",
    type=click.Choice(["path", "name", "stem"]),
    default="path",
    help="What a picture is called: its path, the file's name, or that without its suffix.  [path]",
)
@click.option("--label", type=click.Choice(["name", "index"]), default="name", help="What a class is called.  [name]")
@click.option(
    "--order",
    type=Place(path_type=Path),
    help="Rows as in this file, a list or a sample submission, and no others; it calls pictures what --id does.",
)
@click.option("--skip-unreadable", is_flag=True, help="Leave out pictures that cannot be read: no row, no error.")
@click.option(
    "--tta", is_flag=True, help="Average each picture's probabilities with its mirror image's; twice the time."
)
@click.option(
    "--calibration/--no-calibration",
    "calibrated",
    default=True,
    help="Use the temperature that eval --calibrate fitted, where it did.  [--calibration]",
)
@compute_options
def predict(
    inputs: tuple[str, ...],
    run: Path | None,
    checkpoint: str,
    output: Path | None,
    force: bool,
    form: str,
    top_k: int,
    probabilities: bool,
    columns: tuple[str, ...],
    identity: str,
    label: str,
    order: Path | None,
    skip_unreadable: bool,
    tta: bool,
    calibrated: bool,
    **options: Any,
) -> None:
    """Say what pictures show: a row of CSV for each, sorted by path.

    INPUT is a picture, a folder, in which pictures are looked for at any depth, or - for a list of such, one a line, on
    standard input.

    For a competition: predict test -o submission.csv --columns id,label --id stem --order sample_submission.csv
    """
    StopSignals()
    found = find_run(run)
    from plumage.files import check_output  # noqa: PLC0415
    from plumage.inference.predict import list_inputs, load_predictor  # noqa: PLC0415
    from plumage.inference.predict import predict as run_prediction  # noqa: PLC0415
    from plumage.inference.table import Table  # noqa: PLC0415

    table = Table(found.classes, form, columns, identity, label == "index", top_k, probabilities)
    if output:
        check_output(output, force)
    paths = table.arrange(list_inputs(inputs), order)
    machine, cache = choose_machine(**options, as_trained=found.precision)
    predictor = load_predictor(found, machine, checkpoint, calibrated, tta, cache.workers)
    if output is None:
        need_reader()
    run_prediction(predictor, paths, table, output, skip_unreadable)


@cli.command()
@trained_options
@click.option("-o", "--output", type=Place(path_type=Path), help="[model.<format> in the run]")
@click.option("--force", is_flag=True, help="Overwrite --output.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["onnx", "safetensors", "torchscript", "pt2"]),
    help="[by --output's suffix, else onnx]",
)
@click.option(
    "--normalised-input",
    is_flag=True,
    help="Take float32 NCHW pictures, normalised already.  [uint8 NHWC, and normalise in the model]",
)
@click.option(
    "--pictures",
    type=Place(path_type=Path, exists=True, file_okay=False),
    help="A folder of pictures to compare on.  [the run's validation pictures]",
)
@cache_option
def export(
    run: Path | None,
    checkpoint: str,
    output: Path | None,
    force: bool,
    form: str | None,
    normalised_input: bool,
    pictures: Path | None,
    cache: Path,
) -> None:
    """Write the model for other programs, and compare it with itself on real pictures.

    onnx, torchscript and pt2 take any number of pictures of the crop's size and give logits, in float32; safetensors is
    the weights, which timm and torchvision load as they are. Class names, recipe and normalisation go with it, as JSON.
    """
    StopSignals()
    found = find_run(run)
    from plumage.data.store import Cache  # noqa: PLC0415
    from plumage.inference.export import choose_format  # noqa: PLC0415
    from plumage.inference.export import export as run_export  # noqa: PLC0415

    form = choose_format(form, output)
    done = run_export(found, Cache(cache), form, output, force, checkpoint, normalised_input, pictures)
    click.echo(f"{done.file}: {done.about}, {done.file.stat().st_size / 1e6:.1f} MB")
    click.echo(
        f"largest difference of logits {done.difference:.2g}, the same class for {done.same} of {done.n} pictures"
    )


@cli.command()
@click.option(
    "--vary",
    "varied",
    type=Variation(),
    multiple=True,
    required=True,
    help="An option and the values that it takes; given again, every combination.",
)
@click.option("--seeds", type=Values(RECIPE_FIELDS["seed"]), help="Train each combination with each.  [--seed's]")
@click.option(
    "--run", type=Place(path_type=Path), help="The folder that holds the runs.  [runs/ablation-<data name>-<n>]"
)
@report_option
@tensorboard_option
@recipe_options
@deterministic_option
@machine_options
def ablate(
    varied: tuple[tuple[str, list[Any]], ...],
    seeds: list[int] | None,
    run: Path | None,
    with_report: bool,
    tensorboard: bool,
    **options: Any,
) -> int:
    """Train with every combination of the --vary values, and compare.

    python main.py ablate --vary smoothing=0,0.1 --seeds 0,1,2 trains six runs, one after the other. Stopped anywhere,
    the same command goes on where it was.
    """
    signals = StopSignals()
    given = take_recipe_options(options)
    from plumage import ablation  # noqa: PLC0415

    trials = ablation.plan(given, varied, seeds)
    machine, cache = choose_machine(**options)
    folder = run or ablation.find_folder(RUNS, trials)
    outcomes = ablation.ablate(trials, folder, machine, cache, signals, tensorboard)
    for line in ablation.table(outcomes):
        click.echo(line)
    first = [done.run for done in outcomes if not done.error and done.trial.recipe.seed == trials[0].recipe.seed]
    if first and with_report:
        report_on(first, folder / "report.html", machine, cache)
    return next((outcome.exit_code for outcome in outcomes if outcome.exit_code), 0)


@cli.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...", type=Place(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=Place(path_type=Path),
    help="[report.html in the run, or beside them where there are several]",
)
@click.option("--force", is_flag=True, help="Overwrite --output.")
def report(runs: tuple[Path, ...], output: Path | None, force: bool) -> None:
    """Write what a run learnt, and how well, as one HTML page; of several runs, how they compare.

    Each RUN is a run's folder; without one, the newest in runs/. The run may still be training.
    """
    StopSignals()
    found = [find_run(run).path for run in dict.fromkeys(runs)] or [find_run(None).path]
    from plumage.files import check_output  # noqa: PLC0415
    from plumage.report.page import write_report  # noqa: PLC0415

    home = found[0] if len(found) == 1 else Path(os.path.commonpath([run.absolute().parent for run in found]))
    file = output or home / "report.html"
    check_output(file, force or output is None)
    write_report(found, file)
    click.echo(file)


def choose_machine(
    device: str,
    precision: str,
    compile: bool,
    workers: int | None,
    cache: Path | None = None,
    no_cache: bool = False,
    deterministic: bool = False,
    as_trained: str = "auto",
) -> "tuple[Machine, Cache]":
    """as_trained: the precision of the run that is evaluated. cache: None for a command that keeps none."""
    from plumage.data.store import Cache  # noqa: PLC0415
    from plumage.hardware.cores import usable_cores  # noqa: PLC0415
    from plumage.hardware.device import Machine, choose_device, choose_precision, set_up  # noqa: PLC0415

    cores = usable_cores()
    chosen = choose_device(device)
    set_up(chosen, cores, deterministic)
    machine = Machine(chosen, choose_precision(precision, chosen, as_trained), compile, deterministic)
    return machine, Cache(cache or cache_folder(), not no_cache, workers or cores)


def main() -> None:
    run_command(cli)


if __name__ == "__main__":
    main()
