"""Every engine that can run on this machine, each with what its contract needs to be looked at from outside.

`test_engine_contract.py` holds the promises. A case makes engines of one spec, counts their work, makes them fail, and
shows what reached the model. An import of this module in another process makes the same cases again (for forks).
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakes import FakeEngine
from openai_server import Body, Reply, openai_server, user_text
from toy_model import CONTROL, write_adapter, write_gguf

from bpo_integrations.engines.base import Engine, Request
from bpo_integrations.errors import EngineError
from bpo_integrations.templates import Message

SYSTEM = "Say what to add."


def ask(text: str, *, longest: int = 12, shortest: int = 0) -> Request:
    return Request(({"role": "system", "content": SYSTEM}, {"role": "user", "content": text}), longest, shortest)


LONG = [ask("hi", longest=200, shortest=200)] * 4


@dataclass(frozen=True)
class Work:
    """Long work for an engine: how many steps it has done, and whether it is at it."""

    engine: Engine
    requests: Sequence[Request]
    steps: Callable[[], int]
    busy: Callable[[], bool]


class EngineCase:
    """One engine's spec: `folder` holds what it loads, `url` is an echoing server."""

    name: str
    package: str | None = None
    needs: tuple[str, str] | None = None
    """A package that it is refused without, and the extra that brings it."""
    loader: tuple[str, str] | None = None
    """Module and name of what loads its weights."""
    step_rows = 1
    """Steps counted for one decoding step of `LONG`."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot run here."""
        if cls.package is not None and importlib.util.find_spec(cls.package) is None:
            return f"{cls.package} is not installed"
        return None

    def prepare(self) -> None:
        """Write what it loads."""

    def make(self) -> Engine:
        raise NotImplementedError

    def build(self) -> object:
        """Build it where `needs` is asked for."""
        return self.make()

    def prompt_ids(self, engine: Any, messages: Sequence[Message]) -> list[int]:
        """The tokens that put the messages to the model (engines with `traits.literal`)."""
        raise NotImplementedError

    def received(self, text: str) -> str:
        """The user's turn as it arrives at the other side (engines without `traits.literal`)."""
        raise NotImplementedError

    def working(self) -> Any:
        """A context with `Work`."""
        raise NotImplementedError

    def failing(self) -> Any:
        """A context with engines that fail, and whether the same call may succeed later."""
        raise NotImplementedError


class Fake(EngineCase):
    """The fake of the unit tests, so that it is honest."""

    name = "fake"

    def make(self) -> Engine:
        return FakeEngine(lambda text: text)

    def received(self, text: str) -> str:
        engine = FakeEngine(lambda text: text)
        engine.generate([ask(text)], _greedy())
        return engine.calls[0][0]

    @contextmanager
    def working(self) -> Iterator[Work]:
        engine = FakeEngine(delay=0.05)
        yield Work(engine, LONG, lambda: len(engine.calls), lambda: False)

    @contextmanager
    def failing(self) -> Iterator[list[tuple[Engine, bool]]]:
        def fail(text: str) -> str:
            raise EngineError("No.", hint="Call again.")

        yield [(FakeEngine(fail), True)]


class CTranslate2(EngineCase):
    name = "ct2"
    package = "ctranslate2"
    needs = ("ctranslate2", "local")
    loader = ("bpo_integrations.engines.ctranslate2", "LoadedModel")
    step_rows = len(LONG)

    def prepare(self) -> None:
        from bpo_integrations.models.adapter import LoRA
        from bpo_integrations.models.convert import convert
        from bpo_integrations.models.gguf_base import GGUFBase

        base = GGUFBase(write_gguf(self.folder / "toy.gguf"))
        convert(base, self.folder, adapter=LoRA(write_adapter(self.folder / "adapter")), quantization="float32")

    def make(self) -> Any:
        from bpo_integrations.engines.ctranslate2 import CTranslate2Engine

        return CTranslate2Engine(self.folder, threads=2)

    def prompt_ids(self, engine: Any, messages: Sequence[Message]) -> list[int]:
        model = engine._loaded()
        prompt = model.chat.render(messages)
        return [model.tokenizer.token_to_id(token) for token in (*prompt.fixed, *prompt.rest)]

    @contextmanager
    def working(self) -> Iterator[Work]:
        engine = self.make()
        model = engine._loaded()
        steps: list[int] = []
        generator = model.generator

        class Counting:
            def generate_batch(self, *args: Any, callback: Any, **options: Any) -> Any:
                def step(result: Any) -> bool:
                    steps.append(1)
                    time.sleep(0.001)  # the toy would be done before it can be cancelled
                    return bool(callback(result))

                return generator.generate_batch(*args, callback=step, **options)

            def __getattr__(self, name: str) -> Any:
                return getattr(generator, name)

        model.generator = Counting()
        try:
            yield Work(engine, LONG, lambda: len(steps), lambda: model._running > 0)
        finally:
            model.generator = generator

    @contextmanager
    def failing(self) -> Iterator[list[tuple[Engine, bool]]]:
        engine = self.make()
        model = engine._loaded()
        generator, model.generator = model.generator, _Broken()
        try:
            yield [(engine, True)]
        finally:
            model.generator = generator


