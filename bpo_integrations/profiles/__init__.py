"""Which prompts are worth it for which LLM: the built-in profiles, and how they go together with a policy.

A profile is a policy file that comes with the package (`small.json`, `strong.json` in this folder). Whatever is chosen,
rules are asked first: the default policy, or the user's own function.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeAlias

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.gate import Gate
from bpo_integrations.policy import AllOf, Policy, all_of, default_policy
from bpo_integrations.result import Mode

PROFILES: Final = ("small", "strong")
"""The built-in profiles. `small` acts widely: every prompt that the default policy lets through. `strong` acts only on
estimates, what-ifs and code with traps, and leaves the rest alone."""

Profile: TypeAlias = str | Path | Gate
"""A built-in profile's name, a policy file, or a gate that was read already."""


def load_profile(profile: Profile) -> Gate:
    """Return the gate of a profile.

    Args:
        profile: `small`, `strong`, the path of a policy file, or a `Gate`, which is returned as it is.

    Raises:
        ConfigurationError: There is neither such a profile nor such a file.
        ModelFormatError: The file is no policy file.

    Example:
        >>> load_profile("strong").acts
        'some'
    """
    if isinstance(profile, Gate):
        return profile
    if not isinstance(profile, (str, Path)):
        msg = f"A profile is a name or a policy file's path, not {type(profile).__name__}."
        raise ConfigurationError(msg, hint=f"Use {', '.join(map(repr, PROFILES))}, or a path.")
    if profile in PROFILES:
        return Gate.read(Path(__file__).with_name(f"{profile}.json"))
    if isinstance(profile, str) and not Path(profile).suffix and not Path(profile).expanduser().exists():
        msg = f"There is no profile {profile!r}."
        raise ConfigurationError(msg, hint=f"Use {', '.join(map(repr, PROFILES))}, or the path of a policy file.")
    return Gate.read(profile)


def settled(
    policy: Policy | str | Path | None,
    profile: Profile | None,
    *,
    rules: Policy | None = None,
    mode: Mode | None = None,
) -> Policy | None:
    """Return the policy that an optimizer's options ask for; None is the default one.

    A function takes the place of the default rules. A policy file or a profile is asked behind the rules.

    Args:
        policy: A policy of one's own, or a policy file (its path, or the `Gate` that was read from it).
        profile: A profile or a policy file; not together with a policy file as `policy`.
        rules: The rules where `policy` is no function; None is the default policy.
        mode: The optimizer's mode, which must be the gate's.

    Raises:
        ConfigurationError: Two policy files are given, one cannot be read, or it is for another mode.
    """
    if isinstance(policy, (str, Path, Gate)):
        if profile is not None:
            msg = "There is a policy file as policy= and another as profile=."
            raise ConfigurationError(msg, hint="Give one of them; policy= may be a function beside a profile.")
        policy, profile = None, policy
    if policy is not None and not callable(policy):
        msg = f"policy= must be a function or a policy file, not {type(policy).__name__}."
        raise ConfigurationError(msg, hint="See docs/policy.md and docs/gate.md.")
    chosen = policy or rules
    if profile is None:
        return chosen
    gate = load_profile(profile)
    if mode is not None and gate.mode not in (None, mode):
        msg = f"The policy file {gate.name!r} was made for the mode {gate.mode!r}, not {mode!r}."
        raise ConfigurationError(msg, hint=f"Use mode={gate.mode!r}, or calibrate with an arm of this mode.")
    return chosen if gate.acts == "all" else all_of(chosen or default_policy, gate)


def gate_of(policy: Policy | None) -> Gate | None:
    """Return the gate in a policy that `settled` or `all_of` returned, or None."""
    if isinstance(policy, Gate):
        return policy
    inner = policy.policies if isinstance(policy, AllOf) else ()
    return next((gate for each in inner if (gate := gate_of(each)) is not None), None)
