"""The cache folder: where it is, and what the command ``cache`` lists and removes."""

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import plumage.files
from plumage.data.cache import cache_folder, discard, entries, keep
from plumage.data.decode import Square
from plumage.data.store import Cache, open_store
from plumage.errors import UserError

STORE = f"my phötos-64px-{'0' * 16}-{'f' * 16}"
OWN = ["birds-v1", "birds-v1-species2-pictures3-seed5", f"stores/{STORE}", f"stores/old-8px-{'a' * 16}"]
OWN += [f"stores/.draft-{'0' * 32}", f".draft-{'1' * 32}", "CUB_200_2011", "CUB_200_2011.partial"]
NOT_OWN = ["birds", "birds-v1-mine", "stores/notes", "stores/a-64px-0", "photos", ".draft-1", "torch", "birds-v1.bak"]


def fill(folder: Path, *names: str) -> None:
    """Make a folder of each name with a file of 1,000,000 bytes, as if last written to a day ago."""
    for name in names:
        (folder / name / "deep").mkdir(parents=True)
        (folder / name / "deep" / "file").write_bytes(bytes(1_000_000))
        for path in (folder / name / "deep" / "file", folder / name / "deep", folder / name):
            os.utime(path, (time.time() - 86_400,) * 2)


def test_what_lies_there_is_listed_and_cleared_and_nothing_else(cli, tmp_path):
    folder = tmp_path / "xdg" / "plumage"
    fill(folder, *OWN, *NOT_OWN)
    (folder / "CUB_200_2011.tgz").write_bytes(bytes(10**6))
    os.utime(folder / "CUB_200_2011.tgz", (0, 0))
    (folder / "birds-v2").symlink_to(folder / "photos")
    for name in ("notes.txt",):
        (folder / name).write_text("mine")
    code, out, err = cli("cache")
    assert (code, err) == (0, "")
    *lines, total = out.splitlines()
    assert sorted(line.split("  ")[-1] for line in lines if "birds-v3" not in line) == sorted(
        [*OWN, "CUB_200_2011.tgz"]
    )
    assert all(f"1.0 MB  {kind}" in out for kind in ("drawn birds", "decoded pictures", "unfinished", "download"))
    assert time.strftime("%Y-%m-%d", time.localtime(time.time() - 86_400)) in out
    assert "9.0 MB in" in total
    code, out, err = cli("cache", "--clear")
    assert (code, err) == (0, "")
    assert "9.0 MB of 9.0 MB freed" in out.splitlines()[-1]
    assert not [name for name in OWN if (folder / name).exists()]
    assert all((folder / name / "deep" / "file").exists() for name in NOT_OWN)
    assert (folder / "notes.txt").exists()
    assert (folder / "birds-v2").is_symlink()
    assert not list(folder.rglob(".draft-????????*"))


