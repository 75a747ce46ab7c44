import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import zlib
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import CLIPART, ROOT
from PIL import Image

import plumage.data.cache
import plumage.data.decode
import plumage.data.store
from plumage.data.ahead import map_ahead
from plumage.data.decode import Square, decode
from plumage.data.duplicates import difference_hashes
from plumage.data.store import Cache, Store, open_store, read_skipped
from plumage.errors import UserError


def save(image: Image.Image, file: Path, **options) -> Path:
    image.save(file, **options)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three sound pictures among files that cannot be read."""
    root = tmp_path / "photos"
    root.mkdir()
    for number in (1, 2, 3):
        noise = np.random.default_rng(number).integers(0, 256, (50, 50, 3), np.uint8)
        save(Image.fromarray(noise), root / f"{number}.jpg", quality=95)
        save(Image.fromarray(noise), root / f"{number}.png")
    for name in ("2.jpg", "3.png"):
        whole = (root / name).read_bytes()
        (root / name).write_bytes(whole[: len(whole) // 2])
    (root / "text.jpg").write_text("no picture at all")
    (root / "empty.jpg").touch()
    (root / "program.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    small = (root / "1.png").read_bytes()  # its header then says 20,000 × 20,000 pixels
    header = b"IHDR" + (20_000).to_bytes(4, "big") * 2 + small[24:29]
    (root / "huge.png").write_bytes(small[:12] + header + zlib.crc32(header).to_bytes(4, "big") + small[33:])
    return root


def everything(store: Store) -> np.ndarray:
    return store.read(np.arange(len(store.readable)))


NAMES = [
    "1.jpg",
    "1.png",
    "2.jpg",
    "2.png",
    "3.jpg",
    "3.png",
    "empty.jpg",
    "gone.jpg",
    "huge.png",
    "program.jpg",
    "text.jpg",
]


def test_unreadable_files_are_named_with_a_reason_and_left_out(tmp_path, folder):
    store = open_store(folder, NAMES, Square(16), Cache(tmp_path / "cache"))
    assert [NAMES[number] for number in store.readable] == ["1.jpg", "1.png", "2.png", "3.jpg"]
    reasons = dict(store.skipped)
    assert list(reasons) == ["2.jpg", "3.png", "empty.jpg", "gone.jpg", "huge.png", "program.jpg", "text.jpg"]
    assert "truncated" in reasons["2.jpg"]
    assert "no picture of a kind that is read here" in reasons["program.jpg"]
    assert "No such file" in reasons["gone.jpg"]
    assert "400000000 pixels" in reasons["huge.png"]
    for row, number in enumerate(store.readable):
        assert np.array_equal(store.read(np.array([row]))[0], decode(folder / NAMES[number], Square(16)).pixels)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "gone.jpg")
    store = open_store(tmp_path, ["broken.jpg", "pipe.jpg"], Square(16), Cache(tmp_path / "cache"))
    assert dict(store.skipped).keys() == {"broken.jpg", "pipe.jpg"}
    assert dict(store.skipped)["pipe.jpg"] == "is no regular file"


def test_on_the_fly_gives_the_same_pixels_names_and_digests(tmp_path, folder):
    stored = open_store(folder, NAMES, Square(16), Cache(tmp_path / "cache"))
    direct = open_store(folder, NAMES, Square(16), Cache(tmp_path / "none", use_store=False))
    assert not (tmp_path / "none").exists()
    assert direct.pixels is None
    rows = np.array([2, 0, 3, 1])
    assert np.array_equal(stored.read(rows), direct.read(rows))
    assert stored.skipped == direct.skipped
    assert np.array_equal(stored.digests, direct.digests)
    assert np.array_equal(stored.hashes, direct.hashes)
    assert np.array_equal(stored.hashes, [difference_hashes(picture) for picture in everything(stored)])


def test_digests_tell_same_pixels_from_others(tmp_path, folder):
    shutil.copy(folder / "1.png", folder / "copy.png")
    digests = open_store(folder, ["1.jpg", "1.png", "copy.png"], Square(16), Cache(tmp_path / "cache")).digests
    assert np.array_equal(digests[1], digests[2])
    assert not np.array_equal(digests[0], digests[1])


def forbid(*args, **kwargs):
    raise AssertionError("decoded again")


def test_a_store_is_reused_until_files_or_size_change(tmp_path, folder, monkeypatch):
    names, cache = ["1.jpg", "1.png"], tmp_path / "cache"
    first = open_store(folder, names, Square(16), Cache(cache))
    with monkeypatch.context() as patch:
        patch.setattr(plumage.data.decode, "decode", forbid)
        assert np.array_equal(everything(open_store(folder, names, Square(16), Cache(cache))), everything(first))
    assert everything(open_store(folder, names, Square(8), Cache(cache))).shape == (2, 8, 8, 3)
    save(Image.new("RGB", (50, 50), (200, 30, 60)), folder / "1.png")
    again = open_store(folder, names, Square(16), Cache(cache)).read(np.array([1]))
    assert np.abs(again.astype(int) - (200, 30, 60)).max() <= 1


def test_a_file_that_becomes_readable_is_taken_in(tmp_path, folder):
    """As after a chmod: neither its size nor its time says that it changed."""
    file, cache = folder / "1.jpg", tmp_path / "cache"
    whole, status = file.read_bytes(), file.stat()
    for content, readable in ((b"??" + whole[2:], 1), (whole, 2)):
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert len(open_store(folder, ["1.jpg", "1.png"], Square(16), Cache(cache)).readable) == readable


def home_of(tmp_path: Path) -> Path:
    (home,) = (tmp_path / "cache" / "stores").iterdir()
    return home


def rebuilt(tmp_path: Path, folder: Path, caplog) -> bool:
    """Open the store of three pictures again. Return whether it was built again; what it holds is right either way."""
    caplog.clear()
    again = open_store(folder, ["1.jpg", "1.png", "2.jpg"], Square(16), Cache(tmp_path / "cache"))
    assert [path for path, _ in again.skipped] == ["2.jpg"]
    assert np.array_equal(everything(again), [decode(folder / name, Square(16)).pixels for name in ("1.jpg", "1.png")])
    home = home_of(tmp_path)
    lines = [message for message in caplog.messages if str(home) in message]
    assert lines == caplog.messages
    assert len(lines) <= 1
    assert all("is damaged (" in line and "decoding the pictures again" in line for line in lines)
    return bool(lines)


@pytest.mark.parametrize("name", ["pixels", "index.npz", "skipped.csv"])
@pytest.mark.parametrize("damage", ["cut short", "emptied", "removed", "scribbled over", "a folder", "a pipe"])
def test_a_damaged_store_is_built_again_and_one_line_says_so(tmp_path, folder, caplog, name, damage):
    rebuilt(tmp_path, folder, caplog)
    file = home_of(tmp_path) / name
    content = file.read_bytes()
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    elif damage == "a pipe":
        os.mkfifo(file)
    elif damage != "removed":
        scribble = b'"\n' * (len(content) // 2)
        file.write_bytes({"cut short": content[:15], "emptied": b"", "scribbled over": scribble}[damage])
    assert rebuilt(tmp_path, folder, caplog)
    assert not rebuilt(tmp_path, folder, caplog)


@pytest.mark.parametrize("place", [0, 767, 768, 1535])
def test_a_single_bit_of_the_pixels_is_noticed(tmp_path, folder, caplog, place):
    rebuilt(tmp_path, folder, caplog)
    with (home_of(tmp_path) / "pixels").open("r+b") as file:
        file.seek(place)
        value = file.read(1)[0]
        file.seek(place)
        file.write(bytes([value ^ 4]))
    assert rebuilt(tmp_path, folder, caplog)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("readable", np.array([0, 2])),  # the second is the one that cannot be read
        ("readable", np.array([1, 0])),
        ("readable", np.array([0, 0])),
        ("readable", np.array([0, 3])),
        ("readable", np.array([-1, 1])),
        ("readable", np.array([0, 10**15])),
        ("readable", np.array([0.0, 1.0])),
        ("readable", np.array([[0], [1]])),
        ("readable", np.array(0)),
        ("readable", np.array([0])),
        ("readable", np.array([0, 1, 2])),
        ("digests", np.zeros((2, 15), np.uint8)),
        ("digests", np.zeros((3, 16), np.uint8)),
        ("digests", np.zeros((2, 16), np.int8)),
        ("hashes", np.zeros((2, 3), np.uint64)),
        ("hashes", np.zeros((3, 4), np.uint64)),
        ("hashes", np.zeros((2, 4), np.int64)),
        ("hashes", None),
        ("sums", np.zeros(2, np.uint32)),
        ("sums", np.zeros(2, np.int64)),
        ("sums", np.zeros(0, np.uint32)),
        ("keys", np.zeros(3, np.uint64)),
        ("keys", np.zeros(0, np.uint64)),
        ("keys", np.zeros(3)),
        ("keys", None),
        ("digests", None),
    ],
)
def test_an_index_that_lies_is_not_believed(tmp_path, folder, caplog, name, array):
    rebuilt(tmp_path, folder, caplog)
    file = home_of(tmp_path) / "index.npz"
    with np.load(file) as index:
        arrays = {**index, name: array}
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    assert rebuilt(tmp_path, folder, caplog)


@pytest.mark.parametrize("rows", ["path,reason\n", "path,reason\n1.png,no\n", "path,reason\n2.jpg,a\n3.jpg,b\n"])
def test_skipped_files_that_are_not_the_rest_are_not_believed(tmp_path, folder, caplog, rows):
    rebuilt(tmp_path, folder, caplog)
    (home_of(tmp_path) / "skipped.csv").write_text(rows)
    assert rebuilt(tmp_path, folder, caplog)


def test_pixels_that_go_while_they_are_read_end_in_one_line(tmp_path, folder):
    """And not by the signal that a mapped file would end in."""
    store = open_store(folder, ["1.jpg", "1.png"], Square(16), Cache(tmp_path / "cache"))
    file = home_of(tmp_path) / "pixels"
    os.truncate(file, 16 * 16 * 3 + 5)
    assert store.read(np.array([0])).any()
    with pytest.raises(
        UserError, match=f"{re.escape(str(file))} can no longer be read: it has been cut short.*--resume"
    ):
        store.read(np.array([0, 1]))


def test_some_of_a_stores_pictures_are_read_from_it(tmp_path, folder, monkeypatch):
    """As those of a run that was trained before others were added."""
    cache = Cache(tmp_path / "cache")
    open_store(folder, NAMES, Square(16), cache)
    names = [name for name in NAMES if name not in ("1.jpg", "3.png")]
    monkeypatch.setattr(plumage.data.store, "_build", forbid)
    part, direct = (
        open_store(folder, names, Square(16), cache),
        open_store(folder, names, Square(16), Cache(cache.folder, False)),
    )
    assert part.pixels
    assert np.array_equal(everything(part), everything(direct))
    assert np.array_equal(part.readable, direct.readable)
    assert np.array_equal(part.digests, direct.digests)
    assert np.array_equal(part.hashes, direct.hashes)
    assert part.skipped == direct.skipped
    assert part.read(np.array([2, 0, 2])).tobytes() == direct.read(np.array([2, 0, 2])).tobytes()


def test_a_new_store_takes_the_place_of_those_that_match_no_more(tmp_path, folder, caplog):
    caplog.set_level("INFO", "plumage")
    cache, stores = Cache(tmp_path / "cache"), tmp_path / "cache" / "stores"
    (stores / f"{folder.name}-16px-{'0' * 16}").mkdir(parents=True)  # of the time before lists had a hash
    other = tmp_path / "elsewhere" / folder.name
    shutil.copytree(folder, other)
    kept = [f"{folder.name}-8px-{'0' * 16}", f"{folder.name}-16px-notes", "notes"]
    for name in kept:
        (stores / name).mkdir()
    open_store(other, ["1.jpg"], Square(16), cache)
    assert "1 earlier" in caplog.text  # the old one's name does not say of which folder it is
    open_store(folder, ["1.jpg"], Square(8), cache)
    open_store(folder, ["1.jpg"], Square(16), cache)
    held = open_store(folder, ["1.jpg", "1.png"], Square(16), cache)
    caplog.clear()
    third = open_store(folder, ["1.jpg", "1.png", "2.png"], Square(16), cache)
    assert not caplog.messages  # the second is in use, and serves what it did
    assert np.array_equal(everything(held), everything(third)[:2])
    del held
    everything(open_store(folder, ["3.jpg"], Square(16), cache))
    (line,) = caplog.messages
    assert "takes the place of 1 earlier" in line
    del third
    open_store(folder, ["3.jpg", "1.jpg"], Square(16), cache)
    assert len(caplog.messages) == 2
    ours = [path.name for path in stores.iterdir() if path.name not in kept]
    assert len(ours) == 3
    assert {name.partition("px-")[0] for name in ours} == {f"{folder.name}-8", f"{folder.name}-16"}


def test_each_fit_has_a_store_of_its_own_and_all_stay(tmp_path, folder):
    cache, names = Cache(tmp_path / "cache"), ["1.png", "wide.png"]
    save(Image.open(folder / "2.png").crop((0, 5, 50, 30)), folder / "wide.png")
    for _ in range(2):
        for fit in ("squash", "crop", "pad"):
            store = open_store(folder, names, Square(16, fit), cache)
            expected = [decode(folder / name, Square(16, fit)).pixels for name in names]
            assert np.array_equal(everything(store), expected)
    assert len(list((tmp_path / "cache" / "stores").iterdir())) == 3
    assert len(plumage.data.cache.entries(tmp_path / "cache")) == 3


def test_what_may_not_be_removed_stays_without_a_word(tmp_path, folder, caplog, monkeypatch):
    caplog.set_level("INFO", "plumage")
    cache = Cache(tmp_path / "cache")
    open_store(folder, ["1.jpg"], Square(16), cache)
    monkeypatch.setattr(plumage.data.cache.os, "access", lambda *_: False)
    open_store(folder, ["1.png"], Square(16), cache)
    assert not caplog.messages
    assert len(list((tmp_path / "cache" / "stores").iterdir())) == 2


def test_a_store_has_the_rights_that_the_user_gives_new_files(tmp_path, folder):
    before = os.umask(0o027)
    try:
        open_store(folder, ["1.jpg"], Square(16), Cache(tmp_path / "cache"))
    finally:
        os.umask(before)
    home = home_of(tmp_path)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (home, home.parent, home.parent.parent)} == {0o750}
    assert {stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()} == {0o640}


@pytest.mark.parametrize("name", ["鳥" * 80, "n\udcff", "two\nlines", " ", "[a]*"])
def test_a_folder_of_any_name_has_a_store(tmp_path, folder, name):
    folder = folder.rename(tmp_path / name)
    for _ in range(2):
        assert open_store(folder, ["1.jpg"], Square(16), Cache(tmp_path / "cache")).pixels
    assert home_of(tmp_path)


def test_builds_at_the_same_time_leave_one_whole_store(tmp_path, folder):
    stores = []

    def build():
        stores.append(open_store(folder, NAMES, Square(16), Cache(tmp_path / "cache")))

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 4
    assert all(np.array_equal(everything(store), everything(stores[0])) for store in stores)
    assert len(list((tmp_path / "cache" / "stores").iterdir())) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
import plumage.data.decode
import plumage.data.store
whole = plumage.data.decode.decode
def decode(file, square):
    if file.name == "2.png":
        os.kill(os.getpid(), int(sys.argv[3]))
    return whole(file, square)
plumage.data.decode.decode = decode
cache = plumage.data.store.Cache(Path(sys.argv[2]), workers=1)
plumage.data.store.open_store(Path(sys.argv[1]), sorted(os.listdir(sys.argv[1])), plumage.data.decode.Square(16), cache)
"""


