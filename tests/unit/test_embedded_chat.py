"""`ChatEmbedded` as a LangChain chat model, over a fake engine; the real one is in tests/integration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fakes import FakeEngine

pytest.importorskip("langchain_core", reason="the langchain extra is not installed")

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Request
from bpo_integrations.errors import InputError
from bpo_integrations.langchain import ChatEmbedded

ANSWER = "Paris is the capital."


class Engine(FakeEngine):
    """Remembers how it was asked, and streams word by word."""

    def __init__(self) -> None:
        super().__init__(lambda text: ANSWER)
        self.asked: list[tuple[Request, Decoding]] = []

    def generate(self, requests: Any, decoding: Decoding) -> Any:
        self.asked.append((requests[0], decoding))
        return super().generate(requests, decoding)

    async def agenerate(self, requests: Any, decoding: Decoding) -> Any:
        self.asked.append((requests[0], decoding))
        return await super().agenerate(requests, decoding)

    def stream(self, request: Request, decoding: Decoding) -> Iterator[str]:
        self.asked.append((request, decoding))
        for word in ANSWER.split(" "):
            yield word if word == "Paris" else f" {word}"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine()
    monkeypatch.setattr(ChatEmbedded, "_engine", lambda self: made)
    return made


async def test_every_entry_point_gives_the_same_answer_and_token_counts(engine: Engine) -> None:
    llm = ChatEmbedded()
    answers: list[BaseMessage] = [llm.invoke("The capital of France?"), await llm.ainvoke("The capital of France?")]
    answers += [*llm.batch(["The capital of France?"]), *await llm.abatch(["The capital of France?"])]
    streamed = list(llm.stream("The capital of France?"))
    astreamed = [chunk async for chunk in llm.astream("The capital of France?")]
    assert [chunk.content for chunk in streamed if chunk.content] == ["Paris", " is", " the", " capital."]
    answers += [sum(streamed[1:], streamed[0]), sum(astreamed[1:], astreamed[0])]  # type: ignore[call-overload]
    for answer in answers:
        assert answer.content == ANSWER
        assert isinstance(answer, AIMessage)
        assert answer.usage_metadata == {"input_tokens": 4, "output_tokens": 4, "total_tokens": 8}
        assert answer.response_metadata["model_name"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_messages_and_options_reach_the_engine(engine: Engine) -> None:
    llm = ChatEmbedded(temperature=0.5, max_tokens=9, seed=3)
    turns = [SystemMessage("Be kind."), HumanMessage("Hi"), AIMessage("Hello!")]
    llm.invoke([*turns, HumanMessage(["Bye", {"type": "text", "text": "!"}])], stop=["."])
    llm.bind(max_tokens=2, temperature=0.0).invoke("Hi")
    (request, decoding), (bound, greedy) = engine.asked
    assert list(request.messages) == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye!"},
    ]
    assert request.max_new_tokens == 9
    assert decoding == Decoding(temperature=0.5, seed=3, stop=(".",))
    assert (bound.max_new_tokens, greedy.greedy) == (2, True)


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize(
    "messages",
    [
        [HumanMessage([{"type": "text", "text": "What is this?"}, IMAGE])],
        [HumanMessage("Hi"), ToolMessage("42", tool_call_id="1")],
        [HumanMessage("Hi"), AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])],
    ],
)
def test_what_it_cannot_read_is_refused(engine: Engine, messages: list[BaseMessage]) -> None:
    with pytest.raises(InputError, match="ChatEmbedded"):
        ChatEmbedded().invoke(messages)
    assert engine.asked == []


def test_an_unknown_option_is_refused(engine: Engine) -> None:
    with pytest.raises(InputError, match="'tools'"):
        ChatEmbedded().invoke("Hi", tools=[])


def test_bad_fields_are_refused() -> None:
    for options in ({"temperature": -1}, {"max_tokens": 0}):
        with pytest.raises(ValueError, match="greater than or equal"):
            ChatEmbedded(**options)  # type: ignore[arg-type]


def test_traces_name_provider_and_model() -> None:
    found = ChatEmbedded(temperature=0.3)._get_ls_params(stop=["x"])
    assert (found["ls_provider"], found["ls_model_name"]) == ("embedded", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert (found["ls_temperature"], found["ls_max_tokens"], found["ls_stop"]) == (0.3, 256, ["x"])
    assert ChatEmbedded()._llm_type == "bpo-embedded"
