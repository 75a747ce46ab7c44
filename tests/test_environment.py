import shlex
import sys

import pytest
import torch

from plumage.hardware.device import Machine
from plumage.hardware.environment import environment


@pytest.mark.parametrize(
    ("program", "typed"),
    [
        ("main.py", "python main.py"),
        ("/home/me/my plumage/main.py", "python '/home/me/my plumage/main.py'"),
        ("/home/me/.venv/bin/plumage", "plumage"),
    ],
)
def test_the_command_can_be_typed_again(monkeypatch, program, typed):
    monkeypatch.setattr(sys, "argv", [program, "train", "--data", "my photos"])
    command = environment(Machine(torch.device("cpu"), "fp32", compile=False))["command"]
    assert command == f"{typed} train --data 'my photos'"
    assert shlex.split(command)[-3:] == sys.argv[1:]
