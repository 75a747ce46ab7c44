import errno
import os
import stat
import threading
from contextlib import nullcontext

import pytest
import torch
from ignite.engine import Engine
from ignite.metrics import Loss

import plumage.engine.checkpoint
from plumage.engine.checkpoint import Saver, TrainingState, copy_checkpoint, is_whole, save_checkpoint
from plumage.errors import UserError
from plumage.hardware.device import Machine
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir


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
    assert done == ["sync file", "previous.pt", "sync folder", "sync file", "last.pt", "sync folder"]
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


FOUR = (torch.tensor(1.0), torch.zeros(4))  # the mean loss of as many pictures


def state_of(model, average, optimizer, scaler):
    trainer, machine = Engine(lambda *_: None), Machine(torch.device("cpu"), "fp32", compile=False)
    metrics = {"loss": Loss(lambda loss, labels: loss)}
    return TrainingState(trainer, model, average, optimizer, scaler, metrics, ["a", "b"], 4, Recipe(), machine)


def test_what_is_written_in_the_background_is_what_was_and_its_errors_surface(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    state = state_of(model, None, optimizer, scaler)
    content = state.content(epoch_done=False)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    assert torch.equal(content["model"]["weight"], before)

    state.metrics["loss"].update(FOUR)
    gone_on, written = threading.Event(), []

    def wait(run, content, best):
        written.append((gone_on.wait(20), content["epoch_done"], best))

    with monkeypatch.context() as patch:
        patch.setattr(plumage.engine.checkpoint, "write_checkpoint", wait)
        with Saver(state, RunDir(tmp_path), RunDir(tmp_path).history) as saver:
            saver.save(epoch_done=True, best=True)
            gone_on.set()
        assert written == [(True, True, True)]

    def fail(run, content, best):
        raise UserError("the disk is full")

    def save_and(then):
        with Saver(state, RunDir(tmp_path), RunDir(tmp_path).history) as saver:
            saver.save()
            then(saver)

    monkeypatch.setattr(plumage.engine.checkpoint, "write_checkpoint", fail)
    for then in (lambda saver: saver.save(), lambda saver: saver.wait(), lambda saver: None):
        with pytest.raises(UserError, match="full"):
            save_and(then)


def test_all_that_training_consists_of_is_restored(tmp_path):
    def make(seed, fused):
        torch.manual_seed(seed)
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, fused=fused)
        for parameter in model.parameters():  # as `build` makes them
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**seed)
        return state_of(model, torch.nn.Linear(2, 2), optimizer, scaler)

    one, other = make(1, fused=False), make(2, fused=True)
    one.scaler.scale(one.model(torch.ones(1, 2)).sum()).backward()
    one.scaler.step(one.optimizer)
    one.scaler.update(3.0)  # as after an overflow
    one.metrics["loss"].update(FOUR)
    one.trainer.run([0], max_epochs=3)
    save(tmp_path / "last.pt", one.content(True, '{"epoch": 2, "val_accuracy": 0.5}\n'))
    reached = other.restore(load(tmp_path / "last.pt"), "it")
    assert reached == (3, 3, False, [{"epoch": 2, "val_accuracy": 0.5}])
    assert other.scaler.get_scale() == 3
    assert other.trainer.state.iteration == 3
    assert other.metrics["loss"].compute() == 1
    assert other.optimizer.param_groups[0]["fused"]  # as its device has it, not as the other's had
    for a, b in ((one.model, other.model), (one.average, other.average)):
        assert torch.equal(a.weight, b.weight)
    momentum = [state.optimizer.state_dict()["state"][0]["momentum_buffer"] for state in (one, other)]
    assert torch.equal(*momentum)
    assert momentum[0].abs().sum() > 0
