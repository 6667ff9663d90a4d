"""The cache of converted models: folders named by their content, written once, checked whenever they are opened.

Promises: a folder appears whole or not at all (written beside, synced, renamed), however many processes ask for it and
wherever one is killed; every byte is checked (size and CRC-32) when it is opened, and a damaged folder is made anew,
once. Where the cache cannot be written, a temporary folder serves this process. CRC-32 finds damage, not an attacker:
the cache belongs to the user, as the installed package does. What a folder holds is for the caller to say.
"""

from __future__ import annotations

import atexit
import errno
import json
import logging
import os
import secrets
import shutil
import tempfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

from bpo_integrations.errors import EngineError, MissingExtraError, ModelFormatError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_SCHEMA = 2
_LOCK = ".lock"
_UNFINISHED = ".tmp"
_CHUNK = 1 << 20
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_temporary: dict[tuple[int, str], Path] = {}
_temporary_lock = threading.Lock()


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the cache folder: the one given, else `BPO_CACHE_DIR`, else the user's cache directory of this system.

    Raises:
        MissingExtraError: `platformdirs` is not installed and no folder was given.
    """
    given = cache_dir if cache_dir is not None else os.environ.get("BPO_CACHE_DIR") or None
    if given is not None:
        return Path(given).expanduser()
    try:
        from platformdirs import user_cache_path
    except ImportError as error:
        raise MissingExtraError("platformdirs", extra="local") from error
    return user_cache_path("bpo-integrations", appauthor=False)


def stored(root: Path, key: str, build: Callable[[Path], None]) -> Path:
    """Return the folder `key` of the cache, building it where it is missing or damaged.

    Args:
        root: The cache folder; made when it is missing.
        key: Names the content. A new content needs a new key.
        build: Writes the content into the empty folder that it is given.

    Returns:
        The folder, or, where `root` cannot be written, a temporary one that is removed when this process ends.

    Raises:
        EngineError: The disk is full.
        ModelFormatError: What `build` wrote cannot be read back, so the disk or the memory is faulty.

    Example:
        >>> folder = stored(Path("cache"), "greeting", lambda at: (at / "hi").write_text("hi"))  # doctest: +SKIP
    """
    folder = root / key
    if is_whole(folder):
        return folder
    try:
        return _locked_build(root, key, build)
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise _disk_full(root, error) from error
        logger.warning("The cache %s cannot be written (%s): using a temporary folder.", root, error.strerror or error)
    return _build_temporary(key, build)


def is_whole(folder: Path) -> bool:
    """Whether the folder holds every file that its manifest lists, byte for byte.

    A file that has its size and its time of change from when it was written is believed; of any other the CRC-32 is
    computed, which takes a tenth of a second.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["schema"] != _SCHEMA or not manifest["files"]:
            return False
        states = {name: (folder / name).stat() for name in manifest["files"]}
        if any(state.st_size != manifest["files"][name]["size"] for name, state in states.items()):
            return False  # found without reading the files
        changed = [name for name, state in states.items() if state.st_mtime_ns != manifest["files"][name]["changed"]]
        return all(_checksum(folder / name) == manifest["files"][name]["crc32"] for name in changed)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def _locked_build(root: Path, key: str, build: Callable[[Path], None]) -> Path:
    """Build under the cache's lock, so that one process builds and the others wait for it."""
    try:
        from filelock import FileLock
    except ImportError as error:
        raise MissingExtraError("filelock", extra="local") from error
    root.mkdir(parents=True, exist_ok=True)
    folder = root / key
    with FileLock(root / _LOCK):
        if is_whole(folder):
            return folder
        for leftover in root.glob(f"*{_UNFINISHED}"):  # of a process that was killed: nobody else holds the lock
            shutil.rmtree(leftover, ignore_errors=True)
        if folder.exists():
            logger.warning("The cached model %s is damaged: it is made anew.", folder)
            shutil.rmtree(folder)
        unfinished = root / f"{key}.{os.getpid()}-{secrets.token_hex(4)}{_UNFINISHED}"
        try:
            _write(unfinished, build)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        _sync(root)
    if not is_whole(folder):
        msg = f"The model just written to {folder} cannot be read back."
        raise ModelFormatError(msg, hint="Check the disk, or set BPO_CACHE_DIR to a folder on another one.")
    return folder


def _write(folder: Path, build: Callable[[Path], None]) -> None:
    """Build into a new folder, add the manifest, and make sure that all of it is on the disk."""
    folder.mkdir()
    build(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    entries = {
        path.name: {"size": path.stat().st_size, "changed": path.stat().st_mtime_ns, "crc32": _checksum(path)}
        for path in files
    }
    (folder / MANIFEST).write_text(json.dumps({"schema": _SCHEMA, "files": entries}, indent=2), encoding="utf-8")
    for path in [*files, folder / MANIFEST, folder]:
        _sync(path)


def _sync(path: Path) -> None:
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):  # Windows cannot sync a folder, and need not
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _build_temporary(key: str, build: Callable[[Path], None]) -> Path:
    """Build into a temporary folder, once a process and key."""
    with _temporary_lock:
        mark = (os.getpid(), key)
        known = _temporary.get(mark)
        if known is not None and is_whole(known):
            return known
        parent = Path(tempfile.mkdtemp(prefix="bpo-"))
        try:
            _write(parent / key, build)
        except OSError as error:
            shutil.rmtree(parent, ignore_errors=True)
            raise _disk_full(parent, error) from error
        except BaseException:
            shutil.rmtree(parent, ignore_errors=True)
            raise
        atexit.register(_remove, os.getpid(), parent)
        _temporary[mark] = parent / key
        return parent / key


def _remove(pid: int, folder: Path) -> None:
    if pid == os.getpid():  # a forked child leaves its parent's folder alone
        shutil.rmtree(folder, ignore_errors=True)


def _disk_full(folder: Path, error: OSError) -> EngineError:
    msg = f"The embedded model cannot be written to {folder}: {error.strerror or error}."
    return EngineError(msg, hint="Free some space (about 150 MB), or set BPO_CACHE_DIR to a folder on another disk.")
