import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumage.errors import UserError
from plumage.tables import plain, read_table, row_writer, write_table

FORMULAS = [
    "=1+1",
    "+x",
    "-",
    "-a/1.jpg",
    "--help",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "\nx",
    " =1+1",
    "-1-1",
    "+1e",
    "＝1+1",
    "'=1",
]
HARMLESS = ["a=b", "", "'", "'quoted'", "-1", "+3", "-.5", "-1.5e-07", "1e-05", "1", "ünï—ß", " space "]


def test_tables_are_read_back_with_any_name(tmp_path):
    rows = [['a, "b"', "line\nbreak"], ["n\udcff", "günstig 鳥"]]
    write_table(tmp_path / "t.csv", ("one", "two"), rows)
    assert [row for _, row in read_table(tmp_path / "t.csv", ("one", "two"))] == rows
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "t.csv").read_bytes())  # as a spreadsheet saves it
    assert [row for _, row in read_table(tmp_path / "t.csv", ("one", "two"))] == rows


def test_a_spreadsheet_computes_no_name(tmp_path):
    write_table(tmp_path / "t.csv", ("one", "two"), zip(FORMULAS, FORMULAS, strict=True))
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        written = list(csv.reader(file))[1:]
    assert written == [[f"'{cell}"] * 2 for cell in FORMULAS]
    out = io.StringIO()
    row_writer(out, "\n")([*HARMLESS, -1.5, None])
    assert next(csv.reader([out.getvalue()])) == [*HARMLESS, "-1.5", ""]


@given(st.lists(st.text("'=+-@ \t\r\n1.e,\"\x1bä\u202e", max_size=6), min_size=2, max_size=2))
def test_any_text_is_read_back_exactly(tmp_path_factory, row):
    file = tmp_path_factory.mktemp("any") / "t.csv"
    write_table(file, ("one", "two"), [row])
    assert [cells for _, cells in read_table(file, ("one", "two"))] == [row]


def test_what_was_written_before_formulas_were_guarded_reads_as_before(tmp_path):
    (tmp_path / "t.csv").write_text("one,two\n=1+1,-a/1.jpg\n-1,'quoted'\n", encoding="utf-8")
    rows = [row for _, row in read_table(tmp_path / "t.csv", ("one", "two"))]
    assert rows == [["=1+1", "-a/1.jpg"], ["-1", "'quoted'"]]
    assert [plain(cell) for cell in HARMLESS] == HARMLESS


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "line 1: needs the columns one, two"),
        ("two,one\n", "line 1: needs the columns one, two"),
        ("one,two\n1,2\n3\n", "line 3: has 1 columns, not 2"),
        ('one,two\n"' + "x" * 200_000 + '",2\n', "cannot be read: field larger"),
        (None, "cannot be read: "),
    ],
)
def test_what_is_no_such_table_is_named_with_the_line(tmp_path, content, says):
    if content is not None:
        (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UserError, match=rf"t\.csv,? {says}"):
        list(read_table(tmp_path / "t.csv", ("one", "two")))


@given(st.lists(st.text("'=+-@ \t\r\n1,\"", max_size=6), min_size=2, max_size=2), st.booleans())
def test_a_row_stays_a_row_whatever_ends_its_line(row, exact):
    out = io.StringIO(newline="")
    row_writer(out, "\n", exact)(row)
    [read] = csv.reader(io.StringIO(out.getvalue(), newline=""))
    assert (read if exact else [plain(cell) for cell in read]) == row
