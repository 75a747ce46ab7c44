"""predict --explain, by the real command on a small run."""

import csv
import errno
import io
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_photos
from PIL import Image
from test_predict import error_of, rows
from test_resnet import with_lively_batchnorms

from plumage import load
from plumage.data.decode import Square, decode
from plumage.data.sources import list_pictures, list_samples
from plumage.engine.prepare import model_of
from plumage.inference import explain
from plumage.inference.explain import Names
from plumage.inference.heat import laid_over
from plumage.models.maps import class_maps, over_pictures
from plumage.models.resnet import build_model
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """``val``, twelve pictures of three classes, and ``run``, whose network has learnt nothing of them."""
    folder = tmp_path_factory.mktemp("home")
    draw_photos(folder / "val", 4)
    classes, sizes = sorted(path.name for path in (folder / "val").iterdir()), {"resize": 36, "crop": 32}
    torch.manual_seed(0)
    run = RunDir(folder / "run")
    run.best.parent.mkdir(parents=True)
    torch.save({"model": with_lively_batchnorms(build_model("resnet18", 3)).state_dict()}, run.best)
    recipe = {"data": str(folder / "val"), "model": "resnet18", "weights": "none", "batch_size": 8, **sizes}
    run.describe(Recipe.create(recipe), classes, {"precision": "fp32"})
    return folder


@pytest.fixture
def predict(cli, home):
    return lambda *arguments: cli("predict", "--run", home / "run", "--device", "cpu", *arguments)


def explained(folder):
    with (folder / "explained.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def jpegs(folder):
    return sorted(path.name for path in folder.glob("*.jpg"))


def map_of(run, file, label, mirrored=False):
    """The map without the product's way to it, of a run of resize 36 and crop 32."""
    predictor = load(run)
    images = predictor.view.center(torch.from_numpy(decode(file, Square(36)).pixels.copy())[None])
    with torch.no_grad():
        maps = class_maps(model_of(RunDir(run), "best").eval(), images.flip(3) if mirrored else images, label)[1]
    return over_pictures(maps, 32)[0].numpy()


def test_each_picture_beside_itself_with_the_map_of_its_label(predict, home, tmp_path):
    folder = tmp_path / "why" / "so"
    code, out, err = predict(home / "val", "--explain", folder)
    assert (code, err) == (0, "")
    assert predict(home / "val")[1] == out  # which explaining does not change
    predicted, told = rows(out), explained(folder)
    assert [(row["path"], row["label"], row["probability"]) for row in told] == [
        (row["path"], row["label"], row["probability"]) for row in predicted
    ]
    assert jpegs(folder) == sorted(row["file"] for row in told)
    stems = [Path(row["path"]).stem for row in told]
    assert all(row["file"].startswith(stem) for row, stem in zip(told, stems, strict=True))
    assert len(set(stems)) < len(told) == 12  # the same names in different folders
    classes = json.loads((home / "run" / "classes.json").read_text())
    for row in told[:3]:
        drawn = np.asarray(Image.open(folder / row["file"])).astype(int)
        assert drawn.shape == (224, 448, 3)
        picture = decode(Path(row["path"]), Square(252)).pixels[14:238, 14:238]
        assert np.abs(drawn[:, :224] - picture).mean() < 6
        evidence = map_of(home / "run", Path(row["path"]), torch.tensor([classes.index(row["label"])]))
        assert np.abs(drawn[:, 224:] - laid_over(picture, evidence)).mean() < 6


def test_with_mirror_images_the_map_is_the_mean_of_both(home):
    """Turned back where they are of the picture: cells do not cover it evenly."""
    file, label = next((home / "val").rglob("*.jpg")), torch.tensor([1])
    stored = torch.from_numpy(decode(file, Square(36)).pixels.copy())[None]
    one, other = (map_of(home / "run", file, label, mirrored) for mirrored in (False, True))
    assert np.abs(one - other[:, ::-1]).max() > 0.01
    assert np.allclose(load(home / "run", tta=True).maps(stored, label)[0], (one + other[:, ::-1]) / 2, atol=1e-5)
    assert np.allclose(load(home / "run").maps(stored, label)[0], one, atol=1e-5)


def test_at_most_so_many_and_it_says_so(predict, home, tmp_path, monkeypatch):
    files = sorted((home / "val").rglob("*.jpg"))
    code, out, err = predict(home / "val", "--explain", tmp_path / "ten", "--explain-most", 10)
    assert (code, err) == (0, f"{tmp_path / 'ten'}: the first 10 of 12 pictures; --explain-most N asks for more\n")
    assert [row["path"] for row in explained(tmp_path / "ten")] == [str(file) for file in files[:10]]
    assert (len(jpegs(tmp_path / "ten")), len(rows(out))) == (10, 12)
    monkeypatch.setattr(explain, "MOST", 3)
    assert "the first 3 of 12" in predict(home / "val", "--explain", tmp_path / "three")[2]
    assert predict(home / "val", "--explain", tmp_path / "all", "--explain-most", 12)[2] == ""
    for number in ("0", "-1", "x"):
        code, _, err = predict(home / "val", "--explain", tmp_path / "none", "--explain-most", number)
        assert (code, err.count("\n")) == (2, 1)
    code, _, err = predict(home / "val", "--explain-most", 5)
    assert (code, "--explain FOLDER" in error_of(err)) == (2, True)
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_read_has_no_map_and_the_others_have_theirs(predict, home, tmp_path):
    files = tmp_path / "files"
    shutil.copytree(home / "val", files)
    for kind in files.iterdir():
        (kind / "00.jpg").write_text("no picture")
    code, _, err = predict(files, "--explain", tmp_path / "why")
    assert (code, "3 of 15 pictures cannot be read" in error_of(err)) == (2, True)
    assert len(explained(tmp_path / "why")) == len(jpegs(tmp_path / "why")) == 12
    assert predict(files / kind.name / "00.jpg", "--explain", tmp_path / "none", "--skip-unreadable")[0] == 0
    assert (jpegs(tmp_path / "none"), explained(tmp_path / "none")) == ([], [])


def test_names_and_kinds_of_any_sort(predict, tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 4), np.uint8)
    picture, folder = Image.fromarray(noise), tmp_path / "in"
    folder.mkdir()
    palette = picture.convert("RGB").quantize(16)
    palette.info["transparency"] = 0
    palette.save(folder / "palette.gif")
    palette.save(folder / "palette.png")
    picture.save(folder / "alpha.png")
    picture.convert("LA").save(folder / "alpha.tif")
    Image.fromarray(noise[..., :3]).convert("CMYK").save(folder / "ink.jpg")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 256).save(folder / "deep.png")
    for name in (b"na\xffme.png", b"x" * 251 + b".png", "ä".encode() * 125 + b".png", b"two\nlines.png", b"=1+1.png"):
        picture.save(io.BytesIO(), "PNG")
        picture.save(content := io.BytesIO(), "PNG")
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(content.getvalue())
    (folder / "sub").mkdir()
    for name in ("ALPHA.png", "alpha-2.png", ".hidden.png"):
        picture.save(folder / "sub" / name)
    given = os.fsencode(folder) + b"\n" + os.fsencode(folder / "sub" / ".hidden.png") + b"\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
    code, _, err = predict("-", "-o", tmp_path / "rows.csv", "--explain", tmp_path / "why")
    assert code == 0, err
    told, found = explained(tmp_path / "why"), jpegs(tmp_path / "why")
    assert len(told) == len(found) == 14
    assert len({name.casefold() for name in found}) == 14
    assert {Image.open(tmp_path / "why" / name).size for name in found} == {(448, 224)}
    of = {os.path.basename(row["path"]): row["file"] for row in told}  # noqa: PTH119
    assert of["palette.gif"] == "palette.jpg"
    assert of["palette.png"] == "palette-2.jpg"
    assert os.fsencode(of[os.fsdecode(b"na\xffme.png")]) == b"na\xffme.jpg"
    assert of[".hidden.png"] == "hidden.jpg"
    assert of["x" * 251 + ".png"] == "x" * 200 + ".jpg"
    assert of["ä" * 125 + ".png"] == "ä" * 100 + ".jpg"