class Transformers(EngineCase):
    name = "hf"
    package = "transformers"
    needs = ("transformers", "hf")
    loader = ("bpo_integrations.engines.transformers", "CausalModel")

    def prepare(self) -> None:
        write_gguf(self.folder / "toy.gguf")
        write_adapter(self.folder / "adapter")

    def make(self) -> Any:
        from bpo_integrations.engines.transformers import TransformersEngine

        return TransformersEngine(str(self.folder / "toy.gguf"), adapter=self.folder / "adapter", device="cpu")

    def prompt_ids(self, engine: Any, messages: Sequence[Message]) -> list[int]:
        return list(engine._loaded().render(messages))

    @contextmanager
    def working(self) -> Iterator[Work]:
        engine = self.make()
        model = engine._loaded()
        steps: list[int] = []
        hook = model.model.register_forward_pre_hook(lambda *_: steps.append(1))
        try:
            yield Work(engine, LONG, lambda: len(steps), model.lock.locked)
        finally:
            hook.remove()

    @contextmanager
    def failing(self) -> Iterator[list[tuple[Engine, bool]]]:
        engine = self.make()
        model = engine._loaded()
        model.model.generate = _Broken().generate
        try:
            yield [(engine, True)]
        finally:
            del model.model.generate


class Server(EngineCase):
    name = "server"
    package = "openai"
    needs = ("openai", "server")

    def make(self) -> Engine:
        return self._for(self.url)

    def _for(self, url: str, **options: Any) -> Engine:
        from bpo_integrations.engines.server import ServerEngine

        return ServerEngine("rewriter", base_url=url, api_key="key", max_retries=0, **options)

    def received(self, text: str) -> str:
        with openai_server() as server:
            engine = self._for(server.base_url)
            engine.generate([ask(text)], _greedy())
            engine.close()
            return user_text(server.bodies[0])

    @contextmanager
    def working(self) -> Iterator[Work]:
        def answer(body: Body) -> Reply:
            return Reply((user_text(body),), seconds=600.0 if body["max_tokens"] == LONG[0].max_new_tokens else 0.0)

        with openai_server(answer) as server:
            engine = self._for(server.base_url)
            yield Work(engine, LONG, lambda: len(server.bodies), lambda: server.busy > 0)
            engine.close()

    @contextmanager
    def failing(self) -> Iterator[list[tuple[Engine, bool]]]:
        with (
            openai_server(lambda body: Reply(status=503)) as trouble,
            openai_server(lambda body: Reply(drop=True)) as lost,
            openai_server(key="another") as locked,
            openai_server(models=("other",)) as other,
            openai_server(lambda body: Reply(seconds=600.0)) as slow,
        ):
            engines = [
                (self._for(trouble.base_url), True),
                (self._for(lost.base_url), True),
                (self._for(slow.base_url, timeout=0.1), True),
                (self._for(locked.base_url), False),
                (self._for(other.base_url), False),
            ]
            yield engines
            for engine, _ in engines:
                engine.close()


class LangChainModel(EngineCase):
    """A LangChain chat model object; specs need more, `langchain` itself."""

    name = "langchain"
    package = "langchain_core"
    needs = ("langchain", "agents")

    def build(self) -> None:
        from bpo_integrations.engines.chat_model import load_chat_model

        load_chat_model("openai:none")

    def make(self) -> Engine:
        return self._around(lambda text: text)

    def _around(self, answer: Callable[[str], str], seen: list[str] | None = None, wait: float = 0.0) -> Engine:
        from langchain_core.language_models import BaseChatModel
        from langchain_core.messages import AIMessage
        from langchain_core.outputs import ChatGeneration, ChatResult

        from bpo_integrations.engines.chat_model import ChatModelEngine

        class Echo(BaseChatModel):
            at_work: list[int] = []  # noqa: RUF012 (a field)

            @property
            def _llm_type(self) -> str:
                return "echo"

            def _generate(self, messages: Any, *args: Any, **options: Any) -> ChatResult:
                text = str(messages[-1].content)
                if seen is not None:
                    seen.append(text)
                message = AIMessage(answer(text))
                return ChatResult(generations=[ChatGeneration(message=message)])

            async def _agenerate(self, messages: Any, *args: Any, **options: Any) -> ChatResult:
                self.at_work.append(1)
                try:
                    await asyncio.sleep(wait if "\n" not in messages[-1].content else 0.0)
                finally:
                    self.at_work.pop()
                return self._generate(messages)

        self.model = Echo()
        return ChatModelEngine(self.model, concurrency=8)

    def received(self, text: str) -> str:
        seen: list[str] = []
        self._around(lambda text: text, seen).generate([ask(text)], _greedy())
        return seen[0]

    @contextmanager
    def working(self) -> Iterator[Work]:
        seen: list[str] = []
        engine = self._around(lambda text: text, seen, wait=600.0)
        at_work = self.model.at_work
        yield Work(engine, LONG, lambda: len(seen) + len(at_work), lambda: bool(at_work))

    @contextmanager
    def failing(self) -> Iterator[list[tuple[Engine, bool]]]:
        def time_out(text: str) -> str:
            raise TimeoutError

        def refuse(text: str) -> str:
            raise ValueError(text)

        yield [(self._around(time_out), True), (self._around(refuse), False)]


