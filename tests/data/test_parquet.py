"""Parquet in the hub's layout: decoded exactly, kept on disk, and refused in one line when damaged or misnamed."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_sfl.core.errors import DataError
from lightning_sfl.data.parquet import Hub, Parquet, find_files

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")

PIXELS = np.random.default_rng(0).integers(0, 256, size=(25, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(25) % 4


def encoded(pixels: np.ndarray) -> dict[str, object]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write(path: Path, images: list[object], labels: list[object], name: str = "img", **more: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: images, "label": labels, **more}), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Colour images: two training files (20 rows) and a test file (5 rows), with a writer for each row."""
    pieces = {"train-0": slice(0, 12), "train-1": slice(12, 20), "test-0": slice(20, 25)}
    for name, rows in pieces.items():
        writers = [f"w{i % 3}" for i in range(rows.start, rows.stop)]
        images = [encoded(image) for image in PIXELS[rows]]
        write(tmp_path / "set" / f"{name}.parquet", images, list(LABELS[rows]), writer=writers)
    return tmp_path / "set"


def test_colour_images_come_back_exactly(folder: Path, tmp_path: Path) -> None:
    corpus = Parquet(str(folder), cache_dir=str(tmp_path / "cache"), owner_column="writer").load()
    expected = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    assert corpus.train_x.dtype == torch.uint8
    assert torch.equal(corpus.train_x, expected[:20])
    assert torch.equal(corpus.test_x, expected[20:])
    assert corpus.train_y.tolist() == LABELS[:20].tolist()
    assert (corpus.num_classes, corpus.name) == (4, "set")
    assert corpus.owner is not None
    assert corpus.owner.tolist() == [i % 3 for i in range(20)]


def test_second_load_reads_the_cache_and_a_changed_file_does_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Parquet(str(folder), cache_dir=str(tmp_path / "cache"))
    first = source.load()
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".npz", ".npz"]
    with monkeypatch.context() as patch:
        patch.setattr("lightning_sfl.data.parquet.decode", lambda *_: pytest.fail("decoded again"))
        assert torch.equal(source.load().train_x, first.train_x)
    write(folder / "train-1.parquet", [encoded(image) for image in PIXELS[:3]], [0, 1, 2])
    assert len(source.load().train_x) == 15


def test_damaged_cache_is_written_anew(folder: Path, tmp_path: Path) -> None:
    source = Parquet(str(folder), cache_dir=str(tmp_path / "cache"))
    first = source.load()
    for path in (tmp_path / "cache").iterdir():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged and is written anew"):
        assert torch.equal(source.load().train_x, first.train_x)


def test_cache_that_cannot_be_written_is_no_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="give cache_dir"):
        assert len(Parquet(str(folder), cache_dir=str(tmp_path / "file")).load().train_x) == 20


