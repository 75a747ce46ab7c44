"""What benchmarks/peers.py does itself: the folder, counting, going on, and the table. No peer is needed."""

import importlib
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

SOURCE = '''"""A docstring
of two lines."""

import one
from task import read_task  # benchmark


def main():
    """Another."""
    # a comment
    task = read_task()  # benchmark
    text = """not a
    docstring"""
    call(
        one,
    )
    call(
        task,
    )  # benchmark
    if text:  # benchmark
        pass  # benchmark
'''


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("peers")


@pytest.fixture
def outcome(peers):
    return importlib.import_module("outcome")


def rows(peer, epochs, accuracies, seconds):
    rest = {"lines": 7, "memory": 3 * 2**29}
    return [
        {"peer": peer, "epochs": epochs, "seed": seed, "accuracy": accuracy, "seconds": time, **rest}
        for seed, (accuracy, time) in enumerate(zip(accuracies, seconds, strict=True))
    ]


def test_lines_are_those_that_the_user_writes(outcome):
    # import, def, two of the text, three of the call
    assert outcome.code_lines(SOURCE) == 7


def test_each_script_has_lines_for_the_user_and_some_for_the_benchmark(peers, outcome):
    for peer in peers.PEERS.keys() - peers.COMMANDS:
        source = (peers.SCRIPTS / f"use_{peer}.py").read_text()
        assert 10 < outcome.code_lines(source) < outcome.code_lines(source.replace("# benchmark", "#"))
        assert "https://" in source.split('"""')[1]


def test_accuracy_is_counted_from_what_is_predicted_for_each_picture(tmp_path, peers):
    for path in ("val/a/0.jpg", "val/a/1.jpg", "val/b c/0.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    predictions, found = tmp_path / "predictions.json", {"a/0.jpg": "a", "a/1.jpg": "b c", "b c/0.png": "b c"}
    predictions.write_text(json.dumps(found))
    assert peers.accuracy_of(predictions, tmp_path / "val") == pytest.approx(2 / 3)
    predictions.write_text(json.dumps({"a/0.jpg": "a"}))
    with pytest.raises(AssertionError, match="each picture"):
        peers.accuracy_of(predictions, tmp_path / "val")


def test_all_get_the_same_folder_with_a_fifth_of_each_class_to_validate(tmp_path, peers):
    for name, pictures in {"a": 10, "b": 4, "alone": 1}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(pictures):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "photos" / name / f"{number}.PNG")
    Image.new("RGB", (4, 4)).save(tmp_path / "photos" / "a" / "not-for-all.webp")
    assert peers.make_folder(str(tmp_path / "photos"), tmp_path / "one") == [11, 3]
    assert peers.make_folder(str(tmp_path / "photos"), tmp_path / "other") == [11, 3]
    one, other = (
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in (tmp_path / "one", tmp_path / "other")
    )
    assert one == other
    assert Counter(path.rpartition("/")[0] for path in one) == {"train/a": 8, "val/a": 2, "train/b": 3, "val/b": 1}
    assert len({content for path, content in one.items() if "/a/" in path}) == 10
    assert peers.make_folder("birds:species=2,pictures=5", tmp_path / "birds") == [8, 2]


def test_the_same_command_goes_on_where_it_was_stopped(tmp_path, peers, monkeypatch):
    asked = []

    def measured(peer, task):
        asked.append((peer, task.epochs, task.seed))
        given = {"accuracy": 0.5, "seconds": 2.0, "memory": 2**30, "lines": 1, "log": []}
        return None if peer == "timm" else given

    monkeypatch.setattr(peers, "measured", measured)
    plan = [
        {"data": "photos", "pictures": [4, 1], "start": "scratch", "side": 32, "peer": peer, "epochs": 2, "seed": seed}
        for seed in (0, 1)
        for peer in ("plumage", "timm")
    ]
    task = peers.Task(tmp_path, None, 0, 0, 32, tmp_path)
    first = peers.rows_of(plan[:2], task, tmp_path / "raw.jsonl.gz")
    assert [row["peer"] for row in first] == ["plumage"]
    assert peers.rows_of(plan, task, tmp_path / "raw.jsonl.gz", minutes=0) == first
    assert peers.rows_of(plan, task, tmp_path / "raw.jsonl.gz")[0] == first[0]
    assert asked == [("plumage", 2, 0), ("timm", 2, 0), ("timm", 2, 0), ("plumage", 2, 1), ("timm", 2, 1)]


