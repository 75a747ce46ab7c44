import os
import socket
import stat
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from plumage.birds.species import species_list
from plumage.data.decode import Square
from plumage.data.layout import side_of
from plumage.data.sources import list_pictures, list_samples, locate
from plumage.data.store import Cache, open_store
from plumage.errors import UserError, visible


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def listed(root: Path, **options):
    samples = list_samples(root, **options)
    labels = [samples.classes[label] for label in samples.labels]
    split = samples.split.tolist() if samples.split is not None else [None] * len(samples)
    return list(zip(samples.paths, labels, split, strict=True))


def test_class_folders(tmp_path):
    touch(tmp_path, "dog/2.JPG", "cat/b/deep/3.png", "cat/1.jpeg", "dog/10.webp")
    assert listed(tmp_path) == [
        ("cat/1.jpeg", "cat", None),
        ("cat/b/deep/3.png", "cat", None),
        ("dog/10.webp", "dog", None),
        ("dog/2.JPG", "dog", None),
    ]


@pytest.mark.parametrize("parts", [("",), ("train/", "val/")])
def test_paths_are_sorted_whatever_the_folders_are_called(tmp_path, parts):
    names = ["a", "a b", "a!", "a.b", "a0", "B", "ä"]  # a space and a full stop come before the slash, a nought after
    for part in parts:
        touch(tmp_path, *(f"{part}{name}/{picture}" for name in names for picture in ("z.jpg", "b/1.jpg", "b 1.jpg")))
    samples = list_samples(tmp_path)
    assert samples.paths == sorted(samples.paths)
    assert len(samples) == len(parts) * len(names) * 3
    for path, label in zip(samples.paths, samples.labels, strict=True):
        assert path.split("/")[len(parts) - 1] == samples.classes[label]
    if samples.split is not None:
        assert list(samples.split) == [path.partition("/")[0] for path in samples.paths]


def test_what_is_no_picture_is_ignored_with_one_notice(tmp_path, caplog):
    caplog.set_level("INFO", "plumage")
    touch(
        tmp_path,
        "a/1.jpg",
        "b/1.jpg",
        "b/notes.txt",
        "b/Thumbs.db",
        "b/._1.jpg",
        ".ipynb_checkpoints/1.jpg",
        "labels.csv",
    )
    (tmp_path / "empty").mkdir()
    assert [path for path, _, _ in listed(tmp_path)] == ["a/1.jpg", "b/1.jpg"]
    assert len(caplog.messages) == 1
    for part in (
        ".txt files",
        "Thumbs.db",
        "2 hidden files or folders",
        "the empty class empty",
        "files outside the class folders",
    ):
        assert part in caplog.messages[0]


def test_labels_go_by_name_though_a_class_is_missing_on_either_side(tmp_path, caplog):
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/d/1.jpg", "val/b/2.jpg", "val/c/2.jpg", "val/d/2.jpg")
    assert list_samples(tmp_path).classes == ["a", "b", "c", "d"]
    assert {(path, label, side) for path, label, side in listed(tmp_path)} == {
        ("train/a/1.jpg", "a", "train"),
        ("train/b/1.jpg", "b", "train"),
        ("train/d/1.jpg", "d", "train"),
        ("val/b/2.jpg", "b", "val"),
        ("val/c/2.jpg", "c", "val"),
        ("val/d/2.jpg", "d", "val"),
    }
    assert any("no training pictures of c" in message for message in caplog.messages)
    assert any("no validation pictures of a" in message for message in caplog.messages)


@pytest.mark.parametrize("train", ["train", "training", "Train"])
@pytest.mark.parametrize("name", ["val", "valid", "validation", "test", "Val"])
def test_every_usual_name_of_the_two_folders(tmp_path, train, name):
    touch(tmp_path, f"{train}/a/1.jpg", f"{train}/b/1.jpg", f"{name}/a/2.jpg", f"{name}/b/2.jpg")
    assert {(f"{name}/a/2.jpg", "a", "val"), (f"{train}/a/1.jpg", "a", "train")} < set(listed(tmp_path))