def test_a_killed_build_leaves_no_half_store(tmp_path, folder):
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", KILLED, folder, cache, str(int(signal.SIGKILL))]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert [path.name[:7] for path in (cache / "stores").iterdir()] == [".draft-"]
    assert len(open_store(folder, NAMES, Square(16), Cache(cache)).readable) == 4
    (draft,) = (cache / "stores").glob(".draft-*")
    for path in (*draft.iterdir(), draft):
        os.utime(path, (0, 0))
    open_store(folder, NAMES, Square(8), Cache(cache))
    assert not draft.exists()


def test_without_room_it_decodes_on_the_fly_and_says_so(tmp_path, folder, monkeypatch, caplog):
    usage = namedtuple("usage", "total used free")(10, 10, 0)
    monkeypatch.setattr(plumage.data.store.shutil, "disk_usage", lambda path: usage)
    store = open_store(folder, ["1.jpg", "1.png"], Square(16), Cache(tmp_path / "cache"))
    assert store.pixels is None
    assert store.read(np.array([1])).shape == (1, 16, 16, 3)
    assert "decoding on the fly" in caplog.text


def test_a_disk_that_fills_up_on_the_way_is_no_error_either(tmp_path, folder, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plumage.data.store.np, "savez", full)
    assert open_store(folder, ["1.jpg", "1.png"], Square(16), Cache(tmp_path / "cache")).pixels is None
    assert "No space left on device" in caplog.text
    assert not list((tmp_path / "cache" / "stores").iterdir())


