"""`BPORetriever` over real vector stores: the standard suite of LangChain, and what it promises besides."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import pytest
from fakes import FakeEngine, fake_rewriter

pytest.importorskip("langchain_core", reason="the langchain extra is not installed")
pytest.importorskip("langchain_tests", reason="langchain-tests is not installed")

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnablePassthrough
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import PrivateAttr

from bpo_integrations import BPORunnable, PromptOptimizer
from bpo_integrations.errors import ConfigurationError, EngineError, InputError, OptimizationError
from bpo_integrations.langchain.retriever import BPORetriever
from bpo_integrations.rewriter import Record, Rewriter
from bpo_integrations.templates import PromptFormat

TEXTS = [
    "The library opens at nine in the morning and closes at six.",
    "The library lends books for four weeks, and films for one.",
    "Late books cost ten cents a day, films a euro.",
    "Members under eighteen pay no fees at all.",
    "The reading room is silent, and food stays outside.",
]
QUESTION = "How long may I keep books from the library?"
HISTORY = [HumanMessage("When does the library open in summer?"), AIMessage("At nine in the morning.")]


class WordEmbeddings(Embeddings):
    """Bags of words, hashed: small, repeatable, and near where words are shared."""

    def embed_query(self, text: str) -> list[float]:
        found = [0.01] * 256
        for word in text.lower().replace("?", " ").replace(".", " ").replace(",", " ").split():
            found[zlib.crc32(word.encode()) % 256] += 1.0
        return found

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


class Searches(BaseRetriever):
    """Answers each query by `found`, and remembers the queries."""

    found: Callable[[str], list[Document]]
    _queries: list[str] = PrivateAttr(default_factory=list)

    def _get_relevant_documents(self, query: str, *, run_manager: Any, **options: Any) -> list[Document]:
        self._queries.append(query)
        return self.found(query)


def store() -> InMemoryVectorStore:
    return InMemoryVectorStore.from_texts(TEXTS, WordEmbeddings())


def adding(answer: Callable[[str], str] = lambda prompt: "Name the fees too.", **options: Any) -> PromptOptimizer:
    """The real pipeline around a fake engine, without policy and guards: these have tests of their own."""
    delay = options.pop("delay", 0.0)
    return PromptOptimizer(
        fake_rewriter(answer, delay=delay), policy=lambda prompt, context: None, guards=(), **options
    )


def standing_alone() -> PromptOptimizer:
    """An optimizer that can use the history: it resolves "there", as a general LLM would."""
    record = Record(
        name="resolver",
        mode="rewrite",
        format=PromptFormat(system="Make it stand alone.", history="History: {history}\n\n"),
        max_prompt_tokens=1024,
    )

    def resolve(text: str) -> str:
        before, _, prompt = text.rpartition("\n\n")
        return prompt.replace("there", "in the library") if "library" in before else prompt

    return PromptOptimizer(Rewriter(FakeEngine(resolve), record), guards=())


def calls(optimizer: PromptOptimizer) -> list[list[str]]:
    assert isinstance(optimizer.rewriter.engine, FakeEngine)
    return optimizer.rewriter.engine.calls


def failing(text: str) -> str:
    raise EngineError("The engine broke.", hint="Mend it.")


def titles(documents: Sequence[Document]) -> list[str]:
    return [document.page_content for document in documents]


def documents(*names: str) -> list[Document]:
    return [Document(name) for name in names]


class Runs(BaseTracer):
    """Keeps the run trees."""

    def __init__(self) -> None:
        super().__init__()
        self.trees: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.trees.append(run)


class TestStandard(RetrieversIntegrationTests):
    """LangChain's own suite, nothing overridden."""

    @property
    def retriever_constructor(self) -> type[BPORetriever]:
        return BPORetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"retriever": store().as_retriever(), "optimizer": adding()}

    @property
    def retriever_query_example(self) -> str:
        return QUESTION


class TestStandardUnion(TestStandard):
    """The same with the other fusion."""

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"retriever": store().as_retriever(), "optimizer": adding(), "fusion": "union"}


