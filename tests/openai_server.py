"""A server at the edge: an OpenAI-compatible HTTP server on loopback, for engines that ask one.

It answers `/v1/chat/completions` and `/v1/models`, checks the key, and misbehaves as told: `answer` returns the text
for a request's body, or a `Reply` with a status, headers, a delay, or a connection that is dropped.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """One answer: choices' texts, or an error's status, after `seconds`; `drop` closes the connection instead.

    `cut` sends only half of the body, as whole.
    """

    texts: tuple[str, ...] = ()
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    message: str = "no"
    seconds: float = 0.0
    drop: bool = False
    finish: str = "stop"
    cut: bool = False


def user_text(body: Body) -> str:
    """Return the text of the last message."""
    return str(body["messages"][-1]["content"])


@dataclass
class OpenAIServer:
    """What the server has seen: `bodies` and `headers` (names in small letters) of chat requests, as they came."""

    answer: Callable[[Body], str | Reply] = user_text
    models: tuple[str, ...] = ("rewriter",)
    key: str | None = None
    honours_n: bool = True
    bodies: list[Body] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    busy: int = 0
    most_busy: int = 0
    left: int = 0
    """Requests whose client went away before the answer."""
    base_url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def openai_server(answer: Callable[[Body], str | Reply] = user_text, **options: Any) -> Iterator[OpenAIServer]:
    """Run a server while the block runs.

    Args:
        answer: The text, or the `Reply`, for a chat request's body.
        options: Further fields of `OpenAIServer`.
    """
    state = OpenAIServer(answer, **options)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def send(
            self, status: int, data: object, headers: tuple[tuple[str, str], ...] = (), *, cut: bool = False
        ) -> None:
            payload = json.dumps(data).encode()
            payload = payload[: len(payload) // 2] if cut else payload
            self.send_response(status)
            for name, value in (*headers, ("Content-Type", "application/json"), ("Content-Length", str(len(payload)))):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(payload)

        def allowed(self) -> bool:
            if state.key is None or self.headers.get("Authorization") == f"Bearer {state.key}":
                return True
            given = self.headers.get("Authorization", "")
            self.send(401, {"error": {"message": f"Incorrect API key provided: {given}", "code": "invalid_api_key"}})
            return False

        def do_GET(self) -> None:
            if self.allowed():
                self.send(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in state.models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.allowed():
                return
            with state.lock:
                state.bodies.append(body)
                state.headers.append({name.lower(): value for name, value in self.headers.items()})
                state.busy += 1
                state.most_busy = max(state.most_busy, state.busy)
            try:
                self.reply(body)
            finally:
                with state.lock:
                    state.busy -= 1

        def reply(self, body: Body) -> None:
            if body["model"] not in state.models:
                message = f"The model `{body['model']}` does not exist."
                self.send(404, {"error": {"message": message, "code": "model_not_found"}})
                return
            found = state.answer(body)
            reply = found if isinstance(found, Reply) else Reply((found,))
            if self.went_away(reply.seconds):
                with state.lock:
                    state.left += 1
                self.close_connection = True
                return
            if reply.drop:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            elif reply.status != 200:
                self.send(reply.status, {"error": {"message": reply.message, "code": None}}, reply.headers)
            else:
                self.send(200, completion(body, reply, state.honours_n), cut=reply.cut)

        def went_away(self, seconds: float) -> bool:
            """Wait, unless the client closes the connection meanwhile."""
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                if select.select([self.connection], [], [], left)[0]:
                    return not self.connection.recv(1, socket.MSG_PEEK)
            return False

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *args: object) -> None:
            """A client that goes away is no error of the server's."""

    server = Server(("127.0.0.1", 0), Handler)
    state.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def completion(body: Body, reply: Reply, honours_n: bool) -> Body:
    """Return the JSON of a chat completion; a word is a token."""
    wanted = body.get("n", 1) if honours_n else 1
    texts = [reply.texts[index % len(reply.texts)] for index in range(wanted)]
    words = sum(len(text.split()) for text in texts)
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [
            {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": reply.finish}
            for index, text in enumerate(texts)
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": words, "total_tokens": words + 1},
    }
