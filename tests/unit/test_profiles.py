"""Profiles and policy files reach the optimizer from every door, and stay what they were through copies and caches."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from fakes import fake_rewriter

from bpo_integrations.errors import ConfigurationError, ModelFormatError
from bpo_integrations.gate import Gate
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.policy import rule
from bpo_integrations.profiles import PROFILES, gate_of, load_profile, settled
from bpo_integrations.prompt_kinds import KINDS

ACTED_ON = "How many people have ever lived on Earth?"
LEFT_ALONE = "Write a short story about the history of tea"
KEPT = "policy: gate: writing"


def rewriter() -> Any:
    return fake_rewriter(lambda prompt: "Explain each step.")


def file(folder: Path, gate: Gate, name: str = "policy.json") -> Path:
    path = folder / name
    path.write_text(gate.to_json(), encoding="utf-8")
    return path


def reasons(optimizer: PromptOptimizer) -> tuple[bool, str]:
    acted, left = optimizer.optimize_batch([ACTED_ON, LEFT_ALONE])
    return acted.changed, left.reason


# -- the built-in ones -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_a_built_in_profile_is_a_policy_file_that_is_named_and_explained(name: str) -> None:
    gate = load_profile(name)
    assert gate.name == name
    assert gate.note
    assert gate.mode is None
    assert set(gate.before or {}) <= set(KINDS)


def test_small_is_what_happens_without_a_profile() -> None:
    assert settled(None, "small") is settled(None, None) is None
    prompts = [ACTED_ON, LEFT_ALONE, "hi", "Explain inflation in one sentence"]
    plain, small = (PromptOptimizer(rewriter(), **options) for options in ({}, {"profile": "small"}))
    fates = [[(r.text, r.reason) for r in optimizer.optimize_batch(prompts)] for optimizer in (plain, small)]
    assert fates[0] == fates[1]


def test_strong_leaves_alone_what_is_no_trap() -> None:
    assert reasons(PromptOptimizer(rewriter(), profile="strong")) == (True, KEPT)
    assert reasons(PromptOptimizer(rewriter(), policy="strong")) == (True, KEPT)


def test_a_file_in_a_folder_does_not_hide_a_built_in_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file(tmp_path, Gate("mine", "none"), "strong")
    assert load_profile("strong").name == "strong"
    assert load_profile("./strong").name == "mine"


@pytest.mark.parametrize(
    ("profile", "error", "says"),
    [
        ("weak", ConfigurationError, "no profile 'weak'"),
        ("no/such/policy.json", ModelFormatError, "No such file"),
        (7, ConfigurationError, "not int"),
    ],
)
def test_what_is_no_profile_is_a_clear_error(profile: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        PromptOptimizer(rewriter(), profile=profile)


def test_the_gate_of_an_optimizer_can_be_asked_for() -> None:
    assert PromptOptimizer(rewriter()).gate is None
    assert PromptOptimizer(rewriter(), profile="strong").gate == load_profile("strong")
    assert gate_of(rule("never", lambda prompt: False)) is None


# -- LangChain ---------------------------------------------------------------------------------------------------------


def test_a_runnable_takes_a_profile_or_a_policy_file_and_reads_it_anew(tmp_path: Path) -> None:
    pytest.importorskip("langchain_core", reason="needs the extra 'langchain'")
    from bpo_integrations.langchain import BPORunnable

    model, path = rewriter(), file(tmp_path, Gate("", before={"estimate": (1, None)}))
    for options in ({"profile": "strong"}, {"policy": "strong"}, {"profile": path}, {"policy": str(path)}):
        runnable = BPORunnable(model=model, **options)
        assert runnable.invoke(ACTED_ON) == f"{ACTED_ON} Explain each step."
        assert runnable.invoke(LEFT_ALONE).bpo["reason"] == KEPT
    file(tmp_path, Gate("", "none"))
    assert BPORunnable(model=model, profile=path).invoke(ACTED_ON).bpo["reason"] == "policy: gate: keeps all"


def test_a_runnable_takes_a_function_beside_a_profile() -> None:
    pytest.importorskip("langchain_core", reason="needs the extra 'langchain'")
    from bpo_integrations.langchain import BPORunnable

    runnable = BPORunnable(model=rewriter(), policy=rule("tea", lambda prompt: "tea" in prompt), profile="strong")
    assert runnable.invoke(LEFT_ALONE).bpo["reason"] == "policy: tea"
    assert runnable.invoke("Write a poem").bpo["reason"] == KEPT


def test_a_runnable_with_a_profile_is_serialized_with_it() -> None:
    pytest.importorskip("langchain_core", reason="needs the extra 'langchain'")
    from bpo_integrations.langchain import BPORunnable

    plain = BPORunnable(profile="strong")
    assert plain.to_json()["kwargs"]["profile"] == "strong"
    assert pickle.loads(pickle.dumps(plain)).profile == "strong"
    with_function = BPORunnable(policy=rule("never", lambda prompt: False))
    assert with_function.to_json()["type"] == "not_implemented"


def test_a_runnable_refuses_what_is_no_policy_and_what_stands_beside_an_optimizer() -> None:
    pytest.importorskip("langchain_core", reason="needs the extra 'langchain'")
    from bpo_integrations.langchain import BPORunnable

    with pytest.raises(ConfigurationError, match="not int"):
        BPORunnable(model=rewriter(), policy=7)
    with pytest.raises(ConfigurationError, match="also profile"):
        BPORunnable(optimizer=PromptOptimizer(rewriter()), profile="strong")


def test_in_agents_a_policy_file_stands_behind_the_agents_rules(tmp_path: Path) -> None:
    pytest.importorskip("langchain", reason="needs the extra 'agents'")
    from bpo_integrations.langchain import BPOMiddleware

    path = file(tmp_path, Gate("", before={"estimate": (1, None)}))
    for options in ({"profile": path}, {"policy": path}, {"policy": str(path)}, {"profile": "strong"}):
        optimizer = BPOMiddleware(rewriter(), **options).runnable.optimizer
        assert optimizer is not None
        assert optimizer.optimize("Delete the file foo.txt and all its copies").reason.startswith("policy: ")
        assert optimizer.optimize("Book a table for two").reason == "policy: tool command"
        assert reasons(optimizer) == (True, KEPT)
    own = BPOMiddleware(rewriter(), policy=rule("never", lambda prompt: False)).runnable.optimizer
    assert own is not None
    assert own.optimize("Book a table for two").changed


def test_a_retriever_takes_a_profile() -> None:
    pytest.importorskip("langchain_core", reason="needs the extra 'langchain'")
    from langchain_core.documents import Document
    from langchain_core.runnables import RunnableLambda

    from bpo_integrations.langchain import BPORetriever

    asked: list[str] = []

    def search(query: str) -> list[Document]:
        asked.append(query)
        return [Document("Tea.")]

    retriever = BPORetriever(retriever=RunnableLambda(search), model=rewriter(), profile="strong")
    retriever.invoke(LEFT_ALONE)
    assert asked == [LEFT_ALONE]
    retriever.invoke(ACTED_ON)
    assert sorted(asked[1:]) == [ACTED_ON, f"{ACTED_ON} Explain each step."]


def test_a_chat_model_takes_a_policy_and_its_cache_knows_it(tmp_path: Path) -> None:
    pytest.importorskip("langchain_core", reason="needs the extra 'langchain'")
    from langchain_core.language_models import FakeListChatModel

    from bpo_integrations.langchain import ChatBPO

    model, path = rewriter(), file(tmp_path, Gate("", "none"))
    chats = [
        ChatBPO(llm=FakeListChatModel(responses=["Yes."]), model=model, policy=policy)
        for policy in (None, "strong", path)
    ]
    marks = [chat.invoke(LEFT_ALONE).response_metadata["bpo"]["reason"] for chat in chats]
    assert marks == ["added by the model", KEPT, "policy: gate: keeps all"]
    keys = {json.dumps(chat._identifying_params, default=str, sort_keys=True) for chat in chats}
    assert len(keys) == 3


# -- LlamaIndex --------------------------------------------------------------------------------------------------------


def test_llama_indexs_components_take_a_profile(tmp_path: Path) -> None:
    pytest.importorskip("llama_index.core", reason="needs the extra 'llama-index'")
    from llama_index.core.llms import MockLLM

    from bpo_integrations.llama_index import BPOFunctionAgent, BPOQueryTransform
    from bpo_integrations.llama_index.llm import BPOLLM

    path = file(tmp_path, Gate("", before={"estimate": (1, None)}))
    for profile in ("strong", path):
        assert reasons(BPOQueryTransform(rewriter(), profile=profile).optimizer) == (True, KEPT)
        assert reasons(BPOLLM(MockLLM(), model=rewriter(), profile=profile).optimizer) == (True, KEPT)
        agent = BPOFunctionAgent(tools=[], llm=MockLLM(), model=rewriter(), profile=profile)
        assert reasons(agent._traced.optimizer) == (True, KEPT)
        assert agent._traced.optimizer.optimize("Book a table for two").reason == "policy: tool command"
    with pytest.raises(ConfigurationError, match="also profile"):
        BPOFunctionAgent(tools=[], llm=MockLLM(), optimizer=PromptOptimizer(rewriter()), profile="strong")


# -- the command line --------------------------------------------------------------------------------------------------


def bpo(*arguments: str) -> Any:
    from click.testing import CliRunner

    from bpo_integrations.cli import Parts, main

    return CliRunner().invoke(main, ["optimize", *arguments], obj=Parts(rewriter=rewriter()))


def test_the_command_line_takes_a_profile_or_a_policy_file(tmp_path: Path) -> None:
    path = str(file(tmp_path, Gate("", before={"estimate": (1, None)})))
    for options in (("--profile", "strong"), ("--profile", path), ("--policy", path)):
        assert bpo(ACTED_ON, *options).stdout == f"{ACTED_ON} Explain each step.\n"
        result = bpo(LEFT_ALONE, *options, "--json")
        assert json.loads(result.stdout)["reason"] == KEPT


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--profile", "weak"), "no profile 'weak'"),
        (("--policy", "no.json"), "No such file"),
        (("--policy", "strong", "--profile", "strong"), "another as profile="),
    ],
)
def test_a_wrong_profile_is_one_line(options: tuple[str, ...], says: str) -> None:
    result = bpo(LEFT_ALONE, *options)
    assert result.exit_code == 3
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_file_job_does_not_go_on_with_another_policy(tmp_path: Path) -> None:
    from bpo_integrations.cli.options import Settings

    model, strong, none = rewriter(), load_profile("strong"), Gate("", "none")
    prints = [Settings(**options).fingerprint(model) for options in ({}, {"profile": strong}, {"profile": none})]
    assert prints[0] != prints[1] != prints[2]
    assert pickle.loads(pickle.dumps(Settings(policy=strong))) == Settings(policy=strong)
