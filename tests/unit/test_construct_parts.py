"""The parts of `bpo-train construct`: what is asked, how answers are read and judged, how limits are kept."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpo_integrations.errors import ConfigurationError
from bpo_train.data import annotate, llm
from bpo_train.data.backends import open_backend, retry_after
from bpo_train.data.journal import Entry, Journal
from bpo_train.data.judge import Drop, Part, best
from bpo_train.data.llm import Annotator, Budget, Completion, Limits, Pace, RequestError, RowFailedError, Usage
from bpo_train.data.outputs import Shares
from bpo_train.data.parse import Annotation, Unusable, parse
from bpo_train.data.preference import Preference

ROW = Preference("1", "How does a pump work?", "It turns a wheel.", "No idea.", source="s", licence="MIT")
BETTER = "How does a pump work, step by step?"
FORM = "Detailed Comparison Result: B is vague.\nOptimized Instruction: {}\n[END]"


# -- what is asked -----------------------------------------------------------------------------------------------------


@given(st.text(), st.text(), st.text(), st.sampled_from(["augment", "rewrite"]))
def test_the_material_cannot_leave_its_marks(instruction: str, good: str, bad: str, mode: str) -> None:
    row = Preference("1", f"{instruction}</instruction>", f"{good}</context>", f"{bad}</preferred_response_2>")
    text = annotate.prompt(row, mode)[1]["content"]
    mark = text[1 : text.index(">")]
    assert text.count(f"</{mark}>") == 1
    for part in (row.instruction, row.good_res, row.bad_res):
        assert part in text


def test_a_context_has_rules_of_its_own_and_stands_apart() -> None:
    row = Preference("1", "Sum up.", "Good.", "Bad.", context="A long text.")
    system, user = (message["content"] for message in annotate.prompt(row, "rewrite"))
    assert "Do not change the context" in system
    assert "<context>\nA long text.\n</context>" in user
    assert "the context" not in annotate.system("rewrite", context=False, feedback=True)


def test_without_feedback_no_response_is_shown_or_spoken_of() -> None:
    system, user = (message["content"] for message in annotate.prompt(ROW, "rewrite", feedback=False))
    assert "It turns a wheel." not in user
    assert "preferred" not in system + user


# -- how answers are read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        FORM.format(BETTER),
        FORM.format(BETTER).replace("\n[END]", ""),
        FORM.format(BETTER).replace("[END]", "[EN"),
        FORM.format(BETTER) + "\nI hope this helps!",
        FORM.format(json.dumps(BETTER)),
        FORM.format(repr(BETTER)),
        FORM.format(f"“{BETTER}”"),
        FORM.format(f"```\n{BETTER}\n```"),
        FORM.format(f"<instruction>\n{BETTER}\n</instruction>"),
        f"```text\n{FORM.format(BETTER)}\n```",
        f"<think>Hm, Optimized Instruction: none.</think>\n{FORM.format(BETTER)}",
        FORM.format(BETTER).replace("Optimized Instruction:", "**Optimized Instruction:**"),
        json.dumps({"comparison": "B is vague.", "optimized_instruction": BETTER}),
        f"```json\n{json.dumps({'comparison': 'B is vague.', 'optimized_instruction': BETTER}, indent=1)}\n```",
        json.dumps({"comparison": "B is vague.", "optimized_instruction": BETTER, "notes": "x"})[:-5],
    ],
)
def test_a_wrapped_answer_is_unwrapped(answer: str) -> None:
    assert parse(answer, "rewrite") == Annotation(BETTER, "B is vague.")


@pytest.mark.parametrize(
    ("answer", "finished", "reason"),
    [
        ("A pump turns a wheel.", True, "no Optimized Instruction"),
        (FORM.format("How does a").replace("\n[END]", ""), False, "cut off"),
        ('{"comparison": "x", "optimized_instruction": "How does a', True, "cut off"),
        (FORM.format(""), True, "empty"),
        ("", True, "no Optimized Instruction"),
    ],
)
def test_an_answer_without_what_was_asked_for_says_why(answer: str, finished: bool, reason: str) -> None:
    assert parse(answer, "rewrite", finished=finished) == Unusable(reason)


def test_quotation_marks_of_the_instruction_stay() -> None:
    assert parse('Optimized Instruction: "Yes" or "no"?', "rewrite").text == '"Yes" or "no"?'
    quoted = '"To be or not to be"'
    assert parse(f"Optimized Instruction: {quoted}", "rewrite", instruction='"To be"').text == quoted


@pytest.mark.parametrize("nothing", ["NOTHING", "Nothing.", '"NOTHING"', "", "**NOTHING**"])
def test_nothing_to_add_is_an_empty_addition(nothing: str) -> None:
    assert parse(f"Addition: {nothing}\n[END]", "augment") == Annotation("")


@given(st.text(), st.sampled_from(["augment", "rewrite"]), st.booleans())
def test_every_answer_is_read_or_refused(text: str, mode: str, finished: bool) -> None:
    for answer in (text, FORM.format(text), f'{{"addition": "{text}', f"Addition: '{text}'"):
        assert isinstance(parse(answer, mode, finished=finished), Annotation | Unusable)


def test_code_in_an_answer_is_never_run(tmp_path: Path) -> None:
    target = tmp_path / "made"
    parse(FORM.format(f'"" + str(open({str(target)!r}, "w"))+ ""'), "rewrite")
    assert not target.exists()


# -- how answers are judged --------------------------------------------------------------------------------------------


def judged(*texts: str, row: Preference = ROW, guards: bool = True) -> Part | Drop:
    return best(row, [{"text": FORM.format(text), "finished": True} for text in texts], "rewrite", guards=guards)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Pump?", "paper's filter, too short"),
        ("How does a pump work? " * 7, "paper's filter, too long"),
        ("How does a [PROTECTED] pump work?", "paper's filter, protected"),
        ("A pump turns a wheel, which moves water.", "guard request"),
    ],
)
def test_what_no_one_should_learn_is_dropped(text: str, reason: str) -> None:
    found = judged(text)
    assert isinstance(found, Drop)
    assert found.reason.startswith(reason)


def test_the_answer_of_median_length_is_kept() -> None:
    long = "How does a pump work, step by step, from the motor to the outlet?"
    found = judged(long, BETTER, ROW.instruction)
    assert isinstance(found, Part)
    assert found.optimized_prompt == BETTER


def test_an_answer_that_can_be_read_gives_the_reason() -> None:
    answers = [{"text": "?", "finished": True}, {"text": FORM.format("Pump?"), "finished": True}]
    found = best(ROW, answers, "rewrite")
    assert isinstance(found, Drop)
    assert found.reason.startswith("paper's filter")


# -- limits ------------------------------------------------------------------------------------------------------------


class Scripted:
    """A backend that meets its script: an error is raised, a number is that many answers."""

    def __init__(self, *script: Exception | int) -> None:
        self.script = list(script)
        self.busy = self.most = 0

    async def complete(self, messages: object, n: int) -> Completion:
        self.busy += 1
        self.most = max(self.most, self.busy)
        await asyncio.sleep(0)
        self.busy -= 1
        now = self.script.pop(0) if self.script else 1
        if isinstance(now, Exception):
            raise now
        return Completion(("a",) * now, (True,) * now, 10, 5 * now)

    async def close(self) -> None:
        return


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    asked: list[float | None] = []

    def pause(attempt: int, wait: float | None = None) -> float:
        asked.append(wait)
        return 0.0

    monkeypatch.setattr(llm, "pause", pause)
    return asked


async def test_what_may_succeed_later_is_asked_again_after_the_time_named(pauses: list[float | None]) -> None:
    backend = Scripted(RequestError("HTTP status 429", again=True, wait=7.0), RequestError("timeout", again=True), 1)
    found, usage = await Annotator(backend).ask([{"role": "user", "content": "Hi"}])
    assert found.texts == ("a",)
    assert usage == Usage(3, 10, 5)
    assert pauses == [7.0, None]


async def test_attempts_are_bounded_and_what_cannot_succeed_is_not_asked_again(pauses: list[float | None]) -> None:
    annotator = Annotator(Scripted(*[RequestError("timeout", again=True)] * 9), Limits(retries=2))
    with pytest.raises(RowFailedError) as failed:
        await annotator.ask([])
    assert (failed.value.reason, failed.value.usage.requests) == ("timeout", 3)
    with pytest.raises(RowFailedError) as failed:
        await Annotator(Scripted(RequestError("HTTP status 400", again=False))).ask([])
    assert failed.value.usage.requests == 1


async def test_a_server_that_gives_one_answer_at_a_time_is_asked_several_times() -> None:
    found, usage = await Annotator(Scripted(1, 2)).ask([], n=3)
    assert len(found.texts) == 3
    assert usage == Usage(2, 20, 15)


async def test_no_more_requests_than_allowed_are_under_way() -> None:
    backend = Scripted()
    annotator = Annotator(backend, Limits(concurrency=3))
    await asyncio.gather(*(annotator.ask([]) for _ in range(20)))
    assert backend.most == 3


async def test_a_pace_is_kept_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(llm.asyncio, "sleep", sleep)
    pace = Pace(600)
    for _ in range(3):
        await pace.take(10)
    assert [round(seconds) for seconds in waited] == [0, 1, 2]
    pace.settle(-10)
    await pace.take(10)
    assert round(waited[-1]) == 2


@given(st.integers(1, 40), st.none() | st.floats(0, 1e6))
def test_pauses_grow_to_a_bound_and_heed_the_server(attempt: int, wait: float | None) -> None:
    found = llm.pause(attempt, wait)
    if wait is None:
        assert 0.25 <= found <= llm.LONGEST_PAUSE
    else:
        assert min(wait, llm.LONGEST_WAIT) <= found <= llm.LONGEST_WAIT + 0.1 * llm.LONGEST_PAUSE


def test_a_retry_after_is_read_in_all_its_forms() -> None:
    assert retry_after({"retry-after": "2"}) == 2.0
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


def test_a_budget_counts_what_is_under_way() -> None:
    budget = Budget(100, spent=40)
    assert budget.start(50)
    assert not budget.start(20)
    budget.end(50, 10)
    assert budget.start(50)
    assert not budget.start(1)


def test_a_backend_without_key_or_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "BPO_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match="needs a key"):
        open_backend("openai:gpt-4o-mini")
    with pytest.raises(ConfigurationError, match="no http address"):
        open_backend("m", base_url="localhost:8000")


async def test_a_langchain_model_can_annotate() -> None:
    models = pytest.importorskip("langchain_core.language_models")
    from bpo_train.data.backends import ChatModelBackend

    llm = models.FakeListChatModel(responses=[FORM.format(BETTER)])
    found, usage = await Annotator(ChatModelBackend(llm, 0.9, 100, 10.0)).ask(annotate.prompt(ROW, "rewrite"))
    assert parse(found.texts[0], "rewrite").text == BETTER
    assert usage.requests == 1
    assert usage.prompt_tokens > 100


async def test_an_engine_in_this_process_can_annotate() -> None:
    from fakes import FakeEngine

    from bpo_train.data.backends import EngineBackend

    annotator = Annotator(EngineBackend(FakeEngine(lambda text: FORM.format(BETTER)), 0.9, 100))
    found, usage = await annotator.ask(annotate.prompt(ROW, "rewrite"), n=2)
    assert [parse(text, "rewrite").text for text in found.texts] == [BETTER, BETTER]
    assert usage.requests == 1


# -- journal and splits ------------------------------------------------------------------------------------------------


def test_a_journal_gives_back_in_order_what_was_appended_in_any(tmp_path: Path) -> None:
    pytest.importorskip("filelock")
    entries = [
        Entry(number, f"id-{number}", "d", "kept", result={"prompt": "\ud800 ü\u2028"}, usage=Usage(1, 2, 3))
        for number in (3, 1, 2)
    ]
    with Journal(tmp_path, {"a": 1}) as journal:
        for entry in entries:
            journal.append(entry)
        journal.append(Entry(4, "id-4", "d", "failed", "timeout"))
    with Journal(tmp_path, {"a": 1}) as journal:
        assert [entry.number for entry in journal.entries()] == [1, 2, 3, 4]
        assert next(journal.entries()) == entries[1]
        assert journal.usage == Usage(3, 6, 9)
        journal.append(Entry(4, "id-4", "d", "kept"))
        assert journal.counts() == {"kept": 4}


@given(st.text(st.characters(max_codepoint=127)), st.floats(0, 0.4), st.floats(0, 0.4))
def test_a_prompt_is_in_one_split_however_it_is_written(prompt: str, validation: float, test: float) -> None:
    shares = Shares(validation, test)
    assert shares.split(prompt) == shares.split(f"  {prompt.upper()} ! ")


def test_splits_have_their_shares() -> None:
    shares = Shares(0.1, 0.2)
    found = [shares.split(f"prompt {number}") for number in range(4000)]
    assert abs(found.count("test") / 4000 - 0.2) < 0.03
    assert abs(found.count("validation") / 4000 - 0.1) < 0.03
    with pytest.raises(ConfigurationError):
        Shares(0.5, 0.5)
