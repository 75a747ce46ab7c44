"""Files from elsewhere are data: each is read, or refused by name in one line. None runs code, hangs or takes memory.

What each reader does with sound files, and with the usual damage, is in the reader's own tests.
"""

import csv
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import ROOT, TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import plumage.data.decode
import plumage.data.store
from plumage.data.cub import read_cub
from plumage.data.sources import list_samples
from plumage.data.split import read_split
from plumage.data.store import Cache, open_store, read_skipped, write_skipped
from plumage.errors import UserError
from plumage.hardware.device import choose_precision
from plumage.models.resnet import build_model
from plumage.models.weights import load_file, load_state, pretrained_weights, state_dict_of, trained_model
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir

fuzzed = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def read_or_refused(call, file):
    """What ``call`` returns, or None where it refuses ``file`` by its name in one line."""
    try:
        return call()
    except UserError as error:
        message = str(error)
    assert str(file) in message
    assert len(message.splitlines()) == 1
    return None


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """``whole`` with a few bytes changed, taken out, doubled or put in, and perhaps cut short."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.integers(0, 4))
        odd = st.sampled_from(
            [b"\0", b"\xff" * 4, b"\n", b'"', b",", b"[", b"9" * 30, b"-1", b"NaN", content[start:end] * 2]
        )
        content[start:end] = draw(st.binary(max_size=4) | odd)
    return bytes(content[: draw(st.just(None) | st.integers(0, len(content)))])


# Pictures.


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *more: bytes, rows: bytes = b"\0" * 99) -> bytes:
    """Of one bit a pixel, whatever its header says."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(*tags: tuple[int, int, int, int], following: int = 0, pixels: bytes = b"\x80" * 64) -> bytes:
    """8 × 8 grey pixels, with ``tags`` (number, type, count, value) changed; following: the next directory's place."""
    entries = {256: (4, 1, 8), 257: (4, 1, 8), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 200)}
    entries |= {277: (3, 1, 1), 278: (4, 1, 8), 279: (4, 1, 64)} | {number: rest for number, *rest in tags}
    body = b"".join(struct.pack("<HHII", number, *entries[number]) for number in sorted(entries))
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", following)
    return head.ljust(200, b"\0") + pixels


def patched(whole: bytes, place: int, form: str, *values: int) -> bytes:
    new = struct.pack(form, *values)
    return whole[:place] + new + whole[place + len(new) :]


