from pathlib import Path

import numpy as np
import pytest
import torch

from plumage.data.decode import Square
from plumage.data.feed import reader, resident
from plumage.data.pixels import PixelFile
from plumage.data.store import Store

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
PIXELS = np.random.default_rng(0).integers(0, 256, (1500, 4, 4, 3), np.uint8)
ROWS = np.array([1499, 3, 1024, 3])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "pixels").write_bytes(PIXELS.tobytes())
    file, rows = PixelFile(tmp_path / "pixels", 1500, 4), np.arange(1500)
    digests, hashes, extremes = (
        np.zeros((1500, 16), np.uint8),
        np.zeros((1500, 4), np.uint64),
        np.full((1500, 2), np.nan),
    )
    return Store(Path(), [""] * 1500, Square(4), 1, rows, digests, hashes, extremes, [], file, rows)


@pytest.mark.parametrize("device", DEVICES)
def test_rows_come_as_they_are_stored(store, device):
    read = reader(store, torch.device(device))(ROWS)
    assert read.dtype == torch.uint8
    assert read.device.type == device
    assert np.array_equal(read.cpu().numpy(), PIXELS[ROWS])


@pytest.mark.parametrize("device", DEVICES)
def test_a_resident_copy_is_whole(store, device):
    read = resident(store, torch.device(device))
    assert np.array_equal(read(np.arange(1500)).cpu().numpy(), PIXELS)
    assert np.array_equal(read(ROWS).cpu().numpy(), PIXELS[ROWS])


@pytest.mark.parametrize("share", [2.9, 3.1])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pictures_move_to_the_gpu_where_a_third_of_its_free_memory_holds_them(store, monkeypatch, caplog, share):
    caplog.set_level("INFO")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(share * PIXELS.nbytes), 0))
    read = reader(store, torch.device("cuda"))
    assert ("all pictures move" in caplog.text) == (share > 3)
    assert np.array_equal(read(ROWS).cpu().numpy(), PIXELS[ROWS])
