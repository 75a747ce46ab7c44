"""ablate --folds: what the folds validated, put together as one evaluation."""

import csv
import json
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY
from sklearn import metrics
from test_ablation import contents, table_of
from test_evaluation import evaluation
from test_folds import into
from test_signals import signalling, stopped
from test_train import TinyNetwork

import plumage.ablation.folds
import plumage.ablation.train
from plumage.errors import Diverged, UserError
from plumage.inference.calibration import fitted_temperature
from plumage.report.page import write_report
from plumage.report.reading import read_run
from plumage.rundir.evaluation import PICTURES, read_evaluation
from plumage.rundir.folder import RunDir
from plumage.rundir.folds import joined, kept


@pytest.fixture
def command(monkeypatch, photos):
    for module in (plumage.engine.prepare, plumage.models.weights):
        monkeypatch.setattr(module, "build_model", TinyNetwork)
    return ["ablate", "--data", photos, *TINY, "--epochs", "1", "--lr", "0.01"]


def rows_of(file):
    with file.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def evaluation_of(run):
    return read_evaluation(run, len(run.classes), len(run.listed))


def check_joint(joint, folds):
    """Picture by picture it is what the folds said, and its numbers are those of all pictures."""
    found, said = evaluation_of(joint), {}
    paths = [path for path, _ in joint.listed]
    for fold in folds:
        each = evaluation_of(fold)
        divided = each.logits / np.float32(fitted_temperature(each.logits, each.labels) or 1.0)
        for row, logits, label, gap in zip(each.indices, divided, each.labels, each.gaps, strict=True):
            assert fold.listed[row][1] == "val"
            said[fold.listed[row][0]] = (fold.classes[label], logits, gap)
    assert [paths[row] for row in found.indices] == sorted(said)
    for row, logits, label, gap in zip(found.indices, found.logits, found.labels, found.gaps, strict=True):
        name, expected, expected_gap = said[paths[row]]
        assert (joint.classes[label], gap) == (name, expected_gap)
        assert np.array_equal(logits, expected)
    right = found.logits.argmax(1) == found.labels
    weights = [len(evaluation_of(fold).labels) for fold in folds]
    for name in ("accuracy", "top5", "loss", "nll", "logit_gap"):
        by_hand = np.average([getattr(evaluation_of(fold), name) for fold in folds], weights=weights)
        assert getattr(found, name) == pytest.approx(by_hand, rel=1e-6), name
    assert found.accuracy == right.mean() == metrics.accuracy_score(found.labels, found.logits.argmax(1))
    assert np.array_equal(found.bins, np.sum([evaluation_of(fold).bins for fold in folds], axis=0))
    assert found.ece == pytest.approx(np.abs(found.bins[2] - found.bins[1]).sum() / len(right), abs=1e-6)
    for name, shown in found.pictures.items():
        there = {}
        for fold in folds:
            each = evaluation_of(fold)
            for pixels, row, evidence in zip(*each.pictures[name], strict=True):
                there[fold.listed[each.indices[row]][0]] = pixels, evidence
        for pixels, row, evidence in zip(*shown, strict=True):
            pixels_there, evidence_there = there[paths[found.indices[row]]]
            assert np.array_equal(pixels_there, pixels)
            assert np.array_equal(evidence_there, evidence)
        assert len(shown.rows) == min(len(there), PICTURES[name])
    return found


