"""A small workspace in which every stage runs, for the broken inputs to break, and the hands that break it."""

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner, Result
from peft import get_peft_model
from ruamel.yaml import YAML
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from align.models.adapters import LoraSettings, save_adapter
from align.models.base import copy_tokenizer, load_base
from align.run.runtime import RuntimeSettings
from stages.base_model import BaseModelSettings, load
from tests.committed import write_params
from tests.factories import build_tiny_source

Break = Callable[[], None]  # breaks the workspace that is the working directory
RUNTIME = {
    "device": "cpu",
    "dtype": "float32",
    "quantization": "none",
    "optim": "adamw_torch",
    "num_threads": 1,
    "batch_size": 8,
}
MODELS = ("base", "m0", "m1", "dpo", "ppo")


@dataclass(frozen=True)
class Case:
    """A broken input, the command that reads it, and what the message must name."""

    kind: str  # a row of the table in docs/DATA.md
    name: str
    command: str  # `prepare_data`, `judge m1 m0`, `align diff a b`
    breaks: Break
    says: tuple[str, ...]


# What each data file of the workspace holds; prompts are few and short.
INSTRUCTIONS = [
    {"id": f"i{n}", "category": "c", "prompt": f"Name {n} things that are red.", "completion": "A rose."}
    for n in range(1, 13)
]
JUDGEMENTS = [
    {"question_id": f"q{n}", "category": "c", "prompt": f"What is {n} + 1?", "response": f"It is {n + s}.", "score": s}
    for n in range(1, 7)
    for s in range(6)
]
TRANSCRIPTS = [
    {"chosen": f"\n\nHuman: Is {n} odd?\n\nAssistant: Look.", "rejected": f"\n\nHuman: Is {n} odd?\n\nAssistant: No."}
    for n in range(1, 9)
]
EVAL_PROMPTS = [{"id": f"e{n}", "category": "c", "turns": [f"Tell me about the number {n}."]} for n in range(1, 4)]
CHECKED_PROMPTS = [
    {"id": f"c{n}", "prompt": f"Say {n} in words.", "checks": [{"kind": "words", "min": 1, "max": 9}]}
    for n in range(1, 4)
]
PROMPTS = [{"id": f"p{n}", "messages": [{"role": "user", "content": f"Count to {n}."}]} for n in range(1, 4)]
PAIRS = [{**row, "chosen": "One, two.", "rejected": "No."} for row in PROMPTS]
RESPONSES = [
    {"id": f"p{n}", "sample": s, "prompt": f"Count to {n}.", "response": f"One {s}", "finish_reason": "stop"}
    | {"num_tokens": 3}
    for n in range(1, 4)
    for s in range(2)
]
SCORES = [
    row
    | {"score": 1.0 + 2 * int(str(row["sample"])), "failure": None, "digit_mass": 0.9, "entropy": 0.1}
    | {"judgements": []}
    for row in RESPONSES
]
KNOWN = [{"prompt": row["prompt"], "source": "seed"} for row in INSTRUCTIONS]
ANSWERS = [
    {"id": f"e{n}", "category": "c", "turn": 1, "prompt": f"Tell me about {n}.", "response": "It is.", "num_tokens": 3}
    | {
        "finish_reason": "stop",
        "judge_score": 2.5,
        "judge_failure": None,
        "reward": 0.5,
        "kl_to_base": 0.1,
        "kl_to_m0": 1.5,
    }
    for n in range(1, 4)
]
CHECKED = [
    {"id": f"c{n}", "prompt": f"Write {n} words.", "response": "It is.", "finish_reason": "stop", "num_tokens": 3}
    | {"strict": [n == 2], "loose": [n == 2]}
    for n in range(1, 4)
]
ANCHORS = [
    {"question_id": row["question_id"], "number": row["score"], "score": row["score"], "predicted": 2.5}
    | {"failure": None}
    for row in JUDGEMENTS[:12]
]
SAMPLES = [
    {"id": "p1", "update": u, "prompt": "Count to 1.", "response": "One", "finish_reason": "stop", "score": 0.1}
    for u in range(2)
]
AGREEMENT = {"failures": 0, "exact_match": 0.5, "five_best": None, "pairwise_accuracy": 0.9} | {
    "pairwise_accuracy_low": 0.8,
    "pairwise_accuracy_high": 1.0,
    "spearman": 0.5,
    "kendall": 0.4,
}
MEASURES = {
    **{"judge_score": 2.5, "judge_failures": 0, "reward": 0.5, "reward_of_ended": None, "response_tokens": 3.0},
    **{
        "ended_share": 1.0,
        "distinct_2": 1.0,
        "kl_to_base": 0.1,
        "kl_to_m0": 1.5,
    },
    **{"weights": "0" * 64, "environment": {"device": "cpu"}},
}
SCORE_COUNTS = {
    **{"judge": "m0", "rows": 6, "mean_score": 2.0, "std": 1.0, "mode_share": 0.5, "failure_rate": 0.0, "failures": {}},
    "histogram": [0, 0, 1, 1, 1, 0, 1, 1, 1, 0],
    **{"score_length_correlation": None, "as_judge": AGREEMENT, "relevance": {"accuracy": 0.5}},
}
PROMPT_COUNTS = {"accepted": 3, "dropped": {"cut off": 1}, "mean_words": 3.0} | {
    "nearest_known_rouge_l": 0.2,
    "distinct_2": 0.9,
}
DATA_SET_CHANGE = {"rows": 3, "added": 1, "removed": 0, "changed": 0, "mean": {"score": 2.0}, "change": {}}
PAIR_COUNTS = {
    **{"pairs": 3, "pair_yield": 1.0, "mean_margin": 2.0, "mean_words_chosen": 2.0, "mean_words_rejected": 2.0},
    **{"margin_length_correlation": None, "accepted": 1, "ift": 13},
}
ACCURACY = {"pairs": 3, "accuracy": 0.5, "accuracy_low": 0.2, "accuracy_high": 0.8}
REWARD = {**ACCURACY, "train_pairs": 3, "by_length": {"like lengths": ACCURACY}, "calibration_error": 0.1} | {
    "truncated_negatives": 3,
    "truncation_gap": 0.5,
    "score_length_correlation": None,
    "margin_length_correlation": None,
}
HISTORY = "update,mean_reward,mean_score,kl,eos_rate,response_tokens,clip_fraction\n1,0.1,0.1,0.0,0.5,4,0.0\n"
LOSSES = "step,loss\n1,0.7\n2,0.6\n"
CALIBRATION = "predicted,observed,pairs\n0.6,0.5,3\n"
TRUNCATED = {"mode": "score", "value": -3.0, "soft_punish_cache": None}
# Small settings.
SETTINGS: dict[str, dict[str, Any]] = {
    "iterations": {"m1": "m0"},
    "runtime": RUNTIME,
    "base_model": {"source": "source", "pad_token": "<|endoftext|>", "chat_template": "chatml"},
    "lora": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "layers_to_transform": None},
    "eft": {"max_length": 1024},
    "generate_prompts": {"num_prompts": 2, "max_new_tokens": 8, "max_rounds": 1},
    "generate_responses": {"num_responses": 2, "max_new_tokens": 4},
    "judge": {"min_digit_mass": 0.0},
    "ppo": {"num_updates": 1, "rollout_batch_size": 2, "mini_batch_size": 2, "per_device_train_batch_size": 2}
    | {"advantage": "gae", "num_generations": 1, "value_layers": None, "max_new_tokens": 4, "truncated": TRUNCATED},
    "evaluate": {"max_new_tokens": 4, "checks_max_new_tokens": 4},
}


