"""More iterations of the self-rewarding loop, added one at a time while each is better than its parent."""

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
from align.report.comparisons import compare, half, read_evaluated
from align.report.paired import BETTER, Difference

EVAL_DIR = Path("data/eval")

Dvc = Callable[[str], bool]  # runs `dvc <command>`, returns whether it succeeded
Say = Callable[[str], None]


def extend_chain(measure: str, limit: int, say: Say, dvc: Dvc | None = None) -> None:
    """Reproduce the chain, then add up to `limit` iterations, until one is not `better` than its parent.

    The development half of the held-out prompts decides. The other half, which decides nothing, is reported: among
    several iterations the best figure on the prompts that chose it is too good.
    """
    dvc = dvc or run_dvc
    if limit < 1:
        raise InputError(f"--max: expected 1 or more iterations to add, got {limit}")
    next_model(Params.read().iterations)
    before = PARAMS_FILE.read_bytes()
    if not dvc("repro"):
        raise InputError("`dvc repro` failed before any iteration was added: see above")
    _check_unchanged(before)
    last = list(Params.read().iterations)[-1]
    if not compare_halves(measure, last, "m0")[0].pairs:  # before hours of work that could not be judged
        raise InputError(
            f"--until {measure}: the development half of {EVAL_DIR} has no prompts that compare {last} with m0; choose "
            "another measure or add prompts"
        )
    for _ in range(limit):
        model, parent = next_model(Params.read().iterations)
        _try_iteration(model, parent, dvc)
        decision, _ = compare_halves(measure, model, parent)
        say(f"{model} against {parent} by {measure}, on the development half: {described(decision)}")
        for baseline in dict.fromkeys((parent, "m0")):
            _, reported = compare_halves(measure, model, baseline)
            say(f"{model} against {baseline} by {measure}, on the other half: {described(reported)}")
        if decision.verdict != BETTER:
            say(f"{model} is not shown to be better than {parent}, so the loop ends; {model} stays in {PARAMS_FILE}")
            return
    say(f"--max {limit} reached, and each iteration was better than its parent")


def compare_halves(measure: str, model: str, baseline: str) -> tuple[Difference, Difference]:
    """Return `model` minus `baseline` by `measure` on the development half and on the other."""
    models = read_evaluated(EVAL_DIR, list(dict.fromkeys(("m0", baseline, model))))
    development, other = (
        compare(half(models[model], development=side), half(models[baseline], development=side), measure)
        for side in (True, False)
    )
    return development, other


def described(difference: Difference) -> str:
    """Return a difference in words, with what its prompts could have shown."""
    if difference.mean is None:
        return f"no prompts, {difference.verdict}"
    if difference.low is None or difference.high is None or difference.detectable is None:
        return f"{difference.mean:+.2f}, {difference.pairs} prompts are too few for an interval, {difference.verdict}"
    return (
        f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}], {difference.verdict} "
        f"({difference.pairs} prompts can show {difference.detectable:.2f})"
    )


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
