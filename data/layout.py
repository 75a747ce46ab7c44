"""Which folders of --data are classes, and which are the sides of a split: by what they hold, then by their names."""

import logging
import re
from collections import Counter, defaultdict
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from plumage.data.samples import some
from plumage.data.walk import look, walk
from plumage.errors import UserError
from plumage.names import composed

log = logging.getLogger("plumage")

# Of each side of a split, the words for it. One that is held out validates where nothing else does, or else tests.
WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "devel", "development"),
    "held out": ("eval", "evaluation", "holdout"),
    "test": ("test", "testing", "tst"),
}
SIDE_OF = {word: side for side, words in WORDS.items() for word in words}
# What may follow such a word without a space, as in trainset; VOC's trainval, which trains and validates, trains.
NOUN = re.compile(r"((data)?sets?|data|(image|img|picture|pic|photo|sample|split|folder|dir)s?|val)$")
MOST_LEVELS = 4
LABELS = "or give the class of each picture in a CSV, --labels FILE"
# A folder, as "train/cat/", → the paths of the pictures in it; of a class, with those of all below it.
Folders = dict[str, list[str]]


class Level(NamedTuple):
    """Class folders side by side, and what is beside them.

    classes: class name, in Unicode's composed form, → its folders: several where names differ in their form alone.
    empty: the names of folders without pictures. loose: how many files lie beside the folders.
    """

    classes: dict[str, Folders]
    empty: list[str]
    loose: int

    def note(self, ignored: "Counter[str]") -> None:
        """Count what is no part of a class."""
        ignored.update(f"the empty class {name}" for name in self.empty)
        if self.loose:
            ignored["files outside the class folders"] += self.loose


class Top:
    """A folder in --data. It is walked when it is first asked what it holds, and but once."""

    def __init__(self, path: Path):
        self.path, self.name, self.prefix = path, path.name, f"{path.name}/"
        self.side, self.plain = side_of(self.name), self.name.lower() in SIDE_OF
        self.ignored: Counter[str] = Counter()

    @cached_property
    def folders(self) -> Folders:
        """Every folder from here on, and the pictures directly in it."""
        found = walk(self.path, self.prefix, self.ignored)
        return {way: [way + name for name in names] for way, names in found}

    @property
    def loose(self) -> int:
        return len(self.folders.get(self.prefix, ()))

    @cached_property
    def pictures(self) -> list[str]:
        return [path for paths in self.folders.values() for path in paths]

    @cached_property
    def levels(self) -> list[Level]:
        """The folders in this one, as classes; then, as long as one is alone and holds but folders, those in it."""
        levels, way = [self._level(self.prefix)], self.prefix
        while len(levels) < MOST_LEVELS:
            alone = [way for folders in levels[-1].classes.values() for way in folders]
            if len(alone) != 1 or self.folders.get(way := alone[0]):
                break
            levels.append(self._level(way))
        return levels

    @property
    def classes(self) -> dict[str, Folders]:
        """The folders of pictures in this one, by name."""
        return self.levels[-1].classes

    def level_like(self, other: Level) -> Level | None:
        """Return the level, the deepest first, with a class of the ``other``, if any."""
        return next((level for level in self.levels[::-1] if level.classes.keys() & other.classes.keys()), None)

    def _level(self, way: str) -> Level:
        inside: defaultdict[str, list[str]] = defaultdict(list)
        for folder, paths in self.folders.items():
            if folder.startswith(way) and folder != way:
                inside[folder[: folder.index("/", len(way)) + 1]] += paths
        return level_of(inside, len(self.folders.get(way, ())))


def level_of(inside: Folders, loose: int) -> Level:
    """Return what the folders that lie side by side hold, each with all below it."""
    level = Level({}, [], loose)
    for way, paths in sorted(inside.items()):
        name = way.split("/")[-2]
        if paths:
            level.classes.setdefault(composed(name), {})[way] = paths
        else:
            level.empty.append(name)
    return level


