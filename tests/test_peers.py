"""What benchmarks/peers.py does itself: the folder, counting, going on, and the table. No peer is needed."""

import ast
import importlib
import json
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_house import ROOMS, modules
from torchvision.models import resnet50
from torchvision.transforms.functional import normalize

from plumage.data.augment import MEAN, STD

SOURCE = '''"""A docstring
of two lines."""

import one
from task import read_task  # benchmark


def main():
    """Another."""
    # a comment
    task = read_task()  # benchmark
    text = """not a
    docstring"""
    call(
        one,
    )
    call(
        task,
    )  # benchmark
    if text:  # benchmark
        pass  # benchmark
'''


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks" / "peers")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("peers")


@pytest.fixture
def outcome(peers):
    return importlib.import_module("outcome")


def rows(peer, epochs, accuracies, seconds):
    rest = {"lines": 7, "memory": 3 * 2**29}
    return [
        {"peer": peer, "epochs": epochs, "seed": seed, "accuracy": accuracy, "seconds": time, **rest}
        for seed, (accuracy, time) in enumerate(zip(accuracies, seconds, strict=True))
    ]


def test_lines_are_those_that_the_user_writes(outcome):
    # import, def, two of the text, three of the call
    assert outcome.code_lines(SOURCE) == 7


def test_each_script_has_lines_for_the_user_and_some_for_the_benchmark(peers, outcome):
    for peer in peers.PEERS.keys() - peers.COMMANDS:
        source = (peers.SCRIPTS / f"use_{peer}.py").read_text()
        assert 10 < outcome.code_lines(source) < outcome.code_lines(source.replace("# benchmark", "#"))
        assert "https://" in source.split('"""')[1]


def test_accuracy_is_counted_from_what_is_predicted_for_each_picture(tmp_path, peers):
    for path in ("val/a/0.jpg", "val/a/1.jpg", "val/b c/0.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    predictions, found = tmp_path / "predictions.json", {"a/0.jpg": "a", "a/1.jpg": "b c", "b c/0.png": "b c"}
    predictions.write_text(json.dumps(found))
    assert peers.accuracy_of(predictions, tmp_path / "val") == pytest.approx(2 / 3)
    predictions.write_text(json.dumps({"a/0.jpg": "a"}))
    with pytest.raises(AssertionError, match="each picture"):
        peers.accuracy_of(predictions, tmp_path / "val")


def test_all_get_the_same_folder_with_a_fifth_of_each_class_to_validate(tmp_path, peers):
    for name, pictures in {"a": 10, "b": 4, "alone": 1}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(pictures):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "photos" / name / f"{number}.PNG")
    Image.new("RGB", (4, 4)).save(tmp_path / "photos" / "a" / "not-for-all.webp")
    assert peers.make_folder(str(tmp_path / "photos"), tmp_path / "one") == [11, 3]
    assert peers.make_folder(str(tmp_path / "photos"), tmp_path / "other") == [11, 3]
    one, other = (
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in (tmp_path / "one", tmp_path / "other")
    )
    assert one == other
    assert Counter(path.rpartition("/")[0] for path in one) == {"train/a": 8, "val/a": 2, "train/b": 3, "val/b": 1}
    assert len({content for path, content in one.items() if "/a/" in path}) == 10
    assert peers.make_folder("birds:species=2,pictures=5", tmp_path / "birds") == [8, 2]


def test_the_same_command_goes_on_where_it_was_stopped(tmp_path, peers, monkeypatch):
    asked = []

    def measured(peer, task):
        asked.append((peer, task.epochs, task.seed))
        given = {"accuracy": 0.5, "seconds": 2.0, "memory": 2**30, "lines": 1, "log": []}
        return None if peer == "timm" else given

    monkeypatch.setattr(peers, "measured", measured)
    plan = [
        {"data": "photos", "pictures": [4, 1], "start": "scratch", "side": 32, "peer": peer, "epochs": 2, "seed": seed}
        for seed in (0, 1)
        for peer in ("plumage", "timm")
    ]
    task = peers.Task(tmp_path, None, 0, 0, 32, tmp_path)
    first = peers.rows_of(plan[:2], task, tmp_path / "raw.jsonl.gz")
    assert [row["peer"] for row in first] == ["plumage"]
    assert peers.rows_of(plan, task, tmp_path / "raw.jsonl.gz", minutes=0) == first
    assert peers.rows_of(plan, task, tmp_path / "raw.jsonl.gz")[0] == first[0]
    assert asked == [("plumage", 2, 0), ("timm", 2, 0), ("timm", 2, 0), ("plumage", 2, 1), ("timm", 2, 1)]


