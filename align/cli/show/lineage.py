"""What made a model or a file, back to the seed data: from dvc.lock, model cards, git and the files themselves."""

import os
from dataclasses import dataclass, field
from functools import cache
from hashlib import md5
from pathlib import Path
from typing import Any

from align.cli.project.cards import CARD_FILE, ModelCard, recorded_environment, source_hash
from align.cli.project.dvc import AS_LOCKED, CHANGED, LOCK_FILE, NOT_HERE, DvcFiles
from align.cli.project.git import Revision, Revisions
from align.cli.project.lock_file import Item, Lock, Stage
from align.core.errors import InputError

MODELS = Path("models")


@dataclass(frozen=True)
class Node:
    """A file or folder in the lineage, with the hash that the run used."""

    path: str
    hash: str
    size: int  # bytes
    state: str  # of the workspace, compared with the hash
    stage: str | None = None  # that made it
    newer: str | None = None  # hash that this stage has written since
    parts: tuple["Node", ...] = ()  # outputs in the folder


@dataclass(frozen=True)
class Code:
    """The code and templates that a stage depends on: files, and folders as a whole."""

    hash: str  # of all
    paths: dict[str, str]  # path -> DVC's hash
    changed: list[str]


@dataclass(frozen=True)
class Run:
    """A stage's run, as recorded in dvc.lock."""

    stage: str
    command: str
    revision: Revision
    params: dict[str, Any]
    code: Code
    inputs: list[Node]
    environment: dict[str, Any] | None


@dataclass
class Lineage:
    """The result of `trace`: the runs behind a target, or the card of a model that no stage of dvc.lock made."""

    name: str
    target: Node | None = None
    runs: dict[str, Run] = field(default_factory=dict)
    card: dict[str, Any] | None = None  # its stage, sources (compared with the workspace), params and environment


def trace(name: str) -> Lineage:
    """Return the lineage of a model (`m1`, `models/m1`) or of a file that a stage wrote."""
    path = _path(name)
    has_card = (Path(path) / CARD_FILE).is_file()
    lock = Lock.read() if LOCK_FILE.is_file() or not has_card else Lock({})
    if made := lock.maker(path):
        stage, out = made
        tracer = _Tracer(lock)
        tracer.follow(stage.name)
        return Lineage(path, tracer.node(out), tracer.runs)
    if has_card:
        return Lineage(path, card=_card_report(Path(path)))
    raise InputError(_unknown(name, path, lock))


class _Tracer:
    def __init__(self, lock: Lock) -> None:
        self.lock, self.revisions, self.state = lock, Revisions(), cache(DvcFiles().state)
        self.runs: dict[str, Run] = {}

    def follow(self, name: str) -> None:
        """Add the run of a stage and of all stages before it."""
        if name in self.runs:
            return
        stage = self.lock.stages[name]
        inputs = [self.node(item) for item in dict.fromkeys(stage.inputs)]  # m1 depends on m0 twice
        self.runs[name] = Run(
            name,
            stage.command,
            self.revisions.of(stage, stage.outs[0]) if stage.outs else Revision(None, False),
            dict(stage.params),
            self._code(stage),
            inputs,
            _environment(stage),
        )
        for node in inputs:
            for part in (node, *node.parts):
                if part.stage is not None:
                    self.follow(part.stage)

    def node(self, item: Item) -> Node:
        made = self.lock.maker(item.path)
        if made is None:
            parts = tuple(map(self.node, self.lock.outs_in(item.path)))
            return Node(item.path, item.hash, item.size, self.state(item.path, item.hash), parts=parts)
        stage, out = made
        newer = out.hash if out.path == item.path and out.hash != item.hash else None
        return Node(item.path, item.hash, item.size, self.state(item.path, item.hash), stage.name, newer)

    def _code(self, stage: Stage) -> Code:
        lines = "".join(f"{item.path} {item.hash}\n" for item in stage.code)
        changed = [item.path for item in stage.code if self.state(item.path, item.hash) != AS_LOCKED]
        return Code(md5(lines.encode()).hexdigest(), {item.path: item.hash for item in stage.code}, changed)


def _path(name: str) -> str:
    """Return the path that is meant, relative to the working directory if it lies there."""
    if "/" not in name and not Path(name).is_file() and (MODELS / name).name == name:
        return (MODELS / name).as_posix()
    path = os.path.relpath(name)
    return Path(os.path.abspath(name) if path.startswith("..") else path).as_posix()


def _unknown(name: str, path: str, lock: Lock) -> str:
    if outs := lock.outs_in(path):
        return f"{path}: a folder of {len(outs)} outputs; name one of them: {', '.join(out.path for out in outs)}"
    if readers := lock.readers(path):
        return f"{path}: an input of the pipeline, made by no stage (read by {', '.join(readers)})"
    models = [Path(out.path).name for out in lock.outs_in(MODELS.as_posix())]
    return (
        f"{name}: not a model or file made by a stage of {LOCK_FILE}, nor a folder with a {CARD_FILE}; "
        f"models: {', '.join(models) or 'none'}"
    )


def _environment(stage: Stage) -> dict[str, Any] | None:
    for path in (Path(out.path) for out in stage.outs):
        recorded = (path / CARD_FILE).is_file() or (path.suffix == ".json" and path.is_file())
        if recorded and (environment := recorded_environment(path)):
            return environment
    return None


def _card_report(model_dir: Path) -> dict[str, Any]:
    card = ModelCard.read(model_dir)
    sources = []
    for role, source in [*card.parents.items(), *card.data.items()]:
        now = source_hash(Path(source.path))
        state = NOT_HERE if now is None else "as recorded" if now == source.sha256 else CHANGED
        sources.append({"role": role, "path": source.path, "sha256": source.sha256, "state": state})
    return {"stage": card.stage, "sources": sources, "params": card.params, "environment": card.environment}