def test_a_script_is_timed_until_it_has_evaluated_and_its_predictions_are_counted(tmp_path, peers, monkeypatch):
    monkeypatch.setattr(peers, "SCRIPTS", tmp_path)
    monkeypatch.setattr(peers, "watch", lambda number, ended, peak: peak.append(number))
    for folder in ("data/val/a", "work"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data" / "val" / "a" / "0.jpg").touch()
    task = peers.Task(tmp_path / "data", None, 3, 5, 32, tmp_path / "work")
    script = [
        f"import sys; sys.path.insert(0, {str(Path(peers.__file__).with_name('peers'))!r})",
        "from task import Task, read_task",
        "task = read_task()",
        f"assert task == {task!r}".replace("PosixPath", "type(task.data)"),
        "task.begins(); print('epoch 1'); task.evaluated()",
        "task.predicted([task.data / 'val' / 'a' / '0.jpg'], ['a'])",
    ]
    (tmp_path / "use_timm.py").write_text("\n".join(script))
    row = peers.measured("timm", task)
    assert row["seconds"] > 0
    assert (row["accuracy"], row["log"], row["lines"]) == (1, ["epoch 1"], len(script))
    (tmp_path / "use_timm.py").write_text("raise SystemExit('no')")
    assert peers.measured("timm", task) is None


def test_the_table_has_means_with_their_intervals(outcome):
    # t of one degree is 12.706; the standard deviation of 0.8 and 0.9 is 0.0707, of the mean 0.05: 12.706 * 5 = 63.53
    cells = outcome.cells_of([*rows("fastai", 15, [0.8, 0.9], [100, 120]), *rows("fastai", 5, [0.5], [40])])
    lines = list(outcome.table(cells))
    assert lines[1:] == [
        "| fastai | 5 | 1 | 50.00 | 40 | 1.5 | 7 |",
        "| fastai | 15 | 2 | 85.00 ± 63.53 | 110 ± 127 | 1.5 | 7 |",
    ]


def test_within_each_time_the_best_of_either_side_stands_beside_the_other(outcome):
    measured = [
        *rows("plumage", 5, [0.80, 0.82], [100, 100]),
        *rows("plumage", 15, [0.93, 0.95], [250, 250]),
        *rows("fastai", 5, [0.70, 0.74], [150, 170]),
        *rows("timm", 5, [0.60, 0.62], [200, 200]),
        *rows("fastai", 15, [0.94, 0.94], [500, 500]),
        *rows("fastai", 20, [0.94, 0.94], [600, 600]),
    ]
    lines = list(outcome.duels(outcome.cells_of(measured)))
    # leads of 10 and 8 points are 9 on average, with 12.706 * 1.414 / sqrt(2) on either side; timm's is never the best
    assert lines[1:] == [
        "| 100 | plumage, 5 epochs: 81.00% | – |  |",
        "| 160 | plumage, 5 epochs: 81.00% | fastai, 5 epochs: 72.00% | +9.00 (-3.71 to +21.71) |",
        "| 250 | plumage, 15 epochs: 94.00% | fastai, 5 epochs: 72.00% | +22.00 (+9.29 to +34.71) |",
        "| 500 | plumage, 15 epochs: 94.00% | fastai, 15 epochs: 94.00% | +0.00 (-12.71 to +12.71) |",
    ]


@pytest.mark.parametrize(
    ("accuracy", "told"), [(0.8, "is reached by Plumage in 0.25 of its time."), (0.95, "is not reached by Plumage.")]
)
def test_in_which_part_of_the_best_peers_time_its_accuracy_is_reached(outcome, accuracy, told):
    measured = [*rows("plumage", 5, [0.8], [100]), *rows("plumage", 15, [0.9], [250]), *rows("timm", 5, [0.1], [9])]
    said = outcome.verdict(outcome.cells_of([*measured, *rows("fastai", 15, [accuracy], [400])]))
    assert said == f"The best of the others (fastai, 15 epochs: {accuracy:.2%}, 400 s) {told}"
    assert outcome.verdict(outcome.cells_of(measured[:1])) == "No peer was measured."


def test_epochs_are_of_one_peer_or_of_all(peers):
    assert peers.budget("fastai=5,20") == {"fastai": [5, 20]}
    assert peers.budget("3") == {peer: [3] for peer in peers.PEERS}
    with pytest.raises(Exception, match="keras is not among plumage"):
        peers.budget("keras=3")
