"""Locks between processes, on a stage's unfinished work and on devices; the kernel frees them when a process ends.

Two stages on one GPU (two `dvc queue` workers, a second shell) would run out of memory together, so a stage locks its
GPUs before it loads a model, until it ends. Take the device lock before the work lock, or two processes can deadlock.
"""

import fcntl
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

import click
import psutil
import torch

from align.core.errors import InputError, printable, quoted
from align.run.runtime import RuntimeSettings

SWITCH = "ALIGN_DEVICE_LOCK"
_launcher = os.getppid()  # at import: it may be killed at any time
_held: dict[Path, IO[str]] = {}  # until the process ends and its device memory is free


def lock(path: Path, content: str, tell: Callable[[str], None]) -> IO[str]:
    """Lock a file and write `content` into it; while another process holds it, pass its content to `tell` and wait.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
    """
    while True:
        stream = _open(path)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(stream.read(200))
            fcntl.flock(stream, fcntl.LOCK_EX)
        if path.exists() and path.stat().st_ino == os.fstat(stream.fileno()).st_ino:
            stream.seek(0)
            stream.truncate()
            stream.write(content)
            stream.flush()
            return stream
        stream.close()  # the holder has finished and deleted it


def hold_devices(stage: str, runtime: RuntimeSettings) -> None:
    """Lock all visible GPUs until this process ends; wait while another stage holds one.

    A trainer uses every visible GPU; CUDA_VISIBLE_DEVICES assigns them to workers. In a multi-process launch, the main
    process locks and the others wait for it. ALIGN_DEVICE_LOCK=1 locks the CPU too, ALIGN_DEVICE_LOCK=0 nothing.

    Raises:
        InputError: the lock file cannot be used, or DVC or the launcher was killed meanwhile.
    """
    starters = parents()
    rank = os.environ.get("LOCAL_RANK", os.environ.get("RANK"))
    for device in _devices(runtime):
        path = Path(tempfile.gettempdir()) / f"align-{device.replace(' ', '-')}.lock"
        if rank in (None, "0"):
            if path not in _held:
                _held[path] = _lock_device(path, stage, device)
        else:
            while os.getppid() == _launcher and not _of_a_sibling(path):
                time.sleep(0.1)
        if rank is not None and os.getppid() != _launcher:
            raise InputError(f"{stage}: the launcher was killed; run the stage again")
    check_parents(stage, starters)


def parents() -> list[int] | None:
    """Return the ids of this process's ancestors up to DVC, or None if DVC did not start it."""
    if "DVC_STAGE" not in os.environ:
        return None
    ancestors = [os.getppid()]
    with suppress(psutil.Error):
        while "DVC_STAGE" in psutil.Process(ancestors[-1]).environ():  # a shell or a launcher inherits it from DVC
            ancestors.append(psutil.Process(ancestors[-1]).ppid())
    return ancestors


def check_parents(stage: str, then: list[int] | None) -> None:
    """Raise `InputError` if the DVC that started this stage was killed: nobody would record the outputs."""
    if then is not None and parents() != then:
        raise InputError(f"{stage}: DVC was killed; finished work is kept: run the stage again")


def _open(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags)  # with O_CREAT the kernel may deny another user's file in /tmp
    except FileNotFoundError:
        descriptor = os.open(path, flags | os.O_CREAT, 0o666)
    stream = os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace")
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:  # writing would change another file
        stream.close()
        raise OSError("not a regular file with one name")
    return stream


def _devices(runtime: RuntimeSettings) -> list[str]:
    """Return what to lock: physical GPUs by UUID, in the same order in all processes."""
    wanted = os.environ.get(SWITCH, "")
    if wanted not in ("", "0", "1"):
        raise InputError(f"{SWITCH}: should be 0 (lock nothing) or 1 (lock the CPU too), got {quoted(wanted)}")
    if wanted == "0":
        return []
    if runtime.torch_device.type == "cuda":
        return sorted(f"GPU {torch.cuda.get_device_properties(i).uuid}" for i in range(torch.cuda.device_count()))
    return ["CPU"] if wanted else []


def _lock_device(path: Path, stage: str, device: str) -> IO[str]:
    def tell(content: str) -> None:
        number, _, name = content.partition(" ")
        click.echo(printable(f"{stage}: waits for process {number} ({name}), which holds the {device}"), err=True)

    try:
        mask = os.umask(0)  # every user of the machine may lock the file
        try:
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o666))
        finally:
            os.umask(mask)
        return lock(path, f"{os.getpid()} {stage}", tell)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot lock the {device} ({reason}); delete it, or set {SWITCH}=0") from None


def _of_a_sibling(path: Path) -> bool:
    """Return whether a child of our launcher, so the main process of this launch, has locked the file."""
    with suppress(FileNotFoundError, psutil.Error):
        match = re.match(r"\d{1,9}(?= )", path.read_text(encoding="utf-8", errors="replace"))
        return match is not None and psutil.Process(int(match[0])).ppid() == os.getppid()
    return False
