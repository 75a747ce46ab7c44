from test_rundir import begin

from plumage.rundir.choose import newest_run, next_run


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
