"""The embedded model: SmolLM2-135M-Instruct with the adapter of a mode, converted once and run by CTranslate2.

Constructing it checks that the packages, the base and the adapter are there, and loads nothing. At first use the base
is dequantized, merged with the adapter and written into the user's cache (`store.py`); later processes load that.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from bpo_integrations.engines.ctranslate2 import PACKAGES, CTranslate2Engine
from bpo_integrations.engines.generation import check_packages
from bpo_integrations.errors import ConfigurationError, EngineError, ModelNotFoundError
from bpo_integrations.models.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LoRA
from bpo_integrations.models.base import download_allowed, find_base
from bpo_integrations.models.convert import CONVERTER_VERSION, Quantization, convert
from bpo_integrations.models.gguf_base import GGUFBase
from bpo_integrations.models.store import cache_root, stored
from bpo_integrations.result import Mode
from bpo_integrations.rewriter import RECORD_FILE, Record, Rewriter

_SAMPLES, _SAMPLE_BYTES = 64, 16 * 1024

PathLike = str | os.PathLike[str]


def load_embedded(
    mode: Mode = "augment",
    *,
    adapter: PathLike | None = None,
    base: PathLike | None = None,
    cache_dir: PathLike | None = None,
    threads: int | None = None,
    compute_type: str = "int8",
    allow_download: bool = False,
) -> Rewriter:
    """Return the embedded rewriter.

    Args:
        mode: `augment` or `rewrite`: which of the two adapters inside the package.
        adapter: Another adapter for the same base: a folder with `bpo.json`, as `bpo-train sft` writes it.
        base: A GGUF file to use as the base, instead of looking for one (`models/base.py`).
        cache_dir: Where the converted model is kept; None takes `BPO_CACHE_DIR`, else the user's cache directory.
        threads: CPU threads; None takes half of those that this process may use, at most 4.
        compute_type: `int8`, or `float32` for reference (four times the memory, a third of the speed).
        allow_download: Whether the base may be fetched from the hub (98 MB) where it is not found.

    Raises:
        MissingExtraError: A package of the extra `local` is not installed.
        ModelNotFoundError: The base or the adapter is not on this machine.
        ConfigurationError: An option is out of its range, or `bpo.json` cannot be used.

    Example:
        >>> load_embedded().candidates(["Tell me about Harry Potter"])[0][0].text  # doctest: +SKIP
        'Cover the main characters, ...'
    """
    folder = Path(adapter).expanduser() if adapter is not None else Path(__file__).parent / mode
    for file in (RECORD_FILE, ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / file).is_file():
            msg = f"{folder} holds no {file}."
            raise ModelNotFoundError(msg, hint="Give a folder that bpo-train wrote, or install bpo-integrations again.")
    record = Record.read(folder)
    engine = _engine(
        record.name, folder, base, cache_dir, threads=threads, compute_type=compute_type, allow_download=allow_download
    )
    return Rewriter(engine, record)


def embedded_base_engine(
    *,
    base: PathLike | None = None,
    cache_dir: PathLike | None = None,
    threads: int | None = None,
    compute_type: str = "float32",
    allow_download: bool = False,
) -> CTranslate2Engine:
    """Return the embedded base without any adapter, as an engine: a small chat model, for demonstrations.

    Args:
        base: As for `load_embedded`.
        cache_dir: As for `load_embedded`.
        threads: As for `load_embedded`.
        compute_type: `float32`, because in `int8` the bare base forgets what it knows (the capital of France is then
            not Paris). What the adapters do was measured in int8.
        allow_download: As for `load_embedded`.

    Raises:
        MissingExtraError: A package of the extra `local` is not installed.
        ModelNotFoundError: The base is not on this machine.
        ConfigurationError: An option is out of its range.
    """
    return _engine(
        "smollm2-135m", None, base, cache_dir, threads=threads, compute_type=compute_type, allow_download=allow_download
    )


def load_gguf(
    path: PathLike,
    *,
    cache_dir: PathLike | None = None,
    threads: int | None = None,
    compute_type: str = "int8",
) -> Rewriter:
    """Return the rewriter of `gguf:PATH`: whole weights in a GGUF file, run by CTranslate2 as the embedded model is.

    Args:
        path: A folder with one `.gguf` file and `bpo.json`, as `bpo-train export --to gguf` writes it, or the file.
        cache_dir: As for `load_embedded`.
        threads: As for `load_embedded`.
        compute_type: As for `load_embedded`.

    Raises:
        MissingExtraError: A package of the extra `local` is not installed.
        ModelNotFoundError: There is no such file, or the folder holds none, or several.
        ModelFormatError: There is no `bpo.json` beside it, or it cannot be used.
        ConfigurationError: An option is out of its range.
    """
    path = Path(path).expanduser()
    files = sorted(path.glob("*.gguf")) if path.is_dir() else [path]
    if len(files) != 1:
        msg = f"{path} holds {len(files)} .gguf files."
        raise ModelNotFoundError(msg, hint="Give a folder with one, or the path of the file.")
    (file,) = files
    if not file.is_file():
        msg = f"There is no file {file}."
        raise ModelNotFoundError(msg, hint="Give a folder that bpo-train export --to gguf wrote, or the file in it.")
    record = Record.read(file.parent)
    engine = _engine(
        record.name, None, file, cache_dir, threads=threads, compute_type=compute_type, allow_download=False
    )
    return Rewriter(engine, record)


def _engine(
    name: str,
    adapter: Path | None,
    base: PathLike | None,
    cache_dir: PathLike | None,
    *,
    threads: int | None,
    compute_type: str,
    allow_download: bool,
) -> CTranslate2Engine:
    """Check what can be checked at once, and put the rest off to the engine's first use."""
    check_packages([*PACKAGES, "gguf", "safetensors", "filelock", "platformdirs"], extra="local")
    quantizations: dict[str, Quantization] = {"int8": "int8", "float32": "float32"}
    if compute_type not in quantizations:
        msg = f"The embedded model has no compute_type {compute_type!r}."
        raise ConfigurationError(msg, hint="Use int8 or float32.")
    quantization = quantizations[compute_type]
    root = cache_root(cache_dir)
    try:
        key = model_key(name, find_base(base), adapter, quantization)
    except ModelNotFoundError:
        if base is not None or not download_allowed(allow_download):
            raise
        key = f"{name}-{quantization}-downloaded"
    folder = partial(_prepare, name, base, adapter, quantization, root, allow_download)
    return CTranslate2Engine(folder, threads=threads, compute_type=compute_type, name=key)


