"""train() as a whole, with a network of no size: what a stop anywhere costs."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import engine.evaluate
import engine.train
from data.store import Cache
from engine.evaluate import evaluate
from engine.machine import Machine
from engine.recipe import Recipe
from engine.rundir import RunDir
from engine.signals import StopSignals
from engine.train import train
from errors import Stopped, UserError


def tiny_network(name: str, classes: int, zero_gamma: bool = False) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


@pytest.fixture
def tiny(monkeypatch, tmp_path, photos):
    """A recipe, a machine, and a function that trains into a folder and stops at the n-th look at the signals."""
    for module in (engine.train, engine.evaluate):
        monkeypatch.setattr(module, "build_model", tiny_network)
    options = {
        "weights": "none",
        "resize": 20,
        "crop": 16,
        "batch_size": 8,
        "epochs": 3,
        "lr": 0.1,
        "val_fraction": 0.4,
    }
    recipe = Recipe.create({"data": str(photos), **options})
    machine, cache = Machine(torch.device("cpu"), "fp32", compile=False), Cache(tmp_path / "cache", workers=1)

    class StopAt(StopSignals):
        """As if a signal had come before the n-th look."""

        def __init__(self, look: int = 10**9):
            super().__init__()
            self.look = look

        @property
        def received(self):
            self.look -= 1
            return 15 if self.look <= 0 else None

        @received.setter
        def received(self, value):
            assert value is None

    def call(folder: Path, look: int = 10**9) -> RunDir:
        run = RunDir(folder)
        train(recipe, run, machine, cache, StopAt(look))
        return run

    return recipe, (machine, cache), call


def result(run: RunDir):
    """Everything that must not depend on stops: history without times, checkpoints' content."""
    rows = [
        {key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in run.history
    ]
    return rows, *(torch.load(file, weights_only=True) for file in (run.last, run.best))


def flat(content):
    if isinstance(content, dict):
        return [item for key, value in content.items() for item in (key, *flat(value))]
    if isinstance(content, (list, tuple)):
        return [item for value in content for item in flat(value)]
    return [content.tolist() if isinstance(content, torch.Tensor) else content]


# An epoch looks at the signals after each of its 3 steps (18 pictures in eights) and of its 2 validation batches.
@pytest.mark.parametrize(
    "looks", [(1,), (2,), (3,), (4,), (5,), (6,), (8,), (9,), (10,), (13,), (14,), (15,), (3, 1, 1, 4, 2), (4, 1)]
)
def test_stopped_anywhere_and_resumed_it_ends_as_if_never_stopped(tiny, tmp_path, looks):
    _, _, call = tiny
    whole = call(tmp_path / "whole")
    for look in looks:
        with pytest.raises(Stopped):
            call(tmp_path / "stopped", look)
    stopped = call(tmp_path / "stopped")
    assert flat(result(stopped)) == flat(result(whole))


def test_a_finished_run_resumed_does_nothing_and_says_so(tiny, tmp_path, caplog):
    _, _, call = tiny
    run = call(tmp_path / "run")
    before, history = flat(result(run)), (run.path / "history.jsonl").read_text()
    caplog.set_level("INFO", "plumage")
    call(tmp_path / "run")
    assert flat(result(run)) == before
    assert (run.path / "history.jsonl").read_text() == history
    assert "all 3 epochs are done" in caplog.text


def test_killed_between_history_and_checkpoint_the_epoch_is_done_again(tiny, tmp_path):
    _, _, call = tiny
    whole = call(tmp_path / "whole")
    with pytest.raises(Stopped):
        call(tmp_path / "killed", 7)  # in the second epoch
    run = RunDir(tmp_path / "killed")
    run.add_history({**run.history[0], "epoch": 2, "val_accuracy": 1.0})
    assert flat(result(call(tmp_path / "killed"))) == flat(result(whole))


def test_killed_before_the_first_checkpoint_it_begins_again(tiny, tmp_path):
    _, _, call = tiny
    whole = call(tmp_path / "whole")
    run = call(tmp_path / "killed")
    run.last.unlink()
    run.best.unlink()
    assert flat(result(call(tmp_path / "killed"))) == flat(result(whole))


def test_without_its_last_checkpoint_a_run_is_not_begun_again(tiny, tmp_path):
    _, _, call = tiny
    run = call(tmp_path / "run")
    best, history = run.best.read_bytes(), run.history
    run.last.unlink()
    with pytest.raises(UserError, match=r"last\.pt is gone"):
        call(tmp_path / "run")
    assert (run.best.read_bytes(), run.history) == (best, history)


def test_a_checkpoint_of_other_classes_is_not_gone_on_from(tiny, tmp_path):
    _, _, call = tiny
    run = call(tmp_path / "run")
    run.write_json("classes.json", run.classes[::-1])
    with pytest.raises(UserError, match="other classes"):
        call(tmp_path / "run")


def test_no_library_can_swallow_a_stop():
    assert not issubclass(Stopped, Exception)


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_evaluation_gives_the_very_numbers_of_the_history(tiny, tmp_path, checkpoint):
    _, machine, call = tiny
    run = call(tmp_path / "run")
    row = run.best_epoch if checkpoint == "best" else run.history[-1]
    numbers = evaluate(run, *machine, checkpoint)
    assert {f"val_{name}": numbers[name] for name in ("accuracy", "top5", "loss", "nll")} == {
        name: row[name] for name in ("val_accuracy", "val_top5", "val_loss", "val_nll")
    }
    assert {**numbers, **json.loads((run.path / "eval-val.json").read_text())} == json.loads(
        (run.path / "eval-val.json").read_text()
    )


def test_the_seed_decides_everything(tiny, tmp_path):
    recipe, machine, call = tiny
    one, same = call(tmp_path / "one"), call(tmp_path / "same")
    other = RunDir(tmp_path / "other")
    train(Recipe.create({**recipe.__dict__, "seed": 1}), other, *machine, StopSignals())
    assert flat(result(one)) == flat(result(same))
    assert one.split.read_text() != other.split.read_text()
