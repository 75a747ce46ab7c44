"""Suspects: what is listed, in which order, and what becomes of it when a person has mended it."""

import csv
import os
import shutil
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY
from hostile import damaged, fuzzed, read_or_refused
from hypothesis import given
from PIL import Image
from scipy.special import softmax

import plumage.inference.suspects
import plumage.review
from plumage.birds.portrait import draw_picture
from plumage.birds.species import species_list
from plumage.data.labels import read_labels
from plumage.data.sources import list_samples
from plumage.data.store import Cache
from plumage.engine.prepare import begin, prepare_dataset, recall_dataset
from plumage.errors import UserError
from plumage.hardware.device import Machine
from plumage.inference.suspects import FINE, Findings, ask, compute_logits, keep_suspects, ranked
from plumage.recipe import Recipe
from plumage.report.reading import read_run
from plumage.rundir.folder import RunDir
from plumage.rundir.scores import class_scores
from plumage.rundir.suspects import (
    Suspect,
    is_mended,
    read_pictures,
    read_suspects,
    readable_suspects,
    trained_are_searched,
    write_suspects,
)

A, B = "=1+1", "b, c\nd"  # the classes
ODD = os.fsdecode(b"4,\xff\n.jpg")


def test_a_doubt_by_hand():
    """Labels 0, 0, 2 and, not asked, 1: of the first the class is asked for, of the others the most probable one."""
    logits = np.array([[1, 3, 2], [5, 1, 0], [2, 2.5, 0]], np.float32)
    labels, asked = np.array([0, 0, 1, 2]), np.array([2, -1, 1, -1])
    said = ask([(np.array([0, 1]), logits[:2]), (np.array([3]), logits[2:])], labels, asked, temperature=2)
    assert said.likely.tolist() == [2, 0, 1, 1]
    p = softmax(logits / 2, axis=1)
    np.testing.assert_allclose(said.probability, [p[0, 2], p[1, 0], np.nan, p[2, 1]], rtol=1e-6)
    # log p of the likeliest other class, less that of the label: differences of logits, by the temperature
    np.testing.assert_allclose(said.margin, [1, -2, -np.inf, 1.25])


