"""The real commands, end to end."""

import csv
import json
import os
import shutil
import signal
import sys
import urllib.request

import numpy as np
import pytest
import torch
from conftest import CLIPART, TINY
from PIL import Image
from sklearn import metrics
from test_train import TinyNetwork

import plumage.engine.prepare
from plumage.rundir.evaluation import Evaluation
from plumage.rundir.folder import RunDir

FILES = {
    ".lock",
    "calibration.json",
    "recipe.json",
    "environment.json",
    "classes.json",
    "split.csv",
    "digests.npz",
    "history.jsonl",
    "skipped.csv",
    "suspects.csv",
    "suspects.npz",
    "checkpoints",
    "eval-val.json",
    "eval-val.npz",
    "eval-val-classes.csv",
    "eval-val-confusion.csv",
    "figures",
    "report.html",
}


def test_train_then_eval_as_a_newcomer_types_them(start, photos, tmp_path):
    train = start("train", "--data", photos, *TINY, "--zero-gamma", "--epochs", "5", "--smoothing", "0.1", "--report")
    out, err = train.communicate()
    assert train.returncode == 0, err
    run = tmp_path / "runs" / f"{photos.name}-1"
    assert out.count("epoch ") == 6  # five lines that stay, and the best
    assert "preset finetune" in err
    assert "24 training and 6 validation pictures" in err
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    best = max(history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert best["val_accuracy"] > 0.6

    evaluation = start("eval", "--json")
    out, err = evaluation.communicate()
    assert evaluation.returncode == 0, err
    assert json.loads(out) == {
        "split": "val",
        "n": 6,
        **{name: best[f"val_{name}"] for name in ("accuracy", "top5", "balanced_accuracy", "macro_f1", "loss", "nll")},
        "never_right": sum(row["recall"] == "0.0" for row in csv.DictReader((run / "eval-val-classes.csv").open())),
        "always_guessing": 1 / 3,
    }
    assert {path.name for path in run.iterdir()} == FILES
    assert json.loads((run / "classes.json").read_text()) == sorted(path.name for path in photos.iterdir())
    for name in ("best", "last"):
        content = torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)
        assert content["model"]["fc.weight"].shape == (3, 512)
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert environment["precision"] == "fp32"


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    return tmp_path_factory.mktemp("template")


@pytest.fixture
def trained(template, photos, cli, tmp_path):
    """A finished run of two epochs, trained once and copied for each test."""
    run = tmp_path / "runs" / f"{photos.name}-1"
    if not (template / "runs").exists():
        code, _, err = cli("train", "--data", photos, *TINY, "--epochs", "2")
        assert code == 0, err
        shutil.copytree(tmp_path / "runs", template / "runs")
    else:
        shutil.copytree(template / "runs", tmp_path / "runs")
        recipe = json.loads((run / "recipe.json").read_text())
        (run / "recipe.json").write_text(json.dumps({**recipe, "data": str(photos)}))
    return run


def test_evaluation_of_the_splits(trained, cli):
    values = {}
    for split in ("val", "train", "all"):
        code, out, _ = cli("eval", "--split", split, "--json")
        assert code == 0
        values[split] = json.loads(out)
        arrays = np.load(trained / f"eval-{split}.npz")
        assert arrays["logits"].shape == (values[split]["n"], 3)
        assert np.mean(arrays["logits"].argmax(1) == arrays["labels"]) == pytest.approx(values[split]["accuracy"])
    assert [values[split]["n"] for split in ("val", "train", "all")] == [6, 24, 30]
    right = {split: value["accuracy"] * value["n"] for split, value in values.items()}
    assert right["all"] == pytest.approx(right["val"] + right["train"])
    lines = (trained / "split.csv").read_text().splitlines()[1:]
    val = np.load(trained / "eval-val.npz")
    assert val["indices"].tolist() == [row for row, line in enumerate(lines) if line.endswith(",val")]


