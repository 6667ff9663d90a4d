"""The CTranslate2 engine keeps the engine's contract, on a toy model in float32, where results are exact."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_model import CONTROL, write_adapter, write_gguf

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Engine, Request
from bpo_integrations.engines.ct2_model import MODELS
from bpo_integrations.engines.ctranslate2 import CTranslate2Engine
from bpo_integrations.errors import (
    ConfigurationError,
    EngineClosedError,
    EngineError,
    ModelFormatError,
    ModelNotFoundError,
    PromptTooLongError,
)
from bpo_integrations.models.adapter import LoRA
from bpo_integrations.models.convert import convert
from bpo_integrations.models.gguf_base import GGUFBase
from bpo_integrations.result import Candidate
from bpo_integrations.rewriter import Record, load_rewriter
from bpo_integrations.templates import AUGMENT_FORMAT, Message

GREEDY = Decoding()
SAMPLED = Decoding(temperature=1.0, top_p=0.95, n=3)


def make(folder: Path, **options: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    base = GGUFBase(write_gguf(folder / "toy.gguf", **options))  # type: ignore[arg-type]
    convert(base, folder, adapter=LoRA(write_adapter(folder / "adapter")), quantization="float32")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> CTranslate2Engine:
    return CTranslate2Engine(folder, threads=1)


def ask(text: str, *, system: str | None = "Say what to add.", longest: int = 12, shortest: int = 0) -> Request:
    messages: list[Message] = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return Request(tuple(messages), max_new_tokens=longest, min_new_tokens=shortest)


TEXTS = ["a", "why is the sky blue?", "ab" * 30, "", "x" * 90, "two\nlines", "12 34"]


def test_it_is_an_engine(engine: CTranslate2Engine) -> None:
    assert isinstance(engine, Engine)


@pytest.mark.parametrize("penalty", [None, 1.3])
def test_a_batch_gives_what_each_request_gives_alone_in_order(engine: CTranslate2Engine, penalty: float | None) -> None:
    decoding = replace(GREEDY, repetition_penalty=penalty)
    requests = [ask(text, longest=5 + number, shortest=number % 3) for number, text in enumerate(TEXTS * 3)]
    alone = [engine.generate([request], decoding)[0] for request in requests]
    together = engine.generate(requests, decoding)
    assert [[candidate.text for candidate in row] for row in together] == [[row[0].text] for row in alone]
    assert [row[0].tokens for row in together] == [row[0].tokens for row in alone]
    assert [row[0].finish_reason for row in together] == [row[0].finish_reason for row in alone]


def test_each_request_keeps_its_own_bounds(engine: CTranslate2Engine) -> None:
    requests = [ask(text, longest=longest, shortest=3) for text, longest in zip(TEXTS, range(3, 10), strict=True)]
    for request, row in zip(requests, engine.generate(requests, GREEDY), strict=True):
        assert 3 <= row[0].tokens <= request.max_new_tokens
        if row[0].finish_reason == "length":
            assert row[0].tokens == request.max_new_tokens


def test_nothing_to_do_is_nothing_done(engine: CTranslate2Engine) -> None:
    assert engine.generate([], GREEDY) == []


def test_the_chance_of_nothing_is_the_same_alone_and_in_a_batch_and_gates(engine: CTranslate2Engine) -> None:
    requests = [ask(text) for text in TEXTS]
    never = replace(GREEDY, empty_threshold=1.1)
    rows = engine.generate(requests, never)
    chances = [row[0].p_empty for row in rows]
    assert all(chance is not None and 0 <= chance <= 1 for chance in chances)
    assert all(row[0].tokens >= 1 for row in rows)
    for request, chance in zip(requests, chances, strict=True):
        assert engine.generate([request], never)[0][0].p_empty == pytest.approx(chance, rel=1e-3)
    middle = sorted(chances)[3]
    for row, chance in zip(engine.generate(requests, replace(GREEDY, empty_threshold=middle)), chances, strict=True):
        if chance >= middle * 1.001:
            assert row == [Candidate("", p_empty=row[0].p_empty)]
        elif chance < middle * 0.999:
            assert row[0].tokens >= 1
    assert engine.generate(requests, replace(GREEDY, empty_threshold=0.0))[0][0].text == ""


def test_the_chance_of_nothing_is_the_end_tokens_softmax_of_the_reference(
    engine: CTranslate2Engine, folder: Path
) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from bpo_integrations.engines.causal_lm import load_causal_lm

    model, tokenizer = load_causal_lm(str(folder / "toy.gguf"))
    merged = peft.PeftModel.from_pretrained(model, str(folder / "adapter")).merge_and_unload()
    for text in TEXTS:
        request = ask(text)
        ids = tokenizer.apply_chat_template(
            [dict(message) for message in request.messages], add_generation_prompt=True, return_dict=False
        )
        with torch.inference_mode():
            logits = merged(torch.tensor([ids])).logits[0, -1]
        chance = engine.generate([request], replace(GREEDY, empty_threshold=2.0))[0][0].p_empty
        assert chance == pytest.approx(logits.softmax(-1)[2].item(), rel=1e-3)


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_tokens_put_to_the_model_equal_those_of_transformers(
    engine: CTranslate2Engine, folder: Path, system: str | None
) -> None:
    pytest.importorskip("torch")
    from bpo_integrations.engines.causal_lm import load_causal_lm

    _, tokenizer = load_causal_lm(str(folder / "toy.gguf"))
    loaded = engine._loaded()
    for text in TEXTS:
        messages = ask(text, system=system).messages
        prompt = loaded.chat.render(messages)
        ours = [loaded.tokenizer.token_to_id(token) for token in (*prompt.fixed, *prompt.rest)]
        theirs = tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=True, return_dict=False
        )
        assert ours == list(theirs)


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(), max_size=60), marks=st.lists(st.sampled_from(CONTROL), max_size=3))
def test_no_user_text_makes_a_control_token_or_an_error(engine: CTranslate2Engine, text: str, marks: list[str]) -> None:
    tokens = engine._loaded().chat.encode(text + "".join(marks) + text)
    assert not set(tokens) & set(CONTROL)
    assert engine.count_tokens([text]) == [len(engine._loaded().chat.encode(text))]


def test_lone_surrogates_and_control_characters_do_no_harm(engine: CTranslate2Engine) -> None:
    rows = engine.generate([ask("a\ud800b"), ask("\x00\x04\u202e"), ask("\ud83d")], GREEDY)
    assert len(rows) == 3
    assert engine.count_tokens(["a\ud800b"]) == engine.count_tokens(["a?b"])


def test_control_tokens_are_never_generated(engine: CTranslate2Engine) -> None:
    rows = engine.generate([ask(text, longest=60) for text in TEXTS], replace(SAMPLED, temperature=3.0, seed=1))
    loaded = engine._loaded()
    assert not any(mark in candidate.text for row in rows for candidate in row for mark in CONTROL)
    # the decoder would hide such tokens, so look at the runtime's own list as well
    assert {tuple(token) for token in loaded.marks(SAMPLED).suppressed} == {
        (mark,) for mark in CONTROL if mark != "<|im_end|>"
    }


def test_the_same_seed_gives_the_same_and_another_or_none_does_not(engine: CTranslate2Engine) -> None:
    requests = [ask(text) for text in TEXTS]
    first = engine.generate(requests, replace(SAMPLED, seed=7))
    engine.generate(requests, SAMPLED)
    assert engine.generate(requests, replace(SAMPLED, seed=7)) == first
    assert engine.generate(requests, replace(SAMPLED, seed=8)) != first
    drawn = [engine.generate(requests, SAMPLED) for _ in range(2)]
    assert drawn[0] != drawn[1]
    assert all(len(row) == 3 for row in first)
    assert len({candidate.text for row in first for candidate in row}) > len(TEXTS)


def test_unseeded_sampling_in_a_new_process_is_not_repeated(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from bpo_integrations.engines.ctranslate2 import *\n"
        "engine = CTranslate2Engine(Path(sys.argv[1]), threads=1)\n"
        "request = Request(({'role': 'user', 'content': 'hello'},), max_new_tokens=30)\n"
        "d = Decoding(temperature=1.0)\n"
        "engine.generate([request], Decoding(temperature=1.0, seed=3))\n"
        "print(ascii(engine.generate([request], d)[0][0].text))"
    )
    outputs = [
        subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, check=True).stdout
        for _ in range(2)
    ]
    assert outputs[0] != outputs[1]


def test_stop_strings_end_a_text_and_are_cut_off(engine: CTranslate2Engine) -> None:
    request = ask("ab", longest=40, shortest=20)
    full = engine.generate([request], GREEDY)[0][0].text
    stop = full[8:10]
    row = engine.generate([replace(request, min_new_tokens=0)], replace(GREEDY, stop=(stop,)))[0][0]
    assert row.text == full[: full.index(stop)]
    assert row.finish_reason == "stop"


def test_a_stop_of_one_token_waits_for_the_lower_bound(engine: CTranslate2Engine) -> None:
    request = ask("ab", longest=40, shortest=20)
    letter = engine.generate([request], GREEDY)[0][0].text[3]
    row = engine.generate([request], replace(GREEDY, stop=(letter,)))[0][0]
    assert row.tokens >= 20
    assert letter not in row.text


def test_banned_strings_do_not_occur(engine: CTranslate2Engine) -> None:
    request = ask("ab", longest=40, shortest=20)
    full = engine.generate([request], GREEDY)[0][0].text
    banned = (full[2:4], full[7])
    changed = engine.generate([request], replace(GREEDY, banned=banned))[0][0]
    assert changed.text != full
    assert changed.tokens >= 20  # suppressed while decoding, not cut off afterwards
    assert not any(text in changed.text for text in banned)


def test_a_prompt_beyond_the_context_is_refused_and_one_at_its_edge_is_answered(engine: CTranslate2Engine) -> None:
    with pytest.raises(PromptTooLongError) as caught:
        engine.generate([ask("x" * 300)], GREEDY)
    assert not caught.value.retryable
    overhead = len(engine._loaded().chat.render(ask("").messages))
    row = engine.generate([ask("x" * (256 - overhead - 4), longest=100, shortest=50)], GREEDY)[0][0]
    assert row.tokens <= 4


def test_user_controlled_system_turns_do_not_pile_up_in_the_runtime(folder: Path) -> None:
    engine = CTranslate2Engine(folder, threads=2)
    expected = engine.generate([ask("hi", system="number 30")], GREEDY)
    for number in range(40):
        engine.generate([ask("hi", system=f"number {number}")], GREEDY)
    assert len(engine._loaded()._fixed) == 8
    assert engine.generate([ask("hi", system="number 30")], GREEDY)[0][0].text == expected[0][0].text


def test_many_threads_and_tasks_at_once_each_get_their_own(engine: CTranslate2Engine) -> None:
    requests = [ask(f"question {number} " + "x" * (number % 7)) for number in range(24)]
    expected = [engine.generate([request], GREEDY) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda request: engine.generate([request], GREEDY), requests)) == expected

    async def all_at_once() -> list[list[list[Candidate]]]:
        return await asyncio.gather(*(engine.agenerate([request], GREEDY) for request in requests))

    assert asyncio.run(all_at_once()) == expected


async def test_a_cancelled_call_stops_and_the_engine_goes_on(engine: CTranslate2Engine) -> None:
    expected = engine.generate([ask("hi")], GREEDY)
    task = asyncio.create_task(engine.agenerate([ask("hi", longest=200, shortest=200)] * 400, GREEDY))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await engine.agenerate([ask("hi")], GREEDY) == expected


def test_a_stream_gives_the_text_in_pieces_that_are_whole_characters(engine: CTranslate2Engine) -> None:
    for text in TEXTS:
        request = ask(text, longest=60, shortest=40)
        pieces = list(engine.stream(request, GREEDY))
        whole = engine.generate([request], GREEDY)[0][0].text
        # A byte that never becomes a character is shown as U+FFFD by the whole text only.
        assert "".join(pieces).replace("\ufffd", "") in (whole.replace("\ufffd", ""), whole)
        assert len(pieces) > 1


def test_a_stream_stops_at_a_stop_string_and_holds_back_its_beginning(engine: CTranslate2Engine) -> None:
    request = ask("ab", longest=40, shortest=20)
    full = engine.generate([request], GREEDY)[0][0].text
    stop = full[6:9]
    decoding = replace(GREEDY, stop=(stop,))
    assert "".join(engine.stream(replace(request, min_new_tokens=0), decoding)) == full[: full.index(stop)]


def test_closing_a_stream_ends_the_work(engine: CTranslate2Engine) -> None:
    earlier = set(threading.enumerate())
    stream = engine.stream(ask("hi", longest=200, shortest=200), GREEDY)
    next(stream)
    stream.close()
    assert set(threading.enumerate()) <= earlier
    assert engine.generate([ask("hi")], GREEDY)


def test_engines_of_one_folder_share_the_weights_until_the_last_is_closed(folder: Path) -> None:
    one, two = CTranslate2Engine(folder, threads=3), CTranslate2Engine(folder, threads=3)
    expected = one.generate([ask("hi")], GREEDY)
    assert one.id == two.id
    one.close()
    one.close()
    with pytest.raises(EngineClosedError):
        one.generate([ask("hi")], GREEDY)
    with pytest.raises(EngineClosedError):
        one.count_tokens(["hi"])
    assert two.generate([ask("hi")], GREEDY) == expected
    key = (str(folder), 3, "auto")
    assert key in MODELS._held
    two.close()
    assert key not in MODELS._held


def test_weights_are_loaded_once_although_many_ask_at_once(folder: Path) -> None:
    calls: list[int] = []

    def find() -> Path:
        calls.append(1)
        return folder

    engines = [CTranslate2Engine(find, name="slow", threads=1) for _ in range(8)]
    assert not calls
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda engine: engine.generate([ask("hi")], GREEDY), engines))
    assert len(calls) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork_the_child_loads_its_own_weights_and_both_end_cleanly(folder: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from bpo_integrations.engines.ctranslate2 import *\n"
        "engine = CTranslate2Engine(Path(sys.argv[1]), threads=2)\n"
        "ask = lambda: engine.generate([Request(({'role': 'user', 'content': 'hello'},))], Decoding())[0][0].text\n"
        "expected = ask()\n"
        "child = os.fork()\n"
        "same = ask() == expected\n"
        "if child:\n"
        "    _, status = os.waitpid(child, 0)\n"
        "    assert os.waitstatus_to_exitcode(status) == 0, status\n"
        "sys.exit(0 if same else 3)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, timeout=300, text=True)
    assert done.returncode == 0, done.stderr


def test_a_program_that_ends_while_a_thread_generates_ends_cleanly(folder: Path) -> None:
    code = (
        "import sys, threading, time; from pathlib import Path; from bpo_integrations.engines.ctranslate2 import *\n"
        "engine = CTranslate2Engine(Path(sys.argv[1]), threads=1)\n"
        "request = Request(({'role': 'user', 'content': 'hello'},), max_new_tokens=200, min_new_tokens=200)\n"
        "engine.generate([request], Decoding())\n"
        "threading.Thread(target=engine.generate, args=([request] * 2000, Decoding()), daemon=True).start()\n"
        "time.sleep(0.3)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, timeout=300, text=True)
    assert done.returncode == 0, done.stderr


def test_construction_checks_what_can_be_checked_and_loads_nothing(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from bpo_integrations.engines.ctranslate2 import CTranslate2Engine\n"
        "CTranslate2Engine(Path(sys.argv[1])).id\n"
        "assert not {'ctranslate2', 'numpy', 'tokenizers', 'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    with pytest.raises(ModelNotFoundError, match=r"model\.bin"):
        CTranslate2Engine(tmp_path)
    with pytest.raises(ConfigurationError, match="compute_type"):
        CTranslate2Engine(folder, compute_type="int16")
    with pytest.raises(ConfigurationError, match="threads"):
        CTranslate2Engine(folder, threads=0)
    with pytest.raises(ConfigurationError, match="name"):
        CTranslate2Engine(lambda: folder)


def test_a_model_that_is_cut_off_or_has_no_chatml_raises_our_error(tmp_path: Path) -> None:
    cut = make(tmp_path / "cut")
    (cut / "model.bin").write_bytes((cut / "model.bin").read_bytes()[:-1000])
    with pytest.raises(ModelFormatError, match="cannot be loaded"):
        CTranslate2Engine(cut).count_tokens(["hi"])
    other = make(tmp_path / "other")
    (other / "chat_template.jinja").write_text("[INST] {{ messages[0].content }} [/INST]")
    with pytest.raises(ModelFormatError, match="not ChatML"):
        CTranslate2Engine(other).count_tokens(["hi"])


def test_a_failure_of_the_runtime_is_an_engine_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = CTranslate2Engine(folder, threads=1)

    class Broken:
        def generate_batch(self, *args: object, **kwargs: object) -> None:
            raise RuntimeError("out of order")

    monkeypatch.setattr(engine._loaded(), "generator", Broken())
    with pytest.raises(EngineError, match="out of order"):
        engine.generate([ask("hi")], GREEDY)


def test_the_spec_ct2_loads_a_folder_with_its_record(folder: Path) -> None:
    record = Record("toy", "augment", AUGMENT_FORMAT, new_tokens=8, empty_threshold=1.1)
    (folder / "bpo.json").write_text(record.to_json())
    rewriter = load_rewriter(f"ct2:{folder}", threads=1)
    assert rewriter.record == record
    assert rewriter.candidates(["hi"])[0][0].p_empty is not None
