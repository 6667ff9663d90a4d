"""What a user of `bpo-train sft` chooses besides TRL's own options. Plain data; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.templates import AUGMENT_FORMAT, PAPER_FORMAT, REWRITE_FORMAT, PromptFormat

FORMATS: dict[str, PromptFormat] = {"augment": AUGMENT_FORMAT, "rewrite": REWRITE_FORMAT, "paper": PAPER_FORMAT}
"""The prompt formats by name; each mode's own has the mode's name."""

COMPLETION_FIELD = {"augment": "addition", "rewrite": "optimized_prompt"}
"""The field that holds what the model shall answer."""


@dataclass
class SFTArguments:
    """What to train on, and how to watch it; everything else is TRL's `SFTConfig` and `ModelConfig`."""

    data: str = field(
        metadata={"help": "JSONL with `id`, `prompt`, `addition` or `optimized_prompt` (by mode); or a folder of it."}
    )
    mode: str = field(default="augment", metadata={"help": "`augment` or `rewrite`."})
    prompt_format: str | None = field(
        default=None,
        metadata={
            "help": "How a prompt is put to the model: `augment`, `rewrite` or `paper`; default: the mode's own."
        },
    )
    eval_data: str | None = field(
        default=None, metadata={"help": "JSONL of validation rows; in a folder of data it is validation.jsonl."}
    )
    held_out: str | None = field(
        default=None, metadata={"help": "File of ids, one a line, never trained on; the loss is measured there."}
    )
    licences: list[str] = field(
        default_factory=list, metadata={"help": "Train only on rows of these licences; none given means all."}
    )
    weights: list[str] = field(
        default_factory=list,
        metadata={"help": "SOURCE=N: the rows of this source count N times (2, or 0.5 for every other row)."},
    )
    limit: int | None = field(default=None, metadata={"help": "Use the first N training rows only (smoke runs)."})
    eval_limit: int | None = field(default=None, metadata={"help": "Use the first N held-out rows only (smoke runs)."})
    allow_dropping: bool = field(
        default=False, metadata={"help": "Leave out rows that are longer than `max_length`, instead of refusing them."}
    )
    total_batch_size: int | None = field(
        default=None,
        metadata={"help": "Rows a step over all processes; the accumulation of gradients is worked out from it."},
    )
    eval_generations: int = field(
        default=16,
        metadata={"help": "Held-out prompts that are optimized for real at each evaluation; 0 turns it off."},
    )
    write_rows: str | None = field(
        default=None,
        metadata={"help": "Write the rows into this folder in the form that `trl sft` takes, and train nothing."},
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigurationError: The mode or the format is unknown, or a number is negative.
        """
        if self.mode not in COMPLETION_FIELD:
            msg = f"Unknown mode {self.mode!r}."
            raise ConfigurationError(msg, hint="Use mode=augment or mode=rewrite.")
        if self.prompt_format is not None and self.prompt_format not in FORMATS:
            msg = f"Unknown prompt_format {self.prompt_format!r}."
            raise ConfigurationError(msg, hint=f"Use one of {', '.join(FORMATS)}.")
        if self.eval_generations < 0:
            msg = f"eval_generations is {self.eval_generations}."
            raise ConfigurationError(msg, hint="Give the number of prompts; 0 turns it off.")

    @property
    def format_name(self) -> str:
        """The name of the prompt format."""
        return self.prompt_format or self.mode

    @property
    def format(self) -> PromptFormat:
        """How a prompt is put to the model."""
        return FORMATS[self.format_name]
