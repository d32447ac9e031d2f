"""Tables in every form: what a cell holds comes out as it went in."""

from __future__ import annotations

import csv
import io
import re

from lightning_sfl.records.curves import Spread
from lightning_sfl.records.forms import PM, Table, as_csv, as_latex, as_markdown, as_text
from lightning_sfl.records.tables import count, percent, plain, reached

NASTY = r"a|b & c_d 50% #1 {x} $y^2 ~ \n <i>*e*</i> [l] `k`"
TABLE = Table("T", ["method", "best*", "steps"], [[NASTY, "9", "1,000"], ["plain", "10", ""]], [True, False, True])


def test_markdown_keeps_cells_apart() -> None:
    lines = as_markdown(TABLE).splitlines()
    assert len(lines) == 4
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert [len(line) for line in cells] == [3] * 4
    assert re.sub(r"\\(.)", r"\1", cells[2][0].strip()) == NASTY
    assert not re.search(r"(?<!\\)[*_<`\[]", cells[2][0])


def test_latex_escapes_and_leaves_out_what_is_not_for_papers() -> None:
    text = as_latex(TABLE)
    line = next(line for line in text.splitlines() if "50" in line)
    assert line.endswith(r" & 1,000 \\")
    assert r"c\_d 50\% \#1 \{x\} \$y\textasciicircum{}2 \textasciitilde{} \textbackslash{}n" in line
    assert "best" not in text
    assert r"\begin{tabular}{lr}" in text
    bare = re.sub(r"\\[&%$#_{}]", "", re.sub(r"\\text\w+\{\}", "", line))
    assert bare.count("&") == 1
    assert not set("%$#_^~{}") & set(bare)


def test_latex_writes_the_sign_of_a_spread() -> None:
    assert r"1 $\pm$ 2 \\" in as_latex(Table("T", ["m", "x"], [["a", f"1 {PM} 2"]], [True, True]))


def test_csv_comes_back() -> None:
    rows = [[NASTY, 1 / 3, None], ['quote " and, comma', 2, "line\nbreak"]]
    back = list(csv.reader(io.StringIO(as_csv(["a", "b", "c"], rows))))
    assert back == [["a", "b", "c"], [NASTY, repr(1 / 3), ""], ['quote " and, comma', "2", "line\nbreak"]]


def test_text_is_aligned() -> None:
    table = Table("T", ["method", "a long header of a column"], [["x", "1"], ["longer", "22"]], [True, True])
    lines = as_text(table).splitlines()
    assert lines[-2:] == [f"{'x':<6}  {'1':>6}", f"{'longer':<6}  {'22':>6}"]
    assert max(map(len, lines)) < 20


def test_cells() -> None:
    nothing = Spread(None, None, 0, 3)
    assert [form(nothing) for form in (percent, reached, count, plain)] == [""] * 4
    assert percent(Spread(0.9321, 0.0044, 3, 3)) == f"93.2 {PM} 0.4"
    assert percent(Spread(0.9321, None, 1, 1)) == "93.2"
    assert reached(Spread(None, None, 1, 3)) == "(1 of 3 seeds)"
    assert reached(Spread(5.978, 0.571, 3, 3)) == f"5.98 {PM} 0.57"
    assert reached(Spread(48.13, 5.33, 3, 3)) == f"48.1 {PM} 5.3"
    assert reached(Spread(2157.2, 211.4, 3, 3)) == f"2,157 {PM} 211"
    assert count(Spread(4063.0, None, 1, 1)) == "4,063"
    assert (plain(Spread(0.0, None, 1, 1)), plain(Spread(77.46, None, 1, 1))) == ("0", "77.5")
