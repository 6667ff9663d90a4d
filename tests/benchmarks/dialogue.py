"""When a turn leans on the dialogue, and what an optimizer that reads it makes of it: the tables of docs/dialogue.md.

    python tests/benchmarks/dialogue.py                          # the detector, on TREC CAsT 2020 and 2021
    python tests/benchmarks/dialogue.py --fit                    # fit its weights on 2020, cross-validated by topic
    python tests/benchmarks/dialogue.py --model openai:gpt-4o-mini   # leaning turns of 2021 through an optimizer

A turn leans if it is not its topic's first and `manual_rewritten_utterance` has a content word that `raw_utterance`
lacks. Words are runs of letters and digits, in lower case; content words are those of two characters or more that are
not in `FUNCTION_WORDS`; `light_stem` takes off the plural and -ing, -ed, -ly, -e. The weights of
`bpo_integrations.dialogue` were fitted on 2020; of 2021 the totals were looked at on the way, as
docs/dialogue.md says.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]

from bpo_integrations.dialogue import WEIGHTS, features, leans_on_history  # noqa: E402

PAGE = ROOT / "docs" / "dialogue.md"
FUNCTION_WORDS = frozenset(
    """a about above after again against all also am among an and any are aren as at be because been before being below
    between both but by can cannot could couldn did didn do does doesn doing don down during each either else few for
    from further had has hasn have haven having he her here hers herself him himself his how if in into is isn it its
    itself just let ll me might more most much must my myself neither no nor not now of off oh ok on once one ones only
    or other others our ours out over own re same she should shouldn so some such than that the their theirs them
    themselves then there these they this those through to too under until up us ve very was wasn we were what when
    where whether which while who whom whose why will with within without won would wouldn yes you your yours
    yourself""".split()
)
_BACK = re.compile(
    r"\b(?:it|its|they|them|their|theirs|he|him|his|she|her|hers|this|that|these|those|there|ones?|others?|another"
    r"|else|more|same|such|both|too|instead)\b|^(?:and|but|so|or|what about|how about|why)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Turn:
    """One turn of a topic.

    Args:
        topic: The topic's number.
        raw: What the user said.
        manual: The same so that it can be understood by itself, by people.
        history: What went before, oldest first: earlier raw utterances and, where the data has them (2021), passages.
        leans: The label.
    """

    topic: int
    raw: str
    manual: str
    history: tuple[str, ...]
    leans: bool

    @property
    def first(self) -> bool:
        return not self.history


def light_stem(word: str) -> str:
    """Take a plural ending and one of -ing, -ed, -ly, -e off a word."""
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    ending = next((e for e in ("ing", "ed", "ly", "e") if word.endswith(e) and len(word) > len(e) + 2), "")
    return word.removesuffix(ending)


def content_stems(text: str) -> list[str]:
    """Return the stems of the content words of `text`."""
    words = re.findall(r"[^\W_]+", text.lower())
    return [light_stem(word) for word in words if len(word) > 1 and word not in FUNCTION_WORDS]


def is_leaning(raw: str, manual: str) -> bool:
    """Whether the manual form has a content word that the raw one lacks."""
    return not set(content_stems(manual)) <= set(content_stems(raw))


def turns_of(data: Path, year: int) -> list[Turn]:
    """Read all turns of a year, with their labels."""
    topics = json.loads((data / "cast" / f"{year}_manual_evaluation_topics_v1.0.json").read_text(encoding="utf-8"))
    found = []
    for topic in topics:
        history: tuple[str, ...] = ()
        for turn in topic["turn"]:
            raw, manual = turn["raw_utterance"], turn["manual_rewritten_utterance"]
            found.append(Turn(topic["number"], raw, manual, history, bool(history) and is_leaning(raw, manual)))
            history += tuple(filter(None, (raw, turn.get("passage"))))
    return found


def pronoun_rules(turn: str, history: Sequence[str]) -> bool:
    """The plain rules to beat: a word that points back, or at most four words."""
    return bool(history) and (_BACK.search(turn) is not None or len(turn.split()) <= 4)


Detector = Callable[[str, Sequence[str]], bool]


def measure(turns: Iterable[Turn], detector: Detector) -> dict[str, float]:
    """Return recall, precision and false alarms: among later turns that do not lean, and with the first turns too."""
    said = [(turn, detector(turn.raw, turn.history)) for turn in turns]
    lean = [yes for turn, yes in said if turn.leans]
    later = [yes for turn, yes in said if not turn.leans and not turn.first]
    alone = [yes for turn, yes in said if not turn.leans]
    return {
        "recall": sum(lean) / len(lean),
        "false alarms": sum(later) / len(later),
        "false alarms, first turns too": sum(alone) / len(alone),
        "precision": sum(lean) / max(1, sum(yes for _, yes in said)),
        "leaning": len(lean),
        "not leaning": len(later),
        "first": len(alone) - len(later),
    }


def changed_topic(turns: Sequence[Turn]) -> list[tuple[str, tuple[str, ...]]]:
    """Return each topic's first turn behind the conversation of another topic: a user who begins anew."""
    last = {turn.topic: (*turn.history, turn.raw) for turn in turns}
    numbers = sorted(last)
    return [
        (turn.raw, last[numbers[(numbers.index(turn.topic) + step) % len(numbers)]])
        for turn in turns
        if turn.first
        for step in (3, 11, 17)
    ]


