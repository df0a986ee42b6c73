"""What made a model or a file, up to the seeds: from dvc.lock, the model cards, git and the files themselves."""

import os
from dataclasses import asdict, dataclass, field
from hashlib import md5
from pathlib import Path
from typing import Any

from align.cli.project.cards import CARD_FILE, ModelCard, recorded_environment, source_hash
from align.cli.project.dvc import AS_LOCKED, CHANGED, NOT_HERE, DvcFiles
from align.cli.project.git import Revision, Revisions
from align.cli.project.lock_file import LOCK_FILE, Item, Lock, Stage
from align.core.errors import InputError

MODELS = Path("models")
AS_RECORDED = "as recorded"


@dataclass(frozen=True)
class Node:
    """A file or folder in the lineage, with the hash that the run used."""

    path: str
    hash: str
    size: int  # bytes
    state: str  # of what lies there now
    stage: str | None = None  # what made it
    newer: str | None = None  # the hash that this stage has written since
    parts: tuple["Node", ...] = ()  # of a folder of outs


@dataclass(frozen=True)
class Code:
    """The code and templates of a run: one hash over all, and what each file was."""

    hash: str
    files: dict[str, str]  # by path, their MD5
    changed: list[str]


@dataclass(frozen=True)
class Run:
    """A stage's run, as dvc.lock has it."""

    stage: str
    command: str
    revision: Revision
    params: dict[str, Any]
    code: Code
    inputs: list[Node]
    environment: dict[str, Any] | None  # None: recorded nowhere


@dataclass(frozen=True)
class CardSource:
    """An entry of a model card, checked against what lies there now."""

    role: str
    path: str
    sha256: str
    state: str


@dataclass(frozen=True)
class CardReport:
    """A model card, checked."""

    stage: str
    parents: list[CardSource]
    data: list[CardSource]
    params: dict[str, Any]
    environment: dict[str, Any] | None


@dataclass
class Lineage:
    """All that `align show` tells. `target` is None for a model that no stage of dvc.lock made: its card is all."""

    name: str
    target: Node | None
    card: CardReport | None
    runs: dict[str, Run] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)


def trace(name: str) -> Lineage:
    """Return the lineage of a model (`m1`, `models/m1`) or of a file that a stage wrote.

    Raises:
        InputError: there is no such thing, or what tells of it cannot be read.
    """
    path = _path(name)
    card = _card_report(Path(path)) if (Path(path) / CARD_FILE).is_file() else None
    if card is not None and not LOCK_FILE.is_file():
        return Lineage(path, None, card)
    lock = Lock.read()
    found = lock.maker(path)
    if found is None:
        if card is not None:
            return Lineage(path, None, card)
        raise InputError(_unknown(name, path, lock))
    tracer = _Tracer(lock)
    stage, out = found
    target = tracer.node(out)
    tracer.follow(stage.name)
    return Lineage(path, target, card, tracer.runs)


class _Tracer:
    def __init__(self, lock: Lock) -> None:
        self.lock, self.files, self.revisions = lock, DvcFiles(), Revisions(lock)
        self.runs: dict[str, Run] = {}
        self.states: dict[Item, str] = {}

    def follow(self, name: str) -> None:
        """Add the run of a stage and of all before it."""
        if name in self.runs:
            return
        stage = self.lock.stages[name]
        inputs = [self.node(item) for item in dict.fromkeys(stage.inputs)]  # m1's parent and m0 are one
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
        if item not in self.states:
            self.states[item] = self.files.state(item)
        found = self.lock.maker(item.path)
        parts = () if found else tuple(self.node(out) for out in self.lock.outs_in(item.path))
        newer = None
        if found and found[1].path == item.path and found[1].hash != item.hash:
            newer = found[1].hash
        stage = found[0].name if found else None
        return Node(item.path, item.hash, item.size, self.states[item], stage, newer, parts)

    def _code(self, stage: Stage) -> Code:
        lines = "".join(f"{item.path} {item.hash}\n" for item in stage.code)
        changed = []
        for item in stage.code:
            if item not in self.states:
                self.states[item] = self.files.state(item)
            if self.states[item] != AS_LOCKED:
                changed.append(item.path)
        return Code(md5(lines.encode()).hexdigest(), {item.path: item.hash for item in stage.code}, changed)


def _path(name: str) -> str:
    """Return the path that is meant, relative to the working directory where it is in it."""
    if "/" not in name and not Path(name).is_file() and (MODELS / name).name == name:
        return (MODELS / name).as_posix()
    path = os.path.relpath(name)
    return Path(os.path.abspath(name) if path.startswith("..") else path).as_posix()


def _unknown(name: str, path: str, lock: Lock) -> str:
    outs = [out.path for out in lock.outs_in(path)]
    if outs:
        return f"{path}: a folder of {len(outs)} outs; name one of them: {', '.join(outs)}"
    readers = lock.readers(path)
    if readers:
        return f"{path}: no stage makes it, the pipeline starts from it (read by {', '.join(readers)})"
    models = [Path(out.path).name for out in lock.outs_in(MODELS.as_posix())]
    return (
        f"{name}: no model or file that a stage of {lock.path} made, and no folder with a {CARD_FILE}; "
        f"models: {', '.join(models) or 'none'}"
    )


def _environment(stage: Stage) -> dict[str, Any] | None:
    for out in stage.outs:
        path = Path(out.path)
        if (path / CARD_FILE).is_file() or (path.suffix == ".json" and path.is_file()):
            found = recorded_environment(path)
            if found is not None:
                return found
    return None


def _card_report(model_dir: Path) -> CardReport:
    card = ModelCard.read(model_dir)

    def check(role: str, path: str, recorded: str) -> CardSource:
        now = source_hash(Path(path))
        state = NOT_HERE if now is None else AS_RECORDED if now == recorded else CHANGED
        return CardSource(role, path, recorded, state)

    return CardReport(
        card.stage,
        [check(role, source.path, source.sha256) for role, source in card.parents.items()],
        [check(role, source.path, source.sha256) for role, source in card.data.items()],
        card.params,
        card.environment,
    )