# -- what is searched for, and what comes out --------------------------------------------------------------------------


async def test_sync_and_async_give_the_same_documents() -> None:
    for options in ({}, {"fusion": "union"}, {"include_original": False}, {"k": 2}):
        bpo = BPORetriever(retriever=store().as_retriever(), optimizer=adding(), **options)
        found = bpo.invoke(QUESTION)
        assert titles(await bpo.ainvoke(QUESTION)) == titles(found)
        assert titles(bpo.batch([QUESTION, "fees"])[0]) == titles((await bpo.abatch([QUESTION, "fees"]))[0])
        assert len(found) == len(set(titles(found)))


def test_the_users_own_words_and_the_optimized_query_are_both_searched() -> None:
    inner = Searches(found=lambda query: documents(query))
    found = BPORetriever(retriever=inner, optimizer=adding(), fusion="union").invoke(QUESTION)
    better = f"{QUESTION} Name the fees too."
    assert sorted(inner._queries) == sorted([QUESTION, better])
    assert titles(found) == [QUESTION, better]


def test_without_the_original_only_the_optimized_query_is_searched() -> None:
    inner = Searches(found=lambda query: documents(query))
    found = BPORetriever(retriever=inner, optimizer=adding(), include_original=False).invoke(QUESTION)
    assert titles(found) == inner._queries == [f"{QUESTION} Name the fees too."]


def test_a_query_that_stays_as_it_is_is_searched_once() -> None:
    for include_original in (True, False):
        inner = Searches(found=lambda query: documents(query))
        bpo = BPORetriever(retriever=inner, optimizer=adding(lambda prompt: ""), include_original=include_original)
        assert titles(bpo.invoke(QUESTION)) == inner._queries == [QUESTION]


def test_by_default_no_document_of_the_plain_retriever_is_lost() -> None:
    plain = store().as_retriever(search_kwargs={"k": 2})
    optimizer = adding(lambda prompt: "Members under eighteen pay no fees at all.")
    optimized = BPORetriever(retriever=plain, optimizer=optimizer, include_original=False)
    assert TEXTS[3] in titles(optimized.invoke(QUESTION))  # it would push another one out
    assert TEXTS[3] not in titles(plain.invoke(QUESTION))
    fused = BPORetriever(retriever=plain, optimizer=optimizer)
    assert set(titles(fused.invoke(QUESTION))) == set(titles(plain.invoke(QUESTION)))


def test_union_puts_what_the_optimized_query_finds_behind_the_plain_result() -> None:
    plain = store().as_retriever(search_kwargs={"k": 2})
    optimizer = adding(lambda prompt: "Members under eighteen pay no fees at all.")
    found = titles(BPORetriever(retriever=plain, optimizer=optimizer, fusion="union").invoke(QUESTION))
    assert found[:2] == titles(plain.invoke(QUESTION))
    assert TEXTS[3] in found[2:]


def test_what_one_search_found_comes_out_as_it_is() -> None:
    twice = documents("a", "a", "b")
    bpo = BPORetriever(retriever=Searches(found=lambda query: twice), optimizer=adding(lambda prompt: ""))
    assert bpo.invoke(QUESTION) == twice
    assert bpo.invoke(QUESTION, k=2) == twice[:2]


def test_documents_are_the_same_by_id_else_by_text_and_metadata() -> None:
    def found(query: str) -> list[Document]:
        rank = len(query)  # differs between the two queries
        return [
            Document("a", id="1", metadata={"score": rank}),
            Document("b", metadata={"source": "x", "tags": ["t"]}),
            Document("b", metadata={"source": "y", "tags": ["t"]}),
            Document("c", metadata={"score": rank}),
        ]

    bpo = BPORetriever(retriever=Searches(found=found), optimizer=adding(), fusion="union")
    assert titles(bpo.invoke(QUESTION)) == ["a", "b", "b", "c", "c"]


