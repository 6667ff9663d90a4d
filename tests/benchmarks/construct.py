"""`bpo-train construct`: rows a second with 64 requests at once against one after the other, and memory against rows.

The annotator is `tests/annotator_server.py` in a process of its own, which answers after 0.2 seconds (for memory, at
once). Rates are of the asking alone, without the start and the writing of the outputs; memory is the peak that the
system says of a process that does the whole run. Run: python tests/benchmarks/construct.py [--put]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("BPO_DATA_DIR") or ROOT.parent / "shared" / "data")
LATENCY = 0.2
CONCURRENCY = 64
ONE_BY_ONE = 20
"""Rows of the sequential side."""
COUNTS = (1_000, 20_000)
ASK_RATE = 0.75
ASK_MEMORY = 1.10


@contextmanager
def server(latency: float) -> Iterator[str]:
    command = [sys.executable, str(ROOT / "tests" / "annotator_server.py"), str(DATA), "--latency", str(latency)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def child(source: str, output: str, url: str, mode: str, concurrency: int) -> None:
    """Do a run and print what it took."""
    from bpo_train.data.backends import open_backend
    from bpo_train.data.construct import Construction, Recipe
    from bpo_train.data.filters import Filters
    from bpo_train.data.llm import Limits
    from bpo_train.data.work import Tally

    times: list[float] = []
    last: list[float] = [0.0, 0.0, 0.0]

    def progress(tally: Tally) -> None:
        if not times:
            times[:] = [time.perf_counter(), time.process_time()]
        last[:] = [time.perf_counter(), tally.asked, time.process_time()]

    # Without the two filters that remember something of each row: this is about the pipeline.
    recipe = Recipe((source,), "annotator", mode=mode, filters=Filters(near_duplicates=None, self_bleu=None))
    backend = open_backend("annotator", base_url=url)
    found = asyncio.run(Construction(recipe, Path(output)).run(backend, Limits(concurrency=concurrency), progress))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    cpu = 1000 * (last[2] - times[1]) / last[1]
    print(json.dumps({"rate": last[1] / (last[0] - times[0]), "asked": last[1], "cpu": cpu, "bytes": peak, **found}))


def measure(source: Path, url: str, mode: str, concurrency: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            "--child",
            str(source),
            f"{folder}/out",
            url,
            mode,
            str(concurrency),
        ]
        done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["failed"] == found["left"] == 0
    return found


def write(path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for place in range(rows):
            row = {
                "id": f"row-{place}",
                "instruction": f"How does machine number {place} work inside a large factory of the year {place}?",
                "good_res": f"Machine {place} turns a wheel, which moves a belt. " * 8,
                "bad_res": f"I do not know machine {place}. " * 8,
                "source": "factory",
                "licence": "MIT",
            }
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--put", action="store_true", help="write the tables into docs/benchmarks.md")
    parser.add_argument("--mode", default="rewrite")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        source, output, url, mode, concurrency = args.child
        child(source, output, url, mode, int(concurrency))
        return
    sys.path[:0] = [str(ROOT / "tests" / "benchmarks")]
    import report

    with tempfile.TemporaryDirectory() as folder:
        whole, few = DATA / "preferences.jsonl", Path(folder, "few.jsonl")
        with whole.open(encoding="utf-8") as lines:
            few.write_text("".join(line for line, _ in zip(lines, range(ONE_BY_ONE), strict=False)), encoding="utf-8")
        with server(LATENCY) as url:
            slow = measure(few, url, args.mode, 1)
            fast = measure(whole, url, args.mode, CONCURRENCY)
        share = fast["rate"] / (CONCURRENCY * slow["rate"])
        verdict = "within" if share >= ASK_RATE else "LESS THAN"
        rates = f"{slow['rate']:.2f} and {fast['rate']:.1f} rows/s"
        print(f"{rates}: {share:.2f} of {CONCURRENCY} times, {verdict} {ASK_RATE}")
        peaks = []
        with server(0.0) as url:
            for rows in COUNTS:
                source = Path(folder, f"{rows}.jsonl")
                write(source, rows)
                peaks.append(measure(source, url, args.mode, CONCURRENCY))
        ratio = peaks[1]["bytes"] / peaks[0]["bytes"]
        verdict = "within" if ratio <= ASK_MEMORY else "MORE THAN"
        sizes = " and ".join(f"{found['bytes'] / 1e6:.1f} MB" for found in peaks)
        print(f"{sizes}: {ratio:.3f} times, {verdict} 1.10")
    text = report.table(
        ["", "one by one", f"{CONCURRENCY} at once", "share of ideal", "CPU time a row", "load"],
        [
            [
                "rows/s, 0.2 s an answer",
                f"{slow['rate']:.2f}",
                f"{fast['rate']:.1f}",
                f"{share:.2f}",
                f"{fast['cpu']:.1f} ms",
                f"{os.getloadavg()[0]:.1f}",
            ]
        ],
    )
    memory = report.table(
        ["", *(f"{rows:,} rows" for rows in COUNTS), "ratio"],
        [["peak memory", *(f"{found['bytes'] / 1e6:.1f} MB" for found in peaks), f"{ratio:.3f}"]],
    )
    print(f"\n{text}\n\n{memory}")
    if args.put:
        report.put(ROOT / "docs" / "benchmarks.md", "construct", f"{text}\n\n{memory}\n\n{report.stamp()}")


if __name__ == "__main__":
    main()
