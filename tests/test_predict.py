"""Prediction, from Python and by the real command."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLIPART, ROOT, TINY, draw_photos
from PIL import Image

from plumage import load
from plumage.errors import UserError
from plumage.inference.calibration import best_temperature, cross_fitted
from plumage.inference.order import arrange
from plumage.inference.predict import in_batches, read_picture
from plumage.inference.table import Table
from plumage.tables import plain


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """``photos``, and ``runs/photos-1``, which was trained on them; its 12 validation pictures are copied to ``val``.

    A fifth of the pictures is in another's folder, so that no model can be right, nor sure, of all.
    """
    folder = tmp_path_factory.mktemp("home")
    draw_photos(folder / "photos", 20)
    classes = sorted(path for path in (folder / "photos").iterdir())
    for number in range(4):
        first, *_ = [kind / f"{number}.jpg" for kind in classes]
        first.rename(folder / "kept.jpg")
        for kind, other in zip(classes, [*classes[1:], None], strict=True):
            (other / f"{number}.jpg" if other else folder / "kept.jpg").rename(kind / f"{number}.jpg")
    command = ["train", "--data", folder / "photos", *TINY, "--epochs", "6", "--lr", "0.01", "--smoothing", "0.1"]
    command += ["--cache", folder / "cache", "--run", folder / "runs" / "photos-1"]
    done = subprocess.run(
        [sys.executable, ROOT / "main.py", *map(str, command)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with (folder / "runs" / "photos-1" / "split.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["split"] == "val":
                (folder / "val" / row["label"]).mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / "photos" / row["path"], folder / "val" / row["path"])
    return folder


@pytest.fixture
def run(home):
    yield home / "runs" / "photos-1"
    (home / "runs" / "photos-1" / "calibration.json").unlink(missing_ok=True)


@pytest.fixture
def predict(cli, run):
    return lambda *arguments: cli("predict", "--run", run, *arguments)


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def error_of(err):
    lines = err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


def test_on_the_validation_pictures_it_is_the_evaluation_to_the_bit(cli, predict, home, run):
    """In batches of 8 and 4, as there."""
    code, out, _ = cli("eval", "--run", run, "--json")
    assert code == 0
    code, text, err = predict(home / "val", "--probabilities")
    assert (code, err) == (0, "")
    found = rows(text)
    assert [row["path"] for row in found] == sorted(str(path) for path in (home / "val").rglob("*.jpg"))
    right = [row["label"] == Path(row["path"]).parent.name for row in found]
    assert np.mean(right) == json.loads(out)["accuracy"]

    logits = torch.from_numpy(np.load(run / "eval-val.npz")["logits"]).double()
    classes = json.loads((run / "classes.json").read_text())
    predicted = load(run)([row["path"] for row in found])
    expected = logits.softmax(dim=1)
    assert [list(one.probabilities.values()) for one in predicted] == expected.tolist()
    assert [one.label for one in predicted] == [row["label"] for row in found]
    for row, line in zip(found, expected.tolist(), strict=True):
        assert [float(row[name]) for name in classes] == [float(f"{value:.6g}") for value in line]
        assert float(row["probability"]) == max(float(row[name]) for name in classes)


def test_python_takes_files_and_images_and_changes_none(run, home):
    files = sorted((home / "val").rglob("*.jpg"))
    turned = Image.open(files[0]).rotate(90, expand=True)
    turned.getexif()[0x0112] = 6  # upright again when turned by 270°
    before = turned.tobytes()
    predictor, pictures = load(str(run)), [str(files[0]), Image.open(files[0]), turned]
    pixels, same, upright = (read_picture(each, predictor.square).pixels.astype(int) for each in pictures)
    assert np.array_equal(same, pixels)
    assert np.abs(upright - pixels).max() <= 1  # older Pillows round between the passes of a resize
    from_file, *others = predictor(pictures)
    for other in others:  # which a place of its own in the batch may round another way
        assert other.label == from_file.label
        assert other.probabilities == pytest.approx(from_file.probabilities, abs=1e-3)
    assert turned.tobytes() == before
    assert from_file.probability == max(from_file.probabilities.values())
    assert from_file.probabilities[from_file.label] == from_file.probability
    assert sum(from_file.probabilities.values()) == pytest.approx(1)
    assert predictor([]) == []


def test_python_gets_ordinary_exceptions(run, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.jpg: "):
        load(run)([tmp_path / "text.jpg"])
    with pytest.raises(TypeError, match="list"):
        load(run)(tmp_path / "text.jpg")
    with pytest.raises(ValueError, match="none"):
        load(tmp_path / "none")
    with pytest.raises(ValueError, match=r"none\.pt does not exist"):
        load(run, checkpoint="none.pt", device="cpu")


def test_python_reads_one_image_that_is_there_twice_and_names_what_it_cannot_read(run, home, tmp_path):
    file = tmp_path / "large.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)
    Image.fromarray(noise).save(file)
    predictor, image = load(run), Image.open(file)
    assert len({one.label for one in predictor([image] * 8)}) == 1
    file.write_bytes(file.read_bytes()[:-5000])
    for picture, says in ((Image.open(file), r"large\.jpg: .*truncated"), (Image.new("RGB", (5, 0)), "has no pixels")):
        with pytest.raises(ValueError, match=says):
            predictor([picture])
    with pytest.raises(ValueError, match="--device gpu"):
        load(run, device="gpu")


@pytest.mark.parametrize(
    ("options", "twice"),
    [
        (["--columns", "id,label,label_2", "--top-k", "2"], "label_2"),
        (["--columns", "probabilities,label", "--probabilities", "--format", "jsonl"], "probabilities"),
    ],
)
def test_columns_of_one_name_are_refused(predict, home, options, twice):
    code, text, err = predict(home / "val", *options)
    assert (code, text) == (2, "")
    assert f"'{twice}' would be there twice" in err


def test_the_lines_of_the_readme(home, monkeypatch, tmp_path, capsys):
    lines = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    shutil.copytree(home / "runs" / "photos-1", tmp_path / "runs" / "birds-1")
    for name in re.findall(r'"([^"]+\.jpg)"', lines):
        shutil.copy(home / "val" / "red apple" / next((home / "val" / "red apple").iterdir()).name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len([line for line in lines.splitlines() if line]) == 4
    exec(lines, {})
    label, probability = capsys.readouterr().out.splitlines()[0].rsplit(" ", 1)
    assert label in {path.name for path in (home / "photos").iterdir()}
    assert 1 / 3 < float(probability) <= 1


def test_the_mean_with_the_mirror_image(run, home):
    image = Image.open(next((home / "val").rglob("*.jpg")))
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    plain = load(run)
    one, other = (plain([each])[0].probabilities for each in (image, mirrored))
    both = load(run, tta=True)([image])[0].probabilities
    assert one != pytest.approx(other, abs=1e-4)
    assert both == pytest.approx({name: (one[name] + other[name]) / 2 for name in one}, abs=1e-6)


def test_calibration_is_kept_and_used_for_its_checkpoint_alone(cli, predict, run, home, tmp_path):
    evaluation = json.loads(cli("eval", "--run", run, "--json")[1])
    raw = predict(home / "val", "--probabilities")[1]
    code, out, err = cli("eval", "--run", run, "--calibrate", "--json")
    arrays = np.load(run / "eval-val.npz")
    assert code == 0, err
    fitted = json.loads(out)
    assert {name: fitted[name] for name in evaluation} == evaluation
    kept = json.loads((run / "calibration.json").read_text())
    assert (kept["n"], kept["checkpoint"], kept["nll"]) == (12, "best", pytest.approx(evaluation["nll"], abs=1e-6))
    assert kept["temperature"] == best_temperature(arrays["logits"], arrays["labels"])
    # Of pictures that it was not fitted on.
    assert kept["calibrated_nll"] == fitted["calibrated_nll"] == cross_fitted(arrays["logits"], arrays["labels"]).nll

    logits = torch.from_numpy(arrays["logits"]).double() / kept["temperature"]
    files = sorted((home / "val").rglob("*.jpg"))
    found = [list(one.probabilities.values()) for one in load(run)(files)]
    assert found == logits.softmax(dim=1).tolist()
    losses = -np.log([row[label] for row, label in zip(found, arrays["labels"], strict=True)])
    assert losses.mean() < min(kept["nll"], kept["calibrated_nll"])
    assert predict(home / "val", "--probabilities", "--no-calibration")[1] == raw
    assert predict(home / "val", "--probabilities")[1] != raw
    # The same weights under another name, and others.
    saved = torch.load(run / "checkpoints" / "best.pt")
    torch.save(saved["model"], tmp_path / "bare.pt")
    saved["model"]["fc.bias"] += 0.01
    torch.save(saved, tmp_path / "other.pt")
    code, calibrated, err = predict(home / "val", "--checkpoint", tmp_path / "bare.pt")
    assert (code, calibrated, err) == (0, predict(home / "val")[1], "")
    code, _, err = predict(home / "val", "--checkpoint", tmp_path / "other.pt")
    assert code == 0
    assert "calibration.json is of another checkpoint" in err


def test_calibration_on_other_pictures_is_refused(cli, run, home):
    for options in (["--split", "train"], ["--split", "all"], ["--data", home / "val"]):
        code, out, err = cli("eval", "--run", run, "--calibrate", *options)
        assert (code, out) == (2, "")
        assert "--calibrate" in error_of(err)
    assert not (run / "calibration.json").exists()


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"temperature": "1"}']
    + [f'{{"temperature": {number}, "weights": ""}}' for number in ("0", "1e-300", "NaN", "1" + 400 * "0")],
)
def test_a_damaged_calibration_is_named(predict, run, home, content):
    (run / "calibration.json").write_text(content)
    code, out, err = predict(home / "val")
    assert (code, out) == (2, "")
    assert "calibration.json" in error_of(err)
    assert predict(home / "val", "--no-calibration")[0] == 0


def test_ranks_labels_ids_and_columns(predict, home, run):
    classes = json.loads((run / "classes.json").read_text())
    everything = rows(predict(home / "val", "--probabilities")[1])
    ranked = rows(predict(home / "val", "--top-k", "9", "--label", "index")[1])
    assert list(ranked[0]) == ["path", "label", "probability", "label_2", "probability_2", "label_3", "probability_3"]
    for row, all_of_it in zip(ranked, everything, strict=True):
        order = sorted(classes, key=lambda name: -float(all_of_it[name]))
        assert [classes[int(row[column])] for column in ("label", "label_2", "label_3")] == order
        assert [row[column] for column in ("probability", "probability_2")] == [all_of_it[name] for name in order[:2]]
    file = home / "val" / everything[0]["path"]
    named = rows(predict(file, "--columns", "Id,Category", "--id", "name", "--top-k", "2")[1])
    assert list(named[0]) == ["Id", "Category", "Category_2"]
    assert named[0]["Id"] == file.name
    assert list(rows(predict(file, "--columns", "id", "--id", "stem", "--probabilities")[1])[0]) == ["id", *classes]


def test_json_lines(predict, home, tmp_path, run):
    classes = json.loads((run / "classes.json").read_text())
    (tmp_path / "z.jpg").write_text("no picture")
    file = str(next((home / "val").rglob("*.jpg")))
    code, out, _ = predict(file, tmp_path / "z.jpg", "--format", "jsonl", "--probabilities", "--top-k", "2")
    assert code == 2
    found = {row["path"]: row for row in map(json.loads, out.splitlines())}
    assert list(found[file]["probabilities"]) == classes
    assert found[file]["probability"] == max(found[file]["probabilities"].values())
    assert found[str(tmp_path / "z.jpg")]["label"] is None


NAMES = ["=1+1", "-1", "@a", "ordinary", "'=b", "\x1b[2J", "7"]


def written(names, **fields):
    """Return what a table writes of pictures that show the classes of the same names."""
    table, out = Table(names, **fields), io.StringIO()
    write = table.writer(out)
    for picture, probabilities in zip(names, np.eye(len(names)), strict=True):
        write(picture, probabilities)
    return out.getvalue()


def test_a_spreadsheet_computes_no_name_and_json_has_them_exactly():
    guarded = ["'=1+1", "-1", "'@a", "ordinary", "''=b", "\x1b[2J", "7"]
    found = list(csv.reader(io.StringIO(written(NAMES, probabilities=True))))
    assert found[0] == ["path", "label", "probability", *guarded]
    assert [row[:3] for row in found[1:]] == [[name, name, "1.0"] for name in guarded]
    found = [json.loads(line) for line in written(NAMES, form="jsonl", probabilities=True).splitlines()]
    assert [(row["path"], row["label"], list(row["probabilities"])) for row in found] == [(n, n, NAMES) for n in NAMES]


@pytest.mark.parametrize("header", ["", "id,label\n"])
def test_an_order_may_name_pictures_in_another_of_unicodes_forms(tmp_path, header):
    composed, apart = "caf\u00e9", "cafe\u0301"
    paths, end = [f"x/{composed} 1.jpg", f"x/{apart} 2.jpg", "x/b.jpg"], ",0" if header else ""
    names = [f"{composed} 2", "b", f"{apart} 1"]
    (tmp_path / "order.csv").write_text(header + "".join(f"{name}{end}\n" for name in names), encoding="utf-8")
    table = Table(["a", "b"], columns=("id", "label"), identity="stem", exact=True)
    table, arranged = arrange(table, paths, tmp_path / "order.csv")
    assert arranged == [paths[1], paths[2], paths[0]]
    out = io.StringIO()
    write = table.writer(out)
    for path in arranged:
        write(path, np.array([0.25, 0.75]))
    assert [row["id"] for row in rows(out.getvalue())] == names  # as whoever asked has them
    (tmp_path / "order.csv").write_text(f"{composed} 1\n{apart} 1\n", encoding="utf-8")
    with pytest.raises(UserError, match="twice"):
        arrange(Table(["a", "b"], identity="stem"), paths, tmp_path / "order.csv")
    both = [f"{composed}.jpg", f"{apart}.jpg"]  # two pictures, of which each is meant
    (tmp_path / "order.csv").write_text(f"{apart}\n{composed}\n", encoding="utf-8")
    assert arrange(Table(["a", "b"], identity="stem"), both, tmp_path / "order.csv")[1] == both[::-1]


def test_what_was_predicted_is_an_order_too(tmp_path):
    (tmp_path / "order.csv").write_text(written(NAMES))
    assert arrange(Table(NAMES), sorted(NAMES), tmp_path / "order.csv")[1] == NAMES
    (tmp_path / "order.csv").write_text("id,label\n" + "".join(f"{name},x\n" for name in NAMES))  # by somebody else
    assert arrange(Table(NAMES), sorted(NAMES), tmp_path / "order.csv")[1] == NAMES
    (tmp_path / "order.csv").write_text("'=gone\n")
    with pytest.raises(UserError, match="1 of its 1 pictures are missing"):
        arrange(Table(NAMES), NAMES, tmp_path / "order.csv")


def test_what_cannot_be_read_has_no_label_and_costs_the_exit_code(predict, home, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(home / "val", folder)
    (folder / "0, broken.jpg").write_bytes(next((home / "val").rglob("*.jpg")).read_bytes()[:200])
    (folder / "sub").mkdir()
    (folder / "sub" / "empty.png").touch()
    whole = predict(home / "val")[1].replace(str(home / "val"), str(folder)).splitlines()
    code, out, err = predict(folder, "-o", tmp_path / "p.csv")
    assert (code, out) == (2, "")
    assert error_of(err).startswith("error: 2 of 14 pictures cannot be read")
    assert {line.partition(": ")[0] for line in err.splitlines()[:-1]} == {
        str(folder / "0, broken.jpg"),
        str(folder / "sub" / "empty.png"),
    }
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines == [whole[0], f'"{folder}/0, broken.jpg",,', *whole[1:], f"{folder}/sub/empty.png,,"]
    code, out, err = predict(folder, "--skip-unreadable")
    assert (code, out.splitlines()) == (0, whole)
    assert len(err.splitlines()) == 2


def test_batches_do_not_count_what_cannot_be_read():
    picture = np.zeros((1, 1, 3), np.uint8)
    stream = ["a", picture, picture, "b", picture, "c"]
    groups = [[isinstance(item, str) for item in group] for group in in_batches(stream, 2)]
    assert groups == [[True, False, False], [True, False, True]]
    assert list(in_batches([], 2)) == []


def test_a_list_on_standard_input_with_blank_lines(predict, home, monkeypatch):
    files = sorted(str(path) for path in (home / "val").rglob("*.jpg"))
    listed = "\r\n\n".join([files[3], str(home / "val" / "red apple"), " ", files[3], files[0]]).encode() + b"\n\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listed)))
    code, out, _ = predict("-")
    assert code == 0
    inside = [file for file in files if "red apple" in file]
    assert [row["path"] for row in rows(out)] == sorted({files[0], files[3], *inside})
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n \n")))
    code, out, err = predict("-")
    assert (code, out) == (2, "")
    assert "standard input names no pictures" in error_of(err)


@pytest.mark.parametrize(
    ("text", "leaves"),
    [
        ("id,label\n{1},x\n{0},y\n", [1, 0]),
        ("\ufeffid,label\r\n{2},x\r\n", [2]),
        ("{1}\n\n{0}\n", [1, 0]),
        ("name\n{1}\n", [1]),
        ('"{1}"\n', [1]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_rows_as_a_list_or_a_sample_submission_has_them(predict, tmp_path, home, text, leaves, encoding):
    folder = tmp_path / "test"
    folder.mkdir()
    names = ["b, 1", "a", "c"]
    for name, file in zip(names, (home / "val").rglob("*.jpg"), strict=False):
        shutil.copy(file, folder / f"{name}.jpg")
    quoted = [f'"{name}"' if "," in name and "," in text else name for name in names]
    (tmp_path / "order.csv").write_text(text.format(*quoted), encoding)
    code, _, err = predict(
        folder, "--id", "stem", "--columns", "name,label", "--order", tmp_path / "order.csv", "-o", tmp_path / "s.csv"
    )
    assert code == 0, err
    assert [row["name"] for row in rows((tmp_path / "s.csv").read_text())] == [names[row] for row in leaves]
    assert f"leaves out {3 - len(leaves)} pictures" in err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id,label\n0,x\nnone,y\ngone,y\n", "2 of its 3 pictures are missing"),
        ("first\n0\n", "1 of its 2 pictures are missing"),  # which may be no header
        ("id,label\n", "names no pictures"),
        ("\n", "names no pictures"),
        ("0\n0\n", "'0' twice"),
    ],
)
def test_an_order_that_does_not_fit(predict, home, tmp_path, text, says):
    (tmp_path / "order.csv").write_text(text)
    shutil.copy(next((home / "val").rglob("*.jpg")), tmp_path / "0.jpg")
    code, out, err = predict(tmp_path / "0.jpg", "--id", "stem", "--order", tmp_path / "order.csv")
    assert (code, out) == (2, "")
    assert says in error_of(err)


FRUIT = ["apple", "berry", "cherry"]


@pytest.mark.parametrize(
    ("header", "options", "written"),
    [
        ("id,label", {}, "id,label"),
        ("id,label,sure", {}, "id,label,sure"),
        ("path", {}, "path,label,probability"),
        ("id,cherry,apple,berry", {"probabilities": True}, "id,cherry,apple,berry"),
        ("id,berry,apple", {"probabilities": True}, "id,berry,apple"),
        ("id,label,cherry,apple,berry", {"probabilities": True}, "id,label,cherry,apple,berry"),
        ("id,label", {"probabilities": True}, "id,label,apple,berry,cherry"),
        ("a,b,c,b_2,c_2", {"top_k": 2}, "a,b,c,b_2,c_2"),
        ('"id","label"', {"form": "jsonl"}, "id,label"),
    ],
)
def test_a_sample_submission_gives_the_columns(tmp_path, header, options, written):
    (tmp_path / "sample.csv").write_text(f"{header}\n2\n1\n")
    table, paths = arrange(Table(FRUIT, **options), ["1", "2", "3"], tmp_path / "sample.csv")
    assert paths == ["2", "1"]
    out = io.StringIO()
    table.writer(out)("2", np.array([0.5, 0.3, 0.2]))
    if table.form == "jsonl":
        assert json.loads(out.getvalue()) == {"id": "2", "label": "apple"}
        return
    (row,) = rows(out.getvalue())
    assert ",".join(row) == written
    assert {name: row[name] for name in FRUIT if name in row}.items() <= {
        "apple": "0.5",
        "berry": "0.3",
        "cherry": "0.2",
    }.items()
    kept, _ = arrange(Table(FRUIT, **options), ["1", "2"], tmp_path / "sample.csv", takes_header=False)
    assert kept.columns == ("path", "label", "probability")


@pytest.mark.parametrize(
    ("header", "options", "says"),
    [
        ("id,cherry,apple,berry", {}, "--probabilities"),
        ("id,apple,label", {"probabilities": True}, "id,label,apple"),
        ("id,width,height,site", {}, "--columns"),
        ("id,a,b,c,apple", {"probabilities": True}, "--columns"),
        ("id,apple,apple", {"probabilities": True}, "twice"),
    ],
)
def test_columns_that_no_prediction_fills(tmp_path, header, options, says):
    (tmp_path / "sample.csv").write_text(f"{header}\n1\n")
    with pytest.raises(UserError, match=says):
        arrange(Table(FRUIT, **options), ["1"], tmp_path / "sample.csv")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_from_powershell(predict, home, monkeypatch, encoding):
    files = sorted(str(path) for path in (home / "val").rglob("*.jpg"))[:2]
    listed = "".join(f"{file}\r\n" for file in files).encode(encoding)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listed)))
    code, out, err = predict("-")
    assert code == 0, err
    assert [row["path"] for row in rows(out)] == files
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\0")))
    code, out, err = predict("-")
    assert (code, out) == (2, "")
    assert "standard input is no text" in error_of(err)


def test_a_run_that_tells_left_from_right_has_no_mirror_images(predict, home, run, tmp_path):
    other = tmp_path / "no flip"
    shutil.copytree(run, other)
    recipe = json.loads((other / "recipe.json").read_text())
    (other / "recipe.json").write_text(json.dumps({**recipe, "flip": False}))
    code, out, err = predict(home / "val", "--run", other, "--tta")
    assert (code, out) == (2, "")
    assert "--no-flip" in error_of(err)
    with pytest.raises(ValueError, match="--no-flip"):
        load(other, tta=True)


def test_two_pictures_of_one_name(predict, home):
    code, out, err = predict(home / "photos", "--id", "name")
    assert (code, out) == (2, "")
    assert "0.jpg" in error_of(err)
    assert "--id path" in err


def test_columns_that_say_nothing():
    with pytest.raises(UserError, match="--columns id: names no label"):
        Table(["a", "b"], columns=("id",))


def test_bad_input_is_one_line(predict, cli, home, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden.jpg").touch()
    (tmp_path / "exists.csv").write_text("mine")
    picture, empty = next((home / "val").rglob("*.jpg")), tmp_path / "empty"
    for arguments, says in (
        ([tmp_path / "a.jpg", picture, tmp_path / "b.jpg"], "a.jpg"),
        ([empty], "holds no pictures"),
        ([picture, "-o", tmp_path / "exists.csv"], "--force"),
        ([picture, "-o", tmp_path / "none" / "p.csv"], "none"),
        ([picture, "-o", "/dev/null", "--force"], "no regular file"),
        ([picture, "--checkpoint", tmp_path / "none.pt"], "none.pt"),
        ([picture, "--columns", "a,b,c,d"], "--columns"),
        ([], "INPUT"),
    ):
        code, out, err = predict(*arguments)
        assert (code, out) == (2, ""), arguments
        assert says in error_of(err), arguments
    assert (tmp_path / "exists.csv").read_text() == "mine"
    assert predict(picture, "-o", tmp_path / "exists.csv", "--force")[0] == 0
    assert (tmp_path / "exists.csv").read_text().startswith("path,label,probability\n")
    assert not list(tmp_path.glob("*.tmp"))


def test_a_checkpoint_of_other_classes(predict, run, home, tmp_path):
    saved = torch.load(run / "checkpoints" / "best.pt")
    torch.save({**saved, "classes": ["a", "b", "c"]}, tmp_path / "c.pt")
    code, out, err = predict(home / "val", "--checkpoint", tmp_path / "c.pt")
    assert (code, out) == (2, "")
    assert "other classes" in error_of(err)


def test_a_stopped_prediction_leaves_no_half_file(predict, home, tmp_path, monkeypatch):
    def stop(*_):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("plumage.inference.predict.Predictor.probabilities", stop)
    code, _, _ = predict(home / "val", "-o", tmp_path / "p.csv")
    assert code == 143
    assert not list(tmp_path.glob("p.csv*"))


def test_a_closed_pipe_is_silent(run, home):
    """More rows than a pipe holds, of a reader that takes one line."""
    command = [sys.executable, ROOT / "main.py", "predict", "--run", run, "-"]
    pipe = subprocess.PIPE
    with subprocess.Popen(list(map(str, command)), stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        file = next((home / "val").rglob("*.jpg"))
        process.stdout.close()
        _, err = process.communicate(f"{file}\n")
    assert (process.returncode, err) == (141, "")


def test_paths_that_are_no_text(predict, home, tmp_path):
    name = b"na\xffme.jpg".decode("utf-8", "surrogateescape")
    shutil.copy(next((home / "val").rglob("*.jpg")), tmp_path / name)
    assert predict(tmp_path / name, "-o", tmp_path / "p.csv")[0] == 0
    assert b"na\xffme.jpg," in (tmp_path / "p.csv").read_bytes()
    assert predict(tmp_path / name)[0] == 0


def test_memory_does_not_grow_with_the_number_of_pictures(run, home):
    """At most as many are decoded ahead as are named, whatever the stream holds."""
    predictor = load(run)
    file, taken = next((home / "val").rglob("*.jpg")), 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield file

    stream = predictor.stream(endless())
    for _ in range(41):
        next(stream)
    ahead = predictor.batch_size + 2 * predictor.workers
    assert taken <= 40 + 2 * predictor.batch_size + ahead
    stream.close()


def test_help_explains_label_smoothing(cli):
    code, out, _ = cli("eval", "--help")
    assert code == 0
    assert "Label smoothing never asks for more than 1 - smoothing" in " ".join(out.split())


@pytest.mark.skipif(not CLIPART.is_dir(), reason="the clip art is not there")
def test_a_submission_for_unlabelled_clip_art(cli, tmp_path):
    options = ["--weights", "none", "--model", "resnet18", "--resize", "32", "--crop", "32", "--epochs", "1"]
    data = ["--data", CLIPART / "labelled", *options, "--no-report", "--run", tmp_path / "r"]
    assert cli("train", *data)[0] == 0
    files = sorted((CLIPART / "unlabelled").iterdir(), reverse=True)
    sample = tmp_path / "sample_submission.csv"
    sample.write_text("id,label\n" + "".join(f"{file.stem},\n" for file in files))
    options = ["--columns", "id,label", "--id", "stem", "--order", sample, "-o", tmp_path / "submission.csv"]
    code, _, err = cli("predict", CLIPART / "unlabelled", "--run", tmp_path / "r", *options)
    assert code == 0, err
    found = rows((tmp_path / "submission.csv").read_text())
    assert [row["id"] for row in found] == [file.stem for file in files]
    assert {row["label"] for row in found} <= {folder.name for folder in (CLIPART / "labelled").iterdir()}
    assert list(found[0]) == ["id", "label"]


@pytest.mark.parametrize(("exact", "row"), [(False, "'-x,'=a,0.9"), (True, "-x,=a,0.9")])
def test_with_an_order_names_are_written_exactly(exact, row):
    out = io.StringIO()
    Table(["=a", "b"], exact=exact).writer(out)("-x", np.array([0.9, 0.1]))
    assert out.getvalue() == f"path,label,probability\n{row}\n"


def test_names_of_any_kind_are_read_from_a_folder_and_from_a_list(predict, home, tmp_path, monkeypatch):
    """What comes from a listing means no home folder; what leads nowhere is a row without a label."""
    monkeypatch.chdir(tmp_path)
    picture = next((home / "val").rglob("*.jpg")).read_bytes()
    sound = ["~", "~root", "~nosuchuser", "-", "--help", "two\nlines", "n\udcff", " ", "x" * 251]
    Path("folder").mkdir()
    for name in sound:
        Path("folder", f"{name}.jpg").write_bytes(picture)
    Path("folder", "itself.jpg").symlink_to("itself.jpg")
    Path("folder", "nowhere.jpg").symlink_to("gone.jpg")
    os.mkfifo("folder/pipe.jpg")

    def labels_of(named):
        code, _, err = predict(named, "-o", tmp_path / "rows.csv", "--force")
        with (tmp_path / "rows.csv").open(newline="", errors="surrogateescape") as file:
            return code, err, {plain(row["path"]): row["label"] for row in csv.DictReader(file)}

    code, err, labels = labels_of("folder")
    assert code == 2
    assert "3 of 12 pictures cannot be read" in err
    assert {path for path, label in labels.items() if label} == {f"folder/{name}.jpg" for name in sound}
    monkeypatch.chdir("folder")
    for names in (sound[:3], [*sound[3:5], *sound[6:]]):
        listed = b"".join(os.fsencode(name) + b".jpg\n" for name in names)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listed)))
        code, _, labels = labels_of("-")
        assert code == 0
        assert labels.keys() == {f"{name}.jpg" for name in names}
