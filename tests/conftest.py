import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plumage import main
from plumage.errors import STOPS

ROOT = Path(main.__file__).parent
CLIPART = ROOT.parent / "shared" / "data" / "clipart"
# A training of seconds: a small network on small pictures, in a precision that every machine has.
TINY = ["--model", "resnet18", "--weights", "none", "--resize", "36", "--crop", "32", "--batch-size", "8"]
TINY += ["--lr", "0.05", "--precision", "fp32", "--device", "cpu", "--no-report"]
COLOURS = {"red apple": (200, 40, 40), "green, sour": (40, 180, 60), "blaue Beere": (40, 60, 200)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of ten noisy one-coloured pictures, in a path and under names with spaces, commas and umlauts."""
    folder = tmp_path / "my phötos"
    draw_photos(folder)
    return folder


def draw_photos(folder: Path, each: int = 10) -> None:
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(each):
            noise = rng.normal(colour, 30, (40, 50, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(folder / name / f"{number}.jpg")


if hasattr(signal, "SIGHUP"):  # which nohup has every process ignore
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``python main.py ARGUMENT…`` in this process, in ``tmp_path``: its exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))

    def call(*arguments: object) -> tuple[int, str, str]:
        command = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["main.py", *command])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main.main()
        output = capsys.readouterr()
        return int(end.value.code or 0), output.out, output.err

    return call


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """The same as a process of its own."""

    def call(*arguments: object) -> "subprocess.Popen[str]":
        command = [sys.executable, ROOT / "main.py", *arguments]
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "xdg")}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            list(map(str, command)), cwd=tmp_path, env=environment, text=True, stdout=pipe, stderr=pipe
        )

    return call
