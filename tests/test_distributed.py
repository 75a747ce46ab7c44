"""Several processes on this machine, over gloo: the same training as one."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, draw_photos
from hypothesis import given
from hypothesis import strategies as st
from test_train import OPTIONS, StopAt, flat
from torch import nn
from torch.nn import functional

import plumage.engine.train
import plumage.models.weights
from plumage import main
from plumage.data.augment import Transform
from plumage.data.loader import Pictures, eval_batches, shard_of, train_batches
from plumage.data.store import Cache
from plumage.engine.evaluator import create_evaluator
from plumage.engine.handlers import attach_ema
from plumage.engine.train import train
from plumage.engine.trainer import create_trainer
from plumage.errors import Stopped
from plumage.hardware import processes
from plumage.hardware.device import Machine
from plumage.models.batchnorm import synchronise
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir

CPU = torch.device("cpu")
MACHINE = Machine(CPU, "fp32", compile=False)


# --- which pictures are whose ------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 9))
def test_a_batch_is_shared_in_order_evenly_and_in_no_ones(pictures, world_size):
    shards = [shard_of(pictures, rank, world_size).places for rank in range(world_size)]
    assert np.concatenate(shards).tolist() == list(range(pictures))
    sizes = [len(shard) for shard in shards]
    assert pictures == 1 or 1 not in sizes
    assert sizes[0] > 0
    if pictures >= 2 * world_size:
        assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 200), st.integers(2, 9))
def test_with_its_neighbour_a_shard_begins_one_place_earlier(pictures, world_size):
    for rank in range(world_size):
        plain, led = (shard_of(pictures, rank, world_size, neighbour).places for neighbour in (False, True))
        if 0 < len(plain) < pictures:
            assert led.tolist() == [(plain[0] - 1) % pictures, *plain]
        else:
            assert led.tolist() == plain.tolist()


def numbered(pictures, side=8):
    """What reads a store whose picture i has i in its first pixel."""
    pixels = np.random.default_rng(0).integers(0, 256, (pictures, side, side, 3), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(pictures)
    return lambda rows: torch.from_numpy(pixels[rows])


def first(batches, count):
    return [next(batches) for _ in range(count)]


@given(st.integers(2, 60), st.integers(2, 20), st.integers(0, 30))
def test_the_global_batches_are_the_same_for_any_number_of_processes(pictures, batch_size, start):
    read, rows = numbered(pictures), np.arange(pictures)
    whole = first(train_batches(Pictures(read, rows, rows % 3, batch_size), 5, start), 7)
    for world_size in (1, 2, 3, 4):
        streams = [
            first(train_batches(Pictures(read, rows, rows % 3, batch_size, rank, world_size), 5, start), 7)
            for rank in range(world_size)
        ]
        for batch, *parts in zip(whole, *streams, strict=True):
            assert {part.iteration for part in parts} == {batch.iteration}
            assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
            assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)


@pytest.mark.parametrize("augment", ["crop", "resized-crop", "paper"])
@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_what_each_picture_looks_like_and_is_mixed_with_depends_on_no_number_of_processes(augment, alpha, world_size):
    read, rows = numbered(23), np.arange(23)
    view = Transform(4, 3, augment, alpha, 3)

    def seen(rank, world_size):
        pictures = Pictures(read, rows, rows % 3, 7, rank, world_size)  # in batches of 7, 7, 7 and 2
        batches = train_batches(pictures, 5, with_neighbour=alpha > 0)
        return [view.random(b.images, b.labels, b.iteration, b.shard) for b in first(batches, 8)]

    for whole, *parts in zip(seen(0, 1), *(seen(rank, world_size) for rank in range(world_size)), strict=True):
        for index in (0, 1):
            torch.testing.assert_close(torch.cat([part[index] for part in parts]), whole[index])


# --- processes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def importable():
    """For the server, which does not inherit sys.path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(ROOT)]))
        yield