def test_evaluation_in_words(trained, cli):
    code, out, _ = cli("eval", "--run", trained)
    assert code == 0
    words = ["accuracy", "top5", "balanced", "macro", "loss", "nll", "never", "always"]
    assert [line.split()[0] for line in out.splitlines()[1:]] == words
    assert out.splitlines()[-1] == "  always guessing the most frequent class, blaue Beere, would give 33.33%"
    arrays = np.load(trained / "eval-val.npz")
    labels, predicted = arrays["labels"], arrays["logits"].argmax(1)
    about = json.loads((trained / "eval-val.json").read_text())
    assert about["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert about["macro_f1"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))


def test_train_ends_with_the_best_epoch_by_what_it_was_chosen_which_a_resume_cannot_change(
    cli, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(plumage.engine.prepare, "build_model", TinyNetwork)
    train = ["train", "--data", photos, *TINY, "--epochs", "2", "--run", tmp_path / "run", "--resume"]
    code, out, _ = cli(*train, "--best", "balanced-accuracy")
    best = RunDir(tmp_path / "run").history.best
    numbers = f"validation accuracy {best['val_accuracy']:.2%}, balanced accuracy {best['val_balanced_accuracy']:.2%}"
    assert (code, out.splitlines()[-1]) == (0, f"best epoch {best['epoch']}: {numbers}, in {tmp_path / 'run'}")
    code, _, err = cli(*train, "--best", "loss")
    assert code == 2
    assert "--best loss (was balanced-accuracy)" in err


def test_another_folder_is_matched_by_class_name(trained, cli, photos, tmp_path):
    other = tmp_path / "others"
    shutil.copytree(photos / "red apple", other / "red apple")
    code, out, _ = cli("eval", "--data", other, "--json")
    assert code == 0
    result = json.loads(out)
    assert (result["split"], result["n"]) == ("all", 10)
    assert set(np.load(trained / "eval-others-all.npz")["labels"]) == {2}
    shutil.copytree(photos / "red apple", other / "pear")
    code, _, err = cli("eval", "--data", other)
    assert code == 2
    assert "not trained on pear" in err


def test_pictures_that_were_moved_are_evaluated_in_their_new_place(trained, cli, photos, tmp_path):
    _, before, _ = cli("eval", "--json")
    photos.rename(tmp_path / "moved")
    for command in (["eval"], ["eval", "--calibrate"], ["export", "--format", "safetensors"]):
        code, _, err = cli(*command)
        assert code == 2
        assert one_line(err)
        assert "if they have moved, train --resume --data NEW or eval --data NEW finds them, and remembers where" in err
    assert cli("eval", "--data", tmp_path / "moved", "--json")[:2] == (0, before)
    assert not list(trained.glob("eval-moved*"))
    for command in (["export", "--format", "safetensors"], ["report"]):
        code, _, err = cli(*command)
        assert code == 0, err
    assert "  temperature " in cli("eval", "--calibrate")[1]
    assert cli("eval", "--json")[:2] == (0, before)


def test_a_copy_of_the_pictures_is_another_folder(trained, cli, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "copy")
    code, out, _ = cli("eval", "--data", tmp_path / "copy", "--json")
    assert (code, json.loads(out)["n"]) == (0, 30)
    assert (trained / "eval-copy-all.json").exists()
    assert RunDir(trained).recipe.data == str(photos)
    code, _, err = cli("eval", "--data", tmp_path / "copy", "--calibrate")
    assert (code, one_line(err)) == (2, True)


def test_another_data_set_in_a_folder_of_the_same_name_begins_another_run(trained, cli, photos, tmp_path):
    other = tmp_path / "xdg" / photos.name
    shutil.copytree(photos / "red apple", other / "pear")
    shutil.copytree(photos / "blaue Beere", other / "plum")
    shutil.rmtree(photos)
    code, _, err = cli("train", "--data", other, *TINY, "--epochs", "1", "--resume")
    assert code == 0, err
    assert (tmp_path / "runs" / f"{photos.name}-2" / "history.jsonl").exists()


def test_moved_pictures_of_which_one_has_changed_are_another_data_set(trained, cli, photos, tmp_path):
    photos.rename(tmp_path / "moved")
    Image.new("RGB", (40, 50), "white").save(tmp_path / "moved" / "red apple" / "3.jpg")
    code, out, err = cli("eval", "--data", tmp_path / "moved", "--json")
    assert (code, json.loads(out)["n"]) == (0, 30)
    assert "red apple/3.jpg" in err
    assert "it is taken for another data set" in err


def test_a_finished_run_learns_where_its_pictures_have_moved(trained, cli, photos, tmp_path):
    _, before, _ = cli("eval", "--json")
    photos.rename(tmp_path / "moved")
    assert cli("train", "--resume", "--run", trained, "--data", tmp_path / "moved")[0] == 0
    assert cli("eval", "--json")[:2] == (0, before)
    (tmp_path / "moved").rename(tmp_path / "xdg" / "moved")  # and again, to a folder of the same name
    assert cli("train", "--resume", "--data", tmp_path / "xdg" / "moved")[0] == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [trained.name]
    assert RunDir(trained).recipe.data == str(tmp_path / "xdg" / "moved")


def test_files_added_later_do_not_change_the_run(trained, cli, photos):
    _, before, _ = cli("eval", "--json")
    shutil.copy(photos / "red apple" / "0.jpg", photos / "red apple" / "new.jpg")
    assert cli("eval", "--json")[1] == before


def test_a_folder_with_its_own_split_keeps_it(cli, photos, tmp_path):
    root = tmp_path / "own"
    for index, path in enumerate(sorted(photos.rglob("*.jpg"))):
        side = "train" if index % 3 else "valid"
        (root / side / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / side / path.parent.name)
    code, _, err = cli("train", "--data", root, *TINY, "--epochs", "1", "--no-cache", "--run", tmp_path / "r")
    assert code == 0, err
    with (tmp_path / "r" / "split.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["split"] == "train" for row in rows] == [row["path"].startswith("train/") for row in rows]
    assert sum(row["split"] == "val" for row in rows) == 10


FORMS = ("caf\u00e9", "cafe\u0301")  # composed and decomposed


def three_sides(photos, root, of_class):
    """Copy ``photos`` into train/, Valid/ and test_set/, eighteen, six and six; ``of_class``: a name on each side."""
    for index, path in enumerate(sorted(photos.rglob("*.jpg"))):
        side = ("train", "Valid", "test_set", "train", "train")[index % 5]
        name = of_class[side] if path.parent.name == "red apple" else path.parent.name
        (root / side / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / side / name / f"{name}{path.name}")


def test_a_third_split_is_kept_for_the_end_and_names_may_be_in_either_of_unicodes_forms(cli, photos, tmp_path):
    root, moved, run = tmp_path / "a" / f"my {FORMS[0]}", tmp_path / "b" / f"my {FORMS[1]}", tmp_path / "run"
    three_sides(photos, root, {"train": FORMS[0], "Valid": FORMS[1], "test_set": FORMS[1]})
    three_sides(photos, moved, {"train": FORMS[1], "Valid": FORMS[0], "test_set": FORMS[0]})
    moved.rename(tmp_path / "moved")
    training = [*TINY, "--epochs", "2", "--report"]
    code, _, err = cli("train", "--data", root, *training, "--run", run)
    assert code == 0, err
    assert "train/ trains, Valid/ validates, test_set/ is kept for eval --split test" in err
    assert "3 classes, 18 training and 6 validation pictures; eval --split test has 6 more" in err
    assert "eval --run" in (run / "report.html").read_text(encoding="utf-8")
    assert RunDir(run).classes == ["blaue Beere", FORMS[0], "green, sour"]
    with (run / "split.csv").open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    sides = {"train": "train", "Valid": "val", "test_set": "test"}
    assert [row["split"] for row in rows] == [sides[row["path"].partition("/")[0]] for row in rows]
    assert {row["label"] for row in rows} == set(RunDir(run).classes)

    results = {
        split: json.loads(cli("eval", "--run", run, "--split", split, "--json")[1])
        for split in (*sides.values(), "all")
    }
    assert {split: result["n"] for split, result in results.items()} == {"train": 18, "val": 6, "test": 6, "all": 30}
    with np.load(run / "eval-test.npz") as arrays:
        assert [rows[row]["split"] for row in arrays["indices"]] == ["test"] * 6
    assert json.loads((run / "eval-test.json").read_text())["accuracy"] == results["test"]["accuracy"]
    code, _, err = cli("report", "--force", run)
    assert code == 0, err
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "18 training, 6 validation and 6 test pictures" in " ".join(page.split())
    assert "<dt>test accuracy, n = 6</dt><dd>" + f"{results['test']['accuracy']:.2%}" in page
    code, out, err = cli("eval", "--run", run, "--data", tmp_path / "moved", "--split", "test", "--json")
    assert (code, json.loads(out)) == (0, results["test"])  # of a copy, whose names are in the other form

    shutil.rmtree(root / "test_set")
    assert cli("train", "--data", root, *training, "--run", tmp_path / "without")[0] == 0
    one, other = (torch.load(each / "checkpoints" / "best.pt")["model"] for each in (run, tmp_path / "without"))
    assert all(torch.equal(one[key], other[key]) for key in one)  # so that nothing was learnt from test_set/
    code, out, err = cli("eval", "--run", tmp_path / "without", "--split", "test")
    assert (code, out, one_line(err)) == (2, "", True)
    assert "--split test" in err


def test_pictures_that_came_to_a_system_with_another_form_of_names_are_those_of_the_run(cli, photos, tmp_path):
    root, moved = tmp_path / "a" / FORMS[0], tmp_path / "b" / FORMS[1]
    three_sides(photos, root, {"train": FORMS[0], "Valid": FORMS[1], "test_set": FORMS[1]})
    three_sides(photos, moved, {"train": FORMS[1], "Valid": FORMS[0], "test_set": FORMS[0]})
    command = ["train", *TINY, "--epochs", "1", "--resume", "--data"]
    assert cli(*command, root)[0] == 0
    (run,) = (RunDir(path) for path in (tmp_path / "runs").iterdir())
    before = cli("eval", "--split", "all", "--json")[1]
    shutil.rmtree(root)
    assert cli("eval")[0] == 2
    code, _, err = cli(*command, moved)
    assert code == 0, err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [run.path.name]  # which goes on
    assert run.recipe.data == str(moved)
    assert cli("eval", "--split", "all", "--json")[1] == before
    moved.rename(tmp_path / "c")
    code, out, err = cli("eval", "--data", tmp_path / "c", "--split", "all", "--json")
    assert (code, out) == (0, before), err
    assert "its pictures are in" in err


def rows_of(run):
    with (run / "split.csv").open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_labels_from_a_file_are_mended_in_a_runs_own_and_trained_on_again(cli, photos, tmp_path):
    flat, names = tmp_path / "flat", dict.fromkeys(range(30))
    flat.mkdir()
    for number, source in enumerate(sorted(photos.rglob("*.jpg"))):
        shutil.copy(source, flat / f"{number:02}.jpg")
        names[number] = source.parent.name
    with (tmp_path / "labels.csv").open("w", encoding="utf-8-sig", newline="") as handle:
        burst = [f"burst {number // 2}" for number in names]
        rows = [(f"{number:02}", name, burst[number]) for number, name in names.items()]
        csv.writer(handle, delimiter=";").writerows([("ID", "Species", "Group"), *rows])
    options = ["--data", flat, *TINY, "--epochs", "1"]
    code, _, err = cli("train", *options, "--labels", "labels.csv", "--run", "one")
    assert code == 0, err
    assert "3 classes, 24 training and 6 validation pictures" in err
    first = rows_of(tmp_path / "one")
    assert {(row["path"], row["label"], row["group"]) for row in first} == {
        (f"{number:02}.jpg", name, burst[number]) for number, name in names.items()
    }
    sides = {}
    for row in first:
        assert sides.setdefault(row["group"], row["split"]) == row["split"]

    (tmp_path / "labels.csv").unlink()  # nothing needs it any more
    assert cli("eval", "--run", "one")[0] == 0
    code, _, err = cli("eval", "--run", "one", "--data", flat)
    assert code == 0, err
    assert "one was trained on 24 of these 30 pictures, which flatters it" in err
    mended = (
        (tmp_path / "one" / "split.csv").read_text(encoding="utf-8").replace("05.jpg,blaue Beere", "05.jpg,red apple")
    )
    (tmp_path / "one" / "split.csv").write_text(mended, encoding="utf-8")
    code, _, err = cli("train", *options, "--labels", "one/split.csv", "--run", "two")
    assert code == 0, err
    again = rows_of(tmp_path / "two")
    assert [new for old, new in zip(first, again, strict=True) if new != old] == [{**first[5], "label": "red apple"}]
    assert (tmp_path / "two" / "classes.json").read_text() == (tmp_path / "one" / "classes.json").read_text()


def test_the_labels_of_a_run_that_goes_on_are_its_own(cli, photos, tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(f"{n},{'ab'[n % 2]}\n" for n in range(8)))
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(8):
        shutil.copy(photos / "red apple" / f"{number}.jpg", flat)
    command = ["train", "--data", flat, *TINY, "--epochs", "1", "--run", "r"]
    assert cli(*command, "--labels", "labels.csv")[0] == 0
    for file in (tmp_path / "r" / "checkpoints").iterdir():  # as if it had been killed before the first
        file.unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "labels.csv").rename(tmp_path / "elsewhere" / "labels.csv")
    for labels in ([], ["--labels", "labels.csv"], ["--labels", "elsewhere/labels.csv"]):
        code, _, err = cli(*command, *labels, "--resume")
        assert code == 0, err
        assert ("its labels are those in its split.csv, and --labels is not read again" in err) == bool(labels)
    code, _, err = cli(*command, "--labels", "others.csv", "--resume")
    assert (code, one_line(err)) == (2, True)
    assert "others.csv (was " in err


def test_groups_by_a_pattern_stay_together_and_are_written_down(cli, photos, tmp_path):
    for number, source in enumerate(sorted(photos.rglob("*.jpg"))):
        (patient := source.parent / f"patient{number // 2}").mkdir(exist_ok=True)
        source.rename(patient / source.name)
    command = ["train", "--data", photos, *TINY, "--epochs", "1"]
    code, _, err = cli(*command, "--group-by", r"/(patient\d+)/", "--run", "r")
    assert code == 0, err
    rows = rows_of(tmp_path / "r")
    assert all(f"/{row['group']}/" in row["path"] for row in rows)
    assert len({(row["group"], row["split"]) for row in rows}) == len({row["group"] for row in rows}) == 15
    code, _, err = cli(*command, "--group-by", r"/(person\d+)/", "--run", "s")
    assert (code, one_line(err)) == (2, True)
    assert not (tmp_path / "s").exists()


def test_one_photo_under_two_labels_is_named_before_training(cli, photos, tmp_path):
    shutil.copy(photos / "red apple" / "0.jpg", photos / "green, sour" / "same.jpg")
    code, _, err = cli("train", "--data", photos, *TINY, "--epochs", "1", "--run", "r")
    assert code == 0, err
    (line,) = [line for line in err.splitlines() if "contradictory labels" in line]
    assert line.endswith(": red apple/0.jpg = green, sour/same.jpg")
    assert "inflates accuracy" not in err


def test_unreadable_pictures_are_named_and_left_out_and_copies_warned_of(cli, photos, tmp_path):
    broken = photos / "red apple" / "broken, half.jpg"
    broken.write_bytes((photos / "red apple" / "0.jpg").read_bytes()[:300])
    for number in range(10, 30):
        shutil.copy(photos / "red apple" / "0.jpg", photos / "red apple" / f"{number}.jpg")
    code, _, err = cli("train", "--data", photos, *TINY, "--epochs", "1", "--run", tmp_path / "r")
    assert code == 0, err
    assert "1 of 51 pictures cannot be read" in err
    assert "21 pictures in 1 groups look nearly the same, and stay on one side of the split" in err
    assert (tmp_path / "r" / "skipped.csv").read_text().splitlines()[1].startswith('"red apple/broken, half.jpg",')
    assert "broken" not in (tmp_path / "r" / "split.csv").read_text()
    assert cli("eval", "--run", tmp_path / "r")[0] == 0
    parted = ["--epochs", "1", "--no-group-duplicates", "--run", tmp_path / "parted"]
    assert "pixel for pixel" in cli("train", "--data", photos, *TINY, *parted)[2]


def end(start, photos, run, number, *options):
    """Start a training, send it a signal when its second epoch is over, and return its exit code."""
    process = start("train", "--data", photos, *TINY, "--epochs", "6", "--run", run, *options)
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            process.send_signal(number)
    process.communicate()
    return process.returncode


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)],
    ids=lambda x: str(int(x)),
)
def test_a_run_that_was_ended_goes_on_to_the_same_weights(start, cli, photos, tmp_path, number, code):
    assert end(start, photos, tmp_path / "stopped", number) == code
    options = ["train", "--data", photos, *TINY, "--epochs", "6", "--resume"]
    assert cli(*options, "--run", tmp_path / "stopped")[0] == 0
    assert cli(*options, "--run", tmp_path / "whole", "--deterministic")[0] == 0  # which a CPU is anyway
    assert torch.are_deterministic_algorithms_enabled()
    assert json.loads((tmp_path / "whole" / "environment.json").read_text())["deterministic"]
    one, other = (torch.load(tmp_path / name / "checkpoints" / "last.pt")["model"] for name in ("stopped", "whole"))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_deterministic_on_a_gpu_a_run_that_was_ended_goes_on_to_the_same_bits(start, photos, tmp_path, precision):
    options = ["--epochs", "6", "--device", "cuda", "--precision", precision, "--deterministic", "--augment", "paper"]
    options += ["--mixup", "0.2", "--accumulate", "2", "--clip-grad-norm", "1", "--ema", "0.9"]
    assert end(start, photos, tmp_path / "stopped", signal.SIGTERM, *options) == 143
    for name in ("stopped", "whole"):
        process = start("train", "--data", photos, *TINY, *options, "--run", tmp_path / name, "--resume")
        _, err = process.communicate()
        assert process.returncode == 0, err
    one, other = (torch.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("stopped", "whole"))
    for part in ("model", "online"):
        assert all(torch.equal(one[part][key], other[part][key]) for key in one[part])
    momenta, others = (content["optimizer"]["state"] for content in (one, other))
    assert all(torch.equal(momenta[n]["momentum_buffer"], others[n]["momentum_buffer"]) for n in momenta)


