"""Which draws are rejected, and why; and that draws are kept in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Request, Traits
from bpo_integrations.errors import ConfigurationError, EngineError
from bpo_integrations.result import Candidate
from bpo_integrations.rewriter import Record, Rewriter
from bpo_integrations.templates import AUGMENT_FORMAT
from bpo_train.training.draws import BLOCK, Sampling, draw
from bpo_train.training.mining import Draw, Rules, mine
from bpo_train.training.rows import Example

pytest.importorskip("sklearn", reason="needs the extra 'train'")

SUBJECTS = {
    "How do bees dance?": "Name both dances of the honey bees and what each dance tells the hive.",
    "Why is the sky blue?": "Explain how sunlight scatters in the sky and why violet is not what we see.",
    "Bake a plum cake.": "List the plums, the flour and the oven temperature, then the baking steps.",
    "Write a poem about the sea.": "Use rhymes, waves and salt, and end the poem with a quiet image of the sea.",
    "Plan a week in Rome.": "Give a morning and an evening for each day in Rome, with the ways between.",
    "How do vaccines work?": "Explain what the vaccine shows the immune system and how it remembers.",
    "Teach me chess openings.": "Show three chess openings with their first moves and the plan behind each.",
    "What is inflation?": "Explain inflation with the price of bread, and say what central banks do.",
    "How does a heat pump work?": "Follow the heat through the pump, from the evaporator to the compressor.",
    "Who was Marie Curie?": "Cover her research on radium, both Nobel prizes and her life in Paris.",
}


def draws(**texts: Sequence[str]) -> list[Draw]:
    """The rows, with draws for the prompt that begins with each name (by its first word after the question word)."""
    return [
        Draw(
            str(number),
            prompt,
            chosen,
            tuple(Candidate(text) for key, found in texts.items() if key in prompt for text in found),
        )
        for number, (prompt, chosen) in enumerate(SUBJECTS.items())
    ]


def why(found: Sequence[Draw], rules: Rules | None = None, **options: object) -> dict[str, str]:
    """Reasons by rejected text."""
    return {pair.rejected: pair.why for pair in mine(found, "augment", rules, **options).pairs}  # type: ignore[arg-type]


def test_a_draw_that_breaks_a_guard_is_rejected_with_the_guards_name() -> None:
    rows = draws(bees=["Please provide the text first.", "Explain how the bees learn each dance."])
    found = why(rows, Rules(usual=1))
    assert found == {"Please provide the text first.": "guard: asks back"}


def test_an_unfinished_draw_is_rejected_even_where_its_words_are_fine() -> None:
    (first, *rest) = draws()
    cut = replace(first, candidates=(Candidate("Explain how the bees learn each", finish_reason="length"),))
    assert why([cut, *rest]) == {"Explain how the bees learn each": "guard: unfinished"}


def test_a_draw_for_another_subject_is_rejected_and_one_on_the_subject_is_not() -> None:
    strange = "Show the chess openings and the moves of the chess pieces."
    own = "Say how the dance of the bees tells the direction."
    assert why(draws(bees=[strange, own])) == {strange: "off the subject"}


def test_a_draw_near_the_centroid_of_all_texts_is_generic() -> None:
    rows = [replace(row, chosen=f"{row.chosen} Give clear examples step by step.") for row in draws()]
    rows[0] = replace(
        rows[0], candidates=(Candidate("Give clear examples, step by step, about bees and their dance."),)
    )
    assert set(why(rows).values()) == {"generic"}


def test_with_usual_one_likeness_is_not_measured() -> None:
    assert why(draws(bees=["Show the chess openings and the moves."]), Rules(usual=1)) == {}


def test_nothing_is_rejected_that_is_no_worse_than_its_own_rows_text() -> None:
    """A row whose own text is far from its prompt says nothing against a draw that is as far."""
    rows = draws()
    odd = "Show the chess openings and the moves of the chess pieces."
    rows[0] = replace(rows[0], chosen=odd, candidates=(Candidate("Show the chess moves and openings of the pieces."),))
    assert "off the subject" not in why(rows).values()


def test_where_nothing_is_to_be_added_any_addition_is_not_wanted() -> None:
    row = Draw("1", "Translate 'good night' to French.", "", (Candidate("Say when it is used."), Candidate("")))
    (pair,) = mine([row], "augment").pairs
    assert (pair.chosen, pair.rejected, pair.why) == ("", "Say when it is used.", "not wanted")


def test_a_judge_rejects_what_it_ranks_below_the_rows_own_text_by_more_than_the_margin() -> None:
    good, fair, bad = "Describe both dances in detail.", "Compare the two kinds.", "Draw what it looks like."
    worth = {SUBJECTS["How do bees dance?"]: 1.0, good: 2.0, fair: 0.8, bad: -1.0}
    asked: list[str] = []

    def score(prompts: Sequence[str], texts: Sequence[str]) -> list[float | None]:
        asked.extend(texts)
        return [worth.get(text) for text in texts]

    rows = draws(bees=[good, fair, bad, "Please provide the text first."])
    found = why(rows, Rules(usual=1, per_prompt=4, margin=0.5), score=score)
    assert found == {bad: "judge", "Please provide the text first.": "guard: asks back"}
    assert "Please provide the text first." not in asked  # a guard has said what there is to say


def test_a_row_whose_own_text_breaks_a_guard_gives_no_pair() -> None:
    row = Draw("1", "Name a prime.", "Please provide the text first.", (Candidate("Could you share the text?"),))
    found = mine([row], "augment", Rules(usual=1))
    assert found.pairs == []
    assert found.statistics["chosen_rejected"] == 1


def test_of_each_reason_one_pair_comes_first_and_repeated_texts_count_once() -> None:
    ask, share = "Please provide the text first.", "Could you share the text?"
    strange = "Show the chess openings and the moves of the chess pieces."
    rows = draws(bees=[ask, f" {ask.upper()}", share, strange, SUBJECTS["How do bees dance?"]])
    found = mine(rows, "augment", Rules(per_prompt=2))
    assert [pair.why.partition(":")[0] for pair in found.pairs] == ["guard", "off the subject"]
    assert found.statistics["repeated"] == 2
    assert found.statistics["draws"] == 5
    assert sum(found.statistics["rejected"].values()) + found.statistics["kept"] == 3


def test_rewrites_are_judged_by_the_guards_of_rewrites() -> None:
    row = Draw("1", "Write 3 haiku on tea.", "Write 3 haiku on green tea.", (Candidate("Write 5 haiku on tea."),))
    (pair,) = mine([row], "rewrite", Rules(usual=1)).pairs
    assert pair.why == "guard: numbers"


def test_impossible_rules_are_refused() -> None:
    with pytest.raises(ConfigurationError):
        Rules(usual=0)


class Counting:
    """An engine that counts; it fails at a given block."""

    id = "counting"
    traits = Traits(literal=True, repeats=True, gate=True, stops=True, forks="works", coalesce=False)
    batch_rows = 1

    def __init__(self, fails_at: int | None = None) -> None:
        self.decodings: list[Decoding] = []
        self._fails_at = fails_at

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        if len(self.decodings) == self._fails_at:
            msg = "The machine went away."
            raise EngineError(msg, hint="Start it again.")
        self.decodings.append(decoding)
        return [
            [Candidate(f"{request.messages[-1]['content']} {decoding.seed} {n}") for n in range(decoding.n)]
            for request in requests
        ]

    async def agenerate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        return self.generate(requests, decoding)

    def close(self) -> None:
        pass


def rewriter(fails_at: int | None = None) -> tuple[Rewriter, Counting]:
    engine = Counting(fails_at)
    return Rewriter(engine, Record(name="toy", mode="augment", format=AUGMENT_FORMAT, empty_threshold=0.5)), engine


ROWS = [Example(str(number), f"Prompt {number}", "Be brief.") for number in range(2 * BLOCK + 5)]


def test_draws_go_on_where_they_stopped_and_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    whole = draw(rewriter()[0], ROWS, tmp_path / "whole.jsonl", Sampling(n=2))
    path = tmp_path / "parts.jsonl"
    with pytest.raises(EngineError):
        draw(rewriter(fails_at=1)[0], ROWS, path, Sampling(n=2))
    with path.open("a") as file:
        file.write('{"number": 1, "candi')  # torn by a crash
    again, engine = rewriter()
    assert draw(again, ROWS, path, Sampling(n=2)) == whole
    assert len(engine.decodings) == 2
    assert len({decoding.seed for decoding in engine.decodings}) == 2
    assert all(decoding.empty_threshold and decoding.empty_threshold > 1 for decoding in engine.decodings)
    third, engine = rewriter()
    assert draw(third, ROWS, path, Sampling(n=2)) == whole
    assert engine.decodings == []


def test_draws_of_other_settings_or_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "draws.jsonl"
    draw(rewriter()[0], ROWS[:3], path, Sampling(n=2))
    with pytest.raises(ConfigurationError, match="another temperature"):
        draw(rewriter()[0], ROWS[:3], path, Sampling(n=2, temperature=0.7))
    with pytest.raises(ConfigurationError, match="another rows"):
        draw(rewriter()[0], ROWS[:2], path, Sampling(n=2))
    path.write_text(json.dumps({"draws": 1}) + "\n{}\n")
    with pytest.raises(ConfigurationError, match="damaged"):
        draw(rewriter()[0], ROWS[:3], path, Sampling(n=2))