def test_in_a_folder_that_is_not_plumages_alone_a_data_set_of_that_name_is_its_owners(cli, tmp_path):
    fill(tmp_path, "CUB_200_2011", "birds-v1", "photos/birds-v1", "runs")
    assert "1.0 MB of 1.0 MB freed" in cli("cache", "--clear", "--cache", tmp_path)[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CUB_200_2011", "photos", "runs"]
    (tmp_path / "CUB_200_2011" / plumage.data.cache.MARK).touch()  # as fetching it leaves there
    os.utime(tmp_path / "CUB_200_2011" / plumage.data.cache.MARK, (0, 0))
    os.utime(tmp_path / "CUB_200_2011", (0, 0))
    assert "1.0 MB of 1.0 MB freed" in cli("cache", "--clear", "--cache", tmp_path)[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "runs"]


def test_an_empty_cache_is_no_error(cli, tmp_path):
    code, out, err = cli("cache", "--cache", tmp_path / "none")
    assert (code, err) == (0, "")
    assert "0.0 MB in" in out
    assert not (tmp_path / "none").exists()


def test_what_is_in_use_stays(cli, tmp_path):
    folder = tmp_path / "xdg" / "plumage"
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    store = open_store(tmp_path, ["a.png"], Square(8), Cache(folder))
    fill(folder, "birds-v1", "birds-v1-seed1")
    keep(folder / "birds-v1")
    (folder / f".draft-{'1' * 32}").mkdir()  # being written
    code, out, _ = cli("cache", "--clear")
    assert code == 0
    assert out.count("yours: stays") == 3
    assert sorted(path.name for path in folder.iterdir()) == [f".draft-{'1' * 32}", "birds-v1", "stores"]
    assert store.read(np.array([0])).shape == (1, 8, 8, 3)
    del store
    assert cli("cache", "--clear")[1].count("yours: stays") == 2
    assert not list((folder / "stores").iterdir())


def test_where_there_are_no_locks_a_rename_tells_what_is_open(tmp_path, monkeypatch):
    monkeypatch.setattr(plumage.files, "fcntl", None)
    monkeypatch.setattr("sys.platform", "win32")
    fill(tmp_path, "birds-v1", "birds-v2")
    assert discard(tmp_path / "birds-v1")

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(Path, "rename", refuse)  # as Windows does
    assert not discard(tmp_path / "birds-v2")
    assert [path.name for path in tmp_path.iterdir()] == ["birds-v2"]


def test_what_another_has_locked_by_other_means_stays(tmp_path, monkeypatch):
    """As on a network disk that knows no locks: nobody can tell then."""

    def refuse(*_):
        raise OSError(37, "No locks available")

    fill(tmp_path, "birds-v1")
    monkeypatch.setattr(plumage.files.fcntl, "flock", refuse)
    assert not discard(tmp_path / "birds-v1")
    keep(tmp_path / "birds-v1")
    assert [entry.path.name for entry in entries(tmp_path)] == ["birds-v1"]


def test_the_default_is_below_the_users_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "plumage"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache" / "plumage"
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
    assert not list(tmp_path.iterdir())


@pytest.fixture
def homeless(tmp_path, monkeypatch):
    """No home folder, and an empty folder for temporary files."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(plumage.data.cache, "gettempdir", lambda: str(tmp_path))
    yield tmp_path / f"plumage-{os.getuid()}"
    os.environ.pop("TORCH_HOME", None)


def test_without_a_home_it_is_a_private_folder_among_the_temporary_ones(homeless, caplog):
    caplog.set_level("INFO", "plumage")
    for _ in range(2):
        assert cache_folder() == homeless
    assert stat.S_IMODE(homeless.stat().st_mode) == 0o700
    assert all(str(homeless) in message and "--cache" in message for message in caplog.messages)
    assert os.environ["TORCH_HOME"].startswith(str(homeless))  # else torch makes a folder called ~


@pytest.mark.parametrize("made", ["a link", "open", "another's", "a file"])
def test_a_folder_that_others_can_write_to_is_refused(homeless, tmp_path, monkeypatch, made):
    if made == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        homeless.symlink_to(tmp_path / "elsewhere")
    elif made == "a file":
        homeless.touch(0o600)
    else:
        homeless.mkdir()
        homeless.chmod(0o777 if made == "open" else 0o700)
    if made == "another's":
        monkeypatch.setattr(plumage.data.cache.os, "getuid", lambda: 4242)
        homeless.rename(tmp_path / "plumage-4242")
    with pytest.raises(UserError, match=r"--cache: .*open to others"):
        cache_folder()
    assert cache_folder(tmp_path / "given") == tmp_path / "given"


@pytest.mark.skipif(shutil.which("setpriv") is None or os.geteuid() != 0, reason="only root can become another user")
def test_a_bare_user_id_without_a_home_uses_every_command(photos, tmp_path):
    """As in a container: nobody in /etc/passwd, no HOME. What root may read stays readable."""
    rights = [f"--{kind}=-all,+dac_read_search" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
    become = ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups", *rights]
    work = tmp_path / "work"
    for folder in (work, tmp_path / "tmp"):
        folder.mkdir()
        folder.chmod(0o777)
    photos.rename(work / "photos")
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(ROOT)}
    code = """
import sys
from plumage import main
from conftest import TINY
for command in (["train", "--data", "photos", *TINY, "--epochs", "1", "--report"], ["eval"], ["cache"],
                ["predict", "photos"], ["export", "--format", "safetensors"]):
    sys.argv = ["main.py", *command]
    try:
        main.main()
    except SystemExit as end:
        print(command[0], "ended with", end.code or 0)
"""
    command = [*become, sys.executable, "-c", code]
    environment["PYTHONPATH"] += f"{os.pathsep}{ROOT / 'tests'}"
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    for name in ("train", "eval", "cache", "predict", "export"):
        assert f"{name} ended with 0" in done.stdout, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "tmp" / "plumage-4242") in done.stderr
    assert "decoded pictures" in done.stdout
    assert sorted(path.name for path in work.iterdir()) == ["photos", "runs"]
