"""The cache of converted models: whole or not at all, whatever happens to the processes, the disk or the files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bpo_integrations.errors import EngineError, ModelFormatError
from bpo_integrations.models.store import cache_root, is_whole, stored

SIZE = 3_000_000

WORKER = """
import sys, time, resource
from pathlib import Path
from bpo_integrations.errors import BPOError
from bpo_integrations.models.store import stored

root, seconds, limit = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

def build(folder):
    print("building", flush=True)
    with (folder / "model.bin").open("wb") as file:
        for part in range(30):
            file.write(bytes([part]) * 100_000)
            file.flush()
            time.sleep(seconds / 30)

try:
    print(stored(root, "key", build), flush=True)
except BPOError as error:
    print("error:", error, flush=True)
"""


def worker(root: Path, *, seconds: float = 0.0, limit: int = 0, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(root), str(seconds), str(limit)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def build(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"weights" * 1000)
    (folder / "config.json").write_text("{}")


def counted() -> tuple[list[Path], Callable[[Path], None]]:
    calls: list[Path] = []

    def counting(folder: Path) -> None:
        calls.append(folder)
        build(folder)

    return calls, counting


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.name not in ("key", ".lock")]


def test_a_folder_is_built_once_and_found_again(tmp_path: Path) -> None:
    calls, counting = counted()
    first = stored(tmp_path / "cache", "key", counting)
    assert stored(tmp_path / "cache", "key", counting) == first == tmp_path / "cache" / "key"
    assert len(calls) == 1
    assert (first / "model.bin").read_bytes() == b"weights" * 1000
    assert not leftovers(tmp_path / "cache")


def test_two_processes_at_once_build_one_folder_and_both_get_it(tmp_path: Path) -> None:
    processes = [worker(tmp_path, seconds=1.0) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [lines[-1] for lines in outputs] == [str(tmp_path / "key")] * 2
    assert sum(lines.count("building") for lines in outputs) == 1
    assert is_whole(tmp_path / "key")
    assert not leftovers(tmp_path)


def test_a_process_killed_in_the_middle_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    process = worker(tmp_path, seconds=30)
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"
    while not any(path.stat().st_size for path in tmp_path.glob("*.tmp/model.bin")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "key").exists()
    assert leftovers(tmp_path)  # what it was writing
    assert stored(tmp_path, "key", build) == tmp_path / "key"
    assert not leftovers(tmp_path)  # cleaned by the next who builds


def test_a_disk_that_is_full_is_one_clear_error_and_nothing_stays(tmp_path: Path) -> None:
    output, _ = worker(tmp_path, limit=SIZE // 2).communicate(timeout=60)
    assert "error: The embedded model cannot be written" in output
    assert "BPO_CACHE_DIR" in output
    assert not leftovers(tmp_path)
    assert not (tmp_path / "key").exists()
    assert stored(tmp_path, "key", build) == tmp_path / "key"  # once there is space again


def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    calls, counting = counted()
    folder = stored(tmp_path / "file", "key", counting)
    assert is_whole(folder)
    assert stored(tmp_path / "file", "key", counting) == folder
    assert len(calls) == 1


def test_the_temporary_folder_goes_with_its_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "temporary").mkdir()
    output, _ = worker(tmp_path / "file", TMPDIR=str(tmp_path / "temporary")).communicate(timeout=60)
    assert str(tmp_path / "temporary") in output
    assert not list((tmp_path / "temporary").iterdir())


def test_a_full_disk_under_the_temporary_folder_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "temporary").mkdir()
    process = worker(tmp_path / "file", limit=SIZE // 2, TMPDIR=str(tmp_path / "temporary"))
    assert "error: The embedded model cannot be written" in process.communicate(timeout=60)[0]
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_enospc_from_the_system_itself_is_understood(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        Path("/dev/full").write_bytes(b"x")

    with pytest.raises(EngineError, match="No space left on device"):
        stored(tmp_path, "key", fill)
    assert not leftovers(tmp_path)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / "model.bin"),
        lambda folder: (folder / "model.bin").write_bytes(b"weights" * 999),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text('{"schema": 1'),
        lambda folder: (folder / "manifest.json").write_text("[]"),
    ],
    ids=["one bit", "cut off", "file missing", "manifest missing", "manifest cut", "manifest of another kind"],
)
def test_damage_is_found_and_the_folder_made_anew_once(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    calls, counting = counted()
    folder = stored(tmp_path, "key", counting)
    damage(folder)
    assert stored(tmp_path, "key", counting) == folder
    assert stored(tmp_path, "key", counting) == folder
    assert len(calls) == 2
    assert is_whole(folder)


def test_what_cannot_be_read_back_is_an_error_and_not_a_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpo_integrations.models.store.is_whole", lambda folder: False)
    calls, counting = counted()
    with pytest.raises(ModelFormatError, match="cannot be read back"):
        stored(tmp_path, "key", counting)
    assert len(calls) == 1


def test_an_error_of_the_builder_reaches_the_caller_and_nothing_stays(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        build(folder)
        raise ModelFormatError("wrong", hint="")

    with pytest.raises(ModelFormatError, match="wrong"):
        stored(tmp_path, "key", fail)
    assert not leftovers(tmp_path)
    assert not (tmp_path / "key").exists()


def test_the_folder_given_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPO_CACHE_DIR", str(tmp_path / "environment"))
    assert cache_root(tmp_path / "given") == tmp_path / "given"
    assert cache_root() == tmp_path / "environment"
    monkeypatch.delenv("BPO_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert cache_root() == tmp_path / "xdg" / "bpo-integrations"
