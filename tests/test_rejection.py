"""Which predictions are sure enough: curves and thresholds by hand and by plain loops, and `predict --reject`."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, draw_photos
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from plumage import main
from plumage.errors import UserError
from plumage.inference import calibration, rejection
from plumage.rundir.folder import RunDir

SURE = np.array([0.9, 0.6, 0.8, 0.8, 0.5])
RIGHT = np.array([True, False, True, False, True])


def test_the_curve_by_hand():
    """Of equal confidences none is kept without the others."""
    coverage, risk = curve = rejection.risk_coverage(SURE, RIGHT)
    assert coverage.tolist() == [0.2, 0.6, 0.8, 1.0]
    assert risk.tolist() == [0, 1 / 3, 2 / 4, 2 / 5]
    assert curve.area == pytest.approx(0.2 * 0 + 0.4 / 3 + 0.2 / 2 + 0.2 * 2 / 5)


def test_without_ties_the_area_is_the_mean_error_over_the_pictures():
    rng = np.random.default_rng(0)
    sure = rng.permutation(500) / 500
    right = rng.random(500) < sure
    errors = [np.mean(~right[np.argsort(-sure)[: k + 1]]) for k in range(500)]
    assert rejection.risk_coverage(sure, right).area == pytest.approx(np.mean(errors))


def highest(errors, kept):
    """The upper end of Wilson's 95 % interval."""
    return stats.binomtest(int(errors), int(kept)).proportion_ci(0.95, "wilson").high


def test_thresholds_by_hand():
    """The ends of the intervals are 79.3 % of 0 of 1, 79.2 % of 1 of 3, 85 % of 2 of 4: 76.9 % of 2 of 5 is least."""
    assert rejection.thresholds(SURE, RIGHT).tolist() == [[pytest.approx(each) for each in (0.5, 1, highest(2, 5))]]
    points = rejection.thresholds(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, True, False]))
    assert points.tolist() == [
        [pytest.approx(each) for each in row] for row in ((0.65, 0.75, highest(0, 3)), (0.6, 1, highest(1, 4)))
    ]
    assert rejection.best_threshold(points, 0.56) is None
    assert rejection.best_threshold(points, 0.57) == rejection.best_threshold(points, 0.69) == (*points[0],)
    assert rejection.best_threshold(points, 0.7) == (*points[1],)


confident = st.lists(st.tuples(st.integers(0, 12).map(lambda n: n / 12), st.booleans()), min_size=1, max_size=60)


@given(confident, st.floats(0.01, 0.99))
def test_a_threshold_keeps_the_most_for_which_the_error_is_small_enough(pictures, error):
    """Against all possible thresholds, tried one by one; ties, all right, none right and one picture among them."""
    sure, right = np.array([one for one, _ in pictures]), np.array([one for _, one in pictures])
    points = rejection.thresholds(sure, right)
    fitting = []
    for lowest in sure:
        kept = sure >= lowest
        if highest((kept & ~right).sum(), kept.sum()) <= error:
            fitting.append(kept.sum())
    found = rejection.best_threshold(points, error)
    assert (found is None) == (not fitting)
    if found:
        kept = sure >= found.confidence
        assert kept.sum() == max(fitting)
        assert found.coverage == kept.mean()
        assert found.error == pytest.approx(highest((kept & ~right).sum(), kept.sum()))
        assert found.error <= error
    assert (np.diff(points, axis=0) * (-1, 1, 1) > 0).all()


def test_what_rounding_changes_decides_nothing():
    sure = np.array([0.7, 0.7 + 1e-12, 0.7 - 1e-12, 0.2])
    right = np.array([True, True, True, False])
    points = rejection.thresholds(sure, right)
    kept = points[0]
    assert kept.tolist() == [pytest.approx(0.45), 0.75, pytest.approx(highest(0, 3))]
    everything = points[-1]
    assert 0.2 - 1e-8 < everything[0] < 0.2