class LlamaIndexModel(EngineCase):
    name = "llama-index"
    package = "llama_index.core"

    @classmethod
    def missing(cls) -> str | None:
        return None if importlib.util.find_spec("llama_index") else "llama-index-core is not installed"

    def make(self) -> Engine:
        return self._around(lambda text: text)

    def _around(self, answer: Callable[[str], str], wait: float = 0.0) -> Engine:
        from llama_index.core.base.llms.types import ChatMessage, ChatResponse
        from llama_index.core.llms import MockLLM

        from bpo_integrations.engines.chat_model import ChatModelEngine

        at_work: list[int] = []
        seen: list[str] = []

        class Echo(MockLLM):
            def chat(self, messages: Any, **options: Any) -> ChatResponse:
                seen.append(str(messages[-1].content))
                return ChatResponse(message=ChatMessage(role="assistant", content=answer(seen[-1])))

            async def achat(self, messages: Any, **options: Any) -> ChatResponse:
                at_work.append(1)
                try:
                    await asyncio.sleep(wait if "\n" not in str(messages[-1].content) else 0.0)
                finally:
                    at_work.pop()
                return self.chat(messages)

        self.seen, self.at_work = seen, at_work
        return ChatModelEngine(Echo(), concurrency=8)

    def received(self, text: str) -> str:
        self._around(lambda text: text).generate([ask(text)], _greedy())
        return self.seen[0]

    @contextmanager
    def working(self) -> Iterator[Work]:
        engine = self._around(lambda text: text, wait=600.0)
        seen, at_work = self.seen, self.at_work
        yield Work(engine, LONG, lambda: len(seen) + len(at_work), lambda: bool(at_work))

    failing = LangChainModel.failing


class VLLM(EngineCase):
    """A Llama of two layers, with heads of a size that vLLM computes with; in float32, on whatever it was built for."""

    name = "vllm"
    package = "vllm"
    needs = ("vllm", "vllm")

    def prepare(self) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from bpo_integrations.engines.causal_lm import load_causal_lm

        _, tokenizer = load_causal_lm(str(write_gguf(self.folder / "toy.gguf")))
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
        )
        LlamaForCausalLM(config).save_pretrained(self.folder / "whole")
        tokenizer.save_pretrained(self.folder / "whole")

    def make(self) -> Any:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        from bpo_integrations.engines.vllm_engine import VLLMEngine

        args = {"dtype": "float32", "max_model_len": 256, "load_format": "safetensors", "enforce_eager": True}
        return VLLMEngine(str(self.folder / "whole"), engine_args=args)

    def prompt_ids(self, engine: Any, messages: Sequence[Message]) -> list[int]:
        from transformers import AutoTokenizer

        from bpo_integrations.engines.causal_lm import ChatTokenizer

        return ChatTokenizer(AutoTokenizer.from_pretrained(self.folder / "whole")).render(messages)


class _Broken:
    """A runtime that is out of order."""

    def generate_batch(self, *args: object, **options: object) -> None:
        raise RuntimeError("out of order")

    generate = generate_batch


def _greedy() -> Any:
    from bpo_integrations.decoding import GREEDY

    return GREEDY


CASES: dict[str, type[EngineCase]] = {
    case.name: case for case in (Fake, CTranslate2, Transformers, Server, LangChainModel, LlamaIndexModel, VLLM)
}


def copy_of(case: EngineCase, folder: Path) -> EngineCase:
    """The same weights under another spec, which no engine has loaded yet."""
    shutil.copytree(case.folder, folder)
    return type(case)(folder, case.url)


def control_ids(ids: Sequence[int]) -> list[int]:
    """Those of the ids that are control tokens of the toy models."""
    return [number for number in ids if number < len(CONTROL)]
