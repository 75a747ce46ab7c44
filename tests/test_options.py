"""Every option of every command, given nonsense: exit code 2, one line that names it, and nothing left behind."""

from dataclasses import fields

import click
import pytest
import torch

from plumage import main
from plumage.engine.prepare import model_of
from plumage.files import write_json
from plumage.models.resnet import build_model
from plumage.models.weights import fingerprint
from plumage.options import LearningRate
from plumage.recipe import GROUPS, Recipe
from plumage.rundir.folder import RunDir

# Where the work of each command begins: what comes so far has been accepted.
WORK = {
    "train": ["plumage.engine.prepare.prepare_dataset"],
    "eval": ["plumage.engine.prepare.recall_dataset", "plumage.engine.prepare.read_all"],
    "ablate": ["plumage.ablation.train.train_one"],
    "report": ["plumage.report.page.write_report"],
    "predict": ["plumage.inference.predict.predict"],
    "export": ["plumage.inference.export.read_examples"],
}
ACCEPTED = 77  # the exit code there
GIVEN = {
    "train": ["--data", "photos", "--weights", "none"],
    "eval": [],
    "report": [],
    "predict": ["photos"],
    "export": [],
    "cache": [],
}
GIVEN["ablate"] = [*GIVEN["train"], "--vary", "schedule=cosine,step"]
RULES = {field.name: field.metadata["must_be"][1] for field in fields(Recipe) if field.metadata["must_be"]}
RULES["reject"] = lambda value: 0 < value < 1
# What a number has to be besides, where the other options are GIVEN or left to the finetune preset.
BESIDES = {
    "resize": lambda value: value >= 224,
    "crop": lambda value: value <= 256,
    "accumulate": lambda value: value <= 32,
    "warmup_epochs": lambda value: value < 60,
    "freeze_backbone_epochs": lambda value: value == 0,
    "min_pictures": lambda value: value <= 10,  # of each class that there is
    "folds": lambda value: value <= 30,
}

WORDS = ["", " ", "x", "two\nlines", "\udcff", "x" * 5000]
NUMBERS = ["-1", "-0.5", "0", "0.5", "1", "2", "100", "224", "4096", "5000", "1e3", "1e-400", "1e308", "1e400", "nan"]
NUMBERS += ["inf", "-inf", str(10**30), str(-(10**30)), str(10**400), "9" * 5000, "1e", "0x10", "1,5", "1_0", "+1", "١"]
PATHS = ["", "x" * 300, "x/" * 3000 + "x", "file.txt", "file.txt/below", "file.txt/two\nlines", "file.txt/\udcff"]
OPTIONS = [
    pytest.param(command.name, option, id=f"{command.name} {option.opts[0]}")
    for command in main.cli.commands.values()
    for option in command.params
    if isinstance(option, click.Option)
    # An ablation reads these when their trial's turn comes; one that fails takes no other along. An export needs the
    # cache for the birds alone.
    and (command.name, option.name) not in {("ablate", "weights"), ("ablate", "teacher"), ("export", "cache")}
]


def is_number(option):
    return isinstance(option.type, (click.types.IntParamType, click.types.FloatParamType, LearningRate))


def takes(option, text):
    """Whether ``text`` is a value of the number ``option``, by its documented rule."""
    try:
        value = (int if isinstance(option.type, click.types.IntParamType) else float)(text)
    except ValueError:
        return False
    low, high = getattr(option.type, "min", None), getattr(option.type, "max", None)
    within = (low is None or low <= value) and (high is None or value <= high)
    return within and all(rules[option.name](value) for rules in (RULES, BESIDES) if option.name in rules)


