"""Ways to a model: an OpenAI-compatible server, any LangChain chat model, or an engine in this process.

Promises: one request a call, no retries of their own; every failure becomes a `RequestError`, or an error that stops
the run; neither key nor prompt is in an error. Nothing is imported or loaded before it is needed.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Engine, Request
from bpo_integrations.engines.generation import check_packages
from bpo_integrations.engines.llm_calls import LangChainCalls, Settings, explained
from bpo_integrations.engines.remote import estimate_tokens, sendable
from bpo_integrations.engines.server import NO_KEY, _checked_url
from bpo_integrations.engines.server_errors import is_retryable
from bpo_integrations.errors import BPOError, ConfigurationError, EngineTimeoutError
from bpo_integrations.result import Candidate
from bpo_integrations.templates import Message
from bpo_train.data.llm import Backend, Completion, RequestError

if TYPE_CHECKING:
    from aiohttp import ClientSession

OPENAI = "https://api.openai.com/v1"

STOPPING_STATUSES = frozenset({401, 403, 404})
"""HTTP statuses that every further request would meet, too."""


def open_backend(
    spec: str,
    *,
    base_url: str | None = None,
    temperature: float = 0.9,
    max_tokens: int = 1024,
    timeout: float = 120.0,
    base: str | None = None,
    key: str | None = None,
) -> Backend:
    """Return the way to the model that a spec names.

    Args:
        spec: `openai:NAME`, or with `base_url` any name; in this process `vllm:MODEL` or `hf:MODEL`, an id or a folder
            of whole weights or of a PEFT adapter, or `embedded`, the small base as a chat model; else what LangChain's
            `init_chat_model` knows.
        base_url: The address of an OpenAI-compatible server, for example `http://localhost:8000/v1`.
        temperature: The paper annotates at 0.9 (section 3.2).
        max_tokens: Most tokens of an answer.
        timeout: Seconds that a request may take; a model in this process takes as long as it takes.
        base: For an adapter of `hf:` or `vllm:`, the base to put it on, instead of the one that it names.
        key: The key of an OpenAI-compatible server; None takes `BPO_API_KEY`, then `OPENAI_API_KEY`.

    Raises:
        MissingExtraError: A package that it needs is not installed.
        ConfigurationError: The spec cannot work.
    """
    kind, _, name = spec.partition(":")
    if kind == "vllm" and name:
        return EngineBackend(_vllm(name, base), temperature, max_tokens)
    if base_url is None and (spec == "embedded" or (kind == "hf" and name)):
        from bpo_train.data.local import BatchBackend, chat_engine

        return BatchBackend(chat_engine(spec, base=base), temperature, max_tokens)
    if base_url is not None or (kind == "openai" and name):
        model = name if kind == "openai" and name else spec
        return ServerBackend(model, base_url, temperature, max_tokens, timeout, key)
    return ChatModelBackend(_chat_model(spec), temperature, max_tokens, timeout)


class ServerBackend:
    """An OpenAI-compatible server.

    It is asked with aiohttp, for which a request costs a fifth of the CPU time that the `openai` client takes; with a
    hundred requests at once that decides how many rows a second there are.

    Args:
        model: The model's name there.
        base_url: Its address; None is `OPENAI_BASE_URL`, or OpenAI's own.
        temperature: As in `open_backend`.
        max_tokens: As in `open_backend`.
        timeout: As in `open_backend`.
        key: As in `open_backend`.

    Raises:
        MissingExtraError: aiohttp is not installed.
        ConfigurationError: There is no key, or the address is none.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None,
        temperature: float,
        max_tokens: int,
        timeout: float,
        key: str | None = None,
    ) -> None:
        check_packages(("aiohttp",), extra="train")
        url = base_url or os.environ.get("OPENAI_BASE_URL")
        key = key or os.environ.get("BPO_API_KEY") or os.environ.get("OPENAI_API_KEY")
        if url is None and not key:
            msg = f"The model openai:{model} needs a key."
            raise ConfigurationError(msg, hint="Set OPENAI_API_KEY, or give --base-url for a server of your own.")
        self._url = OPENAI if url is None else _checked_url(url).rstrip("/")
        self._headers = {"Authorization": f"Bearer {key or NO_KEY}"}
        self._timeout = timeout
        self._session: ClientSession | None = None
        self._where = f"{model} at {urlsplit(self._url).hostname}"
        # OpenAI's newer models know only the new name, other servers often only the old one.
        limit = "max_completion_tokens" if url is None else "max_tokens"
        self._body: dict[str, Any] = {"model": model, "temperature": temperature, limit: max_tokens}

    async def complete(self, messages: Sequence[Message], n: int) -> Completion:
        """Return up to `n` answers."""
        from aiohttp import ClientError

        body = {**self._body, "messages": sendable(messages), **({"n": n} if n > 1 else {})}
        try:
            async with self._opened().post(f"{self._url}/chat/completions", json=body) as response:
                status, headers, text = response.status, response.headers, await response.text()
        except TimeoutError as error:
            raise RequestError("timeout", again=True) from error
        except (ClientError, OSError) as error:
            raise RequestError("connection lost", again=True) from error
        except ValueError as error:
            raise RequestError("unreadable answer", again=True) from error
        if status in STOPPING_STATUSES or (status == 429 and "insufficient_quota" in text):
            msg = f"The server answered with HTTP status {status} ({self._where})."
            raise ConfigurationError(msg, hint=await self._hint(status))
        if status != 200:
            reason = f"HTTP status {status}"
            raise RequestError(reason, again=is_retryable(status), wait=retry_after(headers))
        try:
            return _completion(text)
        except ValueError as error:
            raise RequestError("unreadable answer", again=True) from error

    async def close(self) -> None:
        """Drop the connections."""
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> ClientSession:
        from aiohttp import ClientSession, ClientTimeout, TCPConnector

        if self._session is None:  # it belongs to the event loop that it is made on
            self._session = ClientSession(
                headers=self._headers,
                timeout=ClientTimeout(total=self._timeout),
                connector=TCPConnector(limit=0),  # the annotator bounds the requests
                trust_env=True,
            )
        return self._session

    async def _hint(self, status: int) -> str:
        if status == 429:
            return "The account has no credit left; the same command goes on from here."
        if status != 404:
            return "The key is wrong: set OPENAI_API_KEY, or BPO_API_KEY."
        from aiohttp import ClientError

        try:
            async with self._opened().get(f"{self._url}/models") as response:
                names = sorted(str(model["id"]) for model in (await response.json())["data"])
        except (ClientError, OSError, ValueError, KeyError, TypeError):
            return "Check the model's name, and that the address ends in /v1."
        return f"The server has: {', '.join(names[:20]) or 'no model'}."