def test_a_reader_that_goes_away_ends_no_training(start, photos, tmp_path):
    run = tmp_path / "run"
    process = start("train", "--data", photos, *TINY, "--epochs", "3", "--report", "--run", run)
    assert process.stdout.readline().startswith("epoch 1/3")
    process.stdout.close()  # as `| head -1` does
    process.stderr.close()
    assert process.wait() == 0
    assert len((run / "history.jsonl").read_text().splitlines()) == 3
    assert (run / "report.html").exists()


def test_the_home_folder_is_known_where_the_shell_does_not_put_it_in(cli, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    command = ["train", "--data=~/my phötos", *TINY, "--epochs", "1", "--run=~/run", "--cache=~/pictures"]
    assert cli(*command)[0] == 0
    assert RunDir(tmp_path / "run").holds_run
    assert (tmp_path / "pictures" / "stores").is_dir()
    assert cli("eval", "--run=~/run", "--checkpoint=~/run/checkpoints/last.pt", "--data=~/my phötos")[0] == 0


def test_divergence_ends_with_its_own_code_and_keeps_nothing_bad(cli, photos, tmp_path):
    options = [*TINY, "--lr", "1e30", "--epochs", "4"]
    code, _, err = cli("train", "--data", photos, *options, "--run", tmp_path / "r")
    assert code == 3
    assert err.splitlines()[-1].startswith("error: the loss is")
    assert not (tmp_path / "r" / "checkpoints" / "last.pt").exists()


def one_line(err):
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    return len(errors) == 1 and err.splitlines()[-1] == errors[0] and "Traceback" not in err


BAD_DATA = {
    "no such folder": (lambda root: None, "does not exist"),
    "no images": (lambda root: root.mkdir(), "no pictures"),
    "one class": (lambda root: picture(root / "a" / "1.png", root / "a" / "2.png"), "only one class"),
    "a class with one image": (
        lambda root: picture(*(root / "a" / f"{i}.png" for i in range(4)), root / "b" / "1.png"),
        "fewer than two pictures (one to train on, one to validate with) of b: add pictures, or leave such classes "
        "out, as train --min-pictures 2 does",
    ),
    "a class left with one image": (
        lambda root: (
            picture(*(root / "a" / f"{i}.png" for i in range(4)), root / "b" / "1.png"),
            text(root / "b" / "2.png"),
        ),
        "fewer than two readable pictures (one to train on, one to validate with) of b",
    ),
    "mostly unreadable": (
        lambda root: (
            picture(root / "a" / "1.png", root / "a" / "2.png", root / "b" / "1.png"),
            text(*(root / "b" / f"{i}.jpg" for i in range(5))),
        ),
        "5 of 8 pictures cannot be read",
    ),
    "a class left with none": (
        lambda root: (
            picture(*(root / "a" / f"{i}.png" for i in range(4))),
            text(*(root / "b" / f"{i}.png" for i in "12")),
        ),
        "no readable picture of b",
    ),
    "too little to validate": (
        lambda root: (
            picture(*(root / "train" / k / f"{i}.png" for i in range(3) for k in "ab")),
            text(root / "val" / "a" / "1.png"),
        ),
        "6 readable training and 0 validation pictures",
    ),
    "a name that is too long": (lambda root: None, "does not exist"),
}


def picture(*files):
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(file)


def text(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("no picture")


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_one_line_and_leaves_nothing_behind(cli, tmp_path, case):
    make, says = BAD_DATA[case]
    data = tmp_path / ("bad data" if "too long" not in case else "x" * 300)
    make(data)
    code, out, err = cli("train", "--data", data, *TINY, "--run", tmp_path / "r")
    assert (code, out) == (2, "")
    assert one_line(err)
    assert says in err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--smoothing", "1.0"], "--smoothing"),
        (["--smoothing", "-0.1"], "--smoothing"),
        (["--smoothing", "0.7"], "--smoothing"),  # with three classes at most 2/3
        (["--smoothing", "much"], "--smoothing"),
        (["--crop", "40", "--resize", "36"], "--crop"),
        (["--epochs", "0"], "--epochs"),
        (["--epochs", "-3"], "--epochs"),
        (["--batch-size", "0"], "--batch-size"),
        (["--batch-size", "-8"], "--batch-size"),
        (["--lr", "0"], "--lr"),
        (["--lr", "-0.1"], "--lr"),
        (["--lr", "fast"], "--lr"),
        (["--preset", "turbo"], "--preset"),
        (["--model", "vgg"], "--model"),
        (["--weights", "nowhere.pth"], "--weights"),
        (["--device", "tpu"], "--device"),
        (["--precision", "fp16"], "--precision"),
        (["--workers", "0"], "--workers"),
        (["--zero-gamma", "--weights", "imagenet"], "--zero-gamma"),
        (["--model", "resnet50d", "--weights", "imagenet"], "--weights"),
        (["--freeze-backbone-epochs", "1"], "--freeze-backbone-epochs"),
        (["--teacher", "nowhere"], "nowhere"),
        (["--data", "birds:species=few"], "--data"),
        (["--no-such-option"], "--no-such-option"),
        (["stray"], "stray"),
    ],
)
def test_a_bad_option_is_one_line_that_names_it(cli, photos, tmp_path, options, names):
    code, out, err = cli("train", "--data", photos, *TINY, *options, "--run", tmp_path / "r")
    assert (code, out) == (2, "")
    assert one_line(err)
    assert names in err
    assert not (tmp_path / "r").exists()