def test_in_parts_it_is_the_same_as_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 7)).astype(np.float32), rng.integers(0, 7, 50)
    seen, asked = [(rng.permutation(50), logits)], np.full(50, -1)
    whole = ask(seen, labels, asked, 0.7)
    monkeypatch.setattr("plumage.inference.calibration.PART", 15)
    for one, other in zip(ask(seen, labels, asked, 0.7), whole, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (np.isfinite(whole.margin) & (whole.likely >= 0)).all()


def test_the_order_by_hand():
    """The worst kind first, of it the largest margin; contradictory ones by group; of equal ones, those not learnt."""
    kind = np.array([4, 4, 2, 0, FINE, 0, 0, 0, 4, 4, 3])
    group = np.array([0, 1, 2, 3, 4, 5, 3, 5, 8, 9, 10])
    margin = np.array([1.0, 3.0, -np.inf, -2.0, 9.0, -1.0, 2.0, 1.0, 1.0, 2.0, 5.0])
    trained = np.array([True, False, False, True, False, True, False, False, False, True, False])
    found = Findings(kind, np.full(11, -1), group)
    assert ranked(found, margin, trained).tolist() == [6, 3, 7, 5, 2, 10, 1, 9, 8, 0]


@pytest.mark.parametrize(("pictures", "classes", "searched"), [(10**6, 250, True), (10**6, 251, False), (0, 9, True)])
def test_training_pictures_are_searched_where_memory_allows(pictures, classes, searched):
    assert trained_are_searched(pictures, classes) == searched


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Birds of two species in train/, val/ and test/, some of them twice; a run that has begun with them."""
    home = tmp_path_factory.mktemp("suspects")
    for name, bird in zip((A, B), species_list(2, 0), strict=True):
        for number, side in enumerate(["train"] * 4 + ["val"] * 2 + ["test"]):
            (folder := home / "data" / side / name).mkdir(parents=True, exist_ok=True)
            draw_picture(bird, number, 0).save(folder / (ODD if number == 4 else f"{number}.jpg"), "JPEG")
    data = home / "data"
    shutil.copy(data / "train" / A / "0.jpg", data / "val" / A / "copy.jpg")
    shutil.copy(data / "train" / B / "1.jpg", data / "train" / A / "contradiction.jpg")
    shutil.copy(data / "val" / A / ODD, data / "test" / A / "tested.jpg")
    for source, target in ((f"{B}/2.jpg", f"val/{B}/near.jpg"), (f"{A}/3.jpg", f"train/{B}/odd.jpg")):
        with Image.open(data / "train" / source) as image:
            image.resize((400, 300)).save(data / target)
    recipe = Recipe.create({"data": str(data), "resize": 64, "crop": 56, "model": "resnet18", "weights": "none"})
    machine, cache = Machine(torch.device("cpu"), "fp32", compile=False), Cache(home / "cache")
    run = RunDir(home / "run")
    begin(run, recipe, prepare_dataset(recipe, list_samples(data), cache), machine)
    return run, machine, cache


VAL = [f"val/{A}/{ODD}", f"val/{A}/5.jpg", f"val/{A}/copy.jpg", f"val/{B}/{ODD}", f"val/{B}/5.jpg", f"val/{B}/near.jpg"]
TRAIN = [f"train/{A}/{n}.jpg" for n in [*range(4), "contradiction"]] + [
    f"train/{B}/{n}.jpg" for n in [*range(4), "odd"]
]
# By the logit of class A: right but for one, which the network knows well enough.
SAID = dict(zip(VAL, [2.0, -3.0, 2.0, -2.0, -1.0, -2.0], strict=True))
LEARNT = dict(zip(TRAIN, [2.0, -3.0, -4.0, 2.0, -2.0, -2.0, -2.0, -2.0, 1.0, 1.0], strict=True))


def evaluation_of(run, said):
    """What `eval` would give of these pictures, path → the logit of the first class."""
    with run.split.open(newline="", encoding="utf-8", errors="surrogateescape") as handle:
        rows = [row["path"] for row in csv.DictReader(handle)]
    logits = np.array([[logit, 0] for logit in said.values()], np.float32)
    indices = np.array([rows.index(path) for path in said])
    labels = np.array([int(f"/{B}/" in path) for path in said])
    order = np.argsort(indices)
    logits, labels = logits[order], labels[order]
    return SimpleNamespace(
        indices=indices[order],
        logits=logits,
        labels=labels,
        predictions=logits.argmax(1),
        weights="",
        checkpoint="best",
        class_scores=class_scores(labels, logits.argmax(1), 2),
    )


@pytest.fixture
def learnt(home, monkeypatch):
    """What the network would say of its training pictures."""
    run, *_ = home

    def logits_of(run, checkpoint, dataset, samples, machine):
        return np.array([[LEARNT[dataset.samples.paths[row]], 0] for row in samples], np.float32)

    monkeypatch.setattr(plumage.inference.suspects, "compute_logits", logits_of)
    yield run
    for name in ("suspects.csv", "suspects.npz"):
        (run.path / name).unlink(missing_ok=True)


def told(run):
    return [(each.path, each.why) for each in read_suspects(run)]


COPIES = [
    (f"train/{A}/contradiction.jpg", f"copy of train/{B}/1.jpg under another label"),
    (f"train/{B}/1.jpg", f"copy of train/{A}/contradiction.jpg under another label"),
    (f"train/{B}/odd.jpg", f"nearly train/{A}/3.jpg under another label"),
    (f"train/{A}/3.jpg", f"nearly train/{B}/odd.jpg under another label"),
    (f"val/{A}/copy.jpg", f"copy of train/{A}/0.jpg in train"),
    (f"test/{A}/tested.jpg", f"copy of val/{A}/{ODD} in val"),
    (f"val/{B}/near.jpg", f"nearly train/{B}/2.jpg in train"),
]


def test_every_kind_in_its_order(home, learnt):
    """Names with commas, line ends, formulas and bytes that are no text among them."""
    run, machine, cache = home
    count = keep_suspects(run, evaluation_of(run, SAID), machine, cache)
    learnt_rows = [(f"train/{A}/2.jpg", 4), (f"train/{A}/1.jpg", 3), (f"train/{B}/3.jpg", 1)]
    doubted = [(learnt_rows[0][0], "doubted, trained on"), (VAL[1], "doubted")]  # of equal doubts the one not learnt
    doubted += [(path, "doubted, trained on") for path, _ in learnt_rows[1:]]
    assert told(run) == COPIES + doubted
    assert count == len(COPIES) + 4
    suspects = {each.path: each for each in read_suspects(run)}
    assert suspects[f"train/{A}/contradiction.jpg"][1:4] == (A, B, round(1 / (1 + np.exp(-2)), 4))
    assert suspects[f"train/{B}/1.jpg"][1:4] == (B, A, round(1 / (1 + np.exp(2)), 4))
    assert suspects[f"val/{A}/copy.jpg"][1:4] == (A, A, round(1 / (1 + np.exp(-2)), 4))
    assert suspects[f"test/{A}/tested.jpg"][1:4] == (A, "", None)
    assert suspects[VAL[1]][1:4] == (A, B, round(1 / (1 + np.exp(-3)), 4))
    pictures = read_pictures(run, read_suspects(run))
    assert list(pictures) == list(range(count))
    with Image.open(run.path.parent / "data" / COPIES[0][0]) as image:
        expected = np.asarray(image.resize((256, 256)), float)[16:240, 16:240]
    assert np.abs(pictures[0] - expected).mean() < 20 < np.abs(pictures[2] - expected).mean()


def test_of_a_guess_copies_alone_are_listed(home, learnt, caplog):
    run, machine, cache = home
    said = dict.fromkeys(VAL, 1.0)
    assert keep_suspects(run, evaluation_of(run, said), machine, cache) == len(COPIES)
    assert sorted(told(run)) == sorted(COPIES)
    assert "over classes, no better than a guess" in caplog.text


def test_too_many_training_pictures_are_left_out(home, learnt, caplog, monkeypatch):
    run, machine, cache = home
    monkeypatch.setattr("plumage.rundir.suspects.MOST_LOGITS", 79)  # ten of two classes take 80
    keep_suspects(run, evaluation_of(run, SAID), machine, cache)
    assert (VAL[1], "doubted") in told(run)
    assert not any("trained on" in why for _, why in told(run))
    assert read_suspects(run)[0].probability is None
    assert caplog.text.count("too many training pictures") == 1


def test_out_of_fold_no_network_is_asked(home, learnt, monkeypatch):
    run, machine, cache = home
    split = run.split.read_bytes()
    run.split.write_bytes(split.replace(b",train\r\n", b",val\r\n"))
    monkeypatch.setattr(plumage.inference.suspects, "compute_logits", None)
    try:
        keep_suspects(run, evaluation_of(run, SAID | LEARNT), machine, cache)
        doubted = [path for path, why in told(run) if why == "doubted"]
        assert doubted == [f"train/{A}/2.jpg", f"train/{A}/1.jpg", VAL[1], f"train/{B}/3.jpg"]
    finally:
        run.split.write_bytes(split)


def test_no_near_duplicates_where_they_may_part(home, learnt):
    run, machine, cache = home
    recipe = run.recipe
    run.remember(Recipe.create({**recipe.__dict__, "group_duplicates": False}))
    keep_suspects(run, evaluation_of(run, SAID), machine, cache)
    run.remember(recipe)
    assert not any("nearly" in why for _, why in told(run))
    assert COPIES[4] in told(run)


def mend(file, change, delimiter=",", encoding="utf-8"):
    """Save the table as a spreadsheet does, with ``change`` made to its rows of cells."""
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as handle:
        rows = list(csv.reader(handle))
    change(rows)
    with file.open("w", newline="", encoding=encoding, errors="surrogateescape") as handle:
        csv.writer(handle, delimiter=delimiter).writerows(rows)


@pytest.mark.parametrize(("delimiter", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")])
def test_what_a_person_has_mended_is_kept_and_learnt_from(home, learnt, caplog, delimiter, encoding):
    run, machine, cache = home
    evaluation = evaluation_of(run, SAID)
    keep_suspects(run, evaluation, machine, cache)
    was, data = read_suspects(run), run.path.parent / "data"

    def change(rows):
        by_path = {row[0]: row for row in rows}
        by_path[VAL[1]][1] = B
        by_path[f"train/{A}/contradiction.jpg"][1] = ""
        rows[1:] = rows[:0:-1]

    mend(run.suspects, change, delimiter, encoding)
    content = run.suspects.read_bytes()
    assert keep_suspects(run, evaluation, machine, cache) is None
    assert run.suspects.read_bytes() == content
    assert len(caplog.records) == 1
    assert "2 of its labels are mended" in caplog.text

    now = read_suspects(run)
    assert {each.path for each in now} == {each.path for each in was}
    assert now[-1] == was[0]._replace(label="")
    assert np.array_equal(read_pictures(run, now)[len(now) - 1], read_pictures(run, was)[0])

    before, after = (
        {path: (of.classes[label], side) for path, label, side in zip(of.paths, of.labels, of.split, strict=True)}
        for of in (read_labels(run.split, data), read_labels(run.suspects, data))
    )
    assert before.pop(f"train/{A}/contradiction.jpg") == (A, "train")
    assert after == before | {VAL[1]: (B, "val")}


def test_a_mended_table_that_cannot_be_read_is_kept(home, learnt, caplog):
    run, machine, cache = home
    run.suspects.write_bytes(b"PK\3\4 saved as a workbook")
    assert keep_suspects(run, evaluation_of(run, SAID), machine, cache) is None
    assert run.suspects.read_bytes() == b"PK\3\4 saved as a workbook"
    assert len(caplog.records) == 1
    assert str(run.suspects) in caplog.text


SPLIT = "path,label,split\n1.jpg,cat,train\n2.jpg,dog,train\n3.jpg,cat,val\n4.jpg,dog,val\n5.jpg,,train\n"


def labels_of(tmp_path, rows, split=SPLIT, **more):
    """What `--labels suspects.csv` says with these rows of path,label, beside a split.csv."""
    (data := tmp_path / "data").mkdir(exist_ok=True)
    (run := tmp_path / "run").mkdir(exist_ok=True)
    for number in range(1, 6):
        (data / f"{number}.jpg").touch()
    for name, content in {"split.csv": split, **more}.items():
        (run / name).write_text(content)
    lines = ["path,label,likely,probability,why", *(f"{row},dog,0.9,doubted" for row in rows)]
    (run / "suspects.csv").write_text("\n".join(lines))
    samples = read_labels(run / "suspects.csv", data)
    said = {path: samples.classes[label] for path, label in zip(samples.paths, samples.labels, strict=True)}
    return said, samples.split


SAME = {"1.jpg": "cat", "2.jpg": "dog", "3.jpg": "cat", "4.jpg": "dog"}


@pytest.mark.parametrize(
    ("rows", "mended"),
    [
        ([], {}),
        (["1.jpg,cat"], {}),
        (["1.jpg,dog "], {"1.jpg": "dog"}),
        (["1.jpg,dog", "1.jpg,cat"], {"1.jpg": "dog"}),
        (["1.jpg,cat", "1.jpg,dog", "1.jpg,dog"], {"1.jpg": "dog"}),
        (["1.jpg, ", "1.jpg,cat"], {"1.jpg": None}),
        (["5.jpg,cat"], {}),  # left out in split.csv itself
    ],
)
def test_labels_laid_over_those_of_the_split(tmp_path, rows, mended):
    said, split = labels_of(tmp_path, rows)
    assert said == {path: label for path, label in (SAME | mended).items() if label}
    assert split.tolist() == ["train", "train", "val", "val"][-len(said) :]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (["1.jpg,dog", "1.jpg,bird"], "1 pictures are mended in two ways: 1.jpg"),
        (["1.jpg,dog", "1.jpg,"], "1 pictures are mended in two ways: 1.jpg"),
        (["9.jpg,dog"], "1 pictures are not in"),
    ],
)
def test_what_cannot_be_laid_over_is_refused(tmp_path, rows, problem):
    with pytest.raises(UserError, match=problem) as error:
        labels_of(tmp_path, rows)
    assert "suspects.csv" in str(error.value)


@pytest.mark.parametrize(
    "table",
    [
        ("suspects.csv", "path,label\n1.jpg,dog"),  # columns cut away
        ("Suspects.csv", "Label,note,Path\ndog,mine,1.jpg"),
        ("mine.csv", "PROBABILITY;Likely;Label;Path;\n0,5;cat;dog;1.jpg;"),
    ],
)
def test_suspects_are_known_whatever_became_of_their_columns(tmp_path, table):
    labels_of(tmp_path, [])
    file = tmp_path / "run" / table[0]
    file.write_text(table[1])
    samples = read_labels(file, tmp_path / "data")
    said = {path: samples.classes[label] for path, label in zip(samples.paths, samples.labels, strict=True)}
    assert said == SAME | {"1.jpg": "dog"}
    assert samples.split.tolist() == ["train", "train", "val", "val"]
    file.write_text(table[1].replace("1.jpg", "9.jpg"))
    with pytest.raises(UserError, match=r"1 pictures are not in .*split.csv: 9.jpg"):
        read_labels(file, tmp_path / "data")
    assert [each[:2] for each in read_suspects(RunDir(tmp_path / "run"))] == [("9.jpg", "dog")] * (
        table[0] == "suspects.csv"
    )


def test_what_was_mended_in_the_split_stays_so(tmp_path, caplog):
    """The list as it was written tells what was mended in it; without it, the split's labels do."""
    labels_of(tmp_path, [])
    run = RunDir(tmp_path / "run")
    written = [Suspect(f"{number}.jpg", label, "", None, "doubted") for number, label in ((1, "cat"), (2, "dog"))]

    def mended(split, change, written=written):
        write_suspects(run, written, np.zeros((0, 4, 4, 3), np.uint8))
        run.split.write_text(split)
        mend(run.suspects, change)
        samples = read_labels(run.suspects, tmp_path / "data")
        return {path: samples.classes[label] for path, label in zip(samples.paths, samples.labels, strict=True)}

    now = SPLIT.replace("1.jpg,cat", "1.jpg,dog")
    assert mended(now, lambda rows: None) == SAME | {"1.jpg": "dog"}
    assert not is_mended(run)
    assert mended(now, lambda rows: rows[2].__setitem__(1, "cat")) == SAME | {"1.jpg": "dog", "2.jpg": "cat"}
    assert is_mended(run)
    assert mended(now, lambda rows: rows[1].__setitem__(1, "dog")) == SAME | {"1.jpg": "dog"}
    with pytest.raises(
        UserError, match=r"suspects.csv: 1 pictures have other labels in .*split.csv, .*: 1.jpg; decide"
    ):
        mended(now, lambda rows: rows[1].__setitem__(1, "bird"))
    with pytest.raises(UserError, match="have other labels in"):
        mended(SPLIT.replace("1.jpg,cat", "1.jpg,"), lambda rows: rows[1].__setitem__(1, "dog"))
    run.split.write_text(now)
    mend(run.suspects, lambda rows: rows[1].__setitem__(1, "cat"))
    (archive := tmp_path / "run" / "suspects.npz").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"suspects.npz is damaged .*move it away"):
        read_labels(run.suspects, tmp_path / "data")
    kept = run.suspects.read_bytes()
    run.suspects.unlink()
    assert not is_mended(run)  # so that both are written anew
    run.suspects.write_bytes(kept)
    archive.unlink()
    samples = read_labels(run.suspects, tmp_path / "data")
    assert samples.classes[samples.labels[0]] == "cat"


