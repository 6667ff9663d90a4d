"""A rewriter: an engine, the prompt format its model was trained with, and what the model can do.

The record is stored as `bpo.json` beside exported weights. `load_rewriter(spec)` is the one door to every rewriter;
it checks what can be checked without loading weights, so that a wrong configuration raises at construction.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Engine, Request
from bpo_integrations.engines.batching import coalesced
from bpo_integrations.errors import ConfigurationError, EngineError, ModelFormatError
from bpo_integrations.result import Candidate, Mode, Violation
from bpo_integrations.templates import PAPER_FORMAT, PromptFormat

logger = logging.getLogger(__name__)

RECORD_FILE = "bpo.json"
LONGEST_TURN = 2000
"""Characters of an earlier turn that the model is shown in any case."""
RECORD_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Record:
    """What `bpo.json` says about a rewriter.

    Args:
        name: Its name.
        mode: What its output means: `augment` (what to add) or `rewrite` (the whole prompt).
        format: How a prompt is put to it.
        base: The base model's id.
        languages: ISO 639-1 codes of the languages it knows; empty means any.
        max_prompt_tokens: Longest prompt that it is given.
        new_tokens: Budget of new tokens that does not depend on the prompt.
        new_tokens_per_token: Budget of new tokens for each token of the prompt.
        empty_threshold: Augment only: add nothing where the model's probability of adding nothing is at least this.
        repetition_penalty: The penalty on repeated tokens that it decodes best with; 1 is none.
    """

    name: str
    mode: Mode
    format: PromptFormat
    base: str = ""
    languages: tuple[str, ...] = ()
    max_prompt_tokens: int = 1024
    new_tokens: int = 64
    new_tokens_per_token: float = 0.0
    empty_threshold: float | None = None
    repetition_penalty: float = 1.0

    def budget(self, prompt_tokens: int) -> int:
        """Return the largest number of new tokens for a prompt of `prompt_tokens` tokens."""
        return self.new_tokens + int(self.new_tokens_per_token * prompt_tokens)

    def to_json(self) -> str:
        """Return the text of `bpo.json`."""
        return json.dumps({"schema": RECORD_SCHEMA, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = RECORD_FILE) -> Record:
        """Read `bpo.json`.

        Raises:
            ModelFormatError: It is not JSON, is of another schema, or has a field missing, unknown or of a wrong kind.
        """
        hint = "Export the weights again with this version of bpo-train."
        try:
            data = json.loads(text)
            if data.pop("schema", None) != RECORD_SCHEMA:
                msg = f"{where} is not of schema {RECORD_SCHEMA}."
                raise ModelFormatError(msg, hint=hint)
            data["format"] = PromptFormat(**data["format"])
            data["languages"] = tuple(data.get("languages", ()))
            record = cls(**data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, ModelFormatError):
                raise
            msg = f"{where} cannot be used: {error}."
            raise ModelFormatError(msg, hint=hint) from error
        if record.mode not in ("augment", "rewrite"):
            msg = f"{where} has the unknown mode {record.mode!r}."
            raise ModelFormatError(msg, hint=hint)
        return record

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read `bpo.json` in `folder`.

        Raises:
            ModelFormatError: There is none, or it cannot be used.
        """
        path = folder / RECORD_FILE
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            msg = f"{folder} holds no {RECORD_FILE}."
            raise ModelFormatError(msg, hint="Export the weights with bpo-train, which writes it.") from error
        return cls.from_json(text, where=str(path))


PAPER_RECORD = Record(
    name="THUDM/BPO",
    mode="rewrite",
    format=PAPER_FORMAT,
    base="meta-llama/Llama-2-7b-chat-hf",
    languages=("en",),
    max_prompt_tokens=2048,
    new_tokens=1024,
)
"""The paper's own model, which carries no bpo.json: its template and its 1,024 new tokens (model card)."""

BUILT_IN_RECORDS = {"THUDM/BPO": PAPER_RECORD, "zai-org/BPO": replace(PAPER_RECORD, name="zai-org/BPO")}


