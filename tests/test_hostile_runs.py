"""Hostile run directories: JSON, history and recipe; and names of classes and files that no format expects."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from conftest import TINY
from hostile import damaged, fuzzed, read_or_refused
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from plumage.data.sources import list_samples
from plumage.data.split import read_split
from plumage.data.store import read_skipped
from plumage.files import write_json
from plumage.hardware.device import choose_precision
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir

ROWS = [{"epoch": 1, "val_accuracy": 0.5, "seconds": 1.0}, {"epoch": 2, "val_accuracy": 0.75, "seconds": 1.0}]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Return the files of a sound run, content by name."""
    run = RunDir(tmp_path_factory.mktemp("run"))
    write_json(run.path / "recipe.json", Recipe.create({"data": "cub200"}).__dict__)
    write_json(run.path / "classes.json", ["a", "b"])
    write_json(run.path / "environment.json", {"precision": "fp32", "threads": 2})
    for row in ROWS:
        run.history.add(row)
    return {path.name: path.read_bytes() for path in run.path.iterdir()}


def check_run(path, files):
    """Read each of ``files`` in a run's folder: assert that it is refused by name, or that what it gives is sound."""
    run = RunDir(path)
    for name, content in files.items():
        (path / name).write_bytes(content)
    readers = {
        "recipe.json": lambda: run.recipe,
        "classes.json": lambda: run.classes,
        "history.jsonl": lambda: (run.history, run.history.best),
        "environment.json": lambda: choose_precision("auto", torch.device("cpu"), run.precision),
    }
    parsed = {name: read_or_refused(readers[name], path / name) for name in files}
    if recipe := parsed.get("recipe.json"):
        assert Recipe(**recipe.__dict__) == recipe
        assert run.is_of(recipe.data)
    if classes := parsed.get("classes.json"):
        assert all(isinstance(name, str) for name in classes)
        assert len(set(classes)) == len(classes)
    if history := parsed.get("history.jsonl"):
        assert [row["epoch"] for row in history[0]] == sorted(row["epoch"] for row in history[0])
        assert "%" in f"{history[1]['epoch']} {history[1]['val_accuracy']:.2%}"
        run.history.keep(1)
        assert all(row["epoch"] <= 1 for row in run.history)
    assert parsed.get("environment.json") in (None, "fp32", "bf16")
    return parsed


