"""What an evaluation keeps for people, and says, of classes of unequal sizes."""

import csv
import json

import numpy as np
import pytest
from sklearn import metrics

from plumage.engine.evaluate import told
from plumage.errors import UserError
from plumage.files import write_json
from plumage.recipe import Recipe
from plumage.rundir.evaluation import Evaluation, Shown, read_evaluation
from plumage.rundir.folder import RunDir

NAMES = ["a,b", "=1+1", "grün", "often", "unseen"]
# often is right four times of six; =1+1 never, which grün is taken for twice; unseen has no picture.
LABELS = np.array([0, 0, 1, 1, 1, 2, 3, 3, 3, 3, 3, 3])
PREDICTED = np.array([0, 3, 2, 2, 3, 2, 3, 3, 3, 3, 0, 2])


def evaluation(labels=LABELS, predicted=PREDICTED, classes=5, **scores):
    n = len(labels)
    logits = np.eye(classes, dtype=np.float32)[predicted]
    bins = np.array([[n], [n], [0]], np.float32)
    none = Shown(np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, np.int64), np.zeros((0, 0, 0), np.float32))
    numbers = dict.fromkeys(("accuracy", "top5", "balanced_accuracy", "macro_f1", "loss", "nll", "ece"), 0.5)
    return Evaluation(
        split="val",
        **{**numbers, "logit_gap": 1.0, **scores},
        checkpoint="best",
        iteration=3,
        weights="",
        data="",
        precision="fp32",
        logits=logits,
        labels=labels,
        indices=np.arange(n),
        gaps=np.ones(n, np.float32),
        bins=bins,
        pictures={"samples": none},
    )


@pytest.fixture
def run(tmp_path):
    write_json(tmp_path / "recipe.json", Recipe().__dict__)
    write_json(tmp_path / "classes.json", NAMES)
    return RunDir(tmp_path)


def table(file):
    with file.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_the_table_of_classes(run):
    evaluation().save(run, "eval-val")
    rows = table(run.path / "eval-val-classes.csv")
    columns = ["class", "pictures", "predicted", "precision", "recall", "recall_low", "recall_high", "f1"]
    assert list(rows[0]) == columns
    assert [row["class"] for row in rows] == ["a,b", "'=1+1", "grün", "often", "unseen"]
    assert [int(row["pictures"]) for row in rows] == [2, 3, 1, 6, 0]
    assert [int(row["predicted"]) for row in rows] == [2, 0, 4, 6, 0]
    assert [float(row["recall"]) for row in rows[:4]] == pytest.approx([1 / 2, 0, 1, 4 / 6])
    assert [float(row["precision"] or -1) for row in rows[:4]] == pytest.approx([1 / 2, -1, 1 / 4, 4 / 6])
    assert [float(row["f1"]) for row in rows[:4]] == pytest.approx([1 / 2, 0, 2 / 5, 4 / 6])
    # Wilson's interval of 0 of 3: from 0 to z² / (3 + z²), with z = 1.96.
    assert [float(rows[1][name]) for name in ("recall_low", "recall_high")] == pytest.approx([0, 0.56150], abs=1e-5)
    assert [rows[4][name] for name in columns[3:]] == [""] * 5


@pytest.mark.parametrize("predicted", [PREDICTED, np.where(PREDICTED == 2, 4, PREDICTED)])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:.*is ill-defined")
def test_its_columns_have_the_means_that_are_printed(run, predicted):
    """Also where a class that has no picture is predicted, which scikit-learn counts for F1 and not for recall."""
    evaluation(predicted=predicted).save(run, "eval-val")
    rows = table(run.path / "eval-val-classes.csv")
    recall, f1 = (np.mean([float(row[name]) for row in rows if row[name]]) for name in ("recall", "f1"))
    assert recall == pytest.approx(metrics.balanced_accuracy_score(LABELS, predicted))
    assert f1 == pytest.approx(metrics.f1_score(LABELS, predicted, average="macro"))


