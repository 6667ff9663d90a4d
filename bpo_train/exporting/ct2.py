"""A CTranslate2 folder: what `ct2:DIR` runs on a CPU without torch.

A plain Llama goes through this project's own conversion (`bpo_integrations.models.convert`), any other model through
CTranslate2's converter for transformers. A model that CTranslate2 does not know is refused; so is, by `check_prompts`,
one that the engine would ask with other tokens than those of the training.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from bpo_integrations.engines.generation import check_packages
from bpo_integrations.errors import ModelFormatError
from bpo_integrations.models.convert import TEMPLATE_FILE, TOKENIZER_FILE, Quantization, convert
from bpo_integrations.templates import PromptFormat
from bpo_train.exporting.llama import LlamaModel, raw_tokenizer, why_not_plain
from bpo_train.exporting.merged import write_merged

_SAMPLE = "Tell me about Harry Potter, in 3 lines:\n\n- it's for my niece"
_INSTEAD = "Export it as merged weights, and load them with hf:DIR."


def write_ct2(model: Any, tokenizer: Any, folder: Path, *, quantization: Quantization = "int8") -> None:
    """Write the model into an existing folder.

    Args:
        model: transformers' model, in float32 on the CPU.
        tokenizer: transformers' tokenizer.
        folder: Receives `model.bin`, `config.json`, `vocabulary.json`, `tokenizer.json` and `chat_template.jinja`.
        quantization: `int8`, one scale a row, or `float32`, four times as large and exact.

    Raises:
        MissingExtraError: ctranslate2 is not installed.
        ModelFormatError: CTranslate2 does not know this architecture.
    """
    check_packages(["ctranslate2", "yaml"], extra="local")
    if why_not_plain(model) is None:
        convert(LlamaModel(model, tokenizer), folder, quantization=quantization)
    else:
        _convert_other(model, tokenizer, folder, quantization)


def check_prompts(tokenizer: Any, form: PromptFormat) -> None:
    """Make sure that the engine puts a prompt to the model with the tokens that it was trained with.

    Raises:
        ModelFormatError: It would not.
    """
    from tokenizers import Tokenizer

    from bpo_integrations.engines.causal_lm import ChatTokenizer
    from bpo_integrations.engines.chatml import ChatML

    own = Tokenizer.from_str(raw_tokenizer(tokenizer).to_str())
    template = tokenizer.chat_template
    if not isinstance(template, str):
        msg = "The model has no chat template, and the CTranslate2 engine knows ChatML only."
        raise ModelFormatError(msg, hint=_INSTEAD)
    messages = form.messages(_SAMPLE)
    try:
        prompt = ChatML(own, template).render(messages)
    except ModelFormatError as error:
        raise ModelFormatError(error.message, hint=_INSTEAD) from error
    found = [own.token_to_id(token) for token in (*prompt.fixed, *prompt.rest)]
    if found != ChatTokenizer(tokenizer).render(messages):
        msg = "The model's chat template adds to ChatML what the CTranslate2 engine does not."
        raise ModelFormatError(msg, hint=_INSTEAD)


def _convert_other(model: Any, tokenizer: Any, folder: Path, quantization: Quantization) -> None:
    from ctranslate2.converters import TransformersConverter

    with tempfile.TemporaryDirectory(dir=folder, prefix=".merged-") as written:
        source, target = Path(written, "hf"), Path(written, "ct2")
        source.mkdir()
        write_merged(model, tokenizer, source)
        try:
            TransformersConverter(str(source)).convert(str(target), quantization=quantization)
        except (ValueError, NotImplementedError, AttributeError, KeyError) as error:
            kind = type(model.config).__name__.removesuffix("Config")
            msg = f"CTranslate2 does not convert this model ({kind}): {str(error).partition(' (supported')[0]}."
            raise ModelFormatError(msg, hint=_INSTEAD) from error
        for path in target.iterdir():
            path.rename(folder / path.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = model.config.max_position_embeddings  # which the engine here reads
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / TOKENIZER_FILE).write_text(raw_tokenizer(tokenizer).to_str(pretty=False), encoding="utf-8")
    (folder / TEMPLATE_FILE).write_text(str(tokenizer.chat_template), encoding="utf-8")
