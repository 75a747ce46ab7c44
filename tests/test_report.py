"""The report, of run directories written by hand, and at the end of a training."""

import csv
import json
import re
import tracemalloc
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from conftest import TINY

import plumage.report.page
from plumage.engine.metrics import calibration_bins, logit_gap
from plumage.errors import UserError
from plumage.recipe import Recipe
from plumage.report.page import write_report
from plumage.report.reading import read_run

EVIL = [
    "<b>bold</b> & \"quoted\" 'class'",
    "line\nbreak </td></table>",
    "$x_1$ <script>alert(1)</script>",
    "günstig 鳥",
    "\x1b[31mred\x07\x9b\r",
    "\u202eturned\u2066\u200f",
]
SHOWN = [*EVIL[:4], r"\x1b[31mred\x07\x9b\r", r"\u202eturned\u2066\u200f"]
SECTIONS = [
    "Environment", "Data", "Model and recipe", "Learning curves", "Learning rate", "Logit gap", "Calibration",
    "Accuracy per class, worst first", "Confusions", "The most confident mistakes", "To reproduce it",
]  # fmt: skip


def make_run(path, names=EVIL, epochs=3, done=None, each=6, evaluate=True, seed=0, noise=1.5, side=32, **options):
    """What a training writes, of ``each`` training pictures and half as many validation pictures per class."""
    path.mkdir(parents=True)
    rng, val = np.random.default_rng(seed), each // 2
    recipe = Recipe.create({"data": "birds", "preset": "demo", "epochs": epochs, "warmup_epochs": 0.0, **options})
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
            "train_accuracy": 0.1234 * epoch,
            "val_loss": 2.5 / epoch,
            "val_nll": 2 / epoch,
        }
        history.append(row | {"val_accuracy": 0.2345 * min(epoch, 2), "val_top5": 0.4567 * min(epoch, 2)})
    (path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    if evaluate:
        labels, indices = (
            np.repeat(np.arange(len(names)), val),
            [n for n, row in enumerate(rows[1:]) if row[2] == "val"],
        )
        logits = (4 * np.eye(len(names))[labels] + noise * rng.normal(size=(len(labels), len(names)))).astype(
            np.float32
        )
        wrong = np.flatnonzero(logits.argmax(1) != labels)[:24]
        samples, thumbnails = (
            rng.integers(0, 255, (count, length, length, 3)).astype(np.uint8)
            for count, length in ((12, side), (len(wrong), min(side, 112)))
        )
        shown = {"samples": samples, "sample_rows": np.arange(12)}
        shown |= {"thumbnails": thumbnails, "thumbnail_rows": wrong}
        gaps, bins = logit_gap(torch.tensor(logits)), calibration_bins(torch.tensor(logits), torch.tensor(labels))
        arrays = {"logits": logits, "labels": labels, "indices": np.array(indices), "gaps": gaps, "bins": bins}
        np.savez(path / "eval-val.npz", **arrays, **shown)
        about = {"accuracy": float(np.mean(logits.argmax(1) == labels)), "checkpoint": "best", "iteration": 20}
        (path / "eval-val.json").write_text(
            json.dumps({**about, "top5": 1.0, "loss": 1.5, "nll": 1.25, "ece": 0.0625, "logit_gap": float(gaps.mean())})
        )
    return path


class Reader(HTMLParser):
    """Checks that what is opened is closed, in order, and collects headings, cells, and what would be fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.sources, self.texts = [], [], [], {}

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data


def read(file):
    text = file.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert "script" not in reader.tags
    assert all(re.match(r"data:image/(jpeg|svg\+xml);base64,[A-Za-z0-9+/]+=*$", source) for source in reader.sources)
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
    names = {"classes", "loss", "accuracy", "learning-rate", "gap", "calibration", "confusion"}
    assert {file.stem for file in (run / "figures").glob("*.png")} == names


def test_the_number_to_publish_is_that_of_the_test_pictures(tmp_path):
    run = make_run(tmp_path / "run")  # of each of six classes six pictures train, and three validate
    before = read_run(run).counts("train")
    with (run / "split.csv").open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows((f"test/{number}.jpg", EVIL[3], "test") for number in range(4))
    counts = {side: read_run(run).counts(side).tolist() for side in ("train", "val", "test")}
    assert counts == {"train": before.tolist(), "val": [3] * 6, "test": [0, 0, 0, 4, 0, 0]}
    write_report([run], run / "report.html")
    page = read(run / "report.html")
    assert "36 training, 18 validation and 4 test pictures" in " ".join(page.texts["section"][1].split())
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
    run = make_run(tmp_path / "run", epochs=3, batch_size=64, lr=0.2, smoothing=0.0)
    write_report([run], run / "report.html")
    page = read(run / "report.html")
    marked = [text for text in page.texts["b"] if text.startswith("--")]
    assert marked == ["--batch-size", "--lr", "--epochs", "--smoothing", "--warmup-epochs"]
    assert "3 (preset: 5)" in page.texts["td"]
    assert "no finite gap is optimal" in "".join(page.texts["figcaption"])


def test_columns_of_numbers_are_set_to_the_right_whatever_the_names_look_like(tmp_path):
    runs = [make_run(tmp_path / f"{seed}", names=["1", "2", "3", "none"], seed=seed, lr=0.1 + seed) for seed in (0, 1)]
    changed = json.loads((runs[1] / "environment.json").read_text()) | {"git_commit": "1234567"}
    (runs[1] / "environment.json").write_text(json.dumps(changed))
    write_report(runs[:1], tmp_path / "one.html")
    write_report(runs, tmp_path / "two.html")
    classes = '<th>class</th><th class="number">accuracy</th><th class="number">right</th><th class="number">trained on'
    assert classes in (tmp_path / "one.html").read_text()
    assert '<th>run</th><th class="number">--lr</th><th>git commit</th></tr>' in (tmp_path / "two.html").read_text()


def test_an_unfinished_run_and_what_is_missing(tmp_path):
    run = make_run(tmp_path / "a run", epochs=5, done=1, evaluate=False)
    write_report([run], run / "report.html")
    page = read(run / "report.html")
    assert "Unfinished: 1 of 5 epochs are done." in page.texts["p"]
    assert any(f"python main.py eval --run '{run}'" in text for text in page.texts["code"])
    assert page.texts["h2"] == [*SECTIONS[:5], "Evaluation", SECTIONS[-1]]
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


def test_memory_and_page_do_not_grow_with_the_square_of_the_classes(tmp_path):
    run = make_run(tmp_path / "run", names=[f"Species of Bird {n}" for n in range(2000)], each=2, side=8, noise=2)
    tracemalloc.start()
    try:
        write_report([run], run / "report.html")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2000**2  # of which its logits are half
    page, text = read(run / "report.html"), (run / "report.html").read_text()
    assert len(text) < 2_000_000
    assert "The worst 1,000 of 2,000 classes." in page.texts["p"]
    assert "Without a matrix, which is too fine to read of 2,000 classes." in page.texts["p"]
    assert not (run / "figures" / "confusion.png").exists()
    with np.load(run / "eval-val.npz") as content:
        right = content["logits"].argmax(1) == content["labels"]
    worst = page.texts["td"][page.texts["td"].index("0.0%") :: 4][:1000]
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
    cells = read(tmp_path / "report.html").texts["td"]
    assert cells[cells.index("--smoothing 0.1") :][:5] == [
        "--smoothing 0.1",
        "72.00 ± 11.00",
        "+12.00",
        "+9.52 to +14.48",
        "3",
    ]


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
        assert content["samples"].shape == (6, 32, 32, 3)
        assert set(content["labels"][content["sample_rows"]]) == {0, 1, 2}
        wrong = content["logits"].argmax(1) != content["labels"]
        assert sorted(content["thumbnail_rows"]) == np.flatnonzero(wrong).tolist()
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
