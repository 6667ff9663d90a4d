"""`BPOMiddleware`'s promises in real agents: the LLM sees the improved turn, the state keeps the user's own words."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
from fakes import FakeEngine, fake_rewriter

pytest.importorskip("langchain.agents", reason="the agents extra is not installed")

from hypothesis import given
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware, PIIMiddleware
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import tool
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import Field

from bpo_integrations import PromptOptimizer, agent_policy
from bpo_integrations.commands import is_tool_command
from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Request
from bpo_integrations.errors import ConfigurationError, EngineError, OptimizationError
from bpo_integrations.langchain import BPOMiddleware, BPORunnable
from bpo_integrations.policy import PolicyContext, default_policy
from bpo_integrations.result import Candidate
from bpo_integrations.rewriter import Rewriter

QUESTION = "How do vaccines train the immune system?"
ADDITION = "Cover memory cells."
BETTER = f"{QUESTION} {ADDITION}"


class Scripted(BaseChatModel):
    """Answers from a script, word by word when it streams, and keeps what it was shown."""

    script: list[AIMessage]
    seen: list[list[BaseMessage]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self.bind(tools=[each.name for each in tools], **kwargs)

    def _next(self, messages: list[BaseMessage]) -> AIMessage:
        self.seen.append(messages)
        return self.script[min(len(self.seen), len(self.script)) - 1].model_copy(update={"id": None})

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._next(messages))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: Any = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **_: Any,
    ) -> Iterator[ChatGenerationChunk]:
        answer = self._next(messages)
        for word in str(answer.content).split():
            yield ChatGenerationChunk(message=AIMessageChunk(content=f"{word} "))
        calls = [{**call, "index": None} for call in answer.tool_calls]
        yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_calls=calls, chunk_position="last"))

    def turns(self, call: int = -1) -> list[str]:
        """The human turns that were seen in a call."""
        return [str(message.text) for message in self.seen[call] if isinstance(message, HumanMessage)]


def scripted(*answers: str | AIMessage) -> Scripted:
    return Scripted(script=[AIMessage(each) if isinstance(each, str) else each for each in answers])


def calls(name: str, **args: Any) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": f"call-{name}"}])


def rewriter(answer: Callable[[str], str] = lambda _: ADDITION, **options: Any) -> Any:
    return fake_rewriter(answer, **options)


def middleware(answer: Callable[[str], str] = lambda _: ADDITION, **options: Any) -> BPOMiddleware:
    return BPOMiddleware(rewriter(answer), **options)


def say_more(prompt: str) -> str:
    return f"Cover {prompt.split()[-1].rstrip('?')} in depth."


def engine_of(made: BPOMiddleware) -> FakeEngine:
    assert made.runnable.optimizer is not None
    engine = made.runnable.optimizer.rewriter.engine
    assert isinstance(engine, FakeEngine)
    return engine


@tool
def search(query: str) -> str:
    """Search."""
    return f"found {query}"


async def _sync(agent: Any, value: Any, config: Any = None) -> Any:
    return agent.invoke(value, config)


async def _async(agent: Any, value: Any, config: Any = None) -> Any:
    return await agent.ainvoke(value, config)


Ways = pytest.mark.parametrize("run", [_sync, _async], ids=["sync", "async"])
Run_ = Callable[..., Awaitable[Any]]
THREAD: Any = {"configurable": {"thread_id": "1"}}


def asked(text: Any = QUESTION) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


# -- what the LLM sees, and what the state keeps -----------------------------------------------------------------------


@Ways
async def test_the_llm_sees_the_improved_turn_in_every_call_and_the_state_keeps_the_user_s(run: Run_) -> None:
    llm, bpo = scripted(calls("search", query="x"), "Done."), middleware()
    state = await run(create_agent(llm, [search], system_prompt="Be kind.", middleware=[bpo]), asked())
    assert [llm.turns(0), llm.turns(1)] == [[BETTER], [BETTER]]
    assert [type(message) for message in llm.seen[1]] == [SystemMessage, HumanMessage, AIMessage, ToolMessage]
    assert llm.seen[1][1].additional_kwargs["bpo"] == {
        "original": QUESTION,
        "kind": "augmented",
        "reason": "added by the model",
    }
    assert engine_of(bpo).calls == [[QUESTION]], "once a run, not once a model call"
    assert state["messages"][0].content == QUESTION
    assert state["messages"][0].additional_kwargs == {}
    assert set(state) == {"messages"}, "the optimized turns are private"


@Ways
async def test_each_turn_of_a_thread_is_optimized_once_and_the_llm_sees_earlier_ones_as_before(run: Run_) -> None:
    histories: list[tuple[str, ...]] = []

    def policy(prompt: str, context: PolicyContext) -> str | None:
        histories.append(context.history)
        return None

    llm, bpo = scripted("One.", "Two."), middleware(say_more, policy=policy)
    agent = create_agent(llm, middleware=[bpo], checkpointer=InMemorySaver())
    await run(agent, asked("What are vaccines?"), THREAD)
    await run(agent, asked("What are antibodies?"), THREAD)
    first = "What are vaccines? Cover vaccines in depth."
    assert llm.turns(0) == [first]
    assert llm.turns(1) == [first, "What are antibodies? Cover antibodies in depth."]
    assert histories == [(), ("What are vaccines?", "One.")]
    assert engine_of(bpo).calls == [["What are vaccines?"], ["What are antibodies?"]]
    kept = agent.get_state(THREAD).values
    assert [message.text for message in kept["messages"]] == [
        "What are vaccines?",
        "One.",
        "What are antibodies?",
        "Two.",
    ]
    assert len(kept["bpo_turns"]) == 2


@Ways
async def test_an_interrupted_run_goes_on_with_the_same_turn_and_no_second_optimization(run: Run_) -> None:
    llm, bpo = scripted(calls("search", query="x"), "Done."), middleware()
    approval = HumanInTheLoopMiddleware(interrupt_on={"search": True})
    agent = create_agent(llm, [search], middleware=[bpo, approval], checkpointer=InMemorySaver())
    assert (await run(agent, asked(), THREAD))["__interrupt__"]
    state = await run(agent, Command(resume={"decisions": [{"type": "approve"}]}), THREAD)
    assert state["messages"][-1].text == "Done."
    assert [llm.turns(0), llm.turns(1)] == [[BETTER], [BETTER]]
    assert engine_of(bpo).calls == [[QUESTION]]


def test_a_failed_run_is_taken_up_again_without_a_second_optimization() -> None:
    class Flaky(Scripted):
        def _next(self, messages: list[BaseMessage]) -> AIMessage:
            answer = super()._next(messages)
            if len(self.seen) == 1:
                raise ConnectionError("gone")
            return answer

    llm, bpo = Flaky(script=[AIMessage("Done.")]), middleware()
    agent = create_agent(llm, middleware=[bpo], checkpointer=InMemorySaver())
    with pytest.raises(ConnectionError):
        agent.invoke(asked(), THREAD)
    assert agent.invoke(None, THREAD)["messages"][-1].text == "Done."
    assert [llm.turns(0), llm.turns(1)] == [[BETTER], [BETTER]]
    assert engine_of(bpo).calls == [[QUESTION]]


def test_the_turn_of_a_forgotten_message_is_forgotten() -> None:
    from langchain_core.messages import RemoveMessage

    agent = create_agent(scripted("One."), middleware=[middleware()], checkpointer=InMemorySaver())
    agent.invoke({"messages": [HumanMessage(QUESTION, id="first")]}, THREAD)
    agent.update_state(THREAD, {"messages": [RemoveMessage("first")]})
    agent.invoke({"messages": [HumanMessage(QUESTION, id="second")]}, THREAD)
    assert set(agent.get_state(THREAD).values["bpo_turns"]) == {"second"}


def test_a_turn_that_is_redacted_after_it_was_optimized_stays_redacted() -> None:
    text = "How do I write to ann@example.org about her garden?"
    llm = scripted("Done.")
    create_agent(llm, middleware=[middleware(), PIIMiddleware("email")]).invoke(asked(text))
    (turn,) = llm.turns()
    assert "ann@example.org" not in turn
    assert ADDITION not in turn


def test_of_a_multimodal_turn_only_the_text_changes() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    content = [{"type": "text", "text": QUESTION}, image]
    llm = scripted("Done.")
    state = create_agent(llm, middleware=[middleware()]).invoke(asked(content))
    assert llm.seen[0][-1].content == [{"type": "text", "text": BETTER}, image]
    assert state["messages"][0].content == content


@pytest.mark.parametrize("content", ["", [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]])
def test_a_turn_without_text_goes_on_as_it_is(content: Any) -> None:
    llm = scripted("Done.")
    create_agent(llm, middleware=[middleware()]).invoke(asked(content))
    assert llm.seen[0][-1].content == content


def test_an_optimized_turn_is_not_optimized_again() -> None:
    llm, bpo = scripted("Done."), middleware()
    (message,) = BPORunnable(optimizer=PromptOptimizer(rewriter())).invoke([HumanMessage(QUESTION)])
    create_agent(llm, middleware=[bpo]).invoke({"messages": [message]})
    assert llm.turns() == [BETTER]
    assert engine_of(bpo).calls == []


def test_what_does_not_end_with_the_user_s_turn_is_left_alone() -> None:
    llm, bpo = scripted("Done."), middleware()
    create_agent(llm, middleware=[bpo]).invoke({"messages": [HumanMessage(QUESTION), AIMessage("Well,")]})
    assert llm.turns() == [QUESTION]
    assert engine_of(bpo).calls == []


@Ways
async def test_a_sub_agent_s_turn_is_optimized_by_its_own_middleware_alone(run: Run_) -> None:
    inner_llm, outer_llm = scripted("Inner."), scripted(calls("expert", question="What are antibodies?"), "Outer.")
    inner, outer = middleware(lambda _: "Be thorough."), middleware()
    specialist = create_agent(inner_llm, middleware=[inner])

    @tool
    async def expert(question: str) -> str:
        """Ask the expert."""
        return str((await run(specialist, asked(question)))["messages"][-1].text)

    state = await create_agent(outer_llm, [expert], middleware=[outer]).ainvoke(asked())
    assert inner_llm.turns() == ["What are antibodies? Be thorough."]
    assert outer_llm.turns() == [BETTER]
    assert [type(message) for message in state["messages"]] == [HumanMessage, AIMessage, ToolMessage, AIMessage]
    assert state["messages"][2].content == "Inner."


async def test_concurrent_runs_do_not_mix() -> None:
    bpo = BPOMiddleware(rewriter(say_more, delay=0.01))
    texts = [f"What is topic{index}?" for index in range(12)]
    models = [scripted("Done.") for _ in texts]
    agents = [create_agent(llm, middleware=[bpo]) for llm in models]
    await asyncio.gather(*(agent.ainvoke(asked(text)) for agent, text in zip(agents, texts, strict=True)))
    assert [llm.turns() for llm in models] == [[f"{text} {say_more(text)}"] for text in texts]


# -- an LLM as optimizer -----------------------------------------------------------------------------------------------


class Asking(FakeEngine):
    """An engine of somebody's own, which asks a chat model and does not think of streams."""

    def __init__(self, llm: BaseChatModel) -> None:
        super().__init__()
        self.llm = llm

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        return [[Candidate(str(self.llm.invoke("Improve.").text).strip())] for _ in requests]

    async def agenerate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        return [[Candidate(str((await self.llm.ainvoke("Improve.")).text).strip())] for _ in requests]


