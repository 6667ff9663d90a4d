"""`bpo doctor`: what can run here, where the weights lie, and what to install. Loads no weights and asks no network."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bpo_integrations import __version__, models
from bpo_integrations.cli import show
from bpo_integrations.cli.exits import Exit, one_line
from bpo_integrations.engines.ctranslate2 import PACKAGES
from bpo_integrations.errors import ConfigurationError
from bpo_integrations.models.base import INSTALL_LINE, find_base
from bpo_integrations.models.embedded import load_embedded
from bpo_integrations.models.store import cache_root


@dataclass(frozen=True, slots=True)
class Need:
    """What an engine imports.

    Args:
        specs: The rewriters that it serves, as `--model` names them.
        what: What it is, in a few words.
        modules: What it imports.
        extra: The extra of `bpo-integrations` that brings these.
        trial: Import them to see whether they work; without it they are only looked for (torch takes seconds).
    """

    specs: str
    what: str
    modules: tuple[str, ...]
    extra: str
    trial: bool = True


ENGINES = (
    Need(
        "embedded", "the model in this package", (*PACKAGES, "gguf", "safetensors", "filelock", "platformdirs"), "local"
    ),
    Need("ct2:DIR", "a converted model", PACKAGES, "local"),
    Need("gguf:DIR", "a model as a GGUF file", (*PACKAGES, "gguf", "filelock", "platformdirs"), "local"),
    Need("hf:ID", "transformers", ("torch", "transformers", "peft", "accelerate"), "hf", trial=False),
    Need("vllm:ID", "vLLM", ("vllm",), "vllm", trial=False),
    Need("server:MODEL", "a rewriter behind a server", ("openai",), "server", trial=False),
    Need("PROVIDER:MODEL", "any LLM that LangChain knows", ("langchain",), "agents", trial=False),
)

VERSIONS = (
    "ctranslate2", "gguf", "safetensors", "tokenizers", "torch", "transformers", "peft", "langchain-core", "langchain",
)  # fmt: skip


_MODELS = Path(models.__file__).parent

_WIDE = 1000
"""Columns: a path is never broken, so that it can be copied."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """Whether an engine can run, what is in its way, and the line that brings its packages."""

    spec: str
    what: str
    can_run: bool
    missing: tuple[str, ...]
    install: str


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder of weights; `bytes` is 0 where there is none yet."""

    what: str
    path: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the doctor found.

    Args:
        version: Of `bpo-integrations`.
        python: Of Python.
        platform: The system.
        engines: Which engines can run.
        places: Where weights lie.
        packages: Versions; None where one is not installed.
        install: Lines that bring what the embedded model lacks.
    """

    version: str
    python: str
    platform: str
    engines: tuple[EngineState, ...]
    places: tuple[Place, ...]
    packages: dict[str, str | None]
    install: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether the embedded model can run."""
        return self.engines[0].can_run

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"healthy": self.healthy, **asdict(self)}


def diagnose() -> Diagnosis:
    """Look at this machine.

    Example:
        >>> diagnose().engines[0].spec
        'embedded'
    """
    places = [Place(f"adapter {mode}", str(_MODELS / mode), _size(_MODELS / mode)) for mode in ("augment", "rewrite")]
    cache = cache_root()
    places.append(Place("converted models", str(cache), _size(cache)))
    faults = [[fault for module in engine.modules if (fault := _fault(module, engine.trial))] for engine in ENGINES]
    lines = [f'pip install "bpo-integrations[{engine.extra}]"' for engine in ENGINES]
    cures = [line if found else "" for line, found in zip(lines, faults, strict=True)]
    install = cures[:1] if faults[0] else []
    try:
        base = find_base()
        places.insert(0, Place("base weights", str(base), _size(base)))
        if not install:
            load_embedded()  # checks what it needs, and loads nothing
    except ConfigurationError as error:
        faults[0].append(str(error))
        if INSTALL_LINE in error.hint:
            install.append(INSTALL_LINE)
    states = [
        EngineState(engine.specs, engine.what, not found, tuple(found), cure)
        for engine, found, cure in zip(ENGINES, faults, cures, strict=True)
    ]
    return Diagnosis(
        version=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        engines=tuple(states),
        places=tuple(places),
        packages={name: _version(name) for name in VERSIONS},
        install=tuple(install),
    )


def _fault(module: str, trial: bool) -> str:
    """Return why a module cannot be used, or an empty string."""
    if importlib.util.find_spec(module) is None:
        return module
    if trial and module not in sys.modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken installation may raise anything; which, is the diagnosis
            return f"{module} is broken ({one_line(str(error))})"
    return ""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files: Iterable[Path] = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _report(found: Diagnosis) -> Group:
    """Return the diagnosis for people."""
    head = Text(f"bpo {found.version}, Python {found.python}, {found.platform}\n")
    engines = _table(("engine", "", "can run", "missing"))
    for state in found.engines:
        mark = Text("yes", style="green") if state.can_run else Text("no", style="red")
        cure = f"  ({state.install})" if state.install else ""
        engines.add_row(Text(state.spec), Text(state.what), mark, Text(", ".join(state.missing) + cure))
    places = _table(("weights", "size", "path"))
    for place in found.places:
        size = f"{place.bytes / 1e6:,.1f} MB" if place.bytes else "nothing"
        places.add_row(Text(place.what), Text(size, justify="right"), Text(place.path))
    versions = _table(("package", "version"))
    for name, version in found.packages.items():
        versions.add_row(Text(name), Text(version or "not installed", style="" if version else "dim"))
    parts: list[Any] = [head, engines, Text(), places, Text(), versions, Text()]
    if found.install:
        parts += [Text("Install what the embedded model lacks:", style="bold")]
        parts += [Padding(Text(line), (0, 0, 0, 2)) for line in found.install]
    else:
        verdict = "The embedded model can run." if found.healthy else "The embedded model cannot run; see above."
        parts.append(Text(verdict, style="bold"))
    return Group(*parts)


def _table(names: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    return table


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Say what can run here and what to install.

    Shows which engines work, where weights lie and how large they are, and versions. Ends with 0 where the embedded
    model can run, else with 3.
    """
    found = diagnose()
    show.emit(show.dump(found.to_dict(), indent=2) if as_json else show.rendered(_report(found), width=_WIDE))
    ctx.exit(Exit.OK if found.healthy else Exit.CONFIGURATION)
