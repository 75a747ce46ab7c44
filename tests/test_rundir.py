import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from time import time

import pytest

import plumage.files
from plumage.errors import UserError
from plumage.files import write_json
from plumage.recipe import Recipe
from plumage.rundir.folder import RunDir

ROOT = Path(plumage.rundir.folder.__file__).parents[1]


def begin(path, data="cub200", time=0, **options):
    path.mkdir(parents=True)
    run = RunDir(path)
    write_json(run.path / "recipe.json", {**Recipe.create({"data": data, **options}).__dict__})
    os.utime(path / "recipe.json", (time, time))
    return run


def rows(*accuracies):
    return [{"epoch": number + 1, "val_accuracy": accuracy} for number, accuracy in enumerate(accuracies)]


def test_history_is_cut_to_what_a_checkpoint_knows(tmp_path):
    run = begin(tmp_path / "run")
    for row in rows(0.1, 0.3, 0.2):
        run.history.add(row)
    with (run.path / "history.jsonl").open("a") as handle:
        handle.write('{"epoch": 4, "val_acc')  # the process was killed
    assert run.history == rows(0.1, 0.3, 0.2)
    run.history.keep(2)
    assert run.history == rows(0.1, 0.3)
    run.history.keep(0)
    assert run.history == []


def epochs(run, *values):
    """Give the run a history of (accuracy, balanced accuracy, loss)."""
    names = ("val_accuracy", "val_balanced_accuracy", "val_loss")
    for number, each in enumerate(values, 1):
        run.history.add({"epoch": number, **dict(zip(names, each, strict=True))})
    return run.history


@pytest.mark.parametrize(
    ("by", "best", "line"),
    [
        ("accuracy", 3, "best epoch 3: validation accuracy 30.00%"),
        ("balanced-accuracy", 4, "best epoch 4: validation accuracy 20.00%, balanced accuracy 60.00%"),
        ("loss", 5, "best epoch 5: validation accuracy 10.00%, loss 0.5000"),
    ],
)
def test_what_makes_an_epoch_the_best_and_of_equals_the_loss_decides(tmp_path, by, best, line):
    run = begin(tmp_path / "run", best=by)
    history = epochs(
        run, (0.1, 0.2, 3), (0.3, 0.2, 2), (0.3, 0.1, 1), (0.2, 0.1 + 0.2 + 0.3, 1), (0.1, 0.6, 0.5), (0.3, 0.1, 1)
    )
    if by == "balanced-accuracy":  # 0.1 + 0.2 + 0.3 is more than 0.6 in its last digit only
        assert history.best["epoch"] == 5
        history[4]["val_loss"] = 1.5
    assert history.best["epoch"] == best
    assert history.best_line == line


def test_of_equal_epochs_of_before_there_was_a_choice_the_earlier_is_best(tmp_path):
    run = begin(tmp_path / "run")
    for row, loss in zip(rows(0.1, 0.3, 0.3, 0.2), (4, 3, 2, 1), strict=True):
        run.history.add({**row, "val_loss": loss})
    assert run.history.best["epoch"] == 2


@pytest.mark.parametrize(
    ("by", "changes"),
    [
        ("accuracy", {"val_accuracy": None}),
        ("accuracy", {"val_loss": "1"}),
        ("accuracy", {"val_loss": float("nan")}),
        ("loss", {"val_balanced_accuracy": float("inf")}),
        ("balanced-accuracy", {"val_balanced_accuracy": [0.5]}),
        ("balanced-accuracy", {"val_balanced_accuracy": ...}),
        ("loss", {"val_balanced_accuracy": ..., "val_loss": ...}),
    ],
)
def test_what_epochs_are_compared_by_must_be_a_number(tmp_path, by, changes):
    run = begin(tmp_path / "run", best=by)
    row = {"epoch": 1, "val_accuracy": 0.5, "val_balanced_accuracy": 0.5, "val_loss": 1.0}
    run.history.add(row)
    assert run.history == [row]
    row = {name: value for name, value in {**row, **changes}.items() if value is not ...}
    (run.path / "history.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"history\.jsonl is damaged"):
        _ = run.history
    assert run.readable_history(by).damaged


@pytest.mark.parametrize("name", ["split.csv", "history.jsonl", "checkpoints"])
def test_a_folder_that_holds_other_things_of_these_names_is_left_alone(tmp_path, name):
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"holds a {name} but no recipe"):
        RunDir(tmp_path).check_writable()