@pytest.mark.parametrize(
    ("image", "shape", "dtype"),
    [
        (PIXELS[0, :, :, 0].tolist(), (1, 6, 5), torch.uint8),
        (PIXELS[0].tolist(), (3, 6, 5), torch.uint8),
        (PIXELS[0].transpose(2, 0, 1).tolist(), (3, 6, 5), torch.uint8),
        ([0.5, -1.0, 2.0], (3,), torch.float32),
        ([300, 2], (2,), torch.float32),
        (encoded(PIXELS[0, :, :, 0]), (1, 6, 5), torch.uint8),
    ],
)
def test_other_layouts(tmp_path: Path, image: object, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    path = str(write(tmp_path / "all.parquet", [image, image], [0, 1], name="image"))
    corpus = Parquet(path, path, cache_dir=str(tmp_path / "cache")).load()
    assert (tuple(corpus.train_x.shape[1:]), corpus.train_x.dtype) == (shape, dtype)


def refused(tmp_path: Path, match: str, path: Path, **options: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        Parquet(str(path), str(path), cache_dir=str(tmp_path / "cache"), **options).load()
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    file = folder / "train-0.parquet"
    refused(tmp_path, "no such file", tmp_path / "absent.parquet")
    refused(tmp_path, r"label_column='labels' not found; did you mean label\? columns are", file, label_column="labels")
    refused(
        tmp_path, "image_column='picture' not found; .*columns are img, label, writer", file, image_column="picture"
    )
    refused(tmp_path, "owner_column='who' not found", file, owner_column="who")
    (tmp_path / "empty").mkdir()
    refused(tmp_path, r"no \*train\*.parquet in this folder", tmp_path / "empty")
    assert len(find_files(str(folder / "train-*.parquet"), "train")) == 2


def test_damage_is_refused(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "train-0.parquet").read_bytes()
    for name, content in {"cut": whole[: len(whole) // 2], "none": b"", "text": b"hello there, not parquet"}.items():
        (tmp_path / f"{name}.parquet").write_bytes(content)
        refused(tmp_path, "not a readable parquet file", tmp_path / f"{name}.parquet")
    good = encoded(PIXELS[0])
    broken = {"bytes": b"not an image", "path": None}
    refused(tmp_path, "cannot be decoded", write(tmp_path / "a.parquet", [good, broken], [0, 1]))
    small = encoded(PIXELS[0, :4])
    refused(tmp_path, "row 1 is .* but row 0 is", write(tmp_path / "b.parquet", [good, small], [0, 1]))
    refused(tmp_path, "must hold one class number", write(tmp_path / "c.parquet", [good, good], ["cat", "dog"]))
    refused(tmp_path, "must hold one class number", write(tmp_path / "d.parquet", [good, good], [0, -1]))
    refused(tmp_path, "must hold one class number", write(tmp_path / "e.parquet", [good, good], [0, None]))
    refused(tmp_path, "NaN or infinity", write(tmp_path / "f.parquet", [[1.0, float("nan")]], [0]))
    refused(tmp_path, "not a regular array", write(tmp_path / "g.parquet", [[[1.0], [1.0, 2.0]]], [0]))
    refused(tmp_path, "0 rows", write(tmp_path / "h.parquet", [], []))


def test_missing_extra_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r'pip install "lightning_sfl\[data\]"'):
        Hub("some/set").load()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(tmp_path, r'pip install "lightning_sfl\[data\]"', folder / "train-0.parquet")


def test_hub_reads_through_the_library(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name: str, config: str | None, split: str, revision: str | None) -> object:
        asked.append((name, config, split, revision))
        files = sorted(str(path) for path in folder.glob(f"{split}-*.parquet"))
        return datasets.Dataset.from_parquet(files, cache_dir=str(tmp_path / "hf"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = Hub("someone/pictures", revision="abc").load()
    assert torch.equal(corpus.train_x, torch.from_numpy(PIXELS).permute(0, 3, 1, 2)[:20])
    assert asked == [("someone/pictures", None, "train", "abc"), ("someone/pictures", None, "test", "abc")]
    assert corpus.name == "pictures"


def test_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\nand much more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"hub data set 'a/b', split 'train': Couldn't reach the Hub$"):
        Hub("a/b").load()


@pytest.mark.skipif("LIGHTNING_SFL_DATA" not in os.environ, reason="LIGHTNING_SFL_DATA names no folder of real sets")
@pytest.mark.parametrize(("name", "rows", "shape"), [("mnist", 60_000, (1, 28, 28)), ("cifar10", 50_000, (3, 32, 32))])
def test_real_sets(tmp_path: Path, name: str, rows: int, shape: tuple[int, ...]) -> None:
    corpus = Parquet(str(Path(os.environ["LIGHTNING_SFL_DATA"]) / name), cache_dir=str(tmp_path)).load()
    assert corpus.train_x.shape == (rows, *shape)
    assert len(corpus.test_x) == 10_000
    assert corpus.num_classes == 10
