"""train() as a whole, with a network of no size: what a stop anywhere costs."""

import errno
import json
import math
import os
import shutil
import tracemalloc
import zipfile
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from PIL import Image
from torch import nn

import plumage.engine.train
import plumage.models.weights
from plumage.data.augment import Transform
from plumage.data.loader import Batch, Shard
from plumage.data.store import Cache
from plumage.engine.checkpoint import is_whole
from plumage.engine.evaluate import evaluate
from plumage.engine.signals import StopSignals
from plumage.engine.train import train
from plumage.errors import Diverged, Stopped, UserError
from plumage.files import write_json
from plumage.hardware.device import Machine
from plumage.recipe import Recipe
from plumage.rundir.evaluation import read_evaluation
from plumage.rundir.folder import RunDir


class TinyNetwork(nn.Module):
    def __init__(self, name: str, classes: int, zero_gamma: bool = False):
        super().__init__()
        width = 8 if name == "resnet50" else 6
        norm = nn.BatchNorm2d(width)
        nn.init.constant_(norm.weight, 1 - zero_gamma)
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 2), norm)
        self.layer4, self.pool = nn.ReLU(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(width, classes)

    def forward(self, images):
        return self.fc(self.pool(self.layer4(self.body(images))))


OPTIONS = {"weights": "none", "resize": 20, "crop": 16, "batch_size": 8, "epochs": 3, "lr": 0.1, "val_fraction": 0.4}


class StopAt(StopSignals):
    """As if a signal had come before the n-th look."""

    def __init__(self, look: int = 10**9):
        super().__init__()
        self.look = look

    @property
    def received(self):
        self.look -= 1
        return 15 if self.look <= 0 else None

    @received.setter
    def received(self, value):
        assert value is None


@pytest.fixture
def tiny(monkeypatch, tmp_path, photos):
    """Machine and cache, and a function that trains into a folder and stops at the n-th look at the signals."""
    for module in (plumage.engine.prepare, plumage.models.weights):
        monkeypatch.setattr(module, "build_model", TinyNetwork)
    machine, cache = Machine(torch.device("cpu"), "fp32", compile=False), Cache(tmp_path / "cache", workers=1)

    def call(folder: Path, look: int = 10**9, **options) -> RunDir:
        run = RunDir(folder)
        recipe = Recipe.create({"data": str(photos), **OPTIONS, **options})
        train(recipe, run, machine, cache, StopAt(look))
        return run

    return (machine, cache), call


@pytest.fixture
def tricks(tiny, tmp_path):
    """Every option that has a state or a random draw of its own, with the files that they need."""
    torch.manual_seed(5)
    torch.save(TinyNetwork("resnet50", 3).state_dict(), tmp_path / "weights.pt")
    tiny[1](tmp_path / "teacher", epochs=1)
    return {
        "weights": str(tmp_path / "weights.pt"),
        "augment": "paper",
        "balance": 0.5,
        "mixup": 0.2,
        "accumulate": 2,
        "teacher": str(tmp_path / "teacher"),
        "bias_decay": False,
        "head_lr_multiplier": 2.0,
        "freeze_backbone_epochs": 1,
        "clip_grad_norm": 0.5,
        "ema": 0.8,
        "early_stopping": 2,
    }


def result(run: RunDir):
    """Everything that must not depend on stops: history without times, checkpoints' content."""
    rows = [
        {key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in run.history
    ]
    contents = [torch.load(file, weights_only=True) for file in (run.last, run.best)]
    for content in contents:  # whose times differ: it is the file's
        carried = bytes(content.pop("history").numpy()).decode()
        assert (run.path / "history.jsonl").read_text(encoding="utf-8").startswith(carried)
        assert carried.count("\n") == content["trainer"]["iteration"] // content["trainer"]["epoch_length"]
    return rows, *contents


def flat(content):
    if isinstance(content, dict):
        return [item for key, value in content.items() for item in (key, *flat(value))]
    if isinstance(content, (list, tuple)):
        return [item for value in content for item in flat(value)]
    return [content.tolist() if isinstance(content, torch.Tensor) else content]


# An epoch looks at the signals after each of its 3 steps (18 pictures in eights) and of its 2 validation batches.
@pytest.mark.parametrize(
    "looks", [(1,), (2,), (3,), (4,), (5,), (6,), (8,), (9,), (10,), (13,), (14,), (15,), (3, 1, 1, 4, 2), (4, 1)]
)
@pytest.mark.parametrize("with_tricks", [False, True])
def test_stopped_anywhere_and_resumed_it_ends_as_if_never_stopped(tiny, tricks, tmp_path, looks, with_tricks):
    _, call = tiny
    options = tricks if with_tricks else {}
    whole = call(tmp_path / "whole", **options)
    for look in looks:
        with pytest.raises(Stopped):
            call(tmp_path / "stopped", look, **options)
    stopped = call(tmp_path / "stopped", **options)
    assert flat(result(stopped)) == flat(result(whole))


def test_compiled_it_is_the_same_training_and_the_same_files(tiny, tricks, tmp_path, monkeypatch):
    """By the backend that changes no number."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    (machine, cache), call = tiny
    whole = call(tmp_path / "whole", **tricks)
    compiled = RunDir(tmp_path / "compiled")
    for look in (7, 10**9):
        with nullcontext() if look > 7 else pytest.raises(Stopped):
            train(whole.recipe, compiled, replace(machine, compile=True), cache, StopAt(look))
    assert flat(result(compiled)) == flat(result(whole))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."),
        MemoryError("Unable to allocate 7.45 GiB for an array"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_one_line_with_the_way_out(tiny, tmp_path, monkeypatch, error):
    def run_out(self, *_):
        raise error

    monkeypatch.setattr(plumage.engine.train.Transform, "random", run_out)
    with pytest.raises(UserError, match=r"--batch-size \d+: cpu has too little memory; .* --accumulate 2"):
        tiny[1](tmp_path / "run")
    message = "can't start new thread"  # of which smaller batches make no more
    error = RuntimeError(message)
    with pytest.raises(RuntimeError, match=message):
        tiny[1](tmp_path / "other")


@pytest.mark.parametrize("step", [3, 4, 5, 7])  # three an epoch, from 0
def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(tiny, tmp_path, monkeypatch, step):
    _, call = tiny
    whole, random = call(tmp_path / "whole"), Transform.random

    def ruined(self, images, labels, iteration, shard):
        views, targets = random(self, images, labels, iteration, shard)
        return (views * math.nan if iteration == step else views), targets

    with monkeypatch.context() as patch:
        patch.setattr(Transform, "random", ruined)
        with pytest.raises(Diverged, match=f"loss is nan at iteration {step + 1}, at a rate of .*--lr"):
            call(tmp_path / "ruined")
    run = RunDir(tmp_path / "ruined")
    assert torch.load(run.last)["trainer"]["iteration"] == 3 * (step // 3)
    assert len(run.history) == step // 3
    assert flat(result(call(run.path))) == flat(result(whole))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_disk_that_is_full_at_a_save_costs_what_came_after_the_one_before(tiny, tmp_path, monkeypatch, number):
    _, call = tiny
    whole, save, saves = call(tmp_path / "whole"), torch.save, 0

    def fill(content, handle):
        nonlocal saves
        saves += 1
        if saves == number:
            handle.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, handle)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fill)
        with pytest.raises(UserError, match=r"last\.pt could not be saved .*No space left"):
            call(tmp_path / "stopped")
    run = RunDir(tmp_path / "stopped")
    assert [is_whole(file) for file in run.path.glob("checkpoints/*")] == [True] * [0, 2, 3][number - 1]
    assert flat(result(call(run.path))) == flat(result(whole))


@pytest.mark.parametrize("old", [False, True])
def test_pictures_may_move_between_a_stop_and_its_resume(tiny, tmp_path, photos, caplog, old):
    _, call = tiny
    whole, moved = call(tmp_path / "whole"), tmp_path / "another disk"
    with pytest.raises(Stopped):
        call(tmp_path / "stopped", 7)
    run = RunDir(tmp_path / "stopped")
    if old:
        run.digests.unlink()  # as a run of an older version
    photos.rename(moved)
    with pytest.raises(UserError, match=r"my phötos: the pictures of .* are not there; if they have moved, .*--data"):
        call(run.path)
    call(run.path, data=str(moved))
    assert without_data(run) == without_data(whole)
    assert run.recipe == replace(whole.recipe, data=str(moved))
    assert "goes on with" not in caplog.text


def without_data(run):
    rows, *checkpoints = result(run)
    return rows, *(flat({**content, "recipe": {**content["recipe"], "data": ""}}) for content in checkpoints)


def test_other_pictures_under_the_same_names_have_not_moved(tiny, tmp_path, photos):
    _, call = tiny
    with pytest.raises(Stopped):
        call(tmp_path / "run", 7)
    others = tmp_path / "others"
    shutil.copytree(photos, others)
    Image.new("RGB", (40, 50), "white").save(others / "red apple" / "3.jpg")
    with pytest.raises(UserError, match=r"1 pictures are not what they were when .* began: red apple/3\.jpg; give"):
        call(tmp_path / "run", data=str(others))
    (others / "red apple" / "3.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of its pictures are not in .*others: red apple/3\.jpg; if they have moved"):
        call(tmp_path / "run", data=str(others))
    assert RunDir(tmp_path / "run").recipe.data == str(photos)


def test_a_resume_that_cannot_give_the_same_bits_says_why_and_keeps_it(tiny, tmp_path, photos, caplog):
    _, call = tiny
    with pytest.raises(Stopped):
        call(tmp_path / "run", 3)
    run, threads = RunDir(tmp_path / "run"), torch.get_num_threads()
    began = run.environment

    def said():
        lines = [record.message for record in caplog.records if record.levelname == "WARNING"]
        caplog.clear()
        return lines

    said()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads + 1)
        with pytest.raises(Stopped):
            call(run.path, 2)
    why = "it ends close to where it would have, but not with the same bits"
    assert said() == [f"{run.path}: goes on with threads {threads + 1} (was {threads}): {why}"]
    Image.new("RGB", (40, 50), "white").save(photos / "red apple" / "3.jpg")
    call(run.path)
    assert said() == [
        f"--data {photos}: 1 pictures are not what they were when {run.path} began: red apple/3.jpg",
        f"{run.path}: goes on with 1 pictures changed: {why}",
    ]
    kept = run.environment
    reasons = [line.partition(": ")[2] for line in kept.pop("resumed")]
    assert reasons == [f"threads {threads + 1} (was {threads})", "1 pictures changed"]
    assert kept == began


@pytest.mark.parametrize("content", ["", "[]", "{", '{"resumed": 5, "packages": 7, "precision": []}'])
def test_a_resume_needs_no_environment(tiny, tmp_path, caplog, content):
    _, call = tiny
    whole = call(tmp_path / "whole")
    with pytest.raises(Stopped):
        call(tmp_path / "run", 3)
    (tmp_path / "run" / "environment.json").write_text(content)
    assert flat(result(call(tmp_path / "run"))) == flat(result(whole))
    assert "run: goes on with " in caplog.text
    assert len(RunDir(tmp_path / "run").environment["resumed"]) == 1


def test_epochs_without_a_checkpoint_are_trained_again_and_that_is_said(tiny, tmp_path, caplog):
    _, call = tiny
    run = call(tmp_path / "run")
    whole = flat(result(run))
    shutil.rmtree(run.path / "checkpoints")
    call(run.path)
    assert f"{run.path}: no checkpoint knows of its 3 epochs, which are trained again" in caplog.messages
    assert flat(result(run)) == whole


def test_a_finished_run_resumed_does_nothing_and_says_so(tiny, tmp_path, caplog):
    _, call = tiny
    run = call(tmp_path / "run")
    before, history = flat(result(run)), (run.path / "history.jsonl").read_text()
    caplog.set_level("INFO", "plumage")
    call(tmp_path / "run")
    assert flat(result(run)) == before
    assert (run.path / "history.jsonl").read_text() == history
    assert "finished; nothing is left to do" in caplog.text


def test_killed_between_history_and_checkpoint_the_epoch_is_done_again(tiny, tmp_path):
    _, call = tiny
    whole = call(tmp_path / "whole")
    with pytest.raises(Stopped):
        call(tmp_path / "killed", 7)  # in the second epoch
    run = RunDir(tmp_path / "killed")
    run.history.add({**run.history[0], "epoch": 2, "val_accuracy": 1.0})
    assert flat(result(call(tmp_path / "killed"))) == flat(result(whole))


def test_killed_before_the_first_checkpoint_it_begins_again(tiny, tmp_path):
    _, call = tiny
    whole = call(tmp_path / "whole")
    run = call(tmp_path / "killed")
    for file in (run.last, run.previous, run.best):
        file.unlink()
    assert flat(result(call(tmp_path / "killed"))) == flat(result(whole))


def test_without_its_last_checkpoint_a_run_is_not_begun_again(tiny, tmp_path):
    _, call = tiny
    run = call(tmp_path / "run")
    run.history.keep(2)  # of three
    best, history = run.best.read_bytes(), run.history
    run.last.unlink()
    run.previous.unlink()
    with pytest.raises(UserError, match=r"last\.pt is gone"):
        call(tmp_path / "run")
    assert (run.best.read_bytes(), run.history) == (best, history)


def test_a_damaged_checkpoint_costs_what_came_after_the_one_before_it(tiny, tricks, tmp_path, caplog):
    _, call = tiny
    whole = call(tmp_path / "whole", **tricks)
    with pytest.raises(Stopped):
        call(tmp_path / "damaged", 8, **tricks)  # in the second epoch
    run = RunDir(tmp_path / "damaged")
    run.last.write_bytes(run.last.read_bytes()[:-1000])
    with pytest.raises(Stopped):
        call(run.path, 3, **tricks)
    assert is_whole(run.previous)  # and not the damaged one
    assert flat(result(call(run.path, **tricks))) == flat(result(whole))
    assert "last.pt is damaged" in caplog.text
    assert "previous.pt" in caplog.text


def test_a_run_whose_checkpoints_are_all_damaged_is_left_as_it_is(tiny, tmp_path):
    _, call = tiny
    run = call(tmp_path / "run")
    for file in (run.last, run.previous):
        file.write_bytes(file.read_bytes()[:1000])
    history = run.history
    with pytest.raises(UserError, match=r"last\.pt is no checkpoint"):
        call(tmp_path / "run")
    assert run.history == history


LOSSES = {
    "the last row": lambda text: text[: text.rstrip("\n").rindex("\n") + 1],
    "the first row": lambda text: text[text.index("\n") + 1 :],
    "all": lambda text: "",
    "the file": None,
    "a number": lambda text: text.replace('"val_accuracy": ', '"val_accuracy": 1', 1),
    "a line": lambda text: "\0" * 99 + "\n" + text[text.index("\n") + 1 :],
    "half a line": lambda text: text[:-20],
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("look", [12, 10**9])  # inside the third epoch of three, and finished
def test_what_the_history_has_lost_is_written_again_and_said(tiny, tmp_path, caplog, loss, look):
    _, call = tiny
    whole = call(tmp_path / "whole")
    with nullcontext() if look > 12 else pytest.raises(Stopped):
        call(tmp_path / "run", look)
    run = RunDir(tmp_path / "run")
    history = run.path / "history.jsonl"
    text = history.read_text()
    history.write_text(LOSSES[loss](text)) if LOSSES[loss] else history.unlink()
    call(run.path)
    assert flat(result(run)) == flat(result(whole))
    assert history.read_text().startswith(text)
    [line] = [record.message for record in caplog.records if "history.jsonl" in record.message]
    assert f"{history} was damaged: its {text.count(chr(10))} epochs are written again from {run.last}" in line


def change_checkpoint(file, change):
    content = torch.load(file)
    change(content)
    file.unlink()  # the best epoch's checkpoint may be the last one's too, under both names
    torch.save(content, file)


def test_what_an_old_checkpoint_cannot_bring_back_is_said(tiny, tmp_path, caplog):
    _, call = tiny
    whole = call(tmp_path / "whole")
    with pytest.raises(Stopped):
        call(tmp_path / "run", 12)
    run = RunDir(tmp_path / "run")
    for file in (run.last, run.best, run.previous):
        change_checkpoint(file, lambda content: content.pop("history"))
    history = run.path / "history.jsonl"
    history.write_text(LOSSES["the first row"](history.read_text()))
    call(run.path)
    assert [row["epoch"] for row in run.history] == [2, 3]
    assert f"history.jsonl has lost 1 of 2 epochs, which {run.last} does not know either" in caplog.text
    assert flat(torch.load(run.last)["model"]) == flat(torch.load(whole.last)["model"])


def test_a_run_of_before_the_history_was_in_its_checkpoints_goes_on_to_the_same_bits(tiny, tricks, tmp_path, caplog):
    _, call = tiny
    whole = call(tmp_path / "whole", **tricks)
    with pytest.raises(Stopped):
        call(tmp_path / "run", 8, **tricks)
    run = RunDir(tmp_path / "run")
    change_checkpoint(run.last, lambda content: content.pop("history"))
    caplog.clear()
    assert flat(result(call(run.path, **tricks))) == flat(result(whole))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("what", ["gone", "another", "damaged", "gone for good"])
def test_best_is_the_best_epochs_after_a_power_cut_too(tiny, tmp_path, caplog, what):
    """Between last.pt and best.pt there is an instant, and a disk may lose what it has not flushed."""
    _, call = tiny
    with pytest.raises(Stopped):
        call(tmp_path / "run", 7)  # in the second epoch
    run = RunDir(tmp_path / "run")
    best = torch.load(run.best)
    assert torch.load(run.previous)["trainer"]["iteration"] == best["trainer"]["iteration"] == 3
    whole = run.best.read_bytes()
    run.best.unlink()  # which may be another name of previous.pt
    if what == "damaged":
        run.best.write_bytes(whole[:-900])
    elif what == "another":
        shutil.copy(run.last, run.best)
    elif what == "gone for good":
        run.previous.unlink()
    with pytest.raises(Stopped):
        call(run.path, 2)
    if what == "gone for good":
        assert f"{run.best} is not of epoch 1, the best one, whose checkpoint is lost" in caplog.text
    else:
        assert flat(torch.load(run.best)) == flat(best)
        assert "lost" not in caplog.text


def test_a_row_is_on_the_disk_before_its_checkpoint_and_a_run_before_its_first_step(tiny, tmp_path, monkeypatch):
    _, call = tiny
    flushed, fsync = [], os.fsync

    def watched(handle):
        flushed.append(Path(f"/proc/self/fd/{handle}").readlink())
        fsync(handle)

    replace = Path.replace
    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(Path, "replace", lambda path, to: (flushed.append(f"{to.name} written"), replace(path, to)))
    run = call(tmp_path / "new" / "run", epochs=1)
    places = {name: flushed.index(name) for name in ("recipe.json written", "last.pt written")}
    for name in ("split.csv", "skipped.csv", "classes.json", "environment.json"):
        assert flushed.index(f"{name} written") < places["recipe.json written"]
    for folder in (run.path, run.path.parent, tmp_path):
        assert folder in flushed[: places["recipe.json written"]]
    assert run.path in flushed[places["recipe.json written"] :]  # and that is where recipe.json is
    row = flushed.index(run.path / "history.jsonl")
    assert places["recipe.json written"] < row < places["last.pt written"]
    assert run.path in flushed[row : places["last.pt written"]]  # where the new file is


def test_a_checkpoint_of_other_classes_is_not_gone_on_from(tiny, tmp_path):
    _, call = tiny
    run = call(tmp_path / "run")
    run.history.keep(2)  # of three
    write_json(run.path / "classes.json", run.classes[::-1])
    with pytest.raises(UserError, match="other classes"):
        call(tmp_path / "run")


def test_no_library_can_swallow_a_stop():
    assert not issubclass(Stopped, Exception)


@pytest.mark.parametrize("checkpoint", ["best", "last"])
@pytest.mark.parametrize("with_tricks", [False, True])
def test_evaluation_gives_the_very_numbers_of_the_history(tiny, tricks, tmp_path, checkpoint, with_tricks):
    machine, call = tiny
    run = call(tmp_path / "run", **tricks if with_tricks else {})
    row = run.history.best if checkpoint == "best" else run.history[-1]
    numbers = evaluate(run, *machine, checkpoint).numbers
    recorded = {name.removeprefix("val_"): value for name, value in row.items() if name.startswith("val_")}
    assert {name: numbers[name] for name in recorded} == recorded
    assert len(recorded) == 6
    assert {**numbers, **json.loads((run.path / "eval-val.json").read_text())} == json.loads(
        (run.path / "eval-val.json").read_text()
    )


def test_an_evaluation_is_labelled_by_what_was_loaded_whatever_bears_its_name_later(tiny, tmp_path, monkeypatch):
    machine, call = tiny
    run = call(tmp_path / "run")
    before = torch.load(run.best)["trainer"]["iteration"]
    fingerprint = plumage.engine.evaluate.fingerprint

    def replace_it(model):
        change_checkpoint(run.best, lambda content: content["trainer"].update(iteration=8))
        return fingerprint(model)

    monkeypatch.setattr(plumage.engine.evaluate, "fingerprint", replace_it)
    evaluated = evaluate(run, *machine, "best")
    assert evaluated.iteration == before
    assert json.loads((run.path / "eval-val.json").read_text())["iteration"] == before


def test_two_halves_of_two_evaluations_are_none_and_one_of_before_they_were_named_is(tiny, tmp_path):
    machine, call = tiny
    run = call(tmp_path / "run")
    file, archive = run.path / "eval-val.json", run.path / "eval-val.npz"
    pictures = len(run.split.read_text().splitlines()) - 1
    evaluate(run, *machine, "best")
    first = file.read_text()
    assert read_evaluation(run, 3, pictures).accuracy == json.loads(first)["accuracy"]
    evaluate(run, *machine, "last")
    second = file.read_text()
    for other in (first, second.replace('"id"', '"no"')):
        file.write_text(other)
        with pytest.raises(UserError, match=r"another evaluation than eval-val.json\): python main.py eval .* anew"):
            read_evaluation(run, 3, pictures)
    with np.load(archive) as content:
        np.savez(archive, **{name: content[name] for name in content if name != "id"})
    assert read_evaluation(run, 3, pictures).iteration == 9
    file.write_text(second)
    with pytest.raises(UserError, match="another evaluation"):
        read_evaluation(run, 3, pictures)


@pytest.mark.parametrize("kind", ["a bomb", "a member of its own", "more classes"])
def test_an_evaluation_unpacks_to_no_more_than_its_run_has(tiny, tmp_path, monkeypatch, kind):
    machine, call = tiny
    run = call(tmp_path / "run")
    evaluate(run, *machine, "best")
    archive = run.path / "eval-val.npz"
    with np.load(archive) as content:
        arrays = dict(content)
    if kind == "a bomb":
        np.savez_compressed(archive, **{**arrays, "logits": np.zeros((10**6, 3), np.float32)})
    elif kind == "more classes":
        np.savez(archive, **{**arrays, "logits": np.zeros((12, 10**5), np.float32)})
    else:
        with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as more:
            more.writestr("other.npy", bytes(10**7))
    tracemalloc.start()
    with (
        nullcontext() if kind == "a member of its own" else pytest.raises(UserError, match=r"eval-val\.npz is damaged")
    ):
        read_evaluation(run, 3, 30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000 + sum(array.nbytes for array in arrays.values())


def test_links_under_names_that_can_be_foreseen_are_not_followed(tiny, tmp_path):
    machine, call = tiny
    precious = tmp_path / "precious"
    precious.write_text("precious")
    run = RunDir(tmp_path / "run")
    written = ["recipe.json", "classes.json", "environment.json", "split.csv", "skipped.csv", "history.jsonl"]
    written += [
        "eval-val.json",
        "eval-val.npz",
        "checkpoints/last.pt",
        "checkpoints/best.pt",
        "checkpoints/previous.pt",
    ]
    run.last.parent.mkdir(parents=True)
    (run.path / ".lock").touch()  # as a training leaves it that was killed as it began
    for name in written:
        for end in (".tmp", ".tmp.npz", ".new", ".part", "~"):
            (run.path / f"{name}{end}").symlink_to(precious)
    call(run.path)
    evaluate(run, *machine, "best")
    assert precious.read_text() == "precious"
    assert not any((run.path / name).is_symlink() for name in written)


def test_the_seed_decides_everything(tiny, tmp_path):
    _, call = tiny
    one, same, other = (call(tmp_path / str(number), seed=seed) for number, seed in enumerate((0, 0, 1)))
    assert flat(result(one)) == flat(result(same))
    assert one.split.read_text() != other.split.read_text()


# Each option's other value, and what must be there for it to matter.
CHANGES = {
    "model": ["resnet18"],
    "weights": ["weights.pt"],
    "zero_gamma": [True],
    "resize": [22],
    "crop": [14],
    "flip": [False],
    "fit": ["crop", "pad"],
    "augment": ["resized-crop", "paper"],
    "balance": [0.5],
    "mixup": [0.2],
    "batch_size": [6],
    "accumulate": [2],
    "lr": [0.2],
    "epochs": [2],
    "seed": [1],
    "smoothing": [0.2],
    "teacher": ["teacher"],
    "temperature": [2.0],
    "val_fraction": [0.2],
    "fold": ["2/3"],
    "group_duplicates": [False],
    "momentum": [0.8],
    "weight_decay": [1e-3],
    "bias_decay": [False],
    "warmup_epochs": [1.0],
    "schedule": ["step", "constant"],
    "head_lr_multiplier": [2.0],
    "freeze_backbone_epochs": [1],
    "clip_grad_norm": [0.01],
    "ema": [0.9],
    "early_stopping": [1],
    "labels": ["labels.csv"],
    "min_pictures": [6],
    "group_by": [r"(\d)\.jpg"],
}
NEEDS = {
    "min_pictures": {"labels": "labels.csv"},
    "temperature": {"teacher": "teacher"},
    "freeze_backbone_epochs": {"weights": "weights.pt"},
    # All epochs are equal but for the loss, which falls no more once BatchNorm's statistics have come to rest.
    "early_stopping": {"lr": 1e-12, "epochs": 10},
    "group_duplicates": {"data": "with copies"},
}


def write_labels(file, photos):
    """Label the pictures otherwise than their folders do: a fourth class has five of them."""
    rows = [(path.relative_to(photos), f"{path.parent.name[0]}") for path in sorted(photos.rglob("*.jpg"))]
    rows[:5] = [(path, "few") for path, _ in rows[:5]]
    file.write_text("file,species\n" + "".join(f'"{path}",{label}\n' for path, label in rows), encoding="utf-8")


def test_every_option_changes_the_weights(tiny, tricks, tmp_path, photos, monkeypatch):
    _, call = tiny
    monkeypatch.chdir(tmp_path)
    write_labels(tmp_path / "labels.csv", photos)
    shutil.copytree(photos, "with copies")
    for picture in Path("with copies").glob("*/[0-4].jpg"):
        shutil.copy(picture, picture.with_suffix(".jpeg"))
    # sync_bn is of several processes: tests/test_distributed.py. best has a test of its own, below.
    assert set(CHANGES) == {field.name for field in fields(Recipe)} - {"data", "preset", "sync_bn", "best"}

    def weights(number, **options):
        return flat(torch.load(call(tmp_path / f"run {number}", **options).last)["model"])

    plain = weights("plain")
    for name, values in CHANGES.items():
        before = weights(name, **NEEDS[name]) if name in NEEDS else plain
        for value in values:
            assert weights(f"{name} {value}", **{**NEEDS.get(name, {}), name: value}) != before, f"{name} {value}"


VALIDATED = [  # epoch by epoch
    {"accuracy": 0.6, "balanced_accuracy": 0.4, "macro_f1": 0.5, "loss": 0.9, "nll": 0.8},
    {"accuracy": 0.6, "balanced_accuracy": 0.4, "macro_f1": 0.5, "loss": 0.8, "nll": 0.7},
    {"accuracy": 0.5, "balanced_accuracy": 0.6, "macro_f1": 0.5, "loss": 0.85, "nll": 0.7},
    {"accuracy": 0.5, "balanced_accuracy": 0.5, "macro_f1": 0.5, "loss": 0.7, "nll": 0.6},
]


@pytest.mark.parametrize(("best", "epoch"), [("accuracy", 2), ("balanced-accuracy", 3), ("loss", 4)])
@pytest.mark.parametrize("looks", [(), (7,), (8, 3, 3, 3), (11,)])
def test_best_pt_is_the_epochs_that_is_best_by_the_recipe(tiny, tmp_path, monkeypatch, caplog, best, epoch, looks):
    """Through stops, and where it was lost and comes from the checkpoints that are left."""
    _, call = tiny
    run = RunDir(tmp_path / "run")
    file = run.path / "history.jsonl"

    def validate(*_):
        return {**VALIDATED[len(file.read_text().splitlines()) if file.exists() else 0], "top5": 1.0}

    monkeypatch.setattr(plumage.engine.train, "run_evaluator", validate)
    options = {"best": best, "epochs": 4}
    for look in looks:
        with pytest.raises(Stopped):
            call(run.path, look, **options)
    call(run.path, **options)
    assert torch.load(run.best)["trainer"]["iteration"] == 3 * epoch
    assert run.history.best["epoch"] == epoch
    caplog.set_level("INFO", "plumage")
    if epoch == 4 or (epoch == 3 and looks in ((), (7,))):  # else a stop in the last epoch has replaced that checkpoint
        run.best.unlink()
        call(run.path, **options)
        assert torch.load(run.best)["trainer"]["iteration"] == 3 * epoch
    call(run.path, **options)
    assert "finished; nothing is left to do" in caplog.text
    assert "lost" not in caplog.text


def test_a_finished_run_of_before_there_was_a_choice_stays_finished(tiny, tmp_path, monkeypatch, caplog):
    """Of its epochs of equal accuracy the first is best, whatever their losses, as best.pt has it."""
    _, call = tiny
    run = call(tmp_path / "run")
    rows = [{**row, "val_accuracy": 0.5, "val_loss": 2.0 - row["epoch"] / 10} for row in run.history]
    for row in rows:
        del row["val_balanced_accuracy"]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run.path / "history.jsonl").write_text(text)
    recipe = json.loads((run.path / "recipe.json").read_text())
    (run.path / "recipe.json").write_text(json.dumps({name: recipe[name] for name in recipe if name != "best"}))

    def as_of_old(content, text=text):
        content["recipe"].pop("best")
        content["history"] = torch.tensor(list(text.encode()), dtype=torch.uint8)

    def of_the_first_epoch(content):
        content["trainer"].update(iteration=3)
        as_of_old(content, text[: text.index("\n") + 1])

    change_checkpoint(run.last, as_of_old)
    change_checkpoint(run.best, of_the_first_epoch)
    caplog.set_level("INFO", "plumage")
    call(run.path)
    assert "finished; nothing is left to do" in caplog.text
    assert run.history.best["epoch"] == 1


def test_an_unfinished_run_of_before_there_was_a_choice_goes_on_to_the_same_bits(tiny, tmp_path, caplog):
    _, call = tiny
    whole = call(tmp_path / "whole")
    with pytest.raises(Stopped):
        call(tmp_path / "run", 8)
    run = RunDir(tmp_path / "run")
    rows = [{key: value for key, value in row.items() if key != "val_balanced_accuracy"} for row in run.history]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run.path / "history.jsonl").write_text(text)

    def as_of_old(content):
        content["recipe"].pop("best")
        content["history"] = torch.tensor(list(text.encode()), dtype=torch.uint8)

    for file in (run.last, run.best, run.previous):
        change_checkpoint(file, as_of_old)
    caplog.clear()
    call(run.path)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert flat(torch.load(run.last)["model"]) == flat(torch.load(whole.last)["model"])
    assert ["val_balanced_accuracy" in row for row in run.history] == [False, True, True]


def test_with_an_average_the_checkpoint_has_it_and_the_weights_that_learn(tiny, tmp_path):
    _, call = tiny
    content = torch.load(call(tmp_path / "averaged", ema=0.9).last)
    plain = torch.load(call(tmp_path / "plain").last)["model"]
    assert flat(content["online"]) == flat(plain)
    assert flat(content["model"]) != flat(plain)


@pytest.mark.parametrize("problem", ["no such", "classes", "no recipe"])
def test_a_teacher_that_will_not_do_is_named_before_any_picture_is_read(tiny, tricks, tmp_path, problem):
    (_, cache), call = tiny
    file = tmp_path / "teacher.pt"
    content = torch.load(tmp_path / "teacher" / "checkpoints" / "best.pt")
    if problem == "classes":
        content["classes"] = ["a", "b", "c"]
    elif problem == "no recipe":
        del content["recipe"]
    if problem != "no such":
        torch.save(content, file)
    shutil.rmtree(cache.folder)
    with pytest.raises(UserError, match=r"teacher\.pt"):
        call(tmp_path / "run", teacher=str(file))
    assert not cache.folder.exists()


@pytest.mark.parametrize("known", [True, False])
def test_a_run_as_weights_hands_its_head_on_to_the_same_classes(tiny, tricks, tmp_path, photos, caplog, known):
    _, call = tiny
    if not known:
        (photos / "red apple").rename(photos / "pear")
    caplog.set_level("INFO", "plumage")
    run = call(tmp_path / "run", weights=str(tmp_path / "teacher"), lr=1e-12, epochs=1)
    one, other = (torch.load(file)["model"] for file in (tmp_path / "teacher" / "checkpoints" / "best.pt", run.last))
    assert torch.equal(one["body.0.weight"], other["body.0.weight"])
    assert torch.equal(one["fc.weight"], other["fc.weight"]) == known
    assert ("the head is taken over" in caplog.text) == known


def test_first_steps_that_the_scaler_skips_leave_no_trace():
    """Of the fused optimizer's momentum, whose memory torch fills with NaN where it is to be deterministic."""
    recipe = Recipe.create({**OPTIONS, "model": "resnet18"})
    state, _ = plumage.engine.train.build(
        recipe, Machine(torch.device("cpu"), "fp16", False), ["a", "b", "c"], 3, None, None
    )
    state.scaler.load_state_dict({**state.scaler.state_dict(), "scale": 3e38})
    before = [parameter.detach().clone() for parameter in state.model.parameters()]
    images, labels = torch.randint(256, (6, 20, 20, 3), dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1, 2])
    batches = (Batch(number, images, labels, Shard(np.arange(6), 6)) for number in range(3))
    torch.use_deterministic_algorithms(True)
    try:
        state.trainer.run(batches, max_epochs=1, epoch_length=3)
    finally:
        torch.use_deterministic_algorithms(False)
    assert state.scaler.get_scale() == pytest.approx(3e38 / 8, rel=1e-3)
    assert all(map(torch.equal, state.model.parameters(), before))
    momenta = [values["momentum_buffer"] for values in state.optimizer.state.values()]
    assert len(momenta) == len(before)
    assert not any(momentum.count_nonzero() for momentum in momenta)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "options",
    [{}, {"augment": "paper", "mixup": 0.2}, {"ema": 0.9, "clip_grad_norm": 1.0, "accumulate": 2}],
    ids=["plain", "augmented", "averaged"],
)
def test_no_step_waits_for_the_gpu(options, precision):
    """From the third step to the seventh, between two looks at the metrics, torch raises where something waits."""
    names, device = ["a", "b", "c"], torch.device("cuda")
    recipe = Recipe.create({**OPTIONS, "model": "resnet18", **options})
    state, _ = plumage.engine.train.build(recipe, Machine(device, precision, compile=False), names, 8, None, None)
    images = torch.randint(256, (8, 20, 20, 3), dtype=torch.uint8, device=device)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    trainer = state.trainer
    trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: torch.cuda.set_sync_debug_mode("error"))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=7), lambda: torch.cuda.set_sync_debug_mode("default"))
    try:
        shard = Shard(np.arange(8), 8)
        trainer.run((Batch(number, images, labels, shard) for number in range(8)), max_epochs=1, epoch_length=8)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert 0 < trainer.state.metrics["loss"] < 100


