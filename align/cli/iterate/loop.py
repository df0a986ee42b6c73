"""More iterations of the self-rewarding loop, one at a time, for as long as a metric of the summary gets better."""

import csv
import math
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from align.core.errors import InputError
from align.core.files import replacing
from align.core.params import PARAMS_FILE, Params

LOCK_FILE = Path("dvc.lock")
MODELS_FILE = Path("data/summary/models.csv")
WIN_RATE = "win_rate_vs_m0"

Dvc = Callable[[str], bool]  # runs `dvc <command>`, tells whether it succeeded


class Interrupted(InputError):
    """Ctrl-C, once the files are as they were; the exit status is the shell's for SIGINT."""

    exit_code = 130


@dataclass(frozen=True)
class Goal:
    """What a new model has to reach: a column of the summary's models.csv, better than the best so far."""

    metric: str = WIN_RATE
    min_delta: float = 0.0
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.min_delta < math.inf:
            raise InputError(f"--min-delta: expected a number from 0 on, got {self.min_delta}")

    def improved(self, value: float, best: float) -> bool:
        """Tell whether `value` is better than `best`, by `min_delta` at least."""
        gain = best - value if self.lower_is_better else value - best
        # The slack is for binary fractions: 0.3 - 0.2 is a little less than 0.1.
        return gain > 0 and gain >= self.min_delta - 1e-12

    def best(self, values: Mapping[str, float]) -> str:
        """Return the model with the best of `values`, the first of equals."""
        pick = min if self.lower_is_better else max
        return pick(values, key=lambda model: values[model])


def next_model(iterations: Mapping[str, str]) -> tuple[str, str]:
    """Return the model that comes after the last of the chain, and its parent: that last one."""
    parent = list(iterations)[-1]
    match = re.fullmatch(r"m([1-9][0-9]*)", parent)
    model = f"m{int(match[1]) + 1}" if match else None
    if model is None or model in iterations:
        raise InputError(
            f"{PARAMS_FILE}: iterations.{parent}: no name can follow; name the models m1, m2, ... in this order"
        )
    return model, parent


def add_iteration(text: str, model: str, parent: str) -> str:
    """Return params.yaml's `text` with `model: parent` after the last entry of `iterations`; all else stays as it is.

    The entry is put into the text at the place that the parser names: a dump by ruamel.yaml keeps the comments, but
    writes `null` as nothing and breaks long lines.
    """
    yaml = YAML(typ="safe", pure=True)
    chain = next(value for key, value in yaml.compose(text).value if key.value == "iterations")
    last_key, last_value = chain.value[-1]
    end = last_value.end_mark.index
    if chain.flow_style:
        added = f"{text[:end]}, {model}: {parent}{text[end:]}"
    else:
        line_end = text.find("\n", end)
        head, tail = (text, "") if line_end < 0 else (text[: line_end + 1], text[line_end + 1 :])
        newline = "\r\n" if "\r\n" in text else "\n"
        line = f"{' ' * last_key.start_mark.column}{model}: {parent}"
        added = f"{head}{line}{newline}{tail}" if head.endswith("\n") else f"{head}{newline}{line}"
    wanted = yaml.load(text)
    wanted["iterations"][model] = parent
    try:
        found = yaml.load(added)
    except YAMLError:
        found = None
    if found != wanted:
        raise InputError(f"{PARAMS_FILE}: iterations: cannot add to it; write it as lines such as `m1: m0`")
    return added


def read_values(metric: str, models: Sequence[str]) -> dict[str, float]:
    """Return the metric of those of `models` that have one in the summary's table."""
    try:
        with MODELS_FILE.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            rows = {row["model"]: row for row in reader}
            columns = [column for column in reader.fieldnames or () if column != "model"]
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{MODELS_FILE}: cannot read ({error}); run `dvc repro`") from None
    if metric not in columns:
        raise InputError(f"--until: unknown metric {metric!r}; {MODELS_FILE} has {', '.join(columns)}")
    values = {}
    for model in models:
        text = rows.get(model, {}).get(metric)
        if model == "m0" and metric == WIN_RATE:
            text = text or "0.5"  # a model ties with itself
        try:
            value = float(text or "nan")
        except ValueError:
            raise InputError(f"--until: {metric!r} is no number: {model} has {text!r} in {MODELS_FILE}") from None
        if math.isfinite(value):
            values[model] = value
    return values


