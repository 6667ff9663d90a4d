"""The query side of LlamaIndex, over real indexes: what the search, the LLM and the user get to see."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="the llama-index extra is not installed")

from fakes import fake_rewriter
from llama_index.core import SummaryIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.response.schema import Response
from llama_index.core.callbacks import CallbackManager
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.llms import MockLLM
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.query_engine import RouterQueryEngine, SubQuestionQueryEngine, TransformQueryEngine
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.retrievers import TransformRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.selectors import EmbeddingSingleSelector
from llama_index.core.tools import QueryEngineTool
from llama_parts import ADDED, BETTER, QUESTION, TEXTS, MiniLM, RecordingLLM, Script, adding, asked, failing, library

from bpo_integrations.decoding import STABLE
from bpo_integrations.errors import ConfigurationError, OptimizationError
from bpo_integrations.llama_index import BPOQueryEngine, BPOQueryTransform, BPOTransformRetriever
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.rewriter import Rewriter

# -- the transform ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("embed", "strings"),
    [("original", [QUESTION]), ("optimized", [BETTER]), ("both", [QUESTION, BETTER])],
)
async def test_the_llm_gets_the_optimized_query_and_the_embedding_what_was_chosen(embed: Any, strings: Any) -> None:
    transform = BPOQueryTransform(adding(), embed=embed)
    for query in (transform.run(QUESTION), await transform.arun(QUESTION), transform(QueryBundle(QUESTION))):
        assert query.query_str == BETTER
        assert query.embedding_strs == strings


@pytest.mark.parametrize(
    ("embed", "strings"),
    [("original", ["a page", QUESTION]), ("optimized", ["a page", BETTER]), ("both", ["a page", QUESTION, BETTER])],
)
def test_strings_that_another_transform_put_there_are_kept(embed: Any, strings: Any) -> None:
    query = HyDEQueryTransform(llm=MockLLM()).run(QUESTION)
    query.custom_embedding_strs[0] = "a page"
    assert BPOQueryTransform(adding(), embed=embed).run(query).embedding_strs == strings


def test_the_image_is_kept_and_the_users_bundle_is_not_touched() -> None:
    query = QueryBundle(QUESTION, image_path="cat.png", embedding=[1.0])
    better = BPOQueryTransform(adding()).run(query)
    assert (better.image_path, better.embedding) == ("cat.png", [1.0])
    assert query == QueryBundle(QUESTION, image_path="cat.png", embedding=[1.0])


@pytest.mark.parametrize("embed", ["optimized", "both"])
def test_a_vector_that_was_computed_for_the_original_is_not_taken_for_the_optimized_query(embed: Any) -> None:
    assert BPOQueryTransform(adding(), embed=embed).run(QueryBundle(QUESTION, embedding=[1.0])).embedding is None


def test_a_query_that_is_left_alone_comes_back_as_the_same_object() -> None:
    query = QueryBundle("Hello!")
    assert BPOQueryTransform(adding()).run(query) is query


async def test_a_query_is_optimized_once_even_by_unseeded_sampling() -> None:
    rewriter = adding()
    transform = BPOQueryTransform(optimizer=PromptOptimizer(rewriter, decoding=STABLE))
    for _ in range(3):
        transform.run(QUESTION)
        await transform.arun(QUESTION)
    assert asked(rewriter) == [QUESTION]


def test_an_optimized_query_is_not_optimized_again_by_another_transform() -> None:
    other = adding("Name the sources.")
    query = BPOQueryTransform(adding()).run(QUESTION)
    assert BPOQueryTransform(other).run(query) == query
    assert asked(other) == []


async def test_concurrent_queries_do_not_disturb_each_other() -> None:
    rewriter = fake_rewriter(lambda prompt: f"Say where {prompt.split()[-1]} live.", delay=0.01)
    transform = BPOQueryTransform(rewriter)
    animals = "cats dogs horses cows sheep goats wolves bears foxes owls".split()
    queries = [f"Tell me about {animal}" for animal in animals]
    found = await asyncio.gather(*(transform.arun(query) for query in queries * 2))
    expected = [f"Tell me about {animal}. Say where {animal} live." for animal in animals]
    assert [query.query_str for query in found] == expected * 2
    assert sorted(asked(rewriter)) == sorted(queries)


async def test_a_failure_lets_the_original_go_on_and_is_tried_again() -> None:
    rewriter = fake_rewriter(failing)
    transform = BPOQueryTransform(rewriter)
    assert transform.run(QUESTION).query_str == QUESTION
    assert (await transform.arun(QUESTION)).query_str == QUESTION
    rewriter.engine.answer = lambda prompt: ADDED
    assert transform.run(QUESTION).query_str == BETTER


async def test_a_failure_is_raised_where_that_is_asked_for() -> None:
    transform = BPOQueryTransform(fake_rewriter(failing), on_error="raise")
    with pytest.raises(OptimizationError):
        transform.run(QUESTION)
    with pytest.raises(OptimizationError):
        await transform.arun(QUESTION)


def test_shadow_asks_the_model_and_changes_nothing() -> None:
    rewriter = adding()
    assert BPOQueryTransform(rewriter, shadow=True).run(QUESTION).query_str == QUESTION
    assert asked(rewriter) == [QUESTION]


def test_the_history_in_the_metadata_reaches_the_policy() -> None:
    seen = []

    def policy(prompt: str, context: Any) -> str | None:
        seen.append(context.history)
        return "enough"

    transform = BPOQueryTransform(optimizer=PromptOptimizer(adding(), policy=policy))
    transform.run(QUESTION, metadata={"history": ["Hi", "Hello"]})
    transform.run(QUESTION)
    assert seen == [("Hi", "Hello"), ()]


@pytest.mark.parametrize("options", [{"embed": "neither"}, {"mode": "rewrite"}, {"passes": 99}])
def test_a_wrong_option_is_refused_at_construction(options: Any) -> None:
    with pytest.raises(ConfigurationError):
        BPOQueryTransform(adding(), **options)


@pytest.mark.parametrize("others", [{"model": adding()}, {"shadow": True}])
def test_an_optimizer_and_its_options_together_are_refused(others: Any) -> None:
    with pytest.raises(ConfigurationError, match="optimizer="):
        BPOQueryTransform(optimizer=PromptOptimizer(adding()), **others)


async def test_an_llm_of_llama_index_can_be_the_optimizer() -> None:
    script = Script(ADDED)
    transform = BPOQueryTransform(model=script.llm)
    assert (await transform.arun(QUESTION)).query_str == BETTER
    assert transform.run(QUESTION).query_str == BETTER
    assert len(script.asked) == 1
    shown = transform.get_prompts()["bpo_prompt"].format_messages(prompt=QUESTION)
    assert [message.content for message in shown] == [message.content for message in script.asked[0]]


# -- its prompt ------------------------------------------------------------------------------------------------------


def test_the_rewriters_prompt_is_shown_by_the_engine() -> None:
    prompts = BPOQueryEngine(library().as_query_engine(llm=MockLLM()), BPOQueryTransform(adding())).get_prompts()
    shown = prompts["query_transform:bpo_prompt"].format_messages(prompt="{this} one")
    assert [(message.role.value, message.content) for message in shown] == [
        ("system", "Improve."),
        ("user", "{this} one"),
    ]
    assert any(name.startswith("query_engine:") for name in prompts)


def test_the_prompt_of_a_trained_rewriter_cannot_be_replaced() -> None:
    with pytest.raises(ConfigurationError, match="trained"):
        BPOQueryTransform(adding()).update_prompts({"bpo_prompt": PromptTemplate("Better: {prompt}")})


def test_the_prompt_of_a_general_llm_can_be_replaced_and_nothing_old_is_served() -> None:
    trained = adding()
    general = Rewriter(trained.engine, trained.record, parse=str.strip)
    mine = PromptOptimizer(general)
    transform = BPOQueryTransform(optimizer=mine)
    transform.run(QUESTION)
    transform.update_prompts(transform.get_prompts())  # what is shown can be given back
    assert transform.optimizer.rewriter.record.format == general.record.format
    transform.update_prompts({"bpo_prompt": PromptTemplate('Answer as {{"text": ...}}: {prompt}')})
    transform.run(QUESTION)
    assert asked(general)[-1] == f'Answer as {{"text": ...}}: {QUESTION}'
    assert mine.rewriter is general, "the user's own optimizer stays as it is"


def test_a_prompt_without_a_place_for_the_query_is_refused() -> None:
    trained = adding()
    transform = BPOQueryTransform(Rewriter(trained.engine, trained.record, parse=str.strip))
    for template in (PromptTemplate("Better!"), ChatPromptTemplate.from_messages([("user", "{prompt}")] * 2)):
        with pytest.raises(ConfigurationError):
            transform.update_prompts({"bpo_prompt": template})


# -- the engine ------------------------------------------------------------------------------------------------------


async def test_the_engine_asks_the_llm_the_optimized_query_once() -> None:
    rewriter, llm = adding(), RecordingLLM()
    engine = BPOQueryEngine(library().as_query_engine(llm=llm), BPOQueryTransform(rewriter))
    assert isinstance(engine, TransformQueryEngine)
    engine.query(QUESTION)
    await engine.aquery(QUESTION)
    assert len(llm.prompts) == 2
    assert all(f"Query: {BETTER}" in prompt for prompt in llm.prompts)
    assert asked(rewriter) == [QUESTION]


async def test_retrieve_and_synthesize_of_one_query_cost_one_optimization() -> None:
    rewriter, llm = adding(), RecordingLLM()
    engine = BPOQueryEngine(library().as_query_engine(llm=llm), BPOQueryTransform(rewriter))
    query = QueryBundle(QUESTION)
    engine.synthesize(query, engine.retrieve(query))
    await engine.asynthesize(query, await engine.aretrieve(query))
    assert asked(rewriter) == [QUESTION]
    assert all(f"Query: {BETTER}" in prompt for prompt in llm.prompts)


async def test_the_constructor_is_that_of_the_transform_query_engine() -> None:
    inner, transform, manager = library().as_query_engine(llm=MockLLM()), BPOQueryTransform(adding()), CallbackManager()
    seen = []
    transform._put = lambda query, result: seen.append(result.original) or query
    engine = BPOQueryEngine(inner, transform, {"history": ["Hi"]}, manager)
    assert engine.callback_manager is manager
    await engine.aquery(QUESTION)
    assert seen == [QUESTION]


async def test_a_foreign_transform_is_run_off_the_event_loop() -> None:
    transform = HyDEQueryTransform(llm=MockLLM(max_tokens=3))
    response = await BPOQueryEngine(library().as_query_engine(llm=MockLLM()), transform).aquery(QUESTION)
    assert isinstance(response, Response)


@pytest.mark.parametrize("embed", ["original", "optimized", "both"])
async def test_a_real_embedding_search_finds_the_document(embed: Any) -> None:
    index = library(real=True)
    engine = BPOQueryEngine(
        index.as_query_engine(llm=MockLLM(), similarity_top_k=1), BPOQueryTransform(adding(), embed=embed)
    )
    for response in (engine.query(QUESTION), await engine.aquery(QUESTION)):
        assert [node.node.node_id for node in response.source_nodes] == ["lending"]


async def test_with_the_users_words_embedded_the_search_is_exactly_as_without() -> None:
    index = library(real=True)
    engine = BPOQueryEngine(index.as_query_engine(llm=MockLLM()), BPOQueryTransform(adding()))
    plain = index.as_query_engine(llm=MockLLM()).query(QUESTION)
    for response in (engine.query(QUESTION), await engine.aquery(QUESTION)):
        assert [(n.node.node_id, n.score) for n in response.source_nodes] == [
            (n.node.node_id, n.score) for n in plain.source_nodes
        ]


async def test_a_router_chooses_by_the_optimized_query_and_its_engines_do_not_optimize_it_again() -> None:
    rewriter, inner, llm = adding(), adding("Name the sources."), RecordingLLM()
    tools = [
        QueryEngineTool.from_defaults(
            BPOQueryEngine(library().as_query_engine(llm=llm), BPOQueryTransform(inner)), description=description
        )
        for description in ("The lending of books: terms and fees.", "Sourdough bread and how it is baked.")
    ]
    router = RouterQueryEngine(EmbeddingSingleSelector.from_defaults(embed_model=MiniLM()), tools, llm=llm)
    engine = BPOQueryEngine(router, BPOQueryTransform(rewriter))
    for response in (engine.query(QUESTION), await engine.aquery(QUESTION)):
        assert response.metadata["selector_result"].selections[0].index == 0
    assert (asked(rewriter), asked(inner)) == ([QUESTION], [])
    assert all(f"Query: {BETTER}" in prompt for prompt in llm.prompts)


class TwoQuestions(BaseQuestionGenerator):
    """Makes two questions of any."""

    def generate(self, tools: Any, query: QueryBundle) -> list[SubQuestion]:
        questions = ("Explain how long a book may be kept", "Explain the fees of the library")
        return [SubQuestion(sub_question=question, tool_name="library") for question in questions]

    async def agenerate(self, tools: Any, query: QueryBundle) -> list[SubQuestion]:
        return self.generate(tools, query)

    def _get_prompts(self) -> Any:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        pass


@pytest.mark.parametrize("use_async", [False, True])
async def test_a_sub_question_engine_has_each_question_optimized_once(use_async: bool) -> None:
    rewriter, llm = adding(), RecordingLLM()
    transform = BPOQueryTransform(rewriter)
    tool = QueryEngineTool.from_defaults(
        BPOQueryEngine(library().as_query_engine(llm=llm), transform), name="library", description="The library."
    )
    inner = SubQuestionQueryEngine.from_defaults(
        [tool], llm=llm, question_gen=TwoQuestions(), use_async=use_async, verbose=False
    )
    engine = BPOQueryEngine(inner, transform)
    if use_async:
        await engine.aquery(QUESTION)
    else:
        await asyncio.to_thread(engine.query, QUESTION)
    assert sorted(asked(rewriter)) == [
        "Explain how long a book may be kept",
        "Explain the fees of the library",
        QUESTION,
    ]
    assert f"Query: {BETTER}" in llm.prompts[-1]


async def test_the_answer_streams() -> None:
    engine = BPOQueryEngine(
        SummaryIndex([TextNode(text="A text.")]).as_query_engine(llm=MockLLM(), streaming=True),
        BPOQueryTransform(adding()),
    )
    assert ADDED in "".join(engine.query(QUESTION).response_gen)
    assert ADDED in "".join([token async for token in (await engine.aquery(QUESTION)).async_response_gen()])


# -- the retriever ---------------------------------------------------------------------------------------------------


class Lists(BaseRetriever):
    """Finds what `found` says for a query string, and keeps the strings that it was asked to embed."""

    def __init__(self, found: dict[str, list[str]]) -> None:
        self.found = found
        self.searches: list[list[str]] = []
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self.searches.append(query_bundle.embedding_strs)
        names = self.found[query_bundle.query_str]
        return [
            NodeWithScore(node=TextNode(id_=name, text=name), score=1.0 / rank) for rank, name in enumerate(names, 1)
        ]


def names(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node.node_id for node in nodes]


FOUND = {QUESTION: ["a", "b", "c"], BETTER: ["c", "d", "a"]}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["a", "c", "b"]),
        ({"fusion": "union"}, ["a", "b", "c", "d"]),
        ({"include_original": False}, ["c", "d", "a"]),
    ],
)
async def test_both_searches_are_merged(options: Any, expected: list[str]) -> None:
    rewriter, inner = adding(), Lists(FOUND)
    retriever = BPOTransformRetriever(inner, BPOQueryTransform(rewriter, embed="optimized"), **options)
    assert isinstance(retriever, TransformRetriever)
    assert names(retriever.retrieve(QUESTION)) == expected
    assert names(await retriever.aretrieve(QUESTION)) == expected
    assert asked(rewriter) == [QUESTION]


async def test_a_query_that_is_left_alone_is_searched_for_once() -> None:
    inner = Lists({"Hello!": ["a"]})
    retriever = BPOTransformRetriever(inner, BPOQueryTransform(adding()))
    assert names(retriever.retrieve("Hello!")) == names(await retriever.aretrieve("Hello!")) == ["a"]
    assert len(inner.searches) == 2


async def test_a_second_search_that_fails_costs_nobody_the_first() -> None:
    inner = Lists({QUESTION: ["a", "b"]})  # the optimized query is a KeyError
    retriever = BPOTransformRetriever(inner, BPOQueryTransform(adding()))
    assert names(retriever.retrieve(QUESTION)) == ["a", "b"]
    assert names(await retriever.aretrieve(QUESTION)) == ["a", "b"]
    with pytest.raises(KeyError):
        await BPOTransformRetriever(inner, BPOQueryTransform(adding()), include_original=False).aretrieve(QUESTION)


async def test_the_second_search_is_for_the_optimized_query() -> None:
    inner = Lists(FOUND)
    retriever = BPOTransformRetriever(inner, BPOQueryTransform(adding(), embed="optimized"))
    await retriever.aretrieve(QUESTION)
    assert inner.searches == [[QUESTION], [BETTER]]


async def test_a_real_index_finds_the_document_through_the_retriever() -> None:
    retriever = BPOTransformRetriever(
        library(real=True).as_retriever(similarity_top_k=2), BPOQueryTransform(adding(), embed="optimized")
    )
    for nodes in (retriever.retrieve(QUESTION), await retriever.aretrieve(QUESTION)):
        assert names(nodes)[0] == "lending"
        assert len(nodes) == 2
        assert nodes[0].node.text == TEXTS["lending"]


def test_an_unknown_fusion_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="fusion"):
        BPOTransformRetriever(Lists(FOUND), BPOQueryTransform(adding()), fusion="best")
