import os

import pytest

from plumage.files import expanded
from plumage.names import composed, finder

COMPOSED, APART = "caf\u00e9", "cafe\u0301"


def test_the_composed_form_is_one_and_the_same():
    assert composed(COMPOSED) == composed(APART) == COMPOSED != APART
    assert composed("\u212b") == composed("A\u030a") == "\u00c5"
    assert composed("\ud55c") == composed("\u1112\u1161\u11ab") == "\ud55c"
    assert composed("no text: \udcff") == "no text: \udcff"


@pytest.fixture
def files(tmp_path):
    """One picture in a folder of either form, each with the form that its folder has not, and one in both forms."""
    for name in (f"{COMPOSED}/{APART}.jpg", f"x/{APART}/{COMPOSED}.jpg", f"both/{COMPOSED}.jpg", f"both/{APART}.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize("form", [COMPOSED, APART])
def test_a_path_is_found_as_the_disk_has_it(files, form, monkeypatch):
    find = finder(files)
    assert find(f"{form}/{form}.jpg") == f"{COMPOSED}/{APART}.jpg"
    assert find(f"x/{form}/{form}.jpg") == f"x/{APART}/{COMPOSED}.jpg"
    assert find(f"both/{form}.jpg") == f"both/{form}.jpg"
    assert [find(path) for path in (f"{form}/gone.jpg", f"{form}", f"{form}/{form}.jpg/1", "", "x/\0\u00e9")] == [
        None
    ] * 5
    monkeypatch.chdir(files)
    assert finder()(f"{form}/{form}.jpg") == f"{COMPOSED}/{APART}.jpg"
    assert finder(is_there=os.path.isdir)(f"{files}/x/{form}") == expanded(f"{files}/x/{form}") == f"{files}/x/{APART}"
    assert expanded(f"x/{form}s") == f"x/{form}s"


def test_folders_are_listed_once_and_only_where_a_path_is_missing(files, monkeypatch):
    listed, listdir = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(folder) or listdir(folder))
    find = finder(files)
    for path in (f"{COMPOSED}/{APART}.jpg", f"both/{APART}.jpg", "both/gone.jpg"):
        find(path)
    assert listed == []
    for path in (f"{APART}/{APART}.jpg", f"{APART}/{COMPOSED}.jpg", f"{APART}/gone.jpg"):
        find(path)
    assert listed == [f"{files}/", f"{files}/{COMPOSED}/"]
