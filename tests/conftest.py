"""What every test may use: where the data lies, and who is skipped on this machine, with the reason."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The suite never reaches out. Set before any library is imported that reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def data_folder() -> Path:
    """Return where the data is looked for: BPO_DATA_DIR, else `../shared/data` beside the repository."""
    return Path(os.environ.get("BPO_DATA_DIR") or ROOT.parent / "shared" / "data")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The data folder; skips the test where there is none."""
    folder = data_folder()
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}: set BPO_DATA_DIR")
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@cache
def missing(need: str) -> str | None:
    """Return why this machine cannot run tests with the marker `need`, or None."""
    if need == "data":
        return None if data_folder().is_dir() else f"no data in {data_folder()}: set BPO_DATA_DIR"
    if need == "model":
        from bpo_integrations.errors import ModelNotFoundError
        from bpo_integrations.models.base import find_base

        try:
            find_base()
        except ModelNotFoundError as error:
            return str(error)
        return None
    if need == "vllm":
        return None if importlib.util.find_spec("vllm") else "vLLM is not installed"
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    return None if torch.cuda.is_available() else "there is no CUDA device"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine lacks the means for."""
    for need in ("data", "model", "vllm", "gpu"):
        if item.get_closest_marker(need) and (reason := missing(need)):
            pytest.skip(reason)
