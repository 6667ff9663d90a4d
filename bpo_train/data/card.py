"""The card of a constructed data set: what it is, where it comes from, what it may be used for, in figures and plots.

Writes `README.md` with the metadata that the Hugging Face hub reads, and PNG files beside it; the figures are those of
`summary.json` and `statistics.summarize`, none is made up. A part that may not be used commercially is warned of first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bpo_integrations.errors import MissingExtraError
from bpo_train.data import plots
from bpo_train.data.rows import read_rows
from bpo_train.data.statistics import summarize

HUB_LICENCES = frozenset(
    "apache-2.0 mit cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nc-sa-4.0 cc0-1.0 odc-by".split()
)
"""Licences as the hub writes them; any other is `other` there."""

_NON_COMMERCIAL = re.compile(r"(?<![a-z])(nc|non-?commercial|research)(?![a-z])", re.IGNORECASE)
_SPLITS = ("train", "validation", "test")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write(
    folder: str | Path,
    summary: Mapping[str, Any],
    statistics: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    languages: Sequence[str] = (),
) -> Path:
    """Write the card and its plots.

    Args:
        folder: The output folder, with `pairs.jsonl` and, by mode, `train.jsonl`, `validation.jsonl`, `test.jsonl`.
        summary: What `summary.json` holds: `total`, `kept`, `dropped`, `failed`, `reasons`, and what else it has.
        statistics: What `statistics.summarize` returns; None computes it from `pairs.jsonl`.
        name: The data set's name; None takes the folder's.
        languages: ISO 639-1 codes for the hub; empty leaves them out.

    Returns:
        The path of `README.md`.

    Raises:
        ConfigurationError: There are no pairs to be read.
        MissingExtraError: matplotlib or huggingface_hub is not installed.
    """
    folder = Path(folder)
    if statistics is None:
        statistics = summarize(read_rows(folder / "pairs.jsonl"))
    drawn = plots.draw(folder, summary, statistics)
    parts = (
        _head(folder, statistics, languages),
        f"# {name or folder.resolve().name}",
        "Prompts and better prompts, made from human preferences by black-box prompt optimization (BPO, "
        "[arXiv 2311.04155](https://arxiv.org/abs/2311.04155)): a language model was shown a prompt with a preferred "
        "and a rejected response, compared the two, and wrote what would have led to the better one.",
        _licence_section(statistics["licences"]),
        _outcome(summary),
        _before_and_after(statistics),
        _by_source(statistics["sources"]),
        "\n\n".join(f"![{title}]({file})" for title, file in drawn),
        _fields(folder),
        "## Limits\n\nThe texts are those of the sources and of the annotator. Nobody has read them all: they may be "
        "wrong, offensive or unsafe. The figures describe the data; whether a model trained on them helps has to be "
        "measured.",
    )
    path = folder / "README.md"
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return path


def is_non_commercial(licence: str) -> bool:
    """Whether a licence, by its name, forbids commercial use.

    Example:
        >>> is_non_commercial("CC-BY-NC-4.0"), is_non_commercial("Apache-2.0")
        (True, False)
    """
    return _NON_COMMERCIAL.search(licence) is not None


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table, the first column left and the others right.

    Example:
        >>> print(table(["a", "b"], [["x", 1]]))
        | a | b |
        | --- | ---: |
        | x | 1 |
    """
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _head(folder: Path, statistics: Mapping[str, Any], languages: Sequence[str]) -> str:
    try:
        from huggingface_hub import DatasetCardData
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", extra="train") from error
    licences = {licence.lower() for licence in statistics["licences"]}
    rows = statistics["rows"]
    data = DatasetCardData(
        language=list(languages) or None,
        license=next(iter(licences)) if len(licences) == 1 and licences <= HUB_LICENCES else "other",
        task_categories=["text-generation"],
        tags=["prompt-optimization", "bpo", "preference"],
        size_categories=[next((size for limit, size in _SIZES if rows < limit), "n>1M")],
        configs=_configs(folder),
    )
    return f"---\n{data.to_yaml()}\n---"


def _configs(folder: Path) -> list[dict[str, Any]]:
    """Return what the hub shall load: each mode's splits, or all pairs; without it, it would load the journal, too."""
    found: list[dict[str, Any]] = []
    for part in ("augment", "rewrite", "."):
        files = [
            {"split": split, "path": (Path(part) / f"{split}.jsonl").as_posix()}
            for split in _SPLITS
            if (folder / part / f"{split}.jsonl").is_file() and (folder / part / f"{split}.jsonl").stat().st_size
        ]
        if files:
            found.append({"config_name": "default" if part == "." else part, "data_files": files})
    return [*found, {"config_name": "pairs", "data_files": "pairs.jsonl"}]


