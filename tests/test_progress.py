"""How far a training is: on a terminal, which is a pseudo-terminal of 80 columns here, and in a log."""

import fcntl
import logging
import os
import pty
import re
import signal
import struct
import sys
import termios
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from threading import Thread

import pytest
import torch
from conftest import TINY
from ignite.engine import Engine
from test_signals import signalling
from test_train import TinyNetwork

import plumage.engine.evaluate
import plumage.engine.handlers
import plumage.engine.prepare
import plumage.models.weights
from plumage.data.augment import Transform
from plumage.engine.handlers import attach_progress

STATUS = {"loss": "4.512", "accuracy": "0.123"}
BAR = re.compile(r"(?P<title>\S+(?: \[\S+])?) +\d+%\|.+\| (?P<rate>\S+)img/s (?P<left>\S+) left(?P<status>.*)")


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


class Terminal:
    """What a program has written to a terminal of 80 columns, and what it shows."""

    def __init__(self):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.stream = open(slave, "w", buffering=1, encoding="utf-8")  # noqa: PTH123, SIM115
        self.parts: list[bytes] = []
        self.reader = Thread(target=self._read)
        self.reader.start()

    def _read(self):
        try:
            while part := os.read(self.master, 65536):
                self.parts.append(part)
        except OSError:  # closed
            pass

    @contextmanager
    def attached(self):
        """Make it the standard output and error."""
        with redirect_stdout(self.stream), redirect_stderr(self.stream):
            yield

    def text(self):
        """Return all that was written, once: it is closed."""
        self.stream.close()
        self.reader.join()
        return b"".join(self.parts).decode()

    @staticmethod
    def bars(text):
        return [piece.rstrip() for piece in re.split(r"[\r\n]", text) if "%|" in piece]

    @staticmethod
    def lines(text):
        """Return the lines that are on it in the end, however long: the cursor is at a place, and writes there."""
        rows, row, column = [[]], 0, 0
        for piece in re.findall(r"\x1b\[A|[^\x1b]", text):
            if piece == "\r":
                column = 0
            elif piece == "\x1b[A":
                row -= 1
            elif piece == "\n":
                row += 1
                rows += [[]] * (row == len(rows))
            else:
                rows[row] = [
                    *rows[row][:column].copy(),
                    *" " * (column - len(rows[row])),
                    piece,
                    *rows[row][column + 1 :],
                ]
                column += 1
        return [line for each in rows if (line := "".join(each).rstrip())]


@pytest.fixture
def terminal():
    terminal = Terminal()
    yield terminal
    terminal.stream.close()
    terminal.reader.join()
    os.close(terminal.master)


def steps(clock, seconds, terminal=None, epochs=1, every=1, batch_size=8, begin=0, show=lambda: STATUS):
    """Run epochs whose steps take ``seconds``, from iteration ``begin`` on."""

    def step(engine, batch):
        clock.now += seconds[(engine.state.iteration - 1) % len(seconds)]

    engine = Engine(step)
    with terminal.attached() if terminal else nullcontext():
        attach_progress(engine, "training", batch_size, every, show, clock)
        if begin:
            engine.load_state_dict({"iteration": begin, "epoch_length": len(seconds), "max_epochs": epochs})
        engine.run([0] * len(seconds), max_epochs=epochs, epoch_length=len(seconds))


# --- on a terminal -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "seconds", "batch_size", "rate", "left"),
    [
        (2, [0.5] * 20, 8, "16.0", "00:09"),
        (60, [2.0] * 200, 256, "128", "06:36"),
        (1000, [2.0] * 2000, 24_576, "12.3k", "1:06:36"),
    ],
)
def test_the_bar_is_whole_at_80_columns(clock, terminal, epochs, seconds, batch_size, rate, left):
    steps(clock, seconds, terminal, epochs, batch_size=batch_size, begin=(epochs - 1) * len(seconds))
    bars = terminal.bars(terminal.text())
    assert len(bars) == len(seconds)
    for bar in bars:
        assert len(bar) < 80
        shown = BAR.fullmatch(bar)
        assert shown["title"] == f"training [{epochs}/{epochs}]"
        assert shown["status"] == ", loss 4.512 accuracy 0.123"
    assert BAR.fullmatch(bars[1]).group("rate", "left") == (rate, left)


