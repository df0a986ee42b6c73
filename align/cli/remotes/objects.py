"""The objects of a DVC remote, through the file systems that DVC itself pushes with."""

import hashlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from align.cli.remotes.needs import DIR
from align.core.errors import InputError

OBJECT = re.compile(r"[0-9a-f]{2}/[0-9a-f]{30}(\.dir)?")
CHUNK = 1 << 20
# What the clients of the remotes raise besides OSError; none of them is a dependency of this project.
CLIENT_ERRORS = (
    ("asyncssh", "Error"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("httpx", "HTTPError"),
    ("webdav4.client", "ClientError"),
)


class RemoteObjects:
    """`files/md5` of a remote: objects whose name is the md5 of their content."""

    def __init__(self, repo: Any, name: str | None) -> None:
        """Open a remote; None stands for the default one.

        Raises:
            InputError: there is no such remote, its plugin is not installed, or it keeps versions itself.
        """
        self.repo = repo
        self.name = str(name or repo.config["core"].get("remote") or "")
        try:
            self._odb = repo.cloud.get_remote_odb(self.name or None, "push")
        except import_module("dvc.exceptions").DvcException as error:
            raise InputError(f"{error}; `dvc remote list` shows the remotes") from None
        self._fs = self._odb.fs

    @property
    def url(self) -> str:
        """Where the objects are."""
        return str(self._fs.unstrip_protocol(self._odb.path))

    def url_of(self, oid: str) -> str:
        """Return where an object is, or should be."""
        return str(self._fs.unstrip_protocol(self._odb.oid_to_path(oid)))

    def size(self, oid: str) -> int | None:
        """Return an object's size in bytes, or None if it is not there."""
        with self._reached():
            try:
                info = self._fs.info(self._odb.oid_to_path(oid))
            except FileNotFoundError:
                return None
        return int(info["size"] or 0)

    def md5(self, oid: str) -> str | None:
        """Download an object and return the md5 of its content, or None if it is not there."""
        digest = hashlib.md5()
        with self._reached():
            try:
                with self._fs.open(self._odb.oid_to_path(oid), "rb") as stream:
                    while chunk := stream.read(CHUNK):
                        digest.update(chunk)
            except FileNotFoundError:
                return None
        return digest.hexdigest()

    def read(self, oid: str) -> bytes | None:
        """Return an object's content, or None if it is not there; for folders' lists of files."""
        with self._reached():
            try:
                with self._fs.open(self._odb.oid_to_path(oid), "rb") as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def listed(self) -> tuple[list[str], list[str]]:
        """Return the names of all objects, and the paths of what is no object, such as halves that a kill left."""
        with self._reached():
            try:
                paths = list(self._fs.find(self._odb.path))
            except FileNotFoundError:
                paths = []
        objects, others = [], []
        for path in paths:
            name = "/".join(self._fs.parts(path)[-2:])
            if OBJECT.fullmatch(name):
                objects.append(name.replace("/", ""))
            else:
                others.append(str(self._fs.unstrip_protocol(path)))
        return sorted(objects), sorted(others)

    def delete(self, oid: str) -> None:
        """Delete an object."""
        with self._reached():
            self._odb.delete(oid)

    def push(self, oids: list[str]) -> None:
        """Push objects of the cache through DVC; lists of files last, since DVC takes one for all its files.

        Raises:
            InputError: the remote cannot be reached, or refuses them.
        """
        hash_info = import_module("dvc_data.hashfile.hash_info").HashInfo
        index = import_module("dvc_data.hashfile.db").get_index(self._odb)
        index.clear()  # DVC's notes of what has been pushed, which it believes rather than the remote
        index.close()
        for part in ([oid for oid in oids if not oid.endswith(DIR)], [oid for oid in oids if oid.endswith(DIR)]):
            with self._reached():
                failed = self.repo.cloud.push([hash_info("md5", oid) for oid in part], remote=self.name).failed
            if failed:
                raise InputError(f"remote {self.name}: {len(failed)} objects could not be pushed; run it again")
        self._fs.fs.invalidate_cache()

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except _client_errors() as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"remote {self.name}, {self.url}: {reason}; see docs/SHARING.md") from None


def _client_errors() -> tuple[type[Exception], ...]:
    clients = [getattr(sys.modules[module], name) for module, name in CLIENT_ERRORS if module in sys.modules]
    return OSError, *clients
