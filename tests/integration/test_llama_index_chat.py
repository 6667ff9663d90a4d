"""Chat engines and LLMs of LlamaIndex with the optimizer: what reaches the LLM, the memory and the search."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="the llama-index extra is not installed")

from fakes import fake_rewriter
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.instrumentation.events.retrieval import RetrievalStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer, Memory
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.core.types import PydanticProgramMode
from llama_parts import (
    ADDED,
    BETTER,
    QUESTION,
    RecordingLLM,
    Script,
    adding,
    always,
    asked,
    failing,
    library,
    listening,
)
from pydantic import BaseModel

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.llama_index import BPOLLM, BPOChatEngine, BPOQueryEngine, BPOQueryTransform
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.rewriter import Rewriter


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


# -- chat engines ----------------------------------------------------------------------------------------------------


async def chatted(chat: BPOChatEngine, way: str, message: str) -> str:
    """Return the answer to `message`, by one of the four ways to ask."""
    if way == "chat":
        return str(chat.chat(message))
    if way == "achat":
        return str(await chat.achat(message))
    if way == "stream_chat":
        return "".join(chat.stream_chat(message).response_gen)
    answer = "".join([token async for token in (await chat.astream_chat(message)).async_response_gen()])
    await asyncio.sleep(0.01)  # LlamaIndex writes the answer into the memory in a task of its own
    return answer


WAYS = ["chat", "achat", "stream_chat", "astream_chat"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("memory_class", [ChatMemoryBuffer, Memory])
async def test_a_simple_chat_shows_the_llm_the_improved_turn_and_remembers_the_users_words(
    way: str, memory_class: Any
) -> None:
    script, rewriter = Script("Fine."), adding()
    engine = SimpleChatEngine.from_defaults(
        llm=script.llm, memory=memory_class.from_defaults(), system_prompt="Be kind."
    )
    chat = BPOChatEngine(engine, optimizer=always(rewriter))
    assert await chatted(chat, way, QUESTION) == "Fine."
    assert await chatted(chat, way, "Explain the fees") == "Fine."
    assert script.turns == [[BETTER], [QUESTION, f"Explain the fees. {ADDED}"]]
    assert [message.content for message in chat.chat_history] == [QUESTION, "Fine.", "Explain the fees", "Fine."]
    assert asked(rewriter) == [QUESTION, "Explain the fees"]


@pytest.mark.parametrize("way", WAYS)
async def test_a_chat_over_documents_searches_for_the_users_words(way: str) -> None:
    script = Script("Fine.")
    retriever = library(real=True).as_retriever(similarity_top_k=1)
    chat = BPOChatEngine(ContextChatEngine.from_defaults(retriever, llm=script.llm), adding())
    with listening() as (events, _):
        assert await chatted(chat, way, QUESTION) == "Fine."
    searches = [event.str_or_query_bundle for event in events if isinstance(event, RetrievalStartEvent)]
    assert searches == [QUESTION]
    assert script.turns == [[BETTER]]
    assert "four weeks" in str(script.asked[0][0].content)
    assert chat.chat_history[0].content == QUESTION


@pytest.mark.parametrize("way", WAYS)
async def test_a_dialogue_is_condensed_from_the_users_words(way: str) -> None:
    llm, script = RecordingLLM(), Script("Fine.")

    class Both(RecordingLLM):
        """Condenses by completion, and answers by chat, as the engine wants it."""

        @property
        def metadata(self) -> LLMMetadata:
            return script.llm.metadata

        def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
            return llm.complete(prompt, formatted=formatted)

        def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
            return script.llm.chat(messages)

        def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
            return script.llm.stream_chat(messages)

        async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
            return await script.llm.astream_chat(messages)

    engine = CondensePlusContextChatEngine.from_defaults(library().as_retriever(), llm=Both())
    chat = BPOChatEngine(engine, optimizer=always(adding()))
    for message in (QUESTION, "Explain the fees"):
        assert await chatted(chat, way, message) == "Fine."
    (condensing,) = llm.prompts
    assert QUESTION in condensing
    assert "Explain the fees" in condensing
    assert ADDED not in condensing
    assert [turn[-1] for turn in script.turns] == [BETTER, f"Explain the fees. {ADDED}"]
    assert script.turns[1][0] == QUESTION


async def test_concurrent_chats_with_one_llm_do_not_mix() -> None:
    script = Script("Fine.")
    rewriter = fake_rewriter(lambda prompt: f"Say where {prompt.split()[-1]} live.", delay=0.01)
    animals = "cats dogs horses cows sheep".split()
    chats = [BPOChatEngine(SimpleChatEngine.from_defaults(llm=script.llm), rewriter) for _ in animals]
    await asyncio.gather(*(chat.achat(f"Tell me about {a}") for chat, a in zip(chats, animals, strict=True)))
    assert sorted(turns[0] for turns in script.turns) == sorted(
        f"Tell me about {animal}. Say where {animal} live." for animal in animals
    )


def test_the_users_own_engine_stays_as_it_is_and_shares_the_memory() -> None:
    script = Script("Fine.")
    engine = SimpleChatEngine.from_defaults(llm=script.llm)
    chat = BPOChatEngine(engine, adding())
    engine.chat(QUESTION)
    assert script.turns == [[QUESTION]]
    assert [message.content for message in chat.chat_history] == [QUESTION, "Fine."]
    chat.reset()
    assert engine.chat_history == []


def test_a_history_that_is_passed_in_replaces_the_memory_and_reaches_the_policy() -> None:
    seen = []

    def policy(prompt: str, context: Any) -> None:
        seen.append(context.history)

    script = Script("Fine.")
    chat = BPOChatEngine(
        SimpleChatEngine.from_defaults(llm=script.llm), optimizer=PromptOptimizer(adding(), policy=policy)
    )
    chat.chat(QUESTION, chat_history=[user("Hi"), ChatMessage(role="assistant", content="Hello")])
    assert seen == [("Hi", "Hello")]
    assert script.turns == [["Hi", BETTER]]
    assert len(chat.chat_history) == 4


@pytest.mark.parametrize("way", WAYS)
async def test_a_failure_lets_the_users_words_go_on(way: str) -> None:
    script = Script("Fine.")
    chat = BPOChatEngine(SimpleChatEngine.from_defaults(llm=script.llm), fake_rewriter(failing))
    assert await chatted(chat, way, QUESTION) == "Fine."
    assert script.turns == [[QUESTION]]


def test_a_chat_engine_whose_query_engine_answers_is_refused_and_served_through_that() -> None:
    llm, rewriter = RecordingLLM(), adding()
    queries = library().as_query_engine(llm=llm)
    with pytest.raises(ConfigurationError, match="BPOQueryEngine"):
        BPOChatEngine(CondenseQuestionChatEngine.from_defaults(queries, llm=llm), rewriter)
    chat = CondenseQuestionChatEngine.from_defaults(BPOQueryEngine(queries, BPOQueryTransform(rewriter)), llm=llm)
    chat.chat(QUESTION)
    assert f"Query: {BETTER}" in llm.prompts[-1]
    assert chat.chat_history[0].content == QUESTION


# -- the LLM ---------------------------------------------------------------------------------------------------------


def around(llm: Any, rewriter: Rewriter | None = None, **options: Any) -> BPOLLM:
    return BPOLLM(llm=llm, optimizer=always(rewriter or adding()), **options)


async def test_every_way_to_chat_shows_the_llm_the_improved_turn() -> None:
    script, rewriter = Script("Fine."), adding()
    llm = around(script.llm, rewriter)
    messages = [ChatMessage(role="system", content="Be kind."), user(QUESTION)]
    assert llm.chat(messages).message.content == "Fine."
    assert (await llm.achat(messages)).message.content == "Fine."
    assert "".join(chunk.delta for chunk in llm.stream_chat(messages)) == "Fine."
    assert "".join([chunk.delta async for chunk in await llm.astream_chat(messages)]) == "Fine."
    assert script.turns == [[BETTER]] * 4
    assert messages[1].content == QUESTION
    assert script.asked[0][1].additional_kwargs == {}, "providers refuse what they do not know"
    assert asked(rewriter) == [QUESTION]


async def test_every_way_to_ask_a_template_improves_the_query_in_it_and_nothing_else() -> None:
    inner, rewriter = RecordingLLM(), adding()
    llm = around(inner, rewriter)
    template = PromptTemplate("Context: {context}\nQuery: {query_str}")
    expected = f"Context: {QUESTION}\nQuery: {BETTER}"
    assert llm.predict(template, context=QUESTION, query_str=QUESTION) == expected
    assert await llm.apredict(template, context=QUESTION, query_str=QUESTION) == expected
    assert "".join(llm.stream(template, context=QUESTION, query_str=QUESTION)) == expected
    tokens = await llm.astream(template.partial_format(query_str=QUESTION), context=QUESTION)
    assert "".join([token async for token in tokens]) == expected
    assert llm.predict(PromptTemplate("Condense: {question}"), question=QUESTION) == f"Condense: {QUESTION}"
    assert asked(rewriter) == [QUESTION]


async def test_bare_completions_pass_unless_they_are_said_to_be_the_users() -> None:
    for llm, expected in (
        (around(MockLLM()), QUESTION),
        (around(MockLLM(), completions=True), BETTER),
    ):
        assert llm.complete(QUESTION).text == expected
        assert (await llm.acomplete(QUESTION)).text == expected
        assert [chunk.text for chunk in llm.stream_complete(QUESTION)][-1] == expected
        assert [chunk.text async for chunk in await llm.astream_complete(QUESTION)][-1] == expected
        assert llm.complete(QUESTION, formatted=True).text == QUESTION


def look_up(topic: str = "books") -> str:
    """Look a topic up."""
    return f"All about {topic}."


TOOL = FunctionTool.from_defaults(look_up)


async def test_every_way_to_chat_with_tools_works() -> None:
    script = Script(("look_up", {"topic": "fees"}))
    llm = around(script.llm)
    earlier = [user("Hi"), ChatMessage(role="assistant", content="Hello")]
    found = [
        llm.chat_with_tools([TOOL], QUESTION, chat_history=earlier, tool_required=True),
        await llm.achat_with_tools([TOOL], user_msg=user(QUESTION), chat_history=earlier),
        list(llm.stream_chat_with_tools([TOOL], QUESTION, earlier))[-1],
        [chunk async for chunk in await llm.astream_chat_with_tools([TOOL], chat_history=[*earlier, user(QUESTION)])][
            -1
        ],
    ]
    assert script.turns == [["Hi", BETTER]] * 4
    assert all(options["tools"] == [TOOL] for options in script.options)
    for response in found:
        (call,) = llm.get_tool_calls_from_response(response)
        assert (call.tool_name, call.tool_kwargs) == ("look_up", {"topic": "fees"})
    assert llm.predict_and_call([TOOL], QUESTION).response == "All about fees."
    assert (await llm.apredict_and_call([TOOL], user_msg=QUESTION)).response == "All about fees."
    assert script.turns[-1] == [BETTER]


async def test_the_turn_stays_improved_while_tools_are_called() -> None:
    script, rewriter = Script("Done."), adding()
    call = ChatMessage(role="assistant", content="I look it up.")
    around(script.llm, rewriter).chat([user(QUESTION), call, ChatMessage(role="tool", content="All.")])
    assert script.turns == [[BETTER]]
    assert [message.role.value for message in script.asked[0]] == ["user", "assistant", "tool"]


def test_what_a_react_agent_tells_of_a_tool_is_no_turn_of_the_user() -> None:
    script = Script("Done.")
    thought = ChatMessage(role="assistant", content="Thought: I look it up.")
    around(script.llm).chat([user(QUESTION), thought, user("Observation: Tell me about dogs")])
    assert script.turns == [[BETTER, "Observation: Tell me about dogs"]]


def test_an_llm_that_calls_no_tools_says_so() -> None:
    llm = around(MockLLM())
    assert not llm.metadata.is_function_calling_model
    with pytest.raises(ConfigurationError, match="calls no tools"):
        llm.chat_with_tools([TOOL], QUESTION)


class Term(BaseModel):
    """How long a book may be kept."""

    weeks: int


async def test_every_way_to_structured_output_works() -> None:
    script = Script(("Term", {"weeks": 4}))
    llm = around(script.llm)
    template = PromptTemplate("Query: {query_str}")
    assert llm.structured_predict(Term, template, query_str=QUESTION) == Term(weeks=4)
    assert await llm.astructured_predict(Term, template, query_str=QUESTION) == Term(weeks=4)
    assert list(llm.stream_structured_predict(Term, template, query_str=QUESTION))
    assert [part async for part in await llm.astream_structured_predict(Term, template, query_str=QUESTION)]
    assert script.turns == [[f"Query: {BETTER}"]] * 4
    structured = llm.as_structured_llm(Term)
    assert structured.chat([user(QUESTION)]).raw == Term(weeks=4)
    assert (await structured.achat([user(QUESTION)])).raw == Term(weeks=4)
    assert script.turns[-2:] == [[BETTER]] * 2
    fixed = ChatPromptTemplate(message_templates=[user(QUESTION)])
    assert list(llm.stream_structured_predict(Term, fixed))
    assert script.turns[-1] == [BETTER]


async def test_a_query_engine_around_it_improves_the_query_and_searches_for_the_users_words() -> None:
    inner, rewriter = RecordingLLM(), adding()
    engine = library(real=True).as_query_engine(llm=around(inner, rewriter), similarity_top_k=1)
    for response in (engine.query(QUESTION), await engine.aquery(QUESTION)):
        assert [node.node.node_id for node in response.source_nodes] == ["lending"]
    assert all(f"Query: {BETTER}" in prompt for prompt in inner.prompts)
    assert asked(rewriter) == [QUESTION]


def test_metadata_and_callbacks_are_those_of_the_inner_llm() -> None:
    manager = CallbackManager()
    inner = MockLLM(max_tokens=7, callback_manager=manager)
    llm = around(inner)
    assert llm.metadata == inner.metadata
    assert llm.callback_manager is manager
    assert llm.class_name() == type(llm).__name__ == "BPOLLM"
    other = CallbackManager()
    llm.callback_manager = other
    assert inner.callback_manager is other


def test_what_others_read_of_the_llm_is_that_of_the_inner_one() -> None:
    inner = MockLLM(system_prompt="Be kind.")
    inner.query_wrapper_prompt, inner.pydantic_program_mode = PromptTemplate("Q: {query_str}"), PydanticProgramMode.LLM
    llm = around(inner)
    for name in ("system_prompt", "query_wrapper_prompt", "output_parser", "pydantic_program_mode"):
        assert getattr(llm, name) == getattr(inner, name)
    llm.system_prompt = "Be brief."
    assert inner.system_prompt == "Be brief."


def test_the_history_is_the_dialogue_before_the_turn() -> None:
    seen = []

    def policy(prompt: str, context: Any) -> None:
        seen.append((prompt, context.history))

    llm = BPOLLM(llm=Script("Fine.").llm, optimizer=PromptOptimizer(adding(), policy=policy))
    dialogue = [user("Hi"), ChatMessage(role="assistant", content="Hello")]
    llm.chat([ChatMessage(role="system", content="Be kind."), *dialogue, user(QUESTION)])
    llm.predict(ChatPromptTemplate(message_templates=[*dialogue, user("Q: {query_str}")]), query_str="Why do owls fly?")
    assert seen == [(QUESTION, ("Hi", "Hello")), ("Why do owls fly?", ("Hi", "Hello"))]


def test_an_image_without_words_and_an_empty_chat_pass() -> None:
    script, rewriter = Script("Fine."), adding()
    llm = around(script.llm, rewriter)
    for messages in ([], [ChatMessage(role="user", blocks=[])], [ChatMessage(role="assistant", content="Hi")]):
        assert llm.chat(messages).message.content == "Fine."
    assert asked(rewriter) == []
