"""The page's table of what is tested names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_that_the_page_names_exists() -> None:
    _, table = (ROOT / "docs/holograd.md").read_text(encoding="utf-8").split("## What is tested", 1)
    named = re.findall(r"`(test_\w+)`", table)
    assert len(named) > 30
    folders = ("holograd", "methods", "placement")
    written = [
        path.read_text(encoding="utf-8") for folder in folders for path in (ROOT / "tests" / folder).glob("*.py")
    ]
    known = set(re.findall(r"^def (test_\w+)", "\n".join(written), re.MULTILINE))
    assert [name for name in named if name not in known] == []