def test_k_reaches_the_searches_and_the_result() -> None:
    bpo = BPORetriever(retriever=store().as_retriever(search_kwargs={"k": 2}), optimizer=adding(), k=5)
    assert len(bpo.invoke(QUESTION)) == 5
    assert len(bpo.invoke(QUESTION, k=1)) == 1
    assert len(BPORetriever(retriever=bpo.retriever, optimizer=adding()).invoke(QUESTION)) == 2


def test_other_call_options_reach_the_searches() -> None:
    bpo = BPORetriever(retriever=store().as_retriever(), optimizer=adding())
    found = bpo.invoke(QUESTION, filter=lambda document: "library" in document.page_content)
    assert len(found) == 2


def test_the_documents_are_the_retrievers_own_objects() -> None:
    kept = documents("a", "b")
    found = BPORetriever(retriever=Searches(found=lambda query: kept), optimizer=adding()).invoke(QUESTION)
    assert all(mine is theirs for mine, theirs in zip(found, kept, strict=True))


def test_any_runnable_that_returns_documents_will_do() -> None:
    inner = RunnableLambda(lambda query: documents(str(query)))
    assert titles(BPORetriever(retriever=inner, optimizer=adding()).invoke(QUESTION)) == [QUESTION]


# -- at the same time, once, and without blocking ----------------------------------------------------------------------


def test_both_searches_are_in_flight_at_once() -> None:
    both = threading.Barrier(2, timeout=10)

    def found(query: str) -> list[Document]:
        both.wait()  # raises unless a second search comes
        return documents(query)

    assert len(BPORetriever(retriever=Searches(found=found), optimizer=adding(), fusion="union").invoke(QUESTION)) == 2


async def test_both_async_searches_are_in_flight_at_once() -> None:
    both = asyncio.Barrier(2)

    class Waits(Searches):
        async def _aget_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            async with asyncio.timeout(10):
                await both.wait()
            return documents(query)

    bpo = BPORetriever(retriever=Waits(found=documents), optimizer=adding(), fusion="union")
    assert len(await bpo.ainvoke(QUESTION)) == 2


def test_the_first_search_runs_while_the_model_writes() -> None:
    searched = threading.Event()

    def write(prompt: str) -> str:
        assert searched.wait(10), "the model had to be asked while the first search ran"
        return "Name the fees too."

    def found(query: str) -> list[Document]:
        searched.set()
        return documents(query)

    bpo = BPORetriever(retriever=Searches(found=found), optimizer=adding(write, on_error="raise"), fusion="union")
    assert len(bpo.invoke(QUESTION)) == 2


async def test_the_event_loop_stays_free() -> None:
    ticks = 0
    optimizer = adding(delay=0.2)

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    bpo = BPORetriever(
        retriever=Searches(found=lambda query: [time.sleep(0.2), *documents(query)][1:]), optimizer=optimizer
    )
    ticking = asyncio.create_task(tick())
    await bpo.ainvoke("And there?", history=HISTORY)
    await bpo.ainvoke(QUESTION)
    ticking.cancel()
    assert ticks >= 5  # a loop that is blocked by the model or by a search does not tick at all


async def test_a_query_is_optimized_exactly_once() -> None:
    optimizer = adding(cache=0)
    bpo = BPORetriever(retriever=store().as_retriever(), optimizer=optimizer)
    bpo.invoke(QUESTION)
    assert calls(optimizer) == [[QUESTION]]
    await bpo.ainvoke(QUESTION)
    assert calls(optimizer) == [[QUESTION]] * 2


def test_a_query_that_comes_out_of_bpo_is_not_optimized_again_and_its_original_is_searched() -> None:
    optimizer = adding(cache=0)
    inner = Searches(found=lambda query: documents(query))
    chain = BPORunnable(optimizer=optimizer) | BPORetriever(retriever=inner, optimizer=optimizer)
    chain.invoke(QUESTION)
    assert calls(optimizer) == [[QUESTION]]
    assert sorted(inner._queries) == sorted([QUESTION, f"{QUESTION} Name the fees too."])


