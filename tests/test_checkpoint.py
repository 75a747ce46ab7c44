import pytest
import torch

import engine.checkpoint
from engine.checkpoint import copy_checkpoint, save_checkpoint
from errors import UserError


def load(file):
    return torch.load(file, weights_only=True)


def test_a_save_replaces_the_one_before(tmp_path):
    for value in (1, 2):
        save_checkpoint(tmp_path / "last.pt", {"value": value, "tensor": torch.arange(3)})
        assert load(tmp_path / "last.pt")["value"] == value
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")]
)
def test_a_save_that_fails_leaves_the_one_before(tmp_path, monkeypatch, error):
    file = tmp_path / "last.pt"
    save_checkpoint(file, {"value": 1})

    def fail(content, handle):
        handle.write(b"half")
        raise error

    monkeypatch.setattr(engine.checkpoint.torch, "save", fail)
    with pytest.raises(UserError, match=r"last\.pt could not be saved"):
        save_checkpoint(file, {"value": 2})
    monkeypatch.undo()
    assert load(file)["value"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("links", [True, False])
def test_best_stays_what_last_was(tmp_path, monkeypatch, links):
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    if not links:  # as on FAT, or a mounted cloud disk

        def refuse(self, target):
            raise OSError("Operation not permitted")

        monkeypatch.setattr(type(last), "hardlink_to", refuse)
    for value in (1, 2):
        save_checkpoint(last, {"value": value})
        copy_checkpoint(last, best)
        copy_checkpoint(last, best)
    save_checkpoint(last, {"value": 3})
    assert (load(best)["value"], load(last)["value"]) == (2, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "last.pt"]