def test_a_place_that_can_be_written_or_not(tmp_path):
    (tmp_path / "file").touch()
    RunDir(tmp_path).check_writable()
    RunDir(tmp_path / "new" / "run").check_writable()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="--run"):
            RunDir(path).check_writable()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="--run"):
        RunDir(tmp_path / "run").check_writable()


def test_files_that_are_damaged_are_named(tmp_path):
    run = begin(tmp_path / "run")
    for text in ("{", json.dumps({"a": 1}), json.dumps([1, 2])):
        (run.path / "classes.json").write_text(text)
        with pytest.raises(UserError, match=r"classes\.json"):
            _ = run.classes
    for text in (b'{"epoch": 1, "val_accuracy": 0.5}\nnonsense\n', b"[]\n", b'{"epoch": 1}\n', b"\xff\n", b"7\n"):
        (run.path / "history.jsonl").write_bytes(text)
        with pytest.raises(UserError, match=r"history\.jsonl is damaged"):
            _ = run.history
    (run.path / "history.jsonl").unlink()
    with pytest.raises(UserError, match=r"history\.jsonl has lost"):
        _ = run.history.best
    (run.path / "environment.json").write_text("[]")
    assert run.precision == "auto"


def test_only_one_process_has_a_run_and_the_lock_dies_with_it(tmp_path):
    run = RunDir(tmp_path / "run")
    code = "import sys; from pathlib import Path; from plumage.rundir.folder import RunDir\n"
    code += "with RunDir(Path(sys.argv[1])).locked(): print('locked', flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", code, run.path], cwd=ROOT, stdin=pipe, stdout=pipe, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="another training is at work"), run.locked():
            pass
        assert (run.path / ".lock").exists()  # the other's, not to be taken away
        other.kill()
    with run.locked():
        assert run.path.is_dir()
    assert not run.path.exists()  # no run began


@pytest.mark.parametrize("moment", ["mkdir", "open", "flock"])
def test_a_lock_that_goes_as_it_is_taken_is_taken_again(tmp_path, monkeypatch, moment):
    """Another training that wrote nothing ends, and takes all away, just as this one takes its run."""
    run, calls = RunDir(tmp_path / "run"), []
    owner = {"mkdir": os, "open": os, "flock": plumage.files.fcntl}[moment]
    original = getattr(owner, moment)

    def ends_first(*args, **options):
        calls.append(moment)
        if len(calls) == 1 and moment != "mkdir":
            shutil.rmtree(run.path)
        try:
            return original(*args, **options)
        finally:
            if len(calls) == 1 and moment == "mkdir":  # it is found to be there, and then is not
                run.path.rmdir()

    run.path.mkdir()
    monkeypatch.setattr(owner, moment, ends_first)
    with run.locked():
        monkeypatch.undo()
        assert len(calls) > 1
        with pytest.raises(UserError, match="another training is at work"), RunDir(run.path).locked():
            pass


def test_a_training_takes_no_other_ones_lock_away(tmp_path):
    run = RunDir(tmp_path / "run")
    with run.locked():
        (run.path / ".lock").unlink()
        run.path.rmdir()
        other = RunDir(run.path).locked()
        other.__enter__()
    with pytest.raises(UserError, match="another training is at work"), run.locked():
        pass
    other.__exit__(None, None, None)
    assert not run.path.exists()


