"""More iterations of the self-rewarding loop, added one at a time while a metric of the summary improves."""

import csv
import math
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from align.cli.project.dvc import LOCK_FILE
from align.core.errors import InputError
from align.core.files import replacing
from align.core.params import PARAMS_FILE, Params

MODELS_FILE = Path("data/summary/models.csv")
WIN_RATE = "win_rate_vs_m0"

Dvc = Callable[[str], bool]  # runs `dvc <command>`, returns whether it succeeded
Say = Callable[[str], None]


def extend_chain(metric: str, limit: int, lower_is_better: bool, say: Say, dvc: Dvc | None = None) -> None:
    """Reproduce the chain, then add up to `limit` iterations, until one is no better than the best before it."""
    dvc = dvc or run_dvc
    if limit < 1:
        raise InputError(f"--max: expected 1 or more iterations to add, got {limit}")
    next_model(Params.read().iterations)
    if MODELS_FILE.is_file():  # find an unknown metric before hours of work
        read_values(metric, [])
    before = PARAMS_FILE.read_bytes()
    if not dvc("repro"):
        raise InputError("`dvc repro` failed before any iteration was added: see above")
    _check_unchanged(before)
    for _ in range(limit):
        iterations = Params.read().iterations
        model, parent = next_model(iterations)
        values = read_values(metric, ["m0", *iterations])
        if not values:
            raise InputError(f"--until: no model of the loop has a value of {metric!r} in {MODELS_FILE}")
        sign = -1 if lower_is_better else 1
        best = max(values, key=lambda name: sign * values[name])
        _try_iteration(model, parent, dvc)
        value = read_values(metric, [model]).get(model, math.nan)
        say(f"{model}: {metric} {value:.4g} (best before: {values[best]:.4g} of {best})")
        if not sign * value > sign * values[best]:
            say(f"{model} is no better than {best}, so the loop ends; {model} stays in {PARAMS_FILE}")
            return
    say(f"{model} is the best; --max {limit} reached")


def next_model(iterations: Mapping[str, str]) -> tuple[str, str]:
    """Return the model that follows the last one of the chain, and its parent: that last one."""
    parent = list(iterations)[-1]
    match = re.fullmatch(r"m([1-9][0-9]*)", parent)
    model = f"m{int(match[1]) + 1}" if match else None
    if model is None or model in iterations:
        raise InputError(f"{PARAMS_FILE}: iterations.{parent}: no next name; name the models m1, m2, ... in order")
    return model, parent


def add_iteration(text: str, model: str, parent: str) -> str:
    """Return the text of params.yaml with `model: parent` after the last entry of `iterations`, otherwise unchanged.

    A dump by ruamel.yaml would keep the comments, but change `null` and long lines.
    """
    yaml = YAML(typ="safe", pure=True)
    chain = next(value for key, value in yaml.compose(text).value if key.value == "iterations")
    last_key, last_value = chain.value[-1]
    place, entry = last_value.end_mark.index, f"{model}: {parent}"
    if chain.flow_style:
        entry = f", {entry}"
    else:
        newline = "\r\n" if "\r\n" in text else "\n"
        entry = f"{newline}{' ' * last_key.start_mark.column}{entry}"
        place = text.find(newline, place) if newline in text[place:] else len(text)
    wanted = yaml.load(text)
    wanted["iterations"][model] = parent
    added = text[:place] + entry + text[place:]
    try:
        valid = yaml.load(added) == wanted
    except YAMLError:
        valid = False
    if not valid:
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
            values[model] = float(text or "nan")
        except ValueError:
            raise InputError(f"--until: {metric!r} is not a number: {model} has {text!r} in {MODELS_FILE}") from None
    return {model: value for model, value in values.items() if math.isfinite(value)}


def run_dvc(command: str, program: Sequence[str] = (sys.executable, "-m", "dvc")) -> bool:
    """Run `dvc <command>` on this terminal and return whether it succeeded.

    Ctrl-C also reaches DVC and its stage; KeyboardInterrupt is raised when they have ended.
    """
    interrupted = False
    # subprocess.run would kill DVC a quarter of a second after Ctrl-C and leave its stage running.
    with subprocess.Popen([*program, command]) as process:
        while process.returncode is None:
            try:
                process.wait()
            except KeyboardInterrupt:
                interrupted = True
    if interrupted:
        raise KeyboardInterrupt
    return process.returncode == 0


def _try_iteration(model: str, parent: str, dvc: Dvc) -> None:
    """Add the iteration and reproduce; if that fails, restore params.yaml and dvc.lock and raise."""
    params, lock = PARAMS_FILE.read_bytes(), LOCK_FILE.read_bytes()
    trial = add_iteration(params.decode(), model, parent).encode()
    succeeded = False
    _write(PARAMS_FILE, trial)
    try:
        succeeded = dvc("repro")
    finally:  # Ctrl-C too; the stages that finished are in DVC's run cache
        _check_unchanged(trial)
        if not succeeded:
            _write(PARAMS_FILE, params)
            _write(LOCK_FILE, lock)  # DVC never removes the stages of a removed iteration
    if not succeeded:
        # Otherwise summary's lock entry would include what the failed iteration left in the folders it depends on.
        reproduced = dvc("checkout") and dvc("repro")
        end = "" if reproduced else "; `dvc repro` failed after that: run it again"
        raise InputError(f"{model} failed, see its stage's error above; {PARAMS_FILE} is restored{end}")


def _check_unchanged(expected: bytes) -> None:
    if PARAMS_FILE.read_bytes() != expected:
        raise InputError(f"{PARAMS_FILE}: changed while DVC ran; the change is kept: run the command again")


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)