def test_names_are_never_two_the_same():
    names = Names()
    given = ["a.jpg", "b/a.png", "A.gif", "a-2.jpg", "c/a.jpg", "e\u0301.jpg", "\u00e9.jpg", ".jpg", "..png", "-.png"]
    found = [names.of(path) for path in given]
    assert found[:4] == ["a.jpg", "a-2.jpg", "A-3.jpg", "a-2-2.jpg"]
    assert len({name.casefold() for name in found}) == len(given)
    many = [names.of(f"{number}/x.jpg") for number in range(20_000)]  # in no time, not in that of its square
    assert (many[0], many[-1], len(set(many))) == ("x.jpg", "x-20000.jpg", 20_000)


def test_nothing_that_is_there_is_lost(predict, home, tmp_path):
    """Neither what a folder holds, nor inputs; and what was drawn is no input, nor anything to learn from."""
    photos = tmp_path / "photos"
    shutil.copytree(home / "val", photos)
    before = {path: path.read_bytes() for path in photos.rglob("*.jpg")}
    why = photos / "why"
    assert predict(photos, "--explain", why)[0] == 0
    code, out, err = predict(photos, "--explain", why)
    assert (code, out, "--force" in error_of(err)) == (2, "", True)
    code, out, err = predict(photos, "--explain", why, "--force")
    assert (code, len(rows(out)), len(jpegs(why))) == (0, 12, 12)
    assert f"the maps in {why}" in err
    assert len(list_pictures([str(photos)])) == 12
    assert "why" not in list_samples(photos).classes
    assert len(list_samples(photos)) == 12

    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    one = next(iter(before))
    assert predict(one, "--explain", tmp_path / "notes")[0] == 2
    assert predict(one, "--explain", tmp_path / "notes", "--force")[0] == 0
    assert (tmp_path / "notes" / "notes.txt").read_text() == "mine"

    (tmp_path / "link").symlink_to(photos)
    drawn = next(why.glob("*.jpg"))
    odd = tmp_path / "odd"
    odd.mkdir()
    shutil.copy(one, odd / ".hidden.jpg")
    held = [(photos, photos), (one, photos), (one, one.parent), (photos, tmp_path / "link"), (drawn, why)]
    for given, folder in [*held, (odd / ".hidden.jpg", odd), (one, home / "val")]:
        code, out, err = predict(given, "--explain", folder, "--force")
        assert (code, out, "holds pictures of its own" in error_of(err)) == (2, "", True), folder
        assert not (folder / "explained.csv").exists() or folder == why
    assert {path: path.read_bytes() for path in before} == before


