from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from plumage.data.dataset import choose_classes, prepare, recall
from plumage.data.decode import Square
from plumage.data.samples import Samples
from plumage.data.store import Cache, write_skipped
from plumage.errors import UserError


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", workers=1)


def draw(root, counts, broken=(), **known):
    """Make pictures of which no two are alike, and list them. counts: class → pictures. broken: those that are none."""
    paths = sorted(f"{name}/{number}.png" for name, count in counts.items() for number in range(count))
    for shade, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if path in broken:
            (root / path).write_text("no picture")
        else:
            Image.new("RGB", (8, 8), (shade * 4, 9, 9)).save(root / path)
    classes = sorted(counts)
    labels = np.array([classes.index(path.partition("/")[0]) for path in paths], np.int64)
    return Samples(root, paths, labels, classes, **known)


def of_class(samples, name):
    return [path for path, label in zip(samples.paths, samples.labels, strict=True) if samples.classes[label] == name]


def test_classes_with_fewer_pictures_are_left_out_by_name_and_the_others_renumbered(tmp_path, caplog):
    samples = draw(tmp_path, {"a": 1, "b": 3, "c": 2, "d": 4})
    chosen, rows = choose_classes(samples, 3)
    assert chosen.classes == ["b", "d"]
    assert [samples.paths[row] for row in rows] == chosen.paths
    assert of_class(chosen, "b") == [f"b/{number}.png" for number in range(3)]
    assert of_class(chosen, "d") == [f"d/{number}.png" for number in range(4)]
    assert caplog.messages == [f"--min-pictures 3: 2 classes of {tmp_path} have fewer pictures, and are left out: a, c"]
    assert choose_classes(samples, 2)[0].classes == ["b", "c", "d"]


def test_to_train_on_one_class_is_an_error_though_others_validate(tmp_path):
    """As where training pictures are good ones alone, and the defects are to be tested with."""
    samples = draw(tmp_path, {"good": 4, "scratched": 3})
    for learnt, refused in (("good", True), ("scratched", True), (("good", "scratched"), False)):
        sides = ["train" if path.startswith(learnt) and "/0" not in path else "val" for path in samples.paths]
        given = Samples(tmp_path, samples.paths, samples.labels, samples.classes, np.array(sides))
        if refused:
            with pytest.raises(UserError, match=f": training pictures are of {learnt} alone: add those"):
                choose_classes(given, 1)
        else:
            assert len(choose_classes(given, 1)[0]) == 7


@pytest.mark.parametrize(("least", "says"), [(4, "which leaves d, and two"), (5, "which leaves none, and two")])
def test_less_than_two_classes_left_is_an_error(tmp_path, least, says):
    samples = draw(tmp_path, {"a": 1, "b": 3, "c": 2, "d": 4})
    with pytest.raises(UserError, match=f"^--min-pictures {least}: . classes of .* have fewer pictures, {says}"):
        choose_classes(samples, least)


def test_classes_of_one_picture_are_an_error_that_names_five_and_the_way_out(tmp_path):
    samples = draw(tmp_path, {**{f"few {number}": 1 for number in range(7)}, "a": 3, "b": 3})
    with pytest.raises(UserError) as refused:
        choose_classes(samples, 1)
    assert str(refused.value) == (
        f"{tmp_path}: fewer than two pictures (one to train on, one to validate with) of few 0, few 1, few 2, few 3, "
        "few 4 and 2 more: add pictures, or leave such classes out, as train --min-pictures 2 does"
    )
    chosen, _ = choose_classes(samples, 2)
    assert chosen.classes == ["a", "b"]


def test_what_falls_below_by_unreadable_pictures_is_left_out_too_and_recalled(tmp_path, cache, caplog):
    root, counts = tmp_path / "data", {"a": 4, "b": 3, "c": 5, "d": 3}
    samples = draw(root, counts, broken=("b/0.png", "c/1.png", "d/0.png", "d/1.png", "d/2.png"))
    with pytest.raises(UserError, match="no readable picture of d: add pictures, or leave"):
        prepare(samples, Square(8), 0.4, 0, cache)
    caplog.clear()
    dataset = prepare(samples, Square(8), 0.4, 0, cache, min_pictures=3)
    assert dataset.samples.classes == ["a", "c"]
    assert dataset.samples.paths == [*(f"a/{n}.png" for n in range(4)), *(f"c/{n}.png" for n in (0, 2, 3, 4))]
    line = f"--min-pictures 3: 2 classes of {root} have fewer readable pictures, and are left out: b, d"
    assert caplog.messages[1:] == [line]

    def pixels(dataset):
        return dataset.store.read(dataset.rows)[:, 0, 0, 0].tolist()

    shown = [4 * samples.paths.index(path) for path in dataset.samples.paths]
    assert pixels(dataset) == shown
    write_skipped(tmp_path / "skipped.csv", dataset.store.skipped)
    for kept in (cache, cache._replace(use_store=False)):
        again = recall(dataset.samples, Square(8), tmp_path / "skipped.csv", kept)
        assert pixels(again) == shown


def test_groups_stay_together_in_the_split_that_is_drawn(tmp_path, cache, caplog):
    caplog.set_level("INFO", "plumage")
    groups = np.array([f"{number // 2}" for number in range(24)], object)
    samples = draw(tmp_path / "data", {"a": 12, "b": 12}, groups=groups)
    split = prepare(samples, Square(8), 1 / 3, 0, cache).samples.split
    assert (split[::2] == split[1::2]).all()
    assert [np.sum(split[:12] == "val"), np.sum(split[12:] == "val")] == [4, 4]
    assert "groups stay together" not in caplog.text
    groups = np.array([f"{number // 6}" for number in range(24)], object)
    prepare(replace(samples, groups=groups), Square(8), 1 / 3, 0, cache)
    assert "groups stay together, so that 50.0% of the pictures validate, of 33.3% asked for" in caplog.text


def test_groups_that_leave_nothing_to_validate_with_are_refused(tmp_path, cache):
    samples = draw(tmp_path / "data", {"a": 3, "b": 3}, groups=np.array(list("xxxyyy"), object))
    with pytest.raises(UserError, match=r"each class is in one group, so that none is left .*--group-by"):
        prepare(samples, Square(8), 0.2, 0, cache)


def test_groups_do_not_change_a_split_that_is_given_but_what_it_parts_is_told(tmp_path, cache, caplog):
    split = np.array(["train", "train", "val"] * 2)
    samples = draw(tmp_path / "data", {"a": 3, "b": 3}, split=split, groups=np.array(list("xyyzzz"), object))
    assert prepare(samples, Square(8), 0.2, 0, cache).samples.split.tolist() == split.tolist()
    assert "2 groups are on two sides of the given split, which inflates accuracy: y, z" in caplog.text


def test_the_copies_that_are_told_of_are_those_of_the_classes_that_stay(tmp_path, cache, caplog):
    """Rows of the store and of the samples are not the same once a class is left out."""
    root = tmp_path / "data"
    samples = draw(root, {"a": 3, "b": 6, "c": 6}, broken=("a/0.png",))
    (root / "c" / "5.png").write_bytes((root / "b" / "0.png").read_bytes())
    prepare(samples, Square(8), 0.2, 0, cache, min_pictures=3)
    assert "1 pictures have contradictory labels" in caplog.text
    assert caplog.messages[-1].endswith(": c/5.png = b/0.png")