def sound_pictures() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (20, 30, 3), np.uint8)
    rgb, grey, frames = Image.fromarray(noise), Image.fromarray(noise[..., 0]), {"save_all": True, "duration": 10}
    frames["append_images"] = [Image.new("RGB", (30, 20), "red"), Image.new("RGB", (30, 20), "blue")]
    bmp = encoded(rgb, "BMP")
    return {
        "plain.jpg": encoded(rgb, "JPEG"),
        "progressive.jpg": encoded(rgb, "JPEG", progressive=True),
        "ink.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "exif.jpg": encoded(rgb, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40),
        "endless-exif.jpg": encoded(rgb, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\x08"),
        "icc.jpg": encoded(rgb, "JPEG", icc_profile=b"no profile" * 99),
        "icc.png": encoded(rgb, "PNG", icc_profile=b"\xff" * 300),
        "plain.png": encoded(rgb, "PNG"),
        "alpha.png": encoded(rgb.convert("RGBA"), "PNG"),
        "deep.png": encoded(Image.fromarray(rng.integers(0, 65536, (20, 30), np.uint16)), "PNG"),
        "dot.png": encoded(Image.new("RGB", (1, 1)), "PNG"),
        "tall.png": encoded(Image.new("L", (1, 20_000)), "PNG"),
        "wide.gif": encoded(Image.new("P", (20_000, 1)), "GIF"),
        "moving.png": encoded(rgb, "PNG", **frames),
        "moving.gif": encoded(rgb, "GIF", **frames),
        "moving.webp": encoded(rgb, "WEBP", **frames),
        "plain.gif": encoded(rgb.quantize(16), "GIF"),
        "clear.gif": encoded(rgb.quantize(16), "GIF", transparency=0),
        "plain.bmp": bmp,
        "top-down.bmp": patched(bmp, 22, "<i", -20),
        "plain.tif": encoded(rgb, "TIFF"),
        "deflated.tif": encoded(rgb, "TIFF", compression="tiff_adobe_deflate"),
        "bare.tif": tiff(),
        "circle.tif": tiff(following=8),
        "plain.webp": encoded(rgb, "WEBP"),
        "lossless.webp": encoded(rgb, "WEBP", lossless=True),
        "plain.ppm": encoded(rgb, "PPM"),
        "plain.pgm": encoded(grey, "PPM"),
        "really-a-png.jpg": encoded(rgb, "PNG"),
        "really-a-jpeg.gif": encoded(rgb, "JPEG"),
    }


def broken_pictures(sound: dict[str, bytes]) -> dict[str, bytes]:
    jpeg, gif, bmp, webp = (sound[f"plain.{suffix}"] for suffix in ("jpg", "gif", "bmp", "webp"))
    size = jpeg.index(b"\xff\xc0") + 5
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr("1.jpg", jpeg)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%touch executed) (w) file\nshowpage\n"
    return {
        "empty.jpg": b"",
        "zeros.png": b"\0" * 5000,
        "text.gif": b"GIF89a, they say",
        "archive.jpg": archive.getvalue(),
        "program.jpg": eps,
        "program.tif": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(eps)) + b"\0" * 18 + eps,
        "document.jpg": b"%PDF-1.4\n1 0 obj<</Type/Catalog/OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj\n%%EOF",
        "drawing.png": b'<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg xmlns="http://www.w3.org/2000/svg"/>',
        "page.jpg": b"<html><script>alert(1)</script></html>",
        "photoshop.jpg": b"8BPS\0\1" + b"\0" * 6 + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + b"\0" * 99,
        "heif.avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + b"\xff" * 200,
        "square-bomb.png": png(60_000, 60_000),
        "thin-bomb.png": png(90_000_000, 1, rows=b"\0" * 11_250_001),
        "high-bomb.png": png(1, 2**31 - 1),
        "no-size.png": png(0, 0),
        "negative.png": png(2**32 - 1, 2**32 - 1),
        "missing-rows.png": png(9000, 9000),
        "short-chunk.png": png(8, 8)[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT",
        "text-bomb.png": png(8, 8, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 1_000_000))] * 80),
        "bomb.jpg": patched(jpeg, size, ">HH", 65_500, 65_500),
        "no-size.jpg": patched(jpeg, size, ">HH", 0, 0),
        "marker.jpg": jpeg[:2] + b"\xff\xe1\xff\xff" + b"Exif\0\0",
        "no-quantisation.jpg": jpeg.replace(b"\xff\xdb", b"\xff\xfe"),
        "bomb.gif": patched(gif, 6, "<HH", 65_535, 65_535),
        "frame-bomb.gif": patched(gif, gif.index(b"\x2c") + 1, "<HHHH", 60_000, 60_000, 65_535, 65_535),
        "bomb.webp": b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\xff\xff\xff\xff\xff\xff" + webp[12:],
        "bomb.bmp": patched(bmp, 18, "<ii", 60_000, 60_000),
        "negative-width.bmp": patched(bmp, 18, "<i", -30),
        "lowest.bmp": patched(bmp, 18, "<ii", -(2**31), -(2**31)),
        "no-size.bmp": patched(bmp, 18, "<ii", 0, 0),
        "depth.bmp": patched(bmp, 28, "<H", 77),
        "compressed.bmp": patched(bmp, 30, "<I", 99),
        "colours.bmp": patched(patched(bmp, 28, "<H", 8), 46, "<I", 2**32 - 1),
        "header.bmp": patched(bmp, 14, "<I", 2**32 - 1),
        "bomb.tif": tiff((256, 4, 1, 60_000), (257, 4, 1, 60_000)),
        "largest.tif": tiff((256, 4, 1, 2**32 - 1), (257, 4, 1, 2**32 - 1)),
        "no-size.tif": tiff((256, 4, 1, 0)),
        "bits.tif": tiff((258, 3, 1, 65_535)),
        "many-bits.tif": tiff((258, 3, 2**32 - 1, 8)),
        "samples.tif": tiff((277, 3, 1, 65_535)),
        "outside.tif": tiff((273, 4, 1, 2**32 - 1)),
        "many-strips.tif": tiff((273, 4, 2**30, 8), (279, 4, 2**30, 8)),
        "compression.tif": tiff((259, 3, 1, 77)),
        "fax.tif": tiff((259, 3, 1, 4), (258, 3, 1, 1), (256, 4, 1, 9000), (257, 4, 1, 9000)),
        "nowhere.tif": b"II*\0\xff\xff\xff\xff",
        "big.tif": b"II+\0\x08\0\0\0" + b"\xff" * 8,
        "floats.tif": tiff((258, 3, 1, 32), (339, 3, 1, 3), (279, 4, 1, 256), pixels=b"\x7f" * 256),
        "bomb.ppm": b"P6 60000 60000 255\n" + b"\0" * 99,
        "short.ppm": b"P6 9000 9000 255\n" + b"\0" * 99,
        "negative.ppm": b"P6 -5 5 255\n" + b"\0" * 99,
        "depth.ppm": b"P6 5 5 99999999999\n" + b"\0" * 99,
        "comment.ppm": b"P6 #" + b"x" * 100_000,
        "words.ppm": b"P3 5 5 255\n" + b"red green blue " * 25,
        "floats.ppm": b"Pf 5 5 -1.0\n" + b"\x7f" * 100,
    }