ByLLM = pytest.mark.parametrize(
    "optimizing", [lambda llm: llm, lambda llm: Rewriter(Asking(llm), rewriter().record)], ids=["an llm", "an engine"]
)


@pytest.mark.parametrize("asynchronous", [False, True])
@ByLLM
async def test_an_llm_used_as_optimizer_stays_out_of_the_token_stream(optimizing: Any, asynchronous: bool) -> None:
    helper, llm = scripted(ADDITION), scripted("The answer.")
    agent = create_agent(llm, middleware=[BPOMiddleware(optimizing(helper))])
    if asynchronous:
        found = [chunk async for chunk, _ in agent.astream(asked(), stream_mode="messages")]
    else:
        found = [chunk for chunk, _ in agent.stream(asked(), stream_mode="messages")]
    assert "".join(str(chunk.content) for chunk in found).strip() == "The answer."
    assert len(helper.seen) == 1
    assert llm.turns() == [BETTER]


@pytest.mark.filterwarnings("ignore:The v3 streaming protocol")
@ByLLM
def test_an_llm_used_as_optimizer_stays_out_of_the_typed_message_stream(optimizing: Any) -> None:
    llm = scripted("The answer.")
    agent = create_agent(llm, middleware=[BPOMiddleware(optimizing(scripted(ADDITION)))])
    run = agent.stream_events(asked(), version="v3")
    assert [str(message.text).strip() for message in run.messages] == ["The answer."]
    assert llm.turns() == [BETTER]


