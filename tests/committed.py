"""The project as it is committed, with fixed settings: tests pass whatever a user edits, runs or commits.

A key that is new in params.yaml has to be committed before the tests see it.
"""

import atexit
import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

REPOSITORY = Path(__file__).parent.parent
EDITABLE = ("params.yaml", "dvc.lock", "recipes", "data")  # by users, and by `dvc repro`
# Of each section with a trainer of transformers: nothing is held out of its rows.
VALIDATION = {"eval_fraction": 0.0, "early_stopping_patience": None, "load_best_model_at_end": False}
# What tests assume of params.yaml, where a user may have committed other values.
FIXED: dict[str, Any] = {
    "seed": 17,
    "runtime": {"device": "cpu", "dtype": "float32", "quantization": "none", "optim": "adamw_torch"}
    | {"num_threads": 1, "batch_size": 8},
    "base_model": {"revision": None, "pad_token": "<|endoftext|>", "eos_token": None, "chat_template": "chatml"},
    "sources": {},
    "prepare_data": {"instructions": "data/seed/instructions.jsonl", "instructions_format": "auto"}
    | {"judgements": "data/seed/judgements.jsonl", "judgements_format": "scores"}
    | {"preferences": "data/seed/preferences.jsonl", "preferences_format": "auto", "unusable_preferences": "error"}
    | {"eval_prompts": "data/seed/eval_prompts.jsonl", "checked_prompts": "data/seed/checked_prompts.jsonl"}
    | {"max_instructions": None, "max_judgements": None, "max_preferences": None, "max_checked_prompts": None}
    | {"off_topic_negatives": 1},
    "lora": {"lora_dropout": 0.0, "target_modules": "all-linear", "layers_to_transform": None},
    "eft": VALIDATION,
    "sft": VALIDATION | {"attn_implementation": None, "packing": False, "padding_free": False},
    "iterations": {"m1": "m0", "m2": "m1"},
    "generation": {"backend": "transformers", "max_batch_tokens": None, "launch": "python"},
    "judge": {"model": "m0", "use_parent": True, "mode": "logits"},
    "build_preferences": {"chosen_must_end": False, "length_rho": 0.0, "max_length_gap": None},  # few tiny replies end
    "dpo": VALIDATION
    | {"beta": 0.1, "nll_coef": 0.0, "reference": "previous", "loss_type": ["sigmoid"], "loss_weights": None}
    | {"label_smoothing": 0.0, "ld_alpha": None, "use_weighting": False}
    | {"desirable_weight": 1.0, "undesirable_weight": 1.0, "attn_implementation": None},
    "offline_dpo": VALIDATION
    | {"init": "m0", "loss_type": ["sigmoid"], "loss_weights": None, "reference": "previous"}
    | {"label_smoothing": 0.0, "nll_coef": 0.0, "ld_alpha": None, "data": "data/prepared/preferences/train.jsonl"}
    | {"use_weighting": False, "desirable_weight": 1.0, "undesirable_weight": 1.0, "attn_implementation": None},
    "reward_model": VALIDATION | {"init": "m0", "use_margin": False, "truncated_negatives": 1},
    "ppo": {"init": "m0", "prompts": "data/prepared/prompts.jsonl", "rewards": [{"model": "reward", "weight": 1.0}]}
    | {"advantage": "rloo", "num_generations": 2, "kl_coef": 0.05}
    | {
        "truncated": {"mode": "keep", "value": None, "soft_punish_cache": None},
        "adaptive_kl_target": None,
        "target_kl": None,
        "warmup_steps": 0.0,
    },
    "text": VALIDATION | {"train": "data/seed/tweets_train.jsonl", "test": "data/seed/tweets_test.jsonl"},
}
CONFIG = "[core]\n    analytics = false\n    autostage = false\n    check_update = false\n"  # no remote of a user's


def archive(folder: Path, *names: str) -> bool:
    """Write HEAD's version of these files and folders (of all, if none is named); return False if there is no git."""
    command = ["git", "archive", "HEAD", "--", *names]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False)
    if result.returncode == 0:
        with tarfile.open(fileobj=io.BytesIO(result.stdout)) as tar:
            tar.extractall(folder, filter="data")
    return result.returncode == 0


def committed_params(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the committed params with FIXED and `changes`: {"seed": 18, "ppo": {"num_updates": 6}}."""
    values: dict[str, Any] = YAML(typ="safe").load(COMMITTED / "params.yaml")
    for change in (FIXED, changes or {}):
        for section, new in change.items():
            merged = isinstance(new, Mapping) and section not in ("sources", "iterations")
            values[section] = values[section] | new if merged else new
    return values


def write_params(folder: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """Write `committed_params(changes)` to params.yaml in a folder; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    YAML().dump(committed_params(changes), folder / "params.yaml")
    return folder / "params.yaml"


def copy_project(folder: Path) -> None:
    """Copy the code of the working tree and what is committed of recipes and data, without params.yaml and dvc.lock."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in listed:
        if (REPOSITORY / name).is_file() and Path(name).parts[0] not in EDITABLE:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, folder / name)
    for name in ("recipes", "data"):
        shutil.copytree(COMMITTED / name, folder / name)
    (folder / ".dvc/config").write_text(CONFIG, encoding="utf-8")


_temporary = Path(tempfile.mkdtemp(prefix="committed-"))
atexit.register(shutil.rmtree, _temporary, ignore_errors=True)
COMMITTED = _temporary if archive(_temporary, *EDITABLE) else REPOSITORY  # the folder with the committed EDITABLE
PARAMS_YAML = write_params(_temporary / "fixed")
