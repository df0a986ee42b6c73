"""`align doctor`: what would differ on this machine, or stop a run."""

from collections.abc import Callable, Iterator

from align.cli.doctor.environment import (
    check_device,
    check_environment,
    check_packages,
    check_python,
    check_quantization,
    check_settings,
)
from align.cli.doctor.experiment import check_experiment
from align.cli.doctor.findings import Finding
from align.cli.doctor.repository import check_lock_file, check_locks, check_repository
from align.cli.doctor.storage import check_cache, check_disk, check_memory, check_unfinished
from align.cli.project.settings import check_params
from align.core.errors import InputError

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
