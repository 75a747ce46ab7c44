import errno
import io
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from conftest import ROOT

from plumage.console import run_command
from plumage.errors import UserError

WRITE = """
import sys, click
sys.path.insert(0, sys.argv.pop(1))
from plumage import console
@click.command()
@click.option("--needed", is_flag=True)
def command(needed):
    if needed:
        console.need_reader()
    click.echo("result")
    click.echo("notice", err=True)
    open(sys.executable).close()
console.run_command(command)
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
@pytest.mark.parametrize(
    ("streams", "code", "says"),
    [
        (">/dev/full", 2, "notice\nerror: standard output: No space left on device\n"),
        (">/dev/full --needed", 2, "error: standard output: No space left on device\n"),
        (">&-", 0, "notice\n"),
        ("2>/dev/full", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
    ],
)
def test_streams_that_are_full_or_closed(streams, code, says):
    done = subprocess.run(
        f"{shlex.join([sys.executable, '-c', WRITE, str(ROOT)])} {streams}",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, says)


def test_a_standard_output_that_is_not_pythons_own_will_do(monkeypatch):
    """As a notebook's, which has no buffer."""
    monkeypatch.setattr("sys.stdout", io.StringIO())
    monkeypatch.setattr("sys.argv", ["main.py"])
    with pytest.raises(SystemExit) as end:
        run_command(click.Command("told", callback=lambda: click.echo("result")))
    assert not end.value.code
    assert sys.stdout.getvalue() == "result\n"


@pytest.mark.parametrize(("script", "name"), [("main.py", "python main.py"), ("plumage", "plumage")])
def test_what_is_said_names_the_command_as_it_was_started(tmp_path, script, name):
    """As the installed command is: a script elsewhere, in whatever folder."""
    (tmp_path / script).write_text("from plumage.main import main\nmain()\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def call(*arguments):
        command = [sys.executable, script, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert call("train", "--help").stdout.startswith(f"Usage: {name} train [OPTIONS]\n")
    assert call("train", "--epochs", "many").stderr.endswith(f" See {name} train --help.\n")
    assert call().stderr.endswith(f" See {name} --help.\n")


@pytest.fixture
def call(monkeypatch, capsys):
    """A command that raises this error: its exit code and standard error."""

    def call(error):
        def fail():
            raise error

        monkeypatch.setattr("sys.argv", ["main.py"])
        with pytest.raises(SystemExit) as end:
            run_command(click.Command("failing", callback=fail))
        return end.value.code, capsys.readouterr().err

    return call


CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory.\nMore"),
            "the GPU has too little memory left (CUDA out ",
        ),
        (MemoryError(), "memory ran out (MemoryError); "),
        (RuntimeError(f"{CPU}\nMore"), f"memory ran out ({CPU}); "),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory ran out ([Errno 12] Cannot allocate memory); "),
        (RuntimeError("can't start new thread"), "no more threads or processes can be started (can't start new"),
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "no more threads or processes can be started ("),
        (OSError(errno.ENOSPC, "No space left", "a\x1b[2J\u202eb"), r"a\x1b[2J\u202eb: No space left"),
        (UserError("no\n\x07 \x9b2J"), r"no\n\x07 \x9b2J"),
    ],
    ids=str,
)
def test_what_a_machine_or_a_name_does_is_one_line(call, error, says):
    code, err = call(error)
    assert (code, err.count("\n"), err[: len(says) + 7]) == (2, 1, f"error: {says}")


def test_what_numpy_and_torch_cannot_have_is_too_little_memory(call):
    for allocate in (np.zeros, torch.zeros):
        with pytest.raises((MemoryError, RuntimeError)) as raised:
            allocate(2**55)
        code, err = call(raised.value)
        assert (code, err[:23]) == (2, "error: memory ran out (")


def test_a_bug_is_none(call):
    with pytest.raises(RuntimeError, match="a bug"):
        call(RuntimeError("a bug"))


def test_notices_obey_no_name(call, capsys):
    call(UserError("so that there is a formatter"))
    logging.getLogger("plumage").warning("a\x1b]0;b\x07\nerror: c\u2066")
    logging.getLogger("other").warning("two\n\tlines\r\x1b")
    assert capsys.readouterr().err == "a\\x1b]0;b\\x07\\nerror: c\\u2066\ntwo\n\tlines\\r\\x1b\n"


NAMES = """
import sys, click
sys.path.insert(0, sys.argv.pop(1))
from plumage import console
@click.command()
def command():
    console.need_reader()
    print("a\\x1b[2J\\u202eb\\udcff", "ä")
    click.echo("c\\x9b")
console.run_command(command)
"""


def test_a_terminal_gets_names_escaped_and_a_pipe_gets_them_exactly():
    command, environment = [sys.executable, "-c", NAMES, str(ROOT)], {**os.environ, "PYTHONIOENCODING": "utf-8"}
    piped = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert piped.stdout == b"a\x1b[2J\xe2\x80\xaeb\xff \xc3\xa4\nc\xc2\x9b\n"
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    subprocess.run(command, env=environment, stdout=theirs, check=True)
    os.close(theirs)
    assert os.read(ours, 1000) == b"a\\x1b[2J\\u202eb\\udcff \xc3\xa4\r\nc\\x9b\r\n"
    os.close(ours)