def test_context_variables_reach_both_searches() -> None:
    from contextvars import ContextVar

    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
    bpo = BPORetriever(
        retriever=Searches(found=lambda query: documents(f"{tenant.get()} {query}")), optimizer=adding(), fusion="union"
    )
    tenant.set("library")
    assert all(title.startswith("library ") for title in titles(bpo.invoke(QUESTION)))


# -- follow-up questions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_follow_up_is_searched_as_a_question_that_stands_alone(asynchronous: bool) -> None:
    inner = Searches(found=lambda query: documents(query))
    bpo = BPORetriever(retriever=inner, optimizer=standing_alone())
    if asynchronous:
        await bpo.ainvoke("May I eat there?", history=HISTORY)
    else:
        bpo.invoke("May I eat there?", history=HISTORY)
    assert inner._queries == ["May I eat in the library?"]


def test_a_turn_that_stands_alone_is_searched_in_the_users_words_too() -> None:
    inner = Searches(found=lambda query: documents(query))
    question = "What does a ticket for the Berlin zoo cost, if there is a discount?"
    BPORetriever(retriever=inner, optimizer=standing_alone()).invoke(question, history=HISTORY)
    assert question in inner._queries


@pytest.mark.parametrize("as_messages", [False, True])
def test_a_follow_up_that_another_optimizer_kept_is_resolved(as_messages: bool) -> None:
    inner = Searches(found=lambda query: documents("a"))
    question = "May I eat there?"
    kept = BPORunnable(optimizer=adding(lambda prompt: "")).invoke(
        [*HISTORY, HumanMessage(question)] if as_messages else question
    )
    value = {"messages": kept} if as_messages else {"input": kept, "chat_history": HISTORY}
    BPORetriever(retriever=inner, optimizer=standing_alone()).with_history().invoke(value)
    assert len(inner._queries) == 1
    assert "there" not in inner._queries[0]


def test_k_stays_away_from_a_runnable_that_does_not_know_it() -> None:
    inner = RunnableLambda(lambda query: documents("a", "b", "c"))
    assert len(BPORetriever(retriever=inner, optimizer=adding(), k=2).invoke(QUESTION)) == 2


def test_metadata_with_keys_of_mixed_types_are_compared() -> None:
    inner = Searches(found=lambda query: [Document("a", metadata={1: "x", "b": "y"})])
    assert len(BPORetriever(retriever=inner, optimizer=adding()).invoke(QUESTION)) == 1


def test_the_step_is_built_once_and_anew_for_other_options() -> None:
    bpo = BPORetriever(retriever=Searches(found=lambda query: []), optimizer=adding())
    assert bpo._bpo() is bpo._bpo()
    other = adding()
    assert bpo.model_copy(update={"optimizer": other})._bpo()._ready() is other


def test_a_model_that_knows_no_history_leaves_a_follow_up_as_it_is() -> None:
    optimizer = PromptOptimizer(fake_rewriter(lambda prompt: "Name the fees too."))
    inner = Searches(found=lambda query: documents(query))
    BPORetriever(retriever=inner, optimizer=optimizer).invoke("May I eat there?", history=HISTORY)
    assert inner._queries == ["May I eat there?"]
    assert calls(optimizer) == []


def test_any_llm_makes_a_follow_up_stand_alone() -> None:
    inner, llm = (
        Searches(found=lambda query: documents(query)),
        FakeListChatModel(responses=["May I eat in the library?"]),
    )
    BPORetriever(retriever=inner, model=llm, mode="rewrite").invoke("May I eat there?", history=HISTORY)
    assert inner._queries == ["May I eat in the library?"]


def test_a_follow_up_that_is_only_added_to_is_searched_in_the_users_words_too() -> None:
    inner = Searches(found=lambda query: documents(query))
    BPORetriever(retriever=inner, optimizer=adding()).invoke("May I eat there?", history=HISTORY)
    assert "May I eat there?" in inner._queries
    assert len(inner._queries) == 2