@pytest.mark.parametrize("gone", [True, False])
def test_a_resume_takes_the_labels_from_the_run(tiny, tmp_path, photos, gone):
    """Whatever has become of the file that they came from."""
    _, call = tiny
    file = tmp_path / "labels.csv"
    write_labels(file, photos)
    whole = call(tmp_path / "whole", labels=str(file))
    assert whole.classes == ["b", "few", "g", "r"]
    with pytest.raises(Stopped):
        call(tmp_path / "run", 7, labels=str(file))
    if gone:
        file.unlink()
    else:
        file.write_text("path,label\n")
    assert flat(result(call(tmp_path / "run", labels=str(file)))) == flat(result(whole))


def test_classes_left_out_and_unreadable_pictures_do_not_disturb_a_resume(tiny, tmp_path, photos):
    _, call = tiny
    write_labels(tmp_path / "labels.csv", photos)
    (photos / "red apple" / "3.jpg").write_bytes(b"no picture")
    options = {"labels": str(tmp_path / "labels.csv"), "min_pictures": 6, "group_by": r"(\d)\.jpg"}
    whole = call(tmp_path / "whole", **options)
    assert whole.classes == ["g", "r"]
    with pytest.raises(Stopped):
        call(tmp_path / "run", 7, **options)
    assert flat(result(call(tmp_path / "run", **options))) == flat(result(whole))
    (machine, cache), _ = tiny
    assert evaluate(whole, machine, cache).accuracy == whole.history.best["val_accuracy"]


