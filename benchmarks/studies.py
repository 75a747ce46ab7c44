"""When each trick pays: short trainings from pretrained weights and from scratch, one property changed at a time.

    python main.py train --data birds:species=800,pictures=12,seed=1 --smoothing 0 --resize 64 --crop 56 \\
        --batch-size 32 --lr 0.1 --weight-decay 1e-4 --epochs 12 --run runs/species
    python benchmarks/studies.py smoothing --weights runs/species --photos runs/clip_art \\
        -o benchmarks/results/smoothing-cpu.md
    python benchmarks/studies.py smoothing --photos runs/clip_art --epochs 30 --resize 56 --crop 48 \\
        -o benchmarks/results/smoothing-scratch-cpu.md
    python benchmarks/studies.py smoothing-rate --weights runs/species -o benchmarks/results/smoothing-rate-cpu.md
    python benchmarks/studies.py schedule --weights runs/species -o benchmarks/results/schedule-cpu.md
    python benchmarks/studies.py rate --weights runs/species -o benchmarks/results/rate-cpu.md
    python benchmarks/studies.py strong --weights runs/species --photos runs/clip_art --epochs 30 \\
        -o benchmarks/results/strong-cpu.md
    python benchmarks/studies.py paper --epochs 5 --resize 56 --crop 48 -o benchmarks/results/paper-cpu.md
    python benchmarks/studies.py demo --seeds 0 -o benchmarks/results/demo-recipes-cpu.md

The weights are a stand-in for ImageNet's: they know 800 species of birds (97 % of their validation pictures), and the
pictures are of 50 others. With --photos FOLDER, of at least 36 pictures for each class, smoothing and strong are also
studied on these; the tables' clip art is public-domain drawings, 36 of each of 16 subjects.

On a GPU, at 224 px, meant to take ten minutes, and not measured yet:

    python main.py train --data birds:species=800,pictures=12,seed=1 --smoothing 0 --resize 256 --crop 224 \\
        --lr 0.1 --weight-decay 1e-4 --epochs 12 --no-report --run runs/species-224 \\
    && for study in smoothing smoothing-rate schedule rate; do python benchmarks/studies.py $study \\
        --weights runs/species-224 --resize 256 --crop 224 --minutes 2 -o benchmarks/results/$study-gpu.md; done

A seed draws which pictures train, which labels are wrong, and the training. Each accuracy is that of the last epoch on
test pictures, which have chosen nothing. What each trial gave is kept in raw/ beside the table; the same command trains
what is missing there, goes on where it was stopped, and writes the table anew. Several train at once, each on a core of
its own (--jobs).
"""

import argparse
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import NamedTuple

import torch
from compared import Compared, draw, text
from table import publish
from trials import VALIDATE, Options, Pictures, Trial, results_of

from plumage.birds.folder import birds_folder, draw_birds
from plumage.hardware.cores import usable_cores

MOST, TEST = 24, 24  # birds of each species that train at most, and that test
# half as many pictures a step as the demo, of a quarter of its birds
FROM_SCRATCH: Options = {"preset": "demo", "batch_size": 32, "lr": 0.2}


class Setting(NamedTuple):
    """What is compared: the ``levels``, all with the first, under the same ``options``."""

    title: str
    pictures: Pictures
    options: Options
    levels: dict[str, Options]


class Begin(NamedTuple):
    """What a study begins from: options, pictures of birds, and of something else, if given."""

    options: Options
    birds: Pictures
    photos: Path | None

    @property
    def fine_tuning(self) -> bool:
        return "weights" in self.options


def smoothings(begin: Begin) -> dict[str, Options]:
    """Return the levels of smoothing; fewer from scratch, where a training takes ten times as long."""
    values = (0, 0.05, 0.1, 0.2) if begin.fine_tuning else (0, 0.1)
    return {f"ε = {value:g}": {"smoothing": value} for value in values}


def of_photos(photos: Path, options: Options) -> tuple[Pictures, Options]:
    """Return what else is studied, at 56 px at least: it may show nothing at 32."""
    larger = {"resize": max(options["resize"], 64), "crop": max(options["crop"], 56)}
    return Pictures(photos, 16, 18), options | larger


def smoothing(begin: Begin) -> Iterator[Setting]:
    """Label smoothing, where one property of how the training begins is another."""
    options, birds, photos = begin
    levels = smoothings(begin)
    yield Setting(f"{birds.train} pictures a class, {options['epochs']} epochs", birds, options, levels)
    for share in (0.05, 0.2):
        title = f"{share * 100:g} % of the training labels wrong"
        yield Setting(title, birds._replace(wrong=share), options, levels)
    for number in (each for each in (3, 6, 24) if each != birds.train):
        yield Setting(f"{number} pictures a class", birds._replace(train=number), options, levels)
    for epochs in (5, 60) if begin.fine_tuning else (15,):
        yield Setting(f"{epochs} epochs", birds, options | {"epochs": epochs}, levels)
    if photos:
        yield Setting(f"{photos.name}, 16 pictures a class", *of_photos(photos, options), levels)


