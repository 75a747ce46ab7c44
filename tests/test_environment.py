import shlex
import sys

import pytest
import torch

from plumage.hardware.device import Machine
from plumage.hardware.environment import differences, environment


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


def test_what_decides_the_bits_is_named_where_it_differs():
    before = environment(Machine(torch.device("cpu"), "bf16", compile=False))
    assert differences(before, before) == []
    after = {**before, "precision": "fp32", "command": "another", "packages": {**before["packages"], "torch": "9.9"}}
    torch_was = before["packages"]["torch"]
    assert differences(before, after) == ["precision fp32 (was bf16)", f"torch 9.9 (was {torch_was})"]
    gpu = {**before, "device": "cuda:0", "deterministic": False}
    assert differences(gpu, gpu) == ["cuda:0 without --deterministic"]
    assert differences(gpu | {"deterministic": True}, gpu | {"deterministic": True}) == []
    del before["threads"]  # an older run does not say
    assert differences(before, after) == differences(before, {**after, "threads": 99})
