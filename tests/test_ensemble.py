"""Several runs as one: predict and eval with --run A --run B."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY
from sklearn import metrics
from test_ablation import contents
from test_train import TinyNetwork

import plumage.engine.prepare
import plumage.inference.predict
from plumage import load
from plumage.data.split import read_split
from plumage.inference.ensemble import measure
from plumage.rundir.folder import RunDir


@pytest.fixture
def runs(monkeypatch, cli, photos, tmp_path):
    """Three runs that prepare pictures in three ways, and do not agree; two have the same split."""
    for module in (plumage.engine.prepare, plumage.models.weights):
        monkeypatch.setattr(module, "build_model", TinyNetwork)
    command = ["train", "--data", photos, *TINY, "--epochs", "1", "--lr", "0.02", "--smoothing", "0.1", "--run"]
    ways = {"a": [], "b": ["--resize", "40", "--fit", "crop"], "c": ["--batch-size", "4", "--seed", "1"]}
    for name, options in ways.items():
        code, _, err = cli(*command, tmp_path / name, *options)
        assert code == 0, err
    return [tmp_path / name for name in ways]


def given(runs):
    return [part for run in runs for part in ("--run", run)]


def probabilities_of(out, classes):
    rows = list(csv.DictReader(io.StringIO(out)))
    return np.array([[float(row[name]) for name in classes] for row in rows]), rows


def alone(run, files):
    """What each network says by itself, through Python."""
    predictions = load(run, device="cpu")(files)
    return [each.probabilities for each in predictions]


def test_probabilities_are_averaged_by_class_name(cli, runs, photos):
    classes = RunDir(runs[0]).classes
    files = sorted(map(str, photos.rglob("*.jpg")))
    code, out, err = cli("predict", photos, *given(runs), "--probabilities", "--device", "cpu")
    assert code == 0
    averaged, rows = probabilities_of(out, classes)
    assert [row["path"] for row in rows] == files
    each = [alone(run, files) for run in runs]
    by_hand = np.mean([[[one[name] for name in classes] for one in of] for of in each], axis=0)
    assert averaged == pytest.approx(by_hand, rel=1e-5, abs=1e-6)
    assert [row["label"] for row in rows] == [classes[k] for k in by_hand.argmax(1)]
    assert f"the probabilities of 3 runs are averaged: {runs[0]}, {runs[1]}, {runs[2]}" in err.splitlines()
    # A run that is given twice counts once, and one alone is what it was.
    assert cli("predict", photos, *given([*runs, runs[0]]), "--probabilities", "--device", "cpu")[1] == out
    one = cli("predict", photos, *given([runs[1]]), "--device", "cpu")
    assert cli("predict", photos, *given([runs[1], runs[1]]), "--device", "cpu")[:2] == one[:2]


def test_calibration_is_each_runs_own_and_classes_may_be_in_any_order(cli, runs, photos):
    for run, temperature in zip(runs, (0.5, 2.0, None), strict=True):
        if temperature:
            assert cli("eval", "--run", run, "--calibrate", "--device", "cpu")[0] in (0, 2)
            weights = json.loads((run / "eval-val.json").read_text())["weights"]
            (run / "calibration.json").write_text(json.dumps({"temperature": temperature, "weights": weights}))
    files, classes = sorted(map(str, photos.rglob("*.jpg"))), RunDir(runs[0]).classes
    # What the second calls the first class is its last: as if it had been trained with names in another order.
    (runs[1] / "classes.json").write_text(json.dumps(classes[::-1]))
    best = RunDir(runs[1]).best
    torch.save({**torch.load(best), "classes": classes[::-1]}, best)
    each = [alone(run, files) for run in runs]
    by_hand = np.mean([[[one[name] for name in classes] for one in of] for of in each], axis=0)
    out = cli("predict", photos, *given(runs), "--probabilities", "--device", "cpu")[1]
    assert probabilities_of(out, classes)[0] == pytest.approx(by_hand, rel=1e-5, abs=1e-6)
    plain = cli("predict", photos, *given(runs), "--probabilities", "--no-calibration", "--device", "cpu")[1]
    assert probabilities_of(plain, classes)[0] != pytest.approx(by_hand, rel=1e-2)


def test_pictures_are_read_once_for_runs_that_prepare_them_alike(cli, runs, photos, monkeypatch, tmp_path):
    shutil.copytree(runs[0], tmp_path / "d")
    read, calls = plumage.inference.predict.read_picture, []
    monkeypatch.setattr(
        plumage.inference.predict, "read_picture", lambda *one, **how: calls.append(one) or read(*one, **how)
    )
    assert cli("predict", photos, *given([runs[0], tmp_path / "d"]), "--device", "cpu")[0] == 0
    assert len(calls) == 30
    assert cli("predict", photos, *given(runs), "--device", "cpu")[0] == 0
    assert len(calls) == 30 + 90


def test_what_one_cannot_read_has_no_label(cli, runs, photos):
    (photos / "broken.jpg").write_bytes(b"no picture")
    code, out, err = cli("predict", photos, *given(runs), "--device", "cpu")
    assert code == 2
    assert len(out.splitlines()) == 1 + 31
    assert f"{photos / 'broken.jpg'},," in out
    assert "1 of 31 pictures cannot be read" in err


def test_eval_is_of_the_average_on_the_first_ones_pictures_and_keeps_nothing(cli, runs, photos, tmp_path):
    before = contents(tmp_path / "a") | contents(tmp_path / "b") | contents(tmp_path / "c")
    code, out, err = cli("eval", *given(runs), "--device", "cpu", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert contents(tmp_path / "a") | contents(tmp_path / "b") | contents(tmp_path / "c") == before
    assert list(result)[:3] == ["runs", "split", "n"]
    assert (result["runs"], result["split"], result["n"]) == ([str(run) for run in runs], "val", 6)

    classes = RunDir(runs[0]).classes
    samples = read_split(runs[0] / "split.csv", photos, classes)
    rows = np.flatnonzero(samples.split == "val")
    files, labels = [str(photos / samples.paths[row]) for row in rows], samples.labels[rows]
    each = [alone(run, files) for run in runs]
    mean = np.mean([[[one[name] for name in classes] for one in of] for of in each], axis=0)
    assert result["accuracy"] == metrics.accuracy_score(labels, mean.argmax(1))
    assert result["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, mean.argmax(1)))
    assert result["macro_f1"] == pytest.approx(metrics.f1_score(labels, mean.argmax(1), average="macro"))
    assert result["nll"] == pytest.approx(metrics.log_loss(labels, mean, labels=range(3)), rel=1e-6)
    target = np.full((6, 3), 0.05)
    target[np.arange(6), labels] = 0.9
    assert result["loss"] == pytest.approx(-(target * np.log(mean)).sum(1).mean(), rel=1e-6)

    # The first two have one split; the third has trained on some of these pictures.
    told = [line for line in err.splitlines() if "was trained on" in line]
    learnt = {path for path, side in RunDir(runs[2]).listed if side == "train"}
    count = sum(samples.paths[row] in learnt for row in rows)
    assert count
    assert [re.sub(": [^:]*$", "", line) for line in told] == [
        f"--split val: {runs[2]} was trained on {count} of these 6 val pictures, which flatters it"
    ]
    code, words, _ = cli("eval", *given(runs), "--device", "cpu")
    first, *lines = words.splitlines()
    assert first == f"the average of 3 runs, {runs[0]}, {runs[1]}, {runs[2]}, val, 6 pictures"
    assert f"accuracy           {result['accuracy']:.2%}".split() == lines[0].split()
    assert len(lines) == 6


def test_eval_on_other_pictures_and_splits(cli, runs, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "others")
    for picture in list((tmp_path / "others").rglob("[3-9].jpg")):
        picture.unlink()
    code, out, err = cli("eval", *given(runs), "--data", tmp_path / "others", "--json", "--device", "cpu")
    assert code == 0, err
    assert (json.loads(out)["split"], json.loads(out)["n"]) == ("all", 9)
    assert (
        len([line for line in err.splitlines() if "was trained on" in line]) == 3
    )  # known by pixels, each in its own square
    assert json.loads(cli("eval", *given(runs), "--split", "train", "--json", "--device", "cpu")[1])["n"] == 24
    code, _, err = cli("eval", *given(runs), "--split", "test", "--device", "cpu")
    assert (code, err.splitlines()[-1][:19]) == (2, "error: --split test")


def test_what_does_not_go_together_is_one_line(cli, runs, photos, tmp_path):
    (runs[1] / "classes.json").write_text(json.dumps([*RunDir(runs[0]).classes[:2], "pear"]))
    for command in (["eval"], ["predict", photos]):
        code, out, err = cli(*command, *given(runs[:2]), "--device", "cpu")
        assert (code, out) == (2, "")
        (line,) = err.splitlines()
        assert line.startswith(f"error: --run {runs[1]}: has not the classes of {runs[0]}: pear, red apple are of one")
        code, _, err = cli(*command, *given(runs[::2]), "--checkpoint", runs[0] / "checkpoints" / "best.pt")
        assert code == 2
        assert "--checkpoint" in err.splitlines()[-1]
        code, _, err = cli(*command, *given([runs[0], tmp_path / "nowhere"]))
        assert (code, "nowhere" in err.splitlines()[-1]) == (2, True)
    code, _, err = cli("eval", *given(runs[::2]), "--calibrate")
    assert (code, err.splitlines()[-1][:19]) == (2, "error: --calibrate:")


def test_measures_against_scikit_learn():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(9), 200)
    labels = rng.integers(0, 8, 200)  # the last class has no pictures
    found = measure(probabilities, labels, 0.0)
    assert found["top5"] == metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=range(9))
    assert found["balanced_accuracy"] == pytest.approx(found_recall(labels, probabilities.argmax(1)))
    assert found["loss"] == found["nll"] == pytest.approx(metrics.log_loss(labels, probabilities, labels=range(9)))
    sure = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert np.isfinite(measure(sure, np.array([0, 1]), 0.1)["nll"])


def test_of_equal_probabilities_the_first_are_the_top_five():
    """As argmax has the first of equals: a network that says nothing is not right about every picture."""
    found = measure(np.full((9, 9), 1 / 9), np.arange(9), 0.0)
    assert (found["accuracy"], found["top5"]) == (1 / 9, 5 / 9)
    one_ahead = np.array([[0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.4]] * 7)
    assert measure(one_ahead, np.arange(7), 0.0)["top5"] == 5 / 7  # the last, and the first four


def found_recall(labels, predictions):
    return metrics.recall_score(labels, predictions, labels=range(8), average="macro")
