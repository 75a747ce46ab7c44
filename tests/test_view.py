"""Pictures for people: the same part as evaluation sees, from the file."""

import numpy as np
import pytest
import torch
from PIL import Image

from plumage.data import view as module
from plumage.data.augment import center_crop
from plumage.data.decode import Square, decode
from plumage.data.depth import LEARN
from plumage.data.store import Cache, open_store
from plumage.data.view import view, views


def draw(file, size=(640, 400)):
    """A picture with an edge in each direction, smooth elsewhere, so that a shift of its part would be seen."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    channels = [np.sin(9 * x + 3 * y), np.cos(11 * y), (x > 0.4) * 2.0 - 1]
    Image.fromarray(np.stack([127 + 120 * each for each in channels], axis=-1).astype(np.uint8)).save(file)


def seen(store, rows, crop):
    """What evaluation sees."""
    return center_crop(torch.from_numpy(store.read(rows)), crop).numpy()


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size", [(640, 400), (300, 500), (30, 20)])
def test_the_part_is_what_evaluation_sees(tmp_path, fit, size):
    draw(tmp_path / "a.png", size)
    store = open_store(tmp_path, ["a.png"], Square(64, fit), Cache(tmp_path / "cache", workers=1))
    (large,), (small,) = views(store, np.array([0]), 56, 224), seen(store, np.array([0]), 56)
    assert np.array_equal(large, decode(tmp_path / "a.png", Square(256, fit)).pixels[16:240, 16:240])
    again = np.asarray(Image.fromarray(large).resize((56, 56), Image.Resampling.BOX))
    assert np.abs(again.astype(int) - small).mean() < 4
    assert np.abs(np.roll(again, 2, axis=1).astype(int) - small).mean() > 5  # a shift would be seen


@pytest.mark.parametrize("cached", [True, False])
def test_what_is_large_enough_is_the_stores_own(tmp_path, cached):
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png", (500, 500))
    cache = Cache(tmp_path / "cache", cached, workers=1)
    store = open_store(tmp_path, ["a.png", "b.png"], Square(256), cache)
    rows = np.array([1, 0])
    assert np.array_equal(views(store, rows, 224, 224), seen(store, rows, 224))
    halved = views(store, rows, 224, 112)
    assert halved.shape == (2, 112, 112, 3)
    assert np.abs(halved[:, 8:-8, 8:-8].astype(int) - seen(store, rows, 224)[:, 16:-16:2, 16:-16:2]).mean() < 3


def test_of_files_that_are_gone_or_broken_the_store_is_enlarged(tmp_path):
    for name in "abc":
        draw(tmp_path / f"{name}.png", (200 + 50 * ord(name) % 97, 300))
    store = open_store(tmp_path, ["a.png", "b.png", "c.png"], Square(40), Cache(tmp_path / "cache", workers=2))
    before = views(store, np.arange(3), 32, 224)
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").write_bytes(b"no picture")
    after = views(store, np.array([2, 1, 0]), 32, 224)[::-1]
    assert np.array_equal(after[2], before[2])
    for one, own in zip(after[:2], seen(store, np.arange(2), 32), strict=True):
        assert np.array_equal(one, Image.fromarray(own).resize((224, 224)))
    assert views(store, np.empty(0, np.int64), 32, 224).shape == (0, 224, 224, 3)


def test_levels_of_deep_pictures_are_the_runs(tmp_path):
    """Dark and light of a data set from 1000 to 3000: alone, each would be taken from black to white."""
    for name, value in (("a", 1000), ("b", 2000), ("c", 3000)):
        Image.fromarray(np.full((50, 60), value, np.uint16)).save(tmp_path / f"{name}.png")
    paths = ["a.png", "b.png", "c.png"]
    store = open_store(tmp_path, paths, Square(40, levels=LEARN), Cache(tmp_path / "cache", workers=1))
    assert [int(one.mean().round()) for one in views(store, np.arange(3), 32, 224)] == [0, 128, 255]


@pytest.mark.parametrize(("crop", "side"), [(8, 224), (1, 224), (500, 448)])
def test_a_small_part_of_a_large_square_takes_little_memory(tmp_path, monkeypatch, crop, side):
    draw(tmp_path / "a.png", (900, 900))
    asked = []

    def note(file, square):
        asked.append(square.side)
        return decode(file, square)

    monkeypatch.setattr(module, "decode_or_reason", note)
    shown = view(tmp_path / "a.png", Square(512), crop, side)
    assert shown.shape == (side, side, 3)
    assert asked == [{8: 2048, 1: 2048, 500: 459}[crop]]
    small = decode(tmp_path / "a.png", Square(512)).pixels
    start = round((512 - crop) / 2)
    expected = small[start : start + crop, start : start + crop].mean((0, 1))
    assert np.abs(shown.mean((0, 1)) - expected).max() < 4