HUGE = b"9" * 5000
JSON = {
    "nothing": b"",
    "null": b"null",
    "a word": b'"word"',
    "NaN": b"NaN",
    "a number": b"7",
    "a huge number": HUGE,
    "numbers": b"[1, 2]",
    "lists": b"[[], []]",
    "an empty list": b"[]",
    "an empty object": b"{}",
    "the same twice": b'["a", "a"]',
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "no UTF-8": b'["\xff"]',
    "UTF-16": '["a"]'.encode("utf-16"),
    "NUL": b'["a\0"]',
    "two texts": b"{} {}",
    "half": b'{"epoch": 1, "val_acc',
}
BAD_ROWS = {
    "words": b'{"epoch": "1", "val_accuracy": "0.5"}',
    "lists": b'{"epoch": [1], "val_accuracy": [0.5]}',
    "null": b'{"epoch": 1, "val_accuracy": null}',
    "too large for a float": b'{"epoch": 1, "val_accuracy": 1' + b"0" * 400 + b"}",
    "huge": b'{"epoch": ' + HUGE + b', "val_accuracy": 0.5}',
    "deep": b'{"epoch": 1, "val_accuracy": 0.5, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}
BAD_RECIPES = {
    "NaN": b'{"lr": NaN}',
    "infinite": b'{"weight_decay": Infinity}',
    "true": b'{"epochs": true}',
    "null": b'{"model": null}',
    "an unknown option": b'{"model\\n": 1}',
    "a choice of two lines": b'{"model": "resnet50\\n"}',
    "too large for a float": b'{"warmup_epochs": 1' + b"0" * 400 + b"}",
    "huge": b'{"seed": ' + HUGE + b"}",
    "nested": b'{"model": {"model": []}}',
}


@pytest.mark.parametrize("case", JSON)
def test_json_that_is_something_else_is_refused(tmp_path, whole_run, case):
    parsed = check_run(tmp_path, dict.fromkeys(whole_run, JSON[case] + b"\n"))
    if case != "an empty object":  # which is the recipe of all defaults
        assert parsed["recipe.json"] is None
    assert parsed["classes.json"] is None
    assert parsed["history.jsonl"] is None


def test_json_that_is_sound(tmp_path, whole_run):
    assert all(check_run(tmp_path, whole_run).values())
    texts = {
        "classes.json": rb'["\ud800", "", " a", "b\n"]',
        "history.jsonl": b'{"epoch": 9, "epoch": 1, "val_accuracy": 0.5}\n',
    }
    texts |= {"recipe.json": b'{"epochs": -1, "epochs": 3}', "environment.json": b'{"precision": ["bf16"]}'}
    parsed = check_run(tmp_path, texts)  # of equal keys, the last counts
    assert parsed["classes.json"] == ["\ud800", "", " a", "b\n"]
    assert parsed["history.jsonl"][1]["epoch"] == 1
    assert parsed["recipe.json"].epochs == 3


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_row_of_the_history_without_its_numbers_is_refused(tmp_path, case):
    assert check_run(tmp_path, {"history.jsonl": BAD_ROWS[case] + b"\n"}) == {"history.jsonl": None}


@pytest.mark.parametrize("case", BAD_RECIPES)
def test_a_hostile_recipe_is_refused(tmp_path, case):
    assert check_run(tmp_path, {"recipe.json": BAD_RECIPES[case]}) == {"recipe.json": None}


@pytest.mark.parametrize("name", ["recipe.json", "classes.json", "history.jsonl", "environment.json"])
@fuzzed
@given(draw=st.data())
def test_damaged_json_is_read_or_refused(tmp_path, whole_run, name, draw):
    check_run(tmp_path, {name: draw.draw(damaged(whole_run[name]))})


NAMES = [
    "a,b",
    '"quoted"',
    "new\nline",
    "carriage\rreturn",
    "-dash",
    "--help",
    "<b>html&amp;",
    "ünï—ß",
    "'; DROP TABLE",
    " space ",
]
NAMES += ["=1+1", "${HOME}`id`", "back\\slash", "\x1b[31mred", "non-\udcff-text", "\u202eturned", "bell\a\x9b"]
OBEYED = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def test_any_name_survives_every_file(cli, tmp_path):
    root = tmp_path / 'my, <i>\n"data"'
    rng = np.random.default_rng(0)
    for name in NAMES:
        (root / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(root / name / f"{name}{number}.png")
    (root / NAMES[2] / f"broken{NAMES[2]}.png").touch()
    code, _, said = cli("train", "--data", root, *TINY, "--epochs", "1", "--run", tmp_path / "-r,\n")
    assert code == 0, said
    run = RunDir(tmp_path / "-r,\n")
    assert run.classes == sorted(NAMES)
    assert torch.load(run.last, weights_only=True)["classes"] == sorted(NAMES)
    listed, again = list_samples(root), read_split(run.split, root, run.classes)
    assert set(again.paths) == {path for path in listed.paths if "broken" not in path}
    assert all(path.startswith(f"{run.classes[label]}/") for path, label in zip(again.paths, again.labels, strict=True))
    with run.split.open(newline="", encoding="utf-8", errors="surrogateescape") as handle:
        labels = {row["label"] for row in csv.DictReader(handle)}
    assert labels == {f"'{name}" if name in ("-dash", "--help", "=1+1") else name for name in NAMES}
    assert [path for path, _ in read_skipped(run.skipped)] == ["new\nline/brokennew\nline.png"]
    code, out, err = cli("eval", "--run", run.path, "--json")
    assert code == 0, err
    assert json.loads(out)["n"] == len(NAMES)
    code, out, err = cli("eval", "--run", run.path, "--data", root, "--json")
    assert code == 0, err
    assert json.loads(out)["n"] == 2 * len(NAMES)
    assert r'my, <i>\n"data"' in said
    for text in (said, err, cli("eval", "--run", run.path / "\x1b[2J")[2]):
        assert not OBEYED.search(text)
    code, out, err = cli("report", "--force", "-o", "report.html", run.path)
    assert code == 0, err
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not OBEYED.search(page)
    assert r"\x1b[31mred" in page
    assert r"\u202eturned" in page
