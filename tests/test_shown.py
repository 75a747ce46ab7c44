"""Which pictures a report shows."""

import numpy as np
import torch
from PIL import Image

from plumage.data.decode import Square
from plumage.data.store import Cache, open_store
from plumage.engine.shown import choose, pictures_to_show


def test_chosen_by_hand():
    #          0    1    2    3    4    5    6    7
    labels = [0, 0, 0, 1, 1, 2, 2, 3]
    predicted = [0, 0, 1, 1, 0, 0, 0, 3]
    confidence = [0.5, 0.7, 0.9, 0.6, 0.9, 0.4, 0.8, 0.3]
    chosen = choose(*map(np.array, (confidence, predicted, labels)), 5)
    assert chosen["mistakes"].tolist() == [2, 4, 6, 5]  # of equal ones the first
    # Class 2 is never right, 1 half of the time, 0 in two of three, 3 always: one of each, then the second.
    assert chosen["right"].tolist() == [3, 1, 7, 0]
    assert sorted(chosen["samples"].tolist()) == list(range(8))


def test_at_most_so_many_of_different_classes():
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(50), 20)
    confidence, wrong = rng.random(1000), rng.random(1000) < 0.5
    predicted = np.where(wrong, (labels + 1) % 50, labels)
    chosen = choose(confidence, predicted, labels, 50)
    assert {name: len(rows) for name, rows in chosen.items()} == {"samples": 12, "mistakes": 24, "right": 8}
    assert len(set(labels[chosen["samples"]])) == 12
    assert chosen["mistakes"].tolist() == sorted(np.flatnonzero(wrong), key=lambda row: -confidence[row])[:24]
    recall = np.array([np.mean(~wrong[labels == k]) for k in range(50)])
    assert sorted(recall[labels[chosen["right"]]]) == sorted(recall)[:8]
    for row in chosen["right"]:
        own = np.flatnonzero((labels == labels[row]) & ~wrong)
        assert row == own[confidence[own].argmax()]
    assert len(choose(confidence, labels, labels, 50)["mistakes"]) == 0
    assert len(choose(confidence, (labels + 1) % 50, labels, 50)["right"]) == 0


def test_maps_are_of_what_was_predicted_in_small_batches(tmp_path):
    """The map of this test's network is the picture's mean times the class."""
    for number in range(6):
        Image.new("RGB", (40, 40), (40 * number,) * 3).save(tmp_path / f"{number}.png")
    store = open_store(tmp_path, [f"{n}.png" for n in range(6)], Square(40), Cache(tmp_path / "cache", workers=1))
    labels, rows, asked = np.array([0, 1, 1, 2, 2]), np.array([5, 4, 3, 2, 1]), []

    def explain(stored, classes):
        asked.append(len(stored))
        return stored.float().mean((1, 2, 3))[:, None, None] * classes[:, None, None].float().expand(-1, 3, 3)

    logits = torch.tensor([[0.0, 0, 9], [0, 4, 0], [5, 0, 0], [0, 0, 6], [0, 8, 0]])
    shown = pictures_to_show(logits, labels, store, rows, 32, explain, 2)
    assert {name: len(each.rows) for name, each in shown.items()} == {"samples": 5, "mistakes": 3, "right": 2}
    assert shown["mistakes"].rows.tolist() == [0, 4, 2]
    assert shown["mistakes"].maps[:, 0, 0].tolist() == [200 * 2, 40 * 1, 0]
    assert shown["right"].rows.tolist() == [1, 3]
    assert shown["right"].maps[:, 2, 2].tolist() == [160, 80 * 2]
    assert max(asked) == 2
    for name, side in (("samples", 32), ("mistakes", 224), ("right", 224)):
        pixels, found, maps = shown[name]
        assert (pixels.shape[1:], pixels.dtype, maps.dtype) == ((side, side, 3), np.uint8, np.float32)
        assert pixels[:, 0, 0, 0].tolist() == (40 * rows[found]).tolist()
    assert shown["samples"].maps.shape == (5, 0, 0)
