"""One command for several processes: `bpo-train sft ... --accelerate_config zero2 --num_processes 8`.

The launcher is accelerate's, or on a CPU torch's, since accelerate starts one process there; whatever of its options is
on the command line is passed on. It starts this package's training module once for each process.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bpo_integrations.errors import ConfigurationError

CONFIGS = Path(__file__).resolve().parents[1] / "recipes" / "accelerate"
NAMED, FILE, PROCESSES, MACHINES = "--accelerate_config", "--config_file", "--num_processes", "--num_machines"
SINGLE = "single"
"""The configuration of one process, however many GPUs there are."""

GRACE = 10
"""Seconds that an interrupted launcher has, before it is asked to end."""


def wants_launch(unknown: Sequence[str]) -> bool:
    """Whether the options that are not the trainer's ask for a launcher.

    Example:
        >>> wants_launch(["--num_processes", "2"])
        True
    """
    return any(option in unknown for option in (NAMED, FILE, PROCESSES))


def launch_command(module: str, options: Sequence[str], unknown: Sequence[str], *, gpus: int = 1) -> list[str]:
    """Return the command that starts the processes.

    Args:
        module: The training module.
        options: The whole command line.
        unknown: Those of it that are not the trainer's, in order.
        gpus: GPUs of this machine. Where there are, a mere number of processes means `ddp`, and a configuration of ours
            without a number takes them all; where there are none, torch's launcher with gloo starts the processes.

    Raises:
        ConfigurationError: There is no such configuration.

    Example:
        >>> launch_command("m", ["--seed", "2", "--num_processes", "2"], ["--num_processes", "2"], gpus=0)[1:]
        ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', '-m', 'm', '--seed', '2']
    """
    launcher, training = list(unknown), ["-m", module, *without(options, unknown)]
    if not gpus and NAMED not in launcher and FILE not in launcher:
        launcher[launcher.index(PROCESSES)] = "--nproc_per_node"
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", *launcher, *training]
    name = "ddp"
    if NAMED in launcher:
        at = launcher.index(NAMED)
        name = "".join(launcher[at + 1 : at + 2])
        del launcher[at : at + 2]
    if FILE not in launcher:
        file = _config(name)
        launcher = [FILE, str(file), *launcher]
        ours = file.parent == CONFIGS and name != SINGLE
        if gpus and ours and PROCESSES not in launcher and MACHINES not in launcher:
            launcher += [PROCESSES, str(gpus)]
    return [sys.executable, "-m", "accelerate.commands.launch", *launcher, *training]


def launch(command: Sequence[str]) -> int:
    """Run the processes, and return the launcher's exit code. Whatever ends this process ends them first.

    The launcher has its processes in sessions of their own, where no Ctrl-C reaches them: it has to stop them itself,
    and is given the time.

    Raises:
        KeyboardInterrupt: This process was interrupted.
    """
    with subprocess.Popen(command) as launcher:  # noqa: S603 - our own interpreter
        before = signal.signal(signal.SIGTERM, lambda *_: launcher.terminate())
        try:
            return launcher.wait()
        except KeyboardInterrupt:
            try:
                launcher.wait(GRACE)  # a terminal has interrupted it, too
            except subprocess.TimeoutExpired:
                launcher.terminate()
                launcher.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)


def without(options: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Return the options without those that were taken, which stand in the same order.

    Example:
        >>> without(["--seed", "8", "--num_processes", "8"], ["--num_processes", "8"])
        ['--seed', '8']
    """
    left, waiting = [], list(taken)
    for option in options:
        if waiting and option == waiting[0]:
            del waiting[0]
        else:
            left.append(option)
    return left


def _config(name: str) -> Path:
    path = Path(name) if Path(name).is_file() else CONFIGS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
        msg = f"There is no accelerate configuration {name!r}."
        raise ConfigurationError(msg, hint=f"Give a file, or one of {known}.")
    return path
