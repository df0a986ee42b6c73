"""The exported folder: a merged model with its tokenizer and cards, whole or absent."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils import logging

from align.cli.export.merge import Parts, load_merged
from align.cli.export.model_card import SIGNATURE, model_card_text
from align.cli.project.cards import CARD_FILE
from align.cli.project.units import show_size
from align.core.errors import InputError, printable
from align.core.files import replacing
from align.models.base import copy_tokenizer
from align.models.loading import save_model

README = "README.md"
WRITTEN = ("*.json", "*.jinja", "*.safetensors", README, ".gitattributes")  # the last one is the hub's
SHARD_SIZE = "5GB"


def write_export(parts: Parts, to: Path, dtype: torch.dtype | None = None, license_id: str | None = None) -> None:
    """Merge a model and write it to `to`, which must be new or empty; see `load_merged` and `model_card_text`."""
    try:
        to = to.resolve()
        entry = min(to.iterdir(), default=None) if to.exists() else None
    except (OSError, ValueError) as error:
        raise InputError(f"--to {to}: {getattr(error, 'strerror', error)}; name a new folder") from None
    if entry is not None:
        raise InputError(f"--to {to}: holds {entry.name} already; name a new folder, or delete this one first")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = load_merged(parts, dtype)
    model.config.name_or_path = ""
    if parts.score_bias is not None:
        model.config.score_bias = parts.score_bias
        model.config.problem_type = "regression"  # otherwise transformers' pipeline applies a sigmoid to the score
    card = model_card_text(parts, model.dtype, license_id)
    try:
        with replacing(to) as temporary:
            temporary.mkdir()
            save_model(model, temporary, str(parts.base_dir or parts.model_dir), max_shard_size=SHARD_SIZE)
            copy_tokenizer(parts.model_dir, temporary)
            if (parts.model_dir / CARD_FILE).exists():
                (temporary / CARD_FILE).write_bytes((parts.model_dir / CARD_FILE).read_bytes())
            (temporary / README).write_text(card, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--to {to}: cannot write ({error.strerror or error}); name another folder") from None


def is_exported(folder: Path) -> bool:
    """Return whether `align export` wrote a folder, according to its README."""
    try:
        return (folder / "config.json").is_file() and SIGNATURE in (folder / README).read_text(encoding="utf-8")
    except (OSError, ValueError):  # no README, or not UTF-8; a name that is too long
        return False


def exported_files(folder: Path) -> list[Path]:
    """Return the files that belong to an export."""
    return sorted(path for path in folder.iterdir() if path.is_file() and any(map(path.match, WRITTEN)))


def listing(title: str, files: Sequence[Path]) -> str:
    """Return a line with the number and size of the files, and one for each of them."""
    sizes = {file.name: file.stat().st_size for file in files}
    lines = [f"{title}: {len(sizes)} files, {show_size(sum(sizes.values()))}"]
    return "\n".join(map(printable, lines + [f"  {name}  {show_size(size)}" for name, size in sizes.items()]))
