"""`align doctor`: what would differ on this machine, or stop a run."""

from collections.abc import Callable, Iterator

from stages.align.check_environment import (
    check_device,
    check_environment,
    check_packages,
    check_python,
    check_quantization,
    check_settings,
)
from stages.align.check_experiment import check_experiment
from stages.align.check_params import check_params
from stages.align.check_repository import check_lock_file, check_locks, check_repository
from stages.align.check_storage import check_cache, check_disk, check_memory, check_unfinished
from stages.align.findings import Finding
from stages.lib.errors import InputError

CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_packages,
    check_repository,
    check_params,
    check_locks,  # before what is to be mended with git, which a lock stops
    check_lock_file,
    check_experiment,
    check_environment,
    check_device,
    check_quantization,
    check_settings,
    check_disk,
    check_memory,
    check_unfinished,
)


def examine(deep: bool = False) -> Iterator[Finding]:
    """Run all checks in the working directory; with `deep`, hash the cache too. What cannot be read is a problem."""
    told = set()
    for check in (*CHECKS, check_cache) if deep else CHECKS:
        try:
            yield from check()
        except InputError as error:
            if error.message not in told:
                told.add(error.message)
                yield Finding(check.__name__.removeprefix("check_"), "problem", error.message)