def mutations(sound: dict[str, bytes]) -> dict[str, bytes]:
    """Of each sound file eight, cut short or with bytes changed: each by its own seed."""
    files = {}
    for name, whole in sound.items():
        for number in range(8):
            draw, content = random.Random(f"{name} {number}"), bytearray(whole)
            if number < 3:
                del content[draw.randrange(len(content)) :]
            else:  # half of them where headers are
                end = 100 if number % 2 else len(content)
                for _ in range(draw.randint(1, 6)):
                    content[draw.randrange(min(end, len(content)))] = draw.choice([0, 255, draw.randrange(256)])
            files[f"{number}-{name}"] = bytes(content)
    return files


def blank_sheets(sound: dict[str, bytes]) -> dict[str, bytes]:
    """Sound, and just below the limit: 98 megapixels with transparency, from files of hundreds of bytes."""
    return {f"sheet-{n}.gif": patched(sound["clear.gif"], 6, "<HH", 9900, 9900) for n in range(3)}


READ_ALL = """
import json, re, resource, sys
from pathlib import Path
from plumage.data.store import Cache, open_store
root, cache = map(Path, sys.argv[1:])
store = open_store(root, json.loads((cache / "names").read_text()), 16, Cache(cache, workers=4))
if sys.platform == "linux":  # where ru_maxrss begins with the peak of the process that started this one: pytest
    peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30
whole = store.pixels.shape == (len(store.readable), 16, 16, 3) and len(store.digests) == len(store.readable)
print(json.dumps([store.readable.tolist(), store.skipped, whole, peak]))
"""


def test_hundreds_of_hostile_pictures_in_bounded_memory(tmp_path):
    sound = sound_pictures()
    broken, sheets, mutated = broken_pictures(sound), blank_sheets(sound), mutations(sound)
    assert len(broken) + len(mutated) > 250
    root, cache = tmp_path / "pictures", tmp_path / "cache"
    root.mkdir()
    cache.mkdir()
    for name, content in {**sound, **broken, **sheets, **mutated}.items():
        (root / name).write_bytes(content)
    (root / "round.jpg").symlink_to(root / "about.jpg")
    (root / "about.jpg").symlink_to(root / "round.jpg")
    (root / "folder.jpg").mkdir()
    absent = {"round.jpg", "about.jpg", "folder.jpg", "plain.jpg/1.jpg", f"{'long' * 99}.jpg", "vanished.jpg"}
    names = sorted({path.name for path in root.iterdir()} | absent)
    (cache / "names").write_text(json.dumps(names))

    command = [sys.executable, "-c", READ_ALL, root, cache]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert output.returncode == 0, output.stderr
    readable, skipped, whole, peak = json.loads(output.stdout)
    reasons = dict(skipped)
    assert {names[number] for number in readable} | reasons.keys() == set(names)
    assert len(readable) + len(skipped) == len(names)
    assert whole
    assert not (sound.keys() | sheets.keys()) & reasons.keys()
    assert (broken.keys() | absent) - {"text-bomb.png", "many-bits.tif"} <= reasons.keys()  # which hold pixels too
    assert all(reason.strip() and len(reason.splitlines()) == 1 and len(reason) < 500 for reason in reasons.values())
    assert not (ROOT / "executed").exists()
    assert peak < 2  # GiB


def test_pictures_that_are_large_at_once_are_decoded_one_after_the_other(tmp_path, monkeypatch):
    held = []
    locked = plumage.data.decode.one_huge_picture.locked
    monkeypatch.setattr(plumage.data.decode, "to_rgb", lambda image: held.append(locked()) or image)
    monkeypatch.setattr(plumage.data.decode, "HUGE", 99)
    for side in (9, 10):
        Image.new("RGB", (side, 11)).save(tmp_path / f"{side}.png")
        plumage.data.decode.decode(tmp_path / f"{side}.png", 4)
    assert held == [False, True]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read anything")