class Rewriter:
    """Asks an engine for candidates, in the words that its model was trained with.

    Calls that arrive together, from any thread or event loop, go to the engine as one batch where its traits say that
    this is faster (`engines/batching.py`).

    Args:
        engine: Runs the model.
        record: What the model can do.
        parse: Unwraps what the model wrote, for models that were not trained to write the candidate alone.

    Example:
        >>> rewriter = load_rewriter("embedded")  # doctest: +SKIP
        >>> rewriter.candidates(["Tell me about Harry Potter"])[0][0].text  # doctest: +SKIP
        'Cover the main characters, ...'
    """

    def __init__(self, engine: Engine, record: Record, parse: Callable[[str], str] | None = None) -> None:
        self.engine = engine
        self._source = coalesced(engine)
        self.record = record
        self.parse = parse

    @property
    def id(self) -> str:
        """Names the weights, their format and how they run; part of the cache's key."""
        return f"{self.record.name}:{self.record.mode}:{_digest(self.record)}@{self.engine.id}"

    @property
    def mode(self) -> Mode:
        """What the candidates mean."""
        return self.record.mode

    @property
    def uses_history(self) -> bool:
        """Whether the model is shown the turns before the prompt."""
        return bool(self.record.format.history)

    def candidates(
        self,
        prompts: Sequence[str],
        decoding: Decoding | None = None,
        histories: Sequence[Sequence[str]] | None = None,
    ) -> list[list[Candidate]]:
        """Return candidates for each prompt, in order; the whole batch goes to the engine in one call.

        A prompt that is too long for the model gets one candidate, marked with a violation.

        Args:
            prompts: The users' turns.
            decoding: How to draw candidates; None is greedy.
            histories: For each prompt the turns and answers before it, oldest first; for models that use them.
        """
        if not prompts:
            return []
        asked = self._ask(prompts, decoding or Decoding(), histories)
        return asked.answer(self._source.generate(asked.requests, asked.decoding) if asked.requests else [])

    async def acandidates(
        self,
        prompts: Sequence[str],
        decoding: Decoding | None = None,
        histories: Sequence[Sequence[str]] | None = None,
    ) -> list[list[Candidate]]:
        """As `candidates`, without blocking the event loop."""
        if not prompts:
            return []
        # Counting tokens loads the tokenizer when it is the first thing done.
        asked = await asyncio.to_thread(self._ask, prompts, decoding or Decoding(), histories)
        return asked.answer(await self._source.agenerate(asked.requests, asked.decoding) if asked.requests else [])

    def preload(self) -> None:
        """Load the weights in a thread; what goes wrong there is told to the first who asks for candidates.

        The process ends when they are loaded, at the earliest: a thread that is torn down inside a runtime takes the
        process with it.
        """
        threading.Thread(target=self._touch, name="bpo-preload").start()

    def _touch(self) -> None:
        try:
            self.engine.count_tokens([""])  # needs the tokenizer, which comes with the weights
        except Exception as error:
            logger.debug("The weights could not be loaded in advance: %s", error)

    def close(self) -> None:
        """Release the engine's weights."""
        self.engine.close()

    def _ask(self, prompts: Sequence[str], decoding: Decoding, histories: Sequence[Sequence[str]] | None) -> _Asked:
        """Turn prompts into the engine's requests and settle what the decoding leaves open."""
        record = self.record
        if record.mode == "augment" and decoding.empty_threshold is None:
            decoding = replace(decoding, empty_threshold=record.empty_threshold)
        elif record.mode == "rewrite" and decoding.empty_threshold is not None:
            decoding = replace(decoding, empty_threshold=None)
        if decoding.repetition_penalty is None:
            decoding = replace(decoding, repetition_penalty=record.repetition_penalty)
        requests: list[Request] = []
        places: list[int | str] = []
        earlier: Sequence[Sequence[str]] = histories or [()] * len(prompts)
        for prompt, count, history in zip(prompts, self._count(prompts), earlier, strict=True):
            if count > record.max_prompt_tokens:
                places.append(f"{count:,} tokens; the model takes {record.max_prompt_tokens:,}")
                continue
            longest = decoding.max_new_tokens or record.budget(count)
            shortest = 0
            if decoding.min_extra_tokens is not None and record.mode == "rewrite":
                shortest = min(count + decoding.min_extra_tokens, longest)
            # Blank edges carry nothing, and a leading newline would merge with the template's own.
            messages = tuple(record.format.messages(prompt.strip(), _recent(history, record.max_prompt_tokens)))
            places.append(len(requests))
            requests.append(Request(messages=messages, max_new_tokens=longest, min_new_tokens=shortest))
        return _Asked(requests, places, decoding, self.parse)

    def _count(self, prompts: Sequence[str]) -> list[int]:
        """Count tokens; texts that are too long for any tokenizer count their characters instead."""
        limit = 16 * self.record.max_prompt_tokens
        counts = iter(self.engine.count_tokens([prompt for prompt in prompts if len(prompt) <= limit]))
        return [next(counts) if len(prompt) <= limit else len(prompt) for prompt in prompts]


@dataclass(frozen=True, slots=True)
class _Asked:
    """Requests for the engine, and for each prompt the request's place or what stands against it."""

    requests: list[Request]
    places: list[int | str]
    decoding: Decoding
    parse: Callable[[str], str] | None

    def answer(self, found: Sequence[Sequence[Candidate]]) -> list[list[Candidate]]:
        """Put the engine's candidates in the prompts' order."""
        if len(found) != len(self.requests):
            msg = f"The engine returned {len(found)} results for {len(self.requests)} prompts."
            raise EngineError(msg, hint="The engine is at fault.")
        return [
            [Candidate("", violation=Violation("too long", place))]
            if isinstance(place, str)
            else [self._finish(candidate) for candidate in found[place]]
            for place in self.places
        ]

    def _finish(self, candidate: Candidate) -> Candidate:
        """Cut a candidate at the decoding's marks, unwrap it and trim it."""
        text = candidate.text
        for mark in self.decoding.cut:
            text = text.split(mark, 1)[0]
        if self.parse is not None:
            text = self.parse(text)
        return replace(candidate, text=text.strip())


