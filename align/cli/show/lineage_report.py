"""A lineage as text: what made the target, and under it the tree of what that was made from."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from align.cli.project.dvc import AS_LOCKED
from align.cli.project.git import Revision
from align.cli.show.lineage import CardReport, CardSource, Code, Lineage, Node, Run

SHORT = 12  # characters of a hash
WIDTH = 120
NOT_RECORDED = "not recorded"


def report(lineage: Lineage, code: bool = False) -> Iterator[str]:
    """Yield the lines of a lineage; with `code`, each file of the target's code with its hash."""
    target, card = lineage.target, lineage.card
    if target is None or target.stage is None:
        yield f"{lineage.name}  in no stage of dvc.lock: its model card is all that tells of it"
    else:
        run = lineage.runs[target.stage]
        yield f"{target.path}  {_hash(target.hash)}  {_state(target)}"
        yield from _field("stage", f"{run.stage}: {run.command}")
        yield from _field("revision", show_revision(run.revision))
        yield from _field("code", _code(run.code))
        if code:
            yield from (f"               {_hash(value)}  {path}" for path, value in run.code.files.items())
        yield from _params(run.params)
        if card is None:
            yield from _field("environment", show_environment(run.environment))
    if card is not None:
        yield from _card(card)
    if target is not None and target.stage is not None:
        yield "  made from"
        yield from _tree(lineage.runs[target.stage].inputs, lineage.runs, {target.stage}, "    ")


def show_revision(revision: Revision) -> str:
    """Return a revision in words."""
    if revision.commit is None:
        return "not committed"
    return revision.commit if revision.committed else f"{revision.commit}; dvc.lock has a later run, not committed"


def show_environment(environment: Mapping[str, Any] | None) -> str:
    """Return an environment in one line."""
    if environment is None:
        return NOT_RECORDED
    return ", ".join(f"{key} {value}" for key, value in environment.items())


def _tree(nodes: list[Node], runs: Mapping[str, Run], told: set[str], indent: str) -> Iterator[str]:
    for node in nodes:
        line = f"{indent}{node.path}  {_hash(node.hash)}  {_state(node)}"
        if node.parts:
            yield f"{line}  a folder of {len(node.parts)} outs"
            yield from _tree(list(node.parts), runs, told, indent + "  ")
        elif node.stage is None:
            yield f"{line}  no stage makes it"
        elif node.stage in told:
            yield f"{line}  <- {node.stage} (above)"
        else:
            run = runs[node.stage]
            told.add(node.stage)
            revision, changed = show_revision(run.revision), len(run.code.changed)
            code = f", {changed} of its {len(run.code.files)} code files changed since" if changed else ""
            yield f"{line}  <- {node.stage} ({revision}{code})"
            yield from _tree(run.inputs, runs, told, indent + "  ")


def _card(card: CardReport) -> Iterator[str]:
    yield f"  model card, written by {card.stage}"
    sources = [*card.parents, *card.data]
    widths = [max((len(text) for text in column), default=0) for column in zip(*map(_cells, sources), strict=True)]
    for source in sources:
        cells = [cell.ljust(width) for cell, width in zip(_cells(source), widths, strict=True)]
        yield "    " + "  ".join(cells).rstrip()
    seed = card.params.get("seed", NOT_RECORDED)
    yield from _field("seed", str(seed), "    ")
    yield from _field("environment", show_environment(card.environment), "    ")


def _cells(source: CardSource) -> tuple[str, ...]:
    return source.role, source.path, _hash(source.sha256), source.state


def _params(params: Mapping[str, Any]) -> Iterator[str]:
    sections: dict[str, list[str]] = {}
    for key, value in params.items():
        section, _, rest = key.partition(".")
        sections.setdefault(section, []).append(f"{rest}={value}" if rest else str(value))
    for number, (section, values) in enumerate(sections.items()):
        yield from _field("" if number else "params", f"{section}: {' '.join(values)}")


def _field(name: str, text: str, indent: str = "  ") -> Iterator[str]:
    head = f"{indent}{name:<13}"
    lines = textwrap.wrap(text, WIDTH - len(head), break_long_words=False, break_on_hyphens=False) or [""]
    for number, line in enumerate(lines):
        yield (head if number == 0 else " " * len(head)) + line


def _code(code: Code) -> str:
    if not code.files:
        return "none"
    text = f"{_hash(code.hash)} over {len(code.files)} files"
    return f"{text}; changed since: {', '.join(code.changed)}" if code.changed else f"{text}, all as now"


def _state(node: Node) -> str:
    if node.newer is None:
        return node.state
    state = "" if node.state == AS_LOCKED else f"{node.state}; "
    return f"{state}of an older run: {node.stage} has written {_hash(node.newer)} since"


def _hash(value: str) -> str:
    return value[:SHORT]
