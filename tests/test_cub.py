import hashlib
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_sources import listed, touch

from plumage.data.cub import fetch_cub200
from plumage.data.sources import list_samples
from plumage.errors import UserError


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
