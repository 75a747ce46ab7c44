import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from conftest import ROOT

from plumage.console import run_command

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


def test_too_little_memory_is_one_line_and_other_bugs_are_not(capsys):
    @click.command()
    @click.argument("kind")
    def command(kind):
        raise {"memory": torch.OutOfMemoryError("CUDA out of memory.\nMore"), "bug": RuntimeError("a bug")}[kind]

    def call(kind):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["main.py", kind])
            run_command(command)

    with pytest.raises(SystemExit) as end:
        call("memory")
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: the GPU has too little memory left (CUDA out of memory.); take --device cpu\n"
    )
    with pytest.raises(RuntimeError, match="a bug"):
        call("bug")
