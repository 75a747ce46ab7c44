import json
from dataclasses import asdict, fields

import pytest

from plumage.errors import UserError
from plumage.recipe import PRESETS, Recipe


def test_the_defaults_are_the_reference_reports():
    recipe = Recipe.create({"data": "cub200"})
    report = {
        "model": "resnet50",
        "weights": "imagenet",
        "resize": 256,
        "crop": 224,
        "batch_size": 64,
        "lr": 0.025,
        "epochs": 60,
        "seed": 0,
        "smoothing": 0.1,
        "val_fraction": 0.2,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "warmup_epochs": 0.0,
        "schedule": "cosine",
    }
    off = {
        "labels": "none",
        "fit": "squash",
        "flip": True,
        "min_pictures": 1,
        "group_by": "none",
        "group_duplicates": True,
        "balance": 0.0,
        "zero_gamma": False,
        "augment": "crop",
        "mixup": 0.0,
        "accumulate": 1,
        "sync_bn": False,
        "teacher": "none",
        "temperature": 20.0,
        "bias_decay": True,
        "head_lr_multiplier": 1.0,
        "freeze_backbone_epochs": 0,
        "clip_grad_norm": 0.0,
        "ema": 0.0,
        "early_stopping": 0,
        "fold": "none",
        "best": "accuracy",
    }
    assert asdict(recipe) == {"data": "cub200", "preset": "finetune", **report, **off}


def test_birds_take_the_demo_and_folders_finetune(tmp_path):
    assert Recipe.create({}).preset == "demo"
    assert Recipe.create({"data": "birds:species=50"}).preset == "demo"
    assert Recipe.create({"data": "birds:species=50"}).data == "birds:species=50"
    assert Recipe.create({"data": str(tmp_path)}).preset == "finetune"
    assert Recipe.create({"preset": "finetune"}).weights == "imagenet"
    assert Recipe.create({"data": "cub200", "preset": "demo"}).resize == PRESETS["demo"]["resize"]


def test_an_option_by_hand_wins_over_the_preset():
    recipe = Recipe.create({"preset": "demo", "resize": 96, "lr": 0.5})
    assert (recipe.resize, recipe.lr, recipe.weights) == (96, 0.5, "none")


def test_a_presets_warm_up_leaves_half_of_fewer_epochs_and_one_by_hand_is_taken_at_its_word():
    shortened = [Recipe.create({"preset": "demo", "epochs": epochs}).warmup_epochs for epochs in (1, 2, 9)]
    assert shortened == [0.5, 1.0, 1.0]
    assert Recipe.create({"preset": "paper", "epochs": 4}).warmup_epochs == 2.0
    with pytest.raises(UserError, match="--warmup-epochs 1 must be below --epochs 1"):
        Recipe.create({"preset": "demo", "epochs": 1, "warmup_epochs": 1.0})


@pytest.mark.parametrize(("batch", "rate"), [(64, 0.025), (256, 0.1), (1024, 0.4)])
def test_linear_scaling_of_the_rate(batch, rate):
    assert Recipe.create({"data": "cub200", "batch_size": batch}).lr == pytest.approx(rate)
    assert Recipe.create({"preset": "demo", "batch_size": batch, "lr": "auto"}).lr == pytest.approx(rate)


def test_every_preset_is_sound():
    for preset in PRESETS:
        assert Recipe.create({"preset": preset}).preset == preset


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").touch()
    recipe = Recipe.create({"data": "photos", "weights": "w.pth"})
    assert (recipe.data, recipe.weights) == (str(tmp_path / "photos"), str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("smoothing", [-0.1, 1.0, float("nan"), "x"]),
        ("epochs", [0, -1, 1.5]),
        ("batch_size", [0, -8, 1]),
        ("lr", [0.0, -1.0, float("inf"), float("nan")]),
        ("resize", [0, -5, 100_000]),
        ("crop", [0, 257]),
        ("val_fraction", [0.0, 1.0, -0.2]),
        ("momentum", [-0.1, 1.0]),
        ("weight_decay", [-1e-4, float("nan")]),
        ("warmup_epochs", [-1.0, 60.0]),
        ("seed", [-1, 2**63]),
        ("schedule", ["linear"]),
        ("model", ["vgg16"]),
        ("preset", ["fast"]),
        ("zero_gamma", [True, 1]),
        ("augment", ["autoaugment"]),
        ("mixup", [-0.2, float("nan")]),
        ("accumulate", [0, -1, 33]),  # of a batch of 64, 32 pairs
        ("temperature", [0.0, -1.0]),
        ("head_lr_multiplier", [0.0, -1.0]),
        ("freeze_backbone_epochs", [-1, 61]),
        ("clip_grad_norm", [-1.0]),
        ("ema", [-0.1, 1.0]),
        ("early_stopping", [-1]),
    ],
)
def test_a_value_out_of_range_is_named(name, values):
    for value in values:
        with pytest.raises(UserError, match="--" + name.replace("_", "-")):
            Recipe.create({"data": "cub200", name: value})


