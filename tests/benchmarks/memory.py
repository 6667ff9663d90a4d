"""Peak memory of `bpo optimize --file` at 1,000 and at 200,000 rows, and the ratio: is it constant?

The job is the command's own, from the options on; an engine that answers at once stands in for the model, so that what
is measured is reading, pipeline, journal and output. Each row count runs in a process of its own; its peak is what the
system says of it (`getrusage`). Run: python tests/benchmarks/memory.py [--format jsonl|csv|parquet] [--put]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COUNTS = (1_000, 200_000)
ASK = 1.10
"""Most that the larger job may take of the smaller one's memory."""


class Echo:
    """An engine that adds the same sentence to everything, at once."""

    id = "echo"
    sentence = "Explain the main steps in order, with one example."

    @property
    def traits(self) -> object:
        from bpo_integrations.engines.base import Traits

        return Traits(literal=True, repeats=True, gate=False, stops=True, forks="works", coalesce=False)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def generate(self, requests: Sequence[object], decoding: object) -> list[list[object]]:
        from bpo_integrations.result import Candidate

        return [[Candidate(self.sentence, tokens=9)] for _ in requests]

    async def agenerate(self, requests: Sequence[object], decoding: object) -> list[list[object]]:
        return self.generate(requests, decoding)

    def close(self) -> None:
        return


def prompts(rows: int) -> Iterator[tuple[str, str]]:
    return ((f"row-{i}", f"How does machine number {i} work inside a large factory?") for i in range(rows))


def write(path: Path, rows: int) -> None:
    """Write the input row by row, so that making it does not cost the memory that is measured."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([("id", pa.string()), ("prompt", pa.string())])
        with pq.ParquetWriter(path, schema) as writer:
            block = []
            for row in prompts(rows):
                block.append(row)
                if len(block) == 10_000 or row[0] == f"row-{rows - 1}":
                    writer.write_table(pa.table([*map(list, zip(*block, strict=True))], schema=schema))
                    block = []
        return
    with path.open("w", encoding="utf-8") as file:
        if path.suffix == ".csv":
            file.write("id,prompt\n")
        for key, prompt in prompts(rows):
            file.write(
                f"{key},{prompt}\n" if path.suffix == ".csv" else json.dumps({"id": key, "prompt": prompt}) + "\n"
            )


def child(source: Path, target: Path) -> None:
    """Run the job and print what it took."""
    from bpo_integrations.cli.jobs import Job, run_job
    from bpo_integrations.cli.options import Settings
    from bpo_integrations.cli.rows import Fields
    from bpo_integrations.rewriter import Record, Rewriter
    from bpo_integrations.templates import PromptFormat

    rewriter = Rewriter(Echo(), Record("echo", "augment", PromptFormat(system="Improve.")))
    settings = Settings()
    started = time.perf_counter()
    tally = run_job(Job(source, target, Fields(id="id")), settings, settings.build(rewriter), lambda tally: None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"rows": tally.rows, "bytes": peak, "seconds": time.perf_counter() - started}))


def measure(kind: str, rows: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, f"in.{kind}"), Path(folder, f"out.{kind}")
        script = [sys.executable, __file__]
        subprocess.run([*script, "--make", str(source), str(rows)], check=True, cwd=ROOT)
        done = subprocess.run(
            [*script, "--child", str(source), str(target)], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        found: dict[str, float] = json.loads(done.stdout)
        assert found["rows"] == rows
        return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--format", choices=["jsonl", "csv", "parquet"], default=None, help="default: jsonl and parquet"
    )
    parser.add_argument("--put", action="store_true", help="write the table into docs/benchmarks.md")
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        write(Path(args.make[0]), int(args.make[1]))
        return
    if args.child:
        child(*args.child)
        return
    sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
    import report

    lines = []
    for kind in [args.format] if args.format else ["jsonl", "parquet"]:
        small, large = (measure(kind, rows) for rows in COUNTS)
        ratio = large["bytes"] / small["bytes"]
        rate = large["rows"] / large["seconds"]
        lines.append(
            [kind, *(f"{found['bytes'] / 1e6:.1f} MB" for found in (small, large)), f"{ratio:.3f}", f"{rate:,.0f}"]
        )
        verdict = "within" if ratio <= ASK else "MORE THAN"
        print(f"{kind}: {ratio:.3f} times the memory, {verdict} the {ASK} asked for", flush=True)
    header = ["format", *(f"peak, {rows:,} rows" for rows in COUNTS), "ratio", "rows/s at 200,000"]
    text = report.table(header, lines)
    print(f"\n{text}")
    if args.put:
        report.put(ROOT / "docs" / "benchmarks.md", "memory", f"{text}\n\n{report.stamp()}")


if __name__ == "__main__":
    main()