def test_a_wrong_line_costs_the_section_alone(tmp_path, caplog):
    run = RunDir(tmp_path)
    write_suspects(run, [Suspect("a", "cat", "dog", 0.5, "doubted")], np.zeros((1, 4, 4, 3), np.uint8))
    assert [*map(len, readable_suspects(run))] == [1, 1]
    run.suspects.write_text("label,path\ncat,a\n")
    assert read_suspects(run) == [Suspect("a", "cat", "", None, "")]
    assert not caplog.records
    run.suspects.write_text("path,label,likely,probability,why\na,cat,dog,likely,doubted\n")
    assert readable_suspects(run) == ([], {})
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{run.suspects}, line 2: the probability is no number")


def test_suspects_without_their_split_are_refused(tmp_path):
    labels_of(tmp_path, [])
    (tmp_path / "run" / "split.csv").unlink()
    with pytest.raises(UserError, match=r"suspects.csv: .*not beside it"):
        read_labels(tmp_path / "run" / "suspects.csv", tmp_path / "data")


def test_the_split_of_all_folds_together_is_drawn_anew(tmp_path):
    every = SPLIT.replace("train", "val")
    with pytest.raises(UserError, match="no train"):
        labels_of(tmp_path, ["1.jpg,dog"], every)
    assert labels_of(tmp_path, ["1.jpg,dog"], every, **{"folds.json": "{}"}) == (SAME | {"1.jpg": "dog"}, None)


