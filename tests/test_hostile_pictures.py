"""Hostile pictures: each is decoded or skipped with a reason, in bounded memory."""

import io
import json
import os
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hostile import read_or_refused
from PIL import Image
from test_colour import CURVES, of_colorants
from test_depth import of_bits
from test_depth import png as deep_png
from test_depth import tiff as deep_tiff
from test_formats import HEIC

import plumage.data.decode
import plumage.data.formats
from plumage.data.decode import Square
from plumage.data.sources import list_samples
from plumage.data.store import Cache, open_store


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *more: bytes, rows: bytes = b"\0" * 99) -> bytes:
    """Return a PNG file of one bit per pixel. Its header may claim any size, whatever ``rows`` holds."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(*tags: tuple[int, int, int, int], following: int = 0, pixels: bytes = b"\x80" * 64) -> bytes:
    """Return a TIFF file of 8 × 8 grey pixels with ``tags`` (number, type, count, value) changed.

    following: the offset of the next directory.
    """
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
    floats = rng.normal(0, 1e30, (20, 30)).astype(np.float32)
    profile = of_colorants(*CURVES["P3"])
    more = {"plain.avif": encoded(rgb, "AVIF")} if "AVIF" in plumage.data.formats.FORMATS else {}
    more |= {"plain.heic": HEIC} if "HEIF" in plumage.data.formats.FORMATS else {}
    return more | {
        "wide.jpg": encoded(rgb, "JPEG", icc_profile=profile),
        "wide.png": encoded(rgb, "PNG", icc_profile=profile),
        "deep-rgb.png": deep_png(of_bits(12, 3)),
        "deep-alpha.png": deep_png(of_bits(16, 4)),
        "deep-grey-alpha.png": deep_png(of_bits(16, 2), True),
        "deep.tif": deep_tiff(of_bits(12), ">"),
        "deep-rgb.tif": deep_tiff(of_bits(12, 3), ">", True),
        "signed.tif": deep_tiff(of_bits(12).astype(np.int16) - 99),
        "real-floats.tif": deep_tiff(floats, "<", True),
        "floats.tif": tiff((258, 3, 1, 32), (339, 3, 1, 3), (279, 4, 1, 256), pixels=b"\x7f" * 256),
        "floats.ppm": b"Pf 5 5 -1.0\n" + b"\x7f" * 100,
        "deep.ppm": b"P6 5 5 65535\n" + b"\x07\xff" * 75,
        "plain.jp2": encoded(rgb, "JPEG2000"),
        "plain.j2k": encoded(rgb, "JPEG2000", no_jp2=True),
        "deep.jp2": encoded(Image.fromarray(rng.integers(0, 65536, (20, 30), np.uint16)), "JPEG2000"),
        "plain.tga": encoded(rgb, "TGA"),
        "packed.tga": encoded(rgb, "TGA", compression="tga_rle"),
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
    jp2, j2k, tga = (sound[f"plain.{suffix}"] for suffix in ("jp2", "j2k", "tga"))
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
        "bomb.jp2": patched(jp2, jp2.index(b"ihdr") + 4, ">II", 60_000, 60_000),
        "no-size.jp2": patched(jp2, jp2.index(b"ihdr") + 4, ">II", 0, 0),
        "bomb.j2k": patched(j2k, 8, ">II", 60_000, 60_000),
        "bomb.tga": patched(tga, 12, "<HH", 65_535, 65_535),
        "no-size.tga": patched(tga, 12, "<HH", 0, 0),
        "short.tga": patched(tga, 12, "<HH", 9000, 9000),
        "map.tga": patched(tga, 1, "<BBHHB", 1, 1, 0, 65_535, 255),
        "tga.jpg": tga,
        "deep-bomb.png": deep_png(of_bits(12, 3)).replace(struct.pack(">II", 11, 11), struct.pack(">II", 9999, 9999)),
        "planar.tif": deep_tiff(of_bits(12, 3), planar=2),
        "deep-short.tif": deep_tiff(of_bits(12, 3)).replace(struct.pack("<I", 11), struct.pack("<I", 9999)),
        "no-number.tif": deep_tiff(np.full((9, 9), np.nan, np.float32)),
        "raw.dng": tiff(),
        "bomb.ppm": b"P6 60000 60000 255\n" + b"\0" * 99,
        "short.ppm": b"P6 9000 9000 255\n" + b"\0" * 99,
        "negative.ppm": b"P6 -5 5 255\n" + b"\0" * 99,
        "depth.ppm": b"P6 5 5 99999999999\n" + b"\0" * 99,
        "comment.ppm": b"P6 #" + b"x" * 100_000,
        "words.ppm": b"P3 5 5 255\n" + b"red green blue " * 25,
        "deep-short.ppm": b"P6 9000 9000 65535\n" + b"\0" * 99,
    }


def mutations(sound: dict[str, bytes]) -> dict[str, bytes]:
    """Return eight damaged copies of each sound file, cut short or with bytes changed, each by a seed of its own."""
    files = {}
    for name, whole in sound.items():
        for number in range(8):
            draw, content = random.Random(f"{name} {number}"), bytearray(whole)
            if number < 3:
                del content[draw.randrange(len(content)) :]
            else:  # half of these only where headers are
                end = 100 if number % 2 else len(content)
                for _ in range(draw.randint(1, 6)):
                    content[draw.randrange(min(end, len(content)))] = draw.choice([0, 255, draw.randrange(256)])
            files[f"{number}-{name}"] = bytes(content)
    return files


def blank_sheets(sound: dict[str, bytes]) -> dict[str, bytes]:
    """Return sound pictures just below the limit: 98 megapixels with transparency, in files of hundreds of bytes."""
    return {f"sheet-{n}.gif": patched(sound["clear.gif"], 6, "<HH", 9900, 9900) for n in range(3)}


def sparse(file: Path, head: bytes, size: int, tail: bytes = b"") -> None:
    """Write a file of ``size`` bytes that takes none of the disk between its head and its tail."""
    with file.open("wb") as out:
        out.write(head)
        out.seek(size - len(tail))
        out.write(tail)
        out.truncate(size)


def write_long_files(root: Path, sound: dict[str, bytes]) -> dict[str, bool]:
    """Write files that are long, or say so in a header; return whether each is too long for a picture."""
    most, webp = plumage.data.decode.MAX_BYTES, sound["plain.webp"]
    avif = encoded(Image.new("RGB", (30, 20)), "AVIF") if "AVIF" in plumage.data.formats.FORMATS else webp
    heads = {
        "long.webp": webp,
        "riff.webp": webp[:4] + struct.pack("<I", most - 8) + webp[8:],
        "long.avif": avif,
        "long.jpg": sound["plain.jpg"],
        "long.png": sound["plain.png"],
        "segments.jpg": sound["plain.jpg"][:2] + (b"\xff\xe1\xff\xffExif\0\0II*\0" + bytes(65_523)) * 300,
        "comment.ppm": b"P6 #",
        "plain.ppm": b"P3 8 8 255\n",
        "strips.tif": tiff((273, 3, (most - 5000) // 2, 1000)),
        "sizes.tif": tiff((279, 4, (most - 5000) // 4, 1000)),
        "orientation.tif": tiff((274, 3, (most - 5000) // 2, 1000)),
        "fractions.tif": tiff((282, 5, (most - 5000) // 8, 1000)),
    }
    for name, head in heads.items():
        sparse(root / name, head, most)
    orientation = b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 274, 3, (most - 1000) // 2, 26)
    chunks = {"iCCP": b"k\0\0", "zTXt": b"k\0\0", "tEXt": b"k\0", "iTXt": b"k\0\0\0\0\0", "eXIf": orientation}
    small = png(8, 8)
    for kind, content in chunks.items():
        for when, place in (("early", 33), ("late", len(small) - 12)):
            start, length = kind.encode() + content, most - len(small) - 12
            check = zlib.crc32(start)
            for left in range(length - len(content), 0, -(2**20)):
                check = zlib.crc32(bytes(min(left, 2**20)), check)
            head, tail = small[:place] + struct.pack(">I", length) + start, struct.pack(">I", check) + small[place:]
            sparse(root / f"{when}-{kind}.png", head, most, tail)
    sparse(root / "longer.webp", webp, most + 1)
    sparse(root / "longest.jpg", sound["plain.jpg"], 5 * 10**9)
    return {file.name: file.stat().st_size > most for file in root.iterdir()}


READ_ALL = """
import json, re, resource, sys
from pathlib import Path
from plumage.data.decode import Square
from plumage.data.depth import LEARN
from plumage.data.store import Cache, open_store
root, cache = map(Path, sys.argv[1:])
names = json.loads((cache / "names").read_text())
store = open_store(root, names, Square(16, "crop", LEARN), Cache(cache, workers=4))
if sys.platform == "linux":  # where ru_maxrss starts at the peak of the parent process, pytest's
    peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30
