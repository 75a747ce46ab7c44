import csv
import os
from pathlib import Path

import numpy as np
import pytest
from hostile import damaged, fuzzed, read_or_refused
from hypothesis import given

from plumage.data.labels import read_labels
from plumage.data.samples import Samples
from plumage.data.split import write_split
from plumage.errors import UserError

PICTURES = ["a/1.jpg", "a/2.jpg", "b/3.png", "b/deep/4.jpg", "5.jpg"]


@pytest.fixture
def folder(tmp_path):
    """Five pictures, of which no test reads what they show."""
    touch(tmp_path / "pictures", *PICTURES)
    return tmp_path / "pictures"


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def read(folder, content, name="labels.csv"):
    """What a file of this content says: path → (class, side, group)."""
    file = folder.parent / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return said(read_labels(file, folder))


def said(samples):
    assert samples.paths == sorted(samples.paths)
    assert samples.classes == sorted(samples.classes)
    assert samples.labels.dtype == np.int64
    n = len(samples)
    split, groups = (each.tolist() if each is not None else [None] * n for each in (samples.split, samples.groups))
    labels = [samples.classes[label] for label in samples.labels]
    return {path: tuple(row) for path, *row in zip(samples.paths, labels, split, groups, strict=True)}


PLAIN = {"a/1.jpg": ("cat", None, None), "b/3.png": ("dog", None, None)}


@pytest.mark.parametrize("picture", ["path", "file", "filename", "image", "id", "image_id", "File Name", " IMAGE ID"])
@pytest.mark.parametrize("label", ["label", "class", "target", "species", "category", "Label "])
def test_every_name_of_the_two_columns(folder, picture, label):
    assert read(folder, f"{label},more,{picture}\ncat,7,a/1.jpg\ndog,8,b/3.png\n") == PLAIN


def test_of_several_such_columns_the_first_of_the_list_counts(folder):
    header, rows = "id,category,filename,label", ["9,animal,a/1.jpg,cat", "10,animal,b/3.png,dog"]
    assert read(folder, "\n".join([header, *rows])) == PLAIN


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_spreadsheets_write_is_read(folder, delimiter, encoding, end):
    touch(folder, "ä; b,\t.jpg")
    lines = [("filename", "label", "remark, if any; or"), ("a/1.jpg", "Käse, süß; x", "x"), ("ä; b,\t.jpg", "dog", "")]
    content = end.join(delimiter.join(f'"{cell}"' for cell in line) for line in lines) + end
    expected = {"a/1.jpg": ("Käse, süß; x", None, None), "ä; b,\t.jpg": ("dog", None, None)}
    assert read(folder, content.encode(encoding)) == expected


@pytest.mark.parametrize(
    "name",
    [
        "b/deep/4.jpg",
        "b/deep/4",
        "4.jpg",
        "4",
        "./b/deep/4.jpg",
        "b\\deep\\4.jpg",
        " 4.jpg ",
        "b//deep/4.jpg",
        "{folder}/b/deep/4.jpg",
    ],
)
def test_a_picture_is_named_by_its_path_or_its_name_with_or_without_suffix(folder, name):
    named = name.format(folder=folder)
    assert read(folder, f"image,label\n{named},cat\n5,dog\n") == {
        "5.jpg": ("dog", None, None),
        "b/deep/4.jpg": ("cat", None, None),
    }


def test_names_with_full_stops_of_their_own_and_without_suffixes(folder):
    touch(folder, "v1.2.jpg", "v1.jpg", "raw")
    assert list(read(folder, "id,label\nv1.2,cat\nv1,dog\nraw,dog\n")) == ["raw", "v1.2.jpg", "v1.jpg"]


@pytest.mark.parametrize("on_disk", ["Mu\u0308nze", "M\u00fcnze"])
@pytest.mark.parametrize("in_file", ["Mu\u0308nze", "M\u00fcnze"])
def test_unicode_forms_are_one(folder, on_disk, in_file):
    touch(folder, f"{on_disk}/{on_disk}.jpg")
    for name in (f"{in_file}/{in_file}.jpg", f"{in_file}.jpg", in_file):
        content = f"path,label\n{name},{in_file}\na/1.jpg,M\u00fcnze\na/2.jpg,cat\n"
        found = read(folder, content)
        assert found[f"{on_disk}/{on_disk}.jpg"] == found["a/1.jpg"] == ("M\u00fcnze", None, None)


