"""A sweep file becomes commands, or one line that says what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_sfl.core.errors import ConfigError
from lightning_sfl.sweep_plan import Sweep, read_sweep

ROOT = Path(__file__).resolve().parents[2]
DEMO = str(ROOT / "configs/experiments/demo.yaml")


def names(**parts: Any) -> list[str]:
    return [point.name for point in Sweep(**{"base": [DEMO], **parts}).points()]


def arguments(**parts: Any) -> list[tuple[str, ...]]:
    return [point.arguments for point in Sweep(**{"base": [DEMO], **parts}).points()]


def test_every_combination_once_per_seed() -> None:
    grid = {"model": ["SFL", "USFL"], "data.partition.alpha": [0.1, 1.0]}
    assert names(grid=grid, seeds=[0, 7]) == [
        f"{model}-alpha={alpha}-seed{seed}" for seed in (0, 7) for model in ("SFL", "USFL") for alpha in (0.1, 1.0)
    ]


def test_names_do_not_change_when_the_grid_grows() -> None:
    short, long = names(grid={"model": ["SFL"]}), names(grid={"model": ["SFL", "USFL"]}, seeds=[0, 1])
    assert set(short) <= set(long)


def test_the_command_line_chooses_classes_before_their_options() -> None:
    (line,) = arguments(
        grid={"model": ["FedAvg"], "data.partition.alpha": [0.5]},
        options={"data.partition": "Dirichlet", "model.client_clip": None, "trainer.max_epochs": 3},
        seeds=[4],
    )
    assert line == (
        "--config",
        DEMO,
        "--model=FedAvg",
        "--data.partition=Dirichlet",
        "--model.client_clip=null",
        "--trainer.max_epochs=3",
        "--data.partition.alpha=0.5",
        "--seed_everything=4",
    )


def test_files_in_the_grid_come_behind_the_base(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("model: {class_path: SFL}\n")
    (line,) = arguments(grid={"model": [str(own)]})
    assert line[:4] == ("--config", DEMO, "--config", str(own))
    assert names(grid={"model": [str(own)]}) == ["mine-seed0"]


def test_bundles_set_several_options_at_once() -> None:
    arms = [{"model": "SFL"}, {"model": "MiniBatchSFL", "model.client_gradient_scale": "concat_mean"}]
    assert names(grid={"arm": arms}) == ["SFL-seed0", "MiniBatchSFL-client_gradient_scale=concat_mean-seed0"]
    assert arguments(grid={"arm": arms})[1][2:4] == (
        "--model=MiniBatchSFL",
        "--model.client_gradient_scale=concat_mean",
    )


def test_settings_that_sound_alike_have_folders_of_their_own() -> None:
    found = names(grid={"model": ["mine.SFL", "yours.SFL"]})
    assert len(set(found)) == 2
    assert all(name.startswith("SFL-") for name in found)


@pytest.mark.parametrize("value", [0.5, -1, True, None, "a b/c", [1, 2], {"class_path": "X"}, "../../etc"])
def test_names_are_folders(value: Any) -> None:
    (name,) = names(grid={"model.x": [[value]] if isinstance(value, list) else [value]})
    assert not set(name) & set('/\\ :*?"<>|')
    assert ".." not in name.split("/")


def test_rounds_are_known_from_the_options_or_the_last_file(tmp_path: Path) -> None:
    assert Sweep(base=[DEMO]).points()[0].rounds == 30
    assert Sweep(base=[DEMO], options={"trainer.max_epochs": 2}).points()[0].rounds == 2
    assert Sweep(base=[str(ROOT / "configs/methods/sfl.yaml")]).points()[0].rounds is None


def test_the_digest_changes_with_settings_and_files_but_not_with_rounds(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("model: {class_path: SFL}\n")

    def digest(**options: Any) -> str:
        return Sweep(base=[str(own)], options=options).points()[0].digest

    first = digest()
    assert digest(**{"trainer.max_epochs": 9}) == first
    assert digest(**{"model.batch_size": 9}) != first
    own.write_text("model: {class_path: SFLV1}\n")
    assert digest() != first


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grid: [", "not YAML"),
        ("- a", "a sweep file with base, grid, seeds, options, out"),
        ("seed: [0]", "seed is not known: did you mean seeds?"),
        ("base: [nowhere.yaml]", "base='nowhere.yaml'"),
        ("seeds: []", "seeds=[] is not allowed: at least one value"),
        ("seeds: [0, 0]", "each value once"),
        ("seeds: [-1]", "seeds=-1"),
        ("seeds: [true]", "seeds=True"),
        ("seeds: [a]", "seeds='a'"),
        ("grid: [1]", "grid=[1]"),
        ("grid: {model: []}", "grid.model=[] is not allowed"),
        ("grid: {model: [SFL, SFL]}", "each value once"),
        ("grid: {seed_everything: [1]}", "use seeds"),
        ("options: {trainer.default_root_dir: x}", "use out"),
        ("options: {resume: x}", "sweep sets it"),
        ("options: {--model: x}", "an option of fit"),
        ("options: {trainer.max_epochs: many}", "trainer.max_epochs='many'"),
        ("options: 3", "options=3"),
        ("grid: {model: [SFL]}\noptions: {model: USFL}", "options.model"),
        ("grid: {a: [{model: SFL}], model: [USFL]}", "one value for each option"),
        ("grid: {model: [missing.yaml]}", "an existing config file"),
        ("out: [1]", "out=[1]"),
    ],
)
def test_bad_files_give_one_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Sweep(**{"base": [DEMO], **read_sweep(str(path))}).points()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_of_another_text_of_ones_own_class_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named in the grid, or in a config file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("model:\n  class_path: mine.Mine\n")
    digests = []
    for text in ("one", "one", "other"):
        (tmp_path / "mine.py").write_text(text)
        grid = {"model": ["mine.Mine", "own.yaml", "SFL"]}
        digests.append([point.digest for point in Sweep(base=[DEMO], grid=grid).points()])
    assert digests[0] == digests[1]
    assert [a == b for a, b in zip(digests[0], digests[2], strict=True)] == [False, False, True]


def test_a_sweep_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="base"):
        Sweep()


@pytest.mark.parametrize("path", sorted((ROOT / "configs/experiments").glob("*compare*.yaml")), ids=lambda p: p.stem)
def test_shipped_sweeps_are_sound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sweep = Sweep(**read_sweep(str(path)))
    points = sweep.points()
    assert len({point.name for point in points}) == len(points) >= 4
    assert all(point.rounds for point in points)
    from lightning_sfl import methods

    arms = yaml.safe_load(path.read_text())["grid"]["model"]
    named = [arm["model"] if isinstance(arm, dict) else arm for arm in arms]
    assert [name for name in named if not hasattr(methods, name)] == []
