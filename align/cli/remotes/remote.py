"""The objects of a DVC remote, through the file systems that DVC itself pushes with."""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from align.cli.remotes.objects import DIR
from align.core.errors import InputError

CHUNK = 1 << 20
# What the clients of the remotes raise besides OSError; none of them is a dependency of this project.
CLIENT_ERRORS = (
    ("asyncssh", "Error"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("httpx", "HTTPError"),
    ("webdav4.client", "ClientError"),
)


class Remote:
    """A remote; each method raises `InputError` if it does not exist or cannot be reached."""

    def __init__(self, repo: Any, name: str | None) -> None:
        """Open a remote; None is the default one."""
        self.repo = repo
        self.name = str(name or repo.config["core"].get("remote") or "")
        try:
            self._odb = repo.cloud.get_remote_odb(self.name or None, "push")
        except import_module("dvc.exceptions").DvcException as error:
            raise InputError(f"{error}; `dvc remote list` shows the remotes") from None
        self._fs = self._odb.fs
        self.url = str(self._fs.unstrip_protocol(self._odb.path))

    def url_of(self, oid: str) -> str:
        """Return where an object is, or should be."""
        return str(self._fs.unstrip_protocol(self._odb.oid_to_path(oid)))

    def size(self, oid: str) -> int | None:
        """Return an object's size in bytes, or None if it is missing."""
        with self._reached():
            try:
                return int(self._fs.info(self._odb.oid_to_path(oid))["size"] or 0)
            except FileNotFoundError:
                return None

    def read(self, oid: str) -> bytes:
        """Return an object's content, empty if it is missing."""
        with self._reached():
            try:
                with self._fs.open(self._odb.oid_to_path(oid), "rb") as stream:  # WebDAV has no cat_file
                    return bytes(stream.read())
            except FileNotFoundError:
                return b""

    def md5(self, oid: str) -> str:
        """Download an object and return the md5 of its content."""
        digest = hashlib.md5()
        with self._reached(), self._fs.open(self._odb.oid_to_path(oid), "rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def replace(self, oids: list[str]) -> None:
        """Delete objects, and push them from the cache through DVC."""
        hash_info = import_module("dvc_data.hashfile.hash_info").HashInfo
        index = import_module("dvc_data.hashfile.db").get_index(self._odb)
        index.clear()  # DVC's notes of what it has pushed, which it trusts without asking the remote
        index.close()
        with self._reached():
            for oid in oids:
                if self._odb.exists(oid):
                    self._odb.delete(oid)
            # Lists of folders last: DVC takes one as proof of all its files.
            for part in ([oid for oid in oids if not oid.endswith(DIR)], [oid for oid in oids if oid.endswith(DIR)]):
                failed = self.repo.cloud.push([hash_info("md5", oid) for oid in part], remote=self.name).failed
                if failed:
                    raise InputError(f"remote {self.name}: {len(failed)} objects could not be pushed; run it again")
        self._fs.fs.invalidate_cache()

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # only now, since another thread may still be importing the client
            clients = [getattr(sys.modules[module], name) for module, name in CLIENT_ERRORS if module in sys.modules]
            if not isinstance(error, (OSError, *clients)):
                raise
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"remote {self.name}, {self.url}: {reason}; see docs/SHARING.md") from None