def launch(count, work, *args):
    """``work(rank, *args)`` in ``count`` processes as torchrun would start them. Their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")  # so that all is imported once, in the server
    context.set_forkserver_preload([__name__])
    workers = [context.Process(target=_process, args=(rank, count, port, work, args)) for rank in range(count)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    return [process.exitcode for process in workers]


def _process(rank, count, port, work, args):
    torch.set_num_threads(1)
    about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in about.items()})
    work(rank, *args)


class Plain(nn.Module):
    """A network of no size, with BatchNorm or without."""

    def __init__(self, norm):
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8) if norm else nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.fc = nn.Linear(8, 3)

    def forward(self, images):
        return self.fc(self.body(images.to(self.fc.weight)))


CASES = {
    f"{'BatchNorm' if norm else 'none'}, {kind}, {accumulate}": (norm, kind, accumulate)
    for norm, accumulate in ((False, 1), (False, 2), (True, 1))
    for kind in (torch.float64, torch.float32)
}


def twenty_steps(rank, world_size):
    """The weights after 20 steps of 23 pictures in sevens, with all that a step can have; and those evaluated."""
    results = {}
    for name, (norm, kind, accumulate) in CASES.items():
        model = Plain(norm).to(kind)
        if norm and world_size > 1:
            model = synchronise(model, CPU)
        view, read, rows = Transform(7, 3, "paper", 0.2, 3), numbered(23), np.arange(23)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
        trainer = create_trainer(
            processes.wrap_ddp(model, CPU, freezes=False),
            optimizer,
            torch.amp.GradScaler("cpu", enabled=False),
            lambda logits, targets, images: functional.cross_entropy(logits, targets),
            view.random,
            MACHINE,
            Recipe(accumulate=accumulate, clip_grad_norm=0.5),
        )
        average = attach_ema(trainer, model, 0.9)
        batches = train_batches(Pictures(read, rows, rows % 3, 7, rank, world_size), 5, with_neighbour=True)
        trainer.run(batches, max_epochs=5, epoch_length=4)
        results[name] = model.state_dict(), average.state_dict()
    return results


def evaluate_101(rank, world_size):
    """Of 101 pictures in batches of 20, the last of one; the float64 network gives the same logits in any batch."""
    evaluator = create_evaluator(
        Plain(True).double(),
        nn.CrossEntropyLoss(),
        Transform(4).center,
        MACHINE,
        3,
    )
    read, rows = numbered(101), np.arange(101)
    batches = eval_batches(Pictures(read, rows, rows % 3, 20, rank, world_size))
    return evaluator.run(batches, epoch_length=6).metrics


def toy_work(rank, world_size, folder):
    with processes.joined(CPU):
        torch.save((twenty_steps(rank, world_size), evaluate_101(rank, world_size)), folder / f"{world_size}-{rank}.pt")


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """What ``toy_work`` computes, by (processes, rank)."""
    folder = tmp_path_factory.mktemp("toys")
    for world_size in (2, 3, 4):
        assert launch(world_size, toy_work, world_size, folder) == [0] * world_size
    several = {
        (world_size, rank): torch.load(folder / f"{world_size}-{rank}.pt")
        for world_size in (2, 3, 4)
        for rank in range(world_size)
    }
    return {(1, 0): (twenty_steps(0, 1), evaluate_101(0, 1)), **several}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_after_20_steps_the_weights_are_those_of_one_process(toys, world_size, case):
    tolerance = 1e-10 if CASES[case][1] == torch.float64 else 1e-5
    for rank in range(world_size):
        for one, other in zip(toys[1, 0][0][case], toys[world_size, rank][0][case], strict=True):
            assert one.keys() == other.keys()
            for key, value in one.items():
                torch.testing.assert_close(other[key], value, rtol=tolerance, atol=tolerance, msg=key)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_evaluation_takes_each_of_101_pictures_once(toys, world_size):
    for rank in range(world_size):
        for name, value in toys[1, 0][1].items():
            exact = name in ("accuracy", "top5")
            assert toys[world_size, rank][1][name] == (value if exact else pytest.approx(value, rel=1e-6))


# --- whole trainings ---------------------------------------------------------------------------------------------

TRICKS = {"mixup": 0.2, "ema": 0.8, "clip_grad_norm": 0.5, "accumulate": 2, "early_stopping": 2}


def train_tiny(home, name, look=10**9, **options):
    """What train() returns, or "stopped", in home/name."""
    plumage.engine.prepare.build_model = plumage.models.weights.build_model = tiny_network
    recipe = Recipe.create({"data": str(home / "photos"), **OPTIONS, **options})
    machine, cache = MACHINE, Cache(home / "cache", workers=1)
    try:
        return train(recipe, RunDir(home / name), machine, cache, StopAt(look))
    except Stopped:
        return "stopped"


def tiny_network(name, classes, zero_gamma=False):
    return Plain(norm=True)


def train_in_two(rank, home):
    with processes.joined(CPU):
        ends = [
            train_tiny(home, "whole", **TRICKS),
            train_tiny(home, "resumed", 8 if rank == 1 else 10**9, **TRICKS),  # in the second epoch
            train_tiny(home, "resumed", **TRICKS),
            train_tiny(home, "synced", 7 if rank == 1 else 10**9, sync_bn=True),
            train_tiny(home, "parts", sync_bn=True, accumulate=2, epochs=1),
            train_tiny(home, "frozen", weights=str(home / "weights.pt"), freeze_backbone_epochs=1, sync_bn=True),
        ]
    torch.save(ends, home / f"ends-{rank}.pt")


def train_in_three(rank, home):
    with processes.joined(CPU):
        train_tiny(home, "synced", sync_bn=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    home = tmp_path_factory.mktemp("trained")
    draw_photos(home / "photos")
    torch.save(Plain(norm=True).state_dict(), home / "weights.pt")
    assert launch(2, train_in_two, home) == [0, 0]
    assert launch(3, train_in_three, home) == [0, 0, 0]
    with pytest.MonkeyPatch.context() as patch:
        for module in (plumage.engine.prepare, plumage.models.weights):
            patch.setattr(module, "build_model", tiny_network)
        train_tiny(home, "one", sync_bn=True)
        train_tiny(home, "one frozen", weights=str(home / "weights.pt"), freeze_backbone_epochs=1)
    return home


def content(run, name="last"):
    """A checkpoint's, without the history, whose times differ."""
    content = torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)
    del content["history"]
    return content


