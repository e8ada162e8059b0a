import csv
import io
import random
import re
from pathlib import Path

import pytest

from vlm_edit.ground.errors import VlmEditError
from vlm_edit.report import Table

MEANT = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^",
         r"\textless{}": "<", r"\textgreater{}": ">", r"\textbar{}": "|",
         **{f"\\{c}": c for c in "&%$#_{}"}}  # fmt: skip
TOKEN = re.compile(r"\\text[a-z]+\{\}|\\.|.")


def test_columns_line_up_whatever_their_width() -> None:
    table = Table("Title", ("a", "long heading"), (("wide cell here", "1"), ("x", "2")), "A note.")
    lines = str(table).splitlines()
    assert lines[0] == "Title"
    assert lines[1].index("long heading") == lines[3].index("1") == lines[4].index("2")
    assert lines[-1] == "A note."


def test_no_line_ends_in_spaces() -> None:
    table = Table("Title", ("a", "b"), (("x", ""), ("y", "wide")))
    assert all(line == line.rstrip() for line in str(table).splitlines())


def read_as_tex_does(row: str) -> list[str]:
    """The cells of a row of a tabular, as printed; nothing that TeX takes otherwise is let by."""
    assert row.endswith(r" \\"), row
    cells = [""]
    for token in TOKEN.findall(row.removesuffix(r" \\").removeprefix("{}")):
        if token == "&":
            cells.append("")
        else:
            assert token in MEANT or token not in r"%$#_{}~^\<>|", (token, row)
            cells[-1] += MEANT.get(token, token)
    return [cell.strip(" ") for cell in cells]


def test_csv_is_read_back_cell_by_cell(tmp_path: Path) -> None:
    rows = [('a "b", c', ".10 [.05, .15]"), ("two\nlines", "é"), ("", "=1+1")]
    table = Table("Title", ("what, who", "share"), rows, "A note.")
    text = table.to_csv(tmp_path / "table.csv")
    assert list(csv.reader(io.StringIO(text))) == [["what, who", "share"], *map(list, rows)]
    assert (tmp_path / "table.csv").read_text("utf-8") == text == table.to_csv()


def test_latex_prints_what_the_cells_say_whatever_characters_they_hold() -> None:
    drawn = random.Random(0)
    odd = "&%$#_{}~^\\<>|[]*ab1 "
    cells = ["".join(drawn.choices(odd, k=8)).strip() or "x" for _ in range(60)]
    rows = [tuple(cells[i : i + 3]) for i in range(0, 60, 3)]
    text = Table("Title", ("a_b", "c&d", r"\e"), rows).to_latex()
    between = text.split("\\toprule\n")[1].split("\n\\bottomrule")[0]
    head, body = between.split("\n\\midrule\n")
    assert read_as_tex_does(head) == ["a_b", "c&d", r"\e"]
    assert [tuple(read_as_tex_does(row)) for row in body.split("\n")] == rows


@pytest.mark.parametrize("first", ["[low, high]", "*"])
def test_a_row_of_latex_is_no_argument_of_the_row_before(first: str) -> None:
    lines = Table("Title", ("a", "b"), ((first, "1"),)).to_latex().splitlines()
    assert lines[lines.index(r"\midrule") + 1] == rf"{{}}{first} & 1 \\"


def test_latex_has_the_title_above_the_note_below_and_numbers_on_the_right() -> None:
    rows = (("x", "0.50 [.4, .6]", "-.1"), ("y", "", "3 of 4"))
    text = Table("50% & more", ("a", "b", "c"), rows, "First_line.\nSecond.").to_latex()
    assert text.index(r"\caption{50\% \& more}") < text.index(r"\begin{tabular}{lrr}")
    assert text.index(r"\end{tabular}") < text.index(r"{\footnotesize First\_line. Second.\par}")
    assert text.count(r"\begin") == text.count(r"\end{") == 2


def test_a_table_without_rows_is_latex_too() -> None:
    text = Table("Nothing", ("a", "b"), ()).to_latex()
    assert r"\begin{tabular}{ll}" in text and "a & b \\\\\n\\midrule\n\\bottomrule" in text


def test_a_table_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    for write in (Table("T", ("a",), ()).to_csv, Table("T", ("a",), ()).to_latex):
        with pytest.raises(VlmEditError, match="missing"):
            write(tmp_path / "missing" / "table.txt")
    assert not list(tmp_path.iterdir())
