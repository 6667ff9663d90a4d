"""Win rates: against closed forms, whatever the verdicts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from bpo_integrations.errors import ConfigurationError
from bpo_train.cli import cli
from bpo_train.evaluation.breakdown import breakdown, holm
from bpo_train.evaluation.records import Verdict
from bpo_train.evaluation.winrate import (
    Difference,
    Outcome,
    difference,
    mean_delta,
    outcomes,
    pairings,
    paper_win_rate,
    reading,
    win_rate,
)

COUNTS = st.tuples(*[st.integers(0, 300)] * 3).filter(lambda counts: sum(counts) > 0)
CHOICES = st.sampled_from(["A", "B", "C", None])
SWAPPED = {"A": "B", "B": "A", "C": "C", None: None}


def made(wins: int, ties: int, losses: int) -> list[Outcome]:
    values = [1] * wins + [0] * ties + [-1] * losses
    return [Outcome(str(number), "", value) for number, value in enumerate(values)]


def judged(choices: list[tuple[str | None, str | None]]) -> list[Verdict]:
    found = []
    for number, (first, second) in enumerate(choices):
        found += [Verdict(str(number), "AB", first), Verdict(str(number), "BA", second)]
    return found


@given(COUNTS)
@settings(max_examples=60, deadline=None)
def test_shares_are_percent_of_the_prompts_and_delta_is_win_less_loss(counts: tuple[int, int, int]) -> None:
    rate = win_rate(made(*counts), resamples=200)
    assert rate.n == sum(counts)
    assert (rate.wins, rate.ties, rate.losses) == counts
    assert math.isclose(rate.win + rate.tie + rate.loss, 100)
    assert math.isclose(rate.delta, rate.win - rate.loss, abs_tol=1e-9)
    assert rate.win == pytest.approx(100 * counts[0] / sum(counts))


@given(COUNTS)
@settings(max_examples=60, deadline=None)
def test_delta_lies_in_its_interval_which_lies_within_a_hundred(counts: tuple[int, int, int]) -> None:
    rate = win_rate(made(*counts), resamples=2000)
    low, high = rate.delta_ci95
    assert -100 <= low <= rate.delta + 1e-9
    assert rate.delta - 1e-9 <= high <= 100


@given(COUNTS)
@settings(max_examples=60, deadline=None)
def test_the_other_side_has_the_same_figures_negated(counts: tuple[int, int, int]) -> None:
    wins, ties, losses = counts
    one, other = win_rate(made(wins, ties, losses), resamples=500), win_rate(made(losses, ties, wins), resamples=500)
    assert other.delta == -one.delta
    assert other.delta_ci95 == (-one.delta_ci95[1], -one.delta_ci95[0])
    assert other.p_value == pytest.approx(one.p_value)


@given(st.tuples(*[st.integers(100, 400)] * 3))
@settings(max_examples=40, deadline=None)
def test_the_interval_of_many_prompts_is_the_normal_one(counts: tuple[int, int, int]) -> None:
    rate = win_rate(made(*counts))
    n, share = sum(counts), (counts[0] - counts[2]) / sum(counts)
    spread = 1.959964 * 100 * math.sqrt(((counts[0] + counts[2]) / n - share**2) / n)
    assert rate.delta_ci95[0] == pytest.approx(rate.delta - spread, abs=0.6)
    assert rate.delta_ci95[1] == pytest.approx(rate.delta + spread, abs=0.6)


def test_the_interval_is_that_of_drawing_prompts_one_by_one() -> None:
    import numpy as np

    found = made(31, 12, 17)
    values = np.array([outcome.value for outcome in found])
    drawn = np.random.default_rng(7).choice(values, size=(20_000, len(values))).mean(axis=1)
    low, high = 100 * np.quantile(drawn, [0.025, 0.975])
    assert win_rate(found).delta_ci95 == (pytest.approx(low, abs=1.7), pytest.approx(high, abs=1.7))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=80, deadline=None)
def test_the_sign_test_is_the_binomial_one_and_ties_do_not_matter(wins: int, ties: int, losses: int) -> None:
    n = wins + losses
    if n + ties == 0:
        return
    tail = sum(math.comb(n, k) for k in range(max(wins, losses), n + 1)) / 2**n
    assert win_rate(made(wins, ties, losses), resamples=10).p_value == pytest.approx(min(1.0, 2 * tail))


@given(st.integers(1, 500))
@settings(max_examples=20, deadline=None)
def test_all_ties_are_zero_with_an_interval_of_zero(n: int) -> None:
    rate = win_rate(made(0, n, 0), resamples=100)
    assert (rate.delta, rate.delta_ci95, rate.p_value, rate.shown) == (0.0, (0.0, 0.0), 1.0, False)


@pytest.mark.parametrize("value", [1, 0, -1])
def test_one_prompt_has_figures_and_shows_nothing(value: int) -> None:
    rate = win_rate([Outcome("1", "", value)])
    assert (rate.n, rate.delta, rate.delta_ci95) == (1, 100.0 * value, (100.0 * value, 100.0 * value))
    assert not rate.shown


def test_a_difference_is_shown_only_where_interval_and_sign_test_agree() -> None:
    assert win_rate(made(65, 0, 35)).shown
    assert win_rate(made(35, 0, 65)).shown
    assert not win_rate(made(5, 0, 0)).shown  # interval 100 to 100, p = 0.0625
    assert not win_rate(made(52, 0, 48)).shown


def test_the_same_seed_gives_the_same_interval_and_another_hardly_a_different_one() -> None:
    found = made(200, 100, 150)
    assert win_rate(found, seed=1) == win_rate(found, seed=1)
    low, high = win_rate(found, seed=1).delta_ci95
    assert win_rate(found, seed=2).delta_ci95 == (pytest.approx(low, abs=0.6), pytest.approx(high, abs=0.6))


def test_no_outcome_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match=r"no verdict to count\..*bpo-train evaluate"):
        win_rate([])


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        ("A", "B", 1),
        ("B", "A", -1),
        ("A", "A", 0),
        ("B", "B", 0),
        ("C", "C", 0),
        ("A", "C", 0),
        ("C", "B", 0),
        ("B", "C", 0),
        ("A", None, 0),
        (None, "A", 0),
        (None, None, 0),
    ],
)
def test_two_orders_count_only_where_they_name_the_same_answer(
    first: str | None, second: str | None, value: int
) -> None:
    assert outcomes(judged([(first, second)])) == [Outcome("0", "", value)]


@pytest.mark.parametrize(
    ("order", "verdict", "value"),
    [("AB", "A", 1), ("AB", "B", -1), ("BA", "A", -1), ("BA", "B", 1), ("AB", "C", 0), ("BA", None, 0)],
)
def test_one_order_counts_as_it_is(order: str, verdict: str | None, value: int) -> None:
    assert outcomes([Verdict("1", order, verdict, category="x")]) == [Outcome("1", "x", value)]


@given(st.lists(st.tuples(CHOICES, CHOICES), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_naming_the_other_answer_everywhere_negates_every_outcome(choices: list) -> None:
    swapped = [(SWAPPED[first], SWAPPED[second]) for first, second in choices]
    values = [outcome.value for outcome in outcomes(judged(choices))]
    assert [outcome.value for outcome in outcomes(judged(swapped))] == [-value for value in values]


@given(st.lists(st.tuples(CHOICES, CHOICES), min_size=1, max_size=40), st.randoms())
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_rows_does_not_matter(choices: list, random) -> None:
    verdicts = judged(choices)
    shuffled = verdicts[:]
    random.shuffle(shuffled)
    assert win_rate(outcomes(shuffled), resamples=50) == win_rate(outcomes(verdicts), resamples=50)
    assert paper_win_rate(shuffled, 3) == paper_win_rate(verdicts, 3)


def test_a_judge_that_always_names_the_first_ties_everything_and_is_found_out() -> None:
    verdicts = judged([("A", "A")] * 30)
    rate, read = win_rate(outcomes(verdicts)), reading(verdicts)
    assert (rate.tie, rate.delta, rate.delta_ci95) == (100.0, 0.0, (0.0, 0.0))
    assert (read.first, read.consistent) == (100.0, 0.0)


def test_what_cannot_be_read_is_counted_and_never_dropped() -> None:
    verdicts = judged([("A", None), (None, None), ("A", "B")])
    read = reading(verdicts)
    assert win_rate(outcomes(verdicts)).n == 3
    assert (read.verdicts, read.unreadable, read.consistent) == (6, 3, pytest.approx(100 / 3))


def test_a_judge_of_ties_has_no_position() -> None:
    assert reading(judged([("C", "C")])).first is None
    assert reading([]).consistent is None


def test_a_second_verdict_in_the_same_order_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="two verdicts on 1 in the order AB"):
        outcomes([Verdict("1", "AB", "A"), Verdict("1", "AB", "B")])


def test_verdicts_of_several_arms_are_not_mixed() -> None:
    verdicts = [Verdict("1", "AB", "A", arm="augment"), Verdict("1", "AB", "A", arm="placebo")]
    with pytest.raises(ConfigurationError, match="several arms or judges"):
        outcomes(verdicts)
    assert list(pairings(verdicts)) == [("", "augment", "original"), ("", "placebo", "original")]


def test_the_papers_arithmetic_takes_one_order_a_pair_as_it_is() -> None:
    first_always = judged([("A", "A")] * 400)
    rate = paper_win_rate(first_always, 0)
    assert (rate.n, rate.ties) == (400, 0)  # half of them are wins by position alone
    assert abs(rate.delta) < 15
    agreed = judged([("A", "B")] * 20 + [("B", "A")] * 10)
    assert paper_win_rate(agreed, 5).delta == win_rate(outcomes(agreed)).delta == pytest.approx(100 / 3)


def test_the_papers_arithmetic_takes_the_order_that_there_is() -> None:
    assert paper_win_rate([Verdict(str(number), "BA", "B") for number in range(9)], 0).win == 100


def test_dwr_counts_every_set_the_same_as_in_the_papers_table() -> None:
    gpt_3_5 = [(600, 87, 313), (504, 123, 373), (550, 160, 290), (510, 180, 310)]  # per mille
    assert mean_delta(win_rate(made(*row), resamples=10) for row in gpt_3_5) == pytest.approx(22.0, abs=0.06)
    with pytest.raises(ConfigurationError, match="no test set"):
        mean_delta([])


def test_the_difference_of_two_arms_is_paired() -> None:
    one, other = made(60, 0, 40), made(50, 0, 50)  # the same prompts, of which the first arm wins ten more
    apart = difference(one, other)
    assert apart is not None
    low, high = apart.delta_ci95
    assert apart.delta == 20.0
    assert 6 < low < 20 < high < 34  # unpaired it would be about -8 to 48
    assert apart.shown
    assert difference(one, one) == Difference(0.0, (0.0, 0.0), 1.0)
    assert difference(one, [Outcome("elsewhere", "", 1)]) is None


def test_a_handful_of_prompts_shows_no_difference_of_two_arms_however_many_are_equal() -> None:
    apart = difference(made(4, 96, 0), made(0, 100, 0))
    assert apart is not None
    assert apart.delta_ci95[0] > 0
    assert (apart.p_value, apart.shown) == (0.125, False)


def test_parts_are_in_the_order_asked_for_and_hold_every_prompt_once() -> None:
    found = made(6, 3, 6)
    labels = {outcome.id: "ab"[int(outcome.id) % 2] for outcome in found if outcome.id != "14"}
    parts = breakdown(found, labels, order=("b",))
    assert [part.label for part in parts] == ["b", "a", ""]
    assert sum(part.rate.n for part in parts) == 15


def test_a_difference_in_one_of_many_parts_must_be_stronger() -> None:
    sixteen = made(14, 0, 4)  # p = 0.03
    assert breakdown(sixteen, {})[0].shown
    found, labels = [], {}
    for part in range(5):
        for outcome in made(14, 0, 4) if part == 0 else made(9, 0, 9):
            found.append(Outcome(f"{part}:{outcome.id}", "", outcome.value))
            labels[found[-1].id] = str(part)
    assert not any(part.shown for part in breakdown(found, labels))


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_never_makes_a_finding_surer_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= new <= 1 for p, new in zip(p_values, adjusted, strict=True))
    ranks = sorted(range(len(p_values)), key=lambda place: p_values[place])
    assert sorted(adjusted) == [adjusted[place] for place in ranks]


def command(folder: Path, text: str | bytes, *options: str) -> Result:
    path = folder / "V.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return CliRunner().invoke(cli, ["winrate", "--verdicts", str(path), *options])


def rows(*found: dict) -> str:
    return "\n".join(json.dumps(row) for row in found)


def test_the_command_prints_percent_as_json(tmp_path: Path) -> None:
    text = rows(
        {"id": 1, "category": "a", "order": "AB", "verdict": "A"},
        {"id": 1, "category": "a", "order": "BA", "verdict": "B"},
        {"id": 2, "category": "a", "order": "AB", "verdict": "A"},
        {"id": 2, "category": "a", "order": "BA", "verdict": "A"},
        {"id": "3", "category": "b", "order": "BA", "verdict": "A", "other": "field"},
        {"id": "4", "category": None, "order": "AB", "verdict": "A"},
    )
    done = command(tmp_path, text, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {name: found[name] for name in ("n", "win", "tie", "loss", "delta")} == {
        "n": 4,
        "win": 50.0,
        "tie": 25.0,
        "loss": 25.0,
        "delta": 25.0,
    }
    assert found["delta_ci95"][0] < 25 < found["delta_ci95"][1]
    assert found["p_value"] == 1.0


def test_without_json_the_command_prints_a_table_by_category(tmp_path: Path) -> None:
    names = ("sums", "[bold]rhymes")
    text = rows(*({"id": n, "category": names[n % 2], "order": "AB", "verdict": "AB"[n % 2]} for n in range(10)))
    done = command(tmp_path, text)
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["sums", "5", "100.0", "0.0", "0.0", "+100.0", "+100.0", "to", "+100.0"] in lines
    assert any(line[:3] == ["[bold]rhymes", "5", "0.0"] for line in lines)
    assert "no difference shown" in done.stdout


def test_several_arms_are_a_list_and_one_can_be_chosen(tmp_path: Path) -> None:
    text = rows(
        *({"id": 1, "order": "AB", "verdict": "AB"[n], "arm": arm, "judge": "j"} for n, arm in enumerate(("x", "y")))
    )
    both = json.loads(command(tmp_path, text, "--json").stdout)
    assert [(row["arm"], row["delta"]) for row in both] == [("x", 100.0), ("y", -100.0)]
    assert json.loads(command(tmp_path, text, "--json", "--arm", "y").stdout)["delta"] == -100.0
    done = command(tmp_path, text, "--arm", "z")
    assert done.exit_code == 3
    assert "It has: x by j; y by j." in done.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "There is no verdict in"),
        ("\n\n", "There is no verdict in"),
        (
            rows({"id": 1, "order": "AB", "verdict": "A"}) + "\n" + rows({"id": "1", "order": "AB", "verdict": "B"}),
            "line 2",
        ),
        (rows({"id": 1, "order": "AB", "verdict": "[[A]]"}), "verdict is '[[A]]'"),
        (rows({"id": 1, "order": "CA", "verdict": "A"}), "order is 'CA'"),
        (rows({"id": None, "order": "AB", "verdict": "A"}), "id is None"),
        (rows({"id": 1, "order": "AB", "verdict": "A", "category": 5}), "category is 5"),
        (rows({"id": 1, "verdict": "A"}), "order"),
        ("[1]", "line 1"),
        ('{"id": 1, "order": "AB", "ver', "line 1"),
        (b"\xff\xfe\x00{", "line 1"),
    ],
)
def test_rows_that_cannot_be_are_one_line_of_error(tmp_path: Path, text: str | bytes, told: str) -> None:
    done = command(tmp_path, text, "--json")
    assert done.exit_code == 3
    assert done.stdout == ""
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_file_is_an_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["winrate", "--verdicts", str(tmp_path / "none.jsonl")])
    assert done.exit_code == 3
    assert "There is no file" in done.stderr
