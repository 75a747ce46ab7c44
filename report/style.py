"""How figures look. Text and lines that belong to no run are drawn in INK, which a page may replace."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from plumage.errors import visible

INK = "#404040"
# Okabe and Ito's colours, which colour-blind readers can tell apart, without those that are too pale for lines.
BLUE, ORANGE, *_ = COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("-", "--", ":", "-.")
NAMED = 30  # classes whose names stand on an axis
WIDTH = 5.2  # inches of a figure
LETTERS = 74  # of a legend's, that have room beside each other


def new_axes(x: str, y: str, height: float = 3.4) -> tuple[Figure, Axes]:
    figure = Figure((WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def legend(axes: Axes) -> None:
    """Explain the lines above the axes, where none of them runs, in as many columns as their names leave room for."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    columns = len(labels)
    if sum(len(label) + 6 for label in labels) > LETTERS:
        columns = max(1, min(len(labels), LETTERS // (max(map(len, labels)) + 6)))
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.set_figheight(figure.get_figheight() + 0.17 * (-(-len(labels) // columns) - 1))
    style = {"frameon": False, "labelcolor": INK, "fontsize": "small", "columnspacing": 1.2, "handlelength": 1.6}
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, **style)


def line_styles() -> list[tuple[str, str]]:
    """Return colours and dashes, each pair once: who needs more begins again."""
    return [(colour, dashes) for dashes in DASHES for colour in COLOURS]


def drawable(name: str, most: int = 24) -> str:
    """Return a name as a figure can show it: cut to ``most``, in characters that its font has, and no formula."""
    font = get_font(findfont(FontProperties()))
    shown = "".join(one if font.get_char_index(ord(one)) else "?" for one in visible(name))
    return short(shown, most).replace("$", r"\$")


def short(name: str, most: int = 24) -> str:
    """Return a name of at most ``most`` characters, with its end, in which names often differ."""
    end = most // 3
    return name if len(name) <= most else f"{name[: most - end - 1].rstrip()}…{name[len(name) - end :].lstrip()}"
