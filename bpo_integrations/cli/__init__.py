"""The `bpo` command. Standard output is the result and nothing else; an error is one line on standard error.

The modules below are adapters around `PromptOptimizer`: options in, results out, no logic of their own.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from bpo_integrations import __version__
from bpo_integrations.cli.compare import compare as compare_command
from bpo_integrations.cli.doctor import doctor as doctor_command
from bpo_integrations.cli.exits import Exit, exit_code, one_line, os_error
from bpo_integrations.cli.optimize import optimize as optimize_command
from bpo_integrations.cli.options import Parts
from bpo_integrations.errors import BPOError, OptimizationError

__all__ = ["Parts", "main", "run"]


class Bpo(click.Group):
    """A group whose errors become one line and a documented exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command and end the process; `standalone_mode` is ignored."""
        # What goes wrong is said once, by the commands themselves.
        logging.getLogger("bpo_integrations").addHandler(logging.NullHandler())
        try:
            code = super().main(
                args=args,
                prog_name=prog_name or "bpo",
                complete_var=complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
        except click.UsageError as error:
            _end(Exit.USAGE, f"{_sentence(error.format_message())}{_help_hint(error)}")
        except click.ClickException as error:
            _end(Exit.USAGE, _sentence(error.format_message()))
        except click.Abort:
            _end(Exit.INTERRUPTED, "Interrupted.")
        sys.exit(code or Exit.OK)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; turn the project's errors into exits before click sees them."""
        try:
            return super().invoke(ctx)
        except OptimizationError as error:
            # The hint of the library speaks of `on_error=`; a row of a file brings the command line's own.
            hint = error.hint if "--strict" in error.hint else "Without --strict the prompt is kept."
            _end(Exit.FAILED, f"{error.message} {hint}")
        except BPOError as error:
            _end(exit_code(error), str(error))
        except BrokenPipeError:
            sys.exit(Exit.BROKEN_PIPE)
        except OSError as error:
            _end(Exit.FILE, str(os_error(error, error.filename or "A file cannot be used")))


def _end(code: Exit, message: str) -> NoReturn:
    click.echo(f"bpo: {one_line(message)}", err=True)
    sys.exit(code)


def _sentence(text: str) -> str:
    if text.startswith("Got unexpected extra argument"):
        return f"{text}: put the prompt in quotes."
    return text if text.endswith((".", "?", ")")) else f"{text}."


def _help_hint(error: click.UsageError) -> str:
    return f" Try '{error.ctx.command_path} --help'." if error.ctx is not None else ""


_EPILOG = """\b
Start with:
  bpo doctor
  bpo optimize "Tell me about Harry Potter" --diff

Exit codes: 0 done, 1 a model failed, 2 wrong usage, 3 wrong or missing configuration, 4 a file cannot be read or
written, 130 interrupted.
"""


@click.group(
    cls=Bpo, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="bpo", message="%(prog)s %(version)s")
def main() -> None:
    """Improve prompts before an LLM sees them.

    A learned model adds what is missing to a prompt, or rewrites it, and leaves a good one alone.
    """


def run() -> NoReturn:
    """Run the command as the process that it is: the entry point `bpo`.

    After an interrupt the process ends at once: a worker thread that is loading or generating in native code must not
    be waited for, and does not bear the interpreter's orderly end.
    """
    try:
        main()
    except SystemExit as end:
        if end.code == Exit.INTERRUPTED:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(Exit.INTERRUPTED)
        raise
    sys.exit(Exit.OK)


for _command in (optimize_command, compare_command, doctor_command):
    main.add_command(_command)
