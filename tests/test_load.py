"""``from plumage import load`` beside somebody's own modules, from a checkout and as it is installed."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, TINY, draw_photos

ROOMS = sorted(file.parent.name for file in ROOT.glob("*/__init__.py"))
FILES = sorted(file.stem for file in ROOT.glob("*.py") if file.stem not in ("plumage", "setup"))

# Half of the names are imported before plumage, half after: neither may take the other's.
PROJECT = """
import importlib, json, sys
run, picture, *names = sys.argv[1:]
modules = [importlib.import_module(name) for name in names[::2]]
import plumage
from plumage import load
(prediction,) = load(run, device="cpu")([picture])
modules += [importlib.import_module(name) for name in names[1::2]]
theirs = [module.OWNER == "user" for module in modules]
print(json.dumps([plumage.__file__, prediction.label, prediction.probabilities, all(theirs), len(theirs)]))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """``photos``, and ``run``, which was trained on them."""
    folder = tmp_path_factory.mktemp("home")
    draw_photos(folder / "photos", 4)
    command = ["train", "--data", folder / "photos", *TINY, "--epochs", "1", "--no-cache", "--run", folder / "run"]
    call(ROOT / "main.py", *command, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def path(request, tmp_path_factory):
    """What has to be on Python's path: the checkout, or a folder with what a wheel would hold."""
    if request.param == "checkout":
        return ROOT
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("site")
    call("setup.py", "-q", "build_py", "--build-lib", folder, cwd=ROOT)
    return folder


def call(*arguments, cwd, path=ROOT):
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("path", "own"), [("checkout", "modules"), ("installed", "packages")], indirect=["path"])
def test_a_project_keeps_its_own_modules(home, path, tmp_path, own):
    names = [*ROOMS, *FILES]
    for name in names:
        file = tmp_path / (f"{name}.py" if own == "modules" else f"{name}/__init__.py")
        file.parent.mkdir(exist_ok=True)
        file.write_text("OWNER = 'user'\n")
    (tmp_path / "project.py").write_text(PROJECT)
    picture = next((home / "photos").rglob("*.jpg"))
    out = call("project.py", home / "run", picture, *names, cwd=tmp_path, path=path)
    place, label, probabilities, theirs, count = json.loads(out)
    assert place.startswith(f"{path}{os.sep}")
    assert list(probabilities) == sorted(folder.name for folder in (home / "photos").iterdir())
    assert label == max(probabilities, key=probabilities.get)
    assert (theirs, count) == (True, len(names))


@pytest.mark.parametrize("path", ["installed"], indirect=True)
def test_installed_it_takes_no_name_but_its_own(path, tmp_path):
    code = "import importlib.util, sys; print(*[name for name in sys.argv[1:] if importlib.util.find_spec(name)])"
    # Without site-packages, where others may have put modules of these names.
    out = call("-S", "-c", code, "plumage", "setup", *ROOMS, *FILES, cwd=tmp_path, path=path)
    assert out.split() == ["plumage"]
    for name in (*ROOMS, *FILES):
        assert (path / "plumage" / name).is_dir() or (path / "plumage" / f"{name}.py").is_file()
