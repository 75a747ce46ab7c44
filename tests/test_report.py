"""The report, of run directories written by hand, and at the end of a training."""

import csv
import json
import re
import tracemalloc
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from conftest import TINY
from sklearn.metrics import confusion_matrix

import plumage.report.page
import plumage.report.sections
import plumage.rundir.suspects
from plumage.engine.metrics import calibration_bins, logit_gap
from plumage.errors import UserError
from plumage.inference.calibration import best_temperature, confidences, cross_fitted, cross_rejected
from plumage.inference.rejection import best_threshold, thresholds
from plumage.recipe import Recipe
from plumage.report import figures
from plumage.report.compare import seed_rows
from plumage.report.labels import run_names
from plumage.report.page import write_report
from plumage.report.reading import read_run
from plumage.report.style import drawable
from plumage.rundir.evaluation import view_side
from plumage.rundir.suspects import Suspect

EVIL = [
    "<b>bold</b> & \"quoted\" 'class'",
    "line\nbreak </td></table>",
    "$x_1$ <script>alert(1)</script>",
    "günstig 鳥",
    "\x1b[31mred\x07\x9b\r",
    "\u202eturned\u2066\u200f",
]
SHOWN = [*EVIL[:4], r"\x1b[31mred\x07\x9b\r", r"\u202eturned\u2066\u200f"]
LOOK_FIRST = ["Classes, worst first", "What is taken for what", "The most confident mistakes"]
REST = ["Data", "Model and recipe", "Environment", "To reproduce it"]
SECTIONS = [*LOOK_FIRST, "Learning curves", "How sure it is", *REST]


