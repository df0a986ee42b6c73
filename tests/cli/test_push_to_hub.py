"""`align push-to-hub` against a server that answers as the hub does, on the way without Xet (plain HTTP and LFS)."""

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner, Result
from huggingface_hub import constants

from align.cli.main import main
from tests.cli.test_export import exported, template, workspace

__all__ = ["exported", "template", "workspace"]  # fixtures

TOKEN = "hf_" + "s" * 30
REPOSITORY = "owner/name"


class Hub(BaseHTTPRequestHandler):
    """One repository with one branch."""

    files: ClassVar[dict[str, bytes]]
    uploads: ClassVar[dict[str, bytes]]
    refuse: ClassVar[dict[str, int]]  # a part of a path -> the status that it gets
    private: ClassVar[bool | None]  # None: there is no repository yet
    requests: ClassVar[list[str]]

    def handle_any(self) -> None:
        path, _, _ = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        Hub.requests.append(f"{self.command} {path}")
        if not path.startswith("/upload/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply(401, {"error": "Invalid username or password."})
            return
        for part, status in Hub.refuse.items():
            if part in path:
                self.reply(status, {"error": "no, \x1b[2J said the hub"})
                return
        self.reply(*self.answer(path, body))

    do_GET = do_POST = do_PUT = handle_any  # the names that http.server looks for

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        here = f"http://{self.headers['Host']}"
        if path == "/api/repos/create":
            asked = json.loads(body)
            if Hub.private is not None:
                return 409, {"url": f"{here}/{REPOSITORY}", "error": "You already created this model repo"}
            Hub.private = asked.get("visibility") == "private" or bool(asked.get("private"))
            return 200, {"url": f"{here}/{REPOSITORY}", "id": REPOSITORY}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == f"/{REPOSITORY}.git/info/lfs/objects/batch":
            found = [
                {**item, "actions": {"upload": {"href": f"{here}/upload/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": found}
        if path.startswith("/upload/"):
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/upload/")
            Hub.uploads[path.removeprefix("/upload/")] = body
            return 200, {}
        if Hub.private is None:
            return 404, {"error": "Repository not found"}
        what = path.removeprefix(f"/api/models/{REPOSITORY}").strip("/").split("/")
        if what[0] == "tree":
            assert what[1] == "main"
            return 200, [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in Hub.files.items()
            ]
        if what[0] == "preupload":
            modes = [
                {"path": file["path"], "shouldIgnore": False}
                | {"uploadMode": "lfs" if file["path"].endswith((".safetensors", "tokenizer.json")) else "regular"}
                for file in json.loads(body)["files"]
            ]
            return 200, {"files": modes}
        if what[0] == "commit":
            for line in map(json.loads, body.splitlines()):
                name = line["value"].get("path")
                if line["key"] == "file":
                    Hub.files[name] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    Hub.files[name] = Hub.uploads[line["value"]["oid"]]
                elif line["key"] == "deletedFile":
                    del Hub.files[name]
            return 200, {"commitUrl": f"{here}/{REPOSITORY}/commit/{'0' * 40}", "commitOid": "0" * 40}
        siblings = [{"rfilename": name} for name in Hub.files]
        return 200, {"id": REPOSITORY, "private": Hub.private, "sha": "0" * 40, "siblings": siblings}

    def reply(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@pytest.fixture(autouse=True)
def hub(workspace: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server for the duration of a test, a token for it, and an export in out/m1."""
    Hub.files, Hub.uploads, Hub.refuse, Hub.private, Hub.requests = {}, {}, {}, None, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(workspace / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    shutil.copytree(exported, "out/m1")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def push(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["push-to-hub", *arguments])
    assert TOKEN not in result.output
    return result


def error_of(*arguments: str) -> str:
    result = push(*arguments)
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].isprintable()
    return lines[0]


def files_of(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_the_repository_holds_the_export_byte_for_byte() -> None:
    result = push("out/m1", REPOSITORY)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].endswith(f"/{REPOSITORY}/commit/{'0' * 40}")
    assert Hub.files == files_of("out/m1")
    assert Hub.private is False


def test_a_model_is_exported_on_the_way() -> None:
    result = push("m1", REPOSITORY)
    assert result.exit_code == 0, result.output
    assert Hub.files == files_of("out/m1")


def test_what_an_earlier_version_left_is_deleted_and_a_readers_own_files_stay() -> None:
    Hub.files = {"model-00001-of-00002.safetensors": b"old", "notes.txt": b"mine", "README.md": b"old"}
    Hub.private = False
    assert push("out/m1", REPOSITORY).exit_code == 0
    assert Hub.files == files_of("out/m1") | {"notes.txt": b"mine"}


def test_a_private_repository_is_created() -> None:
    assert push("out/m1", REPOSITORY, "--private").exit_code == 0
    assert Hub.private is True
    assert Hub.files == files_of("out/m1")


def test_a_public_repository_is_not_taken_for_a_private_one() -> None:
    Hub.private = False
    assert "exists and is public" in error_of("out/m1", REPOSITORY, "--private")
    assert Hub.files == {}


def test_files_that_no_export_writes_stay_here() -> None:
    Path("out/m1/.env").write_text("SECRET=1")
    Path("out/m1/notes.txt").write_text("mine")
    assert push("out/m1", REPOSITORY).exit_code == 0
    assert not {".env", "notes.txt"} & set(Hub.files)


def test_a_dry_run_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    result = push("out/m1", REPOSITORY, "--dry-run")
    assert result.exit_code == 0
    assert "nothing was sent" in result.stdout
    assert "model.safetensors" in result.stdout
    assert Hub.requests == []


def test_no_token_and_a_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    line = error_of("out/m1", REPOSITORY)
    assert "status 401" in line
    assert "hf_wrong" not in line
    monkeypatch.delenv("HF_TOKEN")
    assert "no Hugging Face token; run `hf auth login`" in error_of("out/m1", REPOSITORY)


@pytest.mark.parametrize(
    ("part", "status", "said"),
    [("repos/create", 403, "write access"), ("preupload", 403, "write access"), ("commit", 500, "try again later")],
)
def test_a_refusal_says_what_the_hub_said_and_what_to_do(
    part: str, status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # it tries again after a 500
    Hub.refuse = {part: status}
    line = error_of("out/m1", REPOSITORY)
    assert f"refused with status {status}" in line
    assert said in line


def test_offline_and_an_address_where_nothing_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in error_of("out/m1", REPOSITORY)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot reach the hub" in error_of("out/m1", REPOSITORY)


@pytest.mark.parametrize("repo_id", ["name", "a/b/c", "own er/name", "owner/", "../name", "\x1b[2J/x"])
def test_an_id_that_is_none_is_refused_before_anything_is_done(repo_id: str) -> None:
    assert "give OWNER/NAME" in error_of("m1", repo_id)
    assert Hub.requests == []