def test_the_table_of_confusions_has_the_pairs_that_occur(run):
    evaluation().save(run, "eval-val")
    rows = table(run.path / "eval-val-confusion.csv")
    assert [tuple(row.values()) for row in rows] == [
        ("a,b", "a,b", "1"),
        ("a,b", "often", "1"),
        ("'=1+1", "grün", "2"),
        ("'=1+1", "often", "1"),
        ("grün", "grün", "1"),
        ("often", "a,b", "1"),
        ("often", "grün", "1"),
        ("often", "often", "4"),
    ]


def test_of_ten_thousand_classes_the_tables_stay_small(tmp_path):
    classes = 10_000
    write_json(tmp_path / "recipe.json", Recipe().__dict__)
    write_json(tmp_path / "classes.json", list(map(str, range(classes))))
    labels = np.arange(0, 50)
    evaluation(labels, labels[::-1], classes).save(RunDir(tmp_path), "eval-val")
    assert (tmp_path / "eval-val-confusion.csv").read_text().count("\n") == 51
    assert (tmp_path / "eval-val-classes.csv").read_text().count("\n") == 10_001


def test_what_is_said_beside_the_numbers():
    *numbers, never, guess = told(evaluation(balanced_accuracy=0.625), NAMES)
    assert "balanced accuracy   62.50%" in numbers
    assert never == "never right: 1 of 4 classes: =1+1"
    assert guess == "always guessing the most frequent class, often, would give 50.00%"
    *_, never, _ = told(evaluation(predicted=LABELS), NAMES)
    assert never == "never right: 0 of 4 classes"
    *_, never, _ = told(evaluation(LABELS, (LABELS + 1) % 5), ["\x1b", "b", "c", "d", "e"])
    assert never == "never right: 4 of 4 classes: d, b, \\x1b, c"


def test_the_most_frequent_class_of_equals_is_the_first():
    assert evaluation(np.array([2, 1, 2, 1]), np.zeros(4, int)).majority == (1, 0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, "7", {"a": 1}, [0.5], True, 10**400])
@pytest.mark.parametrize("name", ["top5", "loss", "nll", "ece", "logit_gap", "iteration"])
def test_numbers_that_are_none_are_refused_by_name(run, name, value):
    evaluation().save(run, "eval-val")
    file = run.path / "eval-val.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    if (name, value) == ("iteration", 10**400):
        return  # an integer like another
    with pytest.raises(UserError, match=rf"is damaged or old \(its {name} is none\)"):
        read_evaluation(run, 5, 12)


def test_what_the_arrays_tell_is_told_by_them(run):
    evaluation().save(run, "eval-val")
    file = run.path / "eval-val.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps({**about, "accuracy": 7, "balanced_accuracy": float("nan"), "macro_f1": {"a": 1}}))
    read = read_evaluation(run, 5, 12)
    assert read.accuracy == 6 / 12
    assert (read.balanced_accuracy, read.macro_f1) == pytest.approx(((1 / 2 + 1 + 4 / 6) / 4, (0.5 + 0.4 + 4 / 6) / 4))
    for share in ("top5", "ece"):
        file.write_text(json.dumps({**about, share: 7}))
        with pytest.raises(UserError, match=f"its {share} is none"):
            read_evaluation(run, 5, 12)
    file.write_text(json.dumps({**about, "iteration": None}))
    assert read_evaluation(run, 5, 12).iteration is None


def test_an_evaluation_of_before_the_numbers_over_classes_is_read_with_them(run):
    evaluation().save(run, "eval-val")
    file = run.path / "eval-val.json"
    about = json.loads(file.read_text())
    for name in ("balanced_accuracy", "macro_f1"):
        assert about.pop(name) == 0.5
    file.write_text(json.dumps(about))
    read = read_evaluation(run, 5, 12)
    assert read.balanced_accuracy == pytest.approx((1 / 2 + 0 + 1 + 4 / 6) / 4)
    assert read.macro_f1 == pytest.approx((1 / 2 + 0 + 2 / 5 + 4 / 6) / 4)
