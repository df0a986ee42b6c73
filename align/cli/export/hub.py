"""Upload of an exported model to the Hugging Face hub. Errors are one line, and never contain the token."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils.tqdm import disable_progress_bars

from align.core.errors import InputError
from align.models.loading import shortened

ADVICE = {
    401: "the hub does not know the token; run `hf auth login` again, or set another HF_TOKEN",
    403: "the token may not write there; use one with write access, or another owner",
}


def push(folder: Path, files: Sequence[Path], repo_id: str, private: bool) -> str:
    """Upload files of a folder to a repository, which is created if needed; return the address of the commit."""
    if get_token() is None:
        raise InputError("no Hugging Face token; run `hf auth login`, or set HF_TOKEN in the environment")
    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi()
    with _hub_errors(repo_id):
        api.create_repo(repo_id, private=private or None, exist_ok=True)  # None: the owner's default
        if private and not api.model_info(repo_id).private:
            raise InputError(f"{repo_id}: exists and is public; make it private on the hub, or choose another name")
        info = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=f"{folder.name}, from align export",
            allow_patterns=[path.name for path in files],
            delete_patterns=["*.safetensors", "*.safetensors.index.json"],  # old weights would win over new shards
        )
    return str(info.commit_url)


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    where = f"{constants.ENDPOINT}/{repo_id}"
    try:
        yield
    except OfflineModeIsEnabled:
        raise InputError("HF_HUB_OFFLINE is set, and nothing was sent; unset it to reach the hub") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = ADVICE.get(status, "try again later, or see https://status.huggingface.co")
        reason = f" ({' '.join(error.server_message.split())[:300]})" if error.server_message else ""
        raise InputError(f"{where}: refused with status {status}{reason}; {advice}") from None
    except httpx2.HTTPError as error:
        raise InputError(f"{where}: cannot reach the hub ({shortened(error)}); check the network") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{where}: the upload failed ({shortened(error)}); run it again to resume") from None
