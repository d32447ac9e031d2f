"""One page with everything in it, pictures included: it opens from the disk, and asks for nothing from anywhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from lightning_sfl.records.forms import Table
from lightning_sfl.records.pictures import Picture

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem 1.2rem 3rem; background: #fff; color: #1b1b1b;
  font: 16px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .6rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
.wide { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; text-align: right; border-bottom: 1px solid #e6e6e6; white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; min-width: 3.5rem; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
td.aside, th.aside { color: #767676; font-style: italic; }
.note, figcaption { color: #555; font-size: .85rem; }
ul { padding-left: 1.2rem; } li { margin: .25rem 0; overflow-wrap: anywhere; }
.differs { border-left: 4px solid #d55e00; background: #fdf3ec; padding: .4rem .8rem; }
.alike { border-left: 4px solid #009e73; background: #eef8f4; padding: .4rem .8rem; }
.pictures { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
figure { margin: 0; } figure svg { width: 100%; height: auto; display: block; }
figure h3 { font-size: 1rem; margin: .2rem 0; }
@media (max-width: 40rem) {
  th, td { padding: .3rem .45rem; }
  th:first-child, td:first-child { padding-left: 0; min-width: 7.5rem; white-space: normal; overflow-wrap: anywhere; }
}
"""


def page(tables: Sequence[Table], alike: str, differences: Sequence[str], drawn: Sequence[Picture]) -> str:
    """The page; `tables` starts with the results, which stand at the top, and ends with traffic and runs."""
    first, *measured, traffic, runs = tables
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Comparison of {len(first.rows)} configurations</title><style>{STYLE}</style></head><body>",
        f"<h1>Comparison of {len(first.rows)} configurations</h1>",
        _table(first),
        _sentences(alike, differences),
        *map(_table, measured),
        "<h2>Curves</h2>",
        f'<div class="pictures">{"".join(map(_figure, drawn))}</div>' if drawn else "<p>Pictures need matplotlib.</p>",
        _table(traffic),
        _table(runs),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _table(table: Table) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        marked = zip(cells, table.paper, strict=True)
        return "".join(f"<{tag}{'' if paper else ' class=aside'}>{escape(cell)}</{tag}>" for cell, paper in marked)

    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in table.rows)
    head = f"<thead><tr>{line(table.header, 'th')}</tr></thead>"
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f'<h2>{escape(table.title)}</h2><div class="wide"><table>{head}<tbody>{body}</tbody></table></div>{note}'


def _sentences(alike: str, differences: Sequence[str]) -> str:
    same = f'<p class="alike">{escape(alike)}</p>' if alike else ""
    if not differences:
        return f"<h2>What differs</h2>{same}<p>Nothing that was recorded.</p>"
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in differences)
    return f'<h2>What differs</h2>{same}<div class="differs"><ul>{items}</ul></div>'


def _figure(picture: Picture) -> str:
    """Names of namespaces are no use inside a page."""
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", picture.svg)
    return (
        f"<figure><h3>{escape(picture.title)}</h3>{svg}"
        f"<figcaption>{escape(picture.caption.strip())}</figcaption></figure>"
    )
