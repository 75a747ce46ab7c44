"""Stop signals in each phase of a training: one line, the exit code of the signal, and nothing lost."""

import itertools
import os
import shutil
import signal
import sys

import pytest
import torch
from conftest import TINY
from test_train import TinyNetwork

import plumage.birds.folder
import plumage.data.store
import plumage.engine.resume
import plumage.engine.train
from plumage.data.augment import Transform
from plumage.engine.signals import StopSignals
from plumage.errors import Stopped


def signalling(function, number, call, times=1):
    """``function``, before whose ``call``-th call this process gets a signal, from whatever thread that is."""
    calls = itertools.count(1)

    def wrapped(*args, **options):
        if next(calls) == call:  # one step, which no thread comes between
            for _ in range(times):
                os.kill(os.getpid(), number)
        return function(*args, **options)

    return wrapped


def stopped(code, err, number):
    return code == 128 + number and err.splitlines()[-1].startswith(f"error: stopped by {signal.Signals(number).name}")


@pytest.fixture
def command(monkeypatch, photos, tmp_path):
    monkeypatch.setattr(plumage.engine.prepare, "build_model", TinyNetwork)
    return ["train", "--data", photos, *TINY, "--epochs", "3", "--run", tmp_path / "run", "--resume"]


@pytest.fixture
def undisturbed(command, cli, tmp_path):
    """What the run ends with that is never stopped."""
    assert cli(*command)[0] == 0
    (tmp_path / "run").rename(tmp_path / "whole")
    return torch.load(tmp_path / "whole" / "checkpoints" / "last.pt")["model"]


@pytest.mark.parametrize(
    ("number", "times"),
    [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGUSR1, 1)],
    ids=lambda value: getattr(value, "name", str(value)),
)
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (plumage.data.store, "decode_or_reason", 5),
        (Transform, "random", 1),
        (Transform, "random", 5),
        (Transform, "center", 1),
        (plumage.engine.checkpoint, "save_checkpoint", 1),
        (plumage.engine.checkpoint, "save_checkpoint", 3),
        (plumage.engine.checkpoint, "copy_checkpoint", 1),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_signal_in_any_phase_costs_nothing(
    undisturbed, command, cli, tmp_path, monkeypatch, number, times, owner, name, call
):
    shutil.rmtree(tmp_path / "xdg")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalling(getattr(owner, name), number, call, times))
        code, _, err = cli(*command)
    assert stopped(code, err, number)
    assert not list((tmp_path / "xdg").rglob(".draft-*"))
    assert cli(*command)[0] == 0
    ended = torch.load(tmp_path / "run" / "checkpoints" / "last.pt")["model"]
    assert all(torch.equal(ended[key], value) for key, value in undisturbed.items())


def test_a_stop_that_python_ignores_is_made_up_for(monkeypatch):
    signals, ignored = StopSignals(), []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: ignored.append(about.exc_type))

    class Dying:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    Dying()
    assert ignored == [Stopped]
    with pytest.raises(Stopped), signals.deferred():
        pytest.fail("it goes on")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_while_birds_are_drawn_leaves_none_half_drawn(cli, tmp_path, monkeypatch, number):
    monkeypatch.setattr(plumage.birds.folder, "as_completed", signalling(plumage.birds.folder.as_completed, number, 1))
    code, _, err = cli("train", "--data", "birds:species=2,pictures=2", *TINY, "--run", tmp_path / "run")
    assert stopped(code, err, number)
    assert not list((tmp_path / "xdg" / "plumage").iterdir())
    assert not (tmp_path / "run").exists()