def nonsense(option):
    """(arguments, the option as spelled in them, the value) that no command takes."""
    spellings = [*option.opts, *option.secondary_opts]
    if option.is_flag:
        return [([f"{name}={value}"], name, value) for name in spellings for value in ("1", "true", "")]
    if isinstance(option.type, click.Choice):
        choices = option.type.choices
        values = [*WORDS, *(choice.upper() for choice in choices), f"{choices[0]},{choices[-1]}"]
    elif is_number(option):
        values = [value for value in [*WORDS, *NUMBERS] if not takes(option, value)]
    else:
        values = [path for path in PATHS if option.name != "output" or path != "file.txt"]
    return [([name, value], name, value) for name in spellings for value in values]


def shown(text):
    """``text`` as a line of standard error has it."""
    return text.replace("\n", "\\n").encode("utf-8", "backslashreplace").decode()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    file = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    torch.save({"model": build_model("resnet18", 2).state_dict()}, file)
    return file


@pytest.fixture
def prepared(photos, tmp_path, checkpoint, monkeypatch):
    """Pictures, a file and a run, and commands that go no further than to their work."""
    photos.rename(tmp_path / "photos")
    (tmp_path / "file.txt").write_text("no folder, no weights")
    run = RunDir(tmp_path / "runs" / "photos-1")
    run.best.parent.mkdir(parents=True)
    recipe = Recipe.create({"data": "elsewhere", "model": "resnet18"})
    classes = ["photos", "runs"]  # those of the current folder, which an empty path may not mean
    run.describe(recipe, classes, {"precision": "fp32"})
    run.best.symlink_to(checkpoint)
    weights = fingerprint(model_of(run, "best"))
    write_json(run.path / "calibration.json", {"temperature": 1.0, "weights": weights, "thresholds": [[0.0, 1.0, 0.1]]})

    def accept(*_, **__):
        raise SystemExit(ACCEPTED)

    for places in WORK.values():
        for place in places:
            monkeypatch.setattr(place, accept)
    return tmp_path


def arguments_for(command, option):
    """What is given before the option. The cache is written to for the birds alone; maps go into a folder."""
    birds = ["--data", "birds:species=2,pictures=2"] if option.name == "cache" != command else []
    folder = ["--explain", "why"] if option.name == "explain_most" else []
    return [command, *GIVEN[command], *birds, *folder]


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_nonsense_is_one_line_that_names_the_option(cli, prepared, command, option):
    before = sorted(prepared.rglob("*"))
    cases = nonsense(option)
    assert cases
    for arguments, name, value in cases:
        code, out, err = cli(*arguments_for(command, option), *arguments)
        assert (code, out) == (2, ""), arguments
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert errors == err.splitlines()[-1:], arguments
        assert name in errors[0] or (value in PATHS[1:] and shown(value) in errors[0]), arguments
        assert sorted(prepared.rglob("*")) == before, arguments


@pytest.mark.parametrize(("command", "option"), [case for case in OPTIONS if is_number(case.values[1])])
def test_each_number_within_its_rule_is_taken(cli, prepared, command, option):
    for value in [number for number in NUMBERS if takes(option, number)]:
        code, _, err = cli(*arguments_for(command, option), option.opts[0], value)
        assert code == ACCEPTED, (value, err)


@pytest.mark.parametrize(
    ("command", "headings"),
    [
        ("train", [*GROUPS, "Machine", "Options"]),
        ("ablate", ["Ablation", *GROUPS, "Machine", "Options"]),
        ("predict", ["Options", "Rows", "Machine"]),
        ("report", ["Options"]),
    ],
)
def test_help_lists_every_option_under_the_heading_of_its_group(cli, command, headings):
    code, out, _ = cli(command, "--help")
    assert code == 0
    sections = {}
    for line in out.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            listed = sections[line[:-1]] = []
        elif line.startswith("  -"):
            listed += [name for name in line.split("  ")[1].replace(",", " ").split() if name.startswith("--")]
    assert list(sections) == headings
    for option in main.cli.commands[command].params:
        if isinstance(option, click.Option):
            assert option.opts[-1] in sections[getattr(option, "group", "Options")], option.opts
    everything = [name for listed in sections.values() for name in listed]
    assert len(everything) == len({*everything})