@pytest.mark.parametrize(("begin", "every"), [(0, 1), (0, 3), (13, 1), (13, 3)])
def test_the_first_rates_are_those_of_the_steps(clock, terminal, begin, every):
    """Whatever came before the first of them: compiling, or, where training goes on, most of an epoch."""
    steps(clock, [0.25] * 20 if begin else [60.0] + [0.25] * 19, terminal, every=every, begin=begin)
    first, *others = [BAR.fullmatch(bar) for bar in terminal.bars(terminal.text())]
    assert first.group("rate", "left") == ("?", "?")
    assert {bar["rate"] for bar in others} == {"32.0"}
    assert others[0]["left"] == {(0, 1): "00:04", (0, 3): "00:03", (13, 1): "00:01", (13, 3): "00:00"}[begin, every]


def test_it_is_drawn_at_most_ten_times_a_second_and_as_each_epoch_begins(clock, terminal):
    drawn = []
    steps(clock, [0.03] * 10, terminal, 2, every=2, show=lambda: drawn.append(clock.now) or {})
    # Of even steps, those 0.12 s apart; another epoch begins with the eleventh.
    assert drawn == pytest.approx([1000 + 0.03 * number for number in (2, 6, 10, 12, 16, 20)])
    terminal.text()


def test_where_a_bar_is_there_are_no_lines(clock, terminal, caplog):
    caplog.set_level("INFO", "plumage")
    steps(clock, [20.0] * 9, terminal)
    assert caplog.messages == []
    assert terminal.lines(terminal.text()) == []  # and when all is done, no bar


@pytest.fixture
def command(monkeypatch, clock, terminal, photos, tmp_path):
    """Run a command that trains a network of no size, each of whose steps is drawn. Returns what is left of it."""
    monkeypatch.setattr(plumage.engine.prepare, "build_model", TinyNetwork)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(plumage.engine.handlers, "attach_progress", partial(attach_progress, clock=clock))

    def slowly(function):
        def view(*args):
            clock.now += 1
            return function(*args)

        return view

    def call(name, *options):
        monkeypatch.setattr(Transform, "random", slowly(Transform.random))
        arguments = [name, "--data", photos, *TINY, "--run", tmp_path / "run", "--epochs", "2", *options]
        monkeypatch.setattr(sys, "argv", ["main.py", *map(str, arguments)])
        with terminal.attached(), pytest.raises(SystemExit):
            plumage.main.main()
        text = terminal.text()
        assert any(bar.startswith("training") and "accuracy" in bar for bar in terminal.bars(text))
        lines = terminal.lines(text)
        assert not [line for line in lines if "%|" in line]
        return lines

    return call


def ruined(iteration):
    """Return Transform.random, of pictures that are no numbers at this iteration."""
    random = Transform.random

    def view(self, images, labels, number, shard):
        views, targets = random(self, images, labels, number, shard)
        return (views * torch.nan if number == iteration else views), targets

    return view


def test_what_stays_of_a_training_are_lines_alone(command):
    assert [line.split()[0] for line in command("train")[-3:]] == ["epoch", "epoch", "best"]


@pytest.mark.parametrize("call", [2, 5])
def test_a_stop_is_told_on_a_line_of_its_own(command, monkeypatch, call):
    monkeypatch.setattr(Transform, "random", signalling(Transform.random, signal.SIGTERM, call))
    assert command("train")[-1] == "error: stopped by SIGTERM; --resume goes on from here"


def test_so_is_a_stop_while_it_validates(command, monkeypatch):
    monkeypatch.setattr(Transform, "center", signalling(Transform.center, signal.SIGINT, 1))
    assert command("train")[-1] == "error: stopped by SIGINT; --resume goes on from here"


def test_so_is_an_error(command, monkeypatch):
    monkeypatch.setattr(Transform, "random", ruined(4))
    assert command("train")[-1].startswith("error: the loss is nan at iteration 5")


