"""What several test files need and takes minutes to make: made once, also where pytest-xdist runs several processes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def shared(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """Return the folder that `build` fills, once for all processes: the first that asks builds, the others wait.

    Tests that change what is in it take a copy.
    """
    base = factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done, failed = root / name, root / f"{name}.done", root / f"{name}.failed"
    with FileLock(root / f"{name}.lock"):
        if failed.exists():
            pytest.fail(f"{name} could not be built; an earlier test says why")
        if not done.exists():
            failed.touch()
            folder.mkdir()
            build(folder)
            failed.unlink()
            done.touch()
    return folder