def test_three_folds(command, cli, photos, tmp_path):
    folder = tmp_path / "a"
    code, out, err = cli(*command, "--folds", "3", "--run", folder)
    assert code == 0, err
    folds = [RunDir(folder / f"seed=0,fold={number}of3") for number in (1, 2, 3)]
    joint = RunDir(folder / "out-of-fold")
    found = check_joint(joint, folds)
    assert len(found.labels) == 30
    assert {row["split"] for row in rows_of(joint.split)} == {"val"}
    assert [row["path"] for row in rows_of(joint.split)] == [row["path"] for row in rows_of(folds[0].split)]
    names = [f"../seed=0,fold={number}of3" for number in (1, 2, 3)]
    assert json.loads((joint.path / "folds.json").read_text()) == {"runs": names, "missing": []}
    assert joint.folds == [run.path for run in folds]
    assert not (joint.path / "history.jsonl").exists()
    assert not (joint.path / "checkpoints").exists()
    assert (joint.recipe.fold, joint.recipe.smoothing) == ("none", folds[0].recipe.smoothing)

    *_, line, last = table_of(out)
    assert line.startswith("all  ")
    assert last == f"out of fold, all, seed 0: accuracy {found.accuracy:.2%} of 30 pictures, in {joint.path}"
    assert [row["fold"] for row in rows_of(folder / "ablation.csv")] == ["1", "2", "3"]

    # It reads like a run, and the same command finds nothing to do, without the pictures.
    run = read_run(joint.path)
    assert (run.folds, len(run.history), run.evaluation.accuracy) == (joint.folds, 0, found.accuracy)
    write_report([joint.path], joint.path / "report.html")
    assert f"{found.accuracy:.1%}" in (joint.path / "report.html").read_text()
    photos.rename(tmp_path / "gone")
    before = [contents(run.path) for run in folds]
    assert cli(*command, "--folds", "3", "--run", folder)[:2] == (0, "\n".join(table_of(out)) + "\n")
    assert [contents(run.path) for run in folds] == before
    check_joint(joint, folds)

    # Its labels, mended, are trained on: the split is drawn anew.
    (tmp_path / "gone").rename(photos)
    again = ["train", *command[1:], "--labels", joint.split, "--run"]
    assert cli(*again, tmp_path / "b")[0] == 0
    assert {row["split"] for row in rows_of(tmp_path / "b" / "split.csv")} == {"train", "val"}


