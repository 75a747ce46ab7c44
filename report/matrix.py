"""The confusion matrix: with names and numbers where there are few classes, else by groups of similar classes."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from plumage.report.statistics import similar_groups, tabulate
from plumage.report.style import INK, NAMED, drawable, new_axes
from plumage.rundir.evaluation import Evaluation
from plumage.rundir.scores import Pairs, count_pairs

GROUP = 12  # classes at most, whose matrix is read at a glance
CELLS = 600  # of a drawn matrix's side: more cannot be told apart, and take memory by their square


@dataclass(frozen=True)
class Block:
    """Some classes against each other.

    pictures: (m, m) int64, of the row's class taken for the column's. others: (m,) int64, taken for none of them.
    """

    classes: list[int]
    pictures: np.ndarray
    others: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """(m, m) float64: pictures as a fraction of all of the row's class."""
        return self.pictures / np.maximum(self.pictures.sum(axis=1) + self.others, 1)[:, None]


class Confusions:
    """What an evaluation takes for what. groups: the classes, similar ones side by side, in groups beyond NAMED."""

    def __init__(self, evaluation: Evaluation, classes: int):
        self.named = classes <= NAMED
        self.totals = np.bincount(evaluation.labels, minlength=classes)
        self.pairs: Pairs = count_pairs(evaluation.labels, evaluation.predictions, classes)
        groups = similar_groups(evaluation.logits, evaluation.labels, NAMED if self.named else GROUP)
        self.groups = [self.order_of(groups)] if self.named else groups

    @staticmethod
    def order_of(groups: list[list[int]]) -> list[int]:
        return [number for group in groups for number in group]

    @cached_property
    def group_of(self) -> np.ndarray:
        """(K,) int64: the place of each class's group."""
        places = np.empty(len(self.totals), np.int64)
        places[self.order_of(self.groups)] = np.repeat(np.arange(len(self.groups)), [*map(len, self.groups)])
        return places

    @cached_property
    def inside(self) -> np.ndarray:
        """(groups,) int64: how many pictures of each group are taken for another class of it."""
        true, predicted, pictures = self.pairs
        within = (true != predicted) & (self.group_of[true] == self.group_of[predicted])
        return np.bincount(self.group_of[true[within]], pictures[within], len(self.groups)).astype(np.int64)

    @cached_property
    def block(self) -> Block:
        """Of the group with most confusions in it."""
        return self._table([[number] for number in self.groups[int(self.inside.argmax())]])

    def _table(self, places: list[list[int]]) -> Block:
        """Return the block of ``places``, each of one class or of several together."""
        place = np.full(len(self.totals), -1)
        for number, classes in enumerate(places):
            place[classes] = number
        pictures = tabulate(self.pairs, place, len(places))
        totals = np.array([self.totals[classes].sum() for classes in places])
        return Block(self.order_of(places), pictures, totals - pictures.sum(axis=1))

    def draw(self, names: list[str]) -> Figure | None:
        """Draw it, each row in percent of its pictures: of more than CELLS classes a row is a group's; then None.

        Few classes have their names on the axes and numbers in the cells, more the numbers of their groups.
        """
        by_group = len(names) > CELLS
        if by_group and len(self.groups) > CELLS:
            return None
        order = self.order_of(self.groups)
        table = self._table(self.groups if by_group else [[number] for number in order])
        side = len(table.pictures)
        times = max(1, CELLS // side)  # enlarged here, since browsers would blur it
        what = "groups" if by_group else "classes, similar ones side by side"
        figure, axes = new_axes(f"predicted {what}", "true ones, in the same order", 4.4)
        axes.grid(False)
        colours = ScalarMappable(PowerNorm(0.5, 0, 100), "cividis")  # so that what is rare can be seen
        pixels = colours.to_rgba(100 * table.shares, bytes=True).repeat(times, 0).repeat(times, 1)
        axes.imshow(pixels, interpolation="none", extent=(0.5, side + 0.5, side + 0.5, 0.5))
        bar = figure.colorbar(colours, ax=axes, ticks=[0, 1, 5, 20, 50, 100])
        bar.set_label("of the row's pictures, %", color=INK)
        bar.ax.tick_params(colors=INK)
        bar.outline.set_visible(False)
        if self.named:
            _name(axes, [drawable(names[number]) for number in order])
            _count(axes, table)
        elif not by_group:
            _frame(axes, self.groups)
        return figure


def _name(axes: Axes, names: list[str]) -> None:
    places = range(1, len(names) + 1)
    axes.set_xticks(places, names, rotation=90, fontsize="x-small")
    axes.set_yticks(places, names, fontsize="x-small")


def _count(axes: Axes, table: Block) -> None:
    size = min(9, 170 / len(table.pictures))
    for row, column in zip(*np.nonzero(table.pictures), strict=True):
        colour = "black" if table.shares[row, column] > 0.25 else "white"
        text = f"{table.pictures[row, column]:,}"
        axes.text(column + 1, row + 1, text, color=colour, fontsize=size, ha="center", va="center")


def _frame(axes: Axes, groups: list[list[int]]) -> None:
    """Put a frame around each group, and its number on both axes, where it has room."""
    ends = np.cumsum([*map(len, groups)])
    ticks = dict[float, str]()
    for number, (group, end) in enumerate(zip(groups, ends.tolist(), strict=True), 1):
        if len(group) > 1:
            corner = end - len(group) + 0.5
            frame = Rectangle((corner, corner), len(group), len(group), fill=False, ec="white", lw=0.6, alpha=0.8)
            axes.add_patch(frame)
        if len(group) >= ends[-1] / 40:
            ticks[end - len(group) / 2 + 0.5] = str(number)
    axes.set_xticks([*ticks], [*ticks.values()], fontsize="xx-small")
    axes.set_yticks([*ticks], [*ticks.values()], fontsize="xx-small")
    axes.set_xlabel("predicted class, by groups of similar ones", color=INK)
    axes.set_ylabel("true class, in the same order", color=INK)
