import os
import socket
import stat
from pathlib import Path

import pytest
from PIL import Image

from plumage.birds.species import species_list
from plumage.data.sources import list_pictures, list_samples, locate
from plumage.data.store import Cache, open_store
from plumage.errors import UserError


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
        ".db files",
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


def test_of_two_training_folders_the_one_left_out_is_named(tmp_path, caplog):
    caplog.set_level("INFO", "plumage")
    touch(tmp_path, *(f"{side}/{name}/1.jpg" for side in ("Train", "train", "val") for name in "ab"))
    assert not [path for path, _, _ in listed(tmp_path) if path.startswith("Train")]
    assert "Train/" in caplog.text


def test_the_test_folder_is_left_alone_where_there_is_a_validation_folder(tmp_path, caplog):
    caplog.set_level("INFO", "plumage")
    touch(tmp_path, *(f"{side}/{name}/{side}.jpg" for side in ("train", "validation", "test") for name in "ab"))
    assert not [path for path, _, _ in listed(tmp_path) if path.startswith("test")]
    assert "test/" in caplog.text


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
    read = open_store(data, samples.paths, 8, Cache(tmp_path / "cache"))
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
        assert open_store(samples.root, samples.paths, 8, Cache(tmp_path / "cache")).skipped == []
    monkeypatch.chdir("data")
    for inputs in ([f"{name}/{name}.jpg"], [name], [f"{name}/"]):
        assert list_pictures(inputs) == [f"{name}/{name}.jpg"]
    monkeypatch.chdir(name)
    assert list_pictures([f"{name}.jpg"]) == [f"{name}.jpg"]
