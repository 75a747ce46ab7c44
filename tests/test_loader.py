import threading
from itertools import islice

import numpy as np
import pytest
import torch

from plumage.data.feed import Reader
from plumage.data.loader import AHEAD, Pictures, epoch_length, epoch_order, eval_batches, train_batches


@pytest.fixture
def read() -> Reader:
    """Of twenty pictures of 4×4, each filled with its own row number."""
    pixels = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 4, 4, 3)
    return lambda rows: pixels[torch.from_numpy(rows)]


ROWS = np.arange(3, 20)  # seventeen of the pictures
LABELS = np.arange(17) % 3
FIFTY = np.zeros(50, np.int64)


@pytest.mark.parametrize(("pictures", "batch", "length"), [(17, 4, 4), (18, 4, 5), (16, 4, 4), (3, 64, 1), (65, 64, 1)])
def test_a_partial_batch_counts_unless_it_is_one_picture(pictures, batch, length):
    assert epoch_length(pictures, batch) == length


def test_order_is_a_function_of_seed_and_epoch():
    assert np.array_equal(epoch_order(FIFTY, 1, 2), epoch_order(FIFTY, 1, 2))
    assert sorted(epoch_order(FIFTY, 1, 2)) == list(range(50))
    assert not np.array_equal(epoch_order(FIFTY, 1, 2), epoch_order(FIFTY, 1, 3))
    assert not np.array_equal(epoch_order(FIFTY, 1, 2), epoch_order(FIFTY, 2, 2))


@pytest.mark.parametrize("balance", [0.5, 1, 1.0])
def test_balance_draws_a_class_in_proportion_to_a_power_of_its_pictures(balance):
    """Of 900, 90 and 10 pictures: each class within one of its due, each picture within one of its class's mean."""
    counts = np.array([900, 90, 10])
    labels = np.random.default_rng(0).permutation(np.arange(3).repeat(counts))
    due = 1000 * counts ** (1.0 - balance) / (counts ** (1.0 - balance)).sum()
    orders = [epoch_order(labels, 5, epoch, balance) for epoch in range(20)]
    for order in orders:
        assert len(order) == 1000
        drawn, times = np.bincount(labels[order]), np.bincount(order, minlength=1000)
        assert (np.abs(drawn - due) < 1).all()
        assert (np.abs(times - (due / counts)[labels]) < 1).all()
    assert np.array_equal(orders[3], epoch_order(labels, 5, 3, balance))
    assert len({tuple(order) for order in orders}) == 20
    assert np.bincount(np.concatenate(orders), minlength=1000).min() > 0  # over the epochs, every picture is shown
    assert set(labels[orders[0]][:50]) == {0, 1, 2}  # and the classes come mixed


def test_without_balance_the_order_is_what_it_was():
    order = np.random.default_rng([7, 1, 3]).permutation(17)
    assert np.array_equal(epoch_order(LABELS, 7, 3), order)
    assert np.array_equal(epoch_order(LABELS, 7, 3, 0.0), order)


def test_an_epoch_goes_through_the_set_in_its_order(read):
    batches = list(
        islice(train_batches(Pictures(read, ROWS, LABELS, 5), seed=7), 8)
    )  # two epochs of 5, 5, 5 and 2 pictures
    for epoch in (0, 1):
        order = epoch_order(LABELS, 7, epoch)
        own = batches[4 * epoch : 4 * epoch + 4]
        assert [batch.iteration for batch in own] == list(range(4 * epoch, 4 * epoch + 4))
        assert torch.cat([batch.images[:, 0, 0, 0] for batch in own]).tolist() == ROWS[order].tolist()
        assert torch.cat([batch.labels for batch in own]).tolist() == LABELS[order].tolist()


@pytest.mark.parametrize("balance", [0.0, 0.7])
@pytest.mark.parametrize("start", [0, 1, 3, 4, 7, 9])
def test_a_stream_begun_later_is_the_rest_of_the_stream(read, start, balance):
    whole = list(islice(train_batches(Pictures(read, ROWS, LABELS, 5), seed=7, balance=balance), 12))[start:]
    reads = []

    def counted(rows):
        reads.append(rows)
        return read(rows)

    late = list(islice(train_batches(Pictures(counted, ROWS, LABELS, 5), 7, start, balance=balance), 12 - start))
    assert len(reads) <= 12 - start + AHEAD  # what lies before is not read
    for one, other in zip(whole, late, strict=True):
        assert one.iteration == other.iteration
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_evaluation_takes_every_picture_once_in_order(read):
    batches = list(eval_batches(Pictures(read, ROWS, LABELS, 5)))
    assert [len(batch.labels) for batch in batches] == [5, 5, 5, 2]
    assert torch.cat([batch.images[:, 0, 0, 0] for batch in batches]).tolist() == ROWS.tolist()
    assert torch.cat([batch.labels for batch in batches]).tolist() == LABELS.tolist()


def test_a_stream_left_early_waits_for_no_thread(read, monkeypatch):
    """It may end in the garbage collector, in a thread that holds a lock which the other's end needs."""

    def forbid(*args):
        raise AssertionError("joined")

    stream = train_batches(Pictures(read, ROWS, LABELS, 5), seed=7)
    next(stream)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "join", forbid)
        stream.close()


def test_an_error_in_the_thread_reaches_the_reader(read):
    with pytest.raises(IndexError):
        list(eval_batches(Pictures(read, np.array([99]), np.array([0]), 5)))