def run_dvc(command: str, program: Sequence[str] = (sys.executable, "-m", "dvc")) -> bool:
    """Run `dvc <command>`, with its output on the terminal; tell whether it succeeded.

    Ctrl-C reaches DVC and its stage as well; KeyboardInterrupt is raised when they have ended.
    """
    interrupted = False
    # Not subprocess.run: it kills DVC a quarter of a second after Ctrl-C, and the stage goes on as an orphan.
    with subprocess.Popen([*program, command]) as process:
        while process.returncode is None:
            try:
                process.wait()
            except KeyboardInterrupt:
                interrupted = True
    if interrupted:
        raise KeyboardInterrupt
    return process.returncode == 0


def iterate(goal: Goal, limit: int, say: Callable[[str], None], dvc: Dvc = run_dvc) -> None:
    """Reproduce the chain, then add up to `limit` iterations, until one is no better than the best before it."""
    if limit < 1:
        raise InputError(f"--max: expected 1 or more iterations to add, got {limit}")
    next_model(Params.read().iterations)
    if MODELS_FILE.is_file():  # in git: a wrong name is found before hours of work, not after
        read_values(goal.metric, [])
    _reproduce_chain(dvc)
    for _ in range(limit):
        iterations = Params.read().iterations
        model, parent = next_model(iterations)
        values = read_values(goal.metric, ["m0", *iterations])
        if not values:
            raise InputError(f"--until: no model of the loop has a value of {goal.metric!r} in {MODELS_FILE}")
        best = goal.best(values)
        _try_iteration(model, parent, dvc, say)
        value = read_values(goal.metric, [model]).get(model)
        step = f"{_show(values.get(parent))} -> {_show(value)}"
        say(f"{model}: {goal.metric} {step} (best {_show(values[best])} of {best})")
        if value is None or not goal.improved(value, values[best]):
            say(
                f"{model} is no better: stopped. The best is {best}. {model} stays in {PARAMS_FILE}; "
                f"to drop it, delete its line `{model}: {parent}` there and run `dvc repro`"
            )
            return
    say(f"{model} is the best; --max {limit} reached")


def _reproduce_chain(dvc: Dvc) -> None:
    before = PARAMS_FILE.read_bytes()
    try:
        succeeded = dvc("repro")
    except KeyboardInterrupt:
        raise Interrupted("interrupted before any iteration was added; the same command goes on from there") from None
    if not succeeded:
        raise InputError("`dvc repro` failed before any iteration was added: see above")
    _check_unchanged(before, "the chain")


def _try_iteration(model: str, parent: str, dvc: Dvc, say: Callable[[str], None]) -> None:
    """Add the iteration and reproduce; if that fails, put params.yaml and dvc.lock back and raise."""
    params, lock = PARAMS_FILE.read_bytes(), LOCK_FILE.read_bytes()
    trial = add_iteration(params.decode(), model, parent).encode()

    def restore() -> None:
        if PARAMS_FILE.read_bytes() not in (params, trial):
            raise InputError(
                f"{PARAMS_FILE}: changed while {model} ran, which did not finish; the change is kept, and so is "
                f"`{model}: {parent}`: delete that line, or run `dvc repro` to try {model} again"
            )
        _write(PARAMS_FILE, params)
        # DVC never takes the stages of a removed iteration out of its lock file.
        _write(LOCK_FILE, lock)

    try:
        _write(PARAMS_FILE, trial)
        succeeded = dvc("repro")
    except BaseException as error:
        restore()
        if not isinstance(error, KeyboardInterrupt):
            raise
        raise Interrupted(
            f"{model}: interrupted; {PARAMS_FILE} is as before. The same command goes on: "
            f"the stages of {model} that finished are in DVC's run cache"
        ) from None
    if succeeded:
        _check_unchanged(trial, model)
        return
    restore()
    say(f"{model} failed: back to the {PARAMS_FILE} before it, and `dvc repro`")
    try:
        # What the failed iteration left in the folders that `summary` depends on would else be in its lock entry.
        again = dvc("checkout") and dvc("repro")
    except KeyboardInterrupt:
        again = False
    end = "" if again else "; `dvc repro` did not succeed after that: run it again"
    raise InputError(f"{model} failed: what its stage said is above; {PARAMS_FILE} is as before{end}")


def _check_unchanged(before: bytes, what: str) -> None:
    if PARAMS_FILE.read_bytes() != before:
        raise InputError(f"{PARAMS_FILE}: changed while {what} ran; stopped, the change is kept: run the command again")


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