def test_maps_of_an_earlier_call_go(predict, home, tmp_path):
    """Those that its table names, and nothing else that it may name."""
    why, one = tmp_path / "why", next((home / "val").rglob("*.jpg"))
    assert predict(home / "val", "--explain", why)[0] == 0
    (tmp_path / "outside.jpg").write_text("mine")
    (why / "notes.txt").write_text("mine")
    (why / "folder.jpg").mkdir()
    with (why / "explained.csv").open("a") as out:
        for name in ("../outside.jpg", str(tmp_path / "outside.jpg"), "notes.txt", "folder.jpg", "gone.jpg", ""):
            out.write(f"{name},x,y,1\r\n")
    assert predict(one, "--explain", why, "--force")[0] == 0
    assert sorted(path.name for path in why.iterdir()) == sorted(
        [f"{one.stem}.jpg", "explained.csv", "notes.txt", "folder.jpg"]
    )
    assert (tmp_path / "outside.jpg").read_text() == "mine"
    (why / "explained.csv").write_text("file,path\n")
    code, _, err = predict(one, "--explain", why, "--force")
    assert (code, "the maps of an earlier call stay in" in err) == (0, True)


def test_what_is_rejected_has_no_label_here_either(home, tmp_path):
    with explain.Explainer(load(home / "run"), tmp_path / "why", 9, lambda said: said.max() < 0.6).opened() as take:
        for said in ([0.2, 0.5, 0.3], [0.1, 0.7, 0.2]):
            take(str(next((home / "val").rglob("*.jpg"))), np.array(said))
    classes = RunDir(home / "run").classes
    assert [(row["label"], row["probability"]) for row in explained(tmp_path / "why")] == [
        ("", "0.5"),
        (classes[1], "0.7"),
    ]


def test_folders_that_cannot_be_written_to(predict, home, tmp_path):
    file = tmp_path / "file"
    file.write_text("a file")
    for folder in (file, file / "below", tmp_path / ("x" * 300)):
        code, out, err = predict(home / "val", "--explain", folder)
        assert (code, out, err.count("\n"), err.startswith("error: --explain")) == (2, "", 1, True), err
    code, out, err = predict(home / "val", "--explain", "")
    assert (code, err.count("\n")) == (2, 1)
    assert file.read_text() == "a file"
    (tmp_path / "away").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "away" / "nowhere")
    assert predict(home / "val", "--explain", tmp_path / "dangling")[0] == 2
    if Path("/proc").is_dir():
        code, _, err = predict(home / "val", "--explain", "/proc/x", "-o", tmp_path / "rows.csv")
        assert (code, err.count("\n"), err.startswith("error: --explain /proc/x: ")) == (2, 1, True), err
        assert "give another" in err


def test_a_full_disk_is_one_line_that_names_the_file(predict, home, tmp_path, monkeypatch):
    whole = explain.written_whole

    @contextmanager
    def full(file):
        with whole(file) as draft:
            yield draft
            if file.name == "12.jpg" or "-" in file.name:
                raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(explain, "written_whole", full)
    code, _, err = predict(home / "val", "-o", tmp_path / "rows.csv", "--explain", tmp_path / "why")
    assert code == 2
    assert error_of(err).startswith(f"error: {tmp_path / 'why'}/")
    assert error_of(err).endswith(".jpg: No space left on device")
    assert err.count("\n") == 1
    assert not list((tmp_path / "why").glob(".draft-*"))


def test_it_takes_memory_for_a_batch(home, tmp_path):
    predictor = load(home / "run")
    with explain.Explainer(predictor, tmp_path / "why", 100).opened() as take:
        for number in range(40):
            take(str(next((home / "val").rglob("*.jpg"))), np.array([0.2, 0.5, 0.3]))
            assert len(take._waiting) == (number + 1) % predictor.batch_size
            assert len(jpegs(tmp_path / "why")) == number + 1 - len(take._waiting)
    assert len(jpegs(tmp_path / "why")) == 40