def test_spaces_around_labels_and_groups_do_not_count(folder):
    content = (
        "path, label, split, group\na/1.jpg, cat , train, p1\na/2.jpg,cat,val,p1 \nb/3.png, dog,train ,\n5,dog,VAL,\n"
    )
    assert read(folder, content) == {
        "5.jpg": ("dog", "val", ""),
        "a/1.jpg": ("cat", "train", "p1"),
        "a/2.jpg": ("cat", "val", "p1"),
        "b/3.png": ("dog", "train", ""),
    }


HEADER = "path,label,split\n"


@pytest.mark.parametrize(
    ("cells", "split"),
    [
        (["train", "val", "test"], ["train", "val", "test"]),
        (["Training", "VALIDATION", "testing"], ["train", "val", "test"]),
        (["train", "valid", "dev"], ["train", "val", "val"]),
        (["train", "test", "test"], ["train", "val", "val"]),
        (["train", "train", "train"], None),
        (["", " ", ""], None),
    ],
)
def test_every_usual_name_of_the_sides(folder, cells, split, caplog):
    caplog.set_level("INFO", "plumage")
    rows = zip(("a/1.jpg", "a/2.jpg", "b/3.png"), ("cat", "dog", "dog"), cells, strict=True)
    found = read(folder, HEADER + "".join(f"{','.join(row)}\n" for row in rows))
    assert [side for _, side, _ in found.values()] == (split or [None] * 3)
    assert ("no val, so test is the validation set" in caplog.text) == ("val" not in cells and "test" in cells)


def test_a_class_that_is_missing_on_one_side_is_named(folder, caplog):
    read(folder, HEADER + "a/1.jpg,cat,train\na/2.jpg,dog,train\nb/3.png,dog,val\n5.jpg,eel,val\n")
    found = [line.partition(": ")[2] for line in caplog.messages if "have no row" not in line]
    assert found == ["no train pictures of eel", "no val pictures of cat"]