def test_every_shape_of_conversation_finds_the_same() -> None:
    question = "May I eat there?"
    messages = [SystemMessage("Be kind."), *HISTORY, HumanMessage(question)]
    for value in (
        {"input": question, "chat_history": HISTORY},
        {"input": question, "chat_history": [("human", HISTORY[0].text), ("ai", HISTORY[1].text)]},
        {"input": HumanMessage(question), "chat_history": HISTORY},
        messages,
        {"messages": messages},
        ChatPromptTemplate.from_messages(messages).invoke({}),
    ):
        inner = Searches(found=lambda query: documents(query))
        BPORetriever(retriever=inner, optimizer=standing_alone()).with_history().invoke(value)
        assert inner._queries == ["May I eat in the library?"], value


def test_a_message_that_was_optimized_is_not_optimized_again() -> None:
    optimizer, inner = adding(cache=0), Searches(found=lambda query: documents(query))
    messages = BPORunnable(optimizer=optimizer).invoke([*HISTORY, HumanMessage(QUESTION)])
    BPORetriever(retriever=inner, optimizer=optimizer).with_history().invoke({"messages": messages})
    assert calls(optimizer) == [[QUESTION]]
    assert sorted(inner._queries) == sorted([QUESTION, messages[-1].text])


async def test_in_a_chain_the_llm_still_sees_the_users_own_turn() -> None:
    bpo = BPORetriever(retriever=Searches(found=lambda query: documents(query)), optimizer=standing_alone())
    prompt = ChatPromptTemplate.from_messages(
        [("placeholder", "{chat_history}"), ("human", "Context: {context}\n\nQuestion: {question}")]
    )
    context = bpo.with_history(input_key="question") | (lambda found: found[0].page_content)
    chain = RunnablePassthrough.assign(context=context) | prompt
    value = {"question": "May I eat there?", "chat_history": HISTORY}
    expected = [*HISTORY, HumanMessage("Context: May I eat in the library?\n\nQuestion: May I eat there?")]
    assert chain.invoke(value).to_messages() == expected
    assert (await chain.ainvoke(value)).to_messages() == expected


def test_without_a_history_with_history_is_the_retriever_itself() -> None:
    bpo = BPORetriever(retriever=store().as_retriever(), optimizer=adding())
    for value in (QUESTION, {"input": QUESTION}, [HumanMessage(QUESTION)]):
        assert titles(bpo.with_history().invoke(value)) == titles(bpo.invoke(QUESTION))


@pytest.mark.parametrize(
    "value", [7, {"question": QUESTION}, [], [AIMessage("Hello.")], [HumanMessage([{"type": "image", "url": "u"}])]]
)
def test_what_is_no_conversation_is_refused(value: Any) -> None:
    bpo = BPORetriever(retriever=store().as_retriever(), optimizer=adding())
    with pytest.raises(InputError):
        bpo.with_history().invoke(value)


# -- when something fails ----------------------------------------------------------------------------------------------


async def test_a_failing_optimizer_leaves_the_plain_retrievers_result() -> None:
    plain = store().as_retriever()
    for include_original in (True, False):
        bpo = BPORetriever(retriever=plain, optimizer=adding(failing), include_original=include_original)
        assert titles(bpo.invoke(QUESTION)) == titles(plain.invoke(QUESTION)) == titles(await bpo.ainvoke(QUESTION))


async def test_an_optimizer_that_shall_raise_raises() -> None:
    bpo = BPORetriever(retriever=store().as_retriever(), optimizer=adding(failing, on_error="raise"))
    with pytest.raises(OptimizationError):
        bpo.invoke(QUESTION)
    with pytest.raises(OptimizationError):
        await bpo.ainvoke(QUESTION)


