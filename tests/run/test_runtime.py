"""The number of threads of a stage."""

import os

import psutil
import pytest

from align.run.provenance import environment
from align.run.runtime import RuntimeSettings

SETTINGS = {
    "device": "cpu",
    "dtype": "float32",
    "quantization": "none",
    "optim": "adamw_torch",
    "num_threads": None,
    "batch_size": 1,
}


@pytest.mark.parametrize(
    ("cores", "usable", "threads"),
    [(8, 16, 8), (8, 4, 4), (2, 2, 2), (1, 2, 2), (1, 1, 1), (None, 6, 6)],
    ids=["hyper-threads", "fewer allowed", "two cores", "one core's threads", "one thread", "unknown"],
)
def test_without_a_number_all_physical_cores_that_the_process_may_use_compute_and_are_recorded(
    monkeypatch: pytest.MonkeyPatch, cores: int | None, usable: int, threads: int
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)), raising=False)
    runtime = RuntimeSettings.model_validate(SETTINGS)
    assert runtime.threads == environment(runtime)["num_threads"] == threads
    assert RuntimeSettings.model_validate(SETTINGS | {"num_threads": 3}).threads == 3