def test_two_processes_never_have_a_run_at_once(tmp_path):
    """Each takes the run and writes nothing, again and again; whoever has it makes a file that must not be there."""
    code = "import os, sys; from pathlib import Path; from plumage.errors import UserError\n"
    code += "from plumage.rundir.folder import RunDir\n"
    code += "mine, had = Path(sys.argv[2]), 0\n"
    code += "sys.stdin.read(1)\n"
    code += "while had < 300:\n"
    code += "    try:\n"
    code += "        with RunDir(Path(sys.argv[1])).locked():\n"
    code += "            os.close(os.open(mine, os.O_CREAT | os.O_EXCL)); mine.unlink(); had += 1\n"
    code += "    except UserError: pass\n"
    command = [sys.executable, "-c", code, tmp_path / "run", tmp_path / "mine"]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, cwd=ROOT, stdin=pipe, stderr=pipe, text=True) for _ in range(2)]
    for process in both:
        process.stdin.write("!")
        process.stdin.flush()
    assert [process.communicate()[1] for process in both] == ["", ""]


@pytest.mark.parametrize("there", ["file", "link", "locks_link"])
def test_what_can_be_no_lock_ends_and_is_not_followed(tmp_path, there):
    run = RunDir(tmp_path / "run")
    if there == "file":
        run.path.touch()
    elif there == "link":
        run.path.symlink_to(tmp_path / "nowhere")
    else:
        run.path.mkdir()
        (run.path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="run"), run.locked():
        pass
    assert not (tmp_path / "precious").exists()


def test_what_a_killed_training_left_half_written_goes(tmp_path):
    run = begin(tmp_path / "run")
    for folder in ("", "checkpoints", "figures"):
        (run.path / folder).mkdir(exist_ok=True)
        for name, age in ((".draft-old", 2 * 86_400), (".draft-new", 0)):
            (run.path / folder / name).write_text("half")
            os.utime(run.path / folder / name, (time() - age, time() - age))
    with run.locked():
        pass
    left = sorted(str(path.relative_to(run.path)) for path in run.path.rglob(".draft-*"))
    assert left == [".draft-new", "figures/.draft-new"]  # which an evaluation may be writing


def test_a_training_that_was_killed_as_it_began_can_begin_again(tmp_path):
    run = RunDir(tmp_path / "run")
    with run.locked():
        write_json(run.path / "classes.json", [])
    run.check_writable()


def test_what_a_run_has_written_stays_when_its_lock_goes(tmp_path):
    run = RunDir(tmp_path / "run")
    with run.locked():
        write_json(run.path / "recipe.json", {})
    assert run.holds_run


def test_a_disk_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(plumage.files.fcntl, "flock", no_locks)
    caplog.set_level("INFO", "plumage")
    with RunDir(tmp_path / "run").locked():
        assert "No locks available" in caplog.text


def test_a_write_that_fails_names_its_file(tmp_path):
    limited = "import resource, signal, sys; from pathlib import Path; from plumage.rundir.folder import RunDir\n"
    limited += "from plumage.files import write_json\n"
    limited += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (5, 5))\n"
    for write in ("write_json(run.path / 'recipe.json', 'too long')", "run.history.add({'epoch': 1})"):
        code = limited + f"run = RunDir(Path({str(tmp_path)!r}))\n"
        code += f"try: {write}\nexcept OSError as error: sys.exit(error.filename)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.stderr.strip() in (str(tmp_path / "recipe.json"), str(tmp_path / "history.jsonl"))


def test_a_run_that_has_lost_its_recipe_is_not_begun_again(tmp_path):
    run = RunDir(tmp_path / "run")
    with run.locked():
        write_json(run.path / "classes.json", ["a"])
    run.check_writable()  # killed as it began
    (run.path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"holds a checkpoints but no recipe\.json"):
        run.check_writable()


def test_a_run_begun_earlier_stays_the_earlier_where_its_pictures_move(tmp_path):
    run = RunDir(tmp_path)
    run.remember(Recipe())
    os.utime(tmp_path / "recipe.json", (1e9, 1e9))
    run.remember(Recipe(epochs=3))
    assert (run.recipe.epochs, (tmp_path / "recipe.json").stat().st_mtime) == (3, 1e9)
