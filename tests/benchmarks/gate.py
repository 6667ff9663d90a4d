"""How often `calibrate` finds a gain that is there, and one that is not: the table of docs/gate.md, on drawn examples.

    python tests/benchmarks/gate.py

Nothing is answered or judged: outcomes are drawn with known probabilities, so that it is known what should be found.
Three of ten are ties; kinds, lengths and the model's figures vary as on the test sets.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]

from bpo_integrations.gate import Facts  # noqa: E402
from bpo_train.evaluation.gate import Calibration, Settings, calibrate  # noqa: E402
from bpo_train.evaluation.gate_features import Example, Examples  # noqa: E402

TIES = 0.3
RUNS = 40
SIZES = (100, 300, 700)
SETTINGS = Settings(repeats=1, resamples=2_000)
SHARES = {"knowledge": 0.4, "advice": 0.2, "writing": 0.15, "text": 0.1, "code_trap": 0.1, "other": 0.05}

CASES: dict[str, tuple[str, Callable[[Facts], float]]] = {
    "nothing gained or lost anywhere": ("keep all", lambda facts: 0.0),
    "-20 points everywhere": ("keep all", lambda facts: -0.2 / (1 - TIES)),
    "+20 points everywhere": ("use all", lambda facts: 0.2 / (1 - TIES)),
    "+35 below 16 words, -35 above": ("gate by length", lambda facts: 0.5 if facts.words < 16 else -0.5),
    "+50 on one kind in ten, -20 elsewhere": (
        "gate by kind",
        lambda facts: 0.7 if facts.kind == "code_trap" else -0.3,
    ),
}


def drawn(seed: int, number: int, gain: Callable[[Facts], float]) -> Examples:
    """Draw examples whose expected gain is `(1 - TIES) * gain(facts)`."""
    rng = np.random.default_rng(seed)
    found = []
    for place in range(number):
        kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
        length = 1 + int(np.exp(rng.normal(2.8, 0.8)))
        facts = Facts(kind, length, int(rng.integers(5, 40)), float(rng.beta(1, 4)), float(-rng.gamma(2, 0.4)))
        better = (1 - TIES) * (1 + gain(facts)) / 2
        value = rng.choice([1.0, 0.0, -1.0], p=[better, TIES, 1 - TIES - better])
        found.append(Example(str(place), facts, float(value)))
    return Examples(tuple(found), mode="augment", judge="drawn")


def truth(found: Calibration, number: int, gain: Callable[[Facts], float]) -> float:
    """Return what a policy really gains, in points, on 2,000 prompts that it never saw."""
    fresh = drawn(10**6 + number, 2_000, gain).changed
    gate = found.gate
    if gate.acts == "none":
        return 0.0
    score = gate.score
    acted = [example for example in fresh if score is None or score.gain(example.facts) > score.threshold]
    return 100 * sum((1 - TIES) * gain(example.facts) for example in acted) / len(fresh)


def main() -> None:
    """Draw, fit, print the table and write it into docs/gate.md."""
    from report import put, stamp, table

    rows = []
    for name, (right, gain) in CASES.items():
        for number in SIZES:
            fits = [calibrate(drawn(seed, number, gain), settings=SETTINGS) for seed in range(RUNS)]
            acts = Counter(found.gate.acts for found in fits)
            gained = float(np.mean([truth(found, number, gain) for found in fits]))
            rows.append((name, right, number, acts["none"], acts["all"], acts["some"], f"{gained:+.1f}"))
            print(rows[-1], flush=True)
    header = (
        "drawn gain",
        "right answer",
        "prompts",
        "keeps all",
        "uses all",
        "gate",
        "true gain of the policy (mean)",
    )
    text = f"{table(header, rows)}\n\n{RUNS} draws a row. {stamp()}"
    put(ROOT / "docs" / "gate.md", "gate", text)


if __name__ == "__main__":
    main()