# -- failures, shadow, options -----------------------------------------------------------------------------------------


def _broken(_: str) -> str:
    raise EngineError("Out of memory.", hint="Buy some.")


@Ways
async def test_where_the_optimizer_fails_the_original_goes_on(run: Run_) -> None:
    llm = scripted("Done.")
    await run(create_agent(llm, middleware=[middleware(_broken)]), asked())
    assert llm.turns() == [QUESTION]
    assert llm.seen[0][-1].additional_kwargs["bpo"]["reason"].startswith("failed: EngineError")


@Ways
async def test_on_error_raise_ends_the_run(run: Run_) -> None:
    with pytest.raises(OptimizationError):
        await run(create_agent(scripted("Done."), middleware=[middleware(_broken, on_error="raise")]), asked())


def test_shadow_changes_nothing_and_keeps_the_proposal() -> None:
    llm = scripted("Done.")
    agent = create_agent(llm, middleware=[middleware(shadow=True)], checkpointer=InMemorySaver())
    agent.invoke(asked(), THREAD)
    assert llm.turns() == [QUESTION]
    (turn,) = agent.get_state(THREAD).values["bpo_turns"].values()
    assert turn == {
        "original": QUESTION,
        "text": QUESTION,
        "kind": "kept",
        "reason": "shadow: added by the model",
        "proposal": BETTER,
    }


