"""The table and the figure of a study: levels compared in several settings, seed by seed."""

from collections.abc import Iterable, Iterator, Sequence
from math import isinf
from pathlib import Path
from statistics import median
from typing import NamedTuple

from table import alike, provenance
from trials import Options, Row, changed

from plumage.report.statistics import Difference, difference_over_seeds, mean_over, theoretical_gap
from plumage.report.style import COLOURS, INK, legend, new_axes

HOW = """\
- ± and brackets: 95 % intervals over n seeds by Student's t, one by one, not corrected for how many there are
- A difference is seed by seed, to the first level
- Accuracy: of the last epoch, on test pictures; the balanced one is the same, since each class has as many
- Calibrated: each half of the test pictures by the temperature of the other. AURC: the area under the risk–coverage
  curve; the temperature is of all of them
- Seconds: of all epochs together, median over the seeds; others may have trained on the other cores"""


class Compared(NamedTuple):
    """What a setting gave: its rows by level and seed."""

    title: str
    levels: dict[str, dict[int, Row]]

    @property
    def rows(self) -> list[Row]:
        return [row for by_seed in self.levels.values() for row in by_seed.values()]

    def differences(self, name: str, scale: float = 100) -> dict[str, Difference]:
        """Return how far each level's mean lies from the first's."""
        (_, first), *others = ((level, values(rows, name, scale)) for level, rows in self.levels.items())
        gaps = {level: difference_over_seeds(own, first) for level, own in others}
        return {level: gap for level, gap in gaps.items() if gap}


def values(rows: dict[int, Row], name: str, scale: float = 100) -> dict[int, float]:
    return {seed: scale * row[name] for seed, row in rows.items()}


def spread(numbers: Iterable[float], digits: int = 2) -> str:
    """Return the mean, and half the width of its interval if there is one."""
    found = mean_over(list(numbers))
    return f"{found.value:.{digits}f}" + ("" if isinf(found.high) else f" ± {found.high - found.value:.{digits}f}")


def bracketed(gap: Difference | None, digits: int = 2) -> str:
    """Return a difference with its interval if there is one."""
    if gap is None:
        return ""
    ends = "" if isinf(gap.high) else f" ({gap.low:+.{digits}f} to {gap.high:+.{digits}f})"
    return f"{gap.value:+.{digits}f}{ends}"


def table(found: Sequence[Compared]) -> Iterator[str]:
    heads = ["", "level", "n", "accuracy, %", "difference, points", "NLL", "calibrated", "difference", "ECE, %"]
    heads += ["calibrated", "logit gap (in theory)", "AURC, %", "difference, points", "seconds"]
    yield f"\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}"
    for setting in found:
        accuracy, aurc = setting.differences("accuracy"), setting.differences("aurc")
        nll = setting.differences("calibrated_nll", 1)
        for level, rows in setting.levels.items():
            one = next(iter(rows.values()))
            theory = theoretical_gap(one["classes"], one["recipe"]["smoothing"])
            cells = [setting.title, level, str(len(rows)), spread(values(rows, "accuracy").values())]
            cells += [bracketed(accuracy.get(level))]
            cells += [spread(values(rows, name, 1).values(), 3) for name in ("nll", "calibrated_nll")]
            cells += [bracketed(nll.get(level), 3)]
            cells += [spread(values(rows, name).values(), 1) for name in ("ece", "calibrated_ece")]
            cells += [spread(values(rows, "logit_gap", 1).values()) + (f" ({theory:.2f})" if theory else " (∞)")]
            seconds = median(row["seconds"] for row in rows.values())
            cells += [spread(values(rows, "aurc").values()), bracketed(aurc.get(level)), f"{seconds:.0f}"]
            yield f"| {' | '.join(cells)} |"


def draw(found: Sequence[Compared], file: Path) -> None:
    """Draw each difference of accuracy with its interval: a row for each setting, a colour for each level.

    Where there are too many levels for that, it is a row for each level, and a colour for each setting.
    """
    gaps = {setting.title: setting.differences("accuracy") for setting in found if len(setting.levels) > 1}
    names = list(dict.fromkeys(level for each in gaps.values() for level in each))
    if len(names) > len(COLOURS):
        by_level = {level: {title: each[level] for title, each in gaps.items() if level in each} for level in names}
        names, gaps = list(gaps), by_level
    figure, axes = new_axes("difference of accuracy, points", "", 0.9 + 0.14 * sum(map(len, gaps.values())))
    figure.set_figwidth(max(figure.get_figwidth(), 2.2 + 0.08 * max(map(len, gaps), default=0)))
    for number, name in enumerate(names):
        rows = [(place, each, list(each).index(name)) for place, each in enumerate(gaps.values()) if name in each]
        places = [place + 0.8 * ((own + 0.5) / len(each) - 0.5) for place, each, own in rows]
        shown = [each[name] for _, each, _ in rows]
        ends = [[gap.value - gap.low, gap.high - gap.value] if not isinf(gap.high) else [0, 0] for gap in shown]
        middles, lengths = [gap.value for gap in shown], list(map(list, zip(*ends, strict=True)))
        colour = COLOURS[number % len(COLOURS)]
        axes.errorbar(middles, places, xerr=lengths, fmt="o", color=colour, capsize=2, markersize=4, label=name)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(gaps)), list(gaps))
    axes.invert_yaxis()
    axes.grid(axis="x", color=INK, alpha=0.15, linewidth=0.6)
    legend(axes)
    figure.savefig(file, dpi=150)


def shared(rows: Sequence[Row]) -> Options:
    """Return the options of the recipe that all have alike."""
    first = rows[0]["recipe"]
    return {name: value for name, value in first.items() if all(row["recipe"][name] == value for row in rows)}


def text(title: str, found: Sequence[Compared], figure: str) -> Iterator[str]:
    rows = [row for setting in found for row in setting.rows]
    yield f"# {title}\n"
    for environment in alike(row["environment"] for row in rows):
        yield from provenance(environment)
    yield from (f"- Weights to start from: {weights}" for weights in sorted({row["weights"] for row in rows}))
    of_all = shared(rows)
    yield f"- Options of all that are not the defaults: `{changed(of_all)}`"
    yield HOW
    for setting in found:
        one = setting.rows[0]
        own = changed({name: value for name, value in shared(setting.rows).items() if name not in of_all})
        train = one["classes"] * one["pictures"]["train"]
        pictures = f"{one['classes']} classes, {train} training and {one['n']} test pictures"
        yield f"- {setting.title}: {pictures}" + (f"; `{own}`" if own else "")
    yield from table(found)
    yield f"\n![Differences of accuracy with their intervals]({figure})"
