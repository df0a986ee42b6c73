"""The rewards of a response (`ppo.rewards`): a weighted sum of the reward model's score and those of checkers."""

import inspect
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from numbers import Real
from types import FrameType
from typing import Any

from align.checks.loading import load_checker, located
from align.core.errors import InputError, quoted
from align.core.rows import FinishReason
from align.ppo.settings import RewardSettings

SECONDS = 10.0  # that a checker may take for a response
LARGEST = 1e30  # rewards are added up in float32


@dataclass(frozen=True)
class Task:
    """What checkers get of a prompt: its last turn, and the other columns of its row at `place` (file:line)."""

    id: str
    prompt: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""


class TimeLimitError(BaseException):
    """A checker ran too long; no `except Exception` of its own catches this."""


class Checker:
    """A function `(prompt, response, row) -> number`; one with a parameter `finish_reason` gets that too.

    Raises:
        InputError: there is no such function; see `load_checker`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.function: Callable[..., Any] = load_checker("ppo.rewards", name)
        try:
            self.takes_finish_reason = "finish_reason" in inspect.signature(self.function).parameters
        except ValueError:  # a function in C that describes no parameters
            self.takes_finish_reason = False

    def __call__(self, task: Task, response: str, finish_reason: FinishReason) -> float:
        """Return the reward of a response.

        Raises:
            InputError: the checker raises, takes more than `SECONDS`, or returns no finite number.
        """
        more = {"finish_reason": finish_reason} if self.takes_finish_reason else {}
        who = f"{task.place}: id {quoted(task.id)}: {self.name} (ppo.rewards)"
        try:
            with time_limit(SECONDS):
                reward = self.function(task.prompt, response, deepcopy(dict(task.columns)), **more)
        except TimeLimitError:
            raise InputError(f"{who} took more than {SECONDS:.0f} seconds on {quoted(response)}; fix it") from None
        except InputError as error:  # of a shipped checker, about the row
            raise InputError(f"{who}: {error.message}") from None
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise InputError(
                f"{who} raised {located(error)} on {quoted(response)}; fix it, or the row that it got"
            ) from None
        is_number = isinstance(reward, Real) and not isinstance(reward, bool)
        if not (is_number and abs(reward) < LARGEST):  # which is also false for NaN
            raise InputError(f"{who} returned {quoted(reward)} for {quoted(response)}; expected a finite number")
        return float(reward)


class Rewards:
    """The entries of `ppo.rewards`, with their checkers imported."""

    def __init__(self, settings: Sequence[RewardSettings]) -> None:
        self.settings = settings
        self.checkers = [Checker(entry.checker) for entry in settings if entry.checker is not None]

    def try_out(self, tasks: Sequence[Task]) -> None:
        """Reward an empty response to each prompt, so that a bad row or checker is found before training."""
        for checker in self.checkers:
            for task in tasks:
                checker(task, "", "stop")

    def parts(
        self, model_scores: Sequence[float] | None, tasks: Sequence[Task], replies: Sequence[tuple[str, FinishReason]]
    ) -> list[list[float]]:
        """Return the rewards of the responses by each entry, unweighted.

        Args:
            model_scores: the reward model's, None if it is no entry.
            tasks, replies: the prompt of each response; its text and why it ended.
        """
        checkers = iter(self.checkers)
        parts = []
        for entry in self.settings:
            if entry.checker is None:
                assert model_scores is not None
                parts.append(list(model_scores))
            else:
                checker = next(checkers)
                parts.append([checker(task, *reply) for task, reply in zip(tasks, replies, strict=True)])
        return parts

    def totals(self, parts: Sequence[Sequence[float]]) -> list[float]:
        """Return the weighted sum of each response's rewards."""
        weights = [entry.weight for entry in self.settings]
        return [sum(w * part for w, part in zip(weights, each, strict=True)) for each in zip(*parts, strict=True)]


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeLimitError` in the block after `seconds`; call it in the main thread.

    It is SIGALRM's handler that raises, so Python code and regular expressions stop; another call into C that never
    returns to Python does not. Handler and timer of before are restored.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeLimitError

    handler, begin = signal.signal(signal.SIGALRM, stop), time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - begin)), interval)
