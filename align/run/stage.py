"""A run of a stage: its params, and its unfinished work under the locks it needs."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from align.core.params import Params, Settings
from align.run.locks import hold_devices
from align.run.runtime import RuntimeSettings, start
from align.run.work import Work

S = TypeVar("S", bound=Settings)

BASE = Path("models/base")


class Stage:
    """The params and locks of a stage that computes with a model; `name` is DVC's, such as `judge@m1`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.params = Params.read()
        self.runtime = self.params.section("runtime", RuntimeSettings)

    def section(self, name: str, settings: type[S]) -> S:
        """See `Params.section`."""
        return self.params.section(name, settings)

    def optional_section(self, name: str, settings: type[S]) -> S | None:
        """See `Params.optional_section`."""
        return self.params.optional_section(name, settings)

    @property
    def seed(self) -> int:
        """The seed of the whole run."""
        return self.params.seed

    def start(self) -> None:
        """Seed torch and set its threads; call it once all sections are read and valid."""
        start(self.runtime, self.seed)

    def unlocked_work(self, inputs: Collection[Path]) -> Work:
        """Return the unfinished work; the generator locks the device, if its backend has one."""
        return Work(self.name, self.params, self.runtime, inputs)

    @contextmanager
    def work(self, inputs: Collection[Path]) -> Iterator[Work]:
        """Hold the devices and yield the unfinished work, which depends on `inputs`; load models inside.

        Take the device lock before the work lock, or two processes can deadlock.
        """
        hold_devices(self.name, self.runtime)
        with self.unlocked_work(inputs) as work:
            yield work
