import logging
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from plumage.data.copies import contradictions, first_alike, repeated, tell_copies
from plumage.data.samples import Samples


def digests_of(*numbers):
    """Digests that differ in their last byte alone where ``numbers`` do."""
    return np.array([[7] * 15 + [number] for number in numbers], np.uint8).reshape(-1, 16)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=20))
def test_the_first_that_is_alike_is_that_of_a_plain_search(halves):
    digests = np.array([[one] * 8 + [other] * 8 for one, other in halves], np.uint8).reshape(-1, 16)
    assert first_alike(digests).tolist() == [halves.index(each) for each in halves]


def test_every_byte_counts():
    digests = np.concatenate([np.zeros((1, 16), np.uint8), np.eye(16, dtype=np.uint8)])
    assert first_alike(digests).tolist() == list(range(17))


def test_pairs_by_hand():
    first, labels = first_alike(digests_of(1, 2, 1, 3, 2, 1)), np.array([0, 1, 0, 1, 0, 1])
    assert contradictions(first, labels) == [(1, 4), (0, 5)]
    assert repeated(first, labels, np.array([0, 3, 4]), np.array([1, 2, 5])) == [(0, 2)]
    assert repeated(first, labels, np.array([], np.int64), np.array([0])) == []


def told(caplog, pictures):
    """What is told of (path, label, side, number) of pictures, those of one number alike: (level, message)."""
    caplog.set_level("INFO", "plumage")
    caplog.clear()
    paths, labels, split, numbers = map(list, zip(*pictures, strict=True))
    samples = Samples(Path("data"), paths, np.array(labels), ["cat", "dog"])
    tell_copies(samples, np.array(split), digests_of(*numbers))
    return [(record.levelno, record.message) for record in caplog.records]


def test_contradictory_labels_are_named_with_both_paths_on_one_side_and_across(caplog):
    pictures = [("a.jpg", 0, "train", 1), ("b.jpg", 1, "train", 1), ("c.jpg", 0, "train", 2), ("d.jpg", 1, "val", 2)]
    (level, message), *more = told(caplog, pictures)
    assert not more  # and not of accuracy: who knows these from training gets them wrong
    assert level == logging.WARNING
    assert message.startswith("data: 2 pictures have contradictory labels: ")
    assert message.endswith(": b.jpg = a.jpg, d.jpg = c.jpg")


def test_copies_across_the_split_inflate_accuracy_and_those_in_training_are_counted(caplog):
    pictures = [
        ("a", 0, "train", 1),
        ("b", 0, "train", 1),
        ("c", 0, "train", 1),
        ("d", 1, "val", 2),
        ("e", 1, "val", 2),
    ]
    pictures += [
        ("f", 0, "val", 1),
        ("g", 0, "test", 1),
        ("h", 1, "test", 2),
        ("i", 1, "train", 3),
        ("j", 1, "test", 4),
    ]
    assert told(caplog, pictures) == [
        (
            logging.WARNING,
            "data: 1 validation pictures are also training pictures, pixel for pixel, which inflates accuracy: f = a",
        ),
        (
            logging.WARNING,
            "data: 2 test pictures are also training or validation pictures, pixel for pixel, which inflates "
            "accuracy: g = a, h = d",
        ),
        (logging.INFO, "data: 2 training pictures are copies of others, pixel for pixel: b = a, c = a"),
    ]


def test_of_pictures_that_all_differ_nothing_is_told(caplog):
    assert told(caplog, [(str(number), number % 2, "train" if number else "val", number) for number in range(9)]) == []