def build(root: Path) -> Path:
    """Write the workspace to `root`."""
    root.mkdir()
    build_tiny_source(root / "source")
    settings = BaseModelSettings(
        source=str(root / "source"), revision=None, pad_token="<|endoftext|>", chat_template="chatml"
    )
    model, tokenizer = load(settings, torch.float32)
    base = root / "models/base"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    _write_adapters(root)
    write_files(root)
    return root


def write_files(root: Path) -> None:
    """Write the workspace's params and data to `root`."""
    write_params(root, SETTINGS)
    rows: dict[str, Sequence[Mapping[str, object]]] = {
        "seed/instructions": INSTRUCTIONS,
        "seed/judgements": JUDGEMENTS,
        "seed/preferences": TRANSCRIPTS,
        "seed/eval_prompts": EVAL_PROMPTS,
        "seed/checked_prompts": CHECKED_PROMPTS,
        "m0/ift": INSTRUCTIONS,
        "m0/eft": JUDGEMENTS,
        "m0/known_prompts": KNOWN,
        "prepared/preferences/train": PAIRS,
        "prepared/preferences/test": PAIRS,
        "prepared/prompts": PROMPTS,
        "prepared/eval/prompts": EVAL_PROMPTS,
        "prepared/eval/checked_prompts": CHECKED_PROMPTS,
        "prepared/eval/judgements": JUDGEMENTS,
        "m1/prompts": PROMPTS,
        "m1/responses": RESPONSES,
        "m1/scores": SCORES,
        "m1/preferences": PAIRS,
        "m1/ift": INSTRUCTIONS,
        "ppo/samples": SAMPLES,
        **{f"eval/{name}": ANSWERS for name in MODELS},
        "metrics/m1/anchors": ANCHORS,
        **{f"eval/{name}.checks": CHECKED for name in MODELS},
    }
    texts = {f"{name}.jsonl": "".join(json.dumps(row) + "\n" for row in found) for name, found in rows.items()}
    values = {"metrics/m1/scores": SCORE_COUNTS, "metrics/m1/prompts": PROMPT_COUNTS} | {
        "metrics/m1/preferences": PAIR_COUNTS,
        "metrics/reward": REWARD,
        "diff/m1": {"ift": DATA_SET_CHANGE},
        **{f"eval/{name}": MEASURES for name in MODELS},
    }
    texts |= {f"{name}.json": json.dumps(value) for name, value in values.items()}
    texts |= {"ppo/history.csv": HISTORY, "reward/calibration.csv": CALIBRATION}
    trained = (
        "m0/eft_history",
        "m0/sft_history",
        "metrics/m1/dpo_history",
        "metrics/dpo/dpo_history",
        "reward/history",
    )
    texts |= {f"{name}.csv": LOSSES for name in trained}
    for name, text in texts.items():
        path = root / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _write_adapters(root: Path) -> None:
    runtime = RuntimeSettings.model_validate(RUNTIME)
    lora = LoraSettings(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", layers_to_transform=None)
    for name in ("m0", "reward"):
        torch.manual_seed(len(name))
        if name == "reward":
            base = load_base(root / "models/base", runtime, AutoModelForSequenceClassification, num_labels=1)
            config = lora.config(task_type="SEQ_CLS", modules_to_save=["score"])
        else:
            base = load_base(root / "models/base", runtime, AutoModelForCausalLM)
            config = lora.config(task_type="CAUSAL_LM")
        save_adapter(get_peft_model(base, config), root / "models" / name)
        copy_tokenizer(root / "models/base", root / "models" / name)
    (root / "models/reward/score_bias.json").write_text('{"score_bias": 0.5}')


def run(command: str) -> Result:
    """Run a stage, or `align`, in this process as its command line."""
    name, *arguments = command.split()
    module = importlib.import_module("align.cli.main" if name == "align" else f"stages.{name}")
    return CliRunner().invoke(module.main, arguments)


def contents(root: Path) -> dict[str, str]:
    """Return what each file under `root` holds, as a hash, but for `.align/`, which no stage reads."""
    found = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in (".align", "__pycache__")]
        for name in [*folders, *files]:
            path = Path(folder) / name
            kind = "link" if path.is_symlink() else "folder" if path.is_dir() else "pipe" if path.is_fifo() else "file"
            data = path.read_bytes() if kind == "file" else b""
            found[path.relative_to(root).as_posix()] = kind + hashlib.sha256(data).hexdigest()
    return found