def test_a_batch_larger_than_the_training_set_takes_what_there_is(cli, photos, tmp_path):
    code, _, err = cli("train", "--data", photos, *TINY, "--batch-size", "64", "--epochs", "1", "--run", tmp_path / "r")
    assert code == 0
    assert "24 training pictures that there are" in err


def test_a_run_that_exists_is_not_touched(trained, cli, photos):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    code, _, err = cli("train", "--data", photos, *TINY, "--run", trained)
    assert code == 2
    assert one_line(err)
    assert "--resume" in err
    code, _, err = cli("train", "--data", photos, "--epochs", "9", "--resume", "--run", trained)
    assert code == 2
    assert "--epochs 9 (was 2)" in err
    assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("*")}


def test_resume_without_a_run_named_takes_the_newest_of_this_data(trained, cli, photos, tmp_path):
    code, _, err = cli("train", "--data", photos, "--resume")
    assert code == 0
    assert err.startswith(f"runs/{trained.name}: the newest run of ")
    assert "finished; nothing is left to do" in err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [trained.name]
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    assert trained / "report.html" in before  # which it had lacked
    photos.rename(tmp_path / "elsewhere")
    assert cli("train", "--data", photos, "--resume")[0] == 0
    assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}


def test_the_next_run_gets_the_next_number(trained, cli, photos, tmp_path):
    assert cli("train", "--data", photos, *TINY, "--epochs", "1")[0] == 0
    assert (tmp_path / "runs" / f"{photos.name}-2" / "history.jsonl").exists()


