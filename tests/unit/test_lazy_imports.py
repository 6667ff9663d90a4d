"""`import bpo_integrations` is cheap, and says what is missing only when it is asked for."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ["torch", "transformers", "vllm", "langchain_core", "llama_index", "ctranslate2", "numpy"]


def run(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_loads_no_framework_and_no_engine() -> None:
    code = f"import sys, bpo_integrations; print([name for name in {HEAVY} if name in sys.modules])"
    assert run(code) == "[]"


def test_the_optimizer_loads_no_framework_either() -> None:
    heavy = [name for name in HEAVY if name != "numpy"]
    code = f"import sys; from bpo_integrations import PromptOptimizer; print([n for n in {heavy} if n in sys.modules])"
    assert run(code) == "[]"


def test_the_runnable_loads_neither_torch_nor_an_engine() -> None:
    pytest.importorskip("langchain_core", reason="the langchain extra is not installed")
    heavy = ["torch", "transformers", "vllm", "llama_index", "ctranslate2"]
    code = f"import sys; from bpo_integrations import BPORunnable; print([n for n in {heavy} if n in sys.modules])"
    assert run(code) == "[]"


def test_everything_exported_is_there_and_listed() -> None:
    pytest.importorskip("langchain_core", reason="the langchain extra is not installed")
    import bpo_integrations

    for name in bpo_integrations.__all__:
        assert getattr(bpo_integrations, name) is not None
        assert name in dir(bpo_integrations)


def test_an_unknown_name_is_an_attribute_error() -> None:
    import bpo_integrations

    with pytest.raises(AttributeError, match="no attribute 'BPOTypo'"):
        bpo_integrations.BPOTypo  # noqa: B018


def test_without_langchain_core_the_install_line_is_told() -> None:
    printed = run(
        """
        import sys
        sys.modules["langchain_core"] = None  # as if it were not installed
        import bpo_integrations
        try:
            bpo_integrations.BPORunnable
        except ImportError as error:
            print(type(error).__name__, error)
        """
    )
    assert printed.startswith("MissingExtraError")
    assert 'pip install "bpo-integrations[langchain]"' in printed


def test_the_version_is_that_of_the_distribution() -> None:
    import bpo_integrations

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert bpo_integrations.__version__ == project["version"]