@lru_cache(maxsize=256)
def _digest(record: Record) -> str:
    """Tell a record from others of the same name: what it says decides what the model writes."""
    return f"{zlib.crc32(repr(record).encode()):08x}"


def _recent(history: Sequence[str], tokens: int) -> list[str]:
    """Return the latest turns, together not longer than a prompt may be (at four characters a token).

    A long turn is shortened to its beginning: an answer of many pages must not leave the model without any history.
    """
    kept: list[str] = []
    room = 4 * tokens
    for turn in reversed(history):
        if room <= 0:
            break
        most = min(room, max(LONGEST_TURN, room // 4))
        kept.append(turn if len(turn) <= most else f"{turn[:most]} …")
        room -= len(kept[-1])
    return kept[::-1]


def load_rewriter(spec: str | Rewriter | object = "embedded", *, mode: Mode | None = None, **options: Any) -> Rewriter:
    """Return the rewriter that a spec names.

    Args:
        spec: `embedded`; `ct2:<dir>`, a CTranslate2 model with `bpo.json` and `tokenizer.json` beside it;
            `gguf:<file or dir>`, a Llama's GGUF file with `bpo.json` beside it, run the same way;
            `hf:<id or dir>`, a transformers model or PEFT adapter; `vllm:<id or dir>`; `server:<model>`, a rewriter
            behind an OpenAI-compatible server; or a general LLM, which is asked by meta-prompt: any string that
            LangChain's `init_chat_model` knows (`openai:gpt-4o-mini`), a LangChain chat model, a LlamaIndex LLM. Also
            an engine of vLLM that is built already. A `Rewriter` is returned as it is.
        mode: `augment` or `rewrite`; None takes the rewriter's own (the embedded model and general LLMs have both, and
            augment).
        options: Passed on: for `embedded` to `load_embedded`, for `ct2:` to `CTranslate2Engine`, for `gguf:` to
            `load_gguf`, for `hf:` to `load_transformers`, for `vllm:` to `load_vllm`, for `server:` to `load_server`,
            else to `load_chat_model`.

    Raises:
        ConfigurationError: The spec is unknown, or the model does not have this mode.
        ModelNotFoundError: The weights are not on this machine.
        MissingExtraError: A package that the engine needs is not installed.
    """
    if isinstance(spec, Rewriter) and options:
        msg = f"A ready rewriter takes no options, but got {', '.join(options)}."
        raise ConfigurationError(msg, hint="Give them to load_rewriter(spec, ...) when the rewriter is made.")
    try:
        rewriter = spec if isinstance(spec, Rewriter) else _load(spec, mode, options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        found = re.search(r"argument ('\w+')", str(error))
        unknown = found[1] if found else "of that name"
        msg = f"{spec if isinstance(spec, str) else type(spec).__name__} has no option {unknown}."
        raise ConfigurationError(msg, hint="docs/engines.md leads to the options of each engine.") from error
    if mode is not None and rewriter.mode != mode:
        msg = f"The rewriter {rewriter.record.name} has the mode {rewriter.mode!r}, not {mode!r}."
        raise ConfigurationError(msg, hint=f"Leave out mode=, or use mode={rewriter.mode!r}.")
    return rewriter


def _load(spec: object, mode: Mode | None, options: dict[str, Any]) -> Rewriter:
    """Ask the loader of the spec's kind; each imports its libraries itself."""
    if not isinstance(spec, str):
        if type(spec).__module__.partition(".")[0] == "vllm":
            from bpo_integrations.engines.vllm import load_vllm

            return load_vllm(spec, **options)
        from bpo_integrations.engines.chat_model import load_chat_model

        return load_chat_model(spec, mode=mode, **options)
    kind, _, rest = spec.partition(":")
    if spec == "embedded":
        from bpo_integrations.models.embedded import load_embedded

        return load_embedded(mode or "augment", **options)
    if not kind or not rest:
        msg = f"Unknown rewriter {spec!r}."
        hint = (
            "Use 'embedded', 'ct2:DIR', 'gguf:DIR', 'hf:ID', 'vllm:ID', 'server:MODEL', or an LLM such as "
            "'openai:gpt-4o-mini'."
        )
        raise ConfigurationError(msg, hint=hint)
    if kind == "ct2":
        from bpo_integrations.engines.ctranslate2 import CTranslate2Engine

        folder = Path(rest).expanduser()
        return Rewriter(CTranslate2Engine(folder, **options), Record.read(folder))
    if kind == "gguf":
        from bpo_integrations.models.embedded import load_gguf

        return load_gguf(rest, **options)
    if kind == "hf":
        from bpo_integrations.engines.transformers import load_transformers

        return load_transformers(rest, **options)
    if kind == "vllm":
        from bpo_integrations.engines.vllm import load_vllm

        return load_vllm(rest, **options)
    if kind == "server":
        from bpo_integrations.engines.server import load_server

        return load_server(rest, mode=mode, **options)
    from bpo_integrations.engines.chat_model import load_chat_model

    return load_chat_model(spec, mode=mode, **options)