def smoothing_rate(begin: Begin) -> Iterator[Setting]:
    """Label smoothing at the usual rate (in fine-tuning, the linear scaling rule's), and at lower and higher ones."""
    usual, levels = begin.options.get("lr", 0.025), smoothings(begin)
    for value in (usual / 2, usual, 2 * usual, 4 * usual, 8 * usual):
        yield Setting(f"rate {value:g}", begin.birds, begin.options | {"lr": value}, levels)


def schedule(begin: Begin) -> Iterator[Setting]:
    """How the rate falls."""
    levels: dict[str, Options] = {name: {"schedule": name} for name in ("constant", "step", "cosine")}
    for epochs in (5, 15):
        yield Setting(f"{epochs} epochs", begin.birds, begin.options | {"epochs": epochs}, levels)


def rate(begin: Begin) -> Iterator[Setting]:
    """The linear scaling rule against one rate for batches of all sizes: the one that it gives for 64 pictures."""
    levels: dict[str, Options] = {"0.025": {"lr": 0.025}, "auto": {"lr": "auto"}}
    for size in (16, 32, 64, 128, 256):
        options = begin.options | {"batch_size": size}
        yield Setting(f"batches of {size}", begin.birds, options, levels if size != 64 else {"0.025": {"lr": 0.025}})


def strong(begin: Begin) -> Iterator[Setting]:
    """What may make fine-tuning better; of photos, only no smoothing and higher rates, which paid on the birds.

    TrivialAugment, CutMix and erasing did not: results/strong-views-cpu.md, measured at commit c7b88d0 with
    results/raw/strong-views.patch.
    """
    of_both: dict[str, Options] = {
        "finetune": {},
        "no smoothing": {"smoothing": 0},
        "rate × 2": {"lr": 0.05},
        "rate × 4": {"lr": 0.1},
        "rate × 2, no smoothing": {"lr": 0.05, "smoothing": 0},
        "rate × 4, no smoothing": {"lr": 0.1, "smoothing": 0},
    }
    others: dict[str, Options] = {
        "rate / 2": {"lr": 0.0125},
        "head's rate × 10": {"head_lr_multiplier": 10},
        "average of weights": {"ema": 0.98},
        "mixup": {"mixup": 0.2},
        "resized crops": {"augment": "resized-crop"},
        "no bias decay": {"bias_decay": False},
        "decay × 5": {"weight_decay": 5e-4},
        "frozen for 2 epochs": {"freeze_backbone_epochs": 2},
    }
    yield Setting("birds", begin.birds, begin.options, of_both | others)
    if begin.photos:
        yield Setting(begin.photos.name, *of_photos(begin.photos, begin.options), of_both)


def demo(begin: Begin) -> Iterator[Setting]:
    """The first command of the README, by other recipes that take about as long."""
    tried = [  # side in pixels, epochs, batch, rate, decay; the first is how the demo was
        (56, 5, 32, 0.1, 1e-4),
        (56, 5, 32, 0.2, 1e-4),
        (56, 5, 32, 0.1, 5e-4),
        (56, 5, 64, 0.2, 5e-4),
        (48, 6, 32, 0.1, 1e-4),
        (48, 7, 64, 0.1, 1e-4),
        (48, 7, 64, 0.2, 1e-4),
        (48, 7, 64, 0.2, 5e-4),
        (48, 7, 64, 0.2, 1e-3),
        (48, 7, 64, 0.4, 5e-4),
        (48, 7, 64, 0.8, 5e-4),
        (48, 5, 64, 0.4, 5e-4),
        (40, 9, 64, 0.2, 1e-4),
    ]
    names = ("crop", "epochs", "batch_size", "lr", "weight_decay")
    levels: dict[str, Options] = {
        "{} px, {} epochs of {}, rate {:g}, decay {:g}".format(*each): dict(zip(names, each, strict=True))
        | {"resize": each[0] + 8, "warmup_epochs": 1}
        for each in tried
    }
    of_all = "48 px, 7 epochs of 64, rate 0.2, decay 0.0005"
    levels[f"{of_all}, not of biases"] = levels[of_all] | {"bias_decay": False}
    yield Setting("200 species", begin.birds._replace(train=MOST), begin.options, levels)