WRONG = {
    "of several pictures": (
        "path,label\n1,cat\n2,dog\n",
        "1 names are those of several pictures .*: 1; give their paths",
    ),
    "twice": (
        "path,label\na/1.jpg,cat\na/2.jpg,dog\n5,dog\n5.jpg,cat\n",
        "1 pictures are there twice, with different labels, splits or groups: 5.jpg; leave one",
    ),
    "twice, on two sides": (HEADER + "a/2.jpg,cat,train\na/2.jpg,cat,val\n", "1 pictures are there twice, .*: a/2.jpg"),
    "mostly of other pictures": (
        "path,label\na/1.jpg,cat\na/7.jpg,cat\na/8.jpg,dog\na/9.jpg,dog\nc.jpg,dog\n",
        r"4 of 5 pictures are not below --data .*pictures: a/7.jpg, a/8.jpg, a/9.jpg and 1 more; give .* names$",
    ),
    "of the folder above": (
        "path,label\npictures/5.jpg,cat\n",
        r"1 of 1 .*: pictures/5.jpg; did you mean --data '/.*'\?$",
    ),
    "outside": (
        "path,label\n../secret.jpg,cat\n/etc/passwd,cat\n",
        r"2 of 2 pictures are not .*: ../secret.jpg, /etc/p",
    ),
    "no label": ("path,name\na/1.jpg,cat\n", r"has the columns path, name; needs one for the picture \(path, .*label"),
    "no header": ("a/1.jpg,cat\na/2.jpg,dog\n", r"has the columns a/1.jpg, cat; needs"),
    "a column twice": ("path,label,Label\na/1.jpg,cat,dog\n", r"has the column label twice"),
    "empty": ("", "is empty"),
    "blank": ("\n \n\r\n", "is empty"),
    "a header alone": ("path,label\n", "has no row with a label"),
    "no labels": ("path,label\na/1.jpg,\na/2.jpg, \n", "has no row with a label"),
    "one class": ("path,label\na/1.jpg,cat\na/2.jpg,cat\n", r"has only one class \(cat\); two are needed"),
    "too many cells": ("path,label\na, b/1.jpg,cat\n", "row 2: has 3 cells, not 2"),
    "another side": (HEADER + "a/1.jpg,cat,tset\n", "row 2: the split is tset; needs train, val or test"),
    "some without a side": (
        HEADER + "a/1.jpg,cat,train\na/2.jpg,dog,\n5,dog,val\n",
        "1 rows have no split while others have one: a/2.jpg; fill",
    ),
    "nothing to train on": (HEADER + "a/1.jpg,cat,val\na/2.jpg,dog,val\n", "its column split has no train"),
    "an open quote": ('path,label\n"a/1.jpg,cat\n', "cannot be read"),
    "a huge cell": (f"path,label\n{'x' * 200_000},cat\n", "cannot be read"),
    "a huge header": ("x" * 3_000_000, "cannot be read|has the columns"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", "cannot be read|has the columns"),
    "UTF-16 cut short": ("path,label\n".encode("utf-16")[:-1], "cannot be read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_that_names_the_file_and_the_first(folder, case):
    touch(folder.parent, "secret.jpg")
    touch(folder, "b/1.jpg")
    content, says = WRONG[case]
    with pytest.raises(UserError, match=f"^--labels .*labels.csv[:,] ?{says}") as refused:
        read(folder, content)
    assert len(str(refused.value)) < 1000
    assert "\n" not in str(refused.value)


def test_what_is_no_file_is_refused(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", "pictures", "pipe", "x" * 3000, "pictures/5.jpg/below"):
        with pytest.raises(UserError, match=r"^--labels .*: cannot be read"):
            read_labels(tmp_path / name, folder)


def test_what_is_left_out_is_counted_and_the_first_are_named(folder, caplog):
    caplog.set_level("INFO", "plumage")
    content = "path,label\na/1.jpg,cat\n1.jpg,cat\nb/3.png,dog\ngone.jpg,dog\n5.jpg,\na/2.jpg\nnowhere.jpg,\n"
    assert read(folder, content) == PLAIN
    assert [line.partition("labels.csv: ")[2] for line in caplog.messages] == [
        "3 rows have no label, and are left out: 5.jpg, a/2.jpg, nowhere.jpg",
        f"1 pictures are not below {folder}, and are left out: gone.jpg",
        "1 rows say again what another says, and count once: a/1.jpg",
        f"3 pictures below {folder} have no row, and are left out",
    ]


def test_a_file_that_is_named_counts_as_a_picture_whatever_its_suffix_says(folder):
    touch(folder, "a/scan.dcm", ".hidden/1.jpg")
    assert "a/scan.dcm" in read(folder, "path,label\na/scan.dcm,cat\na/1.jpg,dog\n")
    assert ".hidden/1.jpg" in read(folder, "path,label\n.hidden/1.jpg,cat\na/1.jpg,dog\n")


def test_folders_mean_nothing(folder):
    for name in ("train", "val"):
        touch(folder, f"{name}/cat/{name} 1.jpg", f"{name}/dog/{name} 2.jpg")
    content = "id,label\ntrain 1,dog\ntrain 2,cat\nval 1,cat\nval 2,dog\n"
    assert read(folder, content) == {
        "train/cat/train 1.jpg": ("dog", None, None),
        "train/dog/train 2.jpg": ("cat", None, None),
        "val/cat/val 1.jpg": ("cat", None, None),
        "val/dog/val 2.jpg": ("dog", None, None),
    }


ODD = ["=1+1", "'=x", "-a", " spaced ", 'quo"te', "two\nlines", "n\udcff", "鳥", "1", "Mu\u0308nze"]


def test_a_split_that_a_run_wrote_is_the_same_again(tmp_path):
    """Whatever names have come from folders: what a spreadsheet would compute, spaces, and bytes that are no text."""
    root = tmp_path / "pictures"
    paths = sorted(f"{name}/{name}{number}.jpg" for name in ODD for number in range(4))
    touch(root, *paths)
    classes = sorted(ODD)
    labels = np.array([classes.index(path.partition("/")[0]) for path in paths])
    groups = np.array([path.partition("/")[0] if path.endswith(("1.jpg", "2.jpg")) else "" for path in paths], object)
    split = np.array(["train", "val", "train", "test"] * len(ODD))
    samples = Samples(root, paths, labels, classes, split, groups)
    write_split(tmp_path / "split.csv", samples)
    again = read_labels(tmp_path / "split.csv", root)
    assert (again.paths, again.classes) == (paths, classes)
    for name in ("labels", "split", "groups"):
        assert np.array_equal(getattr(again, name), getattr(samples, name)), name


def test_a_label_mended_with_a_space_too_much_makes_no_new_class(folder):
    content = HEADER + "a/1.jpg,cat,train\na/2.jpg,cat ,train\nb/3.png,dog,train\n5.jpg,dog,val\nb/deep/4.jpg,cat,val\n"
    assert {name for name, _, _ in read(folder, content).values()} == {"cat", "dog"}


WHOLE = b'path,label,split,group\r\na/1.jpg,cat,train,p\r\n"b/3.png",dog,train,\r\n5.jpg,"cat",val,\r\n'
WHOLE += b"a/2.jpg,dog,val,q\r\n"


@fuzzed
@given(damaged(WHOLE))
def test_a_damaged_file_is_read_or_refused(folder, tmp_path, content):
    file = tmp_path / "labels.csv"
    file.write_bytes(content)
    samples = read_or_refused(lambda: read_labels(file, folder), file)
    if samples:
        assert set(samples.paths) <= set(PICTURES)
        assert set(samples.labels) == set(range(len(samples.classes)))
        assert samples.split is None or set(samples.split) <= {"train", "val", "test"}


def test_many_rows_by_name(tmp_path):
    """What takes a loop over all pictures for each row would not end."""
    root = tmp_path / "pictures"
    root.mkdir()
    (root / "0.jpg").touch()
    for number in range(1, 20_000):
        os.link(root / "0.jpg", root / f"{number}.jpg")
    with (file := tmp_path / "labels.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("id", "label"), *((number, number % 7) for number in range(20_000))])
    samples = read_labels(file, root)
    assert len(samples) == 20_000
    assert all(int(Path(path).stem) % 7 == label for path, label in zip(samples.paths, samples.labels, strict=True))


def test_a_delimiter_at_the_end_of_each_row_makes_no_column(folder):
    assert read(folder, "file,label\na/1.jpg,cat,\nb/3.png,dog,,\n") == PLAIN


@pytest.mark.parametrize(
    ("sides", "becomes"), [("train holdout", "train val"), ("train dev holdout", "train val test")]
)
def test_what_is_held_out_validates_where_nothing_else_does_as_with_folders(folder, sides, becomes):
    rows = [f"{picture},{name},{side}" for picture, name, side in zip(PICTURES, "aba", sides.split(), strict=False)]
    found = read(folder, "\n".join(["file,label,split", *rows]))
    assert [found[picture][1] for picture in PICTURES[: len(rows)]] == becomes.split()


def test_classes_that_are_spelled_nearly_alike_are_named(folder, caplog):
    said = read(folder, "file,label\na/1.jpg,Red cat\na/2.jpg,red_cat\nb/3.png,1\nb/deep/4.jpg,1.0\n5.jpg,2.0\n")
    assert len({label for label, _, _ in said.values()}) == 5
    (line,) = [line for line in caplog.messages if "spell" in line]
    assert ": 1, 1.0, Red cat, red_cat are classes of their own; spell alike what is the same" in line


def test_names_of_another_encoding_than_utf8_are_told(folder, caplog):
    """As Excel's plain CSV has them."""
    table = "file,label\na/1.jpg,Bär\nb/3.png,Maus\n"
    read(folder, table)
    assert "UTF-8" not in caplog.text
    read(folder, table.encode("latin-1"))
    assert "is not UTF-8, so that letters of B\\udce4r are lost; save it as CSV UTF-8" in caplog.text