def test_a_rewrite_must_be_asked_for() -> None:
    rewrites = fake_rewriter(lambda _: "How do vaccines train the immune system? Explain.", mode="rewrite")
    for options in ({"model": rewrites}, {"optimizer": PromptOptimizer(rewrites)}):
        with pytest.raises(ConfigurationError, match="rewrite"):
            BPOMiddleware(**options)
        llm = scripted("Done.")
        create_agent(llm, middleware=[BPOMiddleware(**options, mode="rewrite")]).invoke(asked())
        assert llm.seen[0][-1].additional_kwargs["bpo"]["kind"] == "rewritten"


@pytest.mark.parametrize("options", [{"model": "ct2:x"}, {"shadow": True}, {"timeout": 3}])
def test_an_optimizer_and_options_exclude_each_other(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        BPOMiddleware(optimizer=PromptOptimizer(rewriter()), **options)


# -- tracing -----------------------------------------------------------------------------------------------------------


class Tracer(BaseTracer):
    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.runs.append(run)


def all_runs(runs: Sequence[Run]) -> Iterator[Run]:
    for run in runs:
        yield run
        yield from all_runs(run.child_runs)


@Ways
async def test_the_trace_shows_the_optimization_as_one_run(run: Run_) -> None:
    tracer = Tracer()
    agent = create_agent(scripted(calls("search", query="x"), "Done."), [search], middleware=[middleware()])
    await run(agent, asked(), {"callbacks": [tracer]})
    (found,) = [each for each in all_runs(tracer.runs) if each.name == "BPORunnable"]
    assert found.outputs is not None
    assert found.outputs["output"][-1].content == BETTER
    assert found.metadata["bpo_kind"] == "augmented"
    assert found.metadata["bpo_rewriter"].startswith("fake:augment")
    assert QUESTION not in str(found.metadata)


# -- orders to tools ---------------------------------------------------------------------------------------------------

ORDERS = [
    "delete the file foo",
    "send the mail to Bob",
    "book a table for two at 7",
    "add 3 and 4",
    "Remind me to call mum tomorrow at noon",
    "Turn off the lights in the kitchen",
    "Can you cancel my subscription please",
    "set a timer for ten minutes",
    "Please move the meeting with Ann to Friday",
    "play some jazz",
    "What is 17 times 23?",
    "Order two pizzas to my office",
    "create a ticket for the login bug and assign it to me",
    "my card was stolen, please block it",
    "look up order 4711",
    "transfer 50 euros to my savings account",
    "check whether the server is up",
    "Schedule a call with the design team for Monday morning",
    "search the web for the latest release of Python",
    "mark all emails from last week as read",
    "Rename the branch to release-2",
    "post this to the team channel",
    "I need you to refund the customer with id 88",
    "get the weather in Oslo",
    "Find me a flight from Paris to Rome on 3 May",
    "increase the font size by two points",
    "Could you upload the report to the shared drive?",
    "convert 10 miles to kilometres",
    "show me my open invoices",
    "roll back the last deployment",
    "Reply to Jane that I'll be late",
    "put milk on my shopping list",
    "log me out of all devices",
    "fetch the price of AAPL",
    "open the garage door",
    "Hi! Please reschedule my dentist appointment to next week.",
    "approve the pull request from Kim",
    "what's the status of order 1234?",
    "unsubscribe me from the newsletter",
    "list the files in the downloads folder",
]
ASKS = [
    "How do vaccines train the immune system?",
    "Explain recursion",
    "Tell me about Harry Potter",
    "Write a poem about the sea",
    "What are the causes of inflation?",
    "Give me ideas for a birthday party",
    "How can I sleep better?",
    "Compare Python and Rust for web services",
    "Should I rent or buy a house?",
    "Plan a three-day trip to Lisbon",
    "What is the difference between a virus and a bacterium?",
    "Describe the water cycle",
    "Help me understand compound interest",
    "Write a cover letter for a job as a nurse",
    "Set out the arguments for and against nuclear power",
    "Why is the sky blue?",
    "Suggest a name for my cat café",
    "How do I delete a file in Python?",
    "What should I pack for a week in Iceland?",
    "Draft a speech for my sister's wedding",
    "What makes a good leader?",
    "Create a study plan for learning Spanish",
    "How do I send an email with a shell script?",
    "Tell me how to book cheap flights",
    "Design a logo concept for a bakery",
    "What are some good books on stoicism?",
    "Teach me the basics of chess",
    "How does a heat pump work?",
    "Write a Python function that adds two numbers",
    "Outline a novel about two brothers who run a lighthouse",
    "What happens when I restart a router?",
    "Share some tips for growing tomatoes on a balcony",
    "Discuss the ethics of artificial intelligence",
    "Is it better to run in the morning or in the evening?",
    "Recommend a workout for beginners",
    "Explain how to open a bank account abroad",
    "Make a list of healthy snacks for children",
    "Why do cats purr?",
    "Find arguments against the death penalty",
    "I want to start a podcast. How should I begin?",
]


MORE_ORDERS = [
    "drop the users table",
    "wipe the disk sdb",
    "transfer $50 to Bob",
    "grant bob access to the repo",
    "rotate the keys",
    "get rid of the old backups",
    "Water the plants at six tomorrow",
    "bump the version to 3.2",
    "Top up my phone with 20 euros",
    "feed the cat at noon",
    "Let Maria know I am running late",
    "unplug the heater",
    "I'd like a taxi to the airport at 5 am",
    "Give the intern admin rights",
    "Prepare the invoice for Acme and send it off",
    "Could you please sort my inbox by sender",
    "Assign ticket 88 to Tom",
    "squash the last three commits",
    "Sell all my shares of Tesla",
    "Migrate the database to the new server",
    "Do the dishes cycle on eco",
    "Make a reservation at Luigi's for 8 pm",
    "Generate an API key for the staging account",
    "I want to cancel my gym membership",
    "Create a new user called anna with sudo",
    "Draft an email to the landlord and send it",
    "Is the front door locked? If not, lock it",
    "Warm up the car in ten minutes",
    "Ban user troll42 from the forum",
    "empty the trash",
]
MORE_ASKS = [
    "Which vegetables grow well in the shade?",
    "What would happen if the moon disappeared?",
    "Walk me through the rules of cricket",
    "Write an essay on the fall of Rome",
    "I need advice on asking for a raise",
    "Can you explain what a mortgage is?",
    "When did the Roman Republic end, and why?",
    "Come up with a slogan for a bike shop",
    "Summarize the plot of Hamlet",
    "Rewrite this sentence so that it sounds friendlier: send me the file",
    "Who was Ada Lovelace?",
    "Pros and cons of electric cars",
    "Is coffee bad for the heart?",
    "Translate 'good morning' into French",
    "Tell me a bedtime story about a dragon",
    "Could you recommend a novel set in Japan?",
    "Please write a short toast for a wedding",
    "How should a beginner start with meditation?",
    "Analyze the causes of the First World War",
    "What's a good way to learn the guitar?",
    "Give me some tips for a job interview",
    "Do plants feel pain?",
    "Let's talk about black holes",
    "Name five things that make a city livable",
    "Imagine you are a pirate and tell me about your day",
    "My son refuses to do his homework. What can I do?",
    "Generate ideas for a science fair project",
    "Where do penguins live, and how do they keep warm?",
    "Can I freeze cooked rice?",
    "Brainstorm names for a podcast about trains",
]


def left_alone(texts: Sequence[str], policy: Any = agent_policy) -> list[str]:
    context = PolicyContext(mode="augment", languages=("en",))
    return [text for text in texts if policy(text, context) is not None]


def test_orders_to_tools_are_left_alone_and_asks_are_not() -> None:
    assert len(left_alone(ORDERS)) >= 38, set(ORDERS) - set(left_alone(ORDERS))
    assert len(left_alone(ASKS)) <= 2, left_alone(ASKS)
    assert len(left_alone(MORE_ORDERS)) >= 26, set(MORE_ORDERS) - set(left_alone(MORE_ORDERS))
    assert len(left_alone(MORE_ASKS)) <= 7, left_alone(MORE_ASKS)
    assert len(left_alone(ORDERS, default_policy)) < 10, "then this policy is not needed any more"


@pytest.mark.parametrize(
    "text",
    ["\n" * 1000, ". " * 500, "can you please " * 66, "hi, " * 250, "please\n" * 99, ".\n!" * 333, "add " * 99],
)
def test_hostile_text_is_judged(text: str) -> None:
    context = PolicyContext(mode="augment", languages=("en",))
    for tail in ("", "x"):
        assert not is_tool_command(text + tail)
        assert agent_policy(text + tail, context) is not None


def test_an_order_behind_blank_lines_is_found() -> None:
    assert is_tool_command("My card was stolen.\n\n .please block it")
    assert is_tool_command("\n" * 900 + "delete the file foo")


@given(st.text())
def test_the_policy_takes_any_text(text: str) -> None:
    assert is_tool_command(text) in (True, False)


@pytest.mark.parametrize(
    "order", ["delete the file foo", "send the mail to Bob", "book a table for two at 7", "add 3 and 4"]
)
def test_an_agent_s_order_reaches_it_as_it_was_given(order: str) -> None:
    llm, bpo = scripted("Done."), middleware()
    create_agent(llm, middleware=[bpo]).invoke(asked(order))
    assert llm.turns() == [order]
    assert engine_of(bpo).calls == []
