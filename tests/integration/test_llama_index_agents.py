"""Agents of LlamaIndex with the optimizer: the LLM sees the improved turn, the memory the user's own words."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="the llama-index extra is not installed")

from fakes import fake_rewriter
from llama_index.core.agent.workflow import AgentWorkflow, CodeActAgent, FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.memory import ChatMemoryBuffer, Memory
from llama_index.core.workflow import Context, JsonSerializer
from llama_parts import ADDED, BETTER, QUESTION, Script, adding, always, asked, failing
from pydantic import BaseModel

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.llama_index import BPOAgentMixin, BPOFunctionAgent, BPOReActAgent
from bpo_integrations.llama_index.agent import STORE_KEY
from bpo_integrations.optimizer import PromptOptimizer


def look_up(topic: str = "books") -> str:
    """Look a topic up."""
    return f"All about {topic}."


def texts(messages: list[ChatMessage]) -> list[tuple[str, str | None]]:
    return [(message.role.value, message.content) for message in messages]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("memory_class", [ChatMemoryBuffer, Memory])
async def test_the_llm_sees_the_improved_turn_and_the_memory_keeps_the_users_words(
    streaming: bool, memory_class: Any
) -> None:
    rewriter, script, memory = adding(), Script("Four weeks."), memory_class.from_defaults()
    agent = BPOFunctionAgent(model=rewriter, llm=script.llm, tools=[look_up], streaming=streaming)
    output = await agent.run(QUESTION, memory=memory)
    assert str(output) == "Four weeks."
    assert script.turns == [[BETTER]]
    assert texts(await memory.aget_all()) == [("user", QUESTION), ("assistant", "Four weeks.")]


async def test_a_run_of_many_steps_optimizes_once_and_each_step_sees_the_same_turn() -> None:
    rewriter, script = adding(), Script(("look_up", {}), ("look_up", {"topic": "fees"}), "Done.")
    agent = BPOFunctionAgent(model=rewriter, llm=script.llm, tools=[look_up])
    await agent.run(QUESTION)
    assert script.turns == [[BETTER]] * 3
    assert [message.content for message in script.asked[-1] if message.role == "tool"] == [
        "All about books.",
        "All about fees.",
    ]
    assert asked(rewriter) == [QUESTION]


async def test_the_next_run_has_the_users_words_as_its_past() -> None:
    rewriter, script = adding(), Script("Fine.")
    agent = BPOFunctionAgent(optimizer=always(rewriter), llm=script.llm, tools=[look_up])
    memory = ChatMemoryBuffer.from_defaults()
    await agent.run(QUESTION, memory=memory)
    await agent.run("Tell me about the garden of the city", memory=memory)
    assert script.turns[-1] == [QUESTION, f"Tell me about the garden of the city. {ADDED}"]


async def test_the_optimizer_is_told_the_dialogue_so_far() -> None:
    seen = []

    def policy(prompt: str, context: Any) -> None:
        seen.append((prompt, context.history))

    optimizer = PromptOptimizer(adding(), policy=policy)
    agent = BPOFunctionAgent(optimizer=optimizer, llm=Script("Fine.").llm, tools=[], system_prompt="Be kind.")
    memory = ChatMemoryBuffer.from_defaults()
    await agent.run(QUESTION, memory=memory)
    await agent.run("Explain the fees", memory=memory)
    assert seen == [(QUESTION, ()), ("Explain the fees", (QUESTION, "Fine."))]


async def test_the_same_words_in_a_later_run_are_a_new_turn() -> None:
    seen = []

    def policy(prompt: str, context: Any) -> None:
        seen.append(context.history)

    agent = BPOFunctionAgent(optimizer=PromptOptimizer(adding(), policy=policy), llm=Script("Fine.").llm, tools=[])
    memory = ChatMemoryBuffer.from_defaults()
    await agent.run(QUESTION, memory=memory)
    await agent.run(QUESTION, memory=memory)
    assert seen == [(), (QUESTION, "Fine.")]


async def test_a_context_that_is_saved_and_used_again_starts_a_new_turn() -> None:
    rewriter, script = adding(), Script("Fine.")
    agent = BPOFunctionAgent(model=rewriter, llm=script.llm, tools=[])
    context = Context(agent)
    await agent.run(QUESTION, ctx=context)
    saved = context.to_dict(serializer=JsonSerializer())
    assert saved["state"]["state_data"]["_data"][STORE_KEY]
    await agent.run("Explain to me the fees", ctx=Context.from_dict(agent, saved, serializer=JsonSerializer()))
    assert asked(rewriter) == [QUESTION, "Explain to me the fees"]


async def test_agents_that_hand_off_share_one_optimized_turn() -> None:
    rewriter, other = adding(), adding("Name the sources.")
    first = Script(("handoff", {"to_agent": "librarian", "reason": "It is about books."}))
    second = Script(("look_up", {}), "Four weeks.")
    about = {"description": "An agent.", "tools": [look_up]}
    workflow = AgentWorkflow(
        agents=[
            BPOFunctionAgent(name="desk", model=rewriter, llm=first.llm, can_handoff_to=["librarian"], **about),
            BPOFunctionAgent(name="librarian", model=other, llm=second.llm, **about),
        ],
        root_agent="desk",
    )
    memory = ChatMemoryBuffer.from_defaults()
    assert str(await workflow.run(QUESTION, memory=memory)) == "Four weeks."
    assert first.turns == [[BETTER]]
    assert second.turns == [[BETTER]] * 2
    assert (asked(rewriter), asked(other)) == ([QUESTION], [])
    assert texts(await memory.aget_all())[0] == ("user", QUESTION)


async def test_an_agent_that_is_handed_to_by_a_plain_one_optimizes_by_itself() -> None:
    plain, script = Script(("handoff", {"to_agent": "librarian", "reason": "Books."})), Script("Fine.")
    workflow = AgentWorkflow(
        agents=[
            FunctionAgent(name="desk", description="A desk.", llm=plain.llm, tools=[], can_handoff_to=["librarian"]),
            BPOFunctionAgent(name="librarian", description="Knows.", model=adding(), llm=script.llm, tools=[]),
        ],
        root_agent="desk",
    )
    await workflow.run(QUESTION)
    assert (plain.turns, script.turns) == ([[QUESTION]], [[BETTER]])


async def test_with_a_state_around_it_only_the_users_words_are_optimized() -> None:
    rewriter, script = adding(), Script(("look_up", {}), "Done.")
    agent = BPOFunctionAgent(
        model=rewriter,
        llm=script.llm,
        tools=[look_up],
        initial_state={"city": "Rome"},
        state_prompt="{msg}\n(The state is {state}.)",
    )
    await agent.run(QUESTION)
    assert asked(rewriter) == [QUESTION]
    assert script.turns[0] == [f"{BETTER}\n(The state is {{'city': 'Rome'}}.)"]


async def test_in_a_message_with_an_image_the_last_text_is_optimized() -> None:
    script = Script("Fine.")
    image = ImageBlock(image=b"x", image_mimetype="image/png")
    message = ChatMessage(role="user", blocks=[TextBlock(text="A page:"), image, TextBlock(text=QUESTION)])
    await BPOFunctionAgent(model=adding(), llm=script.llm, tools=[]).run(message)
    blocks = script.asked[0][-1].blocks
    assert [getattr(block, "text", None) for block in blocks] == ["A page:", None, BETTER]
    assert message.content == f"A page:\n{QUESTION}"


async def test_the_turn_can_come_as_the_end_of_a_history() -> None:
    script = Script("Fine.")
    history = [ChatMessage(role="user", content="Hi"), ChatMessage(role="assistant", content="Hello")]
    agent = BPOFunctionAgent(optimizer=always(adding()), llm=script.llm, tools=[])
    await agent.run(chat_history=[*history, ChatMessage(role="user", content=QUESTION)])
    assert script.turns == [["Hi", BETTER]]


async def test_a_command_for_a_tool_is_left_alone() -> None:
    command = "delete the file foo.txt"
    rewriter, script = adding(), Script("Done.")
    await BPOFunctionAgent(model=rewriter, llm=script.llm, tools=[look_up]).run(command)
    assert script.turns == [[command]]


async def test_a_failure_lets_the_users_words_go_on() -> None:
    script = Script(("look_up", {}), "Fine.")
    output = await BPOFunctionAgent(model=fake_rewriter(failing), llm=script.llm, tools=[look_up]).run(QUESTION)
    assert str(output) == "Fine."
    assert script.turns == [[QUESTION]] * 2


async def test_shadow_shows_the_llm_the_users_words() -> None:
    rewriter, script = adding(), Script("Fine.")
    optimizer = PromptOptimizer(rewriter, shadow=True)
    await BPOFunctionAgent(optimizer=optimizer, llm=script.llm, tools=[]).run(QUESTION)
    assert (script.turns, asked(rewriter)) == ([[QUESTION]], [QUESTION])


async def test_concurrent_runs_of_one_agent_do_not_mix() -> None:
    script = Script("Fine.")
    rewriter = fake_rewriter(lambda prompt: f"Say where {prompt.split()[-1]} live.", delay=0.01)
    agent = BPOFunctionAgent(model=rewriter, llm=script.llm, tools=[])
    animals = "cats dogs horses cows sheep".split()
    await asyncio.gather(*(agent.run(f"Tell me about {animal}") for animal in animals))
    expected = [f"Tell me about {animal}. Say where {animal} live." for animal in animals]
    assert sorted(turn for (turn,) in script.turns) == sorted(expected)


async def test_a_react_agent_sees_the_improved_turn_in_every_step_and_its_observations_as_they_are() -> None:
    script = Script(
        'Thought: I look it up.\nAction: look_up\nAction Input: {"topic": "fees"}',
        "Thought: I can answer.\nAnswer: Four weeks.",
    )
    rewriter, memory = adding(), ChatMemoryBuffer.from_defaults()
    agent = BPOReActAgent(model=rewriter, llm=script.llm, tools=[look_up])
    assert str(await agent.run(QUESTION, memory=memory)) == "Four weeks."
    assert script.turns == [[BETTER], [BETTER, "Observation: All about fees."]]
    assert asked(rewriter) == [QUESTION]
    assert texts(await memory.aget_all())[0] == ("user", QUESTION)


async def test_a_react_agent_that_must_try_again_does_not_have_the_complaint_optimized() -> None:
    script = Script("Action: nonsense", "Thought: I can answer.\nAnswer: Fine.")
    rewriter = adding()
    agent = BPOReActAgent(model=rewriter, llm=script.llm, tools=[look_up])
    assert str(await agent.run(QUESTION)) == "Fine."
    assert asked(rewriter) == [QUESTION]
    assert BETTER in script.turns[1]


async def test_the_mixin_serves_any_workflow_agent() -> None:
    class MyAgent(BPOAgentMixin, CodeActAgent):
        pass

    async def execute(code: str) -> str:
        return "done"

    script = Script("I am done.")
    await MyAgent(model=adding(), llm=script.llm, code_execute_fn=execute).run(QUESTION)
    assert script.turns[0][-1] == BETTER


async def test_tools_and_structured_output_work_as_before() -> None:
    class Answer(BaseModel):
        weeks: int

    script = Script(("look_up", {}), "Four.", ("Answer", {"weeks": 4}))
    agent = BPOFunctionAgent(model=adding(), llm=script.llm, tools=[look_up], output_cls=Answer)
    output = await agent.run(QUESTION)
    assert output.get_pydantic_model(Answer) == Answer(weeks=4)
    assert [call.tool_name for call in output.tool_calls] == ["look_up"]


def test_a_rewriting_model_must_be_asked_for() -> None:
    rewriter = fake_rewriter(lambda prompt: prompt, mode="rewrite")
    with pytest.raises(ConfigurationError, match="mode"):
        BPOFunctionAgent(model=rewriter, llm=Script().llm)
    BPOFunctionAgent(model=rewriter, mode="rewrite", llm=Script().llm)
    with pytest.raises(ConfigurationError, match="mode"):
        BPOFunctionAgent(optimizer=PromptOptimizer(rewriter), llm=Script().llm)
    BPOFunctionAgent(optimizer=PromptOptimizer(rewriter), mode="rewrite", llm=Script().llm)


def test_an_optimizer_and_a_model_together_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="optimizer="):
        BPOFunctionAgent(model=adding(), optimizer=PromptOptimizer(adding()), llm=Script().llm)


async def test_an_order_for_a_tool_is_left_alone() -> None:
    rewriter, script = adding(), Script("Sent.")
    agent = BPOFunctionAgent(model=rewriter, llm=script.llm, tools=[look_up])
    await agent.run("Send an email to bob@example.com")
    assert script.turns == [["Send an email to bob@example.com"]]
    assert asked(rewriter) == []