def _prepare(
    name: str,
    base: PathLike | None,
    adapter: Path | None,
    quantization: Quantization,
    root: Path,
    allow_download: bool,
) -> Path:
    """Return the converted model's folder, converting where the cache does not hold it."""
    path = find_base(base, allow_download=allow_download)
    key = model_key(name, path, adapter, quantization)

    def build(folder: Path) -> None:
        convert(GGUFBase(path), folder, adapter=None if adapter is None else LoRA(adapter), quantization=quantization)
        if adapter is not None:
            (folder / RECORD_FILE).write_bytes((adapter / RECORD_FILE).read_bytes())
        if model_key(name, path, adapter, quantization) != key:
            msg = f"{adapter or path} was changed while it was converted."
            raise EngineError(msg, hint="Load it again when it is no longer written to.")

    return stored(root, key, build)


def model_key(name: str, base: Path, adapter: Path | None, quantization: Quantization) -> str:
    """Name a converted model by all that its bytes depend on.

    The adapter's files count whole; of the base count its size and one MiB of samples spread over the file, because
    reading 98 MB would cost more than the rest of the loading. Any other quantization or training differs there.
    """
    digest = hashlib.sha256(f"{CONVERTER_VERSION} {quantization}".encode())
    digest.update(_of_file(base, _sampled))
    if adapter is not None:
        for file in (ADAPTER_WEIGHTS, ADAPTER_CONFIG, RECORD_FILE):
            digest.update(_of_file(adapter / file, _whole))
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    return f"{safe}-{quantization}-{digest.hexdigest()[:16]}"


def _of_file(path: Path, digest: Callable[[Path], bytes]) -> bytes:
    state = path.stat()
    return _remembered(path.resolve(), state.st_size, state.st_mtime_ns, digest)


@lru_cache(maxsize=64)
def _remembered(path: Path, _size: int, _changed: int, digest: Callable[[Path], bytes]) -> bytes:
    """Engines are constructed often; a file that has not changed is digested once a process."""
    return digest(path)


def _whole(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _sampled(path: Path) -> bytes:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for sample in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()
