"""Which files are pictures, and what is said of those that cannot be read: none is left out without a word."""

import base64
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY
from PIL import Image
from test_depth import tiff

from plumage.data import formats
from plumage.data.decode import Square, decode, decode_or_reason
from plumage.data.formats import FORMATS, REASONS, is_picture
from plumage.data.sources import list_samples
from plumage.data.store import Cache, open_store

# 16 by 12 pixels, the left half (20, 160, 90), the right (200, 30, 60); EXIF says that it lies on its side.
HEIC = base64.b64decode(
    """
AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAcdtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9jAAAAAERA
AAIAAQAAAAAB6wABAAAAAAAAAI0AAgAAAAACeAABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZlAgAAAQAC
AABFeGlmAAAAAA5waXRtAAAAAAABAAABBmlwcnAAAADlaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAA
AAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAA
AAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAEAAAAAEAAAAMAAAAAf///9AAAAAC////zAAAAAIAAAAQcGl4aQAAAAADCAgIAAAACWlyb3QDAAAA
GWlwbWEAAAAAAAAAAQABBoECAwWEhgAAABppcmVmAAAAAAAAAA5jZHNjAAIAAQABAAAAuW1kYXQAAACJKAGvBjIaqUqAXUOIm67//+53//I7xLV3Kl/e
Os+eD1P4msgkOxdr95/CWV9ylPmpagwn0KgHdFwaQwGIh9gvkXV85dh06ZkMDyx5Vay9z9o4xe8g7WEQgImgaH+U3Af8jDT6kcifguH97zx//NVA6oVr
QxSAA6UxnTdBN3p+C9yduSrH4joek5wAAAAGRXhpZgAATU0AKgAAAAgAAQESAAMAAAABAAYAAAAAAAA=
"""
)
needs_heic = pytest.mark.skipif("HEIF" not in FORMATS, reason="pi-heif is not installed")
RAWS = [".dng", ".DNG", ".cr2", ".nef", ".NEF", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".cr3"]
OTHERS = [".jxl", ".dcm", ".psd", ".svg", ".eps", ".czi", ".svs", ".ico", ".pcx"]


@needs_heic
@pytest.mark.parametrize("name", ["a.heic", "a.HEIC", "a.heif", "phone.jpg", "phone.png"])
def test_heic_is_read_upright_by_whatever_name(tmp_path, name):
    (tmp_path / name).write_bytes(HEIC)
    assert is_picture(name)
    pixels = decode(tmp_path / name, Square(8)).pixels.astype(int)
    assert np.abs(pixels[1] - (20, 160, 90)).max() <= 6
    assert np.abs(pixels[6] - (200, 30, 60)).max() <= 6


WITHOUT = """
import sys
sys.modules["pi_heif"] = None
from plumage.main import main
main()
"""


def test_without_the_extra_heic_is_listed_and_the_message_names_it(tmp_path, photos):
    for number in range(2):
        (photos / "red apple" / f"IMG_{number}.HEIC").write_bytes(HEIC)
    (photos / "green, sour" / "phone.jpg").write_bytes(HEIC)
    command = [sys.executable, "-c", WITHOUT, "train", "--data", photos, "--run", tmp_path / "run", *TINY]
    command += ["--epochs", "1", "--cache", tmp_path / "cache"]
    output = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stderr
    assert "3 of 33 pictures cannot be read and are left out" in output.stderr
    assert 'pip install -e ".[heic]"' in output.stderr
    skipped = (tmp_path / "run" / "skipped.csv").read_text().splitlines()
    assert sorted(line.partition(",")[0] for line in skipped[1:] if "HEIC" in line)[-1].endswith("HEIC")
    assert sum("[heic]" in line for line in skipped) == 3

    alone = tmp_path / "alone"
    for label in "ab":
        (alone / label).mkdir(parents=True)
        for number in range(3):
            (alone / label / f"{number}.HEIC").write_bytes(HEIC)
    command = [sys.executable, "-c", WITHOUT, "train", "--data", alone, "--run", tmp_path / "other", *TINY]
    output = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert output.returncode == 2
    assert "6 of 6 pictures cannot be read" in output.stderr
    assert 'pip install -e ".[heic]"' in output.stderr


