"""ablate: what is trained and how it is named, one failing or stopped, and the statistics of the table."""

import csv
import json
import os
import re
import shutil
import signal
import sys
from itertools import product
from statistics import mean, stdev
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from scipy import stats
from test_signals import signalling, stopped
from test_train import TinyNetwork, flat, result, write_labels

import plumage.ablation.train
import plumage.data.facts
import plumage.engine.resume
import plumage.engine.train
import plumage.review
from plumage.ablation.plan import Outcome, Trial, description, find_folder, plan
from plumage.ablation.table import table
from plumage.engine.resume import is_finished
from plumage.errors import Diverged, UserError
from plumage.files import write_json
from plumage.options import RECIPE_FIELDS, Values, Variation
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir


@pytest.fixture
def command(monkeypatch, photos, tmp_path):
    monkeypatch.setattr(plumage.engine.prepare, "build_model", TinyNetwork)
    return ["ablate", "--data", photos, *TINY, "--epochs", "2"]


TWO = ["--vary", "smoothing=0,0.1", "--seeds", "0,1"]
TWO_NAMES = [f"smoothing={smoothing},seed={seed}" for seed in (0, 1) for smoothing in ("0", "0.1")]
FOUR = [*TWO, "--vary", "bias-decay=yes,no"]
FOUR_NAMES = [
    f"smoothing={smoothing},bias-decay={decay},seed={seed}"
    for seed in (0, 1)
    for smoothing in ("0", "0.1")
    for decay in ("true", "false")
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("smoothing=0,0.1", ("smoothing", [0.0, 0.1])),
        ("--batch-size=8, 16", ("batch_size", [8, 16])),
        ("batch_size=8", ("batch_size", [8])),
        ("lr=auto,0.1", ("lr", ["auto", 0.1])),
        ("zero-gamma=on,off,true,no", ("zero_gamma", [True, False, True, False])),
        ("schedule=cosine,step", ("schedule", ["cosine", "step"])),
        ('weights=none,"a, b=c.pt"', ("weights", ["none", "a, b=c.pt"])),
    ],
)
def test_what_vary_reads(text, expected):
    assert Variation().convert(text, None, None) == expected


def test_what_seeds_reads():
    assert Values(RECIPE_FIELDS["seed"]).convert("3, 1,2", None, None) == [3, 1, 2]


def test_the_plan_is_every_combination_seed_by_seed():
    trials = plan({"data": "birds"}, [("smoothing", [0.0, 0.1]), ("epochs", [3, 4])], [1, 0])
    assert [(t.recipe.seed, t.recipe.smoothing, t.recipe.epochs) for t in trials] == [
        (seed, smoothing, epochs) for seed in (1, 0) for smoothing in (0.0, 0.1) for epochs in (3, 4)
    ]
    assert trials[0].name == "smoothing=0,epochs=3,seed=1"
    assert [t.recipe.seed for t in plan({"seed": 7}, [("smoothing", [0.0])], None)] == [7]


def test_a_rate_of_auto_follows_the_batch():
    trials = plan({"data": "x"}, [("batch_size", [64, 128]), ("lr", ["auto", 0.3])], None)
    assert [trial.recipe.lr for trial in trials] == [0.025, 0.3, 0.05, 0.3]
    assert trials[2].name == "batch-size=128,lr=auto,seed=0"