def sides(root: Path) -> tuple[list[str], dict[str, int]]:
    """The classes, and how many pictures are on each side: "" where the source has no split."""
    samples = list_samples(root)
    assert samples.paths == sorted(samples.paths)
    assert all((root / path).is_file() for path in samples.paths)
    return samples.classes, Counter([""] * len(samples) if samples.split is None else samples.split.tolist())


@pytest.mark.parametrize(
    ("side", "names"),
    {
        "train": "train Training TRAIN trainset train_data TrainImages seg_train train2017 Train_v2 trainval trn",
        "val": "val Valid validation ValSet dev dev_images x-validation-2 VALIDATE",
        "held out": "eval evaluation holdout hold_out my_held-out eval-set",
        "test": "test Testing TestSet test_images1 tst 2019test the.test",
        "": "trainer train_test test-dev contest latest trains retrain entraînement tra\u0301in_ evaluate_me data set",
    }.items(),
)
def test_which_side_a_name_means(side, names):
    assert {name: side_of(name) for name in names.split()} == dict.fromkeys(names.split(), side)


def fill(root: Path, layout: str) -> None:
    """Make what ``layout`` lists: 4*train/a is four pictures in train/a."""
    for number, part in enumerate(layout.split(", ")):
        count, star, folder = part.partition("*")
        names = [f"{folder}/{number}.{each}.jpg" for each in range(int(count))] if star else [part]
        touch(root, *names)


SPLIT_LAYOUTS = {
    "the plain names": ("4*train/a, 3*train/b, 2*val/a, 1*val/b", "ab", (7, 3)),
    "capitals": ("4*TRAIN/a, 3*TRAIN/b, 2*Valid/a, 1*Valid/b", "ab", (7, 3)),
    "training and testing": ("4*Training/a, 3*Training/b, 2*Testing/a, 1*Testing/b", "ab", (7, 3)),
    "sets": ("4*training_set/a, 3*training_set/b, 2*test_set/a, 1*test_set/b", "ab", (7, 3)),
    "sets in one word": ("4*trainset/a, 3*trainset/b, 2*valset/a, 1*valset/b", "ab", (7, 3)),
    "sets in camel case": ("4*TrainSet/a, 3*TrainSet/b, 2*TestSet/a, 1*TestSet/b", "ab", (7, 3)),
    "data": ("4*train-data/a, 3*train-data/b, 2*holdout-data/a, 1*holdout-data/b", "ab", (7, 3)),
    "images": ("4*Train Images/a, 3*Train Images/b, 2*Test Images/a, 1*Test Images/b", "ab", (7, 3)),
    "a year": ("4*train2017/a, 3*train2017/b, 2*val2017/a, 1*val2017/b", "ab", (7, 3)),
    "a prefix": ("4*xyz_train/a, 3*xyz_train/b, 2*xyz_tst/a, 1*xyz_tst/b", "ab", (7, 3)),
    "dev": ("4*train/a, 3*train/b, 2*dev/a, 1*dev/b", "ab", (7, 3)),
    "eval": ("4*train/a, 3*train/b, 2*eval/a, 1*eval/b", "ab", (7, 3)),
    "evaluation": ("4*train/a, 3*train/b, 2*Evaluation/a, 1*Evaluation/b", "ab", (7, 3)),
    "hold-out": ("4*train/a, 3*train/b, 2*hold-out/a, 1*hold-out/b", "ab", (7, 3)),
    "what trains and validates": ("4*trainval/a, 3*trainval/b, 2*test/a, 1*test/b", "ab", (7, 3)),
    "one deeper": (
        "4*seg_train/seg_train/a, 3*seg_train/seg_train/b, 2*seg_test/seg_test/a, 1*seg_test/seg_test/b, "
        "9*seg_pred/seg_pred",
        "ab",
        (7, 3),
    ),
    "images of a side, labels beside": (
        "4*train/images/a, 3*train/images/b, train/labels/a.txt, 2*val/images/a, 1*val/images/b",
        "ab",
        (7, 3),
    ),
    "one deeper on one side": ("4*train/train/a, 3*train/train/b, 2*test/a, 1*test/b", "ab", (7, 3)),
    "a class alone in val, with folders": ("4*train/a/x, 3*train/b, 2*val/a/x, 1*val/a/y", "ab", (7, 3)),
    "all three": ("4*train/a, 3*train/b, 2*val/a, 1*val/b, 2*test/a, 3*test/b", "ab", (7, 3, 5)),
    "all three, one deeper": (
        "4*x_train/x_train/a, 3*x_train/x_train/b, 2*x_valid/x_valid/a, 1*x_valid/x_valid/b, 5*x_test/x_test/a",
        "ab",
        (7, 3, 5),
    ),
    "train, dev and eval": ("4*train/a, 3*train/b, 2*dev/a, 1*dev/b, 5*eval/a", "ab", (7, 3, 5)),
    "train, eval and test": ("4*train/a, 3*train/b, 2*eval/a, 1*eval/b, 5*test/b", "ab", (7, 3, 5)),
    "val wins over eval": ("4*train/a, 3*train/b, 9*eval/a, 2*val/a, 1*val/b, 5*test/b", "ab", (7, 3, 5)),
    "an exact name wins": ("4*train/a, 3*train/b, 9*train_more/a, 2*val/a, 1*val/b, 9*val_old/b", "ab", (7, 3)),
    "a name without classes loses": ("4*train_set/a, 3*train_set/b, 5*train, 3*test/a, 0*test/b", "ab", (7, 3)),
    "others beside": ("4*train/a, 3*train/b, 2*val/a, 1*val/b, 9*raw, 9*bus/a", "ab", (7, 3)),
    "a class that test has alone": ("4*train/a, 3*train/b, 2*val/a, 1*val/b, 5*test/a, 2*test/c", "ab", (7, 3, 5)),
    "test without classes": ("4*train/a, 3*train/b, 2*val/a, 1*val/b, 9*test", "ab", (7, 3)),
    "a competition": ("4*Train_Images/a, 3*Train_Images/b, 9*Test_Images, labels.csv", "ab", ()),
    "a competition, one deeper": ("4*abc_train/abc_train/a, 3*abc_train/abc_train/b, 9*abc_test/abc_test", "ab", ()),
    "a competition, images": ("4*train/images/a, 3*train/images/b, 9*test/images", "ab", ()),
}


