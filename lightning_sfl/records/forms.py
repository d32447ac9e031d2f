"""A table of text cells, and the same table as plain text, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

PM = "\u00b1"
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    PM: r"$\pm$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


@dataclass(frozen=True)
class Table:
    """Cells as text, the first column left-aligned; paper: columns that may go into a paper."""

    title: str
    header: list[str]
    rows: list[list[str]]
    paper: list[bool]
    note: str = ""


def as_text(table: Table) -> str:
    """Columns side by side; headers are broken so that none is much wider than what stands below it."""
    heads = [_broken(head, max([len(row[i]) for row in table.rows] + [8])) for i, head in enumerate(table.header)]
    height = max(map(len, heads))
    lines = [[[""] * (height - len(head)) + head for head in heads][i] for i in range(len(heads))]
    grid = [*zip(*lines, strict=True), *map(tuple, table.rows)]
    widths = [max(len(line[i]) for line in grid) for i in range(len(heads))]
    shown = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in grid
    ]
    return "\n".join(line.rstrip() for line in shown)


def _broken(head: str, width: int) -> list[str]:
    lines = [""]
    for word in head.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def as_markdown(table: Table) -> str:
    """A pipe table."""

    def line(cells: Sequence[str]) -> str:
        return (
            "| " + " | ".join(re.sub(r"([\\|*_`<>\[\]#])", r"\\\1", cell.replace("\n", " ")) for cell in cells) + " |"
        )

    marks = ["---", *["---:"] * (len(table.header) - 1)]
    return "\n".join([line(table.header), f"|{'|'.join(marks)}|", *map(line, table.rows)])


def as_latex(table: Table) -> str:
    """A tabular for booktabs, without the columns that are not for papers."""

    def line(cells: Sequence[str]) -> str:
        kept = [cell for cell, paper in zip(cells, table.paper, strict=True) if paper]
        return " & ".join("".join(LATEX.get(sign, sign) for sign in cell.replace("\n", " ")) for cell in kept) + r" \\"

    begin = rf"\begin{{tabular}}{{l{'r' * (sum(table.paper) - 1)}}}"
    body = [line(row) for row in table.rows]
    lines = [begin, r"\toprule", line(table.header), r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def as_csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Comma-separated, quoted where needed, None as an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
    return text.getvalue()