def rows(run):
    """The history without times."""
    return [
        {key: value for key, value in row.items() if key not in ("seconds", "images_per_second")}
        for row in RunDir(run).history
    ]


def test_a_signal_to_one_process_stops_all_and_resumed_they_end_as_if_never_stopped(trained):
    ends = [torch.load(trained / f"ends-{rank}.pt") for rank in (0, 1)]
    assert ends[0] == ends[1]
    assert ends[0][1] == ends[0][3] == "stopped"
    assert rows(trained / "resumed") == rows(trained / "whole")
    for name in ("last", "best"):
        whole, resumed = (flat(content(trained / run, name)) for run in ("whole", "resumed"))
        assert resumed == whole


@pytest.mark.parametrize(("several", "alone"), [("synced", "one"), ("frozen", "one frozen")])
def test_two_processes_stopped_and_three_resumed_end_as_one(trained, several, alone):
    assert (trained / several / "split.csv").read_text() == (trained / alone / "split.csv").read_text()
    for one, other in zip(rows(trained / alone), rows(trained / several), strict=True):
        assert other == pytest.approx(one, rel=1e-4)
        for name in ("epoch", "iteration", "train_accuracy", "val_accuracy", "val_balanced_accuracy", "val_top5"):
            assert other[name] == one[name]
    one, other = (content(trained / run)["model"] for run in (alone, several))
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-5, atol=1e-5, msg=key)


# --- how they meet and end ---------------------------------------------------------------------------------------


def take_turns(rank, folder):
    def work():
        found = sorted(path.name for path in folder.iterdir())
        (folder / str(rank)).touch()
        return found

    os.environ["LOCAL_RANK"] = "01012"[rank]  # two hosts, of two processes and of three
    with processes.joined(CPU) as first:
        torch.save((processes.in_turns("nothing", work), processes.from_first("it", lambda: [rank]), first),
                   folder.parent / f"{rank}.pt")  # fmt: skip


def test_one_process_is_the_first_on_its_host_and_one_of_all(tmp_path):
    (tmp_path / "disk").mkdir()
    assert launch(5, take_turns, tmp_path / "disk") == [0] * 5
    found, told, first = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(5)), strict=True)
    assert found[0] == []
    assert found[2] == ["0"]
    assert all({"0", "2"} <= set(found[rank]) for rank in (1, 3, 4))
    assert told == ([0],) * 5
    assert first == (True, False, False, False, False)


def run_main(rank, folder, *arguments):
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "xdg")
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.argv = ["main.py", *map(str, arguments)]
    main.main()


def said(folder, name, world_size):
    return [(folder / f"{name}-{rank}").read_text().splitlines() for rank in range(world_size)]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--data", "nowhere"], "nowhere: does not exist"),
        (["--data", "nowhere", "--epochs", "0"], "--epochs"),
        (["--data", "nowhere", "--no-such-option"], "--no-such-option"),
    ],
)
def test_wrong_use_ends_all_processes_and_is_told_once(tmp_path, arguments, problem):
    arguments = ["train", "--weights", "none", "--device", "cpu", *arguments]
    assert launch(2, run_main, tmp_path, *arguments) == [2, 2]
    first, second = said(tmp_path, "err", 2)
    assert problem in first[-1]
    assert second == []
    assert not any((tmp_path / "runs").glob("*/*")) if (tmp_path / "runs").exists() else True