def _licence_section(licences: Mapping[str, int]) -> str:
    total = sum(licences.values())
    notes = []
    if barred := sum(rows for licence, rows in licences.items() if is_non_commercial(licence)):
        notes.append(
            f"> **Not for commercial use:** {barred:,} of {total:,} rows come from sources that forbid it. Leave them "
            "out by their `licence`, or construct with `--licences`."
        )
    if unknown := licences.get("", 0):
        notes.append(f"> **Licence unknown:** {unknown:,} of {total:,} rows. Find it out before you share them.")
    rows = [(licence or "unknown", f"{count:,}", _percent(count / total)) for licence, count in licences.items()]
    body = table(["licence of the source", "rows", "share"], rows)
    terms = "The annotator's provider may have terms of its own for what its model writes."
    return "\n\n".join(["## Licences", *notes, body, terms])


def _outcome(summary: Mapping[str, Any]) -> str:
    counts = [
        (status, f"{summary[status]:,}") for status in ("total", "kept", "dropped", "failed") if status in summary
    ]
    text = "## How the rows ended\n\n" + table(["rows", "number"], counts)
    if reasons := summary.get("reasons"):
        text += "\n\n" + table(["reason", "rows"], [(reason, f"{count:,}") for reason, count in _flat(reasons)])
    spent = [
        f"{summary[name]:,} {name}"
        for name in ("requests", "tokens", "seconds")
        if isinstance(summary.get(name), (int, float))
    ]
    return text + (f"\n\nThe annotation took {', '.join(spent)}." if spent else "")


def _flat(reasons: Mapping[str, Any]) -> list[tuple[str, int]]:
    return sorted(reasons.items(), key=lambda item: (-item[1], item[0]))


def _before_and_after(statistics: Mapping[str, Any]) -> str:
    distinct, words, ratio = statistics["distinct_4"], statistics["words"], statistics["length_ratio"]
    before, after = words["prompt"], words["optimized_prompt"]
    rows = [
        ("distinct-4", f"{distinct['prompt']:.3f}", f"{distinct['optimized_prompt']:.3f}"),
        *(
            (f"words, {what}", f"{before[what]:,.0f}", f"{after[what]:,.0f}")
            for what in ("mean", "p10", "median", "p90")
        ),
    ]
    text = "## Before and after\n\n" + table(["", "prompt", "optimized prompt"], rows)
    text += (
        f"\n\nA prompt grows by a factor of {ratio['median']:.2f} in the median ({ratio['p10']:.2f} to "
        f"{ratio['p90']:.2f} for the middle 80%). {_percent(statistics['unchanged'])} are unchanged, "
        f"{_percent(statistics['shorter'])} become shorter."
    )
    if additions := statistics.get("additions"):
        text += (
            f" Of {additions['rows']:,} additions {_percent(additions['empty'])} are empty; the others have "
            f"{additions['words']['median']:.0f} words in the median."
        )
    if not distinct["exact"]:
        text += " Distinct-4 is estimated, with a standard error of 0.14%."
    return (
        text + "\n\nDistinct-4 is the share of unique runs of four words among all of them (the paper's Table 1: .860 "
        "before and .913 after, over 14,395 rows); it falls as rows are added, so compare only sets of a size. Words "
        "are counted in small letters and without punctuation."
    )


def _by_source(sources: Mapping[str, Mapping[str, Any]]) -> str:
    if len(sources) < 2:
        return ""
    rows = [
        (
            source or "unknown",
            f"{part['rows']:,}",
            f"{part['distinct_4']['prompt']:.3f}",
            f"{part['distinct_4']['optimized_prompt']:.3f}",
            f"{part['length_ratio']['median']:.2f}",
            _percent(part["unchanged"]),
        )
        for source, part in sources.items()
    ]
    head = ["source", "rows", "distinct-4 before", "after", "words after / before", "unchanged"]
    return "## By source\n\n" + table(head, rows)


def _fields(folder: Path) -> str:
    text = (
        "## Files\n\n`pairs.jsonl` has a row for each kept prompt: `id`, `prompt`, `optimized_prompt`, `addition` "
        "(what was added, where that was asked for), `comparison` (why the preferred response is better), "
        "`source`, `licence`."
    )
    modes = [mode for mode in ("augment", "rewrite") if (folder / mode).is_dir()]
    if modes:
        names = " and ".join(f"`{mode}/`" for mode in modes)
        text += f" {names} hold the same for training, as `prompt` and `completion`, in train, validation and test."
    return text


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
