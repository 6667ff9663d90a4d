"""An exported folder on its way to the Hugging Face hub: what would be uploaded, and the upload.

Promises: `listed` and the checks need no network and send nothing; what the hub refuses becomes one error that
says what to do. Only `push` uploads.
"""

from __future__ import annotations

from pathlib import Path

from bpo_integrations.cli.exits import one_line
from bpo_integrations.errors import BPOError, ConfigurationError, MissingExtraError
from bpo_integrations.models.adapter import ADAPTER_CONFIG
from bpo_train.exporting.trained import adapter_config


class HubError(BPOError):
    """The hub refused an upload, or cannot be reached."""

    retryable = True


def listed(folder: Path) -> list[tuple[str, int]]:
    """Return the files that an upload would hold, by name, with their sizes in bytes.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "bpo.json").write_text("{}")
        >>> listed(folder)
        [('bpo.json', 2)]
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]


def check_repository(repository: str, *, token: bool = False) -> None:
    """Refuse what no upload can go to, before any work is done.

    Args:
        repository: `NAME` or `OWNER/NAME`.
        token: Whether there must be a token on this machine; whether the hub takes it is not asked.

    Raises:
        ConfigurationError: The name is not allowed on the hub, or there is no token.
        MissingExtraError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import get_token
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils._validators import validate_repo_id
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", extra="train") from error
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        msg = f"{repository!r} is no name for a repository on the hub."
        raise ConfigurationError(msg, hint="Write it as OWNER/NAME.") from error
    if token and not get_token():
        msg = "There is no token for the Hugging Face hub on this machine."
        raise ConfigurationError(msg, hint="Log in with `hf auth login`, or set HF_TOKEN to a token that may write.")


def check_folder(folder: Path) -> None:
    """Refuse an adapter that nobody else could load, because its base is a folder of this machine.

    Raises:
        ConfigurationError: It is one.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    base = str(adapter_config(folder).get("base_model_name_or_path"))
    if Path(base).exists() or Path(base).is_absolute():
        msg = f"The base of this adapter is the folder {base}, which only this machine has."
        raise ConfigurationError(msg, hint="Export it with --base and the base's hub id, or with --to merged.")


def push(folder: Path, repository: str, *, private: bool = False, message: str = "Upload with bpo-train") -> str:
    """Upload a folder, making the repository where there is none.

    Args:
        folder: What is uploaded.
        repository: Its id, `OWNER/NAME`.
        private: Make a new repository private; one that exists stays as it is.
        message: Of the commit.

    Returns:
        The address of the commit.

    Raises:
        ConfigurationError: The hub refuses the token, or it may not write there.
        HubError: The hub cannot be reached, or fails.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    try:
        repository = api.create_repo(repository, private=private or None, exist_ok=True).repo_id
        done = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except LocalTokenNotFoundError as error:
        msg = "There is no token for the Hugging Face hub on this machine."
        raise ConfigurationError(msg, hint="Log in with `hf auth login`, or set HF_TOKEN.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            msg = f"The hub refuses to let this token write to {repository} (HTTP {status})."
            hint = "Log in with a token that may write there (`hf auth login`). The export itself is done."
            raise ConfigurationError(msg, hint=hint) from error
        msg = f"The hub failed (HTTP {status}): {one_line(error.server_message or str(error))}"
        raise HubError(msg, hint=_AGAIN) from error
    except OfflineModeIsEnabled as error:
        msg = "The hub may not be asked: HF_HUB_OFFLINE is set."
        raise ConfigurationError(msg, hint="Unset it, or show with --dry-run what would be uploaded.") from error
    # No network, a name that does not resolve, a connection that breaks: the client's HTTP library, which changes from
    # version to version, has an error of its own for each.
    except Exception as error:
        msg = f"The hub cannot be reached: {one_line(str(error))}"
        raise HubError(msg, hint=_AGAIN) from error
    return str(done.commit_url)


_AGAIN = "The export itself is done; upload it later with `hf upload`."
