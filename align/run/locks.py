"""Locks between processes, of one work and of a device: the kernel frees them when a process ends, however it ends.

Two stages that compute on one GPU (two workers of `dvc queue`, a second shell) would run out of its memory together: a
stage holds the GPUs that it sees from before it loads a model until it ends, and the next one waits. Who needs both
locks takes the device's first, so that no two processes wait for each other.
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
_launcher = os.getppid()  # by now: it may be killed any time
_held: dict[Path, IO[str]] = {}  # until the process ends: its memory on the device is not free before


def lock(path: Path, content: str, tell: Callable[[str], None]) -> IO[str]:
    """Return the file, locked and with `content` in it. While another process holds it, `tell` its content and wait.

    Raises:
        OSError: it cannot be opened, or is no file.
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
        stream.close()  # the other has finished and deleted it


def hold_devices(stage: str, runtime: RuntimeSettings) -> None:
    """Keep other stages off the GPUs that this process sees until it ends; while another has one of them, wait.

    All that are visible, since a trainer spreads over them: CUDA_VISIBLE_DEVICES gives each worker its own. Of the
    processes of one launch the main one locks, and the others wait until it has. ALIGN_DEVICE_LOCK=1 locks the CPU as
    well, ALIGN_DEVICE_LOCK=0 nothing; it changes no result.

    Raises:
        InputError: the lock file cannot be used; or, while this process waited, DVC or the launcher was killed.
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
            raise InputError(f"{stage}: the launcher is gone, which started this; run it again")
    check_parents(stage, starters)


def parents() -> list[int] | None:
    """Return the processes above this one up to DVC, or None if DVC did not start it.

    Those between, a shell or a launcher, have its DVC_STAGE too.
    """
    if "DVC_STAGE" not in os.environ:
        return None
    found = [os.getppid()]
    with suppress(psutil.Error):
        while "DVC_STAGE" in psutil.Process(found[-1]).environ():
            found.append(psutil.Process(found[-1]).ppid())
    return found


def check_parents(stage: str, then: list[int] | None) -> None:
    """Stop if DVC, which started this stage, was killed: nobody would take what it writes, and it holds locks.

    Raises:
        InputError: it was.
    """
    if then is not None and parents() != then:
        raise InputError(f"{stage}: DVC is gone, which started this; what is finished is kept: run it again")


def _open(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags)  # the kernel may forbid O_CREAT on another user's file in /tmp
    except FileNotFoundError:
        descriptor = os.open(path, flags | os.O_CREAT, 0o666)
    stream = os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace")
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:  # it would be written to
        stream.close()
        raise OSError("no regular file of one name")
    return stream


def _devices(runtime: RuntimeSettings) -> list[str]:
    """Return what to lock, in an order that is the same for all processes: physical GPUs, however they are numbered."""
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
        mask = os.umask(0)  # every user of the machine may lock it
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
    """Tell whether the main process of this launch has locked the file: it alone has our parent, and it wrote it."""
    with suppress(FileNotFoundError, psutil.Error):
        match = re.match(r"\d{1,9}(?= )", path.read_text(encoding="utf-8", errors="replace"))
        return match is not None and psutil.Process(int(match[0])).ppid() == os.getppid()
    return False