def test_what_another_script_version_recipe_or_machine_has_given_is_measured_again(tmp_path, peers, monkeypatch):
    asked = []

    def measured(peer, task):
        asked.append(peer)
        return {"accuracy": 0.5, "seconds": 2.0, "memory": 2**30, "lines": 1, "log": []}

    def begin(*again):
        rows = peers.rows_of(plan, peers.Task(tmp_path, None, 0, 0, 32, tmp_path), tmp_path / "raw.jsonl.gz")
        assert [row["peer"] for row in rows] == ["plumage", "ultralytics", "timm"]
        assert asked == list(again)
        asked.clear()

    monkeypatch.setattr(peers, "measured", measured)
    monkeypatch.setattr(peers, "SCRIPTS", shutil.copytree(peers.SCRIPTS, tmp_path / "scripts"))
    shared = {"data": "photos", "pictures": [4, 1], "start": "scratch", "side": 32, "epochs": 2, "seed": 0}
    plan = [shared | {"peer": peer} for peer in ("plumage", "ultralytics", "timm")]
    old = {"accuracy": 0.1, "seconds": 1.0, "memory": 2**30, "lines": 1, "log": [], "environment": {}}
    peers.write_rows(tmp_path / "raw.jsonl.gz", [line | old for line in plan])  # of before this was kept
    begin("plumage", "ultralytics", "timm")
    begin()
    for name, of in {"use_timm": ["timm"], "ultralytics_weights": ["ultralytics"], "use_plumage": ["plumage"]}.items():
        with (tmp_path / "scripts" / f"{name}.py").open("a") as script:
            script.write("# other\n")
        begin(*of)
    for package, of in {"timm": ["timm"], "torch": ["plumage", "ultralytics", "timm"]}.items():
        with monkeypatch.context() as other:
            now = peers.version
            other.setattr(
                peers, "version", lambda name, now=now, package=package: "99" if name == package else now(name)
            )
            begin(*of)
    demo = sys.modules["plumage.recipe"].PRESETS["demo"]
    with monkeypatch.context() as other:
        other.setitem(demo, "lr", 0.07)
        begin("plumage")
    for name in ("cpu", "device"):
        here = peers.environment
        monkeypatch.setattr(peers, "environment", lambda machine, here=here, name=name: here(machine) | {name: "other"})
        begin("plumage", "ultralytics", "timm")


@pytest.fixture
def one_task(tmp_path, peers, monkeypatch):
    """Return a task, and what runs the lines of a script as timm's and returns what was measured of it."""
    monkeypatch.setattr(peers, "SCRIPTS", tmp_path)
    for folder in ("data/val/a", "work"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data" / "val" / "a" / "0.jpg").touch()
    task = peers.Task(tmp_path / "data", None, 3, 5, 32, tmp_path / "work")

    def run(*lines):
        source = [f"import sys; sys.path.insert(0, {str(Path(peers.__file__).with_name('peers'))!r})"]
        source += ["from task import Task, read_task", "task = read_task()", *lines]
        (tmp_path / "use_timm.py").write_text("\n".join(source))
        return peers.measured("timm", task)

    monkeypatch.setattr(peers, "watch", lambda number, ended, samples: None)
    return task, run


HANDED_IN = "task.predicted([task.data / 'val' / 'a' / '0.jpg'], ['a'])"


def test_a_script_is_timed_and_watched_until_it_has_evaluated_and_its_predictions_are_counted(
    one_task, peers, monkeypatch
):
    watched = []

    def watch(number, ended, samples):
        samples += [peers.Sample(*each) for each in ((1.5, 90), (2.0, 7), (4.0, 30), (5.0, 20), (5.5, 80))]
        watched.append(ended.wait(60))

    task, run = one_task
    monkeypatch.setattr(peers, "watch", watch)
    monkeypatch.setattr(peers, "perf_counter", iter([1.0, 2.0, 5.0]).__next__)
    same = f"assert task == {task!r}".replace("PosixPath", "type(task.data)")
    row = run(same, "task.begins(); print('epoch 1'); task.evaluated()", HANDED_IN)
    # of 2 to 5 alone, not what prepares it or hands in
    assert row == {"accuracy": 1, "seconds": 3, "memory": 30, "lines": 6, "log": ["epoch 1"]}
    assert watched == [True]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["raise SystemExit('no')"], "timm failed with exit code 1:\nno\n"),
        (["task.begins()", HANDED_IN], "timm ended without a result:\n"),
        (["task.evaluated()"], "timm ended without a result:\n"),
    ],
)
def test_a_script_that_fails_or_does_not_say_that_it_has_evaluated_has_no_result(one_task, capsys, lines, told):
    assert one_task[1](*lines) is None
    assert capsys.readouterr().err.startswith(told)


