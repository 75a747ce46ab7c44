"""Recipe: every hyper-parameter of a run. A new one is a field here; the command line and recipe.json follow."""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from plumage.errors import UserError, first_line
from plumage.files import expanded, read_object

Rule = tuple[str, Callable[[Any], bool]]
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # a drive of Windows has one letter


def between(low: int, high: int) -> Rule:
    return f"from {low} to {high}", lambda value: low <= value <= high


ABOVE_0: Rule = ("above 0", lambda value: 0 < value <= sys.float_info.max)
AT_LEAST_0: Rule = ("at least 0", lambda value: 0 <= value <= sys.float_info.max)
AT_LEAST_1: Rule = ("at least 1", lambda value: value >= 1)
FRACTION: Rule = ("at least 0 and below 1", lambda value: 0 <= value < 1)
FOLD: Rule = (
    "none, or a fold; give K/N with K from 1 to N and N at least 2, as 1/5",
    lambda value: value == "none" or fold_of(value) is not None,
)
INNER_FRACTION: Rule = ("above 0 and below 1", lambda value: 0 < value < 1)
DIVISOR: Rule = ("above 0, at most 1000000", lambda value: 0 < value <= 10**6)
SIDE = between(1, 4096)


def _option(group: str, default: Any, help: str, must_be: Rule | None = None, choices: tuple[str, ...] = ()) -> Any:
    """Return a field with what ``--help`` tells of it, under the heading ``group``, and the rule that it must keep."""
    return field(default=default, metadata={"group": group, "help": help, "must_be": must_be, "choices": choices})


GROUPS = ("Data", "Model", "Optimisation", "Regularisation", "Run")  # in the order of --help
_data, _model, _optim, _regular, _run = (partial(_option, group) for group in GROUPS)