# -- the fit: 2020 only ------------------------------------------------------------------------------------------------

RAW, MANUAL, ANEW = 1.0, 0.6, 0.5
"""Weights of examples: turns as they were said (those that do not lean count four times: there are ten), the manual
forms of leaning ones, which need no history, and first turns behind another topic's conversation."""


@dataclass(frozen=True)
class Example:
    """One row of the fit."""

    topic: int
    text: str
    history: tuple[str, ...]
    leans: bool
    weight: float
    kind: str


def _examples(turns: Sequence[Turn]) -> list[Example]:
    topics = {turn.raw: turn.topic for turn in turns if turn.first}
    found = [Example(topics[text], text, past, False, ANEW, "topic changed") for text, past in changed_topic(turns)]
    for turn in turns:
        if not turn.first:
            weight = RAW if turn.leans else 4 * RAW
            found.append(Example(turn.topic, turn.raw, turn.history, turn.leans, weight, "said"))
        if turn.leans:
            found.append(Example(turn.topic, turn.manual, turn.history, False, MANUAL, "manual form"))
    return found


def logistic(x: np.ndarray, y: np.ndarray, weight: np.ndarray, ridge: float = 1.0) -> np.ndarray:
    """Fit a logistic regression by Newton's method; the last column is the constant, and not shrunk."""
    penalty = np.diag([ridge] * (x.shape[1] - 1) + [1e-6])
    beta = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ beta))
        slope = x.T @ (weight * (p - y)) + penalty @ beta
        beta -= np.linalg.solve((x.T * (weight * p * (1 - p))) @ x + penalty, slope)
    return beta


def fit(turns: Sequence[Turn]) -> str:
    """Fit on 2020; return the weights and what they do on topics that were left out, as Markdown."""
    from report import table

    examples = _examples(turns)
    topics = np.array([example.topic for example in examples])
    x = np.array([[*features(example.text, example.history).values(), 1.0] for example in examples])
    y = np.array([example.leans for example in examples], float)
    weight = np.array([example.weight for example in examples])
    kind = np.array([example.kind for example in examples])
    score = np.zeros(len(y))
    for topic in np.unique(topics):
        out = topics == topic
        score[out] = x[out] @ logistic(x[~out], y[~out], weight[~out])
    beta = logistic(x, y, weight)
    rows = []
    for recall in (0.80, 0.85, 0.90, 0.92, 0.94, 0.95, 0.96):
        at = np.quantile(score[(kind == "said") & (y == 1)], 1 - recall)
        groups = [(kind == "said") & (y == 0), kind == "manual form", kind == "topic changed"]
        rows.append((f"{recall:.2f}", f"{at:+.2f}", *(f"{np.mean(score[group] >= at):.2f}" for group in groups)))
    header = ("recall", "score at least", "false alarms: said", "manual forms", "topic changed")
    weights = ", ".join(f"{name} {value:+.2f}" for name, value in zip((*WEIGHTS, "constant"), beta, strict=True))
    return f"{table(header, rows)}\n\n{weights}"


# -- an optimizer that reads the dialogue ------------------------------------------------------------------------------


def token_f1(text: str, manual: str) -> float:
    """F1 of the content words' stems against the manual form's, counted with repetitions."""
    found, wanted = Counter(content_stems(text)), Counter(content_stems(manual))
    shared = (found & wanted).total()
    return 2 * shared / (found.total() + wanted.total()) if shared else 0.0


