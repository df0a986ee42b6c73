"""An exported model to the Hugging Face hub; what goes wrong on the way is one line, and no line holds the token."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils._validators import validate_repo_id
from huggingface_hub.utils.tqdm import disable_progress_bars

from align.cli.export.merge import WRITTEN
from align.core.errors import InputError, quoted
from align.models.loading import shortened

BRANCH = re.compile(r"[A-Za-z0-9][\w./-]{0,99}")
# Of an earlier version of the model: transformers would read model.safetensors rather than new shards beside it.
STALE = ["*.safetensors", "*.safetensors.index.json"]


def check_destination(repo_id: str, revision: str | None) -> None:
    """Raise `InputError` unless these can be a repository and a branch of it."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        said = shortened(error)
        raise InputError(f"{quoted(repo_id)}: not the id of a repository ({said}); give OWNER/NAME") from None
    if repo_id.count("/") != 1:
        raise InputError(f"{quoted(repo_id)}: not the id of a repository; give OWNER/NAME")
    if revision is not None and not BRANCH.fullmatch(revision):
        raise InputError(f"--revision: expected the name of a branch such as v2, got {quoted(revision)}")


def files_to_push(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the files that belong to an export, and the names of what lies beside them, which stays here."""
    entries = sorted(folder.iterdir())
    pushed = [path for path in entries if path.is_file() and any(path.match(pattern) for pattern in WRITTEN)]
    return pushed, [path.name for path in entries if path not in pushed]


def push(folder: Path, repo_id: str, *, private: bool, revision: str | None, message: str) -> str:
    """Upload a folder in one commit or more, and return the address of the last; the repository and branch are made.

    Raises:
        InputError: no token, no network, no right to write there, or the repository is public and should not be.
    """
    if get_token() is None:
        raise InputError("no Hugging Face token; run `hf auth login`, or set HF_TOKEN in the environment")
    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi()
    with _talking(repo_id):
        # None leaves it to the owner's default.
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise InputError(f"{repo_id}: is there already, and public; make it private on the hub, or name another")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        pushed, _ = files_to_push(folder)
        info = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=message,
            allow_patterns=[path.name for path in pushed],
            delete_patterns=STALE,
        )
    return str(info.commit_url)


@contextmanager
def _talking(repo_id: str) -> Iterator[None]:
    """Turn what the hub and its library say into an `InputError`."""
    where = f"{constants.ENDPOINT}/{repo_id}"
    try:
        yield
    except OfflineModeIsEnabled:
        raise InputError("HF_HUB_OFFLINE is set, and nothing was sent; unset it to reach the hub") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = {
            401: "the hub does not know the token; run `hf auth login` again, or set another HF_TOKEN",
            403: "the token may not write there; take one with write access, or an owner that it may write for",
            404: "no such repository or branch, or the token may not see it; check its name",
        }.get(status, "try again later, or see https://status.huggingface.co")
        said = f" ({' '.join(error.server_message.split())[:300]})" if error.server_message else ""
        raise InputError(f"{where}: refused with status {status}{said}; {advice}") from None
    except httpx2.HTTPError as error:
        raise InputError(f"{where}: cannot reach the hub ({shortened(error)}); check the network") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{where}: the upload failed ({shortened(error)}); run it again, it goes on") from None