def test_of_many_thresholds_some_are_kept_those_at_both_ends_among_them():
    n = 5000
    sure, right = np.linspace(1, 0.1, n), np.arange(n) < n // 2
    every = rejection.thresholds(sure, right)
    assert len(every) == rejection.MOST
    assert every[0].tolist()[1:] == [0.5, pytest.approx(highest(0, n // 2))]
    assert every[-1].tolist()[1:] == [1.0, pytest.approx(highest(n // 2, n))]
    assert (np.diff(every, axis=0) * (-1, 1, 1) > 0).all()


@pytest.mark.parametrize("pictures", [50, 200])
@pytest.mark.parametrize("error", [0.02, 0.05, 0.1])
def test_what_is_promised_is_true_on_average_or_promised_rarely(pictures, error):
    """Over draws of pictures, each right with a probability that is its confidence, of density 4 x³ from 0 to 1."""
    rng = np.random.default_rng(0)
    true = []
    for _ in range(500):
        sure = rng.random(pictures) ** 0.25
        found = rejection.best_threshold(rejection.thresholds(sure, rng.random(pictures) < sure), error)
        if found:
            lowest = max(found.confidence, 0)
            true.append(1 - 4 / 5 * (1 - lowest**5) / (1 - lowest**4))
    assert len(true) < 0.05 * 500 or np.mean(true) <= error
    assert len(true) > 0.5 * 500 or (pictures, error) != (200, 0.1)


def test_of_a_score_that_tells_nothing_promises_are_rare():
    """A fifth of the pictures is wrong, however sure the network is."""
    rng = np.random.default_rng(0)
    draws = [rejection.thresholds(rng.random(200), rng.random(200) < 0.8) for _ in range(500)]
    assert np.mean([rejection.best_threshold(points, 0.1) is not None for points in draws]) < 0.02


def test_two_classes_and_ten_thousand():
    assert rejection.confidence(np.array([[0.3, 0.7], [0.5, 0.5]])).tolist() == [0.7, 0.5]
    of_many = np.full((3, 10_000), 1e-4)
    of_many[1, 7] = 0.25
    assert rejection.confidence(of_many).tolist() == [1e-4, 0.25, 1e-4]


def test_what_is_no_number_is_rejected():
    least = rejection.Threshold(0.5, 0.9, 0.1)
    cases = ([0.5, 0.5], [0.6, 0.4], [0.4, 0.3, 0.3], [np.nan, np.nan])
    assert [least.rejects(np.array(each)) for each in cases] == [False, False, True, True]


POINT = [0.9, 0.5, 0.1]
DAMAGED = {
    "null": None, "nothing": [], "numbers": [0.5], "texts": [["0.9", "0.5", "0.1"]], "of two": [[0.9, 0.5]],
    "ragged": [POINT, [0.8]], "not a number": [[float("nan"), 0.5, 0.1]], "infinite": [[0.9, 0.5, float("inf")]],
    "negative": [[-0.1, 0.5, 0.1]], "huge": [[10**400, 1, 1]], "true": [[True, True, True]], "an object": {"a": POINT},
    "twice the same": [POINT, POINT], "in another order": [[0.8, 0.9, 0.2], POINT],
    "deeper": [[POINT, POINT, POINT]], "too many": [[1 - n / 5000, n / 5000, n / 5000] for n in range(1, 1002)],
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_thresholds_are_refused_by_name(tmp_path, case):
    kept = {"temperature": 0.5, "weights": "abc", "thresholds": DAMAGED[case]}
    (tmp_path / "calibration.json").write_text(json.dumps(kept))
    with pytest.raises(UserError, match=r"calibration\.json is damaged") as error:
        rejection.threshold_for(RunDir(tmp_path), "abc", 0.5)
    assert "\n" not in str(error.value)


def test_thresholds_come_back_as_they_were_written(tmp_path):
    points = rejection.thresholds(np.random.default_rng(0).random(200), np.arange(200) % 7 > 0)
    (tmp_path / "calibration.json").write_text(
        json.dumps({"temperature": 0.5, "weights": "abc", "thresholds": points.tolist()})
    )
    found = rejection.threshold_for(RunDir(tmp_path), "abc", 0.99)
    assert found == tuple(points[-1])
    lowest = points[0, 2]
    with pytest.raises(UserError, match="the lowest that can be promised is ") as error:
        rejection.threshold_for(RunDir(tmp_path), "abc", lowest / 2)
    said = float(str(error.value).rsplit(" ", 1)[1])
    assert rejection.threshold_for(RunDir(tmp_path), "abc", said).confidence == points[0, 0]
    with pytest.raises(UserError, match="the lowest"):
        rejection.threshold_for(RunDir(tmp_path), "abc", float("nan"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """``photos`` of three classes, a fifth of them in another's folder, and ``run``, trained on them with a report."""
    home = tmp_path_factory.mktemp("home")
    draw_photos(home / "photos", 40)
    classes = sorted((home / "photos").iterdir())
    for number in range(8):
        files = [kind / f"{number}.jpg" for kind in classes]
        files[0].rename(home / "kept.jpg")
        for to, file in zip(files, [*files[1:], home / "kept.jpg"], strict=False):
            file.rename(to)
    command = ["main.py", "train", "--data", home / "photos", *TINY, "--epochs", "10", "--lr", "0.01", "--report"]
    command += ["--val-fraction", "0.5"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [*map(str, [*command, "--cache", home / "cache", "--run", home / "run"])])
        with pytest.raises(SystemExit) as end:
            main.main()
    assert not end.value.code
    return home


def predicted(cli, trained, *options):
    code, out, err = cli("predict", trained / "photos", "--run", trained / "run", *options)
    assert code == 0, err
    return list(csv.DictReader(io.StringIO(out))), err


def test_training_ends_calibrated_and_predict_rejects_what_it_is_not_sure_of(cli, trained):
    kept = json.loads((trained / "run" / "calibration.json").read_text())
    logits, labels = (np.load(trained / "run" / "eval-val.npz")[name] for name in ("logits", "labels"))
    assert kept["n"] == 60
    assert kept["temperature"] == (calibration.useful_temperature(logits, labels)[0] or 1.0)
    sure = calibration.confidences(logits, labels, kept["temperature"])
    points = rejection.thresholds(sure, logits.argmax(1) == labels)
    assert kept["thresholds"] == points.tolist()

    everything, err = predicted(cli, trained)
    assert err == ""
    error = float(points[0, 2])
    rows, err = predicted(cli, trained, "--reject", error)
    rejected = [float(row["probability"]) < points[0, 0] - 1e-6 for row in everything]  # they are rounded
    assert 0 < sum(rejected) < len(rows) == 120
    for row, whole, no in zip(rows, everything, rejected, strict=True):
        assert row == (whole | {"label": ""} if no else whole), (points[0].tolist(), row)
    assert f"--reject: {sum(rejected)} of 120 pictures are left without a label" in err
    # Of the validation pictures themselves just the share that was promised.
    with (trained / "run" / "split.csv").open(newline="", encoding="utf-8") as file:
        val = {str(trained / "photos" / row["path"]) for row in csv.DictReader(file) if row["split"] == "val"}
    assert np.mean([row["label"] != "" for row in rows if row["path"] in val]) == pytest.approx(points[0, 1], abs=0.05)


def test_no_number_is_no_share(cli, tmp_path):
    for value in ("nan", "0", "1", "-nan"):
        code, _, err = cli("predict", tmp_path, "--reject", value)
        assert (code, "is not in the range 0<x<1" in err) == (2, True)


def test_every_rank_is_empty_and_null_in_json(cli, trained):
    error = json.loads((trained / "run" / "calibration.json").read_text())["thresholds"][0][2]
    rows, _ = predicted(cli, trained, "--reject", error, "--top-k", "2", "--label", "index", "--probabilities")
    assert {(row["label"] == "", row["label_2"] == "") for row in rows} == {(True, True), (False, False)}
    assert all(float(row["probability"]) > 0 for row in rows)
    assert all((row["probability_2"] == "") == (row["label_2"] == "") for row in rows)
    command = ["predict", trained / "photos", "--run", trained / "run", "--format", "jsonl", "--reject", error]
    lines = [json.loads(line) for line in cli(*command)[1].splitlines()]
    assert [line["label"] is None for line in lines] == [row["label"] == "" for row in rows]
    assert all(line["probability"] > 0 for line in lines)


def refused(cli, *arguments):
    code, out, err = cli("predict", *arguments)
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


@pytest.mark.parametrize("error", ["0", "1", "2", "-0.1", "nan", "inf", "x"])
def test_an_error_that_is_none_is_refused(cli, trained, error):
    assert "reject" in refused(cli, trained / "photos", "--run", trained / "run", "--reject", error)


def test_what_cannot_be_promised_is_refused(cli, trained, tmp_path):
    place = [trained / "photos", "--run", trained / "run"]
    said = refused(cli, *place, "--reject", "0.0001")
    assert "the lowest that can be promised is" in said
    assert cli("predict", *place, "--reject", said.rsplit(" ", 1)[1])[0] == 0
    assert "--no-calibration" in refused(cli, *place, "--reject", "0.5", "--no-calibration")
    assert "no column for a label" in refused(cli, *place, "--reject", "0.9", "--columns", "id", "--probabilities")
    assert "--tta" in cli("predict", *place, "--reject", "0.9", "--tta")[2]

    run = shutil.copytree(trained / "run", tmp_path / "run")
    place = [trained / "photos", "--run", run]
    saved = torch.load(run / "checkpoints" / "best.pt")
    saved["model"]["fc.bias"] += 0.01
    torch.save(saved, tmp_path / "other.pt")
    again = f"python main.py eval --run {run} --calibrate"
    assert again in refused(cli, *place, "--reject", "0.9", "--checkpoint", tmp_path / "other.pt")
    older = json.loads((run / "calibration.json").read_text())
    del older["thresholds"]
    (run / "calibration.json").write_text(json.dumps(older))
    assert again in refused(cli, *place, "--reject", "0.9")
    (run / "calibration.json").unlink()
    assert again in refused(cli, *place, "--reject", "0.9")
    code, _, err = cli("eval", "--run", run, "--calibrate", "--cache", trained / "cache")
    assert code == 0, err
    assert cli("predict", *place, "--reject", "0.9")[0] == 0


def test_where_all_are_right_there_is_no_temperature_but_thresholds(cli, tmp_path, photos):
    """Learnt by heart: every picture validates, and trains under another name."""
    labels = ["path,label,split"]
    for file in sorted(photos.rglob("*.jpg")):
        shutil.copy(file, file.with_name(f"copy {file.name}"))
        name = f"{file.parent.name}/"
        labels += [
            f'"{name}{file.name}","{file.parent.name}",val',
            f'"{name}copy {file.name}","{file.parent.name}",train',
        ]
    (tmp_path / "labels.csv").write_text("\n".join(labels), encoding="utf-8")
    run = tmp_path / "run"
    command = ["train", "--data", photos, "--labels", tmp_path / "labels.csv", *TINY, "--epochs", "12", "--lr", "0.01"]
    code, _, err = cli(*command, "--report", "--run", run)
    assert code == 0, err
    assert "30 validation pictures tell no temperature: all are right" in err
    assert "without a report" not in err
    kept = json.loads((run / "calibration.json").read_text())
    assert (kept["temperature"], kept["nll"]) == (1.0, pytest.approx(kept["calibrated_nll"]))
    assert [row[1:] for row in kept["thresholds"]] == [[1.0, pytest.approx(highest(0, 30))]]
    assert "all are right" in (run / "report.html").read_text(encoding="utf-8")
    code, out, err = cli("predict", photos, "--run", run, "--reject", "0.12")
    assert code == 0, err
    assert all(row["label"] == Path(row["path"]).parent.name for row in csv.DictReader(io.StringIO(out)))
    assert "the lowest that can be promised is 0.1136" in refused(cli, photos, "--run", run, "--reject", "0.11")
