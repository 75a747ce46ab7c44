"""Tables as CSV, for people and their spreadsheets; read back as data that may be anything."""

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

from plumage.errors import UserError
from plumage.files import check_regular, read_arrays, text_output

# The columns of a run's split.csv, where pictures are in groups one more, and of its skipped.csv and suspects.csv.
SPLIT, GROUP, SKIPPED = ("path", "label", "split"), ("group",), ("path", "reason")
SUSPECTS = ("path", "label", "likely", "probability", "why")
SUSPECTS_ARCHIVE = "suspects.npz"  # beside suspects.csv: small pictures, and that table as it was written
FOLDS = "folds.json"  # beside what several runs' folds make together
SIDES = ("train", "val", "test")  # what a split may say
LONGEST = 2**20  # characters of a line that are read before csv, which refuses long cells, gets to see them
# What a spreadsheet computes instead of showing it, full-width signs too; and the numbers among that, which do no harm.
FORMULA = re.compile(r"'*(?:[\t\r\n]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")
NUMBER = re.compile(r"[+-]?[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?")


def write_table(file: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write CSV with a header. A path that is no text goes through as the bytes that it is."""
    with text_output(file) as out:
        write = row_writer(out)
        for row in chain([columns], rows):
            write(row)


def row_writer(out: TextIO, line_end: str = "\r\n", exact: bool = False) -> Callable[[Iterable[Any]], object]:
    """Return a function that writes a row of CSV.

    Text that a spreadsheet would compute, as a class called =1+1, gets an apostrophe, which ``plain`` takes away.
    exact: it gets none.
    """
    # Python quotes a line end inside a cell only where it is one of lineterminator's.
    lines = SimpleNamespace(write=lambda line: out.write(line.removesuffix("\r\n") + line_end))
    write = csv.writer(lines, lineterminator="\r\n").writerow
    return lambda row: write([_inert(cell) if isinstance(cell, str) and not exact else cell for cell in row])


def _inert(cell: str) -> str:
    # Also where it begins with an apostrophe of its own, so that just one is to be taken away.
    return f"'{cell}" if FORMULA.match(cell) and not NUMBER.fullmatch(cell) else cell


def plain(cell: str) -> str:
    """Return the text that ``row_writer`` wrote as ``cell``."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def lines_of(table: TextIO) -> Iterator[str]:
    """Yield the lines of a table of any origin, longer ones in pieces: without a line end a file would be one text."""
    return iter(partial(table.readline, LONGEST), "")


@contextmanager
def lines_of_any(file: Path) -> Iterator[Iterator[str]]:
    """Open a table of any origin, and give its lines. Raises what opening and reading a damaged file raises."""
    check_regular(file)
    with file.open("rb") as start:
        encoding = encoding_of(start.read(2))
    with file.open(newline="", encoding=encoding, errors="surrogateescape") as table:
        yield lines_of(table)


def encoding_of(start: bytes) -> str:
    """Return the encoding of a list or table of any origin, by its first bytes: UTF-16 if they say so, else UTF-8."""
    wide = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as PowerShell writes it
    return "utf-16" if wide else "utf-8-sig"


def text_of(content: bytes) -> str:
    """Decode a list or table of any origin; UTF-8 whatever it holds. Raises ValueError where UTF-16 is none."""
    encoding = encoding_of(content)
    return content.decode(encoding, "strict" if encoding == "utf-16" else "surrogateescape")


def read_table(file: Path, columns: Sequence[str], more: Sequence[str] = ()) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of each row of a CSV with this header, as ``write_table`` got them.

    more: columns that may follow. Raises UserError, naming the wrong line.
    """
    try:
        check_regular(file)
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as handle:
            lines = csv.reader(lines_of(handle))
            header = next(lines, None)
            if header not in ([*columns], [*columns, *more]):
                raise UserError(f"{file}, line 1: needs the columns {', '.join(columns)}")
            for row in lines:
                if len(row) != len(header):
                    raise UserError(f"{file}, line {lines.line_num}: has {len(row)} columns, not {len(header)}")
                yield lines.line_num, [plain(cell) for cell in row]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def written_labels(archive: Path) -> dict[str, str]:
    """Return path → label of a suspects.csv as its run wrote it, which SUSPECTS_ARCHIVE keeps; {} where it does not.

    Raises UserError where the archive is damaged.
    """
    if not archive.exists():
        return {}
    try:
        arrays = read_arrays(archive, {"written": archive.stat().st_size})
        if "written" not in arrays:  # as in older ones
            return {}
        text = arrays["written"].tobytes().decode(errors="surrogateescape")
        header, *rows = csv.reader(io.StringIO(text, newline=""))
        if header != [*SUSPECTS]:
            raise ValueError("it holds no suspects")
        return {plain(path): plain(label) for path, label, *_ in rows}
    except Exception as error:  # a damaged archive raises nearly anything
        way_out = "move it away, so that split.csv alone tells what was mended"
        raise UserError(f"{archive} is damaged ({' '.join(str(error).split())}): {way_out}") from error
