"""The examples of the documentation run offline, each in a process of its own, and print what their page says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bpo_integrations.errors import ModelNotFoundError
from bpo_integrations.models.base import find_base

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))


@pytest.mark.model
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs_offline_and_shows_an_optimized_prompt(example: Path, tmp_path: Path) -> None:
    try:
        find_base()
    except ModelNotFoundError as error:
        pytest.skip(str(error))
    # Nothing may be fetched: a proxy that does not exist takes what is not for this machine.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **nowhere, "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1,localhost"}
    done = subprocess.run(
        [sys.executable, example], cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 20, done.stdout
    assert "Traceback" not in done.stderr


def test_every_example_has_its_place_in_the_documentation() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    assert EXAMPLES
    assert [example.name for example in EXAMPLES if example.name not in page] == []