def test_without_a_network_the_ways_out_are_named_and_nothing_is_left(cli, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)  # which would remember the proxies beyond this test
    code, out, err = cli("train", "--data", photos, "--model", "resnet18", "--run", tmp_path / "r")
    assert (code, out) == (2, "")
    assert one_line(err)
    assert "--weights none" in err
    assert "--weights FILE" in err
    assert not (tmp_path / "r").exists()
    code, _, err = cli("train", "--data", tmp_path / "none")  # what is wrong here needs no network to be found
    assert (code, one_line(err)) == (2, True)
    assert "none: does not exist" in err
    assert not list((tmp_path / "runs").iterdir())


def test_weights_of_another_network_are_refused_and_nothing_is_left(cli, photos, tmp_path):
    torch.save({"model": {"conv1.weight": torch.zeros(64, 3, 7, 7)}}, tmp_path / "w.pt")
    code, _, err = cli("train", "--data", photos, *TINY, "--weights", tmp_path / "w.pt", "--run", tmp_path / "r")
    assert code == 2
    assert one_line(err)
    assert "w.pt" in err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("what", ["a checkpoint", "a run", "a bare state dict"])
def test_fine_tuning_from_weights(trained, cli, photos, tmp_path, what):
    best = trained / "checkpoints" / "best.pt"
    begun = torch.load(best)["model"]
    torch.save(begun, tmp_path / "bare.pth")
    weights = {"a checkpoint": best, "a run": trained, "a bare state dict": tmp_path / "bare.pth"}[what]
    options = [*TINY, "--weights", weights, "--lr", "1e-9", "--epochs", "1", "--run", tmp_path / "r"]
    code, _, err = cli("train", "--data", photos, *options)
    assert code == 0, err
    ended = torch.load(tmp_path / "r" / "checkpoints" / "last.pt")["model"]
    assert torch.allclose(begun["layer4.1.conv2.weight"], ended["layer4.1.conv2.weight"], atol=1e-6)
    same_classes = what != "a bare state dict"  # which does not name its classes
    assert torch.allclose(begun["fc.weight"], ended["fc.weight"], atol=1e-6) == same_classes
    assert ("taken over" if same_classes else "new, for 3 classes") in err


