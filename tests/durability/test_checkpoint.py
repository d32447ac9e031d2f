"""What is written is read back, by us and by stock tools; whatever is not intact is refused with a reason."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_sfl.checkpoint import DurableCheckpointIO, newest_good, verify
from lightning_sfl.core.errors import CheckpointError


def content(round: int) -> dict[str, Any]:
    """A small checkpoint whose tensor tells its round."""
    return {"epoch": round, "state_dict": {"weight": torch.full((64,), float(round))}, "lightning_sfl": {"format": 1}}


def save(folder: Path, *rounds: int) -> list[Path]:
    paths = [folder / f"round-{round:06d}.ckpt" for round in rounds]
    for round, path in zip(rounds, paths, strict=True):
        DurableCheckpointIO().save_checkpoint(content(round), path)
    return paths


def round_in(checkpoint: dict[str, Any]) -> float:
    return float(checkpoint["state_dict"]["weight"][0])


def break_file(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def strict() -> DurableCheckpointIO:
    return DurableCheckpointIO(fall_back=False)


def test_what_was_saved_is_loaded_by_us_and_by_stock_tools(tmp_path: Path) -> None:
    (path,) = save(tmp_path / "new" / "folder", 12)
    assert round_in(strict().load_checkpoint(path)) == 12
    assert round_in(torch.load(path, weights_only=True)) == 12
    assert round_in(torch.load(path, weights_only=True, mmap=True)) == 12
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"lightning_sfl/1 round=000000012 sha256=")
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_saving_again_replaces(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for round in (3, 4):
        DurableCheckpointIO().save_checkpoint(content(round), path)
    assert round_in(strict().load_checkpoint(path)) == 4


def test_every_one_of_400_flipped_bits_is_seen(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 1)
    good = path.read_bytes()
    draw = np.random.default_rng(0)
    tail = np.arange(len(good) * 8 - 200 * 8, len(good) * 8)  # the comment and the end record are the delicate part
    for bit in [*draw.choice(len(good) * 8, 300, replace=False), *draw.choice(tail, 100, replace=False)]:
        data = bytearray(good)
        data[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(data)
        assert verify(path) is not None, f"bit {bit}"
        assert verify(path, allow_foreign=True) is not None, f"bit {bit} passes as foreign"
    path.write_bytes(good)
    assert verify(path) is None


def test_truncations_additions_zeroed_pages_and_swapped_halves_are_seen(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 1)
    good = path.read_bytes()
    half = len(good) // 2
    draw = np.random.default_rng(1)
    damaged = [good[:length] for length in [0, 1, 21, 22, 103, *range(len(good) - 120, len(good))]]
    damaged += [good[: int(length)] for length in draw.integers(0, len(good), 80)]
    damaged += [good + b"x", good + good, good[half:] + good[:half], b"\0" * len(good)]
    for start in range(0, len(good), 256):
        page = good[start : start + 256]
        if any(page):
            damaged.append(good[:start] + b"\0" * len(page) + good[start + 256 :])
    for data in damaged:
        path.write_bytes(data)
        assert verify(path, allow_foreign=True) is not None, f"{len(data)} bytes"
        with pytest.raises(CheckpointError, match="damaged"):
            strict().load_checkpoint(path)


def test_the_content_of_another_file_under_this_ones_digest_is_seen(tmp_path: Path) -> None:
    first, second = save(tmp_path, 1, 2)
    swapped = second.read_bytes()[:-64] + first.read_bytes()[-64:]
    second.write_bytes(swapped)
    assert "digest" in str(verify(second))


def test_a_foreign_file_is_refused_unless_allowed(tmp_path: Path) -> None:
    path = tmp_path / "stock.ckpt"
    torch.save(content(7), path)
    assert "foreign" in str(verify(path))
    with pytest.raises(CheckpointError, match="foreign"):
        DurableCheckpointIO().load_checkpoint(path)
    assert round_in(DurableCheckpointIO(allow_foreign=True).load_checkpoint(path)) == 7


def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    io = strict()
    path = tmp_path / "a.ckpt"
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="holds a list"):
        DurableCheckpointIO(allow_foreign=True).load_checkpoint(path)
    io.save_checkpoint({"lightning_sfl": {"format": 2}}, path)
    with pytest.raises(CheckpointError, match="format 2"):
        io.load_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        io.load_checkpoint(tmp_path / "nothing.ckpt")
    with pytest.raises(CheckpointError, match="weights_only=False"):
        io.load_checkpoint(path, weights_only=False)
    with pytest.raises(CheckpointError, match="local"):
        io.load_checkpoint("s3://bucket/a.ckpt")


class Payload:
    """Unpickled, it would create the file it names."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.witness),))