whole = store.read(store.places).shape == (len(store.readable), 16, 16, 3) == store.digests.shape[:1] + store.shape[1:]
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
    assert (broken.keys() | absent) - {"text-bomb.png", "many-bits.tif"} <= reasons.keys()  # these two hold pixels too
    assert all(reason.strip() and len(reason.splitlines()) == 1 and len(reason) < 500 for reason in reasons.values())
    assert not (ROOT / "executed").exists()
    assert peak < 2  # GiB


def test_long_files_in_bounded_memory(tmp_path):
    root, cache = tmp_path / "pictures", tmp_path / "cache"
    root.mkdir()
    cache.mkdir()
    too_long = write_long_files(root, sound_pictures())
    names = sorted(too_long)
    (cache / "names").write_text(json.dumps(names))
    command = [sys.executable, "-c", READ_ALL, root, cache]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert output.returncode == 0, output.stderr
    _, skipped, whole, peak = json.loads(output.stdout)
    assert whole
    reasons = {name: reason for name, reason in skipped if "no picture may have more than" in reason}
    assert reasons.keys() == {name for name, long in too_long.items() if long}
    assert reasons["longest.jpg"] == "has 5,000 MB: no picture may have more than 320"
    assert peak < 2  # GiB


def test_pictures_that_are_large_at_once_are_decoded_one_after_the_other(tmp_path, monkeypatch):
    alone = []
    locked = plumage.data.decode.one_huge_picture.locked
    monkeypatch.setattr(plumage.data.decode, "to_rgb", lambda image: alone.append(locked()) or image)
    monkeypatch.setattr(plumage.data.decode, "HUGE", 99)
    for side in (9, 10):
        Image.new("RGB", (side, 11)).save(tmp_path / f"{side}.png")
        plumage.data.decode.decode(tmp_path / f"{side}.png", Square(4))
    assert alone == [False, True]
    deep = plumage.data.decode.deep_to_square
    monkeypatch.setattr(plumage.data.decode, "deep_to_square", lambda *given: alone.append(locked()) or deep(*given))
    (tmp_path / "deep.png").write_bytes(deep_png(of_bits(12, 3)))
    plumage.data.decode.decode(tmp_path / "deep.png", Square(4))
    assert alone.pop()
    monkeypatch.setattr(plumage.data.decode, "LARGE", 0)
    plumage.data.decode.decode(tmp_path / "9.png", Square(4))
    plumage.data.decode.decode(tmp_path / "10.png", Square(4))  # both long and huge: not locked twice
    assert alone == [False, True, True, True]
    assert not plumage.data.decode.one_huge_picture.locked()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read anything")
def test_without_permission(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / name / "1.png")
    (tmp_path / "a" / "1.png").chmod(0)
    ((path, reason),) = open_store(tmp_path, ["a/1.png", "b/1.png"], Square(8), Cache(tmp_path / "cache")).skipped
    assert (path, "Permission denied" in reason) == ("a/1.png", True)
    (tmp_path / "b").chmod(0)
    assert read_or_refused(lambda: list_samples(tmp_path), tmp_path) is None  # of the one class that can be listed
    (tmp_path / "b").chmod(0o700)
