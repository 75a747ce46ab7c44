import hashlib
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data.birds import species_list
from data.sources import fetch_cub200, list_samples, locate
from data.store import Cache
from errors import UserError


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


def cub(root: Path) -> None:
    names = {1: "001.Albatross", 2: "002.Bunting"}
    images = [(1, "001.Albatross/a 1.jpg", 1, 1), (2, "002.Bunting/b.jpg", 2, 0), (3, "001.Albatross/c.jpg", 1, 0)]
    touch(root, *(f"images/{path}" for _, path, _, _ in images))
    (root / "classes.txt").write_text("".join(f"{key} {name}\n" for key, name in names.items()))
    (root / "images.txt").write_text("".join(f"{key} {path}\n" for key, path, _, _ in images))
    (root / "image_class_labels.txt").write_text("".join(f"{key} {label}\n" for key, _, label, _ in images))
    (root / "train_test_split.txt").write_text("".join(f"{key} {train}\n" for key, _, _, train in images))


def test_cub_by_its_text_files_with_its_official_split(tmp_path):
    cub(tmp_path)
    assert listed(tmp_path) == [
        ("images/001.Albatross/a 1.jpg", "001.Albatross", "train"),
        ("images/001.Albatross/c.jpg", "001.Albatross", "val"),
        ("images/002.Bunting/b.jpg", "002.Bunting", "val"),
    ]


def test_cub_lists_as_windows_writes_them(tmp_path):
    cub(tmp_path)
    before = listed(tmp_path)
    for name in ("images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt"):
        file = tmp_path / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert listed(tmp_path) == before


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("images.txt", "1 ../../etc/passwd.jpg\n", "leaves the data folder"),
        ("images.txt", "nonsense\n", "no line of 'id value'"),
        ("images.txt", "", "lists no pictures"),
        ("images.txt", "1 001.Albatross/c.jpg\n3 001.Albatross/c.jpg\n", "lists a picture or a class twice"),
        ("images.txt", "1 001.Albatross/c.jpg\n1 002.Bunting/b.jpg\n", "an id is there twice"),
        ("classes.txt", "1 001.Albatross\n2 001.Albatross\n", "lists a picture or a class twice"),
        ("image_class_labels.txt", "1 1\n", "no entry"),
        ("image_class_labels.txt", "1 7\n2 7\n3 7\n", "no entry"),
    ],
)
def test_broken_cub_lists(tmp_path, file, text, says):
    cub(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=says):
        list_samples(tmp_path)


@pytest.fixture
def server(tmp_path):
    """A local web server of CUB_200_2011.tgz, its address, the archive's MD5, and the paths that were asked for."""
    cub(tmp_path / "web" / "CUB_200_2011")
    with tarfile.open(tmp_path / "web" / "CUB_200_2011.tgz", "w:gz") as archive:
        archive.add(tmp_path / "web" / "CUB_200_2011", "CUB_200_2011")
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path / "web")) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        md5 = hashlib.md5((tmp_path / "web" / "CUB_200_2011.tgz").read_bytes()).hexdigest()
        yield f"http://127.0.0.1:{web.server_port}/CUB_200_2011.tgz", md5, asked
        web.shutdown()


def test_cub200_is_fetched_once(tmp_path, server):
    url, md5, asked = server
    folder = fetch_cub200(tmp_path / "cache", url, md5)
    assert len(list_samples(folder)) == 3
    before = len(asked)
    assert before > 0
    assert fetch_cub200(tmp_path / "cache", url, md5) == folder
    assert len(asked) == before


def test_a_broken_download_is_refused_and_mended_by_running_again(tmp_path, server):
    url, md5, _ = server
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match="cub200"):
        fetch_cub200(cache, url, "0" * 32)
    assert not (cache / "CUB_200_2011").exists()
    (cache / "CUB_200_2011.tgz").write_bytes(b"half of it")
    (cache / "CUB_200_2011.partial").mkdir(exist_ok=True)
    assert len(list_samples(fetch_cub200(cache, url, md5))) == 3


def test_no_network_is_an_error_of_one_line(tmp_path):
    with pytest.raises(UserError, match="run again") as error:
        fetch_cub200(tmp_path / "cache", "http://127.0.0.1:9/CUB_200_2011.tgz")
    assert "\n" not in str(error.value)
