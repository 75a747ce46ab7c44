import json
import logging
import os
import time
from contextlib import ExitStack

import pytest
from test_rundir import begin

from plumage.errors import UserError
from plumage.recipe import Recipe
from plumage.rundir.choose import find_run, find_runs, newest_run, next_run, open_run


def test_the_next_number_is_above_all_that_are_there(tmp_path):
    assert next_run(tmp_path / "runs", "/data/my photos").path == tmp_path / "runs" / "my photos-1"
    for name in ("birds-1", "birds-7", "birds-x", "cub200-9"):
        (tmp_path / name).mkdir()
    assert next_run(tmp_path, "birds").path.name == "birds-8"


def test_the_newest_run_is_the_one_begun_last(tmp_path):
    assert newest_run(tmp_path / "none") is None
    begin(tmp_path / "a", time=3)
    begin(tmp_path / "b", "birds", time=2)
    begin(tmp_path / "c", time=1)
    (tmp_path / "d").mkdir()
    assert newest_run(tmp_path).path.name == "a"
    assert newest_run(tmp_path, "birds").path.name == "b"


def test_a_run_that_is_named_is_taken(tmp_path):
    assert [next_run(tmp_path, "birds").path.name for _ in range(3)] == ["birds-1", "birds-2", "birds-3"]


def test_a_damaged_run_does_not_hide_another(tmp_path):
    begin(tmp_path / "good", time=1)
    (begin(tmp_path / "bad", time=2).path / "recipe.json").write_text("{")
    assert newest_run(tmp_path, "cub200").path.name == "good"


def test_of_one_name_the_highest_number_is_the_newest_whatever_the_times_say(tmp_path):
    times = {"birds-2": 5, "birds-10": 1, "birds-9": time.time() + 10**6, "birds-x": 0.5, "b": 0.2}
    for name, changed in times.items():
        begin(tmp_path / name, time=changed)
    assert newest_run(tmp_path).path.name == "birds-10"


def test_of_several_names_the_latest_is_the_newest_but_no_time_to_come_counts(tmp_path):
    now = time.time()
    begin(tmp_path / "a-7", time=now - 50)
    begin(tmp_path / "b-1", time=now - 40)
    begin(tmp_path / "c-3", time=now + 10**6)
    assert newest_run(tmp_path).path.name == "b-1"
    os.utime(tmp_path / "a-7" / "recipe.json", (now, now + 1))  # another machine's clock
    assert newest_run(tmp_path).path.name == "a-7"
    for name in ("a-7", "b-1"):
        os.utime(tmp_path / name / "recipe.json", (9, now + 10**6))
    assert newest_run(tmp_path).path.name == "a-7"  # where all are to come, the number decides


@pytest.mark.parametrize("given", [True, False])
def test_the_run_that_was_not_given_is_named(tmp_path, monkeypatch, caplog, given):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "plumage")
    for number in (1, 2):
        begin(tmp_path / "runs" / f"cub200-{number}", time=5 - number)
    path, named = (tmp_path / "runs" / "cub200-2") if given else None, "runs/cub200-2: the newest run"
    assert find_run(path).path.name == "cub200-2"
    assert caplog.messages == [named] * (not given)
    with ExitStack() as stack:
        run, _ = open_run(stack, path, {}, Recipe.create({"data": "cub200"}), True, None)
    assert run.path.name == "cub200-2"
    assert caplog.messages[1:] == [f"{named} of cub200"] * (not given)


def test_an_ablation_names_its_runs(tmp_path):
    names = [f"lr=0.1,seed={number}" for number in range(12)]
    for name in names:
        begin(tmp_path / "an abl" / name)
    (tmp_path / "an abl" / "ablation.json").write_text(json.dumps({"runs": [{"run": name} for name in names]}))
    for find in (lambda folder: find_run(folder), lambda folder: find_runs([tmp_path / "an abl" / names[0], folder])):
        with pytest.raises(UserError, match="is an ablation") as error:
            find(tmp_path / "an abl")
        assert str(error.value).endswith(
            " ".join(f"--run '{tmp_path / 'an abl' / name}'" for name in names[:10]) + " …"
        )


def test_a_run_that_is_given_again_counts_once_and_it_says_so(tmp_path, caplog):
    caplog.set_level("INFO", "plumage")
    begin(tmp_path / "a"), begin(tmp_path / "b")
    (tmp_path / "c").symlink_to("a")
    found = find_runs([tmp_path / name for name in "abca"])
    assert [run.path.name for run in found] == ["a", "b"]
    assert caplog.messages == [
        f"--run {tmp_path / name}: is given already, as {tmp_path / 'a'}, and counts once" for name in "ca"
    ]
