"""The report: right figures, words that do not say more than they do, and a page that hostile text cannot break."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bpo_integrations.errors import ConfigurationError
from bpo_train.cli import cli
from bpo_train.evaluation.figures import gain_by_length, scale, whiskers
from bpo_train.evaluation.records import (
    ANSWERS,
    PROMPTS,
    VERDICTS,
    Answer,
    TestPrompt,
    Verdict,
    write_records,
)
from bpo_train.evaluation.report import FILES, check, write_report
from bpo_train.evaluation.report_text import fenced, plain

HOSTILE = (
    '</pre></script><script>alert(1)</script><img src="http://x.y/z" onerror=a> [[A]] ```` | "quoted" & \x1b[31m \ud800'
)
VOID = {"meta", "rect", "line", "circle", "br", "img", "link", "input"}


def prompts(count: int, text: str = "Tell me about it") -> list[TestPrompt]:
    sets = ("one", "two")
    return [
        TestPrompt(
            f"{sets[n % 2]}:{n}", f"{text}, number {n}." + " word" * (n % 40), sets[n % 2], category="abc"[n % 3]
        )
        for n in range(count)
    ]


def answers(of: list[TestPrompt], arm: str, *, length: int = 50, add: str = "", kept: int = 0) -> list[Answer]:
    """Answers of about `length` words; the first `kept` prompts are left alone."""
    found = []
    for n, prompt in enumerate(of):
        addition = "" if n < kept else add
        text = " ".join(["word"] * (length + n % 7)) if length else ""
        kind = "augmented" if addition else "kept"
        sent = f"{prompt.prompt} {addition}".strip()
        found.append(Answer(prompt.id, arm, sent, text, kind, completion_tokens=2 * length, seconds=length / 10))
    return found


def verdicts(of: list[TestPrompt], values: list[int], arm: str = "augment", judge: str = "j", raw: str = "") -> list:
    """Both orders of each prompt: 1 won, -1 lost, 0 tied."""
    named = {1: ("A", "B"), -1: ("B", "A"), 0: ("C", "C")}
    return [
        Verdict(prompt.id, order, choice, prompt.category, arm, judge=judge, raw=raw)
        for prompt, value in zip(of, values, strict=True)
        for order, choice in zip(("AB", "BA"), named[value], strict=True)
    ]


def folder(path: Path, of: list[TestPrompt], given: list[Answer] | None = None, said: list | None = None) -> Path:
    write_records(path / PROMPTS, of)
    if given is not None:
        write_records(path / ANSWERS, given)
    if said is not None:
        write_records(path / VERDICTS, said)
    return path


ADD = "Explain the reasons step by step."


def full(path: Path, wins: int = 60, losses: int = 20) -> Path:
    of = prompts(100)
    values = [1] * wins + [-1] * losses + [0] * (100 - wins - losses)
    values = [values[(37 * n) % 100] for n in range(100)]
    given = [*answers(of, "original"), *answers(of, "augment", add=ADD, length=55)]
    return folder(path, of, given, verdicts(of, values))


def visible(html: str) -> str:
    """What a reader of the page reads; fails on a tag that is not closed."""

    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.text: list[str] = []

        def handle_starttag(self, tag: str, attrs: list) -> None:
            if tag not in VOID:
                self.open.append(tag)

        def handle_startendtag(self, tag: str, attrs: list) -> None:
            """An element without content."""

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

        def handle_data(self, data: str) -> None:
            if self.open and self.open[-1] not in ("style", "title"):
                self.text.append(data)

    reader = Reader()
    reader.feed(html)
    assert not reader.open
    return " ".join(" ".join(reader.text).split())


def test_the_figures_are_those_of_the_rows(tmp_path: Path) -> None:
    report = write_report(full(tmp_path))
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == json.loads(json.dumps(report))
    (result,) = report["results"]
    assert (result["win"], result["tie"], result["loss"], result["delta"]) == (60.0, 20.0, 20.0, 40.0)
    assert result["standing"] == "better"
    assert sum(part["n"] for part in result["by"]["category"]) == 100
    assert {part["label"]: part["n"] for part in result["by"]["added"]} == {"explanation": 100}
    assert set(result["paper"]["sets"]) == {"one", "two"}
    mean = sum(rate["delta"] for rate in result["paper"]["sets"].values()) / 2
    assert result["paper"]["dwr"] == pytest.approx(mean, abs=1e-3)
    original, augment = report["arms"]
    assert (original["changed"], augment["changed"]) == (0, 100)
    assert augment["ratio"]["completion_tokens"] == pytest.approx(1.1)
    assert augment["words"] == pytest.approx(original["words"] + 5)


def test_the_same_rows_give_the_same_files(tmp_path: Path) -> None:
    write_report(full(tmp_path / "a"))
    write_report(full(tmp_path / "b"))
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_each_view_tells_the_gain_its_interval_and_the_figures_at_equal_length(tmp_path: Path) -> None:
    report = write_report(full(tmp_path))
    (result,) = report["results"]
    equal = f"{result['length_controlled']['delta']:+.1f}"
    for text in (visible((tmp_path / "report.html").read_text()), (tmp_path / "report.md").read_text()):
        assert "+40.0" in text
        assert "At equal answer length it is better" in text
        assert equal in text
        assert "agreement with people was not measured" in text
        assert "With augment the answers are better than with original" in text


def test_an_interval_that_holds_zero_is_called_no_difference_and_the_report_says_what_could_be_seen(
    tmp_path: Path,
) -> None:
    (result,) = write_report(full(tmp_path, wins=42, losses=38))["results"]
    assert result["standing"] == "open"
    assert result["sentences"][0].startswith("No difference shown")
    assert any("four times in five" in sentence for sentence in result["sentences"])
    assert "no difference shown" in visible((tmp_path / "report.html").read_text())


def test_a_gain_that_is_only_length_is_said_to_be_that(tmp_path: Path) -> None:
    of = prompts(200)
    longer = [n % 4 != 0 for n in range(200)]
    given = answers(of, "original", length=100)
    for n, answer in enumerate(answers(of, "augment", add=ADD, length=100)):
        words = 160 + n % 50 if longer[n] else 60 + n % 50
        given.append(Answer(answer.id, answer.arm, answer.sent, "word " * words, "augmented"))
    values = [(1 if longer[n] else -1) if n % 10 else 0 for n in range(200)]
    (result,) = write_report(folder(tmp_path, of, given, verdicts(of, values)))["results"]
    assert result["standing"] == "better"
    assert not (result["length_controlled"]["shown"] and result["length_controlled"]["delta"] > 0)
    assert re.search(r"The gain (may be length alone|is length)\.", result["sentences"][1])


@pytest.mark.parametrize(("agreement", "weak"), [(59.9, True), (60.0, False), (84.0, False)])
def test_below_sixty_percent_the_judge_is_too_weak_to_conclude(tmp_path: Path, agreement: float, weak: bool) -> None:
    report = write_report(full(tmp_path), judge_check={"judge": "j", "agreement": agreement, "by_subset": {}})
    assert report["judges"][0]["weak"] is weak
    for text in (visible((tmp_path / "report.html").read_text()), (tmp_path / "report.md").read_text()):
        assert ("too weak to conclude" in text) is weak
        assert ("answers are better" in text) is not weak
        assert bool(re.search(r" better | yes ", _where(text))) is not weak
        assert f"{agreement:.0f}%" in text


def _where(text: str) -> str:
    return text[text.index("By test set") : text.index("By category")]


def test_a_check_of_another_judge_says_nothing_of_this_one(tmp_path: Path) -> None:
    report = write_report(full(tmp_path), judge_check={"judge": "another", "agreement": 20.0})
    assert report["judges"] == [{"judge": "j", "agreement": None, "weak": False}]
    by_name = {"j": {"agreement": 20.0}, "another": {"agreement": 90.0}}
    assert write_report(tmp_path, judge_check=by_name)["judges"][0]["weak"]


def test_a_judge_that_always_names_the_first_is_named_and_changes_nothing(tmp_path: Path) -> None:
    of = prompts(40)
    said = [Verdict(prompt.id, order, "A", arm="augment", judge="j") for prompt in of for order in ("AB", "BA")]
    given = [*answers(of, "original"), *answers(of, "augment", add=ADD, length=70)]
    (result,) = write_report(folder(tmp_path, of, given, said))["results"]
    assert (result["tie"], result["delta"], result["judge_reading"]["first"]) == (100.0, 0.0, 100.0)
    assert any("goes by position" in sentence for sentence in result["sentences"])
    assert "100% name the one shown first" in visible((tmp_path / "report.html").read_text())


def test_verdicts_that_cannot_be_read_are_counted_and_said(tmp_path: Path) -> None:
    of = prompts(20)
    said = [Verdict(prompt.id, order, None, arm="augment", judge="j") for prompt in of for order in ("AB", "BA")]
    given = [*answers(of, "original"), *answers(of, "augment", add=ADD)]  # the answers are the same, too
    report = write_report(folder(tmp_path, of, given, said))
    assert report["results"][0]["judge_reading"]["unreadable"] == 40
    assert "40 of 40 verdicts could not be read" in visible((tmp_path / "report.html").read_text())
    assert not check(report, -100).passed


def test_equal_answers_that_nobody_was_asked_about_do_not_make_a_judge_consistent(tmp_path: Path) -> None:
    of = prompts(20)
    given = [*answers(of, "original"), *answers(of, "augment", add=ADD, kept=10)]
    given = [given[n] if n < 30 else Answer(**{**_fields(given[n]), "answer": "another"}) for n in range(40)]
    said = verdicts(of[:10], [0] * 10) + [
        Verdict(prompt.id, order, "A", arm="augment", judge="j") for prompt in of[10:] for order in ("AB", "BA")
    ]
    (result,) = write_report(folder(tmp_path, of, given, said))["results"]
    assert (result["n"], result["judge_reading"]["verdicts"], result["judge_reading"]["consistent"]) == (20, 20, 0.0)


def _fields(answer: Answer) -> dict:
    return {name: getattr(answer, name) for name in ("id", "arm", "sent", "answer", "kind")}


def test_an_arm_is_compared_with_the_placebo_by_the_same_judge(tmp_path: Path) -> None:
    of = prompts(60)
    given = [answer for arm in ("original", "augment", "placebo") for answer in answers(of, arm, add=ADD)]
    said = verdicts(of, [1] * 40 + [0] * 20) + verdicts(of, [1] * 10 + [0] * 50, "placebo")
    said += verdicts(of, [0] * 60, "placebo", "another")
    augment, placebo, _ = write_report(folder(tmp_path, of, given, said))["results"]
    assert augment["beyond_placebo"]["delta"] == 50.0
    assert placebo["beyond_placebo"] is None
    assert any(sentence.startswith("It is better than the placebo") for sentence in augment["sentences"])


def test_examples_show_what_was_changed_and_both_answers(tmp_path: Path) -> None:
    (result,) = write_report(full(tmp_path))["results"]
    assert len(result["hurt"]) == len(result["helped"]) == 5
    example = result["hurt"][0]
    assert "".join(text for op, text in example["diff"] if op != "removed") == example["sent"]
    assert "".join(text for op, text in example["diff"] if op != "added") == example["prompt"]
    html = (tmp_path / "report.html").read_text()
    assert f"<ins> {ADD}</ins>" in html
    assert len({example["category"] for example in result["hurt"][:3]}) == 3  # categories take turns


def test_the_change_of_a_very_long_prompt_is_shown_where_it_begins_and_ends(tmp_path: Path) -> None:
    text = "Sum this up: " + "one two three " * 3000 + "in German."
    sent = text.replace("in German.", "in two German sentences.")
    given = [Answer("1", "original", text, "a b"), Answer("1", "rewrite", sent, "a", "rewritten")]
    said = verdicts([TestPrompt("1", text)], [-1], "rewrite")
    (result,) = write_report(folder(tmp_path, [TestPrompt("1", text)], given, said))["results"]
    parts = result["hurt"][0]["diff"]
    assert "".join(text for op, text in parts if op != "removed") == sent
    assert "".join(text for op, text in parts if op != "added") == text
    assert sum(len(text) for op, text in parts if op != "same") < 30


def test_another_baseline_is_what_costs_are_compared_with(tmp_path: Path) -> None:
    of = prompts(6)
    given = [*answers(of, "original"), *answers(of, "augment", add=ADD), *answers(of, "rewrite", add=ADD, length=100)]
    said = [Verdict(prompt.id, "AB", "A", arm="rewrite", baseline="augment") for prompt in of]
    report = write_report(folder(tmp_path, of, given, said))
    assert report["baseline"] == "augment"
    assert "against augment" in (tmp_path / "report.md").read_text().splitlines()[2]
    assert {arm["arm"]: arm["ratio"]["completion_tokens"] for arm in report["arms"]}["rewrite"] == 2.0


def test_the_widest_margins_come_first_where_the_judge_scores(tmp_path: Path) -> None:
    of = prompts(12)
    given = [*answers(of, "original"), *answers(of, "augment", add=ADD)]
    said = [
        Verdict(prompt.id, order, choice, arm="augment", judge="r", margin=float(-n))
        for n, prompt in enumerate(of)
        for order, choice in (("AB", "B"), ("BA", "A"))
    ]
    (result,) = write_report(folder(tmp_path, of, given, said))["results"]
    assert [example["margin"] for example in result["hurt"]] == [-11, -10, -9, -8, -7]


def test_prompts_that_were_left_alone_are_no_examples(tmp_path: Path) -> None:
    of = prompts(10)
    given = [*answers(of, "original"), *answers(of, "augment", add=ADD, kept=8, length=60)]
    (result,) = write_report(folder(tmp_path, of, given, verdicts(of, [-1] * 10)))["results"]
    assert {example["id"] for example in result["hurt"]} == {of[8].id, of[9].id}


def test_hostile_text_stays_text_and_the_page_loads_nothing(tmp_path: Path) -> None:
    of = [TestPrompt(f"{HOSTILE}{n}", f"{HOSTILE} {n}", HOSTILE, HOSTILE) for n in range(12)]
    given = [
        Answer(prompt.id, arm, prompt.prompt + (f" {HOSTILE}" if arm != "original" else ""), f"{HOSTILE} {arm}")
        for prompt in of
        for arm in ("original", HOSTILE)
    ]
    said = verdicts(of, [1] * 6 + [-1] * 6, HOSTILE, HOSTILE, raw=HOSTILE)
    write_report(folder(tmp_path, of, given, said), title=HOSTILE, judge_check={HOSTILE: {"agreement": 40.0}})
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "[[A]]" in visible(html)
    seen: list[tuple[str, str, str]] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list) -> None:
            seen.extend((tag, name, value or "") for name, value in [("", ""), *attrs])

    Tags().feed(html)
    assert not {tag for tag, _, _ in seen} & {"script", "img", "iframe", "link", "object", "form"}
    assert not [name for _, name, _ in seen if name.startswith("on") or name == "src"]
    assert all(value.startswith("#") for _, name, value in seen if name == "href")
    assert "default-src 'none'" in html
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"(?m)^(?!    )[^`]*(?<!\\)<script", _outside_fences(markdown))


def _outside_fences(markdown: str) -> str:
    kept, fence = [], ""
    for line in markdown.splitlines():
        mark = re.match("`{3,}", line)
        if not fence and mark:
            fence = mark[0]
        elif fence and line == fence:
            fence = ""
        elif not fence:
            kept.append(line)
    assert not fence
    return "\n".join(kept)


def test_the_plots_are_well_formed_and_told_in_words(tmp_path: Path) -> None:
    write_report(full(tmp_path))
    drawn = re.findall(r"<svg.*?</svg>", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(drawn) > 5
    for svg in drawn:
        element = ET.fromstring(svg)
        assert element.get("aria-hidden") == "true" or element.get("aria-label")


def test_intervals_stay_on_the_axis() -> None:
    part = {"label": "8 to 15", "n": 50, "delta": -99.0, "delta_ci95": [-100.0, -90.0], "shown": True}
    assert scale([part]) == 100
    for svg in (gain_by_length([part], 20), whiskers({**part, "length_controlled": None}, 20)):
        places = [float(place) for place in re.findall(r' (?:x1|x2|cx)="([\d.-]+)%"', svg)]
        heights = [float(place) for place in re.findall(r' (?:y1|y2|cy)="([\d.-]+)"', svg)]
        assert all(0 <= place <= 100 for place in places)
        assert all(0 <= height <= 200 for height in heights)


def test_answers_that_are_empty_or_cut_off_are_remarked_on(tmp_path: Path) -> None:
    of = prompts(10)
    given = answers(of, "original", length=0)
    given += [Answer(prompt.id, "augment", f"{prompt.prompt} {ADD}", "word", finished=False) for prompt in of]
    report = write_report(folder(tmp_path, of, given, verdicts(of[:6], [1] * 6)))
    assert report["remarks"] == [
        "Empty answers of original: 10 of 10.",
        "Answers of augment cut off at the limit: 10 of 10.",
        "Prompts without a verdict on augment by j, and so in no figure: 4 of 10.",
    ]
    assert report["arms"][1]["ratio"]["words"] is None
    assert "Empty answers of original: 10 of 10." in visible((tmp_path / "report.html").read_text())


@pytest.mark.parametrize("verdicts_too", [False, True])
@pytest.mark.parametrize("answers_too", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_with_whatever_is_missing_there_is_a_report(
    tmp_path: Path, count: int, answers_too: bool, verdicts_too: bool
) -> None:
    of = prompts(count)
    given = [*answers(of, "original"), *answers(of, "augment", add=ADD)] if answers_too else None
    report = write_report(folder(tmp_path, of, given, verdicts(of, [1] * count) if verdicts_too else None))
    text = visible((tmp_path / "report.html").read_text())
    if verdicts_too and count:
        assert not report["results"][0]["shown"]
        assert "no difference shown" in text
    else:
        assert "No verdicts yet" in text
        assert not check(report, -100).passed


def test_one_arm_alone_is_a_table_of_what_it_costs(tmp_path: Path) -> None:
    of = prompts(5)
    report = write_report(folder(tmp_path, of, answers(of, "original")))
    assert [arm["arm"] for arm in report["arms"]] == ["original"]
    assert "no arm besides the baseline yet" in visible((tmp_path / "report.html").read_text())


def test_rows_about_other_prompts_are_left_out_and_counted(tmp_path: Path) -> None:
    of = prompts(10)
    given = [*answers(of, "original"), *answers(of, "augment", add=ADD)]
    report = write_report(folder(tmp_path, of[:6], given, verdicts(of, [1] * 10)))
    assert report["results"][0]["n"] == 6
    assert report["left_out"] == 8 + 8
    assert "16 answers and verdicts on other prompts were left out" in (tmp_path / "report.md").read_text()


def test_without_prompts_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="There is no file"):
        write_report(tmp_path)


def test_a_full_disk_is_a_clear_error_and_keeps_the_older_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(full(tmp_path))
    before = (tmp_path / "report.html").read_bytes()

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    done = CliRunner().invoke(cli, ["report", str(tmp_path)])
    assert done.exit_code == 4
    assert "Free some space." in done.stderr
    assert (tmp_path / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("wins", "losses", "below", "passed"),
    [
        (60, 20, 0, True),
        (60, 20, 70, False),
        (42, 38, 0, True),  # no harm is shown
        (42, 38, 10, True),  # nor that the gain is less than ten
        (20, 60, 0, False),
        (20, 60, -60, True),
    ],
)
def test_the_check_fails_where_the_data_show_that_it_is_below(
    tmp_path: Path, wins: int, losses: int, below: float, passed: bool
) -> None:
    found = check(write_report(full(tmp_path, wins, losses)), below)
    assert found.passed is passed
    assert bool(found.reasons) is not passed


@pytest.mark.parametrize(
    ("values", "passed"), [([-1], True), ([-1] * 5, True), ([-1] * 4 + [0] * 96, True), ([-1] * 6, False)]
)
def test_harm_on_a_handful_of_prompts_is_not_shown(tmp_path: Path, values: list[int], passed: bool) -> None:
    of = prompts(len(values))
    given = [answer for arm in ("original", "augment") for answer in answers(of, arm, add=ADD)]
    report = write_report(folder(tmp_path, of, given, verdicts(of, values)))
    assert report["results"][0]["delta_ci95"][1] < 0
    assert check(report, 0).passed is passed
    assert check(report, 10).passed is (len(values) < 6)


def test_the_placebo_need_not_be_good_unless_it_is_asked_for(tmp_path: Path) -> None:
    of = prompts(40)
    given = [answer for arm in ("original", "augment", "placebo") for answer in answers(of, arm, add=ADD)]
    said = verdicts(of, [1] * 40) + verdicts(of, [-1] * 40, "placebo")
    report = write_report(folder(tmp_path, of, given, said))
    assert check(report, 0).passed
    assert check(report, 0, arms=["placebo"]).reasons[0].startswith("placebo by j: delta -100.0")
    assert check(report, 0, arms=["other"]).reasons == ("other: there is no verdict on it",)


def test_an_arm_that_was_answered_and_never_judged_does_not_pass_beside_one_that_was(tmp_path: Path) -> None:
    of = prompts(40)
    given = [answer for arm in ("original", "augment", "rewrite") for answer in answers(of, arm, add=ADD)]
    report = write_report(folder(tmp_path, of, given, verdicts(of, [1] * 40)))
    assert check(report, 0).reasons == ("rewrite: there is no verdict on it",)
    assert check(report, 0, arms=["augment"]).passed


def test_a_weak_judge_fails_the_check_unless_another_can_tell(tmp_path: Path) -> None:
    full(tmp_path)
    assert not check(write_report(tmp_path, judge_check={"j": {"agreement": 50.0}}), 0).passed
    of = prompts(100)
    write_records(tmp_path / VERDICTS, verdicts(of, [1] * 100) + verdicts(of, [1] * 100, judge="strong"))
    assert check(write_report(tmp_path, judge_check={"j": {"agreement": 50.0}}), 0).passed


def command(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["report", *map(str, arguments)])


def test_the_command_writes_three_files_says_what_was_found_and_ends_with_six_where_it_is_too_little(
    tmp_path: Path,
) -> None:
    done = command(full(tmp_path), "--title", "Mine", "--fail-below", "0")
    assert done.exit_code == 0, done.output
    assert "augment against original, judged by j: +40.0 points" in done.stdout
    assert "<title>Mine</title>" in (tmp_path / "report.html").read_text()
    done = command(tmp_path, "--fail-below", "70")
    assert done.exit_code == 6
    assert "is below 70" in done.stderr
    assert command(tmp_path, "--arm", "augment").exit_code == 2


def test_the_command_finds_the_judges_check_in_the_folder(tmp_path: Path) -> None:
    (full(tmp_path) / "judge_check.json").write_text('{"judge": "j", "agreement": 55.0}')
    assert "too weak to conclude" in command(tmp_path).stdout
    other = tmp_path / "other.json"
    other.write_text("{}")
    done = command(tmp_path, "--judge-check", other)
    assert (done.exit_code, "no judge check" in done.stderr) == (3, True)


@pytest.mark.parametrize("text", ["a ``` b", "`````", "plain", "\n```\n# head\n"])
def test_a_fence_is_longer_than_what_it_holds(text: str) -> None:
    first, *middle, last = fenced(text).split("\n")
    assert "\n".join(middle) == text
    assert last == first.removesuffix("text")
    assert last not in text.split("\n")


def test_plain_text_is_text_in_markdown() -> None:
    assert plain("a|b\n<i>*x*_y_`z`") == r"a\|b \<i\>\*x\*\_y\_\`z\`"
