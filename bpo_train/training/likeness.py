"""Whether a text is about its own prompt, and whether it would go with any prompt: a number for each text.

Pure. Without sentence embeddings (`bpo_train.evaluation.subject.embedding_similarity`) likeness is that of letters and
words, and no meaning is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bpo_integrations.errors import MissingExtraError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bpo_train.evaluation.subject import Similarity


def strangeness(prompts: Sequence[str], texts: Sequence[str], owners: Sequence[int], near: Similarity) -> list[float]:
    """Return for each text the share of the other prompts that it is nearer to than to its own; a tie is half of one.

    Args:
        prompts: All prompts, two or more.
        texts: What was written.
        owners: The place of each text's own prompt.
        near: How near texts are to prompts.

    Returns:
        0 where the own prompt is the nearest, 1 where it is the farthest; 0.5 by chance.

    Example:
        >>> from bpo_train.evaluation.subject import tfidf_similarity
        >>> strangeness(["How do bees dance?", "Bake a plum cake"], ["Name the dances."], [1], tfidf_similarity)
        [1.0]
    """
    import numpy as np

    found = near(texts, prompts)
    own = found[np.arange(len(texts)), list(owners)][:, None]
    nearer = (found > own).sum(1) + 0.5 * ((found == own).sum(1) - 1)
    shares: list[float] = (nearer / (len(prompts) - 1)).tolist()
    return shares


def genericness(
    gold: Sequence[str], texts: Sequence[str], owners: Sequence[int], near: Similarity
) -> tuple[list[float], list[float]]:
    """Return the mean likeness to what was written for other prompts, which is the nearness to its centroid.

    Args:
        gold: What was written, two or more.
        texts: Others.
        owners: The place in `gold` of what was written for each text's prompt, which does not count.
        near: How near texts are to each other.

    Returns:
        Of what was written, and of the others.

    Example:
        >>> gold = ["Give clear examples.", "Give clear steps.", "Name both dances."]
        >>> own, others = genericness(gold, ["Give clear examples and steps."], [2], word_similarity)
        >>> others[0] > max(own)
        True
    """
    import numpy as np

    found = near([*gold, *texts], gold)  # in one call, so that all vectors are of one kind
    own = found[np.arange(len(found)), [*range(len(gold)), *owners]]
    means: list[float] = ((found.sum(1) - own) / (len(gold) - 1)).tolist()
    return means[: len(gold)], means[len(gold) :]


def word_similarity(additions: Sequence[str], prompts: Sequence[str]) -> NDArray[np.floating[Any]]:
    """Return cosines of TF-IDF vectors of words: a `Similarity`.

    English stop words do not count: "the" and "and" would be the centre of everything. Weights are those of all texts:
    a word that only the first have is what makes them specific.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        import numpy as np
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise MissingExtraError("scikit-learn", extra="train") from error

    vectorizer = TfidfVectorizer(stop_words="english", sublinear_tf=True)
    try:
        found = vectorizer.fit_transform([*additions, *prompts])
    except ValueError:  # nothing but stop words
        return np.zeros((len(additions), len(prompts)))
    return np.asarray((found[: len(additions)] @ found[len(additions) :].T).todense())
