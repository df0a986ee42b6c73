"""DVC's experiments with what differs in each from its commit: the changed params and the headline metrics."""

import io
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from align.cli.project.dvc import DvcFiles
from align.cli.project.lock_file import flat
from align.core.errors import InputError, printable
from align.core.params import PARAMS_FILE

METRICS_FILE = "data/summary/metrics.json"
HEADLINES = {
    "loop_win_rate_vs_m0": "loop\nwin rate",
    "loop_judge_score": "loop\njudge",
    "ppo_reward": "PPO\nreward",
    "ppo_kl_to_base": "PPO\nKL",
}
FINISHED = ("commit", "workspace", "success")
MAX_VALUE = 60  # characters of a param's value


@dataclass(frozen=True)
class Experiment:
    """An experiment, the commit that it starts from, or the workspace.

    `state` is commit, workspace, success, running, queued or failed; one that is not finished has no metrics of its
    own. Of params there are those that differ from the commit; None is one that is not there.
    """

    name: str
    revision: str
    baseline: str
    created: datetime | None
    state: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    changes: Mapping[str, float]  # of the metrics that the commit has too

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        metrics = {key: {"value": value, "change": self.changes.get(key)} for key, value in self.metrics.items()}
        created = self.created.isoformat() if self.created is not None else None
        values = {"name": self.name, "revision": self.revision, "baseline": self.baseline, "created": created}
        return values | {"state": self.state, "params": dict(self.params), "metrics": metrics}


def experiments(names: Collection[str] = (), all_commits: bool = False) -> list[Experiment]:
    """Return the experiments that start from HEAD, below the commit and a workspace that differs from it.

    Args:
        names: only these, wherever they start.
        all_commits: those of all commits.

    Raises:
        InputError: no DVC or git repository, or an unknown name.
    """
    repo = DvcFiles().repo
    if isinstance(repo.scm, import_module("dvc.scm").NoSCM):
        raise InputError("experiments are commits of git, and this is no git repository; run `git init` and commit")
    everywhere = all_commits or bool(names)
    try:
        states = repo.experiments.show(revs=_baselines(repo) if everywhere else None)
    except import_module("dvc.exceptions").DvcException as error:
        raise InputError(f"DVC cannot list the experiments: {' '.join(str(error).split())}") from None
    found: list[Experiment] = []
    for commit in states[1:]:
        own = list(_of_commit(commit, None if everywhere else states[0]))
        known = [experiment for experiment in own[1:] if not names or experiment.name in names]
        found += [own[0], *known] if known else []
    if missing := set(names) - {experiment.name for experiment in found}:
        known_names = sorted({s.name for c in states[1:] for r in c.experiments or [] for s in r.revs[:1] if s.name})
        there = f"there are: {', '.join(known_names)}" if known_names else "there is none"
        raise InputError(f"no experiment is named {', '.join(sorted(missing))}; {there}")
    return found


def table(found: Sequence[Experiment], now: datetime, width: int) -> str:
    """Return experiments as a table of at most `width` columns; a metric has its change under it, `=` for none."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("\nexperiment", overflow="fold")
    shown.add_column("state\nsince", no_wrap=True)
    shown.add_column("changed\nparams", overflow="fold", ratio=1)
    for label in HEADLINES.values():
        shown.add_column(label, justify="right", no_wrap=True)
    for experiment in found:
        if experiment.state == "commit" and shown.rows:
            shown.add_section()
        params = "\n".join(f"{key}={_show(value)}" for key, value in experiment.params.items())
        created = experiment.created
        since = "" if created is None else f"{created:%H:%M}" if created.date() == now.date() else f"{created:%Y-%m-%d}"
        state = "" if experiment.name == experiment.state else experiment.state
        cells = [_lines(printable(experiment.name)), _lines(state, since), _lines(*map(printable, params.split("\n")))]
        shown.add_row(*cells, *(_lines(*_metric(experiment, key)) for key in HEADLINES))
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(shown)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines() if line.strip())


def _baselines(repo: Any) -> list[str]:
    """Return all commits that experiments start from."""
    queue = repo.experiments.celery_queue
    waiting = [*queue.iter_queued(), *queue.iter_active(), *(done.entry for done in queue.iter_failed())]
    return sorted({*repo.experiments.ls(all_commits=True), *(entry.baseline_rev for entry in waiting)}) or ["HEAD"]


def _of_commit(commit: Any, workspace: Any | None) -> Iterator[Experiment]:
    params, metrics = _values(commit, "params", str(PARAMS_FILE)), _metrics(commit)
    baseline = commit.rev[:7]

    def row(name: str, state: str, data: Any) -> Experiment:
        own = _values(data, "params", str(PARAMS_FILE)) if data.data is not None else params
        keys = [key for key in dict.fromkeys((*own, *params)) if key not in own or own[key] != params.get(key)]
        measured = _metrics(data) if state in FINISHED else {}
        changes = {key: value - metrics[key] for key, value in measured.items() if key in metrics}
        created = data.data.timestamp if data.data is not None else None
        changed = {key: own.get(key) for key in keys}
        return Experiment(name, data.rev[:7], baseline, created, state, changed, measured, changes)

    yield row(commit.name or baseline, "commit", commit)
    if workspace is not None:
        here = row("workspace", "workspace", workspace)
        if here.params or any(here.changes.values()) or set(here.metrics) != set(metrics):
            yield here
    for experiment in commit.experiments or []:
        tip, executor = experiment.revs[0], experiment.executor
        yield row(tip.name or tip.rev[:7], executor.state if executor is not None else "success", tip)


def _values(state: Any, kind: str, path: str) -> dict[str, Any]:
    found = getattr(state.data, kind, {}).get(path, {}).get("data")
    return flat(found) if isinstance(found, dict) else {}


def _metrics(state: Any) -> dict[str, float]:
    return {
        key: value
        for key, value in _values(state, "metrics", METRICS_FILE).items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _metric(experiment: Experiment, key: str) -> tuple[str, ...]:
    value, change = experiment.metrics.get(key), experiment.changes.get(key)
    if value is None:
        return ("-",)
    if experiment.state == "commit" or change is None:
        return (f"{value:.3f}",)
    return f"{value:.3f}", f"{change:+.3f}" if change else "="


def _show(value: Any) -> str:
    if value is None:
        return "null"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."


def _lines(*lines: str) -> Text:
    return Text("\n".join(line for line in lines if line))