def test_names_are_safe_and_distinct():
    files = [
        "a.pt",
        "A.pt",
        "/x/a.pt",
        "/x/y/a.pt",
        "/x-y/a.pt",
        "x,y=1.pt",
        "ä b\n.pt",
        "\udcff.pt",
        *("z" * n for n in (180, 200)),
    ]
    trials = [Trial({"weights": file, "smoothing": 0.1}, Recipe()) for file in files]
    names = [trial.name for trial in trials]
    assert names[0] == "weights=a.pt,smoothing=0.1,seed=0"
    assert len({name.lower() for name in names}) == len(files)
    assert all(re.fullmatch(r"[a-z0-9.,=+-]{1,200}", name) for name in names)
    assert Trial({"smoothing": 0.1 + 0.2}, Recipe()).name != Trial({"smoothing": 0.3}, Recipe()).name
    assert all("\n" not in trial.combination for trial in trials)
    one, other = ({"weights": "a,teacher=b", "teacher": "c"}, {"weights": "a", "teacher": "b,teacher=c"})
    assert Trial(one, Recipe()).name != Trial(other, Recipe()).name


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--vary"),
        (["--seeds", "0,1"], "--folds 5"),
        (["--folds", "1"], "--folds"),
        (["--folds", "three"], "--folds"),
        (["--folds", "3", "--fold", "1/3"], "--fold is given too"),
        (["--folds", "3", "--val-fraction", "0.2"], "--val-fraction"),
        (["--folds", "3", "--vary", "val-fraction=0.2,0.3"], "--vary val-fraction=0.2"),
        (["--vary", "fold=1/2,2/2"], "--folds"),
        (["--folds", "31"], "error: --folds 31: there are 30 pictures; cut"),
        (["--folds", "4", "--group-by", "(red|green|blau)"], "there are 3 pictures or groups"),
        (["--vary", "smoothing"], "smoothing"),
        (["--vary", "=1"], "--vary"),
        (["--vary", "smoothness=0,1"], "smoothness"),
        (["--vary", "data=a,b"], "data"),
        (["--vary", "preset=demo,paper"], "preset"),
        (["--vary", "seed=0,1"], "--seeds"),
        (["--vary", "smoothing="], "smoothing"),
        (["--vary", "smoothing=0,,1"], "0,,1"),
        (["--vary", "smoothing=0,much"], "much"),
        (["--vary", "smoothing=0\n,1"], "--vary"),
        (["--vary", "smoothing=0,1.5"], "--vary smoothing=1.5"),
        (["--vary", "smoothing=nan"], "--vary smoothing=nan"),
        (["--vary", "schedule=cosine,linear"], "linear"),
        (["--vary", "bias-decay=perhaps"], "perhaps"),
        (["--vary", "warmup-epochs=0,9"], "--vary warmup-epochs=9"),
        (["--vary", "smoothing=0.1,.1"], "--vary"),
        (["--vary", "weights=none", "--vary", "smoothing=0,0.1"], "--weights"),
        (["--vary", "smoothing=0", "--vary", "smoothing=0.1"], "--vary smoothing"),
        (["--vary", "smoothing=0,0.1", "--smoothing", "0.1"], "--smoothing"),
        (["--vary", "smoothing=0,0.1", "--seeds", "0,1,0"], "--seeds"),
        (["--vary", "smoothing=0,0.1", "--seeds", "0,one"], "--seeds"),
        (["--vary", "smoothing=0,0.1", "--seeds", "0.5"], "--seeds"),
        (["--vary", "smoothing=0,0.1", "--seeds", ""], "--seeds"),
        (["--vary", "smoothing=0,0.1", "--seeds", "-1"], "--seeds -1"),
        (["--vary", "smoothing=0,0.1", "--seeds", "0,1", "--seed", "2"], "--seed "),
        (["--vary", "smoothing=0,0.1", "--data", "nowhere"], "nowhere"),
        (["--vary", "smoothing=0,0.1", "--precision", "fp16"], "--precision"),
        (["--vary", "teacher=none,nowhere.pt"], "nowhere.pt"),
        (["--vary", "mixup=0,0.1", "--teacher", "nowhere.pt"], "nowhere.pt"),
        (["--vary", "labels=none,nowhere.csv"], "nowhere.csv"),
        (["--vary", "min-pictures=1,11"], "--min-pictures 11"),
        (["--vary", "group-by=none,(nothing)"], "--group-by '(nothing)'"),
        (["--vary", "group-by=none,nothing"], "--group-by 'nothing'"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing_behind(command, cli, tmp_path, options, says):
    code, out, err = cli(*command, *options)
    assert (code, out) == (2, "")
    assert [line for line in err.splitlines() if line.startswith("error: ")] == err.splitlines()[-1:]
    assert says in err.splitlines()[-1]
    assert not list((tmp_path / "runs").glob("*"))


def table_of(out):
    lines = out.splitlines()
    return lines[next(number for number, line in enumerate(lines) if line.startswith("Validation accuracy")) :]


def test_an_ablation(command, cli, photos, tmp_path):
    folder = tmp_path / "whole"
    code, out, err = cli(*command, *FOUR, "--run", folder)
    assert code == 0, err
    lines = table_of(out)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(FOUR_NAMES)
    runs = {name: RunDir(folder / name) for name in FOUR_NAMES}
    for run in runs.values():
        recipe = run.recipe
        text = ",".join((f"smoothing={recipe.smoothing:g}", f"bias-decay={str(recipe.bias_decay).lower()}"))
        assert run.path.name == f"{text},seed={recipe.seed}"
        assert (len(run.history), recipe.data, recipe.batch_size) == (2, str(photos), 8)

    # one split a seed
    splits = {name: run.split.read_text() for name, run in runs.items()}
    assert len({splits[name] for name in FOUR_NAMES[:4]}) == len({splits[name] for name in FOUR_NAMES[4:]}) == 1
    assert splits[FOUR_NAMES[0]] != splits[FOUR_NAMES[4]]

    # a run like any other, whatever ran before it in this process
    alone = RunDir(tmp_path / "alone")
    options = ["--smoothing", "0.1", "--no-bias-decay", "--seed", "1", "--run", alone.path]
    assert cli("train", *command[1:], *options)[0] == 0
    assert flat(result(alone)) == flat(result(runs[FOUR_NAMES[-1]]))

    # the results, as a file and as a table
    with (folder / "ablation.csv").open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["run"] for row in rows] == FOUR_NAMES
    for row in rows:
        best = runs[row["run"]].history.best
        assert int(row["best_epoch"]) == best["epoch"]
        assert all(
            float(row[key]) == best[key]
            for key in ("val_accuracy", "val_balanced_accuracy", "val_loss", "val_nll", "train_accuracy")
        )
        assert float(row["seconds"]) == pytest.approx(sum(epoch["seconds"] for epoch in runs[row["run"]].history))
        assert row["run"] == f"smoothing={row['smoothing']},bias-decay={row['bias_decay']},seed={row['seed']}"
        assert row["error"] == ""
    assert len(lines) == 2 + 4
    for line, name in zip(lines[2:], FOUR_NAMES[:4], strict=True):
        values = [100 * runs[name.replace("seed=0", f"seed={seed}")].history.best["val_accuracy"] for seed in (0, 1)]
        assert line.split()[:7] == [
            name.removesuffix(",seed=0"), f"{mean(values):.2f}", "±", f"{stdev(values):.2f}", "%", "n", "="
        ]  # fmt: skip