@dataclass(frozen=True)
class Recipe:
    """What determines a run's result, by default the ``finetune`` preset. UserError names an option out of range."""

    data: str = _data(
        "birds",
        "Pictures to learn from: birds (built in; birds:species=50,pictures=30,seed=1 draws others), cub200, or a "
        "folder that holds a folder per class, or train/, val/ and maybe test/.",
    )
    preset: str = _run(
        "finetune",
        "Where the other options take their defaults from. finetune: your own pictures, from ImageNet weights. demo: "
        "small pictures, from random weights, in minutes. paper: ImageNet from random weights.",
        choices=("finetune", "demo", "paper"),
    )
    labels: str = _data(
        "none",
        "Labels from a CSV or TSV file with a header, of pictures in --data, whose folders then mean nothing. Columns: "
        "path (or file, filename, image, id, image_id), label (or class, target, species, category), and if there "
        "split (train, val, test) and group. A run's split.csv is such a file.",
    )
    model: str = _model(
        "resnet50",
        "resnet50 is the paper's ResNet-B, resnet50v1 the original, resnet50c and resnet50d are the paper's C and D.",
        choices=tuple(f"resnet{kind}" for kind in ("18", "34", "50", "101", "152", "50c", "50d", "50v1")),
    )
    weights: str = _model("imagenet", "Weights to start from: imagenet, imagenet-v2, none (random), a file, or a run.")
    zero_gamma: bool = _model(False, "Start each block with its last BatchNorm's weights at 0. Needs --weights none.")
    resize: int = _data(256, "Resize pictures to squares of this side, in pixels.", SIDE)
    crop: int = _data(224, "Side of the square that the network sees: random in training, the centre after.", SIDE)
    fit: str = _data(
        "squash",
        "How a picture becomes a square. squash: both sides are resized. crop: the short side is, and the centre is "
        "cut out. pad: the long side is, on grey.",
        choices=("squash", "crop", "pad"),
    )
    flip: bool = _regular(True, "Mirror pictures at random. Not where left and right differ: digits, text, arrows.")
    augment: str = _regular(
        "crop",
        "crop: take random squares of side --crop, and flip them at random. resized-crop: take random windows of 8 to "
        "100 % of the picture, resize them to --crop, and flip. paper: as resized-crop, and change the colours.",
        choices=("crop", "resized-crop", "paper"),
    )
    mixup: float = _regular(
        0.0,
        "Mix each picture with another of its batch, in proportions from Beta(MIXUP, MIXUP). 0: off. A training "
        "prediction counts as right if it names the picture with the larger proportion.",
        AT_LEAST_0,
    )
    batch_size: int = _optim(64, "Pictures per training step, over all processes together.", between(2, 65536))
    accumulate: int = _optim(
        1, "Compute each step in this many micro-batches, to save memory. BatchNorm sees one at a time.", AT_LEAST_1
    )
    sync_bn: bool = _optim(False, "With several processes: let BatchNorm see the pictures of all, not only its own.")
    lr: float = _optim(0.025, "Highest learning rate. auto is 0.1 x batch size / 256.", ABOVE_0)
    epochs: int = _optim(60, "Passes over the training set.", between(1, 10**6))
    seed: int = _run(0, "Seed of every random draw.", between(0, 2**63 - 1))
    smoothing: float = _regular(0.1, "Label smoothing: probability to spread over the wrong classes.", FRACTION)
    teacher: str = _regular("none", "Distillation: learn also from a run or checkpoint of the same classes.")
    temperature: float = _regular(20.0, "Distillation: divide both networks' outputs by this.", DIVISOR)
    val_fraction: float = _data(0.2, "Fraction of each class to validate on, if the data has no split.", INNER_FRACTION)
    fold: str = _data(
        "none",
        "Cross-validation: cut the pictures into N parts, and validate on the K-th of them, instead of --val-fraction. "
        "Give K/N, as 1/5.",
        FOLD,
    )
    min_pictures: int = _data(1, "Leave out classes with fewer pictures than this.", AT_LEAST_1)
    group_by: str = _data(
        "none",
        "Keep pictures together that share what this regular expression's first group matches in their path below "
        "--data, as in --group-by '^(patient\\d+)': all of them train, or all validate.",
    )
    group_duplicates: bool = _data(True, "Keep pictures that look nearly the same on one side of the split.")
    balance: float = _regular(
        0.0,
        "Show rare classes more often: a class with n pictures is drawn in proportion to n^(1 - BALANCE). 0: off. 1: "
        "all classes equally.",
        between(0, 1),
    )
    momentum: float = _optim(0.9, "Nesterov momentum of SGD.", FRACTION)
    weight_decay: float = _regular(1e-4, "L2 penalty on the weights.", AT_LEAST_0)
    bias_decay: bool = _regular(True, "Apply --weight-decay to biases and BatchNorm too, not only to layers' weights.")
    warmup_epochs: float = _optim(0.0, "Epochs at the start in which the rate rises from 0 to --lr.", AT_LEAST_0)
    schedule: str = _optim(
        "cosine",
        "How the learning rate falls after warm-up. step: to a tenth after each quarter of training.",
        choices=("cosine", "step", "constant"),
    )
    head_lr_multiplier: float = _optim(1.0, "Multiply --lr by this for the last layer.", ABOVE_0)
    freeze_backbone_epochs: int = _optim(0, "Epochs at the start in which only the last layer is trained.", AT_LEAST_0)
    clip_grad_norm: float = _optim(0.0, "Scale gradients down to at most this norm. 0: off.", AT_LEAST_0)
    ema: float = _optim(
        0.0,
        "Evaluate and keep an exponential moving average of the weights, with this decay: 0.999 averages over about "
        "1000 steps. 0: off.",
        FRACTION,
    )
    early_stopping: int = _regular(0, "Stop after this many epochs without a better --best. 0: off.", AT_LEAST_0)
    best: str = _run(
        "accuracy",
        "What makes an epoch the best: its validation accuracy, balanced-accuracy (the mean over classes, for those of "
        "unequal sizes) or loss. Of equals, the one with the lower loss.",
        choices=("accuracy", "balanced-accuracy", "loss"),
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            value, name = getattr(self, option.name), option_name(option.name)
            if type(value) is not option.type and not (option.type is float and type(value) is int):
                raise UserError(f"{name} {value!r}: must be of type {getattr(option.type, '__name__', option.type)}")
            if option.metadata["choices"] and value not in option.metadata["choices"]:
                raise UserError(f"{name} {value}: must be one of {', '.join(option.metadata['choices'])}")
            if (rule := option.metadata["must_be"]) and not rule[1](value):
                raise UserError(f"{name} {value}: must be {rule[0]}")
        if self.group_by != "none":
            check_pattern(self.group_by)
        if self.crop > self.resize:
            raise UserError(f"--crop {self.crop}: must not be larger than --resize {self.resize}")
        if self.zero_gamma and self.weights != "none":
            raise UserError("--zero-gamma would undo pretrained weights: give --weights none, or --no-zero-gamma")
        if self.freeze_backbone_epochs and self.weights == "none":
            raise UserError("--freeze-backbone-epochs would keep random weights: take it with pretrained --weights")
        if self.freeze_backbone_epochs > self.epochs:
            raise UserError(f"--freeze-backbone-epochs {self.freeze_backbone_epochs}: there are {self.epochs} --epochs")
        if 2 * self.accumulate > max(self.batch_size, 2):
            raise UserError(
                f"--accumulate {self.accumulate}: each micro-batch of --batch-size {self.batch_size} needs two pictures"
            )
        if self.warmup_epochs >= self.epochs:
            raise UserError(f"--warmup-epochs {self.warmup_epochs:g} must be below --epochs {self.epochs}; give both")

    @classmethod
    def create(cls, given: Mapping[str, Any]) -> "Recipe":
        """Return the recipe of the options ``given`` by hand, and of the preset for the others.

        Paths become absolute, and lr "auto" a number. A preset's warm-up is at most half of the epochs.
        """
        preset = given.get("preset") or ("demo" if is_birds(given.get("data", cls.data)) else cls.preset)
        values = {**PRESETS.get(preset, {}), **given, "preset": preset}
        if "warmup_epochs" in values and "warmup_epochs" not in given:
            values["warmup_epochs"] = min(values["warmup_epochs"], values["epochs"] / 2)
        scaled = values.get("lr", "auto") == "auto"
        if scaled:
            values.pop("lr", None)
        named = {"data": ("cub200",), "weights": ("imagenet", "imagenet-v2", "none")}
        named |= {"teacher": ("none",), "labels": ("none",)}
        for name, words in named.items():
            if name in values and values[name] not in words and not (name == "data" and is_birds(values[name])):
                try:
                    if not values[name]:
                        raise ValueError("is empty")
                    if URL.match(values[name]):
                        raise ValueError("is a URL: download it first, and unpack it if it is an archive")
                    values[name] = str(Path(expanded(values[name])).resolve())
                except (RuntimeError, ValueError, OSError) as error:
                    raise UserError(f"--{name} '{values[name]}': {error}; give a path") from error
        recipe = cls(**values)
        return replace(recipe, lr=0.1 * recipe.batch_size / 256) if scaled else recipe

    @classmethod
    def load(cls, file: Path) -> "Recipe":
        """Read a run's recipe.json. An option that the file does not know yet takes its default."""
        try:
            return cls(**read_object(file))
        except (TypeError, ValueError, UserError) as error:
            raise UserError(f"{file} is no recipe of this version: {' '.join(str(error).split())}") from error

    def contradictions(self, given: Mapping[str, Any]) -> list[str]:
        """Return the options given by hand that differ from this recipe, as ``--name value (was value)``.

        The place of the data may differ: which pictures are there decides. So may that of a file of labels, which the
        run has taken over.
        """
        was, now = asdict(self), asdict(Recipe.create({**asdict(self), **given}))
        moved = {"data", *(("labels",) if Path(was["labels"]).name == Path(now["labels"]).name else ())}
        differ = (name for name in given if name not in moved and now[name] != was[name])
        own = {name: as_given(name, was[name]).removeprefix(f"{option_name(name)} ") for name in was}
        return [f"{as_given(name, now[name])} (was {own[name]})" for name in differ]


def check_given(given: Mapping[str, Any]) -> None:
    """Raise UserError where one of the options that are given by hand would undo another."""
    if given.get("fold", "none") != "none" and "val_fraction" in given:
        raise UserError("--val-fraction: a fold says what validates; leave it out")


def fold_of(text: str) -> tuple[int, int] | None:
    """Return K and N of a fold ``K/N``, with K from 1 to N and N at least 2; None where it is none."""
    match = re.fullmatch(r"([1-9][0-9]{0,3})/([1-9][0-9]{0,3})", text)
    fold, folds = map(int, match.groups()) if match else (0, 0)
    return (fold, folds) if match and fold <= folds and folds > 1 else None


def is_birds(data: str) -> bool:
    """Tell whether ``--data`` means the built-in birds: ``birds``, or another draw such as ``birds:species=50``."""
    return data.partition(":")[0] == "birds"


def check_pattern(group_by: str) -> None:
    """Raise UserError where ``group_by`` is no regular expression with a group."""
    try:
        problem = "" if re.compile(group_by).groups else "has no group, which is what stands in parentheses"
    except (re.error, RecursionError, OverflowError) as error:
        problem = first_line(error)
    if problem:
        raise UserError(f"--group-by {group_by!r}: {problem}; give a regular expression such as '^(patient\\d+)'")


def option_name(field_name: str) -> str:
    return "--" + field_name.replace("_", "-")


def as_given(field_name: str, value: Any) -> str:
    """Return an option with its value as one writes it: ``--epochs 10``, ``--no-flip``."""
    if isinstance(value, bool):
        return option_name(field_name if value else f"no_{field_name}")
    return f"{option_name(field_name)} {value}"


FROM_SCRATCH = {"weights": "none", "zero_gamma": True}
TRICKS = {"model": "resnet50d", "augment": "paper", "mixup": 0.2, "bias_decay": False}
PRESETS: dict[str, dict[str, Any]] = {
    # One's own pictures, from ImageNet weights: the fields' own defaults.
    "finetune": {},
    # The built-in birds from scratch, in minutes on two CPU cores.
    "demo": FROM_SCRATCH
    | {"resize": 56, "crop": 48, "lr": 0.4, "weight_decay": 5e-4, "epochs": 7, "warmup_epochs": 1.0},
    # He et al. 2019: ImageNet from scratch with every trick that the paper keeps, but for a teacher (table 6).
    "paper": FROM_SCRATCH | TRICKS | {"batch_size": 256, "epochs": 120, "warmup_epochs": 5.0},
}
