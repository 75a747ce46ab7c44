"""--tensorboard: what it logs is the history and every step, also where a run was stopped in between."""

import signal
import sys

import pytest
from conftest import TINY
from test_signals import signalling, stopped
from test_train import TinyNetwork

import plumage.engine.train
from plumage.data.augment import Transform
from plumage.rundir.folder import RunDir


@pytest.fixture
def command(monkeypatch, photos, tmp_path):
    monkeypatch.setattr(plumage.engine.prepare, "build_model", TinyNetwork)
    return ["train", "--data", photos, *TINY, "--epochs", "3", "--run", tmp_path / "run", "--tensorboard", "--resume"]


def scalars(run):
    """{tag: {iteration: value}}, each only once."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run.path / "tensorboard")).Reload()
    values = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert all(len(dict(pairs)) == len(pairs) for pairs in values.values())
    return {tag: dict(pairs) for tag, pairs in values.items()}


def as_history(run, logged):
    rows = run.history
    assert {tag for tag in logged if tag.startswith("epoch/")} == {f"epoch/{name}" for name in rows[0]}
    for name in rows[0]:
        expected = {row["iteration"]: row[name] for row in rows}
        assert logged[f"epoch/{name}"] == pytest.approx(expected), name


def test_it_logs_the_history_and_each_step(command, cli, tmp_path):
    pytest.importorskip("tensorboard")
    assert cli(*command)[0] == 0
    run = RunDir(tmp_path / "run")
    logged = scalars(run)
    as_history(run, logged)
    assert list(logged["step/loss"]) == list(range(1, 10))
    first = [logged["step/loss"][n] for n in (1, 2, 3)]
    assert sum(first) / 3 == pytest.approx(run.history[0]["train_loss"])
    assert {n: logged["step/lr"][n] for n in (3, 6, 9)} == pytest.approx(logged["epoch/lr"])


@pytest.mark.parametrize("call", [2, 3, 5])  # the third step ends an epoch, whose row is then made up for
def test_stopped_it_goes_on(command, cli, tmp_path, monkeypatch, call):
    pytest.importorskip("tensorboard")
    with monkeypatch.context() as patch:
        patch.setattr(Transform, "random", signalling(Transform.random, signal.SIGTERM, call))
        code, _, err = cli(*command)
    assert stopped(code, err, signal.SIGTERM)
    assert cli(*command)[0] == 0
    run = RunDir(tmp_path / "run")
    logged = scalars(run)
    as_history(run, logged)
    assert set(logged["step/loss"]) == set(range(1, 10))


def test_killed_what_is_trained_again_is_logged_once(command, cli, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")

    def crash(*_):
        raise KeyboardInterrupt

    random = Transform.random
    with monkeypatch.context() as patch:
        patch.setattr(Transform, "random", lambda self, *a: crash() if a[2] == 7 else random(self, *a))
        assert cli(*command)[0] == 130
    run = RunDir(tmp_path / "run")
    assert max(scalars(run)["step/loss"]) == 7  # of which the checkpoint, after six, does not know
    assert cli(*command)[0] == 0
    as_history(run, scalars(run))
    assert list(scalars(run)["step/loss"]) == list(range(1, 10))


def test_without_the_package_there_is_one_line_before_anything_is_done(command, cli, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    code, out, err = cli(*command)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert 'pip install -e ".[tensorboard]"' in err
    assert not (tmp_path / "run").exists()