def make_run(path, names=EVIL, epochs=3, done=None, each=6, evaluate=True, seed=0, noise=1.5, side=32, **options):
    """What a training writes, of ``each`` training pictures and half as many validation pictures per class."""
    path.mkdir(parents=True)
    rng, val = np.random.default_rng(seed), each // 2
    recipe = Recipe.create(
        {"data": "birds", "preset": "demo", "epochs": epochs, "warmup_epochs": 0.0, "seed": seed, **options}
    )
    if side > recipe.crop:
        recipe = replace(recipe, resize=side, crop=side)
    about = {"python": "3.11", "packages": {"torch": "2.6"}, "cpu": "A <CPU>", "threads": 2, "gpu": None}
    about |= {"precision": "fp32", "git_commit": "abc", "command": "python main.py train --data 'a & b'"}
    (path / "recipe.json").write_text(json.dumps(recipe.__dict__))
    (path / "environment.json").write_text(json.dumps(about))
    (path / "classes.json").write_text(json.dumps(names))
    with (path / "split.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as handle:
        rows = [("path", "label", "split")]
        rows += [
            (f"{k}/{i}.jpg", name, "val" if i < val else "train")
            for k, name in enumerate(names)
            for i in range(each + val)
        ]
        csv.writer(handle).writerows(rows)
    (path / "skipped.csv").write_text("path,reason\nbad <file>.jpg,is broken\n")
    history = []
    for epoch in range(1, (epochs if done is None else done) + 1):
        row = {"epoch": epoch, "iteration": 10 * epoch, "lr": 0.1 / epoch, "seconds": 5.0, "images_per_second": 9.0}
        row |= {
            "train_loss": 3 / epoch,
            "train_accuracy": min(0.1234 * epoch, 1),
            "val_loss": 2.5 / epoch,
            "val_nll": 2 / epoch,
        }
        accuracy = 0.2345 * min(epoch, 2) + 0.01 * seed - 0.02 * (noise - 1.5)
        history.append(row | {"val_accuracy": accuracy, "val_top5": 0.4567 * min(epoch, 2)})
    (path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    if evaluate:
        labels, indices = (
            np.repeat(np.arange(len(names)), val),
            [n for n, row in enumerate(rows[1:]) if row[2] == "val"],
        )
        logits = (4 * np.eye(len(names))[labels] + noise * rng.normal(size=(len(labels), len(names)))).astype(
            np.float32
        )
        right = logits.argmax(1) == labels
        chosen = {"samples": np.arange(12), "mistakes": np.flatnonzero(~right)[:24], "right": np.flatnonzero(right)[:8]}
        shown = {f"{kind}_rows": rows_of for kind, rows_of in chosen.items()}
        for kind, rows_of in chosen.items():
            length, cells = (side, 0) if kind == "samples" or side < 32 else (view_side(side), 7)
            shown[f"{kind}_pixels"] = rng.integers(0, 255, (len(rows_of), length, length, 3)).astype(np.uint8)
            shown[f"{kind}_maps"] = rng.normal(size=(len(rows_of), cells, cells)).astype(np.float32)
        gaps, bins = logit_gap(torch.tensor(logits)), calibration_bins(torch.tensor(logits), torch.tensor(labels))
        arrays = {"logits": logits, "labels": labels, "indices": np.array(indices), "gaps": gaps, "bins": bins}
        np.savez(path / "eval-val.npz", **arrays, **shown)
        about = {"accuracy": float(np.mean(logits.argmax(1) == labels)), "checkpoint": "best", "iteration": 20}
        (path / "eval-val.json").write_text(
            json.dumps({**about, "top5": 1.0, "loss": 1.5, "nll": 1.25, "ece": 0.0625, "logit_gap": float(gaps.mean())})
        )
    return path


class Reader(HTMLParser):
    """Checks that what is opened is closed, in order, and collects texts, tables' cells, and what would be fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.sources, self.names, self.texts, self.tables = [], [], [], [], {}, []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        self.names += [value for name, value in attributes if name == "id"]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")
            if tag == "table":
                self.tables.append([])
            if tag == "tr":
                self.tables[-1].append([])
            if tag in ("td", "th"):
                self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


def read(file):
    text = file.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert "script" not in reader.tags
    inside = [source[1:] for source in reader.sources if source.startswith("#")]
    assert set(inside) <= set(reader.names)
    pictures = [source for source in reader.sources if not source.startswith("#")]
    assert all(re.match(r"data:image/(jpeg|svg\+xml);base64,[A-Za-z0-9+/]+=*$", source) for source in pictures)
    assert not re.search(r"https?://|url\(|@import", text)
    return reader


def test_every_section_in_its_order_and_the_numbers_of_the_files(tmp_path):
    run = make_run(tmp_path / "my <run>")
    write_report([run], run / "report.html")
    page = read(run / "report.html")
    assert page.texts["h1"] == ["my <run>"]
    assert page.texts["h2"] == SECTIONS
    tiles = dict(zip(page.texts["dt"], page.texts["dd"], strict=True))
    assert (tiles["validation accuracy"], tiles["validation top-5"]) == ("46.90%", "91.34%")
    assert (tiles["training accuracy"], tiles["validation loss"], tiles["training loss"]) == (
        "24.68%",
        "1.2500",
        "1.5000",
    )
    assert (tiles["classes"], tiles["pictures"], tiles["time"]) == ("6", "54", "0:00:15")
    assert page.texts["pre"][0].splitlines() == ["git checkout abc", "python main.py train --data 'a & b'"]
    assert not list(run.rglob("*.tmp*"))
    names = {"loss", "accuracy", "learning-rate", "gap", "calibration", "risk-coverage", "confusion"}
    assert {file.stem for file in (run / "figures").glob("*.png")} == names


def test_calibration_is_judged_on_pictures_that_it_was_not_fitted_on(tmp_path):
    """And what `predict --reject` keeps: as the functions say it that are tested by hand."""
    path = make_run(tmp_path / "run", each=120, noise=1.5)
    write_report([path], path / "report.html")
    page, evaluation = read(path / "report.html"), read_run(path).evaluation
    logits, labels, right = evaluation.logits, evaluation.labels, evaluation.right
    tiles = dict(zip(page.texts["dt"], page.texts["dd"], strict=True))
    temperature, after = best_temperature(logits, labels), cross_fitted(logits, labels)
    assert tiles["temperature"] == f"{temperature:.3f}"
    assert tiles["NLL, before and after"] == f"{evaluation.nll:.3f} → {after.nll:.3f}"
    assert tiles["calibration error (ECE), before and after"] == f"{evaluation.ece:.1%} → {after.ece:.1%}"
    points = thresholds(confidences(logits, labels, temperature), right)
    kept = page.texts["td"][page.texts["td"].index("0.01") :][:12]
    assert kept[::3] == ["0.01", "0.02", "0.05", "0.1"]
    shares = [f"{found.coverage:.1%}" if (found := best_threshold(points, float(e))) else "none" for e in kept[::3]]
    assert kept[1::3] == shares
    assert "none" in shares
    assert shares[-1] != "none"
    wrong = [
        f"{each:.2%}" if each is not None else "–" for each in cross_rejected(logits, labels, [*map(float, kept[::3])])
    ]
    assert wrong[-1] != "–"
    assert kept[2::3] == wrong


@pytest.mark.parametrize(("noise", "seed", "says"), [(0.0, 0, "all are right"), (2.5, 3, "they are too few")])
def test_a_page_where_no_temperature_is_told(tmp_path, noise, seed, says):
    path = make_run(tmp_path / "run", noise=noise, seed=seed)
    write_report([path], path / "report.html")
    page = read(path / "report.html")
    assert any("These pictures tell no temperature" in text and says in text for text in page.texts["p"])
    assert "NLL" in page.texts["dt"]
    assert "temperature" not in page.texts["dt"]


def test_the_number_to_publish_is_that_of_the_test_pictures(tmp_path):
    run = make_run(tmp_path / "run")  # of each of six classes six pictures train, and three validate
    before = read_run(run).counts("train")
    with (run / "split.csv").open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows((f"test/{number}.jpg", EVIL[3], "test") for number in range(4))
    counts = {side: read_run(run).counts(side).tolist() for side in ("train", "val", "test")}
    assert counts == {"train": before.tolist(), "val": [3] * 6, "test": [0, 0, 0, 4, 0, 0]}
    write_report([run], run / "report.html")
    page = read(run / "report.html")
    assert "36 training, 18 validation and 4 test pictures" in " ".join(
        page.texts["section"][SECTIONS.index("Data")].split()
    )
    assert f"python main.py eval --run {run} --split test" in page.texts["code"]
    about = {"accuracy": 0.625, "n": 4, "checkpoint": "best", "iteration": 20}
    (run / "eval-test.json").write_text(json.dumps(about))
    write_report([run], run / "report.html")
    page = read(run / "report.html")
    assert dict(zip(page.texts["dt"], page.texts["dd"], strict=True))["test accuracy, n = 4"] == "62.50%"
    assert "The number to publish is the test accuracy" in page.texts["header"][0]
    (run / "eval-test.json").write_text(json.dumps({**about, "checkpoint": "last", "iteration": 30}))
    write_report([run], run / "report.html")
    assert (
        "The test accuracy is of checkpoint last, not of the best epoch" in read(run / "report.html").texts["header"][0]
    )
    for damage in (
        {"accuracy": None},
        {"accuracy": 2},
        {"accuracy": "<b>"},
        {"n": 0},
        {"n": "4"},
        {"accuracy": float("nan")},
    ):
        (run / "eval-test.json").write_text(json.dumps({**about, **damage}))
        with pytest.raises(
            UserError, match=r"eval-test\.json is damaged: python main.py eval .* --split test writes it"
        ):
            write_report([run], run / "report.html")


def test_class_names_are_text_whatever_they_hold(tmp_path):
    run = make_run(tmp_path / "run", noise=4)
    write_report([run], run / "report.html")
    page = read(run / "report.html")
    assert set(SHOWN) < set(page.texts["td"])
    for text in page.texts["div"]:
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", text)
    assert "bad <file>.jpg" in page.texts["td"]


def test_what_differs_from_the_preset_is_marked(tmp_path):
    run = make_run(tmp_path / "run", epochs=3, batch_size=32, lr=0.2, smoothing=0.0)
    write_report([run], run / "report.html")
    page = read(run / "report.html")
    marked = [text for text in page.texts["b"] if text.startswith("--")]
    assert marked == ["--batch-size", "--lr", "--epochs", "--smoothing", "--warmup-epochs"]
    assert "3 (preset: 7)" in page.texts["td"]
    assert "no finite gap is optimal" in "".join(page.texts["p"])


def test_columns_of_numbers_are_set_to_the_right_whatever_the_names_look_like(tmp_path):
    runs = [make_run(tmp_path / f"{seed}", names=["1", "2", "3", "none"], seed=seed, lr=0.1 + seed) for seed in (0, 1)]
    changed = json.loads((runs[1] / "environment.json").read_text()) | {"git_commit": "1234567"}
    (runs[1] / "environment.json").write_text(json.dumps(changed))
    write_report(runs[:1], tmp_path / "one.html")
    write_report(runs, tmp_path / "two.html")
    classes = (
        '<th>class</th><th class="number">accuracy</th><th class="number">95 % interval</th><th class="number">right'
    )
    assert classes in (tmp_path / "one.html").read_text()
    head = '<th>run</th><th class="number">--lr</th><th class="number">--seed</th><th>git commit</th></tr>'
    assert head in (tmp_path / "two.html").read_text()


def test_an_unfinished_run_and_what_is_missing(tmp_path):
    run = make_run(tmp_path / "a run", epochs=5, done=1, evaluate=False)
    write_report([run], run / "report.html")
    page = read(run / "report.html")
    assert "Unfinished: 1 of 5 epochs are done." in page.texts["p"]
    assert any(f"python main.py eval --run '{run}'" in text for text in page.texts["code"])
    assert page.texts["h2"] == ["Evaluation", "Learning curves", *REST]
    assert "46.90%" not in page.texts["dd"]


def test_before_the_first_epoch(tmp_path):
    run = make_run(tmp_path / "run", done=0, evaluate=False)
    write_report([run], run / "report.html")
    assert "No epoch is done yet." in read(run / "report.html").texts["p"]


def test_one_epoch_two_classes_and_one_that_is_never_validated(tmp_path):
    run = make_run(tmp_path / "run", names=["a", "b"], epochs=1, each=24)
    split = run / "split.csv"
    split.write_text(split.read_text().replace("b,val", "b,train"))
    write_report([run], run / "report.html")
    assert any(text.endswith(": b") for text in read(run / "report.html").texts["p"])


def test_an_evaluation_without_pictures_says_how_to_make_them(tmp_path):
    run = make_run(tmp_path / "run", noise=4)
    with np.load(run / "eval-val.npz") as content:
        arrays = {name: content[name] for name in ("logits", "labels", "indices", "gaps", "bins")}
    np.savez(run / "eval-val.npz", **arrays)
    write_report([run], run / "report.html")
    page = read(run / "report.html")
    assert page.texts["h2"] == SECTIONS
    assert any("kept no pictures" in text for text in page.texts["p"])


def test_two_hundred_classes_stay_small(tmp_path):
    run = make_run(tmp_path / "run", names=[f"Species of Bird {n}" for n in range(200)], epochs=60, each=24)
    write_report([run], run / "report.html")
    page = read(run / "report.html")
    assert (run / "report.html").stat().st_size < 3_000_000
    assert sum(text.startswith("Species") for text in page.texts["td"]) > 200


def test_what_is_taken_for_what_has_names_and_numbers(tmp_path):
    """Up to 30 classes: each cell as scikit-learn counts it."""
    run = make_run(tmp_path / "run", names=[f"name {n:02}" for n in range(30)], noise=2)
    write_report([run], run / "report.html")
    page = read(run / "report.html")
    evaluation = read_run(run).evaluation
    matrix = confusion_matrix(evaluation.labels, evaluation.predictions)
    rows, columns = matrix_of(page)
    assert columns == list(rows)
    assert sorted(columns) == [f"name {n:02}" for n in range(30)]
    for name, cells in rows.items():
        counts = [matrix[int(name[-2:]), int(column[-2:])] for column in columns]
        assert cells == [str(count) if count else "" for count in counts]


def matrix_of(page):
    """Return the first matrix's cells by the row's name, and the columns' names."""
    table = next(table for table in page.tables if table[0][0] == "" and len(table[0]) > 1)
    return {row[0]: row[1:] for row in table[1:]}, table[0][1:]


def test_of_many_classes_the_groups_are_listed_and_the_worst_is_shown(tmp_path):
    """Families of five classes that are confused with each other, the last one's most."""
    run, names = tmp_path / "run", [f"class {n}" for n in range(40)]
    make_run(run, names=names, each=24, noise=0.5)
    with np.load(run / "eval-val.npz") as content:
        arrays = dict(content)
    labels = arrays["labels"]
    arrays["logits"] += 3 * (labels[:, None] // 5 == np.arange(40) // 5)
    arrays["logits"][labels >= 35] = np.roll(np.eye(40), -35, 1)[np.arange(60) % 5].repeat(1, 0) * 9
    np.savez(run / "eval-val.npz", **arrays)
    write_report([run], run / "report.html")
    page, evaluation = read(run / "report.html"), read_run(run).evaluation
    groups = next(table for table in page.tables if table[0][:2] == ["group", "classes, similar ones side by side"])
    listed = [set(row[1].split(", ")) for row in groups[1:]]
    assert all(len({int(name[6:]) // 5 for name in group}) <= 3 for group in listed)
    rows, columns = matrix_of(page)
    assert {f"class {n}" for n in range(35, 40)} <= set(rows)
    matrix = confusion_matrix(evaluation.labels, evaluation.predictions)
    for name, cells in rows.items():
        true = int(name[6:])
        counts = [matrix[true, int(column[6:])] for column in columns if column != "any other class"]
        counts += [matrix[true].sum() - sum(counts)] if "any other class" in columns else []
        assert cells == [str(count) if count else "" for count in counts]


def test_memory_and_page_do_not_grow_with_the_square_of_the_classes(tmp_path):
    run = make_run(tmp_path / "run", names=[f"Species of Bird {n}" for n in range(2000)], each=2, side=8, noise=2)
    tracemalloc.start()
    try:
        write_report([run], run / "report.html")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2000**2 + 2**24  # of which its logits are 4 * 2000**2, and 2**24 for drawing, as for any number
    page, text = read(run / "report.html"), (run / "report.html").read_text()
    assert len(text) < 2_000_000
    assert "The worst 1,000 of 2,000 classes." in page.texts["p"]
    assert (run / "figures" / "confusion.png").exists()  # of groups
    with np.load(run / "eval-val.npz") as content:
        right = content["logits"].argmax(1) == content["labels"]
    worst = page.texts["td"][page.texts["td"].index("0.0%") :: 8][:1000]
    assert worst == ["0.0%"] * min(1000, np.count_nonzero(~right)) + ["100.0%"] * max(
        0, 1000 - np.count_nonzero(~right)
    )


def test_runs_side_by_side(tmp_path):
    runs = [
        make_run(tmp_path / f"s{eps}", epochs=3, each=40, smoothing=eps, noise=n) for eps, n in ((0.0, 3), (0.1, 2))
    ]
    runs.append(make_run(tmp_path / "others", names=["x", "y", "z"], done=1, evaluate=False))
    write_report(runs, tmp_path / "report.html")
    page = read(tmp_path / "report.html")
    assert page.texts["h1"] == ["3 runs compared"]
    right = []
    for run in runs[:2]:
        with np.load(run / "eval-val.npz") as content:
            right.append(content["logits"].argmax(1) == content["labels"])
    points = f"{100 * (right[1].mean() - right[0].mean()):+.2f}".replace("-", "−")
    assert points in page.texts["td"]
    assert "--smoothing" in page.texts["th"]
    assert "--epochs" not in page.texts["th"]
    assert any(str(runs[2]) in text for text in page.texts["p"])
    assert not (runs[0] / "figures").exists()


def test_a_temperature_that_no_picture_tells_is_a_dash(tmp_path):
    runs = [make_run(tmp_path / f"{n}", each=40, noise=noise, lr=0.1 + n) for n, noise in enumerate((0.0, 4.0))]
    write_report(runs, tmp_path / "report.html")
    table = next(table for table in read(tmp_path / "report.html").tables if table[0][:2] == ["run", "accuracy"])
    told = read_run(runs[1]).temperature
    assert [row[table[0].index("temperature")] for row in table[1:]] == ["–", f"{told:.3f}"]


@pytest.mark.parametrize("iteration", [20, 10, None])
def test_an_evaluation_of_another_checkpoint_is_said_to_be_one(tmp_path, iteration):
    """By the checkpoint's iteration: on another device, or in other batches, a picture may be rounded the other way."""
    run = make_run(tmp_path / "run")
    about = json.loads((run / "eval-val.json").read_text())
    (run / "eval-val.json").write_text(json.dumps({**about, "iteration": iteration}))
    write_report([run], tmp_path / "report.html")
    assert ("not of the best epoch" in (tmp_path / "report.html").read_text()) == (iteration != 20)


def test_runs_over_seeds(tmp_path):
    runs = []
    for smoothing in (0.0, 0.1):
        for seed in range(3):
            runs.append(make_run(tmp_path / f"{smoothing}-{seed}", seed=seed, smoothing=smoothing, evaluate=False))
    for run, accuracy in zip(runs, (0.5, 0.6, 0.7, 0.61, 0.72, 0.83), strict=True):
        (run / "recipe.json").write_text(
            json.dumps({**json.loads((run / "recipe.json").read_text()), "seed": int(run.name[-1])})
        )
        rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
        rows[-1]["val_accuracy"] = accuracy
        (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report(runs, tmp_path / "report.html")
    page = read(tmp_path / "report.html")
    cells = page.texts["td"]
    assert page.texts["h2"][0] == "Over seeds and folds"
    assert page.texts["th"][3] == "standard deviation"
    assert "mean and standard deviation in points over n trainings" in " ".join(" ".join(page.texts["p"]).split())
    assert cells[: 2 * 7] == [
        *("smoothing 0", "3", "60.00", "10.00", "35.16 to 84.84", "–", "–"),
        *("smoothing 0.1", "3", "72.00", "11.00", "44.67 to 99.33", "+12.00", "+9.52 to +14.48"),
    ]


def test_the_page_widens_intervals_over_folds_as_the_table_does(tmp_path):
    runs = []
    for number, accuracy in enumerate((0.5, 0.6, 0.7), 1):
        runs.append(make_run(tmp_path / str(number), fold=f"{number}/3", evaluate=False))
        change_history(runs[-1], val_accuracy=[accuracy] * len((runs[-1] / "history.jsonl").read_text().splitlines()))
    name, n, mean, spread, interval, *_ = seed_rows([read_run(run) for run in runs])[0]
    assert (name, n, mean, spread) == ("all", "3", "60.00", "10.00")
    half = 4.303 * 10 * (1 / 3 + 1 / 2) ** 0.5
    assert interval == f"{60 - half:.2f} to {60 + half:.2f}"


def change_history(run, **values):
    """Change all rows: the name of a number → its value at each epoch."""
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    for name, numbers in values.items():
        for row, number in zip(rows, numbers, strict=True):
            row[name] = number
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


PLAIN = {"mixup": 0.2, "smoothing": 0.0}


def read_items(run):
    return read(run / "report.html").texts["li"]


@pytest.mark.parametrize(
    ("train", "val", "options", "says", "tries", "not_tries"),
    [
        ((0.3, 0.6, 0.84), (0.3, 0.4, 0.49), {}, "over-fits", ("--mixup 0.2", "--weights imagenet"), ("--smoothing",)),
        ((0.3, 0.6, 0.84), (0.3, 0.4, 0.5), PLAIN, "over-fits", ("--smoothing 0.1",), ("--mixup",)),
        ((0.1, 0.2, 0.3), (0.1, 0.2, 0.35), {}, "still getting better", ("--epochs 6",), ("--mixup",)),
        ((0.1, 0.2, 0.3), (0.31, 0.3, 0.3), {}, "learnt little", ("--epochs 6",), ("--mixup",)),
        ((0.8, 0.9, 0.95), (0.9, 0.93, 0.94), {}, "does not over-fit.", (), ("Worth a try",)),
    ],
)  # fmt: skip
def test_what_training_and_validation_mean_together(tmp_path, train, val, options, says, tries, not_tries):
    run = make_run(tmp_path / "run", **options)
    change_history(run, train_accuracy=train, val_accuracy=val)
    write_report([run], run / "report.html")
    text = " ".join(read_items(run)[-1].split())
    best = val.index(max(val))
    assert f"Training accuracy {100 * train[best]:.0f} %, validation {100 * val[best]:.0f} %" in text
    assert says in text
    assert all(option in text for option in tries)
    assert not any(option in text for option in not_tries)


def evaluate_as(run, labels, predictions):
    """Let the run's evaluation be of as many validation pictures, with these ``labels`` and ``predictions``."""
    split, labels = read_run(run), np.array(labels)
    free = {k: iter(np.flatnonzero((split.labels == k) & (split.sides == 1)).tolist()) for k in set(labels.tolist())}
    logits = 3 * np.eye(len(split.classes), dtype=np.float32)[predictions]
    of = torch.tensor(logits)
    arrays = {"labels": labels, "indices": np.array([next(free[k]) for k in labels.tolist()]), "logits": logits}
    np.savez(run / "eval-val.npz", **arrays, gaps=logit_gap(of), bins=calibration_bins(of, torch.tensor(labels)))


def test_accuracy_beside_guessing_and_classes_that_are_never_right(tmp_path):
    """Of 45 + 3 + 2 pictures the 45 are right: 90 %, which always guessing gives too, and a third over classes."""
    run = make_run(tmp_path / "run", names=["common", "rare", "rarer"], each=90)
    evaluate_as(run, [0] * 45 + [1] * 3 + [2] * 2, [0] * 50)
    write_report([run], run / "report.html")
    page = read(run / "report.html")
    items = [" ".join(text.split()) for text in page.texts["li"]]
    assert items[0].startswith(
        "90.0 % of 50 validation pictures are right: of more such pictures, 79 % to 96 % would be"
    )
    assert "Always guessing the most frequent class, common, gives 90.0 %, which is as good" in items[0]
    assert items[1] == "2 of 3 classes are never right: rare, rarer."
    assert "33.3 % (balanced accuracy), 57 points below the accuracy" in items[2]
    assert "--balance 0.5" in items[2]
    tiles = dict(zip(page.texts["dt"], page.texts["dd"], strict=True))
    assert (tiles["balanced accuracy"], tiles["macro F1"], tiles["classes never right"]) == ("33.33%", "0.316", "2")
    worst = next(table for table in page.tables if table[0][0] == "class")
    assert [row[:5] for row in worst[1:]] == [
        ["rare", "0.0%", "0% to 56%", "0 of 3", "–"],
        ["rarer", "0.0%", "0% to 66%", "0 of 2", "–"],
        ["common", "100.0%", "92% to 100%", "45 of 45", "90%"],
    ]
    assert "on average it is" in " ".join(page.texts["p"]).lower()


def first_finding(run):
    write_report([run], run / "report.html")
    return " ".join(read(run / "report.html").texts["li"][0].split())


def test_a_network_that_tells_classes_apart_is_not_said_to_have_learnt_nothing(tmp_path):
    """960 of 1000 are right, as 950 by guessing may be; but of the rare class 35 of 50, so (925 / 950 + 0.7) / 2."""
    run = make_run(tmp_path / "run", names=["common", "rare"], each=1900)
    evaluate_as(run, [0] * 950 + [1] * 50, [0] * 925 + [1] * 25 + [1] * 35 + [0] * 15)
    said = first_finding(run)
    assert "Always guessing the most frequent class, common, gives 95.0 %: by its accuracy it is not surely" in said
    assert said.endswith("Its balanced accuracy, the mean over the classes, is 83.7 %; a guess's is 50.0 %.")
    evaluate_as(run, [0] * 950 + [1] * 50, [0] * 1000)
    assert first_finding(run).endswith(", which is as good: it has not learnt to tell the classes apart.")
    evaluate_as(run, [0] * 500 + [1] * 500, [0] * 400 + [1] * 600)
    assert first_finding(run).endswith("Guessing gives 50.0 %.")


def test_the_histogram_has_names_while_there_is_room_and_is_left_out_where_all_are_equal(tmp_path):
    for count in (30, 31):
        run = make_run(tmp_path / f"{count}", names=[f"class {n}" for n in range(count)], evaluate=False)
        assert "classes" not in figures.single_run(read_run(run))
        split = run / "split.csv"
        split.write_text(split.read_text() + "another.jpg,class 3,train\n")
        axes = figures.single_run(read_run(run))["classes"].axes[0]
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert (names[0] == "class 3" and len(names) == 30) == (count == 30)


def test_names_that_the_font_lacks_are_no_warning_and_no_formula(tmp_path, recwarn):
    run = make_run(tmp_path / "run", names=["鳥", "$x", "ünder_score", *"abcdef"])
    write_report([run], run / "report.html")
    assert not [str(each.message) for each in recwarn if "lyph" in str(each.message)]
    assert drawable("鳥 $x") == r"? \$x"
    assert {"鳥", "$x", "ünder_score"} < set(read(run / "report.html").texts["th"])


def test_legends_do_not_lie_on_curves(tmp_path):
    runs = [make_run(tmp_path / f"{n}", smoothing=n / 10, mixup=n / 7, lr=0.1 + n / 3) for n in range(9)]
    for drawn in (figures.several_runs(list(map(read_run, runs))), figures.single_run(read_run(runs[0]))):
        for figure in drawn.values():
            figure.draw_without_rendering()
            assert not any(axes.get_legend() for axes in figure.axes)
            for legend in figure.legends:
                box = legend.get_window_extent()
                assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)
                assert box.x0 >= 0
                assert box.x1 <= figure.bbox.x1


def test_runs_are_called_by_what_varies(tmp_path):
    def names(*options, where="x"):
        folders = [make_run(tmp_path / where / f"run-{n}", evaluate=False, **each) for n, each in enumerate(options)]
        return run_names([read_run(folder) for folder in folders])

    assert names({"smoothing": 0.0}, {"smoothing": 0.1, "seed": 3}, where="a") == [
        "smoothing 0, seed 0",
        "smoothing 0.1, seed 3",
    ]
    assert names({"fold": "1/5"}, {"fold": "2/5"}, where="c") == ["fold 1/5", "fold 2/5"]
    assert names({"flip": True}, {"flip": False}, where="d") == ["flip on", "flip off"]
    assert names({}, {}, where="e") == ["run-0", "run-1"]
    assert names({}, {}, {"lr": 0.3}, where="f") == ["run-0", "run-1", "lr 0.3"]
    many = {"smoothing": 0.2, "mixup": 0.3, "lr": 0.3, "momentum": 0.5, "batch_size": 8, "epochs": 7, "balance": 0.5}
    assert names({}, many, where="g") == ["run-0", "run-1"]
    twins = [make_run(tmp_path / folder / "same" / "run", evaluate=False) for folder in ("h", "i")]
    assert len(set(run_names([read_run(folder) for folder in twins]))) == 2


def make_ablation(folder, begun=6):
    planned = []
    for number, (seed, smoothing) in enumerate((seed, smoothing) for seed in range(3) for smoothing in (0.0, 0.1)):
        planned.append({"run": f"smoothing={smoothing:g},seed={seed}"})
        if number < begun:
            make_run(
                folder / planned[-1]["run"],
                ["a", "b", "c"],
                each=20,
                seed=seed,
                smoothing=smoothing,
                noise=2 + smoothing,
            )
    (folder / "ablation.json").write_text(json.dumps({"vary": ["smoothing"], "runs": planned}))
    return folder


def test_the_page_of_an_ablation_has_every_run(tmp_path, cli):
    folder = make_ablation(tmp_path / "runs" / "ablation-birds-1")
    code, out, err = cli("report", "runs/ablation-birds-1")
    assert (code, out, err) == (0, "runs/ablation-birds-1/report.html\n", "")
    page = read(folder / "report.html")
    assert page.texts["h1"] == ["6 runs compared"]
    assert page.texts["h2"][0] == "Over seeds and folds"
    names = [f"smoothing {smoothing}, seed {seed}" for seed in range(3) for smoothing in ("0", "0.1")]
    every = next(table for table in page.tables if table[0][:2] == ["run", "accuracy"])
    assert [row[0] for row in every[1:]] == names
    # 46.9 % + a point a seed, less a fifth of a point at 0.1: the difference is the same in all seeds.
    over_seeds = page.tables[0]
    assert over_seeds[1][:4] == ["smoothing 0", "3", "46.90", "1.00"]
    assert over_seeds[2][-2:] == ["−0.20", "n = 3, all equal: none"]
    pairs = next(table for table in page.tables if table[0][:2] == ["run", "less run"])
    assert [(row[0].split("seed ")[1][:1], row[1].split("seed ")[1][:1]) for row in pairs[1:]] == [
        (s, s) for s in "012"
    ]


def test_an_ablation_that_goes_on_and_one_that_cannot_be_read(tmp_path, cli):
    folder = make_ablation(tmp_path / "ablation", begun=2)
    (folder / "smoothing=0,seed=0" / "eval-val.json").unlink()
    code, _, err = cli("report", "ablation", "-o", "page.html")
    assert (code, err) == (0, "ablation: 4 of its 6 runs have not begun; the same ablate command goes on\n")
    text = " ".join(read(tmp_path / "page.html").texts["p"])
    assert "1 of the runs is not evaluated yet: the ablation's own command" in " ".join(text.split())
    assert "main.py eval" not in text
    for content, says in (
        ("{}", "is damaged"),
        ('{"runs": [1]}', "is damaged"),
        ('{"runs": [{"run": "../elsewhere"}]}', "is damaged"),
        ('{"runs": [{"run": ".."}]}', "is damaged"),
        ('{"runs": [{"run": "unknown"}]}', "none of its 1 runs has begun"),
        ("[", "ablation.json"),
    ):
        (folder / "ablation.json").write_text(content)
        code, out, err = cli("report", "ablation")
        assert (code, out, err.count("\n"), says in err) == (2, "", 1, True)


def test_folds_put_together_have_a_page_without_curves(tmp_path, monkeypatch):
    folds = [
        make_run(tmp_path / f"fold={n}-3", ["a", "b", "c"], fold=f"{n}/3", each=10, noise=1.5 + n) for n in (1, 2, 3)
    ]
    pooled = make_run(tmp_path / "out-of-fold", ["a", "b", "c"], each=10, noise=3)
    (pooled / "history.jsonl").unlink()
    (pooled / "folds.json").write_text(json.dumps({"runs": [f"../{run.name}" for run in folds]}))
    read_again = partial(replace, folds=folds)
    monkeypatch.setattr(plumage.report.page, "read_run", lambda path: read_again(read_run(path)))
    write_report([pooled], pooled / "report.html")
    page = read(pooled / "report.html")
    assert page.texts["h2"] == [*LOOK_FIRST, "How sure it is", *REST]
    assert "3 folds put together" in page.texts["p"][0]
    assert "Unfinished" not in " ".join(page.texts["p"])
    accuracy = read_run(pooled).evaluation.accuracy
    assert dict(zip(page.texts["dt"], page.texts["dd"], strict=True))["validation accuracy"] == f"{accuracy:.2%}"
    monkeypatch.undo()
    about = json.loads((pooled / "eval-val.json").read_text())
    (pooled / "eval-val.json").write_text(json.dumps({**about, "n": 15}))
    write_report(folds, tmp_path / "report.html")
    page = read(tmp_path / "report.html")
    assert page.tables[0][1][:2] == ["all", "3"]
    assert page.tables[1][1][:3] == ["out-of-fold", "15", f"{100 * accuracy:.2f}"]


def put_together(path, missing=(), **options):
    """What `ablate` writes of two folds of three classes, one of which is missing: 15 of 45 pictures are evaluated."""
    run = make_run(path, ["a", "b", "c"], each=10, **options)
    (run / "history.jsonl").unlink()
    (run / "split.csv").write_text((run / "split.csv").read_text().replace(",train", ",val"))
    (run / "folds.json").write_text(json.dumps({"runs": ["../1", "../2"], "missing": list(missing)}))
    return run


def test_a_page_of_folds_asks_for_nothing_that_is_refused_there(tmp_path):
    """Neither with test pictures, nor without an evaluation, nor without pictures of mistakes."""
    run = put_together(tmp_path / "out-of-fold", noise=4)
    with (run / "split.csv").open("a") as file:
        file.write("t.jpg,a,test\n")
    with np.load(run / "eval-val.npz") as content:
        np.savez(run / "eval-val.npz", **{name: content[name] for name in content if not name.startswith("mistakes")})
    write_report([run], run / "report.html")
    page = read(run / "report.html")
    assert not [text for tag in ("code", "p", "header") for text in page.texts[tag] if "main.py eval" in text]
    assert any("The evaluation kept no pictures." in text for text in page.texts["p"])
    (run / "eval-val.json").unlink()
    write_report([run], run / "report.html")
    page = read(run / "report.html")
    assert not [text for tag in ("code", "p", "header") for text in page.texts[tag] if "main.py eval" in text]
    assert "the same ablate command, given again, makes it." in " ".join(" ".join(page.texts["p"]).split())


def test_a_page_of_folds_counts_what_was_evaluated_and_names_what_is_missing(tmp_path):
    """Of 3 × 15 pictures the evaluation has 3 × 5: those of the fold that is there."""
    run = put_together(tmp_path / "out-of-fold", ["seed=0,fold=2of3", "<b>"])
    write_report([run], run / "report.html")
    page = read(run / "report.html")
    paragraphs = [" ".join(text.split()) for text in page.texts["p"]]
    (said,) = [text for text in paragraphs if text.startswith("Without seed=0")]
    assert said.startswith("Without seed=0,fold=2of3, <b>: these folds' pictures count in nothing below.")
    assert dict(zip(page.texts["dt"], page.texts["dd"], strict=True))["pictures"] == "15"
    assert any("3 classes, 15 pictures, each of which validates once; of each class 5." in text for text in paragraphs)
    head, *rows = next(table for table in page.tables if table[0][0] == "class")
    assert head == ["class", "accuracy", "95 % interval", "right", "precision", "F1", "most taken for"]
    assert {len(row) for row in rows} == {7}
    assert '<th class="number">F1</th><th>most taken for' in (run / "report.html").read_text()
    (run / "folds.json").write_text(json.dumps({"runs": ["../1"], "missing": []}))
    write_report([run], run / "report.html")
    assert not any(text.startswith("Without") for text in read(run / "report.html").texts["p"])


def test_only_what_was_trained_on_is_called_so_in_the_histogram(tmp_path):
    for count in (3, 40):
        run = make_run(tmp_path / f"{count}", names=[f"class {n}" for n in range(count)], evaluate=False)
        (run / "split.csv").write_text((run / "split.csv").read_text() + "another.jpg,class 1,val\n")
        for trained in (True, False):
            legend = figures.images_per_class(read_run(run)).legends[0]
            names = ["training", "validation"] if trained else ["validation"]
            assert [text.get_text() for text in legend.get_texts()] == names
            (run / "split.csv").write_text((run / "split.csv").read_text().replace(",train", ",val"))


def test_few_classes_and_long_tables(tmp_path, monkeypatch):
    """Of two classes the top-5 says nothing; one row is not folded away; and what a table leaves out is said."""
    run = make_run(tmp_path / "few", names=["common", "rare"], each=90)
    (run / "split.csv").write_text(re.sub(r"1/(?!10\.|1\.)\d+\.jpg,rare,train\n", "", (run / "split.csv").read_text()))
    rows = [line.split(",") for line in (run / "split.csv").read_text().splitlines()[1:]]
    assert 2 * sum(row[1:] == ["rare", "train"] for row in rows) < 90
    evaluate_as(run, [0] * 40 + [1] * 2, [0] * 42)
    write_report([run], run / "report.html")
    page = read(run / "report.html")
    assert "validation top-5" not in page.texts["dt"]
    said = " ".join(page.texts["li"][1].split())
    assert re.match(
        r"1 of 2 classes is never right: rare. It has \d+ training pictures, the median of all classes", said
    )
    for count, folded in ((16, 0), (17, 1)):
        run = make_run(tmp_path / f"{count}", names=[f"class {n}" for n in range(count)], noise=0)
        monkeypatch.setattr(plumage.report.sections, "MOST_SUSPECTS", 20)
        monkeypatch.setattr(plumage.report.page, "read_run", lambda path: enriched(read_run(path)))
        write_report([run], run / "report.html")
        page = read(run / "report.html")
        assert sum(text.endswith("more classes") for text in page.texts["summary"]) == folded
        assert any("the first 20; suspects.csv has all." in text for text in page.texts["p"])


def test_mistakes_are_as_sure_as_predict_is_the_surest_first(tmp_path):
    path = make_run(tmp_path / "run", list("abcdef"), each=60, noise=2.5)
    write_report([path], path / "report.html")
    run, page = read_run(path), read(path / "report.html")
    evaluation, rows = run.evaluation, run.evaluation.pictures["mistakes"].rows
    sure = torch.tensor(evaluation.logits[rows] / run.temperature).softmax(1).max(1).values.tolist()
    listed = [(share, run.classes[evaluation.predictions[row]]) for share, row in zip(sure, rows, strict=True)]
    shown = [" ".join(text.split()).split("is ")[0] for text in page.texts["figure"] if "%is " in text]
    assert shown == [f"{name} {share:.0%}" for share, name in sorted(listed, key=lambda each: -each[0])]
    assert any("calibrated, as predict gives it" in text for text in page.texts["p"])


def test_a_map_that_is_alike_all_over_is_left_out(tmp_path):
    """As of small pictures, of which the last feature map has one cell."""
    run = make_run(tmp_path / "run", list("abcdef"), each=60, noise=2.5)
    with np.load(run / "eval-val.npz") as content:
        arrays = dict(content)
    write_report([run], run / "report.html")
    images = read(run / "report.html").tags.count("img")
    arrays["mistakes_maps"] = np.full((len(arrays["mistakes_rows"]), 7, 7), 0.3, np.float32)
    arrays["right_maps"][1:] = 0
    np.savez(run / "eval-val.npz", **arrays)
    write_report([run], run / "report.html")
    page = read(run / "report.html")
    assert images - page.tags.count("img") == len(arrays["mistakes_rows"]) + len(arrays["right_rows"]) - 1
    text = " ".join(page.texts["p"])
    assert ("Below it, where the evidence" in text, "does the evidence lie on the thing itself" in text) == (
        False,
        True,
    )


def test_training_pictures_that_were_too_many_to_search_are_told(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", names=["a", "b", "c"], each=8)
    monkeypatch.setattr(plumage.report.page, "read_run", lambda path: enriched(read_run(path)))
    for most, told in ((4 * 24 * 3, 0), (4 * 24 * 3 - 1, 1)):
        monkeypatch.setattr(plumage.rundir.suspects, "MOST_LOGITS", most)
        write_report([run], run / "report.html")
        said = [
            text for text in read(run / "report.html").texts["p"] if "The 24 training pictures are too many" in text
        ]
        assert len(said) == told


def test_suspects_and_maps_are_shown(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", noise=4)
    monkeypatch.setattr(plumage.report.page, "read_run", lambda path: enriched(read_run(path)))
    write_report([run], run / "report.html")
    page, evaluation = read(run / "report.html"), read_run(run).evaluation
    assert page.texts["h2"] == [*LOOK_FIRST, "Suspects", *SECTIONS[3:]]
    wrong, right = (
        min(np.count_nonzero(which), most) for which, most in ((~evaluation.right, 24), (evaluation.right, 8))
    )
    assert page.tags.count("img") == 6 + 12 + 2 * wrong + 2 * right + 3  # figures, samples, maps, suspects
    listed = next(table for table in page.tables if table[0][0] == "picture")
    assert any("These are many" in text for text in page.texts["p"])  # 22 of 54
    assert listed[1][2:] == [SHOWN[1], "97%", "doubted, trained on"]
    assert listed[2][3:] == ["", "copy of other/1.jpg under another label"]
    assert any(f"--labels {run}/suspects.csv" in text for text in page.texts["code"])


def enriched(run):
    """A run with suspects."""
    rng = np.random.default_rng(0)
    labels = [run.classes[run.labels[row]] for row in range(2)]
    suspects = [Suspect(run.files[0], labels[0], run.classes[1], 0.97, "doubted, trained on")]
    suspects += [Suspect(run.files[1], labels[1], run.classes[-1], None, "copy of other/1.jpg under another label")]
    suspects += [
        Suspect(f"{n}/a long name of a file.jpg", labels[0], "", None, "nearly a/long-path/to/a_file_1.jpg in val")
        for n in range(20)
    ]
    shown = {row: rng.integers(0, 255, (224, 224, 3)).astype(np.uint8) for row in range(3)}
    return replace(run, suspects=suspects, suspect_pictures=shown)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe.json", "{"),
        ("environment.json", "[]"),
        ("classes.json", "{}"),
        ("split.csv", "path,label\n"),
        ("split.csv", "path,label,split\n1.jpg,unknown,val\n"),
        ("skipped.csv", ""),
        ("history.jsonl", '{"epoch": 1, "val_accuracy": 0.5}\n'),
        ("eval-val.json", "no json"),
        ("eval-val.json", "{}"),
        ("eval-val.npz", "no archive"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    run = make_run(tmp_path / "run")
    (run / name).write_text(content)
    with pytest.raises(UserError, match="eval-val" if "eval" in name else name) as error:
        write_report([run], run / "report.html")
    assert "\n" not in str(error.value)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"labels": np.arange(3)},
        {"indices": np.full(18, 99)},
        {"logits": np.zeros((18, 3))},
        {"bins": np.zeros((3, 15))},
        {"mistakes_rows": np.zeros(3, np.int64)},
        {"right_rows": np.full(8, 18)},
        {"right_rows": np.zeros((8, 1), np.int64)},
        {"right_pixels": np.zeros((8, 224, 100, 3), np.uint8)},
        {"right_pixels": np.zeros((8, 0, 0, 3), np.uint8)},
        {"right_pixels": np.zeros((8, 224, 224, 4), np.uint8)},
        {"right_pixels": np.zeros((8, 224, 224, 3), np.int8)},
        {"right_pixels": np.zeros((8, 500, 500, 3), np.uint8)},
        {"right_maps": np.full((8, 7, 7), np.nan, np.float32)},
        {"right_maps": np.zeros((8, 7, 7))},
        {"right_maps": np.zeros((8, 7), np.float32)},
        {"right_maps": np.zeros((8, 0, 7), np.float32)},
        {"right_maps": np.zeros((7, 7, 7), np.float32)},
        {"right_maps": np.zeros((8, 300, 300), np.float32)},
        {
            "right_rows": np.zeros(9, np.int8),
            "right_pixels": np.zeros((9, 1, 1, 3), np.uint8),
            "right_maps": np.zeros((9, 0, 0), np.float32),
        },
    ],
)
def test_an_evaluation_of_something_else_is_named(tmp_path, change):
    run = make_run(tmp_path / "run")
    with np.load(run / "eval-val.npz") as content:
        np.savez(run / "other.npz", **{**content, **change})
    (run / "other.npz").replace(run / "eval-val.npz")
    with pytest.raises(UserError, match=r"eval-val\.npz is damaged or old.*python main.py eval"):
        write_report([run], run / "report.html")


def test_the_command(tmp_path, cli):
    one, other = make_run(tmp_path / "runs" / "one"), make_run(tmp_path / "runs" / "other")
    code, out, err = cli("report", "runs/one")
    assert (code, out, err) == (0, "runs/one/report.html\n", "")
    assert cli("report")[:3] == (0, "runs/other/report.html\n", "runs/other: the newest run\n")
    assert cli("report", one, other)[:2] == (0, f"{tmp_path / 'runs' / 'report.html'}\n")
    assert cli("report", "-o", "here.html")[0] == 0
    assert read(tmp_path / "here.html").texts["h1"] == ["other"]
    for arguments in (["runs"], ["runs/one", "nowhere"], ["runs/one", "-o", "nowhere/r.html"]):
        code, out, err = cli("report", *arguments)
        assert (code, out, err.count("\n"), err[:7]) == (2, "", 1, "error: ")


def test_a_training_ends_with_its_report(cli, photos, tmp_path, monkeypatch):
    options = ["train", "--data", photos, *TINY, "--epochs", "1"]
    assert cli(*options, "--run", "without")[0] == 0
    assert not {"report.html", "eval-val.json", "figures"} & {path.name for path in (tmp_path / "without").iterdir()}
    code, _, err = cli(*options, "--report", "--run", "with")
    assert code == 0, err
    assert read(tmp_path / "with" / "report.html").texts["h2"] == SECTIONS
    with np.load(tmp_path / "with" / "eval-val.npz") as content:
        assert content["samples_pixels"].shape == (6, 32, 32, 3)
        assert set(content["labels"][content["samples_rows"]]) == {0, 1, 2}
        wrong = content["logits"].argmax(1) != content["labels"]
        for kind, rows in (("mistakes", np.flatnonzero(wrong)), ("right", np.flatnonzero(~wrong))):
            assert sorted(content[f"{kind}_rows"]) == rows.tolist()
            assert content[f"{kind}_pixels"].shape == (len(rows), 224, 224, 3)
            assert content[f"{kind}_maps"].shape == (len(rows), *((56, 56) if len(rows) else (0, 0)))
        about = json.loads((tmp_path / "with" / "eval-val.json").read_text())
        assert about["logit_gap"] == pytest.approx(content["gaps"].mean())
        counts, confidence, right = content["bins"]
        assert about["ece"] == pytest.approx(np.abs(right - confidence).sum() / 6)
        assert (counts.sum(), right.sum()) == (6, 6 - wrong.sum())

    def fail(*_):
        raise ImportError("no module named\nmatplotlib")

    monkeypatch.setattr(plumage.report.page, "write_report", fail)
    code, out, err = cli(*options, "--report", "--run", "failing")
    assert (code, out.splitlines()[-1].startswith("best epoch 1")) == (0, True)
    assert err.splitlines()[-1] == "failing/report.html: trained, but without a report: no module named matplotlib"
