"""Asks a trained rewriter behind an OpenAI-compatible server: vLLM, llama.cpp's server, Ollama, or the like.

Promises: no network before the first call; many requests at once, but never more than `concurrency` over all callers;
cancelling a call drops its connections at once; the key is in no repr, id, error or log. The server tokenizes, and
batches: whether a special token inside the prompt stays text, and whether a seed repeats, is up to it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Request, Traits
from bpo_integrations.engines.generation import check_packages
from bpo_integrations.engines.loop_thread import LoopThread
from bpo_integrations.engines.remote import estimate_tokens, sendable, settle_rows
from bpo_integrations.engines.server_errors import explained
from bpo_integrations.errors import ConfigurationError, EngineClosedError, EngineError
from bpo_integrations.result import Candidate, Mode
from bpo_integrations.rewriter import BUILT_IN_RECORDS, RECORD_FILE, Record, Rewriter

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion
    from openai.types.chat.chat_completion import Choice

logger = logging.getLogger(__name__)

NO_KEY = "no-key"
"""Sent where no key is given: local servers need none, but the client insists on one."""


class ServerEngine:
    """An engine for one model behind an OpenAI-compatible server.

    Args:
        model: The model's name, as the server calls it.
        base_url: For example `http://localhost:8000/v1`; None takes `OPENAI_BASE_URL`.
        api_key: None takes `BPO_API_KEY`, then `OPENAI_API_KEY`; without any, a placeholder is sent.
        concurrency: Most requests under way at once, over all threads and event loops.
        timeout: Seconds that one attempt may take.
        max_retries: Further attempts after a lost connection, a timeout, or HTTP 408, 409, 429 and 5xx; `Retry-After`
            is heeded.
        vllm: Whether the server is vLLM, which is then also told `decoding.banned` and the least number of tokens.
        extra_body: Sent with every request as it is, for options of the server's own.

    Raises:
        MissingExtraError: openai is not installed.
        ConfigurationError: An option cannot work.

    Example:
        >>> engine = ServerEngine("rewriter", base_url="http://localhost:8000/v1")  # doctest: +SKIP
        >>> engine.generate([Request(({"role": "user", "content": "Hi"},))], Decoding())  # doctest: +SKIP
        [[Candidate(text='Hello!', ...)]]
    """

    traits = Traits(literal=False, repeats=False, gate=False, stops=True, forks="works", coalesce=False)

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        concurrency: int = 16,
        timeout: float = 60.0,
        max_retries: int = 2,
        vllm: bool = False,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        check_packages(("openai",), extra="server")
        from pydantic import SecretStr  # the client brings it

        for ok, what in (
            (concurrency >= 1, f"concurrency is {concurrency}; it must be 1 or more"),
            (timeout > 0, f"timeout is {timeout}; it must be more than 0 seconds"),
            (max_retries >= 0, f"max_retries is {max_retries}; it must be 0 or more"),
        ):
            if not ok:
                msg = f"Impossible server option: {what}."
                raise ConfigurationError(msg, hint="Correct it, or leave it out.")
        self.model = model
        self._url = _checked_url(base_url or os.environ.get("OPENAI_BASE_URL"))
        key = api_key or os.environ.get("BPO_API_KEY") or os.environ.get("OPENAI_API_KEY")
        self._key = SecretStr(key or NO_KEY)
        self._concurrency = concurrency
        self._timeout = timeout
        self._max_retries = max_retries
        self._vllm = vllm
        self._extra_body = dict(extra_body or {})
        self._closed = False
        self._locks: dict[int, threading.Lock] = {}  # a lock by process: a fork may copy one that is held
        self._lines: dict[int, _Line] = {}  # the parent's stays, unused: tearing it down would disturb the parent

    @property
    def id(self) -> str:
        """Names the model and the server; neither key nor user is in it."""
        url = urlsplit(self._url)
        extras = (self._vllm, sorted(self._extra_body.items()))
        more = f"+{hashlib.sha256(repr(extras).encode()).hexdigest()[:8]}" if any(extras) else ""
        return f"server:{self.model}@{url.netloc.rpartition('@')[2]}{url.path}{more}"

    def __repr__(self) -> str:
        return f"ServerEngine({self.id!r})"

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return estimates, of a token for every four bytes: the tokenizer is on the server. Never blocks."""
        return [estimate_tokens(text) for text in texts]

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        """Return candidates for each request, in order; the requests go out at the same time.

        A request that fails for good is left without a candidate, as long as another one of the call succeeds.

        Raises:
            EngineTimeoutError: The server did not answer in time.
            PromptTooLongError: The messages do not fit into the model's context.
            EngineClosedError: The engine was closed.
            EngineError: The server cannot be reached, refuses, or is in trouble.
        """
        if not requests:
            return []
        future = self._submit(requests, decoding)
        try:
            return future.result()
        except BaseException:  # an interrupt: what is still under way is dropped
            future.cancel()
            raise

    async def agenerate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        """As `generate`, without blocking the event loop. When the task is cancelled, the connections are dropped."""
        if not requests:
            return []
        future = self._submit(requests, decoding)
        try:
            return await asyncio.wrap_future(future)
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Drop the connections; calls under way raise EngineClosedError."""
        with self._lock():  # so that no call slips in between
            self._closed = True
            line = self._lines.get(os.getpid())
            if line is not None:
                line.loop.stop()

    def _submit(self, requests: Sequence[Request], decoding: Decoding) -> Future[list[list[Candidate]]]:
        with self._lock():
            if self._closed:
                raise self._closed_error()
            line = self._lines.get(os.getpid())
            if line is None:
                line = self._lines[os.getpid()] = self._open()
            return line.loop.submit(self._rows(line, requests, decoding))

    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def _open(self) -> _Line:
        from openai import AsyncOpenAI

        client = AsyncOpenAI(
            base_url=self._url,
            api_key=self._key.get_secret_value(),
            timeout=self._timeout,
            max_retries=self._max_retries,
        )
        loop = LoopThread("bpo-server", client.close)
        weakref.finalize(self, loop.stop)
        return _Line(client, asyncio.Semaphore(self._concurrency), loop)

    async def _rows(self, line: _Line, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        try:
            rows = (self._row(line, request, decoding) for request in requests)
            return settle_rows(await asyncio.gather(*rows, return_exceptions=True))
        except asyncio.CancelledError:
            if self._closed:
                raise self._closed_error() from None
            raise

    async def _row(self, line: _Line, request: Request, decoding: Decoding) -> list[Candidate]:
        from openai import OpenAIError

        found: list[Candidate] = []
        try:
            while len(found) < decoding.n:  # a server that does not know `n` gives one at a time
                body = self._body(request, decoding, len(found))
                async with line.slots:
                    answer = await line.client.chat.completions.create(**body)
                if not answer.choices:
                    msg = f"The server answered without any choice ({self.id})."
                    raise EngineError(msg, hint="Check the server.")
                found += _candidates(answer)
        except OpenAIError as error:
            logger.debug("%s: %s", self.id, str(error).replace(self._key.get_secret_value(), "***")[:500])
            raise await explained(error, self.id, line.client) from None  # the server's words may hold prompt or key
        return found[: decoding.n]

    def _body(self, request: Request, decoding: Decoding, drawn: int) -> dict[str, Any]:
        """Return one request's arguments, when `drawn` candidates are there already."""
        extra = dict(self._extra_body)
        if self._vllm:
            extra |= {"min_tokens": request.min_new_tokens} if request.min_new_tokens else {}
            extra |= {"bad_words": list(decoding.banned)} if decoding.banned else {}
        body: dict[str, Any] = {
            "model": self.model,
            "messages": sendable(request.messages),
            "max_tokens": request.max_new_tokens,
            # Said even where they are usual: a server may have other defaults, from the model's generation_config.json.
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
        }
        if decoding.n - drawn > 1:
            body["n"] = decoding.n - drawn
        if decoding.stop:
            body["stop"] = list(decoding.stop)
        if decoding.seed is not None and not decoding.greedy:
            body["seed"] = decoding.seed + drawn
        if extra:
            body["extra_body"] = extra
        return body

    def _closed_error(self) -> EngineClosedError:
        return EngineClosedError(f"The engine {self.id} is closed.", hint="Make a new one.")


