"""A server at the edge: an annotator that speaks the OpenAI protocol on loopback, and misbehaves as told.

It finds the instruction in each request and answers it from `pairs.jsonl` or `additions.jsonl`, in the form that was
asked for; other instructions get an answer made of their own words. With `faults` every second instruction meets one,
chosen by its digest. It counts requests and answers for each instruction. Also a process of its own:
python tests/annotator_server.py DATA [--latency S] [--faults]   (says its address on standard output).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FAULTS = (
    *("429", "500", "timeout", "dropped", "cut body", "cut answer", "cut json"),  # at the first request
    *("no end", "quoted", "fenced", "json"),  # at every request
)
HANGS = 30.0
"""Seconds that a request takes which the client should give up."""


@dataclass
class AnnotatorServer:
    """What it knows, does and has seen; `asked` and `answered` count requests by instruction."""

    rewrites: dict[str, tuple[str, str]] = field(default_factory=dict)
    additions: dict[str, str] = field(default_factory=dict)
    latency: float = 0.0
    faults: bool = False
    status: int = 200
    """Another status is what every request gets."""
    refuses_after: tuple[int, int] | None = None
    """After so many requests, every one gets this status."""
    heard: Callable[[dict[str, Any]], object] = lambda body: None
    """Called with each request's body."""
    tokens: int = 100
    """Tokens that each answer is said to have cost, half of them read."""
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    base_url: str = ""

    def read(self, data: Path) -> AnnotatorServer:
        """Learn the answers."""
        with (data / "pairs.jsonl").open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                self.rewrites[row["prompt"]] = (row["comparison"], row["optimized_prompt"])
        with (data / "additions.jsonl").open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                self.additions[row["prompt"]] = row["addition"]
        return self


def fault_of(instruction: str) -> str | None:
    """Return what goes wrong with an instruction, if anything does."""
    number = int.from_bytes(hashlib.sha256(instruction.encode()).digest()[:4], "big") % (2 * len(FAULTS))
    return FAULTS[number] if number < len(FAULTS) else None


def instruction_of(body: dict[str, Any]) -> str:
    """Return the instruction that a request is about; the whole message where there are no marks."""
    text = body["messages"][-1]["content"]
    found = re.search(r"<instruction((?:_\d+)?)>\n(.*?)\n</instruction\1>", text, re.DOTALL)
    return found[2] if found else text


def answer(server: AnnotatorServer, body: dict[str, Any], fault: str | None) -> str:
    """Return the text of an answer."""
    instruction = instruction_of(body)
    system = body["messages"][0]["content"]
    known = server.rewrites.get(instruction, ("The first says more.", f"{instruction} Explain step by step."))
    if "Addition:" in system:
        label, key, text = "Addition:", "addition", server.additions.get(instruction, "Explain each step in order.")
        text = text or "NOTHING"
    elif "Optimized Instruction:" in system:
        label, key, text = "Optimized Instruction:", "optimized_instruction", known[1]
    else:
        return f"An answer to: {instruction}"
    if fault in ("json", "cut json"):
        whole = json.dumps({"comparison": known[0], key: text})
        return whole if fault == "json" else whole[: len(whole) - len(json.dumps(text)) // 2 - 1]
    text = json.dumps(text) if fault == "quoted" else text
    end = "" if fault in ("no end", "cut answer") else "\n[END]"
    text = text[: len(text) // 2] if fault == "cut answer" else text
    whole = f"Detailed Comparison Result: {known[0]}\n{label} {text}{end}"
    return f"```\n{whole}\n```" if fault == "fenced" else whole


async def respond(server: AnnotatorServer, body: dict[str, Any]) -> tuple[int, bytes, str]:
    """Return status, body and further headers; an empty body drops the connection."""
    instruction = instruction_of(body)
    server.heard(body)
    server.asked[instruction] += 1
    if server.refuses_after and server.asked.total() > server.refuses_after[0]:
        return server.refuses_after[1], b'{"error": {"message": "no", "code": null}}', ""
    await asyncio.sleep(server.latency)
    if server.status != 200:
        return server.status, b'{"error": {"message": "no", "code": null}}', ""
    fault = fault_of(instruction) if server.faults else None
    if fault in FAULTS[:7] and server.asked[instruction] > 1:
        fault = None
    if fault:
        server.met[fault] += 1
    if fault == "429":
        return 429, b'{"error": {"message": "slow down", "code": "rate_limit_exceeded"}}', "Retry-After: 0.2\r\n"
    if fault == "500":
        return 500, b'{"error": {"message": "oops"}}', ""
    if fault == "timeout":
        await asyncio.sleep(HANGS)
    if fault == "dropped":
        return 200, b"", ""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer(server, body, fault)},
            "finish_reason": "length" if fault in ("cut answer", "cut json") else "stop",
        }
        for index in range(body.get("n", 1))
    ]
    usage = {"prompt_tokens": server.tokens // 2, "completion_tokens": server.tokens - server.tokens // 2}
    data = json.dumps({"id": "1", "object": "chat.completion", "choices": choices, "usage": usage}).encode()
    if fault == "cut body":
        return 200, data[: len(data) // 2], ""
    server.answered[instruction] += 1
    return 200, data, ""


async def serve(server: AnnotatorServer, started: threading.Event, stop: asyncio.Event) -> None:
    """Serve until told to stop."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = int(re.search(r"content-length: *(\d+)", head)[1]) if "content-length" in head else 0
                raw = await reader.readexactly(length)
                if head.startswith("get"):
                    status, data, more = 200, b'{"object": "list", "data": [{"id": "annotator"}]}', ""
                else:
                    status, data, more = await respond(server, json.loads(raw))
                if not data:
                    break
                writer.write(
                    f"HTTP/1.1 {status} .\r\nContent-Type: application/json\r\n{more}"
                    f"Content-Length: {len(data)}\r\n\r\n".encode()
                    + data
                )
                await writer.drain()
        writer.close()

    found = await asyncio.start_server(talk, "127.0.0.1", 0, limit=2**20, backlog=512)
    server.base_url = f"http://127.0.0.1:{found.sockets[0].getsockname()[1]}/v1"
    started.set()
    async with found:
        await stop.wait()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


@contextmanager
def annotator_server(data: Path | None = None, **options: Any) -> Iterator[AnnotatorServer]:
    """Run a server in a thread while the block runs.

    Args:
        data: The folder with the answers.
        options: Further fields of `AnnotatorServer`.
    """
    server = AnnotatorServer(**options)
    if data is not None:
        server.read(data)
    started, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    def run() -> None:
        loop.run_until_complete(serve(server, started, stop))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--faults", action="store_true")
    args = parser.parse_args()
    with annotator_server(args.data, latency=args.latency, faults=args.faults) as server:
        print(server.base_url, flush=True)  # noqa: T201
        threading.Event().wait()


if __name__ == "__main__":
    main()
