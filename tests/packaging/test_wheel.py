"""The wheel holds everything, at the right place, and nothing else."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("lightning_sfl", "callbacks", "configs")


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def installed_name(path: Path) -> str:
    """Where a file of the checkout lies in site-packages."""
    name = path.relative_to(ROOT).as_posix()
    return name if name.startswith("lightning_sfl/") else f"lightning_sfl/{name}"


def shipped(pattern: str) -> set[str]:
    return {installed_name(path) for folder in SHIPPED for path in (ROOT / folder).rglob(pattern)}


def test_every_package_is_listed() -> None:
    listed = set(setup_cfg()["options"]["packages"].split())
    assert {str(Path(name).parent).replace("/", ".") for name in shipped("__init__.py")} == listed


def test_the_compromised_releases_are_excluded() -> None:
    required = setup_cfg()["options"]["install_requires"].split()
    assert [line for line in required if line.startswith("lightning")] == ["lightning>=2.6.0,!=2.6.2,!=2.6.3,<3"]


def test_what_is_pinned_is_what_is_required() -> None:
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    required = {line.split("[")[0].split(">")[0].lower() for line in setup_cfg()["options"]["install_requires"].split()}
    assert required <= pinned


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """File list of a wheel built from a copy, since building writes beside the source."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("setup.cfg", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    readme = ROOT / "README.md"
    (copy / "README.md").write_text(readme.read_text() if readme.exists() else "")
    for name in SHIPPED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; import sys; print(build_meta.build_wheel(sys.argv[1]))"
    run = subprocess.run(
        [sys.executable, "-c", build, str(copy)], cwd=copy, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    with zipfile.ZipFile(copy / run.stdout.split()[-1]) as archive:
        return archive.namelist()


def test_the_wheel_holds_every_module_config_and_data_file(wheel: list[str]) -> None:
    wanted = shipped("*.py") | shipped("*.yaml") | shipped("py.typed")
    wanted |= {installed_name(path) for path in (ROOT / "lightning_sfl" / "data" / "files").glob("*") if path.is_file()}
    assert wanted - set(wheel) == set()


def test_the_wheel_puts_nothing_beside_the_package(wheel: list[str]) -> None:
    assert {name.split("/")[0] for name in wheel if ".dist-info/" not in name} == {"lightning_sfl"}
    metadata = {name.split(".dist-info/")[1] for name in wheel if ".dist-info/" in name}
    assert {"entry_points.txt", "licenses/LICENSE"} <= metadata
