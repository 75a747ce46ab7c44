import errno
import os
import stat
import threading
from contextlib import nullcontext

import pytest
import torch
from ignite.engine import Engine

import plumage.engine.checkpoint
from plumage.engine.checkpoint import CheckpointWriter, TrainingState, copy_checkpoint, is_whole, save_checkpoint
from plumage.errors import UserError
from plumage.recipe import Recipe


def load(file):
    return torch.load(file, weights_only=True)


def save(file, content):
    save_checkpoint(file, content, file.with_name("previous.pt"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_save_replaces_the_one_before_and_keeps_it(tmp_path):
    for value in (1, 2, 3):
        save(tmp_path / "last.pt", {"value": value, "tensor": torch.arange(3)})
        assert load(tmp_path / "last.pt")["value"] == value
        assert value == 1 or load(tmp_path / "previous.pt")["value"] == value - 1
    assert names(tmp_path) == ["last.pt", "previous.pt"]


def test_at_every_instant_there_is_a_whole_checkpoint_and_each_name_is_on_the_disk_before_the_next(
    tmp_path, monkeypatch
):
    file, previous, done = tmp_path / "last.pt", tmp_path / "previous.pt", []
    for value in (1, 2):
        save(file, {"value": value})

    def watched(what, function):
        def call(*args, **options):
            assert {is_whole(file), is_whole(previous)} == {True}
            result = function(*args, **options)
            done.append(what(*args))
            return result

        return call

    def synced(handle):
        return "sync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "sync file"

    monkeypatch.setattr(os, "fsync", watched(synced, os.fsync))
    monkeypatch.setattr(type(file), "replace", watched(lambda path, target: target.name, type(file).replace))
    save(file, {"value": 3})
    assert done == ["sync file", "previous.pt", "sync folder", "last.pt", "sync folder"]
    assert (load(file)["value"], load(previous)["value"]) == (3, 2)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")]
)
def test_a_save_that_fails_leaves_the_one_before(tmp_path, monkeypatch, error):
    file = tmp_path / "last.pt"
    save(file, {"value": 1})

    def fail(content, handle):
        handle.write(b"half")
        raise error

    monkeypatch.setattr(plumage.engine.checkpoint.torch, "save", fail)
    with pytest.raises(UserError, match=r"last\.pt could not be saved"):
        save(file, {"value": 2})
    monkeypatch.undo()
    assert load(file)["value"] == 1
    assert names(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_disk_that_cannot_flush_folders_will_do_and_one_that_fails_will_not(tmp_path, monkeypatch, code):
    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    with nullcontext() if code == errno.EINVAL else pytest.raises(UserError, match="could not be saved"):
        save(tmp_path / "last.pt", {"value": 1})
    assert load(tmp_path / "last.pt")["value"] == 1


@pytest.mark.parametrize("links", [True, False])
def test_best_stays_what_last_was(tmp_path, monkeypatch, links):
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    if not links:  # as on FAT, or a mounted cloud disk

        def refuse(self, target):
            raise OSError("Operation not permitted")

        monkeypatch.setattr(type(last), "hardlink_to", refuse)
    for value in (1, 2):
        save(last, {"value": value})
        copy_checkpoint(last, best)
        copy_checkpoint(last, best)
    save(last, {"value": 3})
    assert (load(best)["value"], load(last)["value"]) == (2, 3)
    assert names(tmp_path) == ["best.pt", "last.pt", "previous.pt"]


@pytest.mark.parametrize("damage", ["none", "a byte", "half", "empty", "gone", "text"])
def test_damage_of_the_content_is_noticed(tmp_path, damage):
    file = tmp_path / "last.pt"
    save(file, {"tensor": torch.arange(3000)})
    content = bytearray(file.read_bytes())
    if damage == "a byte":
        content[len(content) // 2] ^= 1
    else:
        content = {"half": content[: len(content) // 2], "empty": b"", "text": b"text"}.get(damage, content)
    file.write_bytes(content)
    if damage == "gone":
        file.unlink()
    assert is_whole(file) == (damage == "none")


def test_what_is_written_in_the_background_is_what_was_and_its_errors_surface(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    state = TrainingState(Engine(lambda *_: None), model, None, optimizer, scaler, {}, ["a", "b"], Recipe())
    content = state.content(epoch_done=False)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    assert torch.equal(content["model"]["weight"], before)

    def fail():
        raise UserError("the disk is full")

    def write(then):
        with CheckpointWriter() as writer:
            writer.submit(fail)
            then(writer)

    gone_on, found = threading.Event(), []
    with CheckpointWriter() as writer:
        writer.submit(lambda: found.append(gone_on.wait(20)))
        gone_on.set()
    assert found == [True]

    for then in (lambda writer: writer.submit(list), lambda writer: writer.wait(), lambda writer: None):
        with pytest.raises(UserError, match="full"):
            write(then)


def test_all_that_training_consists_of_is_restored(tmp_path):
    def make(seed, fused):
        torch.manual_seed(seed)
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**seed)
        trainer = Engine(lambda *_: None)
        return TrainingState(trainer, model, torch.nn.Linear(2, 2), optimizer, scaler, {}, ["a", "b"], Recipe())

    one, other = make(1, fused=False), make(2, fused=True)
    one.scaler.scale(one.model(torch.ones(1, 2)).sum()).backward()
    one.scaler.step(one.optimizer)
    one.scaler.update(3.0)  # as after an overflow
    one.trainer.run([0, 0], max_epochs=3)
    save(tmp_path / "last.pt", one.content(epoch_done=True))
    other.restore(load(tmp_path / "last.pt"))
    assert other.scaler.get_scale() == 3
    assert other.trainer.state.iteration == 6
    assert other.optimizer.param_groups[0]["fused"]  # as its device has it, not as the other's had
    for a, b in ((one.model, other.model), (one.average, other.average)):
        assert torch.equal(a.weight, b.weight)
    momentum = [state.optimizer.state_dict()["state"][0]["momentum_buffer"] for state in (one, other)]
    assert torch.equal(*momentum)
    assert momentum[0].abs().sum() > 0
