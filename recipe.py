"""Recipe: every hyper-parameter of a run. A new one is a field here; the command line and recipe.json follow."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from plumage.errors import UserError

Rule = tuple[str, Callable[[Any], bool]]

ABOVE_0: Rule = ("above 0", lambda value: 0 < value <= sys.float_info.max)
AT_LEAST_0: Rule = ("at least 0", lambda value: 0 <= value <= sys.float_info.max)
FRACTION: Rule = ("at least 0 and below 1", lambda value: 0 <= value < 1)
SIDE: Rule = ("from 1 to 4096", lambda value: 1 <= value <= 4096)


def _option(default: Any, help: str, must_be: Rule | None = None, choices: tuple[str, ...] = ()) -> Any:
    """A field with what the command line needs to offer it, and the rule that its value must keep."""
    return field(default=default, metadata={"help": help, "must_be": must_be, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """What determines a run's result. Raises UserError naming the option whose value is out of range.

    The defaults are those of the ``finetune`` preset.
    """

    data: str = _option(
        "birds",
        "birds (or another draw, such as birds:species=50,pictures=30,seed=1), cub200, or a folder with a folder per "
        "class, or with train/ and val/.",
    )
    preset: str = _option(
        "finetune", "Where the other options' defaults come from.", choices=("finetune", "demo", "paper")
    )
    model: str = _option(
        "resnet50",
        "The network. resnet50 is the paper's B, resnet50v1 the original, resnet50c and resnet50d its C and D.",
        choices=tuple(f"resnet{kind}" for kind in ("18", "34", "50", "101", "152", "50c", "50d", "50v1")),
    )
    weights: str = _option(
        "imagenet", "What training starts from: imagenet, imagenet-v2, none, a file of weights, or a run."
    )
    zero_gamma: bool = _option(False, "Let each residual block begin as the identity; only with --weights none.")
    resize: int = _option(256, "Pictures become squares of this side, in pixels.", SIDE)
    crop: int = _option(
        224, "Side of what the network sees: a random window in training, the centre in evaluation.", SIDE
    )
    augment: str = _option(
        "crop",
        "Random windows of --crop, flipped; resized-crop: of 8 to 100 % of the picture, resized to --crop; "
        "paper: these with changed colours.",
        choices=("crop", "resized-crop", "paper"),
    )
    mixup: float = _option(
        0.0,
        "Mix each picture with another of its batch, in shares from Beta(this, this); 0: off. A training prediction "
        "then counts as right if it names the picture with the larger share.",
        AT_LEAST_0,
    )
    batch_size: int = _option(
        64,
        "Pictures per step, of all processes together.",
        ("from 2, for BatchNorm, to 65536", lambda value: 2 <= value <= 65536),
    )
    accumulate: int = _option(
        1,
        "Compute each step's pictures, of several processes each its own, in this many parts, for less memory; "
        "BatchNorm sees the parts.",
        ("at least 1", lambda value: value >= 1),
    )
    sync_bn: bool = _option(
        False, "Of several processes: let BatchNorm see the pictures of all, not only those of its own."
    )
    lr: float = _option(0.025, "Peak learning rate; auto: 0.1 x batch / 256.", ABOVE_0)
    epochs: int = _option(
        60, "Times through the training set.", ("from 1 to 1000000", lambda value: 1 <= value <= 10**6)
    )
    seed: int = _option(0, "Of every random draw.", ("from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63))
    smoothing: float = _option(0.1, "Label smoothing: the probability that goes to the wrong classes.", FRACTION)
    teacher: str = _option(
        "none", "Learn from this run's outputs too (distillation): a run of the same classes, or its checkpoint."
    )
    temperature: float = _option(
        20.0,
        "Of distillation: what both outputs are divided by.",
        ("above 0, at most 1000000", lambda value: 0 < value <= 10**6),
    )
    val_fraction: float = _option(
        0.2,
        "Of each class, held out where the data has no split.",
        ("above 0 and below 1", lambda value: 0 < value < 1),
    )
    momentum: float = _option(0.9, "Nesterov momentum of SGD.", FRACTION)
    weight_decay: float = _option(1e-4, "L2 penalty.", AT_LEAST_0)
    bias_decay: bool = _option(True, "Let biases and BatchNorm decay too, not only the layers' weights.")
    warmup_epochs: float = _option(0.0, "Epochs in which the rate rises from 0.", AT_LEAST_0)
    schedule: str = _option(
        "cosine", "The rate after warm-up; step: a tenth at each quarter.", choices=("cosine", "step", "constant")
    )
    head_lr_multiplier: float = _option(1.0, "The last layer's rate is this times --lr.", ABOVE_0)
    freeze_backbone_epochs: int = _option(0, "Epochs at the start in which only the last layer learns.", AT_LEAST_0)
    clip_grad_norm: float = _option(0.0, "Scale gradients of a larger norm down to this; 0: off.", AT_LEAST_0)
    ema: float = _option(
        0.0,
        "Decay of an exponential moving average of the weights, which is then what is evaluated and kept; it spans "
        "about 1 / (1 - this) steps; 0: off.",
        FRACTION,
    )
    early_stopping: int = _option(0, "Stop after this many epochs without a better one; 0: off.", AT_LEAST_0)

    def __post_init__(self) -> None:
        for option in fields(self):
            value, name = getattr(self, option.name), option_name(option.name)
            if type(value) is not option.type and not (option.type is float and type(value) is int):
                raise UserError(f"{name} {value!r}: must be of type {getattr(option.type, '__name__', option.type)}")
            if option.metadata["choices"] and value not in option.metadata["choices"]:
                raise UserError(f"{name} {value}: must be one of {', '.join(option.metadata['choices'])}")
            if (rule := option.metadata["must_be"]) and not rule[1](value):
                raise UserError(f"{name} {value}: must be {rule[0]}")
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
                f"--accumulate {self.accumulate}: of --batch-size {self.batch_size}, each part needs two pictures"
            )
        if self.warmup_epochs >= self.epochs:
            raise UserError(f"--warmup-epochs {self.warmup_epochs:g} must be below --epochs {self.epochs}; give both")

    @classmethod
    def create(cls, given: Mapping[str, Any]) -> "Recipe":
        """The recipe of the options ``given`` by hand over the preset's. Paths become absolute; lr "auto" a number.

        A preset's warm-up is shortened to half of the epochs that are given.
        """
        preset = given.get("preset") or ("demo" if is_birds(given.get("data", cls.data)) else cls.preset)
        if preset not in PRESETS:
            raise UserError(f"--preset {preset}: must be one of {', '.join(PRESETS)}")
        values = {**PRESETS[preset], **given, "preset": preset}
        if "warmup_epochs" in values and "warmup_epochs" not in given:
            values["warmup_epochs"] = min(values["warmup_epochs"], values["epochs"] / 2)
        scaled = values.get("lr", "auto") == "auto"
        if scaled:
            values.pop("lr", None)
        named = {"data": ("cub200",), "weights": ("imagenet", "imagenet-v2", "none"), "teacher": ("none",)}
        for name, words in named.items():
            if name in values and values[name] not in words and not (name == "data" and is_birds(values[name])):
                try:
                    values[name] = str(Path(values[name] or "\0").expanduser().resolve())
                except (RuntimeError, ValueError, OSError) as error:
                    raise UserError(f"--{name} '{values[name]}': {error or 'is empty'}; give a path") from error
        recipe = cls(**values)
        return replace(recipe, lr=0.1 * recipe.batch_size / 256) if scaled else recipe

    @classmethod
    def load(cls, file: Path) -> "Recipe":
        """The recipe of a run. An option younger than the file takes its default."""
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError, UserError) as error:
            raise UserError(f"{file} is no recipe of this version: {' '.join(str(error).split())}") from error

    def contradictions(self, given: Mapping[str, Any]) -> list[str]:
        """The options given by hand that differ from this recipe, as ``--name value (was value)``."""
        wanted = Recipe.create({**asdict(self), **given})
        return [
            f"{option_name(name)} {getattr(wanted, name)} (was {getattr(self, name)})"
            for name in given
            if getattr(wanted, name) != getattr(self, name)
        ]


def is_birds(data: str) -> bool:
    """Whether ``--data`` means the built-in birds: ``birds``, or a draw of one's own such as ``birds:species=50``."""
    return data.partition(":")[0] == "birds"


def option_name(field_name: str) -> str:
    return "--" + field_name.replace("_", "-")


PRESETS: dict[str, dict[str, Any]] = {
    # One's own pictures, from ImageNet weights: the fields' own defaults.
    "finetune": {},
    # The built-in birds from scratch, in minutes on two CPU cores.
    "demo": {
        "weights": "none",
        "zero_gamma": True,
        "resize": 64,
        "crop": 56,
        "batch_size": 32,
        "lr": 0.1,
        "epochs": 5,
        "warmup_epochs": 1.0,
    },
    # He et al. 2019: ImageNet from scratch with every trick that the paper keeps, but for a teacher (table 6).
    "paper": {
        "model": "resnet50d",
        "weights": "none",
        "zero_gamma": True,
        "augment": "paper",
        "mixup": 0.2,
        "batch_size": 256,
        "epochs": 120,
        "bias_decay": False,
        "warmup_epochs": 5.0,
    },
}
