"""The command line: parse, build a Recipe, call one function, print. Torch is imported by the commands that need it."""

import signal

if __name__ == "__main__":  # until a command says what it does at Ctrl-C
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import json
import logging
import os
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plumage import options as opt
from plumage.console import need_reader, run_command
from plumage.data.cache import listing
from plumage.engine.signals import StopSignals
from plumage.errors import UserError
from plumage.files import check_output
from plumage.hardware.cores import usable_cores
from plumage.recipe import Recipe
from plumage.rundir.choose import RUNS, find_run, find_runs, open_run, runs_of

if TYPE_CHECKING:
    from plumage.data.store import Cache
    from plumage.hardware.device import Machine

log = logging.getLogger("plumage")


@click.group(cls=opt.Commands, no_args_is_help=False, context_settings={"show_default": True})
@click.pass_context
def cli(context: click.Context) -> None:
    """Fine-tune ResNet-50 on your own image classes.

    train --data FOLDER trains on a folder that holds a folder of pictures per class; eval then says how good the result
    is. Without --data, 200 species of built-in birds are used.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and context.invoked_subcommand != "train":
        alone = f"{context.command_path} {context.invoked_subcommand}"
        raise UserError(f"torchrun: only train is for several processes; run {alone}")


@cli.command()
@opt.recipe_options
@opt.run_option("--run", "folder", type=opt.PATH, show_default="runs/<data name>-<n>", help="Folder for the results.")
@opt.run_option(
    "--resume",
    is_flag=True,
    help="Go on with --run, or with the newest run of this data, if any. --data may have moved.",
)
@opt.run_option("--checkpoint-minutes", type=opt.MINUTES, default=10, help="Save at least this often; 0: each step.")
@opt.training_options
def train(folder: Path | None, resume: bool, **options: Any) -> None:
    """Train on the pictures in --data and write the results into --run.

    The defaults below are those of the finetune preset; --preset takes others.
    """
    signals = StopSignals()
    given = opt.take_recipe_options(options)
    recipe = Recipe.create(given)
    from plumage.engine.train import train as run_training  # noqa: PLC0415 (torch takes seconds, and --help needs none)
    from plumage.hardware import processes  # noqa: PLC0415

    machine, cache = choose_machine(options), choose_cache(options)
    with ExitStack() as stack:
        with processes.joined(machine.device) as leads:
            memory = processes.Memory()
            choose = partial(open_run, stack, folder, given, recipe, resume, memory.run)
            run, recipe = processes.from_first("the run's folder", choose)
            if leads:
                memory.run = run.path
            log.info(f"{run.path}: preset {recipe.preset}, {machine.device}, {machine.precision}")
            writes = opt.take(options, ("checkpoint_minutes", "tensorboard"))
            trained = run_training(recipe, run, machine, cache, signals, **writes)
        if leads:
            click.echo(f"{run.history.best_line}, in {run.path}")
            page = run.path / "report.html"
            if options["with_report"] and (trained or not page.exists()):
                from plumage.review import review, write_page  # noqa: PLC0415

                review(run, machine, cache)
                write_page([run], page)


@cli.command("eval")
@opt.models_options
@click.option(
    "--data",
    type=opt.Place(),
    show_default="the run's own",
    help="Another folder, with the run's classes; or where the run's own pictures have moved to.",
)
@click.option(
    "--split",
    type=click.Choice(["val", "train", "test", "all"]),
    show_default="val; with --data, all",
    help="Which pictures. test: those that neither training nor the choice of the best epoch has seen. all: all three.",
)
@click.option(
    "--calibrate",
    is_flag=True,
    help="Fit a temperature, which makes probabilities trustworthy, and the thresholds of predict --reject on the "
    "validation pictures, as train does at its end; predict then uses them. "
    "Label smoothing never asks for more than 1 - smoothing, so after it the temperature is often below 1.",
)
@click.option(
    "--suspects",
    is_flag=True,
    help="Write suspects.csv anew, as train does: pictures whose label the model doubts, or that are there under two "
    "labels or on two sides of the split. train --labels RUN/suspects.csv learns from what you mend in it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@opt.machine_options
def evaluate(folders: tuple[Path, ...], calibrate: bool, suspects: bool, as_json: bool, **options: Any) -> None:
    """Print how good a run's best model is: its accuracy, over pictures and over classes, and its loss.

    The run gets two tables, eval-<split>-classes.csv and eval-<split>-confusion.csv. Of several runs, as eval --run A
    --run B, it is that of their averaged probabilities, on the first one's pictures.
    """
    StopSignals()
    from plumage.engine.prepare import follow  # noqa: PLC0415
    from plumage.inference import ensemble  # noqa: PLC0415
    from plumage.review import measure  # noqa: PLC0415

    run, *others = find_runs(folders)
    machine, cache = choose_machine(options, run.precision), choose_cache(options)
    if options["data"] is not None and follow(run, options["data"], cache):
        options["data"] = None
    for name, given in {"--calibrate": calibrate, "--suspects": suspects}.items():
        if given and others:
            raise UserError(f"{name}: is done for one run; give one --run")
        if given and (options["data"] is not None or options["split"] not in (None, "val")):
            raise UserError(f"{name}: is done on the run's own validation pictures; leave out --data and --split")
    which = opt.take(options, ("checkpoint", "data", "split"))
    if others:
        machines = [machine, *(choose_machine(options, each.precision) for each in others)]
        result = ensemble.evaluate([run, *others], machines, cache, **which)
        lines = [*ensemble.told(result)]
    else:
        result, lines = measure(run, machine, cache, calibrate, suspects, **which)
    click.echo(json.dumps(result) if as_json else "\n".join(lines))


@cli.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...", type=opt.Place(readable=False))
@opt.models_options
@opt.output_options("standard output")
@click.option("--skip-unreadable", is_flag=True, help="Leave out pictures that cannot be read: no row, no error.")
@click.option("--tta", is_flag=True, help="Average each picture's probabilities with its mirror image's.")
@click.option("--calibration/--no-calibration", "calibrated", default=True, help="Use the run's fitted temperature.")
@click.option(
    "--reject",
    type=opt.BETWEEN_0_AND_1,
    metavar="E",
    help="Leave the label empty where the network is not sure enough: of the other labels, a share of at most E, as "
    "0.02, is wrong, by the upper end of its 95 % interval, for pictures like the run's validation pictures.",
)
@opt.explain_options
@opt.rows_options
@opt.compute_options
def predict(
    inputs: tuple[str, ...], folders: tuple[Path, ...], output: Path | None, force: bool, **options: Any
) -> None:
    """Say what pictures show: one row of CSV for each, sorted by path.

    INPUT is a picture, a folder of pictures and folders, or - to read such names from standard input, one per line.
    Of several runs, as the folds of ablate --folds, the probabilities are averaged: predict INPUT --run A --run B.

    For a competition: predict test -o submission.csv --id stem --order sample_submission.csv
    """
    StopSignals()
    runs = find_runs(folders)
    from plumage.inference import ensemble  # noqa: PLC0415
    from plumage.inference import explain as explaining  # noqa: PLC0415
    from plumage.inference import predict as inference  # noqa: PLC0415
    from plumage.inference.order import arrange  # noqa: PLC0415
    from plumage.inference.table import COLUMNS, Table  # noqa: PLC0415

    # Who asks for an order has a program read the rows, and gave the names.
    order, columns = options["order"], options["columns"]
    form = opt.take(options, opt.TABLE_FIELDS)
    table = Table(runs[0].classes, columns=columns or COLUMNS, **form, exact=order is not None)
    reject = options["reject"]
    if reject is not None and not options["calibrated"]:
        raise UserError("--reject: its thresholds are of calibrated probabilities; leave out --no-calibration")
    for name in ("reject", "explain"):
        if options[name] is not None and len(runs) > 1:
            raise UserError(f"--{name}: is for the network of one run; give one --run")
    if output:
        check_output(output, force)
    table, paths = arrange(table, inference.list_inputs(inputs), order, takes_header=columns is None)
    explain, most = options["explain"], options["explain_most"]
    if explain:
        explaining.check_folder(explain, force, paths)
    elif most:
        raise UserError("--explain-most: says of how many pictures --explain FOLDER draws the maps; give both")
    how = opt.take(options, ("checkpoint", "calibrated", "tta", "workers"))
    predictor = ensemble.load(runs, [choose_machine(options, run.precision) for run in runs], **how)
    explainer: Any = nullcontext()
    if isinstance(predictor, inference.Predictor):
        if reject is not None:
            table = replace(table, threshold=inference.threshold_of(runs[0], predictor, reject))
        if explain:
            explainer = explaining.Explainer(predictor, explain, most, table.rejects).opened()
    if output is None:
        need_reader()
    inference.predict(predictor, paths, table, output, options["skip_unreadable"], explainer)


@cli.command()
@opt.model_options
@opt.output_options("model.<format> in the run")
@click.option(
    "--format",
    metavar="[onnx|safetensors|pt2]",  # no Choice, so that torchscript can be refused with the reason
    show_default="from --output's suffix, else onnx",
    help="Kind of file to write.",
)
@click.option("--normalised-input", is_flag=True, help="Take normalised float32 NCHW pictures, instead of uint8 NHWC.")
@click.option("--pictures", type=opt.FOLDER, show_default="the validation pictures", help="Pictures to compare on.")
@opt.cache_option
def export(folder: Path | None, output: Path | None, force: bool, format: str | None, **options: Any) -> None:
    """Write the model for other programs, and compare it with itself on real pictures.

    onnx and pt2 (torch.export) take any number of pictures of the crop's size and give logits, in float32. safetensors
    holds the weights, which timm and torchvision load. Class names, recipe and normalisation are in the file, as JSON.
    """
    StopSignals()
    from plumage.data.store import Cache  # noqa: PLC0415
    from plumage.inference import export as inference  # noqa: PLC0415

    run, form = find_run(folder), inference.choose_format(format, output)
    check_output(file := output or run.path / f"model{form.suffix}", force)
    comparison = inference.export(run, form, file, Cache(options.pop("cache")), **options)
    click.echo(f"{file}: {form.title}, {file.stat().st_size / 1e6:.1f} MB\n{comparison}")


@cli.command()
@opt.ablation_option("--vary", type=opt.Variation(), multiple=True, help="Values of an option; repeatable.")
@opt.ablation_option(
    "--seeds", type=opt.SEEDS, show_default="--seed", help="Train each combination with each of these."
)
@opt.ablation_option(
    "--folds",
    type=opt.FOLDS,
    metavar="K",
    help="Cut the pictures into K parts, and train each combination K times, each time without the part that then "
    "validates. What all of them say of it is put together in out-of-fold/.",
)
@opt.ablation_option(
    "--run", "folder", type=opt.PATH, show_default="runs/ablation-<data name>-<n>", help="Folder that holds the runs."
)
@opt.recipe_options
@opt.training_options
def ablate(vary: Any, seeds: list[int] | None, folds: int | None, folder: Path | None, **options: Any) -> int:
    """Train with every combination of the --vary values, and compare.

    ablate --vary smoothing=0,0.1 --seeds 0,1,2 trains six runs. After a stop, the same command goes on from there.
    """
    signals = StopSignals()
    given = opt.take_recipe_options(options)
    from plumage.ablation.folds import conclude  # noqa: PLC0415
    from plumage.ablation.plan import find_folder, plan  # noqa: PLC0415
    from plumage.ablation.table import table  # noqa: PLC0415
    from plumage.ablation.train import train_all  # noqa: PLC0415

    trials = plan(given, vary, seeds, folds)
    machine, cache = choose_machine(options), choose_cache(options)
    home = folder or find_folder(RUNS, trials)
    outcomes = train_all(trials, home, machine, cache, signals, options["tensorboard"])
    click.echo("\n".join(table(outcomes)))
    for line in conclude(outcomes, home, machine, cache, options["with_report"]):
        click.echo(line)
    return next((outcome.exit_code for outcome in outcomes if outcome.exit_code), 0)


@cli.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...", type=opt.PATH)
@opt.output_options("report.html in the folder given, or beside several")
def report(runs: tuple[Path, ...], output: Path | None, force: bool) -> None:
    """Write one HTML page: what a run learnt, and how well; of several runs, how they compare.

    Each RUN is a run's folder, or an ablation's, for all of its runs. Without one, the newest in runs/ is taken. It may
    still be training.
    """
    StopSignals()
    given = [*dict.fromkeys(runs)] or [find_run(None).path]
    folders = [*dict.fromkeys(run for folder in given for run in runs_of(folder))]
    from plumage.report.page import write_report  # noqa: PLC0415

    home = given[0] if len(given) == 1 else Path(os.path.commonpath([run.absolute().parent for run in folders]))
    file = output or home / "report.html"
    check_output(file, force or output is None)
    write_report(folders, file)
    click.echo(file)


@cli.command("cache")
@opt.cache_option
@click.option("--clear", is_flag=True, help="Remove all of it, but what is in use.")
def show_cache(cache: Path, clear: bool) -> None:
    """List what the cache folder holds, with sizes and the day of the last use.

    That is decoded pictures, drawn birds and downloads: all of it can go, and is made again where it is needed.
    """
    for line in listing(cache, clear):
        click.echo(line)


def choose_machine(options: dict[str, Any], as_trained: str = "auto") -> "Machine":
    """Set up what the machine options ask for. as_trained: the precision of the run that is evaluated."""
    from plumage.hardware.device import Machine, choose_device, choose_precision, set_up  # noqa: PLC0415

    device, deterministic = choose_device(options["device"]), options.get("deterministic", False)
    set_up(device, usable_cores(), deterministic)
    precision = choose_precision(options["precision"], device, as_trained)
    return Machine(device, precision, options["compile"], deterministic)


def choose_cache(options: dict[str, Any]) -> "Cache":
    from plumage.data.store import Cache  # noqa: PLC0415

    return Cache(options["cache"], not options["no_cache"], options["workers"] or usable_cores())


def main() -> None:
    run_command(cli)


if __name__ == "__main__":
    main()
