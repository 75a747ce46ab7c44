"""What benchmarks/studies.py compares, and benchmarks/trials.py trains and keeps."""

import csv
import gzip
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_photos

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = {"model": "resnet18", "weights": "none", "resize": 36, "crop": 32, "batch_size": 4, "lr": 0.01, "epochs": 1}


@pytest.fixture
def trials(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("trials")


@pytest.fixture
def studies(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("studies")


@pytest.fixture
def compared(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("compared")


@pytest.fixture
def folder(tmp_path):
    draw_photos(tmp_path / "photos")
    return tmp_path / "photos"


def read_labels(file):
    with file.open(newline="", encoding="utf-8") as handle:
        return {row["path"]: row for row in csv.DictReader(handle)}


def side(rows, name):
    return {path for path, row in rows.items() if row["split"] == name}


def test_more_pictures_to_train_keep_the_fewer_and_the_test_pictures(tmp_path, trials, folder):
    few, many, other = (tmp_path / f"{name}.csv" for name in ("few", "many", "other"))
    trials.write_labels(few, trials.Pictures(folder, 2, 4), 0)
    trials.write_labels(many, trials.Pictures(folder, 4, 4), 0)
    trials.write_labels(other, trials.Pictures(folder, 4, 4), 1)
    few, many, other = map(read_labels, (few, many, other))
    assert [len(side(few, name)) for name in ("train", "val", "test")] == [6, 6, 12]
    assert side(few, "test") == side(many, "test") != side(other, "test")
    assert side(few, "train") < side(many, "train")
    assert len(side(many, "train")) == 12


def test_wrong_labels_are_of_training_pictures_alone(tmp_path, trials, folder):
    trials.write_labels(tmp_path / "labels.csv", trials.Pictures(folder, 4, 4, wrong=0.5), 0)
    rows = read_labels(tmp_path / "labels.csv")
    wrong = {path for path, row in rows.items() if row["label"] != Path(path).parent.name}
    assert len(wrong) == 6  # half of 3 classes × 4
    assert wrong < side(rows, "train")


def test_trials_are_trained_once_and_kept(tmp_path, trials, folder):
    """Also one with a teacher; what a stop cut short in the file of results is trained again."""
    pictures, options = trials.Pictures(folder, 4, 4), TINY | {"smoothing": 0.1}
    plain, taught = (
        trials.Trial(pictures, each, 3) for each in (options, options | {"teacher": options, "temperature": 2.0})
    )
    file, work = tmp_path / "raw" / "study.jsonl.gz", tmp_path / "work"
    first = trials.results_of([plain, taught], file, work, 1)
    assert [len(row["history"]) for row in first] == [1, 1]
    assert first[0]["history"] != first[1]["history"]
    assert {"accuracy", "nll", "calibrated_nll", "ece", "calibrated_ece", "logit_gap", "aurc"} < first[0].keys()
    assert first[0]["n"] == 12
    assert first[1]["teacher"]["smoothing"] == 0.1
    assert str(tmp_path) not in gzip.decompress(file.read_bytes()).decode()
    assert not [path for path in work.iterdir() if path.name != "cache"]
    assert trials.results_of([taught, plain], file, work, 1) == first[::-1]  # nothing is trained: equal with seconds

    line = json.dumps(first[1]) + "\n"
    with gzip.open(file, "wt") as handle:
        handle.write(json.dumps(first[0]) + "\n" + line[:-20])
    assert trials.read_rows(file) == first[:1]
    again = trials.results_of([plain, taught], file, work, 1)
    assert again[0] == first[0]
    assert again[1]["nll"] == first[1]["nll"]
    assert trials.read_rows(file) == again


def test_a_cut_gzip_keeps_its_whole_lines(tmp_path, trials):
    file = tmp_path / "rows.jsonl.gz"
    rng = np.random.default_rng(0)
    rows = [{"x": rng.random(300).tolist()} for _ in range(3)]
    for row in rows:
        trials.add_row(file, row)
    os.truncate(file, file.stat().st_size - 500)
    assert trials.read_rows(file) == rows[:2]


def test_after_its_minutes_no_other_trial_is_begun(tmp_path, trials, folder):
    options = [TINY | {"smoothing": number / 10} for number in range(6)]
    made = [trials.Trial(trials.Pictures(folder, 4, 4), each, 0) for each in options]
    rows = trials.results_of(made, tmp_path / "rows.jsonl.gz", tmp_path / "work", 1, minutes=0)
    assert 0 < len([row for row in rows if row]) < len(made)


BESIDE = """
import multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
sys.path.insert(0, sys.argv[1])
from trials import take_core

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    own = spawn.Queue()
    own.put(None)
    with ProcessPoolExecutor(1, spawn, take_core, (own,)) as pool:
        pool.submit(os.getpid).result()
        os.kill(os.getpid(), 9)
"""


def test_a_worker_ends_with_the_process_that_gave_it_work(tmp_path):
    script = tmp_path / "beside.py"
    script.write_text(BESIDE)
    # The worker holds the pipes too: they end when the last of both has.
    ended = subprocess.run([sys.executable, script, BENCHMARKS], capture_output=True, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


def test_other_weights_or_another_preset_are_another_trial(tmp_path, trials, folder):
    """Also where their names are the same; a place that moved, and an option that was not known yet, are not."""
    row = trials.Trial(trials.Pictures(folder, 4, 4), TINY, 0).told
    moved = trials.Pictures(folder.rename(tmp_path / "elsewhere").rename(tmp_path / "photos"), 4, 4)
    assert trials.key_of(trials.Trial(moved, TINY, 0).told) == trials.key_of(row)
    older = {**row, "recipe": {name: value for name, value in row["recipe"].items() if name != "best"}}
    assert trials.key_of(older) == trials.key_of(row)
    keys = {trials.key_of(trials.Trial(moved, TINY, seed).told) for seed in (0, 1)}
    for content in (b"one", b"another"):
        (tmp_path / content.decode()).mkdir()
        file = tmp_path / content.decode() / "best.pt"
        file.write_bytes(content)
        keys.add(trials.key_of(trials.Trial(moved, TINY | {"weights": str(file)}, 0).told))
    assert len(keys) == 4


def compared_of(compared, accuracies):
    """Return what a setting gave, with these accuracies by level and seed."""
    row = {"nll": 1.0, "calibrated_nll": 0.5, "ece": 0.1, "calibrated_ece": 0.05, "logit_gap": 3.0, "aurc": 0.02}
    row |= {"classes": 11, "recipe": {"smoothing": 0.1}, "seconds": 7.4}
    levels = {
        level: {seed: row | {"accuracy": accuracy} for seed, accuracy in enumerate(each)}
        for level, each in accuracies.items()
    }
    return compared.Compared("5 epochs", levels)


def test_differences_are_seed_by_seed_with_their_interval(compared):
    accuracies = {"a": [0.5, 0.6, 0.7], "b": [0.51, 0.62, 0.73], "c": [0.5, 0.7, 0.9]}
    to_first = compared_of(compared, accuracies).differences("accuracy")
    half = 4.303 * 1.0 / 3**0.5  # of 1, 2 and 3 points, whose standard deviation is 1: Student's t of 2 degrees
    assert (to_first["b"].value, to_first["b"].low, to_first["b"].high) == pytest.approx((2, 2 - half, 2 + half))
    assert to_first["c"].value == pytest.approx(10)
    assert to_first.keys() == {"b", "c"}


def test_the_table_and_the_figure(tmp_path, compared):
    found = [compared_of(compared, {"a": [0.5, 0.6, 0.7], "b": [0.51, 0.62, 0.73]})]
    *_, first, second = compared.table(found)
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells[:5] == ["5 epochs", "a", "3", "60.00 ± 24.84", ""]  # 4.303 × 10 / √3
    assert "3.00 (4.50)" in cells  # log(10 × 0.9 / 0.1)
    assert cells[-1] == "7"
    assert "+2.00 (-0.48 to +4.48)" in second
    compared.draw(found, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.parametrize(("levels", "rows"), [(3, ["5 epochs"]), (8, list("bcdefgh"))])
def test_the_figure_has_a_row_for_each_of_many_levels(tmp_path, compared, monkeypatch, levels, rows):
    drawn, new_axes = [], compared.new_axes
    monkeypatch.setattr(compared, "new_axes", lambda *args: drawn.append(new_axes(*args)) or drawn[-1])
    accuracies = {name: [0.5, 0.6 + number / 100] for number, name in enumerate("abcdefgh"[:levels])}
    compared.draw([compared_of(compared, accuracies)], tmp_path / "figure.png")
    ((_, axes),) = drawn
    assert [label.get_text() for label in axes.get_yticklabels()] == rows


def test_one_seed_has_no_interval(tmp_path, compared):
    found = [compared_of(compared, {"a": [0.5], "b": [0.6]})]
    *_, second = compared.table(found)
    assert "| +10.00 |" in second
    assert "inf" not in second
    compared.draw(found, tmp_path / "figure.png")


@pytest.mark.parametrize(
    ("name", "fine_tuning"),
    [
        *((name, True) for name in ("smoothing", "smoothing-rate", "schedule", "rate", "strong")),
        *((name, False) for name in ("smoothing", "smoothing-rate", "paper", "demo")),
    ],
)
def test_each_study_asks_for_recipes_that_there_are(tmp_path, studies, trials, name, fine_tuning):
    """And no two levels of a setting train the same."""
    study = studies.STUDIES[name]
    weights = Path("imagenet") if fine_tuning else None
    start = studies.start_of(study, weights) | {"epochs": 15, "resize": 36, "crop": 32}
    assert study.weights in (None, fine_tuning)
    birds = trials.Pictures(tmp_path / "birds", 6, 24)
    settings = list(study.settings(studies.Begin(start, birds, tmp_path / "photos")))
    for setting in settings:
        options = [setting.options | own for own in setting.levels.values()]
        made = [trials.Trial(setting.pictures, each, 0) for each in options]
        assert len({trials.key_of(trial.told) for trial in made}) == len(setting.levels)
    assert len({setting.title for setting in settings}) == len(settings)


def test_the_demos_table(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    demo = importlib.import_module("demo")
    about = {"gpu": None, "threads": 2, "cpu": "some", "python": "3.11", "packages": {}, "git_commit": "0123456789"}
    about |= {"platform": "here", "precision": "bf16"}
    accuracies = {0: [0.5, 0.9, 0.8], 1: [0.1, 0.2, 0.96]}
    rows = [
        {
            "seed": seed,
            "seconds": 100.0 + seed,
            "environment": about,
            "history": [{"val_accuracy": value, "seconds": 10.0} for value in values],
        }
        for seed, values in accuracies.items()
    ]
    lines = list(demo.text(rows, ["--epochs", "3"]))
    assert "| 0 | 90.00 | 100 | 30 | 3 |" in lines
    assert lines[-1] == "| all, n = 2 | 93.00 ± 4.24 | 100 ± 1 | 30 ± 0 | |"  # 6 / √2
    assert any("--smoothing 0.1 --seed S --epochs 3" in line for line in lines)
