import click
import pytest
import torch

from console import run_command


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
