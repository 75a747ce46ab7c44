"""From what peers gave to the table, and to who is ahead within which time."""

import ast
import io
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import mean
from typing import NamedTuple

from compared import bracketed, spread
from table import alike, provenance
from trials import Row

from plumage.report.statistics import difference_over_seeds

MARK = "# benchmark"
LAYOUT = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
HOW = """\
- ± and brackets: 95 % intervals over n seeds by Student's t; a lead is seed by seed
- Accuracy: of the classes that each hands in for the validation pictures, predicted by the network of the last epoch;
  ultralytics and plain choose the epoch that is best on these very pictures, by their own recipes
- Precision: each one's default: {precision} for plumage, float32 for the others (ultralytics on a GPU: float16 too)
- Epochs: from weights, fastai trains one more, of the head alone. Pixels: ultralytics computes at {ultralytics}, a
  multiple of 32
- Seconds: from the command to the evaluated model, plumage's with its report
- Memory: the largest sum over all processes of these seconds, looked at twice a second, of PSS (where the system does
  not tell it, of USS or RSS). It is the host's: what lies on a GPU is not counted
- Lines: of the user's script with code, without blank ones, comments and docstrings, and without what only the
  benchmark needs, which ends with `# benchmark`; a command is one. timm and torchvision keep a script in their
  repositories, which their packages lack: who clones them writes a command too"""


class Cell(NamedTuple):
    """The rows of a peer after so many epochs, by seed."""

    peer: str
    epochs: int
    rows: dict[int, Row]

    def each(self, name: str, scale: float = 1) -> list[float]:
        return [scale * row[name] for row in self.rows.values()]

    @property
    def name(self) -> str:
        return f"{self.peer}, {self.epochs} epoch{'s' * (self.epochs != 1)}"

    @property
    def accuracy(self) -> float:
        return mean(self.each("accuracy"))

    @property
    def seconds(self) -> float:
        return mean(self.each("seconds"))

    def lead(self, other: "Cell") -> str:
        """Say how many points this one is ahead, by the seeds of both."""
        mine, theirs = ({seed: 100 * row["accuracy"] for seed, row in each.rows.items()} for each in (self, other))
        return bracketed(difference_over_seeds(mine, theirs))

    def __str__(self) -> str:
        return f"{self.name}: {self.accuracy:.2%}"


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


def comparable(cells: Sequence[Cell]) -> list[Cell]:
    """Return those with the seeds that most have, over these alone: means over other seeds are not set beside them."""
    counts = Counter(frozenset(cell.rows) for cell in cells)
    seeds = max(counts, key=lambda each: (counts[each], len(each)), default=frozenset[int]())
    over = [cell for cell in cells if seeds <= cell.rows.keys()]
    return [cell._replace(rows={seed: cell.rows[seed] for seed in sorted(seeds)}) for cell in over]


def table(cells: Sequence[Cell]) -> Iterator[str]:
    heads = ("", "epochs", "n", "accuracy, %", "seconds", "memory, GiB", "lines of code")
    yield f"\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}"
    for cell in cells:
        accuracy, seconds = spread(cell.each("accuracy", 100)), spread(cell.each("seconds"), 0)
        rest = f"{spread(cell.each('memory', 2**-30), 1)} | {max(row['lines'] for row in cell.rows.values())}"
        yield f"| {cell.peer} | {cell.epochs} | {len(cell.rows)} | {accuracy} | {seconds} | {rest} |"


def best_of(cells: Sequence[Cell], own: bool) -> Cell | None:
    """Return the most accurate one, of equals the fastest: of Plumage's ``own``, or of all others."""
    side = [cell for cell in cells if (cell.peer == "plumage") == own]
    return max(side, key=lambda cell: (cell.accuracy, -cell.seconds), default=None)


def duels(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield the best of either side within each budget of seconds at which one of them has something better."""
    yield "\n| in at most, s | Plumage | the best of the others | Plumage's lead, points |\n| --- | --- | --- | --- |"
    before: tuple[Cell | None, Cell | None] = (None, None)
    cells = comparable(cells)
    for limit in sorted(cell.seconds for cell in cells):
        inside = [cell for cell in cells if cell.seconds <= limit]
        own, other = sides = best_of(inside, own=True), best_of(inside, own=False)
        if sides != before:
            yield f"| {limit:.0f} | {own or '–'} | {other or '–'} | {own.lead(other) if own and other else ''} |"
        before = sides


def verdict(cells: Sequence[Cell]) -> str:
    """Say in which part of the best peer's time Plumage is as accurate, if it is, and how far ahead or behind it is."""
    cells = comparable(cells)
    best, own = best_of(cells, own=False), best_of(cells, own=True)
    if best is None:
        return "No peer was measured."
    if own is None:
        return "Plumage was not measured."
    good = [cell for cell in cells if cell.peer == "plumage" and cell.accuracy >= best.accuracy]
    first = min(good, key=lambda cell: cell.seconds, default=own)
    reached = f"is reached by Plumage in {first.seconds / best.seconds:.2f} of its time"
    told = f"The best of the others ({best}, {best.seconds:.0f} s) {reached if good else 'is not reached by Plumage'}"
    return f"{told} ({first}: {first.lead(best)} points)."


def page(rows: Sequence[Row]) -> Iterator[str]:
    one, cells = rows[0], cells_of(rows)
    train, val = one["pictures"]
    start = "from scratch" if one["start"] == "scratch" else "from weights"
    yield f"# Plumage and its peers on {one['data']}, {start}\n"
    for environment in alike(row["environment"] for row in rows):
        yield from provenance(environment | {"precision": "each in its own precision"})
    yield f"- Pictures: {train} train and {val} validate, the same for all, at {one['side']} px. Start: {one['start']}"
    own = " or ".join(dict.fromkeys(row["environment"]["precision"] for row in rows))
    yield HOW.format(precision=own, ultralytics=-(-one["side"] // 32) * 32)
    yield from table(cells)
    same = comparable(cells)
    left_out = [cell.name for cell in cells if cell.name not in {each.name for each in same}]
    rest = f" Without {'; '.join(left_out)}: not of these seeds." if left_out else ""
    yield f"\nCompared over the seeds {', '.join(map(str, same[0].rows))}.{rest}"
    yield from duels(cells)
    yield f"\n{verdict(cells)}"