@pytest.mark.parametrize("forced", [False, True])
def test_code_in_a_file_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: bool) -> None:
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    witness = tmp_path / "witness"
    path = tmp_path / "evil.ckpt"
    with pytest.raises(CheckpointError, match="more than tensors"):
        strict().save_checkpoint({"epoch": 1, "evil": Payload(witness)}, path)
    assert list(tmp_path.iterdir()) == []
    torch.save({"epoch": 1, "evil": Payload(witness)}, path)
    with pytest.raises(CheckpointError, match="more than tensors"):
        DurableCheckpointIO(allow_foreign=True).load_checkpoint(path)
    assert not witness.exists()


def test_the_next_older_round_stands_in_and_no_later_one(tmp_path: Path) -> None:
    paths = save(tmp_path, 9, 10, 11, 12)
    os.utime(paths[0])  # written last, yet of the earliest round
    break_file(paths[2])
    with pytest.warns(UserWarning, match=r"round-000011.ckpt is damaged.*round-000010.ckpt instead") as caught:
        assert round_in(DurableCheckpointIO().load_checkpoint(paths[2])) == 10
    assert "\n" not in str(caught[0].message)
    break_file(paths[1])
    with pytest.warns(UserWarning, match=r"000011.*000010.*000009.ckpt instead"):
        assert round_in(DurableCheckpointIO().load_checkpoint(paths[2])) == 9
    break_file(paths[0])
    with pytest.raises(CheckpointError, match=r"000011.*000010.*000009"):
        DurableCheckpointIO().load_checkpoint(paths[2])
    with pytest.raises(CheckpointError, match="000012") as refused:
        break_file(paths[3])
        strict().load_checkpoint(paths[3])
    assert "000011" not in str(refused.value)


def test_newest_good_goes_by_round_not_by_date(tmp_path: Path) -> None:
    assert newest_good(tmp_path / "missing") is None
    paths = save(tmp_path, 2, 10, 1)
    assert newest_good(tmp_path) == paths[1]
    last = tmp_path / "last.ckpt"
    DurableCheckpointIO().save_checkpoint(content(11), last)  # no round in its name: the file itself tells it
    assert newest_good(tmp_path) == last
    break_file(last)
    break_file(paths[1])
    assert newest_good(tmp_path) == paths[0]
    for path in (paths[0], paths[2]):
        break_file(path)
    assert newest_good(tmp_path) is None


def test_a_link_to_the_damaged_file_does_not_stand_in_for_it(tmp_path: Path) -> None:
    older, newer = save(tmp_path, 1, 2)
    break_file(newer)
    (tmp_path / "last.ckpt").symlink_to(newer.name)
    (tmp_path / "dangling.ckpt").symlink_to("nowhere")
    with pytest.warns(UserWarning, match="taking") as caught:
        assert round_in(DurableCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")) == 1
    assert str(older) in str(caught[0].message)


def test_removing_is_tolerant(tmp_path: Path) -> None:
    io = DurableCheckpointIO()
    (path,) = save(tmp_path, 1)
    io.remove_checkpoint(path)
    io.remove_checkpoint(path)
    assert not path.exists()
    path.mkdir()
    with pytest.warns(UserWarning, match="cannot remove"):
        io.remove_checkpoint(path)
    shutil.rmtree(path)