async def test_when_only_the_optimized_query_breaks_the_search_the_plain_result_stays(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def found(query: str) -> list[Document]:
        if query != QUESTION:
            raise ValueError(f"cannot parse {query}")
        return documents("a")

    bpo = BPORetriever(retriever=Searches(found=found), optimizer=adding())
    assert titles(bpo.invoke(QUESTION)) == titles(await bpo.ainvoke(QUESTION)) == ["a"]
    assert "ValueError" in caplog.text
    assert QUESTION not in caplog.text


async def test_a_retriever_that_fails_fails_as_without_bpo() -> None:
    def found(query: str) -> list[Document]:
        raise ConnectionError("no database")

    for include_original in (True, False):
        bpo = BPORetriever(retriever=Searches(found=found), optimizer=adding(), include_original=include_original)
        with pytest.raises(ConnectionError):
            bpo.invoke(QUESTION)
        with pytest.raises(ConnectionError):
            await bpo.ainvoke(QUESTION)


@pytest.mark.parametrize(
    "options",
    [
        {"model": "nonsense"},
        {"fusion": "best"},
        {"k": 0},
        {"unknown": 1},
        {"retriever": 7},
        {"optimizer": adding(), "mode": "augment"},
    ],
)
def test_a_wrong_configuration_raises_at_construction(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        BPORetriever(**{"retriever": store().as_retriever(), **options})


# -- at home in LangChain ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_the_run_tree_shows_the_optimization_and_both_searches(asynchronous: bool) -> None:
    runs = Runs()
    bpo = BPORetriever(retriever=store().as_retriever(), optimizer=adding())
    config: Any = {"callbacks": [runs], "tags": ["mine"], "metadata": {"tenant": "library"}}
    if asynchronous:
        await bpo.ainvoke(QUESTION, config)
    else:
        bpo.invoke(QUESTION, config)
    (tree,) = runs.trees
    assert (tree.name, tree.run_type) == ("BPORetriever", "retriever")
    children = {child.name: child for child in tree.child_runs}
    assert sorted(child.name for child in tree.child_runs) == [
        "BPORunnable",
        "VectorStoreRetriever",
        "VectorStoreRetriever",
    ]
    queries = {child.inputs["query"] for child in tree.child_runs if child.run_type == "retriever"}
    assert queries == {QUESTION, f"{QUESTION} Name the fees too."}
    assert children["BPORunnable"].extra["metadata"]["bpo_kind"] == "augmented"
    assert all("mine" in child.tags and child.extra["metadata"]["tenant"] == "library" for child in tree.child_runs)


async def test_an_llm_used_as_optimizer_stays_out_of_the_users_stream() -> None:
    runs = Runs()
    BPORetriever(retriever=store().as_retriever(), optimizer=adding()).invoke(QUESTION, {"callbacks": [runs]})
    tags = {child.name: child.tags for child in runs.trees[0].child_runs}
    assert "nostream" in tags["BPORunnable"]
    assert "nostream" not in tags["VectorStoreRetriever"]


async def test_it_is_a_step_like_any_retriever() -> None:
    bpo = BPORetriever(retriever=store().as_retriever(), optimizer=adding())
    chain = {"context": itemgetter("question") | bpo, "question": itemgetter("question")} | RunnablePassthrough()
    found = chain.invoke({"question": QUESTION})
    assert found["question"] == QUESTION
    assert titles(found["context"]) == titles(bpo.invoke(QUESTION))
    settable = bpo.configurable_fields(k=ConfigurableField(id="k"))
    assert len(settable.invoke(QUESTION, {"configurable": {"k": 2}})) == 2
    assert [titles(chunk) for chunk in bpo.stream(QUESTION)] == [titles(bpo.invoke(QUESTION))]
    assert [titles(chunk) async for chunk in bpo.astream(QUESTION)] == [titles(bpo.invoke(QUESTION))]


@pytest.mark.model
async def test_with_the_embedded_model_it_searches_for_both_and_survives_pickling() -> None:
    inner = Searches(found=documents)
    bpo = BPORetriever(retriever=inner, fusion="union")
    question = "How do I grow tomatoes on a balcony?"
    found = titles(bpo.invoke(question))
    assert found[0] == question
    assert all(title.startswith(question) for title in found)
    copy = pickle.loads(pickle.dumps(BPORetriever(retriever=RunnablePassthrough(), k=3)))
    assert (copy.k, copy.model) == (3, "embedded")
