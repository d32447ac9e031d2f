"""Next-character prediction on a play, one natural client for each speaking role (McMahan et al., arXiv 1602.05629)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_sfl.core.errors import DataError, require
from lightning_sfl.data.source import Corpus, Source

# A speaker stands alone on the line after a blank one: "First Citizen:".
_SPEAKER = re.compile(r"(?:\A|\n\s*\n)([^\n:]{1,60}):[ \t]*\n")
_TEST_SHARE = 0.2


class PlayText(Source):
    """A play as plain text ("Name:" on a line, then what is said, then a blank line), cut into windows.

    x and y: (rows, length) int64, y one character ahead of x; windows do not overlap. The first 80 % of a role's
    windows are for training, the rest, at least one, for testing. Roles with fewer than `min_rows` windows are dropped.
    The partition Natural gives one client a role, IID the mixed variant. 80 characters is the length of the paper.
    """

    def __init__(self, path: str, length: int = 80, min_rows: int = 2) -> None:
        require(length >= 1, "length", length, "1 or more characters")
        require(min_rows >= 2, "min_rows", min_rows, "2 or more: one window to train on, one to test on")
        self.path, self.length, self.min_rows = path, length, min_rows

    @override
    def load(self) -> Corpus:
        try:
            text = Path(self.path).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"play {self.path}: cannot be read ({error})") from error
        speeches = self._speeches(text)
        vocabulary = "".join(sorted(set("".join(speeches))))
        windows = [w for w in (self._windows(s, vocabulary) for s in speeches) if len(w) >= self.min_rows]
        if not windows:
            raise DataError(f"play {self.path}: no role has {self.min_rows} windows of {self.length} characters")
        train = [w[: len(w) - _num_test(len(w))] for w in windows]
        test = [w[len(w) - _num_test(len(w)) :] for w in windows]
        owner = np.repeat(np.arange(len(train)), [len(w) for w in train])
        return Corpus(*_pairs(train), *_pairs(test), len(vocabulary), Path(self.path).stem, owner, vocabulary)

    def _speeches(self, text: str) -> list[str]:
        """All that each role says, roles in order of appearance."""
        spoken: dict[str, list[str]] = {}
        pieces = _SPEAKER.split(text)
        for name, speech in zip(pieces[1::2], pieces[2::2], strict=True):
            spoken.setdefault(name.strip(), []).append(speech.strip("\n"))
        if not spoken:
            raise DataError(f"play {self.path}: no speaker found; expected 'First Citizen:' after a blank line")
        return ["\n".join(speeches) for speeches in spoken.values()]

    def _windows(self, speech: str, vocabulary: str) -> np.ndarray:
        """(rows, length + 1) codes; the last character of a window is the first of the next."""
        codes = np.searchsorted(np.array(list(vocabulary)), np.array(list(speech)))
        rows = max(0, (len(codes) - 1) // self.length)
        windows: np.ndarray = codes[np.arange(rows)[:, None] * self.length + np.arange(self.length + 1)]
        return windows


def _num_test(rows: int) -> int:
    return max(1, round(_TEST_SHARE * rows))


def _pairs(windows: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Inputs and the characters that follow them."""
    joined = torch.from_numpy(np.concatenate(windows)).long()
    return joined[:, :-1].contiguous(), joined[:, 1:].contiguous()