def test_without_permission(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / name / "1.png")
    (tmp_path / "a" / "1.png").chmod(0)
    ((path, reason),) = open_store(tmp_path, ["a/1.png", "b/1.png"], 8, Cache(tmp_path / "cache")).skipped
    assert (path, "Permission denied" in reason) == ("a/1.png", True)
    (tmp_path / "b").chmod(0)
    assert read_or_refused(lambda: list_samples(tmp_path), tmp_path / "b") is None
    (tmp_path / "b").chmod(0o700)


# Folders and lists.


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
    finally:  # they are too deep for whoever cleans up
        picture.unlink()
        for folder in reversed(deep):
            os.rmdir(folder)  # noqa: PTH106


OUTSIDE = ["../secret.jpg", "a/../../secret.jpg", "/etc/passwd", "a/\0.jpg"]
OUTSIDE_ON_WINDOWS = ["..\\secret.jpg", "a\\..\\..\\secret.jpg", "C:\\secret.jpg", "C:secret.jpg", "\\secret.jpg"]
OUTSIDE_ON_WINDOWS += ["\\\\server\\share\\secret.jpg", "/secret.jpg"]


@pytest.fixture
def pictures(tmp_path):
    """A folder of two classes with a picture each, beside a secret one."""
    for name in ("secret.jpg", "data/a/1.jpg", 'data/b, "x"\n/2.jpg', "data/images/a/1.jpg", "data/images/b/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path / "data"


CLASSES = ["a", 'b, "x"\n']
HEADER = b"path,label,split\r\n"
SPLIT = HEADER + b'a/1.jpg,a,train\r\n"b, ""x""\n/2.jpg","b, ""x""\n",val\r\n'


def check_split(file, root):
    """Whatever ``file`` holds: it is refused, or all that it says is so."""
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
        "another side": HEADER + b"a/1.jpg,a,test\n",
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
    monkeypatch.setattr(plumage.data.store, "PurePath", PureWindowsPath)
    assert not plumage.data.store.is_below(path)
    assert plumage.data.store.is_below("a/..b/1.jpg")
    assert plumage.data.store.is_below("a\\1.jpg")


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
        store = open_store(folder, samples.paths, 8, Cache(folder, use_store=False))
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


# JSON.

ROWS = [{"epoch": 1, "val_accuracy": 0.5, "seconds": 1.0}, {"epoch": 2, "val_accuracy": 0.75, "seconds": 1.0}]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The texts of a sound run."""
    run = RunDir(tmp_path_factory.mktemp("run"))
    run.write_json("recipe.json", Recipe.create({"data": "cub200"}).__dict__)
    run.write_json("classes.json", ["a", "b"])
    run.write_json("environment.json", {"precision": "fp32", "threads": 2})
    for row in ROWS:
        run.add_history(row)
    return {path.name: path.read_bytes() for path in run.path.iterdir()}


def check_run(path, files):
    """Each file of ``files`` in a run's folder, read alone: what it gives is sound, or it is refused by name."""
    run = RunDir(path)
    for name, content in files.items():
        (path / name).write_bytes(content)
    read = {
        "recipe.json": lambda: run.recipe,
        "classes.json": lambda: run.classes,
        "history.jsonl": lambda: (run.history, run.best_epoch),
        "environment.json": lambda: choose_precision("auto", torch.device("cpu"), run.precision),
    }
    found = {name: read_or_refused(read[name], path / name) for name in files}
    if recipe := found.get("recipe.json"):
        assert Recipe(**recipe.__dict__) == recipe
        assert run.is_of(recipe.data)
    if classes := found.get("classes.json"):
        assert all(isinstance(name, str) for name in classes)
        assert len(set(classes)) == len(classes)
    if history := found.get("history.jsonl"):
        assert [row["epoch"] for row in history[0]] == sorted(row["epoch"] for row in history[0])
        assert "%" in f"{history[1]['epoch']} {history[1]['val_accuracy']:.2%}"
        run.keep_history(1)
        assert all(row["epoch"] <= 1 for row in run.history)
    assert found.get("environment.json") in (None, "fp32", "bf16")
    return found


HUGE = b"9" * 5000
JSON = {
    "nothing": b"",
    "null": b"null",
    "a word": b'"word"',
    "NaN": b"NaN",
    "a number": b"7",
    "a huge number": HUGE,
    "numbers": b"[1, 2]",
    "lists": b"[[], []]",
    "an empty list": b"[]",
    "an empty object": b"{}",
    "the same twice": b'["a", "a"]',
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "no UTF-8": b'["\xff"]',
    "UTF-16": '["a"]'.encode("utf-16"),
    "NUL": b'["a\0"]',
    "two texts": b"{} {}",
    "half": b'{"epoch": 1, "val_acc',
}
BAD_ROWS = {
    "words": b'{"epoch": "1", "val_accuracy": "0.5"}',
    "lists": b'{"epoch": [1], "val_accuracy": [0.5]}',
    "null": b'{"epoch": 1, "val_accuracy": null}',
    "too large for a float": b'{"epoch": 1, "val_accuracy": 1' + b"0" * 400 + b"}",
    "huge": b'{"epoch": ' + HUGE + b', "val_accuracy": 0.5}',
    "deep": b'{"epoch": 1, "val_accuracy": 0.5, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}
BAD_RECIPES = {
    "NaN": b'{"lr": NaN}',
    "infinite": b'{"weight_decay": Infinity}',
    "true": b'{"epochs": true}',
    "null": b'{"model": null}',
    "an unknown option": b'{"model\\n": 1}',
    "a choice of two lines": b'{"model": "resnet50\\n"}',
    "too large for a float": b'{"warmup_epochs": 1' + b"0" * 400 + b"}",
    "huge": b'{"seed": ' + HUGE + b"}",
    "nested": b'{"model": {"model": []}}',
}


@pytest.mark.parametrize("case", JSON)
def test_json_that_is_something_else_is_refused(tmp_path, whole_run, case):
    found = check_run(tmp_path, dict.fromkeys(whole_run, JSON[case] + b"\n"))
    if case != "an empty object":  # of which all are defaults
        assert found["recipe.json"] is None
    assert found["classes.json"] is None
    assert found["history.jsonl"] is None


def test_json_that_is_sound(tmp_path, whole_run):
    assert all(check_run(tmp_path, whole_run).values())
    texts = {
        "classes.json": rb'["\ud800", "", " a", "b\n"]',
        "history.jsonl": b'{"epoch": 9, "epoch": 1, "val_accuracy": 0.5}\n',
    }
    texts |= {"recipe.json": b'{"epochs": -1, "epochs": 3}', "environment.json": b'{"precision": ["bf16"]}'}
    found = check_run(tmp_path, texts)  # of equal keys, the last counts
    assert found["classes.json"] == ["\ud800", "", " a", "b\n"]
    assert found["history.jsonl"][1]["epoch"] == 1
    assert found["recipe.json"].epochs == 3


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_row_of_the_history_without_its_numbers_is_refused(tmp_path, case):
    assert check_run(tmp_path, {"history.jsonl": BAD_ROWS[case] + b"\n"}) == {"history.jsonl": None}


@pytest.mark.parametrize("case", BAD_RECIPES)
def test_a_hostile_recipe_is_refused(tmp_path, case):
    assert check_run(tmp_path, {"recipe.json": BAD_RECIPES[case]}) == {"recipe.json": None}


@pytest.mark.parametrize("name", ["recipe.json", "classes.json", "history.jsonl", "environment.json"])
@fuzzed
@given(draw=st.data())
def test_damaged_json_is_read_or_refused(tmp_path, whole_run, name, draw):
    check_run(tmp_path, {name: draw.draw(damaged(whole_run[name]))})


# Checkpoints.


def as_zip(pickled: bytes, compression: int = zipfile.ZIP_STORED, **records: bytes) -> bytes:
    """What torch.save writes, around a pickle and the storages of its tensors."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression, compresslevel=1) as archive:
        for name, content in {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n", **records}.items():
            archive.writestr(f"archive/{name}", content)
    return stream.getvalue()


def as_legacy(pickled: bytes) -> bytes:
    """What torch.save wrote before version 1.6."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    return b"".join(pickle.dumps(one, 2) for one in head) + pickled + pickle.dumps([], 2)


def short(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def integer(number: int) -> bytes:
    if -(2**31) <= number < 2**31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x09" + number.to_bytes(9, "little", signed=True)


def integers(*numbers: int) -> bytes:
    return b"(" + b"".join(map(integer, numbers)) + b"t"


def tensor(shape=(64,), stride=(1,), offset=0, elements=64, key="0") -> bytes:
    """The pickle of {"bn1.bias": a tensor that says this of itself}."""
    storage = (
        b"(" + short("storage") + b"ctorch\nFloatStorage\n" + short(key) + short("cpu") + integer(elements) + b"tQ"
    )
    about = (
        b"(" + storage + integer(offset) + integers(*shape) + integers(*stride) + b"\x89ccollections\nOrderedDict\n)Rt"
    )
    return b"\x80\x02}" + short("bn1.bias") + b"ctorch._utils\n_rebuild_tensor_v2\n" + about + b"Rs."


def reduced(function: bytes, *arguments: bytes) -> bytes:
    """The pickle of {"bn1.bias": function(*arguments)}."""
    return b"\x80\x02}" + short("bn1.bias") + b"c" + function + b"\n(" + b"".join(arguments) + b"tRs."


TOUCH = "open('executed', 'w').close()"
CODE = {
    "system": reduced(b"os\nsystem", short("touch executed")),
    "posix": reduced(b"posix\nsystem", short("touch executed")),
    "eval": reduced(b"builtins\neval", short(TOUCH)),
    "exec of Python 2": reduced(b"__builtin__\neval", short(TOUCH)),
    "subprocess": reduced(b"subprocess\ncheck_output", b"(lp0\n" + short("touch") + b"a" + short("executed") + b"a"),
    "torch's own": reduced(b"torch.serialization\nos.system", short("touch executed")),
    "torch.load": reduced(b"torch.serialization\nload", short("inner.pt"), b"NN\x89"),
    "an attribute": b"\x80\x04" + short("os") + short("system") + b"\x93(" + short("touch executed") + b"tR.",
    "INST": b"(" + short("touch executed") + b"ios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n" + short("touch executed") + b"o.",
    "NEWOBJ": b"\x80\x02cos\nsystem\n(" + short("touch executed") + b"t\x81.",
    "a persistent id": b"\x80\x02}"
    + short("a")
    + b"("
    + short("storage")
    + b"cos\nsystem\n"
    + short("0") * 2
    + b"J\1\0\0\0tQs.",
    "BUILD": b"\x80\x02ctorch\nTensor\n)\x81}" + short("__setstate__") + b"cos\nsystem\nsb.",
}
TENSORS = {
    "a negative shape": {"shape": (-64,)},
    "a huge shape": {"shape": (2**62,)},
    "shapes whose product is too large": {"shape": (2**40, 2**40), "stride": (1, 1)},
    "a negative stride": {"stride": (-1,)},
    "a huge stride": {"stride": (2**62,)},
    "a negative offset": {"offset": -1},
    "a huge offset": {"offset": 2**62},
    "fewer strides": {"shape": (8, 8)},
    "more elements than there are": {"elements": 2**40},
    "a negative number of elements": {"elements": -1},
    "no such storage": {"key": "1"},
    "a storage outside": {"key": "../../0"},
    "one value as many": {"shape": (2**40,), "stride": (0,)},
}
# Tensors that lie within what is there; torch 2.9 and older believe what a file says of the rest.
WITHIN = {"one value as many", "more elements than there are"}


def chained(number: int) -> bytes:
    """A list in a list in a list …"""
    return b"\x80\x02}" + short("model") + b"]" * number + b"a" * (number - 1) + b"s."


def torch_saved(content, **options) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def self_containing(content):
    content["model"] = content
    return content


def hiding_its_methods() -> bytes:
    hidden = short("items") + b"Ns" + short("get") + b"Ns" + short("keys") + b"Ns"
    ordered = b"ccollections\nOrderedDict\n)R}" + hidden + b"b"
    return b"\x80\x02" + ordered + short("model") + ordered + b"s" + short("recipe") + ordered + b"s."


def checkpoints() -> dict[str, bytes]:
    storage = {"data/0": b"\0" * 256}
    files = {f"{name}, {form}": pack(code) for name, code in CODE.items() for form, pack in PACKINGS.items()}
    files |= {name: as_zip(tensor(**about), **storage) for name, about in TENSORS.items()}
    plain = {"bn1.bias": torch.zeros(64)}
    return files | {
        "a zip bomb": as_zip(
            tensor(elements=10**8, shape=(10**8,)), zipfile.ZIP_DEFLATED, **{"data/0": bytes(4 * 10**8)}
        ),
        "an empty zip": as_zip(b""),
        "no pickle": as_zip(b"\x80\x02."),
        "too few values": reduced(b"torch._utils\n_rebuild_tensor_v2", integer(1)),
        "a parameter of a word": as_zip(reduced(b"torch.nn.parameter\nParameter", short("word"))),
        "a huge tensor": as_zip(reduced(b"torch\nTensor", integer(2**60))),
        "deep lists": as_zip(chained(100_000)),
        "hidden methods": as_zip(hiding_its_methods()),
        "words for tensors": torch_saved({"bn1.bias": "zeros", "conv1.weight": ["a"]}),
        "numbers for keys": torch_saved({1: 2, 3.5: 4, None: 5, (1, (2,)): 6, b"\xff": 7, -(2**600): 8}),
        "tensors for keys": torch_saved({torch.zeros(3): 1, torch.zeros(0): torch.zeros(1)}),
        "itself": torch_saved(self_containing({**plain})),
        "models in models": torch_saved({"model": {"model": {"model": plain}}, "state_dict": {"state_dict": {}}}),
        "nothing": torch_saved({}),
        "an empty model": torch_saved({"model": {}, "classes": [], "recipe": []}),
        "a number of classes": torch_saved({"model": plain, "classes": 7}),
        "no classes": torch_saved({"model": plain, "classes": None}),
        "a tensor of classes": torch_saved({"model": plain, "classes": torch.zeros(())}),
        "classes of classes": torch_saved({"model": plain, "classes": [["a"], {"b": 1}, torch.zeros(2)]}),
        "a network of lists": torch_saved({"model": plain, "recipe": {"model": ["resnet18"]}}),
        "an unknown network": torch_saved({"model": plain, "recipe": {"model": "resnet18\n" * 99}}),
        "another network": torch_saved({"model": plain, "recipe": {"model": "vit_b_16"}}),
    }


PACKINGS = {"bare": bytes, "legacy": as_legacy, "zip": as_zip}
HEADERS = {
    "a length beyond the file": struct.pack("<Q", 2**40),
    "the largest length": b"\xff" * 8,
    "no length": struct.pack("<Q", 0),
    "no JSON": struct.pack("<Q", 4) + b"{{{{",
    "a list": struct.pack("<Q", 2) + b"[]",
}
ABOUT = {
    "an unknown type": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]},
    "a huge shape": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 16]},
    "a negative shape": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
    "offsets beyond the file": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
    "offsets the wrong way round": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
    "another size": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]},
    "no shape": {"dtype": "F32", "data_offsets": [0, 16]},
    "words": {"dtype": 4, "shape": "four", "data_offsets": None},
}


