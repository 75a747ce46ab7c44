"""Stop signals in each phase of a training: one line, the exit code of the signal, and nothing lost."""

import itertools
import os
import pty
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY
from test_train import TinyNetwork

import plumage.birds.folder
import plumage.data.facts
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
    [(signal.SIGTERM, 1), (signal.SIGHUP, 2), (signal.SIGUSR1, 1), (signal.SIGINT, 1), (signal.SIGINT, 5)],
    ids=lambda value: getattr(value, "name", str(value)),
)
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (plumage.data.facts, "decode_or_reason", 5),
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1], ids=lambda number: number.name)
def test_what_a_scheduler_or_a_terminal_sends_twice_is_saved_all_the_same(number):
    signals, seen = StopSignals(), []

    def train():
        with signals.deferred():
            for _ in range(3):
                os.kill(os.getpid(), number)
                seen.append(signals.received)

    with pytest.raises(Stopped) as end:
        train()
    assert seen == [number] * 3
    assert end.value.exit_code == 128 + number


def test_a_second_ctrl_c_ends_at_once_and_more_disturb_no_cleaning_up():
    signals, cleaned = StopSignals(), []

    def train():
        with signals.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            try:
                os.kill(os.getpid(), signal.SIGINT)
                pytest.fail("it goes on")
            finally:
                for number in (signal.SIGINT, signal.SIGTERM):
                    os.kill(os.getpid(), number)
                cleaned.append("all")

    with pytest.raises(Stopped):
        train()
    assert cleaned == ["all"]


def test_more_signals_while_a_command_ends_change_nothing(tmp_path):
    """As the message is written, as threads are waited for, and as Python takes itself apart."""
    code = """
import atexit, os, signal, sys, threading
sys.path.insert(0, sys.argv.pop(1))
import click
from plumage import console
from plumage.engine.signals import StopSignals

def burst(*_):
    for _ in range(5):
        os.kill(os.getpid(), signal.SIGINT)

class Dying:
    def __del__(self):
        burst()

@click.command()
def command():
    StopSignals()
    Dying()  # whose Stopped Python ignores
    threading._register_atexit(burst)
    atexit.register(burst)
    sys.last = Dying()
    print("result")
    os.kill(os.getpid(), signal.SIGINT)

click.echo = lambda message, err: (burst(), print(message, file=sys.stderr))
console.run_command(command)
"""
    done = subprocess.run([sys.executable, "-c", code, ROOT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "result\n", "error: stopped by SIGINT\n")


def test_ctrl_c_before_a_command_begins_is_no_traceback(tmp_path):
    """Python's own handler would raise in whatever is imported just then."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", ROOT / "main.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_under_nohup_a_closed_terminal_is_no_reason_to_end(monkeypatch):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    StopSignals()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("ignored", [False, True], ids=["", "nohup"])
def test_a_training_whose_terminal_is_closed(command, cli, photos, tmp_path, monkeypatch, ignored):
    """It is saved and ends, or goes on where SIGHUP is ignored, though all that it says now is an error."""
    monkeypatch.undo()  # the network is the real one
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which is faster where other tests run too
    code = "import os, signal, sys; terminal = os.open(sys.argv[1], os.O_RDWR)\n"
    code += "for stream in range(3): os.dup2(terminal, stream)\n"
    code += "if sys.argv[2] == 'True': signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    code += "os.execv(sys.executable, [sys.executable, *sys.argv[3:]])"
    ours, theirs = pty.openpty()
    arguments = ["train", "--data", photos, *TINY, "--epochs", "12", "--run", tmp_path / "run", "--resume"]
    arguments += ["--cache", tmp_path / "cache"]
    process = subprocess.Popen(
        list(map(str, [sys.executable, "-c", code, os.ttyname(theirs), ignored, ROOT / "main.py", *arguments])),
        cwd=tmp_path,
        start_new_session=True,  # of which it becomes the terminal
    )
    said = b""
    while b"epoch  2/12" not in said:
        said += os.read(ours, 10_000)
    os.close(ours)
    os.close(theirs)
    assert process.wait() == (0 if ignored else 128 + signal.SIGHUP)
    done = len((tmp_path / "run" / "history.jsonl").read_text().splitlines())
    assert done == 12 if ignored else done < 12
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.pt")["trainer"]["iteration"]
    assert saved == 36 if ignored else 6 <= saved < 36
    code, _, err = cli(*arguments)
    assert code == 0
    assert ("finished" in err) == ignored


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
