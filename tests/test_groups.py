import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from plumage.data.groups import group_by, group_split, numbered, tell_groups, tell_parted
from plumage.data.samples import Samples
from plumage.data.split import stratified_split
from plumage.errors import UserError


def grouped(paths, groups=None, labels=None):
    labels = np.zeros(len(paths), np.int64) if labels is None else np.array(labels)
    return Samples(Path("data"), paths, labels, ["cat", "dog", "eel"], None, groups)


def fractions(labels, split):
    return np.bincount(labels[split == "val"], minlength=labels.max() + 1) / np.bincount(labels)


def check_whole(groups, split):
    for group in np.unique(groups):
        assert len(set(split[groups == group])) == 1


drawn = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=2, max_size=60)


@given(drawn, st.floats(0.05, 0.95), st.integers(0, 1000))
def test_a_group_is_on_one_side_whatever_it_holds(pictures, fraction, seed):
    rows = [(label, group) for label, group in pictures for _ in range(2)]  # so that no class has one picture alone
    values, labels = np.unique([label for label, _ in rows], return_inverse=True)
    groups = np.array([group for _, group in rows])
    split = group_split(labels, groups, fraction, seed)
    check_whole(groups, split)
    assert np.array_equal(split, group_split(labels, groups, fraction, seed))
    assert set(labels[split == "train"]) == set(range(len(values)))  # nothing is validated that was not learnt


@given(st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=6), min_size=1, max_size=5), st.floats(0.05, 0.95))
def test_a_class_with_two_groups_of_its_own_is_on_both_sides(sizes, fraction):
    labels = np.array([label for label, each in enumerate(sizes) for size in each for _ in range(size)])
    groups = np.repeat(np.arange(sum(map(len, sizes))), [size for each in sizes for size in each])
    split = group_split(labels, groups, fraction, 0)
    check_whole(groups, split)
    assert ((fractions(labels, split) > 0) & (fractions(labels, split) < 1)).all()