def test_random_weights_are_not_frozen():
    with pytest.raises(UserError, match="--freeze-backbone-epochs"):
        Recipe.create({"data": "cub200", "weights": "none", "freeze_backbone_epochs": 1})


def test_a_path_may_begin_with_the_home_folder_or_be_called_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    given = {"~/photos": "/home/me/photos", "~no-such-user": tmp_path / "~no-such-user", "~root": tmp_path / "~root"}
    (tmp_path / "~root").mkdir()
    for name in ("data", "weights", "teacher", "labels"):
        for path, meant in given.items():
            assert getattr(Recipe.create({"data": "cub200", name: path}), name) == str(meant)


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_a_path_that_is_none_is_named(path):
    for name in ("data", "weights", "teacher", "labels"):
        with pytest.raises(UserError, match=f"--{name}"):
            Recipe.create({"data": "cub200", name: path})


@pytest.mark.parametrize("url", ["https://a.org/birds.zip", "http://a", "S3://a/b", "gs://a", "hf://a/b", "file:///a"])
@pytest.mark.parametrize("name", ["data", "weights", "teacher", "labels"])
def test_a_url_is_to_be_downloaded_first(name, url):
    with pytest.raises(UserError, match=rf"--{name} '{url}': is a URL: download it first, and unpack it if it is an"):
        Recipe.create({name: url})


def test_is_read_back_as_written(tmp_path):
    recipe = Recipe.create({"preset": "demo", "smoothing": 0.3})
    (tmp_path / "recipe.json").write_text(json.dumps(asdict(recipe)))
    assert Recipe.load(tmp_path / "recipe.json") == recipe


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"epochs": "many"}', '{"epochs": true}', '{"unheard_of": 1}', '{"crop": 9999}']
)
def test_a_recipe_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(UserError, match=r"recipe\.json"):
        Recipe.load(tmp_path / "recipe.json")


def test_contradictions_are_the_options_that_differ():
    recipe = Recipe.create({"data": "cub200", "epochs": 10})
    assert recipe.contradictions({}) == []
    assert recipe.contradictions({"epochs": 10, "lr": "auto", "data": "cub200"}) == []
    assert recipe.contradictions({"epochs": 20, "smoothing": 0.1, "seed": 1}) == [
        "--epochs 20 (was 10)",
        "--seed 1 (was 0)",
    ]
    assert recipe.contradictions({"flip": False}) == ["--no-flip (was --flip)"]


def test_a_file_of_labels_may_move_but_another_contradicts():
    recipe = Recipe.create({"data": "cub200", "labels": "/here/labels.csv"})
    assert recipe.contradictions({"labels": "/there/labels.csv"}) == []
    assert recipe.contradictions({"labels": "/here/others.csv"}) == ["--labels /here/others.csv (was /here/labels.csv)"]
    assert recipe.contradictions({"labels": "none"}) == ["--labels none (was /here/labels.csv)"]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("", "has no group"),
        ("patient", "has no group"),
        ("(?:patient)", "has no group"),
        ("(patient", "unterminated subpattern"),
        ("*", "nothing to repeat"),
        ("(a)" + "(" * 3000 + ")" * 3000, ""),
        ("(a){99999999999}", ""),
        ("two\nlines", "has no group"),
    ],
)
def test_a_pattern_that_groups_nothing_is_refused(pattern, says):
    with pytest.raises(UserError, match=f"^--group-by '.*': .*{says}.*give a regular") as refused:
        Recipe.create({"data": "cub200", "group_by": pattern})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("pattern", ["none", r"^(patient\d+)", r"(?P<patient>\d+)_", "(a)|b"])
def test_a_pattern_with_a_group_is_taken(pattern):
    assert Recipe.create({"data": "cub200", "group_by": pattern}).group_by == pattern


def test_every_option_has_a_help_text():
    assert all(field.metadata["help"].endswith(".") for field in fields(Recipe))


@pytest.mark.parametrize("fold", ["4/3", "2of3", "1/1", "0/3", ""])
def test_a_fold_that_is_none_says_what_one_is(fold):
    with pytest.raises(UserError, match=r"^--fold .*give K/N with K from 1 to N and N at least 2, as 1/5$"):
        Recipe(fold=fold)
