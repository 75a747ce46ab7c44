"""A disk whose power is cut, as benchmarks/powercut.py does it: needs root, loop devices, ext4 and xfs."""

import importlib
import json
from pathlib import Path

import pytest
from conftest import TINY

import plumage.engine.train
from plumage.engine import handlers
from plumage.files import flush

BEGINNING = ("recipe.json", "classes.json", "split.csv", "skipped.csv", "environment.json")


@pytest.fixture
def power(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    module = importlib.import_module("powercut")
    if why := module.refusal(tmp_path):
        pytest.skip(why)
    return module


def before(function, call):
    """Return ``function``, with ``call`` called before it."""

    def both(*arguments):
        call()
        return function(*arguments)

    return both


def files(run):
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*.*") if path.is_file()}


def test_an_image_holds_what_was_flushed_and_nothing_that_only_memory_held(tmp_path, power):
    place = tmp_path / "disk"
    with power.clones(tmp_path) as clones:
        with power.disk(clones, place) as disk:
            for name in ("flushed", "written"):
                (place / name).write_text("content")
            flush(place / "flushed")
            power.clone(disk, clones / "image")
        with power.mounted(clones / "image", place):
            assert (place / "flushed").read_text() == "content"
            assert not (place / "written").exists() or not (place / "written").read_text()
    assert not place.is_mount()
    assert not list(tmp_path.glob("*.xfs"))


def test_what_a_training_has_said_outlives_a_power_cut_and_goes_on_to_the_same_bits(
    photos, tmp_path, cli, monkeypatch, power
):
    place, images = tmp_path / "disk", []
    run = place / "run"
    command = ["train", "--data", photos, "--run", run, "--resume", "--epochs", "2", *TINY]
    with power.clones(tmp_path) as clones:

        def cut():
            images.append(clones / f"{len(images)}.ext4")
            power.clone(disk, images[-1])

        with power.disk(clones, place) as disk, monkeypatch.context() as patch:
            patch.setattr(plumage.engine.train, "run_trainer", before(plumage.engine.train.run_trainer, cut))
            patch.setattr(handlers, "epoch_line", before(handlers.epoch_line, cut))
            assert cli(*command)[0] == 0
            cut()
            whole, end = files(run), power.contents(run)

        for number, image in enumerate(images):  # before the first step, at the line of each epoch, after the end
            with power.mounted(image, place):
                held = files(run)
                assert {name: held[name] for name in BEGINNING} == {name: whole[name] for name in BEGINNING}
                rows = [json.loads(line)["epoch"] for line in held.get("history.jsonl", b"").splitlines()]
                assert rows == list(range(1, min(number, 2) + 1))
                assert ("checkpoints/last.pt" in held) >= (number >= 2)
                assert (held == whole) >= (number == 3)
                if number == 2:
                    assert cli(*command)[0] == 0
                    assert not list(power.unequal(end, power.contents(run), ""))
