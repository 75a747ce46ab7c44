"""The pictures cut into parts, each of which validates once: train --fold K/N."""

import csv
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from test_groups import bursts, few, fractions, patients, rare

from plumage.data.dataset import prepare
from plumage.data.decode import Square
from plumage.data.folds import draw_parts, fold_split, tell_fold
from plumage.data.samples import Samples
from plumage.data.store import Cache
from plumage.engine.prepare import list_labelled
from plumage.errors import UserError
from plumage.recipe import Recipe

counts = st.lists(st.integers(1, 30), min_size=1, max_size=8)


def parts_of(labels, groups, parts, seed=0):
    """As the runs draw them, one after the other: which of them each picture validates in."""
    drawn = np.array([fold_split(labels, groups, (k, parts), seed) == "val" for k in range(1, parts + 1)])
    assert (drawn.sum(axis=0) == 1).all()  # disjoint, and all of them
    return drawn.argmax(axis=0)


@given(counts, st.integers(2, 7), st.integers(0, 2**63 - 1))
def test_each_picture_validates_once_and_each_class_is_spread_evenly(counts, parts, seed):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    if len(labels) < parts:
        return
    part = parts_of(labels, np.arange(len(labels)), parts, seed)
    sizes = np.bincount(part, minlength=parts)
    assert sizes.max() - sizes.min() <= 1
    for label in range(len(counts)):
        each = np.bincount(part[labels == label], minlength=parts)
        assert each.max() - each.min() <= 1
    assert np.array_equal(part, parts_of(labels, np.arange(len(labels)), parts, seed))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=2, max_size=60), st.integers(2, 5))
def test_a_group_is_in_one_part_and_none_is_empty(pictures, parts):
    labels, groups = np.array(pictures).T
    if len(set(groups.tolist())) < parts:
        with pytest.raises(UserError, match=f"--fold 1/{parts}: there are {len(set(groups.tolist()))} "):
            fold_split(labels, groups, (1, parts), 0)
        return
    part = parts_of(labels, groups, parts)
    assert all(len(set(part[groups == group])) == 1 for group in groups)
    assert set(part) == set(range(parts))


def test_a_split_into_parts_is_for_ever():
    """Runs of some folds may be trained years after the others."""
    labels = np.repeat([0, 1], [5, 6])
    expected, sizes = np.full(11, -1), [0] * 3
    for label in (0, 1):
        there = [0] * 3
        for row in np.random.default_rng([7, 0, label]).permutation(np.flatnonzero(labels == label)):
            part = min(range(3), key=lambda part: (there[part], sizes[part], part))
            expected[row] = part
            there[part] += 1
            sizes[part] += 1
    assert draw_parts(labels, np.arange(11), 3, 7).tolist() == expected.tolist() == [1, 0, 0, 1, 2, 0, 2, 2, 0, 1, 1]
    groups = np.array([0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 7])
    assert draw_parts(labels, groups, 3, 7).tolist() == [0, 0, 2, 2, 1, 1, 1, 0, 2, 0, 2]


def test_seeds_cut_differently():
    labels, groups = np.repeat(np.arange(4), 30), np.repeat(np.arange(24), 5)
    for each in (np.arange(120), groups):
        assert len({tuple(draw_parts(labels, each, 5, seed)) for seed in range(10)}) == 10


