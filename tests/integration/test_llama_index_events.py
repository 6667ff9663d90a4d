"""What LlamaIndex's instrumentation sees of an optimization, and what happens without LlamaIndex."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="the llama-index extra is not installed")

from fakes import fake_rewriter
from llama_index.core.instrumentation.events.query import QueryEndEvent, QueryStartEvent
from llama_index.core.llms import MockLLM
from llama_parts import ADDED, BETTER, QUESTION, Script, failing, library, listening

from bpo_integrations.errors import OptimizationError
from bpo_integrations.llama_index import (
    BPOFunctionAgent,
    BPOQueryEngine,
    BPOQueryTransform,
    PromptOptimizationEndEvent,
    PromptOptimizationStartEvent,
)

OURS = (PromptOptimizationStartEvent, PromptOptimizationEndEvent)


@pytest.mark.parametrize("use_async", [False, True])
async def test_a_query_tells_of_its_optimization_once_between_its_own_events(use_async: bool) -> None:
    rewriter = fake_rewriter(lambda prompt: ADDED)
    engine = BPOQueryEngine(library().as_query_engine(llm=MockLLM()), BPOQueryTransform(rewriter))
    with listening() as (events, spans):
        if use_async:
            await engine.aquery(QUESTION)
        else:
            engine.query(QUESTION)
    kinds = [type(event) for event in events if isinstance(event, (*OURS, QueryStartEvent, QueryEndEvent))]
    assert kinds == [QueryStartEvent, *OURS, QueryStartEvent, QueryEndEvent, QueryEndEvent]
    start, end = (event for event in events if isinstance(event, OURS))
    assert (start.original, start.rewriter) == (QUESTION, rewriter.id)
    assert (end.original, end.text, end.kind, end.rewriter) == (QUESTION, BETTER, "augmented", rewriter.id)
    assert (end.reason, end.proposal) == ("added by the model", None)
    assert end.seconds >= 0
    assert end.model_dump()["class_name"] == "PromptOptimizationEndEvent"
    (span,) = [span for span in spans.completed_spans if span.id_.startswith("TracedOptimizer")]
    assert start.span_id == end.span_id == span.id_
    parents = {span.id_: span.parent_id for span in spans.completed_spans}
    assert parents[span.id_].startswith("BPOQueryTransform")


async def test_an_agents_run_tells_of_one_optimization() -> None:
    script = Script(("look_up", {}), "Done.")

    def look_up() -> str:
        return "All about books."

    agent = BPOFunctionAgent(model=fake_rewriter(lambda prompt: ADDED), llm=script.llm, tools=[look_up])
    with listening() as (events, _):
        await agent.run(QUESTION)
    assert [type(event) for event in events if isinstance(event, OURS)] == [*OURS]


def test_what_would_have_gone_on_in_shadow_mode_is_told() -> None:
    with listening() as (events, _):
        BPOQueryTransform(fake_rewriter(lambda prompt: ADDED), shadow=True).run(QUESTION)
    assert (events[-1].text, events[-1].proposal) == (QUESTION, BETTER)


async def test_a_failure_is_told_and_one_that_is_raised_drops_its_span() -> None:
    with listening() as (events, _):
        BPOQueryTransform(fake_rewriter(failing)).run(QUESTION)
    assert events[-1].kind == "kept"
    assert "on fire" in events[-1].reason
    with listening() as (events, spans), pytest.raises(OptimizationError):
        await BPOQueryTransform(fake_rewriter(failing), on_error="raise").arun(QUESTION)
    assert [type(event) for event in events if isinstance(event, OURS)] == [PromptOptimizationStartEvent]
    assert spans.dropped_spans


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_the_project_does_not_import_llama_index() -> None:
    assert run("import sys, bpo_integrations; print('llama_index' in sys.modules)") == "False"


def test_without_llama_index_the_install_line_is_told() -> None:
    printed = run(
        """
        import sys
        sys.modules["llama_index"] = sys.modules["llama_index.core"] = None  # as if it were not installed
        try:
            import bpo_integrations.llama_index
        except ImportError as error:
            print(type(error).__name__, error)
        """
    )
    assert printed.startswith("MissingExtraError")
    assert 'pip install "bpo-integrations[llama-index]"' in printed


def test_all_that_is_exported_has_a_docstring() -> None:
    import bpo_integrations.llama_index as package

    exported: list[Any] = [getattr(package, name) for name in package.__all__]
    assert all(item.__doc__ for item in exported)
