"""File jobs over a real Ray on this machine: a worker is killed, the driver is killed, and every row is there once.

Each test starts a Ray of its own, as `bpo optimize --ray` does; together they take about a minute.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from toy_model import write_adapter, write_gguf

from bpo_integrations.cli import Parts, main
from bpo_integrations.cli.cluster import OBJECT_STORE, TRIES, Cluster, check_address, import_ray
from bpo_integrations.cli.jobs import BLOCK, Job, Tally, run_job
from bpo_integrations.cli.options import Settings
from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.ctranslate2 import CTranslate2Engine
from bpo_integrations.errors import ConfigurationError
from bpo_integrations.models.adapter import LoRA
from bpo_integrations.models.convert import convert
from bpo_integrations.models.gguf_base import GGUFBase
from bpo_integrations.rewriter import RECORD_FILE, Record, Rewriter
from bpo_integrations.templates import AUGMENT_FORMAT

pytest.importorskip("ray", reason="ray is not installed (the extra 'ray')")
if not Path("/proc/self/stat").exists():
    pytest.skip("there is no /proc to find the workers in", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
ROWS = 16 * BLOCK + 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A toy model as a user's own export: its spec. It adds to about every second prompt, as its gate says."""
    folder = tmp_path_factory.mktemp("toy")
    base = GGUFBase(write_gguf(folder / "toy.gguf"))
    convert(base, folder, adapter=LoRA(write_adapter(folder / "adapter")), quantization="float32")
    record = Record("toy", "augment", AUGMENT_FORMAT, max_prompt_tokens=200, new_tokens=4)
    engine = CTranslate2Engine(folder)
    chances = Rewriter(engine, record).candidates([prompt(i) for i in range(64)], Decoding(empty_threshold=0.0))
    engine.close()
    middle = statistics.median(found[0].p_empty or 0.0 for found in chances)
    record = dataclasses.replace(record, empty_threshold=middle)
    (folder / RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
    return f"ct2:{folder}"


def prompt(number: int) -> str:
    return f"How does machine {number} work inside a large factory?"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "in.jsonl"
    rows = ({"id": f"r{i}", "prompt": prompt(i)} for i in range(ROWS))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(model: str, source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The output of an undisturbed run without Ray."""
    target = tmp_path_factory.mktemp("whole") / "out.jsonl"
    done = CliRunner().invoke(main, arguments(model, source, target))
    assert done.exit_code == 0, done.stderr
    data = target.read_bytes()
    assert len({json.loads(line)["bpo_reason"] for line in data.splitlines()}) > 1
    return data


def arguments(model: str, source: Path, target: Path, *options: str) -> list[str]:
    return ["optimize", "--model", model, "--file", str(source), "--output", str(target), *options]


def children(of: int) -> dict[int, str]:
    """Return pid and command line of everything that descends from a process."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # gone meanwhile
            continue
    found = {of}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: names[pid] for pid in found - {of} if pid in names}


def actors(of: int) -> list[int]:
    return sorted(pid for pid, name in children(of).items() if name.startswith("ray::Worker"))


def on_ray(model: str, job: Job, on_progress: object, *, workers: int = 2, strict: bool = False) -> Tally:
    settings = Settings(model=model, strict=strict)
    optimizer = settings.build()
    cluster = Cluster(settings, optimizer.rewriter.id, workers=workers)
    return run_job(job, settings, optimizer, on_progress, cluster)  # type: ignore[arg-type]


def test_a_worker_killed_half_way_changes_nothing(model: str, source: Path, whole: bytes, tmp_path: Path) -> None:
    job = Job(source, tmp_path / "out.jsonl")
    killed: list[int] = []

    def kill_one(tally: Tally) -> None:
        alive = actors(os.getpid())
        if tally.rows >= ROWS // 2 and not killed and alive:
            os.kill(alive[0], signal.SIGKILL)
            killed.append(alive[0])

    tally = on_ray(model, job, kill_one)
    assert job.target.read_bytes() == whole
    assert (tally.rows, tally.fates["failed"]) == (ROWS, 0)
    assert killed, "the job was done before a worker could be killed"
    deadline = time.monotonic() + 60  # a busy system takes its time to end processes
    while actors(os.getpid()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert actors(os.getpid()) == []


def test_a_driver_killed_half_way_loses_nothing_and_leaves_no_worker_behind(
    model: str, source: Path, whole: bytes, tmp_path: Path
) -> None:
    target = tmp_path / "out.jsonl"
    args = arguments(model, source, target, "--id-field", "id", "--ray", "--workers", "2")
    code = (
        "import time\n"
        "from bpo_integrations.cli import main, jobs\n"
        "real = jobs.Journal.add\n"
        "def slowly(self, rows, outcomes):\n"
        "    real(self, rows, outcomes)\n"
        "    print(self.count(), flush=True)\n"
        "    time.sleep(0.2)\n"
        "jobs.Journal.add = slowly\n"
        f"main({args!r})\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    safe = 0
    while safe < 4 * BLOCK:
        line = driver.stdout.readline()
        assert line, "the driver ended early"
        safe = int(line)
    working = actors(driver.pid)
    assert len(working) == 2
    driver.kill()
    driver.wait()
    assert not target.exists()
    done = CliRunner().invoke(main, arguments(model, source, target, "--id-field", "id"))  # also without Ray
    assert done.exit_code == 0, done.stderr
    assert target.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl"]
    deadline = time.monotonic() + 60
    while any(map(running, working)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(map(running, working))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_block_that_takes_every_worker_down_is_kept_and_counted(model: str, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    short = tmp_path / "in.jsonl"
    short.write_text("".join(line + "\n" for line in source.read_text().splitlines()[: 2 * BLOCK]), encoding="utf-8")
    deadly = (
        "import os, sys\n"
        "from bpo_integrations.cli import cluster, main\n"
        "class Worker(cluster.Worker):\n"
        "    def optimize(self, prompts):\n"
        "        if 'machine 0 ' in prompts[0]:\n"
        "            os.kill(os.getpid(), 9)\n"
        "        return super().optimize(prompts)\n"
        "cluster.Worker = Worker\n"
    )
    options = ("--ray", "--workers", "1")
    args = arguments(model, short, target, *options)
    done = subprocess.run([sys.executable, "-c", f"{deadly}main({args!r})"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{BLOCK} failed" in done.stderr
    assert f"{TRIES} workers died over this block" in done.stderr
    assert done.stderr.count("\n") == 1
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"r{i}" for i in range(2 * BLOCK)]
    assert [row["bpo_reason"].startswith("failed:") for row in rows] == [True] * BLOCK + [False] * BLOCK


def test_what_cannot_work_on_ray_is_said_and_a_ray_of_the_programs_own_is_used(
    model: str, source: Path, tmp_path: Path
) -> None:
    import_ray().init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=OBJECT_STORE)
    settings = Settings(model=model)
    optimizer = settings.build()

    def refused(settings: Settings = settings, rewriter: str = optimizer.rewriter.id, **options: object) -> str:
        cluster = Cluster(settings, rewriter, **options)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError) as error:
            run_job(Job(source, tmp_path / "out.jsonl"), settings, optimizer, lambda tally: None, cluster)
        return str(error.value)

    try:
        assert "do not fit" in refused(gpus=1000)
        assert "2 workers of 1 CPUs" in refused(workers=2)
        assert "this process 'other'" in refused(rewriter="other")
        assert "On a worker: " in refused(Settings(model=f"ct2:{tmp_path / 'nowhere'}"))
        assert import_ray().is_initialized()
    finally:
        import_ray().shutdown()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999999"])
def test_an_address_where_nobody_answers_is_said_at_once(address: str) -> None:
    with pytest.raises(ConfigurationError, match="Check the address after --ray"):
        check_address(address)


def test_a_ready_made_rewriter_is_refused_before_ray_starts(source: Path, tmp_path: Path) -> None:
    from fakes import fake_rewriter

    args = ["optimize", "--file", str(source), "--output", str(tmp_path / "out.jsonl"), "--ray"]
    done = CliRunner().invoke(main, args, obj=Parts(rewriter=fake_rewriter()))
    assert done.exit_code == 2
    assert "give --model" in done.stderr


@pytest.mark.parametrize("options", [["--workers", "2"], ["--worker-gpus", "1"]])
def test_options_of_ray_without_it_are_refused(options: list[str], source: Path, tmp_path: Path) -> None:
    args = ["optimize", "--file", str(source), "--output", str(tmp_path / "out.jsonl"), *options]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 2
    assert "cannot be used without --ray" in done.stderr