def test_learning_from_a_run(trained, cli, photos, tmp_path):
    options = [*TINY, "--teacher", trained, "--mixup", "0.2", "--ema", "0.5", "--epochs", "1", "--run", tmp_path / "r"]
    code, _, err = cli("train", "--data", photos, *options)
    assert code == 0, err
    code, out, _ = cli("eval", "--run", tmp_path / "r", "--json")
    assert code == 0
    row = json.loads((tmp_path / "r" / "history.jsonl").read_text())
    assert json.loads(out)["nll"] == row["val_nll"]


def test_a_run_directory_that_cannot_be_written(cli, photos, tmp_path):
    (tmp_path / "file").touch()
    for run, says in ((tmp_path / "file" / "run", "--run"), (tmp_path / ("x" * 300), "too long")):
        code, _, err = cli("train", "--data", photos, *TINY, "--run", run)
        assert code == 2
        assert one_line(err)
        assert says in err


def test_eval_without_a_run(cli, tmp_path):
    for options in ([], ["--run", tmp_path / "none"]):
        code, out, err = cli("eval", *options)
        assert (code, out) == (2, "")
        assert one_line(err)
        assert "run" in err


@pytest.mark.parametrize("content", ["text", "truncated", "classes", "head", "absent", "size"])
def test_a_checkpoint_that_does_not_fit(trained, cli, tmp_path, content):
    file, best = tmp_path / "c.pt", trained / "checkpoints" / "best.pt"
    if content == "text":
        file.write_text("no checkpoint")
    elif content == "truncated":
        file.write_bytes(best.read_bytes()[:100_000])
    elif content != "absent":
        saved = torch.load(best)
        if content == "classes":
            saved["classes"] = ["a", "b", "c", "d"]
        elif content == "size":
            saved["recipe"]["crop"] = 30
        else:
            saved = {**saved["model"], "fc.weight": torch.zeros(4, 512), "fc.bias": torch.zeros(4)}
        torch.save(saved, file)
    code, out, err = cli("eval", "--checkpoint", file)
    assert (code, out) == (2, "")
    assert one_line(err)
    assert "c.pt" in err