def interrupted():
    yield 1.0
    raise KeyboardInterrupt


@pytest.mark.parametrize("stopped", [False, True])
def test_nothing_that_a_script_started_goes_on_without_it(tmp_path, one_task, peers, monkeypatch, stopped):
    os.mkfifo(tmp_path / "pipe")
    left = "import time; file = open('pipe', 'wb', 0); print('ready', flush=True); time.sleep(60); file.write(b'alive')"
    lines = [
        "import subprocess",
        f"own = {{'stdout': subprocess.PIPE, 'cwd': {str(tmp_path)!r}}}",
        f"child = subprocess.Popen([sys.executable, '-c', {left!r}], **own)",
        "assert child.stdout.readline().strip() == b'ready'",
        "task.begins()",
        "child.wait()" if stopped else f"task.evaluated(); {HANDED_IN}",
    ]
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    if stopped:
        monkeypatch.setattr(peers, "perf_counter", interrupted().__next__)
        with pytest.raises(KeyboardInterrupt):
            one_task[1](*lines)
    else:
        assert one_task[1](*lines)["accuracy"] == 1
    os.set_blocking(reader, True)
    assert os.read(reader, 9) == b""  # the end: who could write is gone
    os.close(reader)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_that_ends_it_ends_what_it_runs_first(tmp_path, peers, monkeypatch, number, code):
    folder = []
    signal.signal(number, signal.SIG_DFL)  # as in a process of its own

    def rows_of(plan, task, raw, minutes):
        folder.append(task.folder)
        signal.raise_signal(number)

    monkeypatch.setattr(peers, "find_spec", lambda name: True)
    monkeypatch.setattr(peers, "rows_of", rows_of)
    arguments = ["--data", "birds:species=2,pictures=5", "--folder", str(tmp_path), "-o", str(tmp_path / "table.md")]
    monkeypatch.setattr(sys, "argv", ["peers.py", *arguments])
    with pytest.raises(SystemExit) as end:
        peers.main()
    assert end.value.code == code
    assert not folder[0].exists()


@pytest.mark.parametrize("absent", [("fastai", "timm"), ("psutil",)])
def test_where_nothing_can_be_measured_one_line_says_so(tmp_path, peers, monkeypatch, absent):
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name in absent else True)
    monkeypatch.setattr(sys, "argv", ["peers.py", "--only", "fastai,timm", "-o", str(tmp_path / "table.md")])
    with pytest.raises(SystemExit, match=r"^--only: none of them is installed, or psutil is not"):
        peers.main()
    assert not list(tmp_path.iterdir())


def test_memory_is_what_the_system_tells_and_its_peak_that_of_the_time_measured(peers):
    memory = sys.modules["memory"]
    assert memory.own_part(SimpleNamespace(rss=9, uss=5, pss=7)) == 7
    assert memory.own_part(SimpleNamespace(rss=9, uss=5)) == 5
    assert memory.own_part(SimpleNamespace(rss=9)) == 9
    samples = [peers.Sample(at, taken) for at, taken in ((0, 80), (1, 3), (2, 5), (3, 4), (4, 90))]
    assert memory.peak(samples, begin=1, seconds=2) == 5
    assert memory.peak([], begin=1, seconds=2) == 0


def test_a_process_that_has_ended_before_it_is_looked_at_is_no_failure(peers, monkeypatch):
    memory, samples, ended = sys.modules["memory"], [], threading.Event()
    process = SimpleNamespace(memory_full_info=lambda: SimpleNamespace(rss=9, uss=5))
    gone = SimpleNamespace(memory_full_info={}.popitem)
    process.children = lambda recursive: ended.set() or [gone, process]
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(Error=KeyError, Process=lambda number: process))
    memory.watch(1, ended, samples)
    assert [sample.taken for sample in samples] == [10]