def safetensors_files() -> dict[str, bytes]:
    files = dict(HEADERS)
    for name, about in ABOUT.items():
        header = json.dumps({"bn1.bias": about}).encode()
        files[name] = struct.pack("<Q", len(header)) + header + b"\0" * 16
    for name, text in (
        ("deep", b"[" * 100_000),
        ("same keys", b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},' * 2),
    ):
        files[name] = struct.pack("<Q", len(text)) + text
    return files


@pytest.fixture(scope="module")
def network():
    return build_model("resnet18", 2)


def check_weights(file, network):
    """Read as all readers do. Nothing of these files fits, and no code in them runs."""
    content = read_or_refused(lambda: load_file(file), file)
    weights = read_or_refused(lambda: pretrained_weights("resnet18", str(file)), file)
    assert read_or_refused(lambda: trained_model(file, f"--checkpoint {file}", ["a", "b"]), file) is None
    if content is not None:
        assert type(content) is dict
        state = state_dict_of(content)
        assert all(isinstance(key, str) for key in state)
        assert read_or_refused(lambda: load_state(network, state, str(file)), file) is None
    if weights is not None:
        assert weights.classes is None or all(isinstance(name, str) for name in weights.classes)
    assert not Path("executed").exists()
    return content


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_hostile_checkpoints_are_refused(tmp_path, monkeypatch, network):
    monkeypatch.chdir(tmp_path)
    Path("inner.pt").write_bytes(CODE["system"])
    files = checkpoints()
    assert len(files) > 60
    for name, content in files.items():
        file = Path("w.pt")
        file.write_bytes(content)
        found = check_weights(file, network)
        assert found is None or not name.startswith((*CODE, *(set(TENSORS) - WITHIN))), name