def test_of_a_run_that_cannot_be_written_to_the_numbers_are_told(trained, cli, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    expected = cli("eval", "--json")[1]
    monkeypatch.setattr(Evaluation, "save", refuse)
    code, out, err = cli("eval", "--json")
    assert (code, out) == (0, expected)
    assert "what was computed is not kept there: Permission denied" in err
    monkeypatch.setattr("plumage.report.page.written_whole", refuse)
    code, _, err = cli("report", "-o", tmp_path / "elsewhere.html")
    assert code == 0, err
    assert "no figures/ there: Permission denied" in err


def test_a_report_takes_no_other_files_place(trained, cli, tmp_path):
    before = (trained / "recipe.json").read_bytes()
    code, out, err = cli("report", "-o", trained / "recipe.json")
    assert (code, out) == (2, "")
    assert "--force" in err
    assert (trained / "recipe.json").read_bytes() == before
    for options in ((), (), ("-o", tmp_path / "r.html"), ("-o", tmp_path / "r.html", "--force")):
        assert cli("report", *options)[0] == 0


def test_a_checkpoint_elsewhere_and_a_bare_state_dict_do(trained, cli, tmp_path):
    _, expected, _ = cli("eval", "--json")
    best = trained / "checkpoints" / "best.pt"
    torch.save(torch.load(best)["model"], tmp_path / "bare.pth")
    shutil.copy(best, tmp_path / "copy.pt")
    for name in ("bare.pth", "copy.pt"):
        assert cli("eval", "--checkpoint", tmp_path / name, "--json")[:2] == (0, expected)


def test_a_picture_of_the_split_that_is_gone_is_named(trained, cli, photos):
    (photos / "red apple" / "3.jpg").unlink()
    code, _, err = cli("eval")
    assert code == 2
    assert "red apple/3.jpg" in err


def test_an_empty_split_is_named(trained, cli):
    split = trained / "split.csv"
    split.write_text(split.read_text().replace(",val", ",train"))
    code, _, err = cli("eval")
    assert code == 2
    assert one_line(err)
    assert "--split val" in err


def test_without_a_command_there_is_one_line(cli):
    code, _, err = cli()
    assert code == 2
    assert "--help" in err


@pytest.mark.parametrize("command", [[], ["train"], ["eval"], ["ablate"], ["report"], ["predict"], ["export"]])
def test_help_needs_no_torch(start, command):
    process = start(*command, "--help")
    assert "--help" in process.communicate()[0]
    imports = "import sys, main; sys.exit('torch' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", imports]) == 0


@pytest.mark.skipif(not CLIPART.is_dir(), reason="the clip art is not there")
def test_real_pictures_train(cli, tmp_path):
    options = ["--weights", "none", "--model", "resnet18", "--resize", "32", "--crop", "32", "--epochs", "1"]
    code, out, err = cli("train", "--data", CLIPART / "labelled", *options, "--run", tmp_path / "r")
    assert code == 0, err
    assert "16 classes" in err
    assert "epoch 1/1" in out