def test_what_was_written_is_read_back_whatever_the_names_hold(tmp_path):
    run = RunDir(tmp_path)
    suspects = [
        Suspect(f"a/{name}", name, "", None if number % 2 else 0.5, f"copy of {name} in train")
        for number, name in enumerate(["=1+1", "'-a", 'a,"b"', "line\nend", ODD, "  ", "é"])
    ]
    pixels = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
    write_suspects(run, suspects, pixels)
    assert read_suspects(run) == suspects
    for rows in (suspects, suspects[::-1]):
        pictures = read_pictures(run, rows)
        assert {rows[row].path: picture.tolist() for row, picture in pictures.items()} == {
            suspects[row].path: pixels[row].tolist() for row in range(3)
        }
    write_suspects(run, [], pixels[:0])
    assert (read_suspects(run), read_pictures(run, []), read_pictures(run, suspects)) == ([], {}, {})


def test_a_run_from_before_there_were_suspects(tmp_path):
    assert (read_suspects(RunDir(tmp_path)), read_pictures(RunDir(tmp_path), [])) == ([], {})


WHOLE = b'path,label,likely,probability,why\r\na,cat,dog,0.5,doubted\r\n"b,\nc",dog,,,copy of a in train\r\n'


@fuzzed
@given(content=damaged(WHOLE))
def test_damaged_suspects_are_read_or_refused(tmp_path, content):
    run = RunDir(tmp_path)
    run.suspects.write_bytes(content)
    for suspect in read_or_refused(lambda: read_suspects(run), run.suspects) or []:
        assert suspect.probability is None or 0 <= suspect.probability <= 1