def put(path: str, content: str | bytes) -> Break:
    """Let `path` hold `content`."""
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")

    def act() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)

    return act


def line(path: str, number: int, content: str | bytes) -> Break:
    """Put `content` in place of a line of `path`, counted from 1."""
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")

    def act() -> None:
        lines = Path(path).read_bytes().split(b"\n")
        lines[number - 1] = data
        Path(path).write_bytes(b"\n".join(lines))

    return act


def row(path: str, number: int, **changes: object) -> Break:
    """Change keys of the object in a line of a JSONL file."""

    def act() -> None:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        lines[number - 1] = json.dumps({**json.loads(lines[number - 1]), **changes})
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")

    return act


def without(path: str, *keys: str) -> Break:
    """Take a key, named by the keys that lead to it, out of a JSON file, or out of the first row of a JSONL file."""

    def act() -> None:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
        value = inner = json.loads(lines[0] if path.endswith("l") else "\n".join(lines))
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        lines = [json.dumps(value), *lines[1:]] if path.endswith("l") else [json.dumps(value)]
        Path(path).write_text("\n".join(lines), encoding="utf-8")

    return act


def value(path: str, *keys: str, to: object) -> Break:
    """Set a key, named by the keys that lead to it, of a JSON file."""

    def act() -> None:
        whole = inner = json.loads(Path(path).read_text(encoding="utf-8"))
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to
        Path(path).write_text(json.dumps(whole), encoding="utf-8")

    return act


def param(key: str, to: object) -> Break:
    """Set a key of params.yaml, such as `ppo.kl_coef`."""

    def act() -> None:
        params = YAML(typ="safe").load(Path("params.yaml"))
        section, _, name = key.partition(".")
        inner, last = (params[section], name) if name else (params, section)
        if "." in last:
            middle, _, last = last.partition(".")
            inner = inner[middle]
        inner[last] = to
        with Path("params.yaml").open("w") as stream:
            YAML().dump(params, stream)

    return act


def both(*breaks: Break) -> Break:
    """Do one after the other."""

    def act() -> None:
        for one in breaks:
            one()

    return act


def nothing() -> None:
    """Leave the workspace as it is: what is wrong is on the command line."""