def test_classes_left_out_do_not_keep_the_runs_own_folder_from_being_evaluated(tiny, tmp_path, photos):
    (machine, cache), call = tiny
    shutil.copytree(photos / "red apple", photos / "few", ignore=shutil.ignore_patterns("[2-9].jpg"))
    run = call(tmp_path / "run", min_pictures=4, epochs=1)
    assert len(run.classes) == 3
    assert evaluate(run, machine, cache, data=str(photos), split="val").accuracy == run.history.best["val_accuracy"]
    shutil.copytree(photos, tmp_path / "others")
    with pytest.raises(UserError, match=r"was not trained on few; .*; leave out others$"):
        evaluate(run, machine, cache, data=str(tmp_path / "others"))


def test_a_teacher_must_be_of_the_classes_that_stay(tiny, tricks, tmp_path, photos):
    """Before anything is decoded where the listing tells which, and after it where unreadable pictures do."""
    (_, cache), call = tiny
    teacher = str(tmp_path / "teacher")
    for number in range(3):
        extra = photos / "yellow" / f"{number}.jpg"
        extra.parent.mkdir(exist_ok=True)
        shutil.copy(photos / "red apple" / f"{number}.jpg", extra)
    shutil.rmtree(cache.folder)
    with pytest.raises(UserError, match="of other classes than the 4 here"):
        call(tmp_path / "run", teacher=teacher)
    assert not cache.folder.exists()
    assert len(call(tmp_path / "three", teacher=teacher, min_pictures=4, epochs=1).classes) == 3
    for number in range(8):
        (photos / "red apple" / f"{number}.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match="of other classes than the 2 here"):
        call(tmp_path / "two", teacher=teacher, min_pictures=4)


def test_weights_of_a_run_that_was_trained_on_what_now_validates_are_told_of(tiny, tmp_path, photos, caplog):
    _, call = tiny
    first, elsewhere = call(tmp_path / "first", epochs=1), tmp_path / "elsewhere"
    shutil.copytree(photos, elsewhere)
    rows = first.split.read_text(encoding="utf-8").splitlines()[1:]
    trained = {row.rsplit(",", 2)[0].strip('"') for row in rows if row.endswith(",train")}

    def told(name, **options):
        caplog.clear()
        run = call(tmp_path / name, epochs=1, **options)
        again = [row for row in run.split.read_text(encoding="utf-8").splitlines() if row.endswith(",val")]
        seen = sum(row.rsplit(",", 2)[0].strip('"') in trained for row in again)
        lines = [line for line in caplog.messages if "flatters" in line]
        return seen, len(again), lines

    def line(option, source, seen, n):
        return f"{option} {source}: {first.path} was trained on {seen} of these {n} val pictures, which flatters it: "

    best = str(first.path / "checkpoints" / "best.pt")
    for number, (option, source) in enumerate([("weights", str(first.path)), ("weights", best), ("teacher", best)]):
        for data in (photos, elsewhere):
            seen, n, (said,) = told(f"run {number} {data.name}", data=str(data), seed=1, **{option: source})
            assert 0 < seen < n
            assert said.startswith(line(f"--{option}", source, seen, n))
    assert told("same split", weights=best)[::2] == (0, [])
    # Of squares of another size the pixels tell nothing: the paths do, in the same folder alone.
    seen, n, (said,) = told("another size", weights=best, seed=1, resize=22)
    assert said.startswith(line("--weights", best, seen, n))
    assert told("another size and place", weights=best, seed=1, resize=22, data=str(elsewhere))[2] == []
    first.split.write_text("damaged")
    assert told("damaged", weights=best, seed=1)[2] == []


def test_an_evaluation_on_pictures_of_the_training_is_told_of(tiny, tmp_path, photos, caplog):
    (machine, cache), call = tiny
    run, other = call(tmp_path / "run", epochs=1), tmp_path / "other"
    for number, source in enumerate(sorted(photos.rglob("*.jpg"))):  # under other names, and beside as many of its own
        (folder := other / source.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / f"copy {number}.jpg")
        Image.new("RGB", (40, 50), (number, 0, 0)).save(folder / f"new {number}.jpg")
    caplog.clear()
    evaluate(run, machine, cache, data=str(other))
    (line,) = [line for line in caplog.messages if "trained on" in line]
    assert line.startswith(f"--data {other}: {run.path} was trained on 18 of these 60 pictures, which flatters it: ")
    assert line.count("/copy ") == 3
    caplog.clear()
    evaluate(run, machine, cache)
    evaluate(run, machine, cache, data=str(photos), split="val")
    assert "trained on" not in caplog.text
