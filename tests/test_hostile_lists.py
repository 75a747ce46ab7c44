"""Hostile folders and lists of pictures: split.csv, skipped.csv and the files of CUB-200-2011."""

import os
from pathlib import Path, PureWindowsPath

import pytest
from hostile import damaged, fuzzed, read_or_refused
from hypothesis import given
from hypothesis import strategies as st

import plumage.files
from plumage.data.cub import read_cub
from plumage.data.decode import Square
from plumage.data.sources import list_samples
from plumage.data.split import read_split
from plumage.data.store import Cache, open_store, read_skipped, write_skipped


def test_links_in_circles_and_from_all_to_all_come_to_an_end(tmp_path):
    names = [f"class {number}" for number in range(12)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of {name}.jpg").touch()
        for other in names:
            for copy in range(2):
                (tmp_path / name / f"to {other} {copy}").symlink_to(tmp_path / other)
    samples = list_samples(tmp_path)
    for label, name in enumerate(samples.classes):
        paths = [path for path, of in zip(samples.paths, samples.labels, strict=True) if of == label]
        assert f"{name}/of {name}.jpg" in paths
        assert sorted(Path(path).name for path in paths) == sorted(f"of {other}.jpg" for other in names)  # each once


def test_folders_in_a_thousand_folders(tmp_path):
    deep = [f"{tmp_path}/a{'/d' * number}" for number in range(1000)]
    for folder in (*deep, f"{tmp_path}/b"):
        os.mkdir(folder)  # noqa: PTH102 (pathlib would take seconds)
    for file in (picture := Path(deep[-1], "1.jpg"), tmp_path / "b" / "2.jpg"):
        file.touch()
    try:
        assert len(list_samples(tmp_path)) == 2
    finally:  # too deep for pytest's own cleaning up
        picture.unlink()
        for folder in reversed(deep):
            os.rmdir(folder)  # noqa: PTH106


OUTSIDE = ["../secret.jpg", "a/../../secret.jpg", "/etc/passwd", "a/\0.jpg"]
OUTSIDE_ON_WINDOWS = ["..\\secret.jpg", "a\\..\\..\\secret.jpg", "C:\\secret.jpg", "C:secret.jpg", "\\secret.jpg"]
OUTSIDE_ON_WINDOWS += ["\\\\server\\share\\secret.jpg", "/secret.jpg"]


@pytest.fixture
def pictures(tmp_path):
    """Make a folder of two classes with a picture each, and a secret picture beside it."""
    for name in ("secret.jpg", "data/a/1.jpg", 'data/b, "x"\n/2.jpg', "data/images/a/1.jpg", "data/images/b/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path / "data"


CLASSES = ["a", 'b, "x"\n']
HEADER = b"path,label,split\r\n"
SPLIT = HEADER + b'a/1.jpg,a,train\r\n"b, ""x""\n/2.jpg","b, ""x""\n",val\r\n'


def check_split(file, root):
    """Assert that ``file`` is refused, or that all it says is true. Return the samples read from it."""
    samples = read_or_refused(lambda: read_split(file, root, CLASSES), file)
    if samples:
        assert samples.labels.shape == samples.split.shape == (len(set(samples.paths)),)
        assert set(samples.labels) <= {0, 1}
        assert set(samples.split) <= {"train", "val"}
        inside = root.resolve()
        assert all((root / path).is_file() and inside in (root / path).resolve().parents for path in samples.paths)
    return samples


@pytest.mark.parametrize(
    "content",
    {
        "nothing": b"",
        "no header": SPLIT[len(HEADER) :],
        "a column less": b"path,label\na/1.jpg,a\n",
        "other columns": SPLIT.replace(b"label", b"class"),
        "a row less": HEADER + b"a/1.jpg,a\n",
        "a row more": HEADER + b"a/1.jpg,a,train,\n",
        "an empty path": HEADER + b",a,train\n",
        "a folder": HEADER + b"a,a,train\n",
        "an unknown class": HEADER + b"a/1.jpg,c,train\n",
        "another side": HEADER + b"a/1.jpg,a,tset\n",
        "a row twice": SPLIT + b"a/1.jpg,a,train\n",
        "a picture on both sides": SPLIT + b"a/1.jpg,a,val\n",
        "a huge field": HEADER + b"x" * 200_000 + b",a,train\n",
        "a long name": HEADER + b"x" * 3000 + b",a,train\n",
        "an open quote": HEADER + b'"a/1.jpg,a,train\n' * 9,
        "NUL": HEADER + b"a/1.jpg\0,a,train\n",
        "no text": HEADER + b"\xff\xfe\x00/1.jpg,a,train\n",
        "UTF-16": SPLIT.decode().encode("utf-16"),
        **{path: HEADER + f'"{path}",a,train\n'.encode() for path in OUTSIDE + OUTSIDE_ON_WINDOWS},
    }.items(),
    ids=lambda item: item[0].replace("\0", "NUL"),
)
def test_a_hostile_split_is_refused(pictures, tmp_path, content):
    file = tmp_path / "split.csv"
    file.write_bytes(content[1])
    assert check_split(file, pictures) is None


def test_a_split_that_a_spreadsheet_saved_is_read(pictures, tmp_path):
    file = tmp_path / "split.csv"
    for content in (SPLIT, b"\xef\xbb\xbf" + SPLIT):
        file.write_bytes(content)
        assert check_split(file, pictures).paths == ["a/1.jpg", 'b, "x"\n/2.jpg']


@fuzzed
@given(damaged(SPLIT))
def test_a_damaged_split_is_read_or_refused(pictures, tmp_path, content):
    file = tmp_path / "split.csv"
    file.write_bytes(content)
    check_split(file, pictures)


@pytest.mark.parametrize("path", OUTSIDE_ON_WINDOWS)
def test_paths_out_of_the_data_folder_on_windows(monkeypatch, path):
    monkeypatch.setattr(plumage.files, "PurePath", PureWindowsPath)
    assert not plumage.files.is_below(path)
    assert plumage.files.is_below("a/..b/1.jpg")
    assert plumage.files.is_below("a\\1.jpg")


@pytest.mark.parametrize("path", OUTSIDE)
def test_what_a_run_could_not_read_is_sought_nowhere_else(tmp_path, path):
    file = tmp_path / "skipped.csv"
    write_skipped(file, [("a/1.jpg", "broken"), (path, "broken")])
    assert read_or_refused(lambda: read_skipped(file), file) is None


CUB = {
    "classes.txt": b"1 a\n2 b\n",
    "images.txt": b"1 a/1.jpg\n2 b/2.jpg\n",
    "image_class_labels.txt": b"1 1\n2 2\n",
    "train_test_split.txt": b"1 1\n2 0\n",
}


def check_cub(folder, **lists):
    for name, content in (CUB | lists).items():
        (folder / name).write_bytes(content)
    samples = read_or_refused(lambda: read_cub(folder), folder)
    if samples:
        assert samples.labels.shape == samples.split.shape == (len(set(samples.paths)),)
        assert len(set(samples.classes)) == len(samples.classes) > max(samples.labels)
        assert set(samples.split) <= {"train", "val"}
        store = open_store(folder, samples.paths, Square(8), Cache(folder, use_store=False))
        assert [path for path, _ in store.skipped] == samples.paths  # they are empty files, or there are none
    return samples


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: path.replace("\0", "NUL"))
def test_a_cub_list_that_leaves_the_data_folder_is_refused(pictures, path):
    assert check_cub(pictures) is not None
    assert check_cub(pictures, **{"images.txt": f"1 {path}\n".encode()}) is None


@fuzzed
@given(st.sampled_from(sorted(CUB)).flatmap(lambda name: st.tuples(st.just(name), damaged(CUB[name]))))
def test_a_damaged_cub_list_is_read_or_refused(pictures, damage):
    check_cub(pictures, **dict([damage]))