def paper(begin: Begin) -> Iterator[Setting]:
    """The tricks of He et al. 2019 in the first command's recipe, each taken away or put in alone.

    The paper adds one to the other, from a baseline that does not begin to learn in so few steps.
    """
    tables: dict[str, dict[str, Options]] = {
        "Table 4, efficient training": {
            "no warm-up": {"warmup_epochs": 0},
            "no zero γ": {"zero_gamma": False},
            "no bias decay": {"bias_decay": False},
            "the paper's baseline": {"warmup_epochs": 0, "zero_gamma": False, "schedule": "step", "smoothing": 0},
        },
        "Table 5, model tweaks": {
            "ResNet-50, the original": {"model": "resnet50v1"},
            "ResNet-50-C": {"model": "resnet50c"},
            "ResNet-50-D": {"model": "resnet50d"},
        },
        "Table 6, refinements": {
            "steps, not the cosine": {"schedule": "step"},
            "no smoothing": {"smoothing": 0},
            "half the smoothing": {"smoothing": 0.05},
            "twice the smoothing": {"smoothing": 0.2},
            "distillation from D": {"teacher": begin.options | {"model": "resnet50d"}},
            "mixup": {"mixup": 0.2},
        },
        "Augmentation": {"resized crops": {"augment": "resized-crop"}, "paper": {"augment": "paper"}},
    }
    for title, levels in tables.items():
        yield Setting(title, begin.birds._replace(train=MOST), begin.options, {"the first command's": {}} | levels)


class Study(NamedTuple):
    """What is asked, and whether --weights is needed (True), must not be given (False), or is as one likes (None)."""

    settings: Callable[[Begin], Iterator[Setting]]
    title: str
    weights: bool | None


STUDIES = {
    "smoothing": Study(smoothing, "When label smoothing pays", None),
    "smoothing-rate": Study(smoothing_rate, "Label smoothing, and how fast one learns", None),
    "schedule": Study(schedule, "How the rate falls", True),
    "rate": Study(rate, "The linear scaling rule", True),
    "strong": Study(strong, "What may make fine-tuning better", True),
    "demo": Study(demo, "The demo's recipe", False),
    "paper": Study(paper, "The bag of tricks", False),
}


def start_of(study: Study, weights: Path | None) -> Options:
    """Return what all of its trainings begin from; who must not have weights studies the first command's recipe."""
    if weights:
        return {"preset": "finetune", "weights": str(weights)}
    return {"preset": "demo"} if study.weights is False else FROM_SCRATCH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--weights", type=Path, metavar="RUN", help="fine-tune from these; else, train from scratch")
    parser.add_argument("--photos", type=Path, help="a folder with a folder of pictures for each class")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--resize", type=int, default=36)
    parser.add_argument("--crop", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=inf, help="begin no other training after so many")
    parser.add_argument("--jobs", type=int, default=1 if torch.cuda.is_available() else usable_cores())
    parser.add_argument("--folder", type=Path, default=Path("runs/studies"), help="for what is in between")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    study = STUDIES[args.study]
    if args.weights and study.weights is False:
        parser.error(f"--weights: {args.study} trains from scratch; leave it out")
    if study.weights and not args.weights:
        parser.error(f"--weights: {args.study} is of fine-tuning; give a run, as the first command above trains it")
    wanted = {"species": 200 if study.weights is False else 50, "pictures": MOST + TEST + VALIDATE, "seed": 0}
    birds = args.folder / birds_folder(wanted)
    args.folder.mkdir(parents=True, exist_ok=True)
    if not birds.exists():
        draw_birds(birds, **wanted, workers=usable_cores())
    of_all = {"resize": args.resize, "crop": args.crop, "epochs": args.epochs, "group_duplicates": False}
    options = start_of(study, args.weights) | of_all
    settings = list(study.settings(Begin(options, Pictures(birds, 6 if args.weights else MOST, TEST), args.photos)))
    lines = [(setting, level, seed) for seed in args.seeds for setting in settings for level in setting.levels]
    trials = [Trial(setting.pictures, setting.options | setting.levels[level], seed) for setting, level, seed in lines]
    raw = args.output.parent / "raw" / f"{args.output.stem}.jsonl.gz"
    rows = results_of(trials, raw, args.folder, args.jobs, args.minutes)
    found = {setting.title: Compared(setting.title, {}) for setting in settings}
    for (setting, level, seed), row in zip(lines, rows, strict=True):
        if row:
            found[setting.title].levels.setdefault(level, {})[seed] = row
    told = [each for each in found.values() if each.levels]
    draw(told, args.output.with_suffix(".png"))
    publish("\n".join(text(study.title, told, f"{args.output.stem}.png")), args.output)


if __name__ == "__main__":
    main()