def side_of(name: str) -> str:
    """Return which side of a split a folder's name means, "" for none: by words, as in Train Images or seg_testSet."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", composed(name)).lower()
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<![^\W\d_])(hold|held)[\W_]*out", "holdout", parted))
    sides = {SIDE_OF[word] for each in words for word in (each, NOUN.sub("", each)) if word in SIDE_OF}
    return "train" if sides == {"train", "val"} else sides.pop() if len(sides) == 1 else ""


def find_sides(folder: Path, ignored: "Counter[str]", anew: bool = False) -> dict[str, Level]:
    """Find the class folders of "train", "val" and "test", or of "" where there is no split.

    anew: a test folder tests, though nothing else validates.
    Raises UserError where folders are those of a split, and which is which cannot be told.
    """
    inside = look(folder, ignored, needed=True)
    tops = [Top(Path(entry.path)) for entry in inside.folders]
    if split := find_split(folder, tops, anew):
        used, sides = [top for top, _ in split.values()], {side: level for side, (_, level) in split.items()}
        ignored.update(top.prefix for top in tops if top not in used)
    else:
        refuse_split(folder, [top for top in tops if top.pictures])
        outside = len(inside.pictures) + len(inside.others)
        used, sides = tops, {"": level_of({top.prefix: top.pictures for top in tops}, outside)}
    for top in used:
        ignored.update(top.ignored)
    for level in sides.values():
        level.note(ignored)
    return sides


def find_split(folder: Path, tops: list[Top], anew: bool = False) -> dict[str, tuple[Top, Level]]:
    """Find the sides of a split among ``tops``; none where these are classes.

    Where there is but a test folder without the classes, which is left for `predict`, it is "" alone: what trains.
    """
    by_side = {side: [top for top in tops if top.side == side] for side in WORDS}
    if not by_side["train"] or not any(top.side not in ("", "train") for top in tops):
        return {}
    train, val, held, test = (choose(folder, alike) for alike in by_side.values())
    named = [top for top in (val, held, test) if top]
    if not train or not train.classes:
        return {}
    if val and val.plain and not val.classes:
        raise UserError(nothing_in(val.path))
    learnt = train.levels[-1]
    # Pictures beside folders of such names speak for classes, as of bus/, steam train/ and crash test/.
    sure = (train.plain and named[0].plain) or not any(top.loose for top in tops if not top.side)
    alike = [(top, level) for top in named if (level := top.level_like(learnt))]
    unlike = f"has no folders of {train.prefix}'s classes"
    if sure and (others := [top for top in (val, held) if top and top.classes and not top.level_like(learnt)]):
        raise UserError(f"{folder}: {others[0].prefix} {unlike}; give these the same names there, {LABELS}")
    if alike:
        sides = {"train": (train, learnt)}
        if not (anew and alike[0][0] is test):
            sides["val"] = alike[0]
        return tell(folder, sides if len(alike) == 1 and "val" in sides else {**sides, "test": alike[-1]})
    if sure and test:
        log.info(f"{folder}: {test.prefix} {unlike}, so a part of {train.prefix} validates")
        return {"": (train, learnt)}
    if sure and named[0].pictures:
        raise UserError(nothing_in(named[0].path))
    return {}


def choose(folder: Path, tops: list[Top]) -> Top | None:
    """Return the one of ``tops``, which are named as the same side, that is it: with an exact name, if one has it."""
    for alike in ([top for top in tops if top.plain], [top for top in tops if not top.plain]):
        full = [top for top in alike if top.classes]
        if len(full) > 1:
            which = " and ".join(some([top.prefix]) for top in full)
            raise UserError(
                f"{folder}: {which} may each be the {full[0].side} folder; move away, or rename, all but one"
            )
        if full:
            return full[0]
    return next(iter(tops), None)


def tell(folder: Path, sides: dict[str, tuple[Top, Level]]) -> dict[str, tuple[Top, Level]]:
    """Return ``sides``, without the test folder's classes that are nowhere else, and say what the names do not say."""
    said = [f"{sides['train'][0].prefix} trains"]
    if "val" in sides:
        val, _ = sides["val"]
        said.append(f"{val.prefix} validates" + (", since there is no val/" if val.side == "test" else ""))
    if "test" in sides:
        test, tested = sides.pop("test")
        said.append(f"{test.prefix} is kept for eval --split test")
        learnt = {name for _, level in sides.values() for name in level.classes}
        known = {name: ways for name, ways in tested.classes.items() if name in learnt}
        sides["test"] = test, tested._replace(classes=known)
        if unknown := sorted(tested.classes.keys() - known.keys()):
            log.warning(f"{folder}: {some(unknown)} are in {test.prefix} alone, and left out: nothing can learn them")
    if "test" in sides or any(top.side == "test" or not top.plain for top, _ in sides.values()):
        log.info(f"{folder}: {', '.join(said)}")
    return sides


def refuse_split(folder: Path, tops: list[Top]) -> None:
    """Raise UserError where ``tops``, folders that hold pictures, are no classes, but the sides of a split."""
    if len(tops) < 2:
        return
    sides, inside = {top.side for top in tops}, [set() if top.loose else set(top.classes) for top in tops]
    for top, names in zip(tops, inside, strict=True):
        if "train" in (own := {SIDE_OF.get(name.lower()) for name in names}) and own & {"val", "held out", "test"}:
            way_out = f"give it as --data; or, where classes hold such folders, turn that round, as train/{top.name}"
            raise UserError(f"{folder}: {top.prefix} holds {some(sorted(names))}: {way_out}, {LABELS}")
    shared, every = set.intersection(*inside), set.union(*inside)
    if len(shared) > 1 and 2 * len(shared) >= len(every):
        hold = f"{some([top.prefix for top in tops])} hold the same folders, {some(sorted(shared))}"
        raise UserError(f"{folder}: {hold}, as the sides of a split do: name them train and val, {LABELS}")
    if "train" in sides and len(sides) > 1 and "" not in sides:
        raise UserError(f"{nothing_in(next(top.path for top in tops if top.side == 'train'))}, {LABELS}")
    beside = {composed(top.name) for top in tops}
    for top in (top for top in tops if top.side):
        if len(again := sorted(top.classes.keys() & beside)) > 1:
            way_out = "put those beside it into train/, or move it away"
            raise UserError(f"{folder}: {top.prefix} holds {some(again)}, which are beside it too: {way_out}, {LABELS}")
        if len(top.classes) > 1:
            log.warning(f"{folder}: {top.prefix} is taken for one class, with {some(sorted(top.classes))} in it")


def nothing_in(folder: Path) -> str:
    """Say why no classes are in ``folder``, and the way out."""
    loose = len(look(folder, Counter()).pictures)
    what = f"{loose} pictures but no class folders" if loose else "no pictures"
    return f"--data: {folder} holds {what}; put those of each class into a folder of its own, such as {folder / 'cat'}"