def test_labels_and_groups_may_vary_and_their_file_go(command, cli, photos, tmp_path):
    """Each combination learns its own classes, and goes on by what its runs hold."""
    write_labels(tmp_path / "labels.csv", photos)
    options = [*command, "--vary", f"labels=none,{tmp_path / 'labels.csv'}", "--vary", "min-pictures=1,6"]
    code, out, err = cli(*options, "--run", tmp_path / "a")
    assert code == 0, err
    labels, number = tmp_path / "labels.csv", {}
    for run in (RunDir(path) for path in (tmp_path / "a").iterdir() if path.is_dir()):
        number[run.recipe.labels, run.recipe.min_pictures] = len(run.classes)
    assert number == {("none", 1): 3, ("none", 6): 3, (str(labels), 1): 4, (str(labels), 6): 2}
    labels.unlink()
    assert cli(*options, "--run", tmp_path / "a")[:2] == (0, "\n".join(table_of(out)) + "\n")


def contents(folder, but=()):
    """Every file's time and bytes."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in but]
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def test_a_finished_ablation_repeated_prints_its_table_and_does_nothing_else(
    command, cli, photos, tmp_path, monkeypatch
):
    code, out, err = cli(*command, "--vary", "smoothing=0,0.1")
    assert code == 0, err
    folder = tmp_path / "runs" / f"ablation-{photos.name}-1"
    runs = [path for path in folder.iterdir() if path.is_dir()]
    before = [contents(path) for path in runs]
    photos.rename(tmp_path / "gone")
    assert cli(*command, "--vary", "smoothing=0,0.1")[:2] == (0, "\n".join(table_of(out)) + "\n")
    assert [contents(path) for path in runs] == before
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [folder.name]


def test_another_command_gets_the_next_folder(command, cli, photos, tmp_path):
    for options in (
        ["--vary", "smoothing=0,0.1"],
        ["--vary", "smoothing=0.1,0"],
        ["--vary", "smoothing=0", "--seed", "1"],
    ):
        assert cli(*command, "--epochs", "1", *options)[0] == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {f"ablation-{photos.name}-{n}" for n in (1, 2, 3)}


@pytest.fixture
def undisturbed(command, cli, tmp_path):
    """The folder of an ablation that nothing stopped, and its table."""
    code, out, err = cli(*command, *TWO, "--run", tmp_path / "whole")
    assert code == 0, err
    return tmp_path / "whole", table_of(out)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (plumage.data.facts, "decode_or_reason", 5),
        (plumage.engine.train.Transform, "random", 2),
        (plumage.engine.train.Transform, "random", 20),  # six steps a run: in the fourth
        (plumage.engine.checkpoint, "save_checkpoint", 5),
        (plumage.engine.prepare, "begin", 4),
        (plumage.ablation.train, "train", 3),
        (plumage.ablation.train, "write_results", 1),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_stopped_anywhere_the_same_command_goes_on(
    undisturbed, command, cli, photos, tmp_path, monkeypatch, owner, name, call
):
    whole, lines = undisturbed
    shutil.rmtree(tmp_path / "xdg")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalling(getattr(owner, name), signal.SIGTERM, call))
        code, _, err = cli(*command, *TWO)
    assert stopped(code, err, signal.SIGTERM)
    assert "--resume" not in err

    folder = tmp_path / "runs" / f"ablation-{photos.name}-1"
    runs = [RunDir(folder / run) for run in TWO_NAMES]
    finished = [run.path for run in runs if run.holds_run and is_finished(run.recipe, run)]
    before = [contents(path) for path in finished]
    code, out, err = cli(*command, *TWO)
    assert code == 0, err
    assert [contents(path) for path in finished] == before
    assert table_of(out) == lines
    for run in runs:
        assert flat(result(run)) == flat(result(RunDir(whole / run.path.name)))
    assert json.loads((folder / "ablation.json").read_text()) == json.loads((whole / "ablation.json").read_text())
    assert {file.relative_to(folder) for file in contents(folder)} == {
        file.relative_to(whole) for file in contents(whole)
    }
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [folder.name]


def test_one_that_diverges_leaves_the_others_done(command, cli, tmp_path):
    command = [option for option in command if option not in ("--lr", "0.05")]
    code, out, err = cli(*command, "--vary", "lr=0.05,1e30,0.1", "--seeds", "0,1", "--run", tmp_path / "a")
    assert code == 3
    failures = [line for line in err.splitlines() if " failed: " in line]
    assert [line.split(":")[0] for line in failures] == [f"lr=1e+30,seed={seed} failed" for seed in (0, 1)]
    assert all("the loss is" in line for line in failures)
    assert all(
        len(RunDir(tmp_path / "a" / f"lr={lr},seed={seed}").history) == 2 for lr in (0.05, 0.1) for seed in (0, 1)
    )
    lines = {line.split()[0]: line for line in table_of(out)[2:]}
    assert list(lines) == ["lr=0.05", "lr=1e+30", "lr=0.1"]
    assert "n = 0 (2 failed)" in lines["lr=1e+30"]
    assert "(n = 2, all equal: no interval)" in lines["lr=0.1"]  # all pictures are right
    with (tmp_path / "a" / "ablation.csv").open(newline="", encoding="utf-8") as handle:
        assert [bool(row["error"]) for row in csv.DictReader(handle)] == [False, True, False] * 2


def test_it_goes_on_in_the_folder_of_the_highest_number_whatever_the_times_say(tmp_path):
    trials = plan({"data": "cub200"}, [("smoothing", [0.0, 0.1])], None)
    for number, changed in ((2, 5), (10, 1), (9, 10**11)):
        file = tmp_path / f"ablation-cub200-{number}" / "ablation.json"
        file.parent.mkdir()
        write_json(file, description(trials))
        os.utime(file, (changed, changed))
    assert find_folder(tmp_path, trials).name == "ablation-cub200-10"
    assert find_folder(tmp_path, trials[:1]).name == "ablation-cub200-11"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("CUDA out of memory.\nTried"), 2),
        (MemoryError(), 2),
        (OSError(28, "No space left"), 2),
        (Diverged("nan"), 3),
        (UserError("no"), 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_one_fails_of_is_one_line_and_the_first_decides_the_exit_code(
    command, cli, tmp_path, monkeypatch, error, code
):
    errors = {0.1: error, 0.2: Diverged("later")}

    def failing(recipe, *others, **options):
        if recipe.smoothing in errors:
            raise errors[recipe.smoothing]
        return train(recipe, *others, **options)

    train = plumage.engine.train.train
    monkeypatch.setattr(plumage.ablation.train, "train", failing)
    options = ["--vary", "smoothing=0.1,0,0.2,0.3", "--epochs", "1", "--run", tmp_path / "a"]
    ended, out, err = cli(*command, *options)
    assert ended == code
    assert len([line for line in err.splitlines() if line.startswith("smoothing=0.1,seed=0 failed: ")]) == 1
    assert "Traceback" not in err
    assert not (tmp_path / "a" / "smoothing=0.1,seed=0").exists()
    assert len(RunDir(tmp_path / "a" / "smoothing=0.3,seed=0").history) == 1
    assert "points" not in "".join(table_of(out)[2:])  # without the first there is nothing to compare with
    monkeypatch.setattr(plumage.ablation.train, "train", train)
    assert cli(*command, *options)[0] == 0  # it may have been the disk


def test_a_damaged_run_fails_alone(command, cli, tmp_path):
    options = ["--vary", "smoothing=0,0.1", "--run", tmp_path / "a"]
    assert cli(*command, *options)[0] == 0
    (tmp_path / "a" / "smoothing=0,seed=0" / "recipe.json").write_text("{")
    code, out, err = cli(*command, *options)
    assert code == 2
    assert "smoothing=0,seed=0 failed: " in err
    assert "recipe.json" in err
    assert "n = 1" in table_of(out)[-1]


@pytest.mark.parametrize("case", ["a run", "another recipe", "a file", "a foreign split"])
def test_a_folder_that_will_not_do_is_named_before_anything_is_trained(command, cli, tmp_path, monkeypatch, case):
    folder = tmp_path / "a"
    options = ["--vary", "smoothing=0,0.1", "--run", folder]
    if case == "a run":
        assert cli("train", *command[1:], "--run", folder)[0] == 0
    elif case == "another recipe":
        assert cli(*command, "--epochs", "1", *options)[0] == 0
    elif case == "a file":
        folder.touch()
    else:
        (folder / "smoothing=0.1,seed=0").mkdir(parents=True)
        (folder / "smoothing=0.1,seed=0" / "split.csv").touch()
    before = contents(tmp_path)
    monkeypatch.setattr(plumage.ablation.train, "train", None)
    code, out, err = cli(*command, *options)
    assert (code, out) == (2, "")
    assert str(folder) in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: --run")
    assert contents(tmp_path) == before


def test_more_seeds_into_the_same_folder_keep_those_that_are_there(command, cli, tmp_path):
    options = ["--vary", "smoothing=0,0.1", "--run", tmp_path / "a", "--epochs", "1"]
    assert cli(*command, *options)[0] == 0
    before = contents(tmp_path / "a", but=("ablation.json", "ablation.csv"))
    code, out, _ = cli(*command, *options, "--seeds", "0,1")
    assert code == 0
    assert before.items() <= contents(tmp_path / "a").items()
    assert all("n = 2" in line for line in table_of(out)[2:])


def test_another_ablation_in_the_same_folder_is_refused(command, cli, tmp_path):
    folder = tmp_path / "a"
    assert cli(*command, "--vary", "smoothing=0,0.1", "--run", folder, "--epochs", "1")[0] == 0
    before = contents(folder)
    code, out, err = cli(*command, "--vary", "smoothing=0.1", "--run", folder, "--epochs", "1")
    assert (code, out) == (2, "")
    assert "holds another ablation, with smoothing=0,seed=0;" in err.splitlines()[-1]
    assert contents(folder) == before


def test_an_ablation_is_at_work_once(command, cli, tmp_path):
    folder = tmp_path / "a"
    with RunDir(folder).locked():
        code, out, err = cli(*command, "--vary", "smoothing=0", "--run", folder)
    assert (code, out) == (2, "")
    assert "another training is at work in it" in err.splitlines()[-1]
    assert not folder.exists()


def test_without_its_best_checkpoint_a_run_is_not_finished(command, cli, tmp_path):
    assert cli("train", *command[1:], "--run", tmp_path / "a")[0] == 0
    run = RunDir(tmp_path / "a")
    run.last.rename(tmp_path / "last.pt")  # to make room on the disk
    assert is_finished(run.recipe, run)
    run.best.unlink()
    assert not is_finished(run.recipe, run)
    (tmp_path / "last.pt").rename(run.last)  # as if killed before the first best was there
    assert not is_finished(run.recipe, run)


@pytest.mark.parametrize("lost", ["last", "best"])
def test_killed_between_the_last_row_and_its_checkpoint_it_is_not_finished(command, cli, tmp_path, lost):
    assert cli(*command, "--vary", "smoothing=0", "--run", tmp_path / "a")[0] == 0
    run = RunDir(tmp_path / "a" / "smoothing=0,seed=0")
    assert is_finished(run.recipe, run)
    content = torch.load(getattr(run, lost))
    content["trainer"]["iteration"] -= 1
    torch.save(content, getattr(run, lost))
    assert not is_finished(run.recipe, run)


def test_early_stopping_finishes_a_run_too(command, cli, tmp_path, monkeypatch):
    options = ["--vary", "smoothing=0", "--run", tmp_path / "a", "--early-stopping", "1", "--epochs", "9"]
    command = [option if option != "0.05" else "1e-12" for option in command]
    assert cli(*command, *options)[0] == 0
    assert len(RunDir(tmp_path / "a" / "smoothing=0,seed=0").history) == 2
    monkeypatch.setattr(plumage.engine.train, "build", None)
    assert cli(*command, *options)[0] == 0


def test_all_runs_are_reported_side_by_side(command, cli, tmp_path, monkeypatch):
    reports = []
    monkeypatch.setitem(sys.modules, "report", SimpleNamespace())
    page = SimpleNamespace(write_report=lambda runs, file: reports.append((list(runs), file)))
    monkeypatch.setitem(sys.modules, "plumage.report.page", page)
    monkeypatch.setattr(plumage.review, "evaluate", lambda *_: SimpleNamespace())
    monkeypatch.setattr(plumage.review, "calibrate", lambda *_: None)
    assert cli(*command, *TWO, "--run", tmp_path / "a", "--epochs", "1", "--report")[0] == 0
    assert reports == [([tmp_path / "a" / name for name in TWO_NAMES], tmp_path / "a" / "report.html")]


def numbers(text):
    return [float(number) for number in re.findall(r"[-+]\d+\.\d+", text)]


def outcomes_of(accuracies, tmp_path):
    """As of runs with these accuracies by smoothing, one for each seed; None: it failed."""
    outcomes = []
    for smoothing, shares in accuracies.items():
        for seed, share in enumerate(shares):
            run = RunDir(tmp_path / f"{smoothing} {seed}")
            run.path.mkdir()
            run.history.add({"epoch": 1, "val_accuracy": share or 0.0})
            trial = Trial({"smoothing": smoothing}, Recipe(smoothing=smoothing, seed=seed))
            outcomes.append(Outcome(trial, run, 0 if share else 3, "" if share else "nan"))
    return outcomes


def test_the_table_pairs_by_seed_and_counts_failures(tmp_path):
    accuracies = {0.0: [0.5, 0.6, 0.8, None], 0.1: [0.55, 0.7, None, 0.9], 0.2: [None, None, 0.9, 0.4]}
    _, _, first, second, third = table(outcomes_of(accuracies, tmp_path))
    assert first == f"smoothing=0     63.33 ± {stdev([50, 60, 80]):.2f} %  n = 3 (1 failed)"
    assert second.startswith(f"smoothing=0.1   71.67 ± {stdev([55, 70, 90]):.2f} %  n = 3 (1 failed)  +7.50 points")
    interval = stats.ttest_rel([55, 70], [50, 60]).confidence_interval(0.95)
    assert numbers(second) == pytest.approx([7.5, interval.low, interval.high], abs=0.01)
    assert second.endswith("n = 2)")
    assert third.endswith("n = 2 (2 failed)  +10.00 points (n = 1: no interval)")


def test_equal_differences_tell_no_interval(tmp_path):
    """As of few pictures, where one more or less is right; 0.7 - 0.6 is not 0.6 - 0.5 to a computer."""
    *_, second = table(outcomes_of({0.0: [0.5, 0.6, 0.7], 0.1: [0.6, 0.7, 0.8]}, tmp_path))
    assert second.endswith("n = 3  +10.00 points (n = 3, all equal: no interval)")


def folds_of(accuracies, tmp_path, seeds=(0,)):
    """As of runs with these accuracies by smoothing, one for each seed and fold; None: it failed."""
    outcomes, folds = [], len(next(iter(accuracies.values()))) // len(seeds)
    for smoothing, shares in accuracies.items():
        for share, (seed, fold) in zip(shares, product(seeds, range(1, folds + 1)), strict=True):
            recipe = Recipe(smoothing=smoothing, seed=seed, fold=f"{fold}/{folds}")
            trial = Trial({"smoothing": smoothing}, recipe)
            run = RunDir(tmp_path / trial.name)
            run.path.mkdir()
            run.history.add({"epoch": 1, "val_accuracy": share or 0.0})
            outcomes.append(Outcome(trial, run, 0 if share else 3, "" if share else "nan"))
    return outcomes


def test_the_table_over_folds_has_intervals_and_names_what_is_missing(tmp_path):
    one, other = [0.5, 0.6, 0.8, 0.7], [0.55, None, 0.9, 0.7]
    says, _, first, second = table(folds_of({0.0: one, 0.1: other}, tmp_path))
    assert "over n folds" in says
    half = 3.182 * stdev([50, 60, 80, 70]) * (1 / 4 + 1 / 3) ** 0.5
    assert first == f"smoothing=0     65.00 ± {half:.2f} %  n = 4"
    half = stats.t.ppf(0.975, 2) * stdev([5, 10, 0]) * (1 / 3 + 1 / 3) ** 0.5  # of three pairs, in four folds
    assert numbers(second)[-3:] == pytest.approx([5, 5 - half, 5 + half], abs=0.01)
    assert "n = 3 (without seed=0,fold=2of4)" in second


def test_seeds_and_folds_are_paired_both(tmp_path):
    """Each seed cuts other folds, so that the first fold of one is not that of the other."""
    one, other = [0.5, 0.6, 0.7, 0.8], [0.6, 0.6, None, 0.6]
    *_, second = table(folds_of({0.0: one, 0.1: other}, tmp_path, seeds=(3, 4)))
    half = stats.t.ppf(0.975, 2) * stdev([10, 0, -20]) * (1 / 3 + 1 / 1) ** 0.5
    assert numbers(second)[-3:] == pytest.approx([-10 / 3, -10 / 3 - half, -10 / 3 + half], abs=0.01)
    assert "(without seed=4,fold=1of2)" in second


def test_the_plan_of_folds():
    trials = plan({"data": "birds"}, [("smoothing", [0.0, 0.1])], [1, 0], 2)
    assert [(t.recipe.seed, t.recipe.fold, t.recipe.smoothing) for t in trials] == [
        (seed, fold, smoothing) for seed in (1, 0) for fold in ("1/2", "2/2") for smoothing in (0.0, 0.1)
    ]
    assert trials[1].name == "smoothing=0.1,seed=1,fold=1of2"
    assert [t.name for t in plan({"data": "birds"}, [], None, 3)] == [f"seed=0,fold={k}of3" for k in (1, 2, 3)]
    assert [t.name for t in plan({"data": "x", "fold": "2/5"}, [("lr", [0.1])], None)] == ["lr=0.1,seed=0,fold=2of5"]


def test_one_seed_has_neither_deviation_nor_interval(tmp_path):
    *_, first, second = table(outcomes_of({0.0: [0.5], 0.1: [0.75]}, tmp_path))
    assert first.split() == ["smoothing=0", "50.00", "%", "n", "=", "1"]
    assert second.endswith("n = 1  +25.00 points (n = 1: no interval)")
