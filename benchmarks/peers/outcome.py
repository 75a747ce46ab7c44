"""From what peers gave to the table, and to who is ahead within which time."""

import ast
import io
import tokenize
from collections.abc import Iterator, Sequence
from math import isinf
from typing import Any, NamedTuple

from table import alike, provenance

from plumage.report.statistics import Difference, difference_over_seeds, mean_over

Row = dict[str, Any]
MARK = "# benchmark"
LAYOUT = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
HOW = """\
- ± and brackets: 95 % intervals over n seeds by Student's t; a lead is seed by seed
- Accuracy: of the classes that each hands in for the validation pictures, predicted by the network of the last epoch;
  ultralytics and plain choose the epoch that is best on these very pictures, by their own recipes
- Seconds: from the command to the evaluated model, plumage's with its report
- Memory: the largest sum of PSS over all processes, looked at twice a second
- Lines: of the user's script with code, without blank ones, comments and docstrings, and without what only the
  benchmark needs, which ends with `# benchmark`; a command is one. timm and torchvision keep a script in their
  repositories, which their packages lack: who clones them writes a command too"""


class Cell(NamedTuple):
    """The rows of a peer after so many epochs, by seed."""

    peer: str
    epochs: int
    rows: dict[int, Row]

    def mean(self, name: str) -> Difference:
        return mean_over([row[name] for row in self.rows.values()])

    @property
    def accuracy(self) -> float:
        return self.mean("accuracy").value

    @property
    def seconds(self) -> float:
        return self.mean("seconds").value

    def lead(self, other: "Cell") -> str:
        """Say how many points this one is ahead, by the seeds of both."""
        mine, theirs = ({seed: 100 * row["accuracy"] for seed, row in each.rows.items()} for each in (self, other))
        gap = difference_over_seeds(mine, theirs)
        if gap is None:
            return ""
        return f"{gap.value:+.2f}" + ("" if isinf(gap.high) else f" ({gap.low:+.2f} to {gap.high:+.2f})")

    def __str__(self) -> str:
        return f"{self.peer}, {self.epochs} epochs: {self.accuracy:.2%}"


def code_lines(source: str) -> int:
    """Count the lines that hold code, but for docstrings and the statements that end with MARK."""
    left_out, code, marked = set[int](), set[int](), set[int]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            marked |= {token.start[0]} if token.string.startswith(MARK) else set()
        elif token.type not in LAYOUT:
            code |= {*range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and not hasattr(node, "body"):
            lines = {*range(node.lineno, (node.end_lineno or node.lineno) + 1)}
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            left_out |= lines if docstring or lines & marked else set()
    return len(code - left_out - marked)


def cells_of(rows: Sequence[Row]) -> list[Cell]:
    """Return them in the order of the first row of each peer, and of epochs."""
    cells: dict[tuple[str, int], Cell] = {}
    for row in rows:
        cell = cells.setdefault((row["peer"], row["epochs"]), Cell(row["peer"], row["epochs"], {}))
        cell.rows[row["seed"]] = row
    peers = list(dict.fromkeys(row["peer"] for row in rows))
    return sorted(cells.values(), key=lambda cell: (peers.index(cell.peer), cell.epochs))


def spread(found: Difference, scale: float = 1, digits: int = 0) -> str:
    half = "" if isinf(found.high) else f" ± {(found.high - found.value) * scale:.{digits}f}"
    return f"{found.value * scale:.{digits}f}{half}"


def table(cells: Sequence[Cell]) -> Iterator[str]:
    heads = ("", "epochs", "n", "accuracy, %", "seconds", "memory, GiB", "lines of code")
    yield f"\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}"
    for cell in cells:
        accuracy, seconds = spread(cell.mean("accuracy"), 100, 2), spread(cell.mean("seconds"))
        rest = f"{spread(cell.mean('memory'), 2**-30, 1)} | {max(row['lines'] for row in cell.rows.values())}"
        yield f"| {cell.peer} | {cell.epochs} | {len(cell.rows)} | {accuracy} | {seconds} | {rest} |"


def best_of(cells: Sequence[Cell], own: bool) -> Cell | None:
    """Return the most accurate one, of equals the fastest: of Plumage's ``own``, or of all others."""
    side = [cell for cell in cells if (cell.peer == "plumage") == own]
    return max(side, key=lambda cell: (cell.accuracy, -cell.seconds), default=None)


def duels(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield the best of either side within each budget of seconds at which one of them has something better."""
    yield "\n| in at most, s | Plumage | the best of the others | Plumage's lead, points |\n| --- | --- | --- | --- |"
    before: tuple[Cell | None, Cell | None] = (None, None)
    for limit in sorted(cell.seconds for cell in cells):
        inside = [cell for cell in cells if cell.seconds <= limit]
        own, other = sides = best_of(inside, own=True), best_of(inside, own=False)
        if sides != before:
            yield f"| {limit:.0f} | {own or '–'} | {other or '–'} | {own.lead(other) if own and other else ''} |"
        before = sides


def verdict(cells: Sequence[Cell]) -> str:
    """Say in which part of the best peer's time Plumage is as accurate, if it is."""
    best = best_of(cells, own=False)
    if best is None:
        return "No peer was measured."
    told = f"The best of the others ({best}, {best.seconds:.0f} s)"
    good = [cell.seconds for cell in cells if cell.peer == "plumage" and cell.accuracy >= best.accuracy]
    if good:
        return f"{told} is reached by Plumage in {min(good) / best.seconds:.2f} of its time."
    return f"{told} is not reached by Plumage."


def page(rows: Sequence[Row]) -> Iterator[str]:
    one, cells = rows[0], cells_of(rows)
    train, val = one["pictures"]
    start = "from scratch" if one["start"] == "scratch" else "from weights"
    yield f"# Plumage and its peers on {one['data']}, {start}\n"
    for environment in alike(row["environment"] for row in rows):
        yield from provenance(environment)
    yield f"- Pictures: {train} train and {val} validate, the same for all, at {one['side']} px. Start: {one['start']}"
    yield HOW
    yield from table(cells)
    yield from duels(cells)
    yield f"\n{verdict(cells)}"