def test_a_pickle_of_code_would_run(tmp_path, monkeypatch):
    """The pickles above are no straw men."""
    monkeypatch.chdir(tmp_path)
    for name in ("system", "eval", "exec of Python 2", "subprocess", "an attribute", "INST", "OBJ"):
        pickle.loads(CODE[name])
        Path("executed").unlink()


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", None)
    file = tmp_path / "w.pt"
    file.write_bytes(as_zip(tensor(), zipfile.ZIP_DEFLATED, **{"data/0": bytes(10**7)}))
    with pytest.raises(UserError, match=r"w\.pt is no checkpoint: it would unpack to 100\d\d\d\d\d bytes"):
        load_file(file)


def test_hostile_safetensors_are_refused(tmp_path, monkeypatch, network):
    monkeypatch.chdir(tmp_path)
    for name, content in safetensors_files().items():
        file = Path("w.safetensors")
        file.write_bytes(content)
        assert check_weights(file, network) is None, name


@pytest.mark.parametrize("kind", ["quantised", "bits", "packed"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_that_cannot_be_converted_are_refused(tmp_path, network, kind):
    one = torch.zeros((), dtype=torch.uint8)
    value = {
        "quantised": lambda: torch.quantize_per_tensor(torch.tensor(1.0), 1, 0, torch.qint8),
        "bits": lambda: one.view(torch.bits8),
        "packed": lambda: one.view(torch.bits2x4),
    }[kind]()
    torch.save({**network.state_dict(), "bn1.num_batches_tracked": value}, tmp_path / "w.pt")
    check_weights(tmp_path / "w.pt", network)


SOUND = {"bn1.bias": torch.arange(4.0), "bn1.weight": torch.ones(2, 2)}
SOUND_PICKLE = zipfile.ZipFile(io.BytesIO(torch_saved(SOUND))).read("archive/data.pkl")


@pytest.mark.parametrize(
    ("whole", "pack", "name"),
    [
        (torch_saved(SOUND), bytes, "w.pt"),
        (SOUND_PICKLE, lambda damage: as_zip(damage, **{"data/0": b"\0" * 16, "data/1": b"\0" * 16}), "w.pt"),
        (torch_saved(SOUND, _use_new_zipfile_serialization=False), bytes, "w.pt"),
        (safetensors.torch.save(SOUND), bytes, "w.safetensors"),
    ],
    ids=["a whole file", "the pickle in it", "an old file", "safetensors"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
@fuzzed
@given(draw=st.data())
def test_damaged_weights_are_read_or_refused(tmp_path, network, whole, pack, name, draw):
    (tmp_path / name).write_bytes(pack(draw.draw(damaged(whole))))
    check_weights(tmp_path / name, network)


# Names.

NAMES = [
    "a,b",
    '"quoted"',
    "new\nline",
    "carriage\rreturn",
    "-dash",
    "--help",
    "<b>html&amp;",
    "ünï—ß",
    "'; DROP TABLE",
    " space ",
]
NAMES += ["=1+1", "${HOME}`id`", "back\\slash", "\x1b[31mred", "non-\udcff-text"]


def test_any_name_survives_every_file(cli, tmp_path):
    root = tmp_path / 'my, <i>\n"data"'
    rng = np.random.default_rng(0)
    for name in NAMES:
        (root / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(root / name / f"{name}{number}.png")
    (root / NAMES[2] / f"broken{NAMES[2]}.png").touch()
    code, _, err = cli("train", "--data", root, *TINY, "--epochs", "1", "--run", tmp_path / "-r,\n")
    assert code == 0, err
    run = RunDir(tmp_path / "-r,\n")
    assert run.classes == sorted(NAMES)
    assert torch.load(run.last, weights_only=True)["classes"] == sorted(NAMES)
    listed, again = list_samples(root), read_split(run.split, root, run.classes)
    assert set(again.paths) == {path for path in listed.paths if "broken" not in path}
    assert all(path.startswith(f"{run.classes[label]}/") for path, label in zip(again.paths, again.labels, strict=True))
    with run.split.open(newline="", encoding="utf-8", errors="surrogateescape") as handle:
        assert {row["label"] for row in csv.DictReader(handle)} == set(NAMES)
    assert [path for path, _ in read_skipped(run.skipped)] == ["new\nline/brokennew\nline.png"]
    code, out, err = cli("eval", "--run", run.path, "--json")
    assert code == 0, err
    assert json.loads(out)["n"] == len(NAMES)
    code, out, err = cli("eval", "--run", run.path, "--data", root, "--json")
    assert code == 0, err
    assert json.loads(out)["n"] == 2 * len(NAMES)
