"""The finished work of a running stage, from which a killed run resumes.

.align/resume/<stage>/<identity>/ under the main workspace's root holds generated rows (`rows-<process>.jsonl`) and
training checkpoints. The identity hashes all that the result depends on (params, inputs, code, versions), so a run with
any change starts from scratch.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import click
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from align.core.errors import InputError
from align.core.files import out_of_space, replacing, sha256, write_json
from align.core.params import Params
from align.run.locks import check_parents, lock, parents
from align.run.provenance import code_hashes, environment
from align.run.release import DONE_FILE, IDENTITY_FILE, drop_recorded, release, resume_root
from align.run.runtime import RuntimeSettings, is_main_process

COST_SHARE = 0.01  # of the time may go into checkpoints


class Rows(dict[int, Any]):
    """The finished rows of one request, by number; values are JSON values."""

    def __init__(self, record: Callable[[Mapping[int, Any]], None] | None = None) -> None:
        self.record = record

    def finish(self, rows: Mapping[int, Any]) -> None:
        """Add rows; if they are recorded, they are on disk on return."""
        if self.record is not None:
            self.record(rows)
        self.update(rows)


class Work:
    """The finished work of one stage, deleted once the block `with Work(...)` succeeds; see `align.run.release`.

    The first `rows`, `checkpoint` or `folder` fixes the identity: by then all code is imported and all params are read.

    Args:
        stage: stage and model, such as `judge@m1`.
        params: those read so far are part of the identity.
        runtime: section `runtime`.
        inputs: files and directories that the result depends on.
    """

    def __init__(self, stage: str, params: Params, runtime: RuntimeSettings, inputs: Collection[Path]) -> None:
        self.stage, self.params, self.runtime = stage, params, runtime
        self.parents = parents()
        self._folder: Path | None = None
        self._lock: IO[str] | None = None
        self._rows: dict[str, Rows] = {}
        self._stream: IO[bytes] | None = None
        # Hash a base model while the caller loads it.
        pool = ThreadPoolExecutor(1)
        self._inputs: Future[dict[str, str]] = pool.submit(lambda: {path.as_posix(): sha256(path) for path in inputs})
        pool.shutdown(wait=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            with suppress(OSError):  # a full disk did not take the rest
                self._stream.close()
        if kind is None and self._folder is not None and is_main_process():
            release(self._folder)
        if self._lock is not None:
            self._lock.close()
        if isinstance(error, Exception) and not isinstance(error, InputError) and (reason := out_of_space(error)):
            advice = "free some space and run it again: finished work is kept"
            raise InputError(f"{self.stage}: cannot write ({reason}); {advice}") from None

    @property
    def folder(self) -> Path:
        """The folder, which this process has locked and read."""
        if self._folder is None:
            self._open()
        assert self._folder is not None
        return self._folder

    def rows(self, request: str) -> Rows:
        """Return the finished rows of a request, to which the caller adds more."""
        if self._folder is None:
            self._open()
        return self._rows.setdefault(request, Rows(partial(self._record, request)))

    def checkpoint(self) -> "Checkpoint":
        """Return the stage's checkpoint."""
        return Checkpoint(self.folder / "checkpoint.safetensors")

    def check_parent(self) -> None:
        """See `check_parents`."""
        check_parents(self.stage, self.parents)

    def _open(self) -> None:
        identity = {
            "stage": self.stage,
            "params": self.params.used,
            "inputs": self._inputs.result(),
            "code": code_hashes(),
            "environment": environment(self.runtime),
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        folder = resume_root() / self.stage / digest
        process = int(os.environ.get("RANK", "0"))
        drop_recorded()
        self._lock = lock(
            folder / f"lock-{process}",
            str(os.getpid()),
            lambda pid: click.echo(f"{self.stage}: waits for process {pid}, which does the same work", err=True),
        )
        if is_main_process():
            write_json(folder / IDENTITY_FILE, identity)
            (folder / DONE_FILE).unlink(missing_ok=True)
        own = folder / f"rows-{process}.jsonl"
        for path in sorted(folder.glob("rows-*.jsonl")):
            whole = 0
            for size, request, rows in _finished(path):
                self._rows.setdefault(request, Rows(partial(self._record, request))).update(rows)
                whole += size
            if path == own:
                os.truncate(own, whole)  # drop a line that a kill cut off
        self._stream = own.open("ab")
        self._folder = folder

    def _record(self, request: str, rows: Mapping[int, Any]) -> None:
        assert self._stream is not None
        self._stream.write((json.dumps([request, list(rows.items())]) + "\n").encode())
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.check_parent()


def _finished(path: Path) -> Iterator[tuple[int, str, dict[int, Any]]]:
    """Yield size in bytes, request and rows of each line, up to the first incomplete one."""
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            request, rows = json.loads(line)
        except ValueError:
            return
        if not line.endswith(b"\n"):
            return
        yield len(line), request, dict(rows)


class Pace:
    """Paces checkpoints to cost at most `COST_SHARE` of the time, ALIGN_CHECKPOINT_SECONDS or more apart."""

    def __init__(self) -> None:
        self.shortest = float(os.environ.get("ALIGN_CHECKPOINT_SECONDS", "10"))
        self.wait, self.since, self.begin = self.shortest, time.monotonic(), 0.0

    def due(self) -> bool:
        """Return whether to save now; if so, the cost counts until `saved`."""
        self.begin = time.monotonic()
        return self.begin - self.since >= self.wait

    def saved(self) -> None:
        """Note that the checkpoint is on disk."""
        self.since = time.monotonic()
        cost = self.since - self.begin
        self.wait = max(self.shortest, cost / COST_SHARE) if self.shortest else 0.0


class Checkpoint:
    """A checkpoint in one file with a hash of its content."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace the checkpoint atomically."""
        with replacing(self.path) as temporary:
            values = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            text = json.dumps(state)
            save_file(values, temporary, metadata={"state": text, "sha256": _content_hash(values, text)})

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors (on the CPU) and the state, or None if there is no checkpoint, or a damaged one.

        Starting from scratch takes longer and gives the same bytes.
        """
        try:
            with safe_open(self.path, framework="pt") as stream:
                tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (not a dict)
                metadata = stream.metadata() or {}
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            reason = str(error)
        else:
            text = metadata.get("state", "")
            if metadata.get("sha256") == _content_hash(tensors, text):
                return tensors, json.loads(text)
            reason = "its hash differs"
        click.echo(f"{self.path}: the checkpoint is damaged ({reason}); starting from scratch", err=True)
        return None


def _content_hash(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for key, tensor in sorted(tensors.items()):
        digest.update(f"\0{key} {tensor.dtype} {list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