def test_other_commands_are_for_one_process(tmp_path):
    assert launch(2, run_main, tmp_path, "eval") == [2, 2]
    assert said(tmp_path, "err", 2) == [
        ["error: torchrun: only train is for several processes; run python main.py eval"],
        [],
    ]


def kill_one(rank, home):
    def killed(*args, **options):
        os.kill(os.getpid(), 9)

    if rank == 1:
        Transform.center = killed  # in the first validation
    plumage.engine.prepare.build_model = plumage.models.weights.build_model = tiny_network
    options = [value for name, value in OPTIONS.items() for value in (f"--{name.replace('_', '-')}", value)]
    run_main(rank, home, "train", "--data", home / "photos", "--device", "cpu", "--precision", "fp32", *options)


def test_a_process_that_is_killed_takes_the_others_with_it_in_a_line(tmp_path):
    draw_photos(tmp_path / "photos")
    assert launch(3, kill_one, tmp_path) == [1, -9, 1]
    for rank in (0, 2):
        assert said(tmp_path, "err", 3)[rank][-1].startswith(
            f"error: process {rank} on {socket.gethostname()} has lost"
        )


def wait_in_vain(rank, folder):
    processes.PREPARATION = timedelta(seconds=1)
    os.dup2(os.open(folder / f"err-{rank}", os.O_WRONLY | os.O_CREAT, 0o600), 2)
    main.logging.basicConfig(format="%(message)s", force=True)
    try:
        with processes.joined(CPU):
            processes.from_first("the birds", lambda: (folder / "pipe").read_text())  # until the other has given up
    finally:
        if rank == 1:
            (folder / "pipe").write_text("")


def test_who_waits_too_long_says_what_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert launch(2, wait_in_vain, tmp_path)[1] == 1
    assert "for the birds" in said(tmp_path, "err", 2)[1][-1]


# --- torchrun ----------------------------------------------------------------------------------------------------


class Torchrun:
    """``torchrun main.py train …``, two processes, in ``folder``, as far as the end of the first epoch."""

    def __init__(self, folder, command, *options):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
        self.process = subprocess.Popen(
            [*launcher, ROOT / "main.py", *map(str, command)],
            cwd=folder,
            env={**os.environ, "XDG_CACHE_HOME": str(folder / "xdg")},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.first_line = self.process.stdout.readline()

    def worker(self, rank):
        """Its process id."""
        for status in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError):  # it has ended
                child = f"\nPPid:\t{self.process.pid}\n" in status.read_text()
                if child and f"RANK={rank}".encode() in (status.parent / "environ").read_bytes().split(b"\0"):
                    return int(status.parent.name)
        raise AssertionError(f"no process {rank}")

    def end(self):
        out, err = self.process.communicate()
        return self.process.returncode, (self.first_line + out).splitlines(), err


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Where a run of two processes was trained, and with which command."""
    home = tmp_path_factory.mktemp("undisturbed")
    draw_photos(home / "photos")
    command = ["train", "--data", home / "photos", *TINY, "--epochs", "3"]
    assert launch(2, run_main, home, *command) == [0, 0]
    return home, command


def same_weights(one, other):
    one, other = (content(run)["model"] for run in (one, other))
    assert all(torch.equal(one[key], value) for key, value in other.items())
    return True


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for a process in /proc")
def test_a_killed_process_is_started_again_and_the_run_ends_as_if_nothing_had_been(undisturbed, tmp_path):
    home, command = undisturbed
    job = Torchrun(tmp_path, command, "--max-restarts=1")
    assert job.first_line.startswith("epoch 1/3")
    os.kill(job.worker(1), signal.SIGKILL)
    code, out, err = job.end()
    assert code == 0, err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["photos-1"]
    assert "going on after iteration" in err
    assert sum(line.startswith("best epoch") for line in out) == 1
    assert rows(tmp_path / "runs" / "photos-1") == rows(home / "runs" / "photos-1")
    assert same_weights(tmp_path / "runs" / "photos-1", home / "runs" / "photos-1")


def test_sigterm_to_torchrun_saves_and_ends_once(undisturbed, tmp_path):
    home, command = undisturbed
    job = Torchrun(tmp_path, command)
    os.kill(job.process.pid, signal.SIGTERM)
    code, _, err = job.end()
    assert code != 0
    assert sum("error: stopped by SIGTERM; --resume goes on from here" in line for line in err.splitlines()) == 1
    assert launch(2, run_main, tmp_path, *command, "--resume") == [0, 0]
    assert same_weights(tmp_path / "runs" / "photos-1", home / "runs" / "photos-1")
