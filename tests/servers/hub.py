"""A stand-in for the Hugging Face hub: a server on this machine that holds a few dataset repositories."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TAG = "v1.0"


class Hub(ThreadingHTTPServer):
    """The server: repositories {owner/name: {path: bytes}}, and the errors of others {id: (status, code)}."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.refused: dict[str, tuple[int, str]] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self.do_GET()

    def do_POST(self) -> None:
        """Answer what is asked of paths."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer as the hub does, as far as a download needs it."""
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.server.requests.append("/".join(parts))
        api = parts[0] == "api"
        kind, owner, name, *rest = parts[1:] if api else parts
        repo_id = f"{owner}/{name}"
        if repo_id in self.server.refused:
            status, code = self.server.refused[repo_id]
            return self._send(status, b"{}", {"X-Error-Code": code})
        files = self.server.repositories.get(repo_id)
        if files is None or kind != "datasets":
            return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        action, revision, *path = [*rest, "main", ""][: max(2, len(rest))]
        if action == "refs":
            refs = {"branches": [_ref("main", "heads")], "tags": [_ref(TAG, "tags")], "converts": []}
            return self._json(refs)
        if revision not in ("main", TAG, COMMIT):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if not api:
            file = "/".join(path)
            if file not in files:
                return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            headers = {"ETag": f'"{sha1(files[file]).hexdigest()}"', "X-Repo-Commit": COMMIT}
            return self._send(200, files[file], headers)
        listed = [_file(path, data) for path, data in files.items()]
        if action == "tree":
            return self._json([row for row in listed if str(row["path"]).startswith("/".join(path))])
        if action == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else [unquote(body.decode()).split("=")[-1]]
            return self._json([row for row in listed if row["path"] in wanted])
        return self._json({"id": repo_id, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        if (asked := self.headers.get("Range")) and status == 200:
            first, last = asked.removeprefix("bytes=").split("-")
            body = body[int(first) : int(last) + 1 if last else None]
            status = 206
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _ref(name: str, kind: str) -> dict[str, str]:
    return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": COMMIT}


def _file(path: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(data), "oid": sha1(data).hexdigest()}


@contextmanager
def serving() -> Iterator[Hub]:
    """Yield a server that answers."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