@pytest.mark.parametrize("name", SPLIT_LAYOUTS)
def test_folders_of_a_split_are_its_sides(tmp_path, name):
    layout, classes, counts = SPLIT_LAYOUTS[name]
    fill(tmp_path, layout)
    assert sides(tmp_path) == ([*classes], dict(zip(("train", "val", "test"), counts, strict=False)) or {"": 7})


CLASS_LAYOUTS = {
    "test": ("4*test, 3*cat, 2*dog", ["cat", "dog", "test"]),
    "train and test": ("4*train, 3*test, 2*bus", ["bus", "test", "train"]),
    "train, val and test": ("4*train, 2*val, 2*test, 1*bus", ["bus", "test", "train", "val"]),
    "words in names": ("3*steam train, 2*crash test, 4*bus", ["bus", "crash test", "steam train"]),
    "words in names, with folders": (
        "3*steam train/2019, 2*crash test/front, 4*bus",
        ["bus", "crash test", "steam train"],
    ),
    "tests": ("3*test positive, 6*test negative", ["test negative", "test positive"]),
    "what only looks like a word": ("3*valid/a, 2*valid/b, 4*invalid", ["invalid", "valid"]),
    "train with folders": ("3*train/steam, 2*train/diesel, 4*bus", ["bus", "train"]),
    "folders in classes": ("3*cat/2019, 2*cat/2020, 1*dog/2019, 3*dog/2021", ["cat", "dog"]),
    "one folder in each class": ("3*cat/images, 6*dog/images", ["cat", "dog"]),
    "the same folders, and pictures": ("3*cat/x, 1*cat/y, 1*cat, 3*dog/x, 1*dog/y", ["cat", "dog"]),
}


@pytest.mark.parametrize("name", CLASS_LAYOUTS)
def test_class_folders_with_words_of_splits_stay_classes(tmp_path, name):
    layout, classes = CLASS_LAYOUTS[name]
    fill(tmp_path, layout)
    assert sides(tmp_path) == (classes, {"": 9})