def through_optimizer(turns: Sequence[Turn], model: Any) -> dict[str, float]:
    """Send leaning turns with their histories to an optimizer; return mean token F1 of each stage, and counts."""
    from bpo_integrations.optimizer import PromptOptimizer

    optimizer = PromptOptimizer(model, mode="rewrite", timeout=None, cache=0)
    if not optimizer.rewriter.uses_history:
        sys.exit(f"{model} does not read the dialogue; take a general LLM.")
    results = [optimizer.optimize(turn.raw, turn.history) for turn in turns]
    pairs = list(zip(turns, results, strict=True))
    written = [result.candidates[0].text if result.candidates else result.text for result in results]
    return {
        "raw": float(np.mean([token_f1(turn.raw, turn.manual) for turn in turns])),
        "written": float(np.mean([token_f1(text, turn.manual) for turn, text in zip(turns, written, strict=True)])),
        "goes on": float(np.mean([token_f1(result.text, turn.manual) for turn, result in pairs])),
        "changed": sum(result.changed for result in results),
        "n": len(turns),
    }


def spread(turns: Sequence[Turn], most: int) -> list[Turn]:
    """Return at most `most` turns, evenly spread."""
    return [turns[i * len(turns) // most] for i in range(most)] if len(turns) > most else list(turns)


def detector_tables(data: Path) -> str:
    """Return the tables of the detector as Markdown."""
    from report import table

    header = (
        "year", "detector", "recall", "false alarms", "with first turns", "precision", "lean / do not / first",
    )  # fmt: skip
    rows = []
    for year, what in ((2020, "tuned on"), (2021, "its totals were looked at")):
        turns = turns_of(data, year)
        for name, detector in (("`leans_on_history`", leans_on_history), ("plain pronoun rules", pronoun_rules)):
            m = measure(turns, detector)
            rows.append(
                (
                    f"{year} ({what})",
                    name,
                    *(f"{m[key]:.3f}" for key in ("recall", "false alarms")),
                    *(f"{m[key]:.3f}" for key in ("false alarms, first turns too", "precision")),
                    f"{m['leaning']:.0f} / {m['not leaning']:.0f} / {m['first']:.0f}",
                )
            )
    return table(header, rows)


def other_tables(data: Path) -> str:
    """Return what the detector says of requests that begin a new subject, and of manual forms, as Markdown."""
    from policy import prompts_of
    from report import table

    turns = {year: turns_of(data, year) for year in (2020, 2021)}
    histories = [history for _, history in changed_topic(turns[2020])]
    groups = {
        f"{year}: {what}": cases
        for year in turns
        for what, cases in (
            ("manual forms of leaning turns", [(t.manual, t.history) for t in turns[year] if t.leans]),
            ("first turns behind another topic's conversation", changed_topic(turns[year])),
        )
    }
    for name in ("vicuna_eval", "bpo_test", "dolly_eval"):
        prompts = prompts_of(data, name)
        groups[f"{name}, behind a conversation of 2020"] = [
            (prompt, histories[i % len(histories)]) for i, prompt in enumerate(prompts)
        ]
    rows = []
    for name, cases in groups.items():
        said = [leans_on_history(text, history) for text, history in cases]
        rows.append((name, f"{sum(said)} of {len(said)} ({100 * sum(said) / len(said):.0f}%)"))
    return table(("text that stands by itself", "taken for leaning"), rows)


def main() -> None:
    """Measure, print, and write the tables into docs/dialogue.md."""
    from report import put, stamp, table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="fit the weights on 2020 and print them")
    parser.add_argument("--model", help="a rewriter's spec; `chat-embedded` is the 135M base without adapter")
    parser.add_argument("--sample", type=int, default=60, help="leaning turns of 2021 to send to the model")
    args = parser.parse_args()
    data = Path(os.environ.get("BPO_DATA_DIR") or ROOT.parent / "shared" / "data")
    if args.fit:
        print(fit(turns_of(data, 2020)))
    elif args.model:
        model: Any = args.model
        if model == "chat-embedded":
            from bpo_integrations.langchain.embedded_chat import ChatEmbedded

            model = ChatEmbedded(max_tokens=64)
        turns = spread([turn for turn in turns_of(data, 2021) if turn.leans], args.sample)
        m = through_optimizer(turns, model)
        header = ("model", "F1: raw turn", "what the model wrote, no guards", "what goes on, with guards", "changed")
        row = (args.model, *(f"{m[key]:.3f}" for key in ("raw", "written", "goes on")), f"{m['changed']} of {m['n']}")
        text = f"{table(header, [row])}\n\n{stamp()}"
        print(text)
        put(PAGE, "optimizer", text)
    else:
        text = f"{detector_tables(data)}\n\n{other_tables(data)}\n\n{stamp()}"
        print(text)
        put(PAGE, "detector", text)


if __name__ == "__main__":
    main()
