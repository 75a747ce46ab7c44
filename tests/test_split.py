import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumage.data.samples import Samples
from plumage.data.split import read_split, stratified_split, write_split
from plumage.errors import UserError

counts = st.lists(st.integers(2, 40), min_size=1, max_size=12)


@given(counts, st.floats(0.01, 0.99), st.integers(0, 2**63 - 1))
def test_every_class_is_on_both_sides_in_the_right_proportion(counts, fraction, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    split = stratified_split(labels, fraction, seed)
    assert set(split) == {"train", "val"}
    for label, count in enumerate(counts):
        held_out = np.sum(split[labels == label] == "val")
        assert 1 <= held_out <= count - 1
        assert abs(held_out - fraction * count) <= 1


@given(counts, st.integers(0, 1000))
def test_a_seed_gives_one_split(counts, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    assert np.array_equal(stratified_split(labels, 0.2, seed), stratified_split(labels, 0.2, seed))


def test_a_split_is_for_ever():
    """Runs that have begun, and accuracies that are published, are of the split that this plain loop draws."""
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(7), [2, 3, 5, 10, 40, 41, 99]))
    expected = np.full(200, "train")
    for label in range(7):
        members = [row for row in range(200) if labels[row] == label]
        count = min(max(round(0.3 * len(members)), 1), len(members) - 1)
        expected[np.random.default_rng([5, 0, label]).permutation(members)[:count]] = "val"
    assert np.array_equal(stratified_split(labels, 0.3, 5), expected)
    assert np.flatnonzero(expected == "val")[:8].tolist() == [1, 4, 5, 12, 14, 22, 27, 28]


def test_another_seed_gives_another_split():
    labels = np.repeat(np.arange(10), 30)
    assert not np.array_equal(stratified_split(labels, 0.2, 0), stratified_split(labels, 0.2, 1))


def test_eight_to_two_by_hand():
    labels = np.array([0] * 10 + [1] * 5 + [2] * 2)
    split = stratified_split(labels, 0.2, 0)
    assert [np.sum(split[labels == label] == "val") for label in range(3)] == [2, 1, 1]


def test_is_read_back_as_written(tmp_path):
    paths = ['a, "b"/1.jpg', 'a, "b"/line\nbreak.jpg', "naïve/\udcff.jpg", "naïve/carriage\rreturn.jpg"]
    for path in paths:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    samples = Samples(
        tmp_path, paths, np.array([0, 0, 1, 1]), ['a, "b"', "naïve"], np.array(["train", "val", "train", "val"])
    )
    write_split(tmp_path / "split.csv", samples)
    again = read_split(tmp_path / "split.csv", tmp_path, samples.classes)
    assert (again.root, again.paths, again.classes) == (samples.root, samples.paths, samples.classes)
    assert np.array_equal(again.labels, samples.labels)
    assert np.array_equal(again.split, samples.split)


def test_pictures_are_found_whose_names_are_in_another_of_unicodes_forms_now(tmp_path):
    composed, apart = "caf\u00e9", "cafe\u0301"
    was = [f"{composed}/{apart}.jpg", f"{apart}/1.jpg", "b/1.jpg", f"{composed}/2.jpg"]
    now = [f"{apart}/{composed}.jpg", f"{apart}/1.jpg", "b/1.jpg", f"{apart}/2.jpg"]
    for path in now:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    split = np.array(["val", "train", "test", "train"])
    samples = Samples(tmp_path, was, np.array([0, 0, 1, 0]), [apart, "b"], split)
    write_split(tmp_path / "split.csv", samples)
    again = read_split(tmp_path / "split.csv", tmp_path, samples.classes)
    assert again.paths == now
    assert (again.labels.tolist(), again.split.tolist()) == ([0, 0, 1, 0], split.tolist())
    (tmp_path / now[0]).unlink()
    with pytest.raises(UserError, match=r"1 of its pictures are not in"):
        read_split(tmp_path / "split.csv", tmp_path, samples.classes)


@pytest.mark.parametrize(
    "line",
    [
        "../secret.jpg,a,train",
        "/etc/passwd,a,train",
        "a/1.jpg,unknown,train",
        "a/1.jpg,a,test",
        "a/1.jpg,a",
        "gone.jpg,a,val",
    ],
)
def test_a_line_that_is_not_sound_is_refused(tmp_path, line):
    (tmp_path / "split.csv").write_text(f"path,label,split\n{line}\n")
    with pytest.raises(UserError, match=r"split\.csv"):
        read_split(tmp_path / "split.csv", tmp_path, ["a"])