def test_as_many_parts_as_pictures_of_two_classes():
    labels = np.array([0, 0, 1, 1])
    assert sorted(parts_of(labels, np.arange(4), 4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("make", [bursts, patients, rare, few])
def test_parts_are_as_even_as_those_of_scikit_learn(make):
    own, reference = [], []
    for seed in range(4):
        labels, groups = make(np.random.default_rng(seed))
        labels = np.unique(labels, return_inverse=True)[1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(labels, labels, groups)
            theirs = np.zeros(len(labels), int)
            for number, (_, rows) in enumerate(folds):
                theirs[rows] = number
        for found, part in ((own, draw_parts(labels, groups, 5, seed)), (reference, theirs)):
            shares = [fractions(labels, np.where(part == each, "val", "train")) for each in range(5)]
            found.append(np.abs(np.array(shares) - 0.2).mean())
    assert np.mean(own) <= np.mean(reference) + 0.005


def test_without_groups_classes_are_spread_as_scikit_learn_does_it():
    labels = np.repeat(np.arange(4), [3, 17, 40, 101])
    own = np.sort(
        [np.bincount(labels[draw_parts(labels, np.arange(161), 5, 0) == k], minlength=4) for k in range(5)], 0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folds = StratifiedKFold(5, shuffle=True, random_state=0).split(labels, labels)
        theirs = np.sort([np.bincount(labels[rows], minlength=4) for _, rows in folds], 0)
    assert np.array_equal(own, theirs)


def sides_of(photos, tmp_path, parts, **options):
    """Path → its side in each of the folds."""
    sides = {}
    for number in range(1, parts + 1):
        recipe, cache = (
            Recipe.create({"data": str(photos), "fold": f"{number}/{parts}", **options}),
            Cache(tmp_path / "c"),
        )
        samples = list_labelled(recipe, cache)
        found = prepare(samples, Square(16), (number, parts), recipe.seed, cache, recipe.min_pictures).samples
        for path, side in zip(found.paths, found.split.tolist(), strict=True):
            sides.setdefault(path, []).append(side)
    return sides


def once(parts):
    return sorted(["val"] + ["train"] * (parts - 1))


def into(photos, **of):
    """Move the pictures, the last digit of whose name is among ``of``'s, into folders of these names."""
    for picture in sorted(photos.rglob("*.jpg")):
        side = next(name for name, digits in of.items() if picture.stem in digits)
        (photos / side / picture.parent.name).mkdir(parents=True, exist_ok=True)
        picture.rename(photos / side / picture.parent.name / picture.name)
    for folder in {path.name for side in of for path in (photos / side).iterdir()}:
        (photos / folder).rmdir()


def test_a_given_split_is_pooled_and_what_tests_goes_on_to_test(photos, tmp_path, caplog):
    caplog.set_level("INFO", "plumage")
    into(photos, train="012345", val="67", test="89")
    sides = sides_of(photos, tmp_path, 4)
    assert {path.split("/")[0] for path, each in sides.items() if each == ["test"] * 4} == {"test"}
    assert all(sorted(each) == once(4) for path, each in sides.items() if not path.startswith("test/"))
    (line,) = {line for line in caplog.messages if "--fold" in line}
    assert line == f"{photos}: --fold: what trains and what validates there is put together, and cut anew"


def test_a_test_folder_tests_though_nothing_else_validates(photos, tmp_path, caplog):
    caplog.set_level("INFO", "plumage")
    into(photos, train="0123456", test="789")
    sides = sides_of(photos, tmp_path, 3)
    assert {path.split("/")[0]: each for path, each in sides.items()}["test"] == ["test"] * 3
    assert all(sorted(each) == once(3) for path, each in sides.items() if not path.startswith("test/"))
    assert f"{photos}: train/ trains, test/ is kept for eval --split test" in caplog.messages
    assert not any("validates" in line and "test/" in line for line in caplog.messages)


@pytest.mark.parametrize("others", ["val", "test", ""])
def test_a_file_of_labels_with_a_split_is_pooled_too(photos, tmp_path, others):
    rows = [path.relative_to(photos) for path in sorted(photos.rglob("*.jpg"))]
    side = {"8": others, "9": "test"} if others else {}
    lines = [f'"{path}",{path.parent.name[0]},{side.get(path.stem, "train")}' for path in rows]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split", *lines]), encoding="utf-8")
    sides = sides_of(photos, tmp_path, 3, labels=str(tmp_path / "labels.csv"))
    for path, each in sides.items():
        assert each == ["test"] * 3 if side.get(Path(path).stem) == "test" else sorted(each) == once(3)


def test_copies_and_groups_stay_in_one_fold(photos, tmp_path, caplog):
    caplog.set_level("INFO", "plumage")
    for picture in sorted(photos.rglob("[0-3].jpg")):
        shutil.copy(picture, picture.with_name(f"{picture.stem} copy.jpg"))
    sides = sides_of(photos, tmp_path, 4)
    assert all(sorted(each) == once(4) for each in sides.values())
    copied = [path for path in sides if " " in Path(path).stem]
    assert len(copied) == 12
    assert all(sides[path] == sides[f"{path.rpartition(' ')[0]}.jpg"] for path in copied)
    assert any("stay on one side of the split" in line for line in caplog.messages)
    grouped = sides_of(photos, tmp_path, 4, group_by=r"/(\d)")
    assert len({(Path(path).name[0], *each) for path, each in grouped.items()}) == 10


def test_what_a_fold_cannot_have_is_told(photos, tmp_path, caplog):
    for number in range(3, 10):
        (photos / "red apple" / f"{number}.jpg").unlink()
    sides = sides_of(photos, tmp_path, 5)
    assert all(sorted(each) == once(5) for each in sides.values())
    lacking = [line for line in caplog.messages if "nothing validates red apple" in line]
    assert len(lacking) == 2
    caplog.clear()
    sides_of(photos, tmp_path, 2, group_by="(red|9)")
    (line,) = [line for line in caplog.messages if "nothing trains" in line]
    assert line.endswith("nothing trains red apple, since all of its pictures stay together")


def test_too_many_parts_or_but_one_class_to_learn_is_one_line(photos, tmp_path):
    with pytest.raises(UserError, match=r"^--fold 1/31: there are 30 pictures; cut them into at most as many parts$"):
        sides_of(photos, tmp_path, 31)
    with pytest.raises(UserError, match=r"^--fold 1/4: there are 3 pictures or groups of them that stay together; "):
        sides_of(photos, tmp_path, 4, group_by="(red|green|blau)")
    shutil.rmtree(photos / "red apple")
    with pytest.raises(UserError, match=r"--fold 1/2: leaves .* alone to train on"):
        sides_of(photos, tmp_path, 2, group_by="(green|blau)")


class Counted(str):
    """A name that counts how often a set asks for its hash."""

    asked = 0

    def __hash__(self):
        Counted.asked += 1
        return super().__hash__()


def test_many_classes_are_looked_up_once_each(tmp_path):
    names = [Counted(number) for number in range(300)]
    samples = Samples(tmp_path, [str(row) for row in range(600)], np.repeat(np.arange(300), 2), names)
    tell_fold(samples, np.array(["train", "val"] * 300), (1, 2))
    assert 0 < Counted.asked <= 4 * 300


def test_as_many_folds_as_pictures(photos, tmp_path):
    shutil.rmtree(photos / "red apple")
    for picture in list(photos.glob("*/[2-9].jpg")):
        picture.unlink()
    assert all(sorted(each) == once(4) for each in sides_of(photos, tmp_path, 4).values())


def test_by_the_command(cli, photos, tmp_path):
    command = ["train", "--data", photos, *TINY, "--epochs", "1", "--run"]
    validated = Counter()
    for number in (1, 2, 3):
        code, _, err = cli(*command, tmp_path / f"{number}", "--fold", f"{number}/3", "--seed", "5")
        assert code == 0, err
        with (tmp_path / f"{number}" / "split.csv").open(newline="", encoding="utf-8") as handle:
            validated.update(row["path"] for row in csv.DictReader(handle) if row["split"] == "val")
    assert set(validated.values()) == {1}
    assert len(validated) == 30
    assert cli(*command, tmp_path / "1", "--resume", "--fold", "1/3")[0] == 0
    code, _, err = cli(*command, tmp_path / "1", "--resume", "--fold", "2/3")
    assert code == 2
    assert "--fold 2/3 (was 1/3)" in err
    for fold in ("0/3", "4/3", "1/1", "1", "1/x", "-1/3", "1/3/5"):
        code, _, err = cli(*command, tmp_path / "new", "--fold", fold)
        assert (code, err.splitlines()[-1][:14]) == (2, "error: --fold ")
    code, _, err = cli(*command, tmp_path / "new", "--fold", "1/3", "--val-fraction", "0.2")
    assert (code, err.splitlines()[-1][:23]) == (2, "error: --val-fraction: ")
    assert not (tmp_path / "new").exists()