def test_a_picture_that_vanishes_later_is_named(tmp_path, folder):
    store = open_store(folder, ["1.jpg", "1.png"], Square(16), Cache(tmp_path / "cache", use_store=False))
    (folder / "1.png").unlink()
    with pytest.raises(UserError, match=r"1\.png can no longer be read"):
        store.read(np.array([0, 1]))


def test_map_ahead_keeps_the_order_and_stays_only_so_far_ahead():
    taken = []

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(4) as pool:
        results = map_ahead(pool, lambda number: number * number, items(), ahead=5)
        assert next(results) == 0
        assert len(taken) <= 6
        assert list(results) == [number * number for number in range(1, 20)]


@pytest.mark.skipif(not CLIPART.is_dir(), reason="the clip art is not there")
def test_real_pictures_of_every_mode(tmp_path):
    paths = sorted(str(path.relative_to(CLIPART)) for path in CLIPART.rglob("*.png"))
    store = open_store(CLIPART, paths, Square(32), Cache(tmp_path / "cache"))
    assert len(paths) > 600
    assert store.skipped == []
    pixels = everything(store)
    assert pixels.shape == (len(paths), 32, 32, 3)
    modes = {Image.open(CLIPART / path).mode for path in paths}
    assert len(modes) >= 3
    corners = pixels[:, 0, 0]
    assert np.mean(np.all(corners == 255, axis=1)) > 0.5  # what is transparent there became white, not black


def test_skipped_files_are_written_and_read_back(tmp_path):
    rows = [('a, "b".jpg', "broken, badly"), ("n\udcff.jpg", "x"), ("c\rd\n.jpg", "y")]
    plumage.data.store.write_skipped(tmp_path / "skipped.csv", rows)
    assert read_skipped(tmp_path / "skipped.csv") == rows
    (tmp_path / "skipped.csv").write_text("path,reason\nnonsense\n")
    with pytest.raises(UserError, match=r"skipped\.csv, line 2: has 1 columns, not 2"):
        read_skipped(tmp_path / "skipped.csv")
