import errno
import os
import stat
import struct
import zipfile

import numpy as np
import pytest

from plumage.errors import UserError
from plumage.files import (
    draft_of,
    folder_written_whole,
    read_arrays,
    read_json,
    read_object,
    text_output,
    write_json,
    written_whole,
)
from plumage.rundir.history import History
from plumage.tables import read_table


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_until_the_end_the_old_file_is_there_and_then_the_new_one(tmp_path):
    file = tmp_path / "file"
    for content in ("old", "new"):
        with written_whole(file) as draft:
            draft.write_text(content)
            assert draft.parent == tmp_path  # a rename needs the same disk
            assert (file.read_text() if file.exists() else "") == ("" if content == "old" else "old")
        assert file.read_text() == content
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), UserError("no"), KeyboardInterrupt]
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    file = tmp_path / "file"
    file.write_text("old")

    def fail():
        with written_whole(file) as draft:
            draft.write_text("half")
            raise error

    with pytest.raises(error if isinstance(error, type) else type(error)) as raised:
        fail()
    assert names(tmp_path) == ["file"]
    assert file.read_text() == "old"
    if isinstance(error, OSError):
        assert raised.value.filename == str(file)  # which tells a user more than the draft's name


def test_an_error_about_the_draft_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, written_whole(tmp_path / "nowhere" / "file"):
        pytest.fail("there is no such folder")
    assert raised.value.filename == str(tmp_path / "nowhere" / "file")


def test_drafts_of_one_file_have_names_of_their_own_and_follow_no_link(tmp_path, monkeypatch):
    file, secret = tmp_path / "file", tmp_path / "secret"
    assert len({draft_of(file) for _ in range(9)}) == 9
    secret.write_text("another's")
    (tmp_path / "foreseen").symlink_to(secret)
    monkeypatch.setattr("plumage.files.draft_of", lambda path: tmp_path / "foreseen")
    with pytest.raises(FileExistsError), written_whole(file) as draft:
        draft.write_text("mine")
    assert secret.read_text() == "another's"


def test_a_file_gets_the_rights_that_the_user_gives_new_files(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "file", {})
        with folder_written_whole(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_content_is_on_the_disk_before_it_has_its_name_and_its_name_before_the_end(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda n: done.append(stat.S_ISDIR(os.fstat(n).st_mode)) or fsync(n))
    monkeypatch.setattr("pathlib.Path.replace", lambda path, to: done.append("rename") or replace(path, to))
    with written_whole(tmp_path / "file") as draft:
        draft.write_text("content")
    assert done == [False, "rename", True]


def test_a_folder_is_on_the_disk_with_all_below_it_before_it_has_its_name(tmp_path, monkeypatch):
    done, fsync, rename = [], os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda n: done.append(os.fstat(n).st_ino) or fsync(n))
    monkeypatch.setattr("pathlib.Path.rename", lambda path, to: done.append("rename") or rename(path, to))
    with folder_written_whole(tmp_path / "folder") as draft:
        (draft / "below").mkdir()
        (draft / "below" / "file").write_text("content")
        (draft / "link").symlink_to("nowhere")
        (draft / "below" / "file").chmod(0o444)
    folder = tmp_path / "folder"
    flushed = {path.stat().st_ino for path in (folder, folder / "below", folder / "below" / "file")}
    assert set(done[:3]) == flushed
    assert done[3:] == ["rename", tmp_path.stat().st_ino]


def test_a_folder_appears_whole_or_not_at_all_and_never_replaces_another(tmp_path):
    folder = tmp_path / "folder"

    def fail():
        with folder_written_whole(folder) as draft:
            (draft / "half").touch()
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    assert names(tmp_path) == []
    for content in ("first", "second"):
        with folder_written_whole(folder) as draft:
            (draft / content).touch()
    assert names(tmp_path) == ["folder"]
    assert names(folder) == ["first"]


def test_json_that_is_no_object_is_named(tmp_path):
    file = tmp_path / "o.json"
    write_json(file, [1])
    assert read_json(file) == [1]
    with pytest.raises(UserError, match=r"o\.json is damaged: it holds no object"):
        read_object(file)
    file.write_text("{")
    with pytest.raises(UserError, match=r"o\.json cannot be read"):
        read_object(file)


def test_output_goes_to_the_file_or_to_standard_output(tmp_path, capsys):
    for file in (tmp_path / "out", None):
        with text_output(file) as out:
            out.write("result\n")
    assert (tmp_path / "out").read_text() == capsys.readouterr().out == "result\n"


def test_arrays_are_read_back_and_nothing_else_of_the_archive(tmp_path):
    arrays = {"a": np.arange(5), "b": np.zeros((2, 3), np.uint8), "c": np.float32(3), "none": np.zeros((0, 4))}
    np.savez(tmp_path / "some.npz", **arrays, other=np.zeros(10**6))
    read = read_arrays(tmp_path / "some.npz", {"a": 40, "b": 6, "c": 4, "none": 0, "absent": 1})
    assert read.keys() == arrays.keys()
    for name, array in read.items():
        assert array.dtype == arrays[name].dtype
        np.testing.assert_array_equal(array, arrays[name])


def header(text):
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("content", "compression"),
    [
        (header("{'descr': '|u1', 'fortran_order': False, 'shape': (50,)}") + bytes(50), zipfile.ZIP_DEFLATED),
        (header("{'descr': '|u1', 'fortran_order': False, 'shape': (20000,)}") + bytes(20000), zipfile.ZIP_STORED),
        (header("{'descr': '|u1', 'fortran_order': False, 'shape': (2**40,)}") + bytes(50), zipfile.ZIP_STORED),
        (header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**40},)}}") + bytes(50), zipfile.ZIP_STORED),
        (header("{'descr': '|u1', 'fortran_order': False, 'shape': (-5, -10)}") + bytes(50), zipfile.ZIP_STORED),
        (header("{'descr': '|O', 'fortran_order': False, 'shape': (5,)}") + bytes(40), zipfile.ZIP_STORED),
        (b"", zipfile.ZIP_STORED),
    ],
    ids=["compressed", "too large", "no shape", "a shape beyond the file", "negative", "pickled", "empty"],
)
def test_arrays_that_lie_are_refused(tmp_path, content, compression):
    with zipfile.ZipFile(tmp_path / "some.npz", "w", compression) as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(ValueError):  # noqa: PT011 (of numpy too)
        read_arrays(tmp_path / "some.npz", {"a": 50})


@pytest.mark.parametrize(
    "read",
    [
        read_json,
        lambda file: read_arrays(file, {"a": 1}),
        lambda file: list(read_table(file, ("path",))),
        lambda file: History(file, "accuracy"),
    ],
)
def test_nobody_waits_for_a_pipe(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises((UserError, OSError), match=r"[Rr]egular file"):
        read(tmp_path / "pipe")
