"""The corpora themselves: the bundled digits, synthetic classes, and a play by speaking role."""

from __future__ import annotations

import hashlib
import io
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_sfl.core.errors import ConfigError, DataError
from lightning_sfl.data.play import PlayText
from lightning_sfl.data.source import Corpus, Digits, Synthetic

DIGITS_SHA256 = "c65ca29fb9866509efc7e07c7d5574265777f287c088a0b24503488218f75a6d"


def test_digits_are_the_credited_file() -> None:
    folder = resources.files("lightning_sfl.data") / "files"
    content = (folder / "digits.npz").read_bytes()
    assert len(content) < 50_000
    assert hashlib.sha256(content).hexdigest() == DIGITS_SHA256
    licence = (folder / "DIGITS_LICENSE.md").read_text()
    assert "CC BY 4.0" in licence
    assert "Alpaydin" in licence
    with np.load(io.BytesIO(content)) as arrays:
        table = np.column_stack([arrays["images"].reshape(-1, 64), arrays["labels"]])
    lines = "".join(f"{','.join(map(str, row))}\n" for row in table.tolist())
    assert hashlib.sha256(lines.encode()).hexdigest() in licence  # of the file that scikit-learn distributes


def test_digits_split_is_stratified_and_complete() -> None:
    corpus = Digits().load()
    assert corpus.train_x.shape == (1437, 1, 8, 8)
    assert corpus.train_x.dtype == torch.float32
    assert torch.bincount(corpus.test_y).tolist() == [36] * 10
    # Class counts of the whole file as the UCI page gives them for its test set.
    every = torch.cat([corpus.train_y, corpus.test_y])
    assert torch.bincount(every).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (float(corpus.train_x.min()), float(corpus.train_x.max())) == (0.0, 1.0)
    assert torch.equal(corpus.train_x * 16, (corpus.train_x * 16).round())


def test_digits_are_told_apart_by_their_class_means() -> None:
    """Labels belong to their images: nearest class mean finds nine test rows in ten."""
    corpus = Digits().load()
    means = torch.stack([corpus.train_x[corpus.train_y == c].mean(0).flatten() for c in range(10)])
    found = torch.cdist(corpus.test_x.flatten(1), means).argmin(1)
    assert float((found == corpus.test_y).float().mean()) > 0.85


def test_synthetic_is_learnable_balanced_and_repeatable() -> None:
    corpus = Synthetic(rows=500, test_rows=100, features=[3, 5, 4], num_classes=4, noise=1.0, seed=3).load()
    assert corpus.train_x.shape == (500, 3, 5, 4)
    assert torch.bincount(corpus.train_y).tolist() == [125] * 4
    means = torch.stack([corpus.train_x[corpus.train_y == c].mean(0).flatten() for c in range(4)])
    found = torch.cdist(corpus.test_x.flatten(1), means).argmin(1)
    assert float((found == corpus.test_y).float().mean()) > 0.95
    again = Synthetic(rows=500, test_rows=100, features=[3, 5, 4], num_classes=4, seed=3).load()
    assert torch.equal(corpus.train_x, again.train_x)
    assert not torch.equal(corpus.train_x, Synthetic(500, 100, [3, 5, 4], 4, seed=4).load().train_x)


@pytest.mark.parametrize(
    "options", [{"rows": 0}, {"test_rows": 0}, {"features": []}, {"features": [0]}, {"num_classes": 1}, {"noise": -1.0}]
)
def test_synthetic_refuses_sizes_that_cannot_work(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(options))}="):
        Synthetic(**options)  # type: ignore[arg-type]


def test_corpus_refuses_what_does_not_fit_together() -> None:
    x, y = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    Corpus(x, y, x, y, 2, "whole")
    with pytest.raises(DataError, match="4 training inputs and 3 labels"):
        Corpus(x, y[:3], x, y, 2, "short")
    with pytest.raises(DataError, match=r"test labels must lie in 0\.\.1"):
        Corpus(x, y, x, y + 1, 2, "wild")
    with pytest.raises(DataError, match="differ in shape"):
        Corpus(x, y, torch.zeros(4, 3), y, 2, "unlike")
    with pytest.raises(DataError, match="3 owners for 4"):
        Corpus(x, y, x, y, 2, "owned", np.zeros(3))


def write_play(path: Path) -> Path:
    """Ann speaks 61 characters in two speeches, Bob 21, Cy 5."""
    path.write_text("Ann:\n" + "abcde" * 6 + "\n\nBob:\n" + "xyz" * 7 + "\n\nAnn:\n" + "abcde" * 6 + "\n\nCy:\nshort\n")
    return path


def test_play_gives_each_role_its_windows_in_order(tmp_path: Path) -> None:
    corpus = PlayText(str(write_play(tmp_path / "play.txt")), length=10).load()
    assert corpus.vocabulary is not None
    letters = np.array(list(corpus.vocabulary))
    said = ["".join(letters[row]) for row in corpus.train_x.numpy()]
    # Ann: 61 characters with the line end between her speeches, six windows, one of them for testing; Bob: two.
    assert said == ["abcdeabcde"] * 3 + ["\nabcdeabcd", "eabcdeabcd", "xyzxyzxyzx"]
    assert corpus.owner is not None
    assert corpus.owner.tolist() == [0, 0, 0, 0, 0, 1]
    assert ["".join(letters[row]) for row in corpus.test_x.numpy()] == ["eabcdeabcd", "yzxyzxyzxy"]
    assert torch.equal(corpus.train_x[0, 1:], corpus.train_y[0, :-1])
    assert "".join(letters[corpus.train_y[2].numpy()]) == "bcdeabcde\n"
    assert corpus.num_classes == len(corpus.vocabulary) == len(set("abcdexyzshort\n"))


def test_play_errors_are_one_line(tmp_path: Path) -> None:
    path = write_play(tmp_path / "play.txt")
    with pytest.raises(DataError, match="no role has 90 windows of 10"):
        PlayText(str(path), length=10, min_rows=90).load()
    with pytest.raises(DataError, match="cannot be read"):
        PlayText(str(tmp_path / "absent.txt")).load()
    (tmp_path / "prose.txt").write_text("No speaker here.\n\nNone at all.\n")
    with pytest.raises(DataError, match="no speaker found"):
        PlayText(str(tmp_path / "prose.txt")).load()
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(DataError, match="cannot be read"):
        PlayText(str(tmp_path / "bytes.txt")).load()
    with pytest.raises(ConfigError, match="min_rows=1"):
        PlayText(str(path), min_rows=1)
