"""Every error that this project raises on purpose, and the words in which it does.

Each error derives from `BPOError`, says in `hint` what to do next, and in `retryable` whether the same call may succeed
later. Two families matter to a caller: a `ConfigurationError` is raised at once, whatever the failure policy; an
`EngineError` is what the failure policy (`on_error=`) decides about.
"""

from __future__ import annotations


class BPOError(Exception):
    """Base of all errors.

    Args:
        message: What is wrong, in one sentence.
        hint: What to do about it, in one sentence.

    Example:
        >>> error = BPOError("The model is gone.", hint="Install it.")
        >>> str(error)
        'The model is gone. Install it.'
    """

    retryable: bool = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.message = message
        self.hint = hint


class ConfigurationError(BPOError, ValueError):
    """An option, a spec or a file that cannot work: raised when the object is built, never swallowed."""


class MissingExtraError(ConfigurationError, ImportError):
    """A package that this feature needs is not installed.

    Args:
        package: The package that failed to import.
        extra: The extra of `bpo-integrations` that brings it.
    """

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(
            f"This needs the package {package!r}, which is not installed.",
            hint=f'Install it with: pip install "bpo-integrations[{extra}]"',
        )
        self.package = package
        self.extra = extra


class ModelNotFoundError(ConfigurationError):
    """The weights that a spec names are nowhere to be found."""


class ModelFormatError(ConfigurationError):
    """Weights, an adapter or a record that this version cannot use."""


class InputError(BPOError, TypeError, ValueError):
    """What was passed is no prompt: raised at once, whatever the failure policy.

    A TypeError by what it is, and a ValueError because LangChain's users catch that.
    """


class EngineError(BPOError):
    """The engine failed while it generated."""

    retryable = True


class EngineTimeoutError(EngineError, TimeoutError):
    """The engine did not answer within `timeout=` seconds."""


class EngineBusyError(EngineError):
    """Too many prompts wait for the engine already."""


class EngineClosedError(EngineError):
    """The engine was closed, or belongs to the process that this one was forked from."""

    retryable = False


class PromptTooLongError(EngineError):
    """The messages do not fit into the model's context."""

    retryable = False


class OptimizationError(BPOError):
    """An optimization failed and `on_error="raise"` was asked for; the cause is chained."""

    retryable = True


def in_a_line(error: Exception) -> str:
    r"""Return an error's kind and message in one line, without the hint.

    Example:
        >>> in_a_line(ValueError("no\nsuch"))
        'ValueError: no such'
    """
    text = error.message if isinstance(error, BPOError) else str(error)
    return " ".join(f"{type(error).__name__}: {text}".split())