@pytest.mark.parametrize("suffix", [*RAWS, *OTHERS])
def test_what_pillow_does_not_read_is_a_picture_with_a_reason(tmp_path, suffix):
    name = f"a{suffix}"
    assert is_picture(name)
    # Raw files are TIFFs, whose first page is a preview.
    for content in (tiff(np.full((4, 4, 3), 200, np.uint8)), b"\0" * 500, b""):
        (tmp_path / name).write_bytes(content)
        reason = decode_or_reason(tmp_path / name, Square(8))
        if content[:2] == b"II" and suffix.lower() not in formats.NOT_BY_TIFF:
            assert not isinstance(reason, str)  # what it is decides, where the name cannot mislead
        else:
            assert reason == REASONS[suffix.lower()]
            assert ": save it as " in reason


def test_a_raw_file_called_tiff_is_no_preview(tmp_path):
    def with_tags(content: bytes, tags: dict[int, int]) -> bytes:
        """Put a directory with more tags behind a TIFF's content."""
        (start,) = struct.unpack("<I", content[4:8])
        (count,) = struct.unpack("<H", content[start : start + 2])
        entries = [content[start + 2 + 12 * n : start + 14 + 12 * n] for n in range(count)]
        entries += [struct.pack("<HHII", number, 4, 1, value) for number, value in tags.items()]
        entries.sort(key=lambda entry: struct.unpack("<H", entry[:2]))
        directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
        return content[:4] + struct.pack("<I", len(content)) + content[8:] + directory

    whole = tiff(np.full((4, 4, 3), 200, np.uint8))
    for tags, raw in (({50706: 257}, True), ({254: 1, 330: 8}, True), ({254: 1}, False), ({254: 0, 330: 8}, False)):
        (tmp_path / "a.tif").write_bytes(with_tags(whole, tags))
        assert isinstance(decode_or_reason(tmp_path / "a.tif", Square(8)), str) == raw, tags


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\x0a" + b"\0" * 99, "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 99, "JPEG XL"),
        (b"MM\0*\0\0\0\x08\0\0", "is a TIFF of a kind"),
        (tiff(np.zeros((4, 4), np.float64)), "is a TIFF of a kind"),
        (b"text", "no picture of a kind that is read here"),
        (b"", "no picture of a kind that is read here"),
    ],
)
def test_content_says_what_it_is_under_another_name(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    assert reason in decode_or_reason(tmp_path / "a.jpg", Square(8))


@needs_heic
def test_a_damaged_heic_is_not_said_to_need_the_extra(tmp_path):
    for length in (0, 30, len(HEIC) // 2):
        (tmp_path / "a.heic").write_bytes(HEIC[:length])
        reason = decode_or_reason(tmp_path / "a.heic", Square(8))
        assert isinstance(reason, str)
        assert "[heic]" not in reason


@pytest.mark.parametrize("form", ["TGA", "JPEG2000", "AVIF"])
def test_more_formats(tmp_path, form):
    suffixes = {"TGA": [".tga"], "JPEG2000": [".jp2", ".j2k", ".jpf"], "AVIF": [".avif"]}[form]
    if form not in (*FORMATS, "TGA"):
        pytest.skip(f"this Pillow lacks {form}")
    for suffix in suffixes:
        for mode in ("RGB", "RGBA", "L"):
            Image.new(mode, (9, 7), {"L": 77}.get(mode, (200, 30, 60))).save(tmp_path / f"a{suffix}", form)
            expected = (77,) * 3 if mode == "L" else (200, 30, 60)
            assert is_picture(f"a{suffix}")
            assert np.abs(decode(tmp_path / f"a{suffix}", Square(8)).pixels.astype(int) - expected).max() <= 3
    if form == "TGA":  # whose header anything could have
        shutil.copy(tmp_path / "a.tga", tmp_path / "a.jpg")
        assert "no picture of a kind that is read here" in decode_or_reason(tmp_path / "a.jpg", Square(8))


def test_they_are_listed_and_skipped_by_name(tmp_path):
    root = tmp_path / "data"
    for label in "ab":
        (root / label).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (9, 9)).save(root / label / f"{number}.jpg")
    for suffix in (*RAWS, *OTHERS):
        (root / "b" / f"x{suffix}").write_bytes(bytes(500))
    (root / "b" / "notes.txt").write_text("no picture")
    samples = list_samples(root)
    assert len(samples) == 6 + len(RAWS) + len(OTHERS)
    store = open_store(root, samples.paths, Square(8), Cache(tmp_path / "cache"))
    assert {Path(path).suffix for path, _ in store.skipped} == {*RAWS, *OTHERS}


def test_no_format_starts_a_program():
    assert not {"EPS", "WMF", "SPIDER", "GBR", "IPTC"} & {*FORMATS, *formats.UNMARKED.values()}
