"""The Hugging Face hub: what goes wrong with it as one line that says what to do. No token is ever repeated."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from httpx2 import HTTPError, TransportError
from huggingface_hub import HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from align.core.errors import InputError, quoted

RepositoryType = Literal["model", "dataset"]
TIMEOUT = 20.0  # seconds for an answer
MAX_NAMES = 10


@contextmanager
def hub_errors(what: str, repo_id: str, repo_type: RepositoryType, revision: str | None = None) -> Iterator[None]:
    """Turn what the hub's libraries raise into an `InputError` that begins with `what`; all else goes through.

    Args:
        what: the place of the setting, such as `params.yaml: base_model.source`.
        repo_id: owner/name.
        repo_type: what kind of repository it is.
        revision: of the repository, as the user set it.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        problem = _problem(error, repo_id, repo_type, revision)
        if problem is None:
            raise
        raise InputError(f"{what}: {problem}") from None


def download(what: str, repo_id: str, revision: str, files: str | None) -> Path:
    """Return the folder of a dataset repository at a revision in the hub's cache; what is not there is downloaded.

    What was downloaded is used again, also without a network: of this very revision, never another.
    """
    with hub_errors(what, repo_id, "dataset", revision):
        return Path(
            snapshot_download(
                repo_id, repo_type="dataset", revision=revision, allow_patterns=files, etag_timeout=TIMEOUT
            )
        )


def commit_of(what: str, repo_id: str, revision: str) -> str:
    """Return the commit of a revision of a dataset repository, from the hub."""
    with hub_errors(what, repo_id, "dataset", revision):
        commit = HfApi().dataset_info(repo_id, revision=revision, timeout=TIMEOUT).sha
    assert commit is not None
    return commit


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE is set."""
    return bool(constants.HF_HUB_OFFLINE)


def page_of(repo_id: str, repo_type: RepositoryType) -> str:
    """Return the address of a repository's page."""
    return f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"


def _problem(error: BaseException, repo_id: str, repo_type: RepositoryType, revision: str | None) -> str | None:
    """Return what is wrong and what to do, from the first error of the chain that the hub's libraries raised."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for kind in (OfflineModeIsEnabled, GatedRepoError, RevisionNotFoundError, RepositoryNotFoundError, HfHubHTTPError):
        for one in chain:
            if isinstance(one, kind):
                return _told(one, repo_id, repo_type, revision)
    for one in chain:
        if isinstance(one, ConnectionError | TransportError | EntryNotFoundError | HFValidationError):
            return _told(one, repo_id, repo_type, revision)
    return None


def _told(error: BaseException, repo_id: str, repo_type: RepositoryType, revision: str | None) -> str:
    page = page_of(repo_id, repo_type)
    login = "log in with `hf auth login`, or set HF_TOKEN"
    has_token = get_token() is not None
    kind = "" if repo_type == "model" else " --repo-type dataset"
    at = f" --revision {revision}" if revision else ""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    match error:
        case OfflineModeIsEnabled() | LocalEntryNotFoundError() | ConnectionError() if is_offline():
            return (
                f"{repo_id} is not whole in the cache, and HF_HUB_OFFLINE is set; unset it, or run `hf download "
                f"{repo_id}{kind}{at}` where the hub can be reached, and bring {constants.HF_HUB_CACHE}"
            )
        case GatedRepoError():
            wanted = "use a token of an account that has access" if has_token else login
            return f"{repo_id} is gated: its owner wants terms accepted; do so at {page}, then {wanted}"
        case DisabledRepoError():
            return f"{repo_id} is disabled on the hub; take another"
        case RevisionNotFoundError():
            return f"{repo_id} has no revision {quoted(revision)}; it has {_revisions(repo_id, repo_type)} and commits"
        case _ if has_token and status == 401:
            return f"the hub refuses the token (HF_TOKEN, or that of `hf auth login`) for {repo_id}; make another"
        case RepositoryNotFoundError():
            which = "this token sees" if has_token else "is public"
            way = "check its name" if has_token else f"check its name; if it is private or gated, {login}"
            return f"the hub has no {repo_type} {repo_id} that {which}; {way}"
        case EntryNotFoundError() if not isinstance(error, LocalEntryNotFoundError):
            return f"{repo_id} lacks a file that it should have; look at {page}"
        case _ if status in (401, 403):
            return f"the hub gives no access to {repo_id} ({status}); {login}, of an account that has access"
        case _ if status == 429:
            return f"the hub gets too many requests from here (429); wait, or {login}"
        case HFValidationError():
            return f"{quoted(repo_id)} is no name of a repository; expected owner/name"
        case HfHubHTTPError():
            return f"the hub fails ({status}) on {repo_id}; try again later"
    name = (
        type(error.__cause__ or error).__name__ if isinstance(error, LocalEntryNotFoundError) else type(error).__name__
    )
    return (
        f"cannot reach the hub at {constants.ENDPOINT} ({name}); check the network, HTTPS_PROXY and HF_ENDPOINT, or "
        f"run `hf download {repo_id}{kind}{at}` elsewhere and bring {constants.HF_HUB_CACHE}"
    )


def _revisions(repo_id: str, repo_type: RepositoryType) -> str:
    """Return the names of the branches and tags of a repository, as far as the hub tells."""
    try:
        refs = HfApi().list_repo_refs(repo_id, repo_type=repo_type)
    except (HTTPError, OSError, ValueError):
        return "branches, tags"
    names = [ref.name for ref in [*refs.branches, *refs.tags]]
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(quoted(name) for name in names[:MAX_NAMES]) + more