@pytest.mark.parametrize("start", ["", "path,label,likely,probability,why\n"], ids=["first", "second"])
def test_a_line_without_an_end_is_not_read_whole(tmp_path, start):
    run = RunDir(tmp_path)
    run.suspects.write_text(start + "x" * 2**25)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"suspects\.csv"):
            read_suspects(run)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("pixels", [np.zeros((1, 4, 5, 3), np.uint8), np.zeros((1, 4, 4, 3)), np.zeros(0, np.uint8)])
def test_pictures_that_are_none_are_refused(tmp_path, pixels):
    run, suspects = RunDir(tmp_path), [Suspect("a", "cat", "dog", 0.5, "doubted")]
    write_suspects(run, suspects, np.zeros((1, 4, 4, 3), np.uint8))
    names = np.frombuffer(b"a", np.uint8)
    np.savez(tmp_path / "suspects.npz", pixels=pixels, names=names)
    with pytest.raises(UserError, match=r"suspects.npz is damaged .* --suspects writes it anew"):
        read_pictures(run, suspects)


def test_damaged_pictures_of_folds_put_together_are_written_anew_by_ablate(tmp_path):
    run, suspects = RunDir(tmp_path), [Suspect("a", "cat", "dog", 0.5, "doubted")]
    (tmp_path / "folds.json").write_text('{"runs": ["../1"]}')
    (tmp_path / "suspects.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"suspects.npz is damaged .*: the same ablate command writes it anew$"):
        read_pictures(run, suspects)


def test_the_commands(cli, photos, tmp_path, monkeypatch):
    """train ends with suspects, eval writes them anew, and train learns from what was mended."""
    wrong = photos / "red apple" / "wrong.jpg"
    shutil.copy(photos / "green, sour" / "0.jpg", wrong)
    how = [*TINY[:-1], "--data", photos, "--epochs", "1"]
    code, _, err = cli("train", *how, "--run", "one")
    assert (code, (tmp_path / "one" / "report.html").exists()) == (0, True), err
    run = RunDir(tmp_path / "one")
    at_odds = ["green, sour/0.jpg", "red apple/wrong.jpg"]
    assert sorted(path for path, why in told(run) if "another label" in why) == at_odds
    read = read_run(run.path)
    assert (read.suspects, len(read.suspect_pictures)) == (read_suspects(run), min(24, len(read.suspects)))
    assert all(pixels.shape == (len(pixels), len(pixels), 3) for pixels in read.suspect_pictures.values())
    run.suspects.unlink()
    code, out, err = cli("eval", "--run", "one", "--suspects")
    assert (code, f"suspects  {len(read_suspects(run))}, in " in out) == (0, True), err
    code, _, err = cli("eval", "--run", "one", "--suspects", "--split", "train")
    assert code == 2
    assert "--suspects: is done on" in err
    assert cli("eval", "--run", "one", "--split", "train")[0] == 0
    machine, cache = Machine(torch.device("cpu"), "fp32", compile=False), Cache(tmp_path / "cache")
    dataset = recall_dataset(run.recipe, run, cache)
    logits = compute_logits(run, read.evaluation, dataset, dataset.indices("train"), machine)
    np.testing.assert_array_equal(logits, np.load(run.path / "eval-train.npz")["logits"])

    mend(run.suspects, lambda rows: [row.__setitem__(1, "") for row in rows if row[0] == "red apple/wrong.jpg"])
    code, _, err = cli("train", *how, "--run", "two", "--labels", run.suspects, "--no-report")
    assert code == 0, err
    assert set(RunDir(tmp_path / "two").listed) == set(run.listed) - {
        ("red apple/wrong.jpg", "train"),
        ("red apple/wrong.jpg", "val"),
    }
    kept = run.suspects.read_bytes()
    (run.path / "report.html").unlink()
    code, _, err = cli("train", *how, "--run", "one", "--resume")
    assert (code, run.suspects.read_bytes()) == (0, kept)
    assert "kept as it is" in err

    def fails(*_):
        raise RuntimeError("of no\nkind")

    monkeypatch.setattr(plumage.review, "keep_suspects", fails)
    (run.path / "report.html").unlink()
    code, _, err = cli("train", *how, "--run", "one", "--resume")
    assert (code, (run.path / "report.html").exists()) == (0, True)
    assert "suspects.csv: not written: of no kind" in err