def _completion(text: str) -> Completion:
    """Read the JSON of a chat completion.

    Raises:
        ValueError: It is none.
    """
    data = json.loads(text)
    try:
        choices, usage = data["choices"], data.get("usage") or {}
        texts = tuple(choice["message"].get("content") or "" for choice in choices)
        ended = tuple(choice.get("finish_reason") in ("stop", None) for choice in choices)
        read, written = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
    except (KeyError, TypeError, AttributeError) as error:
        msg = "no chat completion"
        raise ValueError(msg) from error
    if not texts:
        msg = "no choices"
        raise ValueError(msg)
    return Completion(texts, ended, read, written or sum(map(estimate_tokens, texts)))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a server asks to wait, or None.

    Example:
        >>> retry_after({"retry-after": "2"})
        2.0
    """
    try:
        if "retry-after-ms" in headers:
            return float(headers["retry-after-ms"]) / 1000
        value = headers.get("retry-after", "")
        if value.strip().replace(".", "", 1).isdigit():
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time()) if value else None
    except ValueError:
        return None


class ChatModelBackend:
    """A LangChain chat model."""

    def __init__(self, llm: Any, temperature: float, max_tokens: int, timeout: float) -> None:
        self._calls = LangChainCalls(llm)
        self._settings = Settings(max_tokens=max_tokens, temperature=temperature)
        self._timeout = timeout

    async def complete(self, messages: Sequence[Message], n: int) -> Completion:
        """Return one answer, whatever `n`: not every provider gives more."""
        try:
            async with asyncio.timeout(self._timeout):
                reply = await self._calls.acall(messages, self._settings)
        except Exception as error:  # whatever a provider's client raises
            raise _classified(error, self._calls.label) from error
        # The reply does not tell what was read, so that is estimated.
        read = sum(estimate_tokens(message["content"]) for message in messages)
        return Completion((reply.text,), (reply.finished,), read, reply.tokens or estimate_tokens(reply.text))

    async def close(self) -> None:
        """The client is the model's own."""


def _classified(error: Exception, label: str) -> BPOError:
    response = getattr(error, "response", None)
    status = getattr(error, "status_code", None) or getattr(response, "status_code", None)
    if status in STOPPING_STATUSES:
        msg = f"{label} refuses every request (HTTP status {status})."
        return ConfigurationError(msg, hint="Check the key and the model's name.")
    found = explained(error, label)
    if isinstance(found, EngineTimeoutError):
        return RequestError("timeout", again=True)
    reason = f"HTTP status {status}" if status else type(error).__name__
    return RequestError(reason, again=found.retryable, wait=retry_after(getattr(response, "headers", None) or {}))


class EngineBackend:
    """An engine in this process, which makes batches of what is asked at once.

    Attributes:
        repeats: Whether the same request gets the same answer, so that asking again is of no use.
    """

    def __init__(self, engine: Engine, temperature: float, max_tokens: int) -> None:
        self.engine = engine
        self.repeats = temperature == 0
        self._temperature = temperature
        self._max_tokens = max_tokens

    async def complete(self, messages: Sequence[Message], n: int) -> Completion:
        """Return `n` answers, or one where they would all be the same."""
        request = Request(tuple(messages), max_new_tokens=self._max_tokens)
        decoding = Decoding(temperature=self._temperature, n=n if self._temperature else 1)
        try:
            found, seconds = await self.candidates(request, decoding)
            read = sum(self.engine.count_tokens([message["content"] for message in messages]))
        except ConfigurationError:
            raise
        except BPOError as error:
            raise RequestError(type(error).__name__, again=error.retryable) from error
        return Completion(
            tuple(candidate.text for candidate in found),
            tuple(candidate.finish_reason == "stop" for candidate in found),
            read,
            sum(candidate.tokens for candidate in found),
            seconds,
        )

    async def candidates(self, request: Request, decoding: Decoding) -> tuple[list[Candidate], float]:
        """Return what the engine generates, and the seconds that it took, or 0 where the caller measures them."""
        (found,) = await self.engine.agenerate([request], decoding)
        return found, 0.0

    async def close(self) -> None:
        """Release the weights."""
        self.engine.close()


def _vllm(model: str, base: str | None) -> Engine:
    from bpo_integrations.engines.vllm import load_vllm
    from bpo_integrations.rewriter import Record
    from bpo_integrations.templates import PromptFormat

    # The record is only for the rewriter around the engine, which is not used here.
    return load_vllm(model, base=base, record=Record(model, "rewrite", PromptFormat(system=None))).engine


def _chat_model(spec: str) -> Any:
    from bpo_integrations.engines.chat_model import _built

    return _built(spec, {})
