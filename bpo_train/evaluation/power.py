"""How many prompts it takes to see a gain, before money is spent; and what gain a number of prompts can show.

The sample size of the paired comparison of proportions (Connor 1987, for McNemar's test): of n prompts a share q is
decided, the others are ties, and delta = win - loss. Its variance is q / n without a difference and (q - delta^2) / n
with one. A normal approximation; no answer is asked for and no judge is needed.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from bpo_integrations.errors import ConfigurationError


def prompts_needed(delta: float, *, ties: float = 20.0, power: float = 0.8, alpha: float = 0.05) -> int:
    """Return how many prompts show a difference.

    Args:
        delta: The difference `win - loss` to be seen, in percent points; its sign does not matter.
        ties: Percent of the prompts that are expected to be ties. With both orders judged, 20 to 50 are common.
        power: The chance that it is seen, if it is there.
        alpha: The chance that one is seen, if there is none (two-sided).

    Raises:
        ConfigurationError: `delta` is 0, or cannot be with so many ties; or a share is out of its range.

    Example:
        >>> prompts_needed(10), prompts_needed(20)
        (626, 155)
    """
    decided, first, second = _checked(ties, power, alpha)
    share = abs(delta) / 100
    if not 0 < share <= decided:
        msg = f"With {ties:g}% ties, a difference lies between 0 and {100 * decided:g} points, and {delta:g} does not."
        raise ConfigurationError(msg, hint="Give another difference, such as 10.")
    return math.ceil(((first * math.sqrt(decided) + second * math.sqrt(decided - share**2)) / share) ** 2 - 1e-9)


def detectable(n: int, *, ties: float = 20.0, power: float = 0.8, alpha: float = 0.05) -> float:
    """Return the smallest difference that so many prompts show, in percent points; infinity where they show none.

    Args:
        n: Prompts.
        ties: As for `prompts_needed`.
        power: As for `prompts_needed`.
        alpha: As for `prompts_needed`.

    Raises:
        ConfigurationError: There is no prompt, or a share is out of its range.

    Example:
        >>> round(detectable(80), 1), round(detectable(732), 1), detectable(3)
        (27.6, 9.2, inf)
    """
    decided, first, second = _checked(ties, power, alpha)
    if n < 1:
        msg = f"{n} prompts show nothing."
        raise ConfigurationError(msg, hint="Take at least one.")
    # The greater root of (share sqrt(n) - first sqrt(q))^2 = second^2 (q - share^2).
    root = decided * second**2 * (n - first**2 + second**2)
    if root < 0:
        return math.inf
    share = (first * math.sqrt(n * decided) + math.sqrt(root)) / (n + second**2)
    return 100 * share if share <= decided else math.inf


def _checked(ties: float, power: float, alpha: float) -> tuple[float, float, float]:
    """Return the share that is decided, and the normal quantiles of alpha and power."""
    if not (0 <= ties < 100 and 0.5 <= power < 1 and 0 < alpha < 1):
        msg = "ties must be from 0 to below 100 percent, power from 0.5 to below 1, alpha between 0 and 1."
        raise ConfigurationError(msg, hint="For example ties=20, power=0.8, alpha=0.05.")
    normal = NormalDist()
    return 1 - ties / 100, normal.inv_cdf(1 - alpha / 2), normal.inv_cdf(power)