@dataclass(frozen=True, slots=True)
class _Line:
    """A process's connection to the server: the client, the bound on its requests, and the loop that both live on."""

    client: AsyncOpenAI
    slots: asyncio.Semaphore
    loop: LoopThread


def _candidates(answer: ChatCompletion) -> list[Candidate]:
    """Return a candidate for each choice; the server tells the tokens of all choices together."""
    total = answer.usage.completion_tokens if answer.usage else 0
    share, rest = divmod(total, len(answer.choices))
    return [_candidate(choice, share + (place < rest)) for place, choice in enumerate(answer.choices)]


def _candidate(choice: Choice, tokens: int) -> Candidate:
    text = choice.message.content or ""
    finished = choice.finish_reason in ("stop", None)  # not: length, content_filter, tool_calls
    return Candidate(text, tokens or estimate_tokens(text), finish_reason="stop" if finished else "length")


def _checked_url(url: str | None) -> str:
    if not url:
        msg = "A rewriter behind a server needs the server's address."
        raise ConfigurationError(msg, hint="Give base_url='http://HOST:PORT/v1', or set OPENAI_BASE_URL.")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        msg = "base_url is no http address."  # it may hold a password, so it is not repeated
        raise ConfigurationError(msg, hint="Give one like 'http://localhost:8000/v1'.")
    return url