def test_what_is_ranked_across_folds_is_on_one_scale():
    """Two networks say the same, one ten times as loud: the pictures that both are surest of come first."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    logits = (2 * rng.normal(size=(200, 3)) + 2 * np.eye(3)[labels]).astype(np.float32)
    rows, loud = np.arange(200), np.float32([1, 10])
    folds = []
    for number, factor in enumerate(loud):
        said = evaluation(labels, logits.argmax(1), 3, nll=float(factor))
        pictures = dict.fromkeys(PICTURES, said.pictures["samples"])
        folds.append(replace(said, logits=factor * logits, indices=2 * rows + number, pictures=pictures))
    temperatures = [fitted_temperature(fold.logits, fold.labels) for fold in folds]
    assert temperatures[1] == pytest.approx(10 * temperatures[0], rel=1e-3)
    together = joined(folds, temperatures)
    assert together.logits[::2] == pytest.approx(together.logits[1::2], rel=1e-3)
    assert together.nll == 5.5  # the folds' own
    assert together.bins.tolist() == (folds[0].bins + folds[1].bins).tolist()
    assert fitted_temperature(together.logits, together.labels) == pytest.approx(1, rel=1e-3)


def test_combinations_and_seeds_have_one_each_and_what_tests_stays_apart(command, cli, photos, tmp_path):
    into(photos, train="0123", val="4567", test="89")
    options = ["--folds", "2", "--vary", "smoothing=0,0.1", "--seeds", "0,1", "--report", "--run", tmp_path / "a"]
    code, out, err = cli(*command, *options)
    assert code == 0, err
    names = [f"smoothing={smoothing},seed={seed}" for seed in (0, 1) for smoothing in ("0", "0.1")]
    for name in names:
        joint = RunDir(tmp_path / "a" / f"out-of-fold,{name}")
        check_joint(joint, [RunDir(tmp_path / "a" / f"{name},fold={number}of2") for number in (1, 2)])
        sides = [row["split"] for row in rows_of(joint.split)]
        assert (sides.count("val"), sides.count("test")) == (24, 6)
        assert (joint.path / "report.html").exists()
    assert len(list((tmp_path / "a").glob("out-of-fold*"))) == 4
    assert [line.split(":")[0] for line in out.splitlines()[-5:-1]] == [
        f"out of fold, {name.replace(',seed=', ', seed ')}" for name in names
    ]
    # Mended, its labels leave what tests where it is.
    labels = tmp_path / "a" / f"out-of-fold,{names[0]}" / "split.csv"
    assert cli("train", *command[1:], "--labels", labels, "--run", tmp_path / "b")[0] == 0
    sides = [row["split"] for row in rows_of(tmp_path / "b" / "split.csv")]
    assert sides.count("test") == 6
    assert sides.count("val") == 6


def test_of_folds_that_failed_the_others_are_put_together(command, cli, tmp_path, monkeypatch):
    train = plumage.ablation.train.train

    def failing(recipe, *others, **options):
        if recipe.fold == "2/3":
            raise Diverged("the loss is nan")
        return train(recipe, *others, **options)

    monkeypatch.setattr(plumage.ablation.train, "train", failing)
    options = ["--folds", "3", "--run", tmp_path / "a"]
    code, out, err = cli(*command, *options)
    assert code == 3
    joint, folds = (
        RunDir(tmp_path / "a" / "out-of-fold"),
        [RunDir(tmp_path / "a" / f"seed=0,fold={k}of3") for k in (1, 3)],
    )
    assert len(check_joint(joint, folds).labels) == 20
    assert len(joint.listed) == 30
    assert "n = 2 (without seed=0,fold=2of3)" in out
    assert "of 20 pictures, without seed=0,fold=2of3, in" in out
    assert json.loads((joint.path / "folds.json").read_text())["missing"] == ["seed=0,fold=2of3"]
    read_run(joint.path)

    # One that cannot be evaluated is missing too; then the same command makes up for all.
    monkeypatch.setattr(plumage.ablation.train, "train", train)
    (folds[1].path / "eval-val.json").unlink()
    evaluate = plumage.ablation.folds.evaluate

    def lacking(run, *others):
        if run.path == folds[1].path:
            raise UserError("its checkpoint is lost")
        return evaluate(run, *others)

    monkeypatch.setattr(plumage.ablation.folds, "evaluate", lacking)
    code, out, err = cli(*command, *options)
    assert code == 0
    assert f"{folds[1].path}: its fold is left out: its checkpoint is lost" in err.splitlines()
    assert "of 20 pictures, without seed=0,fold=3of3, in" in out
    monkeypatch.setattr(plumage.ablation.folds, "evaluate", evaluate)
    code, out, err = cli(*command, *options)
    assert code == 0, err
    assert "of 30 pictures, in" in out
    check_joint(joint, [RunDir(tmp_path / "a" / f"seed=0,fold={k}of3") for k in (1, 2, 3)])


def test_where_none_is_left_or_pictures_changed_in_between_it_is_a_line(command, cli, photos, tmp_path, monkeypatch):
    options = ["--folds", "2", "--run", tmp_path / "a"]
    assert cli(*command, *options)[0] == 0
    split = tmp_path / "a" / "seed=0,fold=2of2" / "split.csv"
    lines = split.read_text(encoding="utf-8").splitlines(keepends=True)
    split.write_text(
        "".join(lines).replace("red apple/0.jpg,red apple", "red apple/0.jpg,blaue Beere"), encoding="utf-8"
    )
    shutil.rmtree(tmp_path / "a" / "out-of-fold")
    code, _, err = cli(*command, *options)
    assert code == 0
    (line,) = [line for line in err.splitlines() if "is not put together" in line]
    assert "has other pictures or classes than" in line

    def failing(*_, **__):
        raise Diverged("the loss is nan")

    monkeypatch.setattr(plumage.ablation.train, "train", failing)
    code, out, err = cli(*command, "--folds", "2", "--run", tmp_path / "b")
    assert code == 3
    assert "n = 0 (without seed=0,fold=1of2, seed=0,fold=2of2)" in out
    assert "is not put together: none of its folds was evaluated" in err
    assert not (tmp_path / "b" / "out-of-fold").exists()


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (plumage.ablation.train, "train", 2),
        (plumage.ablation.folds, "evaluate", 2),
        (plumage.ablation.folds, "joined", 1),
    ],
    ids=["training", "evaluating", "putting together"],
)
def test_stopped_the_same_command_goes_on(command, cli, photos, tmp_path, monkeypatch, owner, name, call):
    code, whole, err = cli(*command, "--folds", "2", "--run", tmp_path / "whole")
    assert code == 0, err
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalling(getattr(owner, name), signal.SIGTERM, call))
        code, _, err = cli(*command, "--folds", "2")
    assert stopped(code, err, signal.SIGTERM)
    code, out, err = cli(*command, "--folds", "2")
    assert code == 0, err
    folder = tmp_path / "runs" / f"ablation-{photos.name}-1"
    assert table_of(out)[:-1] == table_of(whole)[:-1]
    assert len(list((tmp_path / "runs").iterdir())) == 1
    found, expected = (evaluation_of(RunDir(each / "out-of-fold")) for each in (folder, tmp_path / "whole"))
    assert np.array_equal(found.logits, expected.logits)


def test_another_number_of_folds_is_another_ablation(command, cli, tmp_path):
    assert cli(*command, "--folds", "3", "--run", tmp_path / "a")[0] == 0
    before = contents(tmp_path / "a")
    for folds in ("2", "5"):
        code, out, err = cli(*command, "--folds", folds, "--run", tmp_path / "a")
        assert (code, out) == (2, "")
        assert "holds another ablation, with seed=0,fold=1of3;" in err.splitlines()[-1]
    code, _, err = cli(*command, "--vary", "smoothing=0,0.1", "--run", tmp_path / "a")
    assert code == 2
    assert contents(tmp_path / "a") == before


def test_an_evaluation_of_an_earlier_epoch_is_not_taken(command, cli, tmp_path):
    assert cli("train", *command[1:], "--run", tmp_path / "a")[0] == 0
    run = RunDir(tmp_path / "a")
    assert kept(run) is None
    assert cli("eval", "--run", run.path)[0] == 0
    assert kept(run).accuracy == run.history.best["val_accuracy"]
    about = json.loads((run.path / "eval-val.json").read_text())
    (run.path / "eval-val.json").write_text(json.dumps({**about, "iteration": about["iteration"] - 1}))
    assert kept(run) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "--run", "{}"],
        ["eval", "--run", "{}", "--calibrate"],
        ["eval", "--run", "a/seed=0,fold=1of2", "--run", "{}"],
        ["predict", "{photos}", "--run", "{}"],
        ["predict", "{photos}", "--run", "a/seed=0,fold=1of2", "--run", "{}"],
        ["export", "--run", "{}"],
        ["train", "{data}", "--weights", "{}"],
        ["train", "{data}", "--weights", "none", "--teacher", "{}"],
        ["train", "{data}", "--run", "{}"],
        ["train", "{data}", "--run", "{}", "--resume"],
    ],
)
def test_what_is_put_together_is_no_network_and_names_its_runs(command, cli, photos, tmp_path, arguments):
    folder = tmp_path / "a"
    assert cli(*command, "--folds", "2", "--run", folder)[0] == 0
    before = contents(folder)
    data = command[1:3]
    filled = [
        part
        for each in arguments
        for part in (data if each == "{data}" else [each.format(folder / "out-of-fold", photos=photos)])
    ]
    code, out, err = cli(*filled)
    assert (code, out) == (2, "")
    line = err.splitlines()[-1]
    assert line.startswith(f"error: {folder / 'out-of-fold'}: is what 2 runs validated")
    assert line.endswith(" ".join(f"--run '{folder / f'seed=0,fold={k}of2'}'" for k in (1, 2)))
    assert contents(folder) == before


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"runs": []}', '{"runs": [1]}', '{"runs": "a"}'])
def test_a_damaged_list_of_folds_is_named(tmp_path, content):
    (tmp_path / "folds.json").write_text(content)
    with pytest.raises(UserError, match=r"folds\.json"):
        _ = RunDir(tmp_path).folds


@pytest.mark.parametrize("missing", ['"a"', "[1]", "{}", "null"])
def test_a_damaged_list_of_missing_folds_is_named(tmp_path, missing):
    (tmp_path / "folds.json").write_text('{"runs": ["a"], "missing": ' + missing + "}")
    with pytest.raises(UserError, match=r"folds\.json is damaged: it needs missing, a list of texts"):
        _ = RunDir(tmp_path).missing_folds
    (tmp_path / "folds.json").write_text('{"runs": ["a"]}')
    assert RunDir(tmp_path).missing_folds == []
