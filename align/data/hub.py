"""Errors of the Hugging Face hub as one line that says how to fix them. Messages never repeat a token."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from httpx2 import HTTPError, TransportError
from huggingface_hub import HfApi, constants, errors, get_token, snapshot_download

from align.core.errors import InputError, quoted

RepositoryType = Literal["model", "dataset"]
TIMEOUT = 20.0  # seconds for an answer
MAX_NAMES = 10
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# The errors of the hub's libraries, the most telling first.
KINDS: tuple[tuple[type[BaseException], ...], ...] = (
    (errors.OfflineModeIsEnabled,),
    (errors.GatedRepoError,),
    (errors.RevisionNotFoundError,),
    (errors.RepositoryNotFoundError,),
    (errors.HfHubHTTPError,),
    (ConnectionError, TransportError, errors.EntryNotFoundError, errors.HFValidationError),
)


def is_hub_id(source: str) -> bool:
    """Return whether a source names a repository of the hub (owner/name), not a file or folder here.

    A name whose first part is a folder here (`data/mine`) means that folder, though it may not be there yet.
    """
    here = os.path.isdir(os.path.dirname(source)) or os.path.exists(source)
    return HUB_ID.fullmatch(source) is not None and not here


@contextmanager
def hub_errors(what: str, repo_id: str, repo_type: RepositoryType, revision: str | None = None) -> Iterator[None]:
    """Turn errors of the hub's libraries into an `InputError`, and pass on all others.

    Its message begins with `what`, the place of the setting, such as `params.yaml: base_model.source`.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        chain: list[BaseException] = [error]
        while (link := chain[-1].__cause__ or chain[-1].__context__) is not None and link not in chain:
            chain.append(link)
        telling = next((one for kinds in KINDS for one in chain if isinstance(one, kinds)), None)
        if telling is None:
            raise
        raise InputError(f"{what}: {_message(telling, repo_id, repo_type, revision)}") from None


def download(what: str, repo_id: str, revision: str, files: str | None) -> Path:
    """Return the cached folder of a dataset repository at a revision; download what it lacks.

    Only that revision's cache is used, with or without a network.
    """
    with hub_errors(what, repo_id, "dataset", revision):
        folder = snapshot_download(
            repo_id, repo_type="dataset", revision=revision, allow_patterns=files, etag_timeout=TIMEOUT
        )
    return Path(folder)


def commit_of(what: str, repo_id: str, revision: str) -> str:
    """Ask the hub for the commit of a dataset repository's revision."""
    with hub_errors(what, repo_id, "dataset", revision):
        commit = HfApi().dataset_info(repo_id, revision=revision, timeout=TIMEOUT).sha
    assert commit is not None
    return commit


def page_of(repo_id: str, repo_type: RepositoryType) -> str:
    """Return the address of a repository's page."""
    return f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"


def _message(error: BaseException, repo_id: str, repo_type: RepositoryType, revision: str | None) -> str:
    """Return what is wrong and how to fix it."""
    page = page_of(repo_id, repo_type)
    login = "log in with `hf auth login`, or set HF_TOKEN"
    has_token = get_token() is not None
    kind = "" if repo_type == "model" else " --repo-type dataset"
    at = f" --revision {revision}" if revision else ""
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    match error:
        case errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError() | ConnectionError() if (
            constants.HF_HUB_OFFLINE
        ):
            return (
                f"{repo_id} is not complete in the cache, and HF_HUB_OFFLINE is set; unset it, or run `hf download "
                f"{repo_id}{kind}{at}` where the hub can be reached, and copy {constants.HF_HUB_CACHE} here"
            )
        case errors.GatedRepoError():
            then = "use a token of an account that has access" if has_token else login
            return f"{repo_id} is gated; accept its terms at {page}, then {then}"
        case errors.DisabledRepoError():
            return f"{repo_id} is disabled on the hub; use another"
        case errors.RevisionNotFoundError():
            return f"{repo_id} has no revision {quoted(revision)}; it has {_revisions(repo_id, repo_type)} and commits"
        case _ if has_token and status == 401:
            return f"the hub refuses the token (HF_TOKEN, or that of `hf auth login`) for {repo_id}; create a new one"
        case errors.RepositoryNotFoundError():
            which = "this token sees" if has_token else "is public"
            way = "check its name" if has_token else f"check its name; if it is private or gated, {login}"
            return f"the hub has no {repo_type} {repo_id} that {which}; {way}"
        case errors.EntryNotFoundError() if not isinstance(error, errors.LocalEntryNotFoundError):
            return f"{repo_id} lacks a required file; check {page}"
        case _ if status in (401, 403):
            return f"the hub denies access to {repo_id} ({status}); {login}, of an account that has access"
        case _ if status == 429:
            return f"too many requests to the hub from here (429); wait, or {login}"
        case errors.HFValidationError():
            return f"{quoted(repo_id)} is not a repository id; expected owner/name"
        case errors.HfHubHTTPError():
            return f"the hub failed ({status}) on {repo_id}; try again later"
    cause = (isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__) or error
    return (
        f"cannot reach the hub at {constants.ENDPOINT} ({type(cause).__name__}); check the network, HTTPS_PROXY and "
        f"HF_ENDPOINT, or run `hf download {repo_id}{kind}{at}` elsewhere and copy {constants.HF_HUB_CACHE} here"
    )


def _revisions(repo_id: str, repo_type: RepositoryType) -> str:
    """Return the names of a repository's branches and tags, or those two words if the hub does not answer."""
    try:
        refs = HfApi().list_repo_refs(repo_id, repo_type=repo_type)
    except (HTTPError, OSError, ValueError):
        return "branches, tags"
    names = [ref.name for ref in [*refs.branches, *refs.tags]]
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(quoted(name) for name in names[:MAX_NAMES]) + more