def load_server(
    model: str,
    *,
    record: Record | str | os.PathLike[str] | None = None,
    mode: Mode | None = None,
    **options: Any,
) -> Rewriter:
    """Return a trained rewriter behind an OpenAI-compatible server.

    Args:
        model: The model's name, as the server calls it.
        record: How the model was trained to be asked: a `Record`, or the path of its `bpo.json` or the folder with it.
            None knows THUDM/BPO; for a model of the embedded models' formats `mode=` is enough.
        mode: `augment` or `rewrite`.
        options: Passed to `ServerEngine`: `base_url=`, `api_key=`, `concurrency=`, `timeout=`, `max_retries=`, `vllm=`,
            `extra_body=`.

    Raises:
        MissingExtraError: openai is not installed.
        ConfigurationError: Nothing says how the model is to be asked, there is no address, or an option is wrong.

    Example:
        >>> load_server("THUDM/BPO", base_url="http://localhost:8000/v1").mode
        'rewrite'
    """
    return Rewriter(ServerEngine(model, **options), _find_record(model, record, mode))


def _find_record(model: str, record: Record | str | os.PathLike[str] | None, mode: Mode | None) -> Record:
    if isinstance(record, Record):
        return record
    if record is not None:
        path = Path(record).expanduser()
        return Record.read(path.parent if path.name == RECORD_FILE else path)
    for name, known in BUILT_IN_RECORDS.items():
        if model == name or model.endswith(f"/{name}"):
            return known
    if mode is None:
        msg = f"Nothing says how the model {model!r} is to be asked."
        hint = (
            "Give record='path/to/bpo.json', or mode= for a model that was trained in the embedded models' formats; "
            "an LLM that was never trained to rewrite wants a spec such as 'openai:gpt-4o-mini'."
        )
        raise ConfigurationError(msg, hint=hint)
    embedded = Record.read(Path(__file__).parents[1] / "models" / mode)
    return replace(embedded, name=model)