REFUSED = {
    "no names of sides": ("2*one/a, 1*one/b, 1*two/a, 1*two/b", "name them train and val"),
    "one deeper": ("2*one/x/a, 1*one/x/b, 1*two/y/a, 1*two/y/b", "name them train and val"),
    "a class less": ("2*one/a, 1*one/b, 1*one/c, 1*two/a, 1*two/b", "name them train and val"),
    "parts": ("1*f1/a, 1*f1/b, 1*f2/a, 1*f2/b, 1*f3/a, 1*f3/b", "name them train and val"),
    "train and another": ("2*train/a, 1*train/b, 1*extra/a, 1*extra/b", "name them train and val"),
    "composed and decomposed": ("1*one/\u00e9, 1*one/b, 1*two/e\u0301, 1*two/b", "name them train and val"),
    "two that train": ("2*Train/a, 1*train/a, 1*train/b, 1*val/a", "Train/ and train/ may each be"),
    "two that validate": ("2*train/a, 1*train/b, 1*val/a, 1*valid/a", "val/ and valid/ may each be"),
    "two that test": ("2*train/a, 1*test_1/a, 1*test_2/a, 1*val/a", "test_1/ and test_2/ may each be"),
    "other classes": ("2*train/a, 1*train/b, 1*val/c, 1*val/d", "val/ has no folders of train/'s classes"),
    "no class folders": ("2*train, 3*test, train.csv", "train holds 2 pictures but no class folders.*--labels FILE"),
    "none to validate with": ("2*train/a, 2*train/b, 3*val", "val holds 3 pictures but no class folders"),
    "none in a set": ("2*train/a, 2*train/b, 3*val_images", "val_images holds 3 pictures but no class folders"),
    "classes with a split each": ("1*a/train, 1*a/test, 1*b/train, 1*b/test", "turn that round, as train/a"),
    "a split beside pictures": ("1*x/train/a, 1*x/val/a, 3*samples", "x/ holds train, val: give it as --data"),
    "test beside what trains": ("1*a, 1*b, 1*test/a, 1*test/b", "test/ holds a, b, which are beside it too"),
    "the training set alone": ("1*Training/a, 1*Training/b, readme.txt", "did you mean --data '.*Training'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_folders_that_cannot_be_told_apart_are_refused_with_the_way_out(tmp_path, name):
    layout, says = REFUSED[name]
    fill(tmp_path, layout)
    with pytest.raises(UserError, match=says) as refusal:
        list_samples(tmp_path)
    assert "\n" not in str(refusal.value)


def test_which_folder_is_which_side_is_said_where_names_do_not_say_it(tmp_path, caplog):
    caplog.set_level("INFO", "plumage")
    fill(tmp_path / "x", "2*train/a, 2*val/a, 2*train/b, 1*val/b")
    list_samples(tmp_path / "x")
    assert not caplog.messages
    fill(tmp_path / "y", "2*seg_train/a, 2*seg_train/b, 2*seg_test/a, 1*seg_test/b, 9*seg_pred")
    list_samples(tmp_path / "y")
    assert "seg_train/ trains, seg_test/ validates, since there is no val/" in caplog.text
    assert "ignored seg_pred/" in caplog.text
    fill(tmp_path / "z", "2*train/a, 2*train/b, 2*val/a, 1*val/b, 2*test/a, 2*test/c")
    list_samples(tmp_path / "z")
    assert "train/ trains, val/ validates, test/ is kept for eval --split test" in caplog.text
    assert "c are in test/ alone, and left out" in caplog.text
    assert "no test pictures of b" in caplog.text
    fill(tmp_path / "w", "2*train/steam, 2*train/diesel, 1*bus")
    list_samples(tmp_path / "w")
    assert "train/ is taken for one class, with diesel, steam in it" in caplog.text


E_COMPOSED, E_APART = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(("one", "other"), [(E_COMPOSED, E_APART), (E_APART, E_COMPOSED)])
def test_a_class_is_the_same_in_each_of_unicodes_forms(tmp_path, caplog, one, other):
    caplog.set_level("INFO", "plumage")
    fill(tmp_path / "split", f"2*train/{one}, 2*train/tea, 2*val/{other}, 1*val/tea")
    assert sides(tmp_path / "split") == ([E_COMPOSED, "tea"], {"train": 4, "val": 3})
    assert not caplog.messages
    fill(tmp_path / "classes", f"2*{one}, 2*tea")
    assert sides(tmp_path / "classes") == ([E_COMPOSED, "tea"], {"": 4})
    assert list_samples(tmp_path / "classes").paths[0].startswith(f"{one}/")  # as the disk has it
    assert not caplog.messages
    for root, part in ((tmp_path / "classes", ""), (tmp_path / "split", "train/")):
        before = sides(root)[1]
        fill(root, f"3*{part}{other}")
        classes, counts = sides(root)
        assert classes == [E_COMPOSED, "tea"]
        assert sum(counts.values()) == sum(before.values()) + 3
        assert len(caplog.messages) == 1
        assert "those that look the same are one class" in caplog.messages.pop()
        caplog.clear()


def test_named_inputs_are_found_in_each_of_unicodes_forms(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, f"1*{E_APART}/{E_COMPOSED}")
    real = [f"{E_APART}/{E_COMPOSED}/0.0.jpg"]
    assert list_pictures([E_COMPOSED]) == list_pictures([f"{E_COMPOSED}/{E_APART}/0.0.jpg"]) == real
    assert list_pictures([f"{tmp_path}/{E_COMPOSED}/{E_APART}"]) == [f"{tmp_path}/{real[0]}"]
    with pytest.raises(UserError, match="no such picture or folder"):
        list_pictures([f"{E_COMPOSED}s"])


JUNK_NAMES = [
    "@eaDir", "#recycle", "#snapshot", "@Recycle", "$RECYCLE.BIN", "$Recycle.Bin", "RECYCLER", "lost+found",
    "System Volume Information", "__MACOSX", "LOST.DIR", "Network Trash Folder", "~snapshot", ".Trash-1000",
    ".Spotlight-V100", ".@__thumb", ".AppleDouble", ".thumbnails",
]  # fmt: skip
JUNK_FILES = ["Thumbs.db", "thumbs.DB", "ehthumbs.db", "Desktop.ini", "desktop.ini", "Icon\r", "._1.jpg", ".DS_Store"]


@pytest.mark.parametrize("name", JUNK_NAMES + JUNK_FILES)
@pytest.mark.parametrize("parts", [("",), ("train/", "val/")])
def test_junk_of_systems_is_ignored_and_counted(tmp_path, caplog, name, parts):
    caplog.set_level("INFO", "plumage")
    junk = f"{name}/thumb.jpg" if name in JUNK_NAMES else name
    for part in parts:
        touch(tmp_path, *(f"{part}{label}/{picture}.jpg" for label in "ab" for picture in "12"))
        touch(tmp_path, *(f"{part}{below}{junk}" for below in ("a/", "b/deep/")))
    touch(tmp_path, junk)
    expected = {part.strip("/"): 4 for part in parts}
    assert sides(tmp_path) == (["a", "b"], expected)
    (line,) = caplog.messages
    shown = "hidden files or folders" if name[0] == "." else f"{visible(name)}{'/' * (name in JUNK_NAMES)}"
    assert f"ignored {2 * len(parts) + 1} {shown}" in line
    caplog.clear()
    assert len(list_pictures([str(tmp_path)])) == 4 * len(parts)
    assert shown in caplog.text


@pytest.mark.parametrize("unlabelled", ["test/1.jpg", "test/images/1.jpg", "test/readme.txt"])
def test_a_test_folder_without_classes_is_left_for_predict(tmp_path, caplog, unlabelled):
    caplog.set_level("INFO", "plumage")
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", unlabelled, "labels.csv")
    assert listed(tmp_path) == [("train/a/1.jpg", "a", None), ("train/b/1.jpg", "b", None)]
    assert "a part of train/ validates" in caplog.text


def test_runs_among_the_pictures_are_none_of_them(tmp_path, caplog):
    caplog.set_level("INFO", "plumage")
    files = ("recipe.json", "classes.json", "split.csv", "figures/loss.png")
    touch(
        tmp_path, "a/1.jpg", "b/1.jpg", "b/recipe.json", *(f"{run}/{name}" for run in ("runs/x", "y") for name in files)
    )
    assert listed(tmp_path) == [("a/1.jpg", "a", None), ("b/1.jpg", "b", None)]
    assert "the run " in caplog.text


def test_a_class_may_be_called_train(tmp_path):
    touch(tmp_path, "train/1.jpg", "bus/1.jpg")
    assert {label for _, label, _ in listed(tmp_path)} == {"train", "bus"}


def test_a_circular_link_ends(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert [path for path, _, _ in listed(tmp_path)] == ["a/1.jpg", "b/1.jpg"]


def test_a_class_folder_may_be_a_link(tmp_path):
    touch(tmp_path, "elsewhere/1.jpg", "data/b/1.jpg")
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere")
    assert [path for path, _, _ in listed(tmp_path / "data")] == ["a/1.jpg", "b/1.jpg"]


def test_names_that_are_not_utf8(tmp_path):
    touch(tmp_path, "a/na\udcefve.jpg", "b/1.jpg")
    assert listed(tmp_path)[0][0] == "a/na\udcefve.jpg"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([], "no pictures"),
        (["1.jpg", "2.jpg"], "2 pictures but no class folders"),
        (["a/readme.txt"], "no pictures"),
        (["cat/1.jpg"], r"only one class \(cat\)"),
        (["photos/cat/1.jpg", "photos/dog/1.jpg"], "did you mean --data '.*photos'"),
        (["train/cat/1.jpg", "train/dog/1.jpg"], "did you mean --data '.*train'"),
        (["a/b/c/cat/1.jpg", "a/b/c/dog/1.jpg", "a/readme.txt"], r"did you mean --data '.*a/b/c'\?$"),
        (["train/cat/1.jpg", "train/dog/1.jpg", "val/readme.txt"], "val holds no pictures"),
    ],
)
def test_nothing_to_learn_from(tmp_path, files, says):
    touch(tmp_path, *files)
    with pytest.raises(UserError, match=says):
        list_samples(tmp_path)


def test_no_such_folder(tmp_path):
    (tmp_path / "file.jpg").touch()
    with pytest.raises(UserError, match="does not exist"):
        locate(str(tmp_path / "none"), Cache(tmp_path))
    with pytest.raises(UserError, match="is a file"):
        locate(str(tmp_path / "file.jpg"), Cache(tmp_path))


@pytest.mark.parametrize("name", ["a.zip", "a.ZIP", "a.tar", "a.tar.gz", "a.tgz", "a.7z", "a.rar", "a.tar.xz"])
def test_an_archive_is_to_be_unpacked(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"--data .*{name}: is an archive: unpack it; give a folder"):
        locate(str(tmp_path / name), Cache(tmp_path))


def test_the_birds_are_drawn_once_for_each_wish(tmp_path, caplog):
    caplog.set_level("INFO", "plumage")
    cache = Cache(tmp_path / "cache", workers=1)
    folder = locate("birds:species=2,pictures=3,seed=5", cache)
    assert listed(folder) == [
        (f"{bird}/{picture:04d}.jpg", bird, None)
        for bird in sorted(bird.name for bird in species_list(2, 5))
        for picture in range(3)
    ]
    assert locate("birds:seed=5,pictures=3,species=2", cache) == folder
    assert len(caplog.messages) == 1
    assert [path.name for path in cache.folder.iterdir()] == ["birds-v1-species2-pictures3-seed5"]


def test_birds_alone_are_those_drawn_already(tmp_path, caplog):
    caplog.set_level("INFO", "plumage")
    (tmp_path / "birds-v1").mkdir()
    for data in ("birds", "birds:species=200", "birds:seed=0,pictures=30"):
        assert locate(data, Cache(tmp_path)) == tmp_path / "birds-v1"
    assert not caplog.messages


def test_a_wrong_wish_draws_nothing(tmp_path):
    with pytest.raises(UserError, match=r"--data birds:species=1: .*species=2\.\.2000"):
        locate("birds:species=1", Cache(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_a_folder_called_birds(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "plumage")
    monkeypatch.chdir(tmp_path)
    for name in ("birds", "cache/birds-v1"):
        Path(name).mkdir(parents=True)
    assert locate("./birds", Cache(Path("cache"))) == Path("birds")
    assert not caplog.messages
    assert locate("birds", Cache(Path("cache"))) == Path("cache/birds-v1")
    assert "write --data ./birds" in caplog.text


def deep(root: Path) -> None:
    """Make folders below ``root`` to a path of more than 4,096 bytes, with a picture in each."""
    before = Path.cwd()
    os.chdir(root)
    try:
        for _ in range(20):
            Path("x" * 250).mkdir()
            os.chdir("x" * 250)
            Path("1.jpg").touch()
    finally:
        os.chdir(before)


def hostile(folder: Path) -> None:
    """Fill ``folder`` with names that lead nowhere, beside an empty 1.jpg."""
    touch(folder, "1.jpg")
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "circle").symlink_to("circle")
    (folder / "nowhere.jpg").symlink_to("gone.jpg")
    (folder / "below.jpg").symlink_to("1.jpg/below")
    (folder / "too long.jpg").symlink_to("x" * 300)
    for number in range(45):
        (folder / f"link {number}.jpg").symlink_to(f"link {number + 1}.jpg" if number < 44 else "1.jpg")
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(folder)
        listener.bind("socket.jpg")
        os.chdir(here)
    os.mknod(folder / "null.jpg", 0o600 | stat.S_IFCHR, os.makedev(1, 3)) if os.geteuid() == 0 else None


@pytest.mark.parametrize("layout", ["{}", "train/{}"])
def test_what_leads_nowhere_is_listed_or_left_out_and_refuses_nothing(tmp_path, caplog, layout):
    data = tmp_path / "data"
    for name in "ab":
        touch(data, f"{layout.format(name)}/good.png", *([f"val/{name}/good.png"] if "/" in layout else []))
        Image.new("RGB", (9, 9)).save(data / layout.format(name) / "good.png")
    hostile(data / layout.format("a"))
    deep(data / layout.format("b"))
    samples = list_samples(data)
    read = open_store(data, samples.paths, Square(8), Cache(tmp_path / "cache"))
    skipped = dict(read.skipped)
    assert {path.rpartition("/")[2] for path in skipped} >= {
        "itself.jpg",
        "nowhere.jpg",
        "pipe.jpg",
        "socket.jpg",
        "link 0.jpg",
    }
    assert all(reason.isprintable() and len(reason) < 500 for reason in skipped.values())
    assert [line for line in caplog.messages if "cannot be listed (File name too long)" in line]
    listed = list_pictures([str(data)])
    assert set(listed) == {f"{data}/{path}" for path in samples.paths}


def test_a_folder_that_cannot_be_listed_is_a_warning_unless_it_is_the_data(tmp_path, caplog, monkeypatch):
    touch(tmp_path, "a/1.jpg", "b/1.jpg", "b/closed/2.jpg", "closed/3.jpg")
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == closed:
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    closed = "closed"
    assert [path for path, _, _ in listed(tmp_path)] == ["a/1.jpg", "b/1.jpg"]
    assert sum("cannot be listed (Permission denied)" in line for line in caplog.messages) == 2
    assert list_pictures([str(tmp_path)]) == [f"{tmp_path}/a/1.jpg", f"{tmp_path}/b/1.jpg"]
    closed = tmp_path.name
    with pytest.raises(UserError, match=f"{tmp_path} cannot be listed: Permission denied"):
        list_samples(tmp_path)


ODD = [
    "~",
    "~nosuchuser",
    "~root",
    "-",
    "--help",
    "two\nlines",
    "n\udcff",
    " ",
    "trailing ",
    "a,b",
    "鳥" * 83,
    "x" * 251,
]


@pytest.mark.parametrize("name", ODD)
def test_a_picture_or_folder_of_any_name_is_taken_as_it_is(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for folder in (name, "other"):
        Path("data", folder).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(Path("data", folder, f"{name}.jpg"), "JPEG")
    samples = list_samples(locate("data", Cache(tmp_path)))
    assert samples.paths == sorted([f"{name}/{name}.jpg", f"other/{name}.jpg"])
    for _ in range(2):
        assert open_store(samples.root, samples.paths, Square(8), Cache(tmp_path / "cache")).skipped == []
    monkeypatch.chdir("data")
    for inputs in ([f"{name}/{name}.jpg"], [name], [f"{name}/"]):
        assert list_pictures(inputs) == [f"{name}/{name}.jpg"]
    monkeypatch.chdir(name)
    assert list_pictures([f"{name}.jpg"]) == [f"{name}.jpg"]
