"""How many prompts each profile lets through, before any model runs: a table of docs/benchmarks.md.

    python tests/benchmarks/profiles.py

The recognizers of `strong` were written with sight of Vicuna's prompts; the other sets were looked at for false alarms.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]
os.environ.setdefault("BPO_DATA_DIR", str(ROOT.parent / "shared" / "data"))

from bpo_integrations.policy import PolicyContext, default_policy  # noqa: E402
from bpo_integrations.profiles import PROFILES, settled  # noqa: E402
from bpo_integrations.prompt_kinds import KINDS, kind_of  # noqa: E402
from bpo_train.evaluation.testsets import load_testset  # noqa: E402

SETS = ("vicuna_eval", "bpo_test", "dolly_eval", "self_instruct_eval")
CONTEXT = PolicyContext(mode="augment", languages=("en",))
TRAPS = ("what_if", "estimate", "code_trap")


def measure(name: str) -> dict[str, Any]:
    """Return of a test set: prompts, how many each profile lets through, and their kinds by the set's categories."""
    prompts = load_testset(name)
    let: dict[str, list[str]] = {}
    for profile in PROFILES:
        policy = settled(None, profile) or default_policy
        let[profile] = [prompt.id for prompt in prompts if policy(prompt.prompt, CONTEXT) is None]
    kinds = {prompt.id: kind_of(prompt.prompt) for prompt in prompts}
    return {
        "prompts": len(prompts),
        "let": {profile: len(ids) for profile, ids in let.items()},
        "kinds": Counter(kinds.values()),
        "strong": Counter(kinds[id_] for id_ in let["strong"]),
        "categories": Counter((prompt.category, kinds[prompt.id]) for prompt in prompts),
    }


def main() -> None:
    """Measure, print the tables and write them into docs/benchmarks.md."""
    from report import put, stamp, table

    found = {name: measure(name) for name in SETS}

    def share(part: int, whole: int) -> str:
        return f"{part} of {whole} ({100 * part / whole:.1f}%)"

    let = table(
        ("set", *(f"`{profile}`" for profile in PROFILES), *(f"of `strong`: {kind}" for kind in TRAPS)),
        [
            (
                name,
                *(share(one["let"][profile], one["prompts"]) for profile in PROFILES),
                *(one["strong"][kind] for kind in TRAPS),
            )
            for name, one in found.items()
        ],
    )
    kinds = table(("kind", *SETS), [(f"`{kind}`", *(one["kinds"][kind] for one in found.values())) for kind in KINDS])
    vicuna = found["vicuna_eval"]["categories"]
    categories = table(
        ("Vicuna's category", "kinds"),
        [
            (category, ", ".join(f"{kind} {vicuna[category, kind]}" for kind in KINDS if vicuna[category, kind]))
            for category in dict.fromkeys(category for category, _ in vicuna)
        ],
    )
    text = f"{let}\n\n{kinds}\n\n{categories}\n\n{stamp()}"
    print(text)
    put(ROOT / "docs" / "benchmarks.md", "profiles", text)


if __name__ == "__main__":
    main()