def test_so_is_what_fails_between_two_trainings_and_the_table_after_it(command, monkeypatch):
    monkeypatch.setattr(Transform, "random", ruined(4))
    lines = command("ablate", "--vary", "smoothing=0,0.1")
    starts = [line for line in lines if "failed: the loss is nan" in line or line.startswith("Validation accuracy of")]
    assert [line.split()[0] for line in starts] == ["smoothing=0,seed=0", "smoothing=0.1,seed=0", "Validation"]


def test_so_is_a_notice_while_a_bar_is_drawn(command, monkeypatch):
    random = Transform.random

    def warn(self, images, labels, number, shard):
        if number == 1:
            logging.getLogger("plumage").warning("a notice")
        return random(self, images, labels, number, shard)

    monkeypatch.setattr(Transform, "random", warn)
    assert "a notice" in command("train")


# --- in a log ------------------------------------------------------------------------------------------------------


def test_in_a_log_there_is_a_line_about_every_half_minute(clock, caplog):
    caplog.set_level("INFO", "plumage")
    steps(clock, [10.0] * 11, epochs=2, batch_size=64)
    told = "{}, 6.4 img/s, loss 4.512 accuracy 0.123, {} left"
    expected = [("step 4 of 11", "0:01:10"), ("step 7 of 11", "0:00:40"), ("step 10 of 11", "0:00:10")]
    lines = [told.format(*each) for each in expected]
    assert caplog.messages == [f"training [{epoch}/2]: {line}" for epoch in (1, 2) for line in lines]


def test_its_rate_is_that_of_the_last_half_minute_since_the_first_step_says_nothing(clock, caplog):
    caplog.set_level("INFO", "plumage")
    steps(clock, [90.0] + [10.0] * 3 + [5.0] * 1200, batch_size=1000, show=dict)
    first, second, *_, last = caplog.messages
    assert first == "training: step 4 of 1,204, 100.0 img/s, 3:20:00 left"
    assert second == "training: step 10 of 1,204, 200.0 img/s, 1:39:30 left"
    assert last == "training: step 1,198 of 1,204, 200.0 img/s, 0:00:30 left"


@pytest.mark.parametrize("seconds", [[10.0] * 3, [40.0, 29.0], [15.0] * 3, [100.0]])
def test_a_short_epoch_has_no_line(clock, caplog, capsys, seconds):
    caplog.set_level("INFO", "plumage")
    steps(clock, seconds, epochs=3)
    assert caplog.messages == []
    assert capsys.readouterr().err == ""


def test_a_resumed_epoch_says_how_far_it_is(clock, caplog):
    caplog.set_level("INFO", "plumage")
    steps(clock, [10.0] * 10, epochs=3, begin=14, show=dict)
    assert caplog.messages[0] == "training [2/3]: step 8 of 10, 0.8 img/s, 0:00:20 left"


def test_only_the_first_process_writes(clock, caplog, terminal, monkeypatch):
    caplog.set_level("INFO", "plumage")
    monkeypatch.setattr("plumage.engine.handlers.idist.get_rank", lambda: 1)
    steps(clock, [10.0] * 10)
    steps(clock, [10.0] * 10, terminal)
    assert caplog.messages == []
    assert terminal.text() == ""


def test_an_evaluation_that_takes_longer_says_so_too(clock, cli, photos, tmp_path, monkeypatch):
    for module in (plumage.engine.prepare, plumage.models.weights):
        monkeypatch.setattr(module, "build_model", TinyNetwork)
    for module in (plumage.engine.handlers, plumage.engine.evaluate):
        monkeypatch.setattr(module, "attach_progress", partial(attach_progress, clock=clock))
    center = Transform.center

    def slowly(*args):
        clock.now += 20
        return center(*args)

    monkeypatch.setattr(Transform, "center", slowly)
    small = [*TINY, "--batch-size", "2", "--epochs", "1", "--run", tmp_path / "run"]
    code, _, err = cli("train", "--data", photos, *small)
    assert code == 0
    assert "validating" not in err  # which takes 20 seconds after its first step
    code, _, err = cli("eval", "--split", "train", "--run", tmp_path / "run")
    assert code == 0
    assert re.findall("^evaluating: .*", err, re.MULTILINE)[0] == "evaluating: step 3 of 12, 0.1 img/s, 0:03:00 left"