@given(st.lists(st.integers(2, 40), min_size=1, max_size=12), st.floats(0.01, 0.99), st.integers(0, 2**63 - 1))
def test_where_all_are_alone_it_is_the_split_without_groups(counts, fraction, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    alone = np.random.default_rng(0).permutation(len(labels))
    assert np.array_equal(group_split(labels, alone, fraction, seed), stratified_split(labels, fraction, seed))


def test_a_few_groups_change_little_of_the_split():
    """As many of each class validate as without, and of 2,000 pictures few others."""
    labels, groups = np.repeat(np.arange(20), 100), np.arange(2000)
    for start in range(0, 2000, 100):  # a pair and a triple in each class
        groups[start : start + 2] = start
        groups[start + 10 : start + 13] = start + 10
    without, split = stratified_split(labels, 0.2, 3), group_split(labels, groups, 0.2, 3)
    check_whole(groups, split)
    assert np.array_equal(fractions(labels, split), fractions(labels, without))
    assert np.sum(split != without) <= 2 * 5 * 20 // 2


def test_seeds_draw_other_groups():
    labels, groups = np.repeat(np.arange(4), 60), np.repeat(np.arange(24), 10)
    assert len({tuple(group_split(labels, groups, 0.2, seed)) for seed in range(10)}) == 10
    groups = np.repeat(np.arange(24), np.tile([7, 8, 9, 11, 12, 13], 4))  # also where no two of a class are as large
    assert len({tuple(group_split(labels, groups, 0.2, seed)) for seed in range(10)}) >= 8


def test_a_class_of_one_group_trains_and_is_named(caplog):
    labels = np.array([0] * 6 + [1] * 10)
    groups = np.array([0] * 6 + [*range(1, 11)])
    samples = Samples(Path("data"), [""] * 16, labels, ["cat", "dog"], None, groups)
    split = group_split(labels, groups, 0.5, 0)
    assert fractions(labels, split).tolist() == [0, 0.5]
    caplog.set_level("INFO", "plumage")
    tell_groups(samples, split, 0.5)
    assert caplog.messages == [
        "data: groups stay together, so that 31.2% of the pictures validate, of 50.0% asked for; furthest from it is "
        "cat with 0.0%",
        "data: nothing validates cat: no group of such a class can be spared from training",
    ]


def bursts(rng):
    sizes = rng.geometric(0.2, 400)
    return np.repeat(rng.integers(0, 10, 400), sizes), np.repeat(np.arange(400), sizes)


def patients(rng):
    """Each with several findings, in proportions of their own."""
    groups = np.repeat(np.arange(80), rng.geometric(0.05, 80))
    findings = rng.dirichlet(np.full(5, 0.5), 80)
    return np.array([rng.choice(5, p=findings[group]) for group in groups]), groups


def rare(rng):
    """Classes of a hundred and of a few pictures, in groups from one to three hundred."""
    sizes = rng.zipf(1.7, 200).clip(max=300)
    return np.repeat(rng.choice(8, 200, p=np.arange(8, 0, -1) / 36), sizes), np.repeat(np.arange(200), sizes)


def few(rng):
    sizes = rng.integers(5, 30, 30)
    return np.repeat(np.arange(30) % 6, sizes), np.repeat(np.arange(30), sizes)


@pytest.mark.parametrize("make", [bursts, patients, rare, few])
def test_it_is_stratified_as_well_as_that_of_scikit_learn(make):
    own, reference = [], []
    for seed in range(6):
        labels, groups = make(np.random.default_rng(seed))
        several = np.bincount(labels)[labels] > 5  # of which each of its five folds can have some
        labels, groups = np.unique(labels[several], return_inverse=True)[1], groups[several]
        split = group_split(labels, groups, 0.2, seed)
        check_whole(groups, split)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some classes have fewer groups than there are folds
            folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(labels, labels, groups)
            theirs = np.full(len(labels), "train")
            theirs[next(folds)[1]] = "val"
        for found, each in ((own, split), (reference, theirs)):
            found.append(np.abs(fractions(labels, each) - 0.2).mean())
    assert np.mean(own) <= np.mean(reference) + 0.005


def test_a_number_for_each_text_and_for_each_that_is_alone():
    numbers = numbered(np.array(["p1", "", "p2", "p1", "", "1"], object))
    assert numbers[0] == numbers[3]
    assert len(set(numbers.tolist())) == 5


def test_a_pattern_groups_by_what_its_first_group_matches(caplog):
    paths = ["p1/cat/1.jpg", "p1/dog/1.jpg", "p2/cat/1.jpg", "loose.jpg", "p/cat/3.jpg"]
    groups = group_by(grouped(paths), r"^p(\d*)/(\w+)").groups
    assert groups.tolist() == ["1", "1", "2", "", ""]
    (line,) = caplog.messages
    assert line.endswith("2 of 5 pictures do not match, and are alone: loose.jpg, p/cat/3.jpg")


def test_a_pattern_is_sought_anywhere_and_in_any_unicode_form(caplog):
    decomposed, composed = "Mu\u0308ller", "M\u00fcller"
    paths = [f"a/{decomposed} 1.jpg", f"b/{composed} 2.jpg", "b/Maier 1.jpg"]
    for pattern in (f"({decomposed}|Maier)", f"({composed}|Maier)"):
        assert group_by(grouped(paths), pattern).groups.tolist() == [composed, composed, "Maier"]
    assert not caplog.messages


@pytest.mark.parametrize("pattern", ["(patient)", "(p)?x"])
def test_a_pattern_that_matches_nothing_is_refused(pattern):
    with pytest.raises(
        UserError, match=r"^--group-by '.*': matches none of the paths below data, as x1\.jpg, x2\.jpg;"
    ):
        group_by(grouped(["x1.jpg", "x2.jpg"]), pattern)


def test_groups_are_said_once():
    with pytest.raises(UserError, match=r"--group-by '.*': the file of --labels has a column of groups"):
        group_by(grouped(["1.jpg"], np.array(["a"], object)), "(1)")


def test_groups_on_two_sides_of_a_given_split_are_counted_and_named(caplog):
    samples = grouped(list("abcdefg"), np.array(["x", "x", "y", "y", "", "", "z"], object))
    tell_parted(samples, np.array(["train", "val", "train", "train", "train", "val", "test"]))
    assert caplog.messages == ["data: 1 groups are on two sides of the given split, which inflates accuracy: x"]