def test_ultralytics_first_layer_normalises_as_the_weights_have_learnt_it(outcome):
    weights = importlib.import_module("ultralytics_weights")
    assert (weights.MEAN, weights.STD) == (MEAN, STD)
    torch.manual_seed(0)
    network, own, batch = resnet50().eval(), resnet50().eval(), torch.rand(2, 3, 32, 32)
    network.bn1.running_mean.normal_()
    network.bn1.running_var.uniform_(0.5, 2)
    state = network.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    own.load_state_dict(weights.normalising(state))
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    with torch.no_grad():
        wanted, found = network.bn1(network.conv1(normalize(batch, MEAN, STD))), own.bn1(own.conv1(batch))
    inside = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(found[inside], wanted[inside], rtol=1e-4, atol=1e-5)
    body = torch.nn.Sequential(*list(own.children())[:-2])
    assert weights.same_features(state, body)
    own.load_state_dict(state)
    assert not weights.same_features(state, body)


@pytest.mark.parametrize("weights", [None, Path("start.pth")])
def test_plumage_is_given_the_recipe_that_decides(tmp_path, peers, monkeypatch, weights):
    """The command of its script makes the recipe that a result is known by."""
    script, given = importlib.import_module("use_plumage"), []
    task = peers.Task(tmp_path, weights, 7, 3, 56, tmp_path)
    monkeypatch.setattr(script, "read_task", lambda: task)
    monkeypatch.setattr(script, "plumage", lambda *arguments: given.append(list(map(str, arguments))))
    with pytest.raises(FileNotFoundError):  # nothing was trained
        script.main()
    start = ["--preset", "finetune", "--weights", "start.pth"] if weights else ["--preset", "demo"]
    rest = ["--resize", "64", "--crop", "56", "--epochs", "7", "--seed", "3"]
    own = ["--run", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    assert given == [["train", "--data", str(tmp_path), *start, *rest, *own]]


def test_the_table_has_means_with_their_intervals(outcome):
    # t of one degree is 12.706; the standard deviation of 0.8 and 0.9 is 0.0707, of the mean 0.05: 12.706 * 5 = 63.53
    cells = outcome.cells_of([*rows("fastai", 15, [0.8, 0.9], [100, 120]), *rows("fastai", 5, [0.5], [40])])
    lines = list(outcome.table(cells))
    assert lines[1:] == [
        "| fastai | 5 | 1 | 50.00 | 40 | 1.5 | 7 |",
        "| fastai | 15 | 2 | 85.00 ± 63.53 | 110 ± 127 | 1.5 | 7 |",
    ]


def test_within_each_time_the_best_of_either_side_stands_beside_the_other(outcome):
    measured = [
        *rows("plumage", 5, [0.80, 0.82], [100, 100]),
        *rows("plumage", 15, [0.93, 0.95], [250, 250]),
        *rows("fastai", 5, [0.70, 0.74], [150, 170]),
        *rows("timm", 5, [0.60, 0.62], [200, 200]),
        *rows("fastai", 15, [0.94, 0.94], [500, 500]),
        *rows("fastai", 20, [0.94, 0.94], [600, 600]),
    ]
    lines = list(outcome.duels(outcome.cells_of(measured)))
    # leads of 10 and 8 points are 9 on average, with 12.706 * 1.414 / sqrt(2) on either side; timm's is never the best
    assert lines[1:] == [
        "| 100 | plumage, 5 epochs: 81.00% | – |  |",
        "| 160 | plumage, 5 epochs: 81.00% | fastai, 5 epochs: 72.00% | +9.00 (-3.71 to +21.71) |",
        "| 250 | plumage, 15 epochs: 94.00% | fastai, 5 epochs: 72.00% | +22.00 (+9.29 to +34.71) |",
        "| 500 | plumage, 15 epochs: 94.00% | fastai, 15 epochs: 94.00% | +0.00 (-12.71 to +12.71) |",
    ]


@pytest.mark.parametrize(
    ("accuracy", "told"),
    [
        (0.8, "is reached by Plumage in 0.25 of its time (plumage, 5 epochs: 80.00%: +0.00 points)."),
        (0.85, "is reached by Plumage in 0.62 of its time (plumage, 15 epochs: 90.00%: +5.00 points)."),
        (0.95, "is not reached by Plumage (plumage, 15 epochs: 90.00%: -5.00 points)."),
    ],
)
def test_in_which_part_of_the_best_peers_time_its_accuracy_is_reached(outcome, accuracy, told):
    measured = [*rows("plumage", 5, [0.8], [100]), *rows("plumage", 15, [0.9], [250]), *rows("timm", 5, [0.1], [9])]
    said = outcome.verdict(outcome.cells_of([*measured, *rows("fastai", 15, [accuracy], [400])]))
    assert said == f"The best of the others (fastai, 15 epochs: {accuracy:.2%}, 400 s) {told}"
    assert outcome.verdict(outcome.cells_of(measured[:1])) == "No peer was measured."
    assert outcome.verdict(outcome.cells_of(measured[2:])) == "Plumage was not measured."


ENVIRONMENT = {
    "python": "3.11.2",
    "packages": {"torch": "2.14.1"},
    "platform": "Linux",
    "gpu": None,
    "cpu": "a CPU",
    "threads": 2,
    "precision": "bf16",
    "git_commit": "0123456789",
}


def page_of(outcome, measured, **shared):
    shared = {"data": "birds", "pictures": [8, 2], "start": "scratch", "side": 56, "environment": ENVIRONMENT} | shared
    return "\n".join(outcome.page([row | shared for row in measured]))


def test_only_what_has_the_same_seeds_is_set_beside_each_other(outcome):
    three = [
        *rows("plumage", 5, [0.80, 0.82, 0.84], [100] * 3),
        *rows("fastai", 5, [0.70, 0.74, 0.75], [200] * 3),
    ]
    lucky = rows("timm", 5, [0.99], [50])
    page = page_of(outcome, [*three, *lucky])
    assert "| timm | 5 | 1 | 99.00 | 50 |" in page
    compared = page.partition("Compared over the seeds 0, 1, 2. Without timm, 5 epochs: not of these seeds.\n")[2]
    assert "timm" not in compared
    # leads of 10, 8 and 9 points: 4.303 * 1 / sqrt(3) = 2.48 on either side
    reached = "is reached by Plumage in 0.50 of its time (plumage, 5 epochs: 82.00%: +9.00 (+6.52 to +11.48) points)."
    assert compared.endswith(f"The best of the others (fastai, 5 epochs: 73.00%, 200 s) {reached}")
    # a third seed that only one has so far is not among those compared
    some = [row for row in three if (row["peer"], row["seed"]) != ("fastai", 2)] + rows("timm", 5, [0.5, 0.5], [50, 50])
    page = page_of(outcome, some)
    assert "| plumage | 5 | 3 | 82.00" in page
    assert "Compared over the seeds 0, 1.\n" in page
    assert "| 100 | plumage, 5 epochs: 81.00% |" in page


def test_the_table_says_what_each_computes_in(outcome):
    measured = [*rows("plumage", 5, [0.8], [100]), *rows("timm", 5, [0.7], [100])]
    page = page_of(outcome, measured)
    assert "- Hardware: 2 threads of a CPU, Linux; each in its own precision" in page
    assert "each one's default: bf16 for plumage, float32 for the others" in page
    assert "ultralytics computes at 64," in page
    own = ENVIRONMENT | {"precision": "fp32"}
    page = page_of(outcome, measured, side=224, environment=own)
    assert "fp32 for plumage" in page
    assert "bf16" not in page
    assert "ultralytics computes at 224," in page


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 2), (64, 4)])
def test_the_plain_script_takes_a_worker_for_each_core(tmp_path, peers, monkeypatch, cores, workers):
    def loader(*_, num_workers, **__):
        given.append(num_workers)
        raise KeyboardInterrupt

    script, given = importlib.import_module("use_plain"), []
    for side in ("train", "val"):
        (tmp_path / side / "a").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / side / "a" / "0.png")
    monkeypatch.setattr(script, "read_task", lambda: peers.Task(tmp_path, None, 1, 0, 32, tmp_path))
    monkeypatch.setattr(script.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(torch.utils.data, "DataLoader", loader)
    with pytest.raises(KeyboardInterrupt):
        script.main()
    assert given == [workers]


def test_no_code_of_the_product_imports_what_is_only_for_measuring():
    packages = {"fastai", "ultralytics", "timm", "psutil"}
    product = [file for room in ROOMS for file in modules(room)]
    assert ROOT / "engine" / "train.py" in product
    for file in product:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not packages & {name.partition(".")[0] for name in names}, file


def test_epochs_are_of_one_peer_or_of_all(peers):
    assert peers.budget("fastai=5,20") == {"fastai": [5, 20]}
    assert peers.budget("3") == {peer: [3] for peer in peers.PEERS}
    with pytest.raises(Exception, match="keras is not among plumage"):
        peers.budget("keras=3")
