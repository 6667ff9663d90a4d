"""`bpo-train mine`, `dpo` and `grpo`: options in, one summary out. No logic.

Exit codes are those of `bpo_train.cli_data`.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from bpo_integrations.errors import ConfigurationError
from bpo_train.cli_data import PASSED_ON, exits


@click.command()
@click.option("--data", required=True, metavar="FILE", help="Training rows: additions.jsonl or pairs.jsonl.")
@click.option("--output", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the files.")
@click.option("--mode", type=click.Choice(["augment", "rewrite"]), default="augment", show_default=True)
@click.option("--model", default="embedded", show_default=True, help="The rewriter whose mistakes are mined, by spec.")
@click.option("--held-out", metavar="FILE", help="Ids, one a line, of rows that are never trained on.")
@click.option("--licences", metavar="MIT,...", help="Licences that are taken; default: all.")
@click.option("--limit", type=click.IntRange(1), help="Take so many rows, spread over the file.")
@click.option("--samples", type=click.IntRange(1), default=4, show_default=True, help="Drawn for each prompt.")
@click.option("--temperature", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=0.95, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws.")
@click.option(
    "--usual",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.9,
    show_default=True,
    help="Share of the rows' own texts that counts as neither generic nor off the subject; 1: do not measure.",
)
@click.option(
    "--embeddings",
    metavar="MODEL",
    help="Sentence embeddings for likeness: a folder, a hub id or `minilm`; default: TF-IDF.",
)
@click.option("--llm", metavar="SPEC", help="An LLM that answers, so that a text is rejected for what it makes of it.")
@click.option("--reward-model", metavar="DIR", help="Compares its answers.")
@click.option("--judge", metavar="SPEC", help="An LLM that compares its answers instead.")
@click.option("--llm-base-url", metavar="URL", help="An OpenAI-compatible server, which has the LLM.")
@click.option("--judge-base-url", metavar="URL", help="An OpenAI-compatible server, which has the judge.")
@click.option("--margin", type=click.FloatRange(0), default=0.0, show_default=True, help="By which a text must lose.")
@click.option("--per-prompt", type=click.IntRange(1), default=2, show_default=True, help="Most pairs of a prompt.")
def mine(**options: Any) -> None:
    """Make preference pairs: the rows' own texts against what the model gets wrong.

    `bpo-train mine --data additions.jsonl --held-out held_out_ids.txt --output runs/mined`. The same command goes on
    where an earlier run stopped.
    """
    from bpo_train.evaluation.subject import embedding_similarity
    from bpo_train.training.miner import Mining, run

    with exits():
        mining = Mining(
            data=options["data"],
            output=options["output"],
            mode=options["mode"],
            model=options["model"],
            held_out=options["held_out"],
            licences=tuple(part.strip() for part in (options["licences"] or "").split(",") if part.strip()),
            limit=options["limit"],
            samples=options["samples"],
            temperature=options["temperature"],
            top_p=options["top_p"],
            seed=options["seed"],
            usual=options["usual"],
            per_prompt=options["per_prompt"],
            margin=options["margin"],
        )
        near = embedding_similarity(options["embeddings"]) if options["embeddings"] else None
        names = ("llm", "reward_model", "judge", "llm_base_url", "judge_base_url")
        if any(options[name] for name in names) and not options["llm"]:
            msg = "A reward model or a judge compares answers, and there is no LLM that answers."
            raise ConfigurationError(msg, hint="Give --llm too.")
        with ExitStack() as opened:
            score = None
            if options["llm"]:
                from bpo_train.training.answers import answer_gain

                score = opened.enter_context(answer_gain(options["mode"], **{name: options[name] for name in names}))
            statistics = run(mining, near=near, score=score, progress=_shown)
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in statistics["pairs_by_reason"].items())
        click.echo(f"{statistics['pairs']:,} pairs of {statistics['rows']:,} rows ({reasons or 'none'}).")
        click.echo(f"Written to {options['output']}.")


def _shown(done: int, total: int) -> None:
    """Say how far the draws are, on standard error."""
    click.echo(f"Drawn for {done:,} of {total:,} prompts.", err=True)


@click.command(
    context_settings=PASSED_ON,
    add_help_option=False,
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def dpo(options: tuple[str, ...]) -> None:
    """Preference training: `bpo-train dpo --config RECIPE.yaml --pairs FILE --output_dir DIR`.

    Takes every option of TRL's DPOConfig and ModelConfig; they override the recipe's.
    """
    with exits():
        from bpo_train.training.dpo import main

        main(options)


@click.command(
    context_settings=PASSED_ON,
    add_help_option=False,
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def grpo(options: tuple[str, ...]) -> None:
    """Training by reward: `bpo-train grpo --config RECIPE --data FILE --llm SPEC --reward_model DIR --output_dir DIR`.

    Takes every option of TRL's GRPOConfig and ModelConfig; they override the recipe's.
    """
    with exits():
        from bpo_train.training.grpo import main

        main(options)
