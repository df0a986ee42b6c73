"""Models of full weights (`lora: null`): what they compute, what is shared in memory, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainingArguments

from align.backends.choose import GenerationSettings, open_generator
from align.cli.export.merge import find_model, load_merged
from align.core.errors import InputError
from align.core.params import Params
from align.generation.generator import Completion
from align.generation.local import TorchGenerator
from align.judge.trainer import JudgeTrainer
from align.models.adapters import LoraSettings
from align.models.base import copy_tokenizer, load_tokenizer
from align.models.frozen import frozen_linears
from align.models.full import load_full, put_model, save_trained, start_model, state_of
from align.models.stack import AdapterStack, decoder_layers
from align.reward.scoring import packed_scorer, reward_scores
from align.reward.training import reward_start
from align.run.runtime import RuntimeSettings
from align.training.trainer import training_arguments
from stages.evaluate import response_kl
from tests.committed import committed_params, write_params
from tests.factories import embeddings
from tests.ppo.tiny import trainer
from tests.training.test_resume import SETTINGS

IDS = torch.tensor([[1, 40, 41, 42, 43, 44]])
ROWS = [[1, 40, 41, 42, 43, 2], [1, 50, 51, 2], [1, 60, 61, 62, 63, 64, 65, 2]]
MakeFull = Callable[..., Path]


@pytest.fixture
def make_full(tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path) -> MakeFull:
    """Return a function that writes a full model, the base with noise on all weights, and returns its folder."""

    def make(name: str, seed: int, score: bool = False, dtype: str = "float32") -> Path:
        torch.manual_seed(seed)
        model = start_model(tiny_base, tiny_base, runtime, None, score=score)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
        save_trained(model, tmp_path / name, runtime.model_copy(update={"dtype": dtype}))
        copy_tokenizer(tiny_base, tmp_path / name)
        return tmp_path / name

    return make


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=IDS).logits
    return result


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_model_is_what_plain_transformers_loads_in_the_runs_dtype(make_full: MakeFull, dtype: str) -> None:
    folder, again = make_full("m0", 1, dtype=dtype), make_full("again", 1, dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert str(model.dtype) == f"torch.{dtype}"
    assert {file.name for file in folder.glob("*.safetensors")} == {"model.safetensors"}
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert files == {file.name: file.read_bytes() for file in again.iterdir()}
    assert str(folder.parent).encode() not in b"".join(data for name, data in files.items() if name.endswith(".json"))


def test_a_full_model_computes_its_own_weights_beside_base_and_adapters(
    make_full: MakeFull, tiny_base: Path, runtime: RuntimeSettings, make_adapter: Callable[..., Path]
) -> None:
    adapter, folders = make_adapter("adapter", 1), {"m0": make_full("m0", 1), "m1": make_full("m1", 2)}
    stack = AdapterStack(tiny_base, runtime)
    alone = AdapterStack(tiny_base, runtime)
    alone.add("adapter", adapter)
    for name, folder in {"base": tiny_base, **folders, "adapter": adapter, "judge": folders["m0"]}.items():
        stack.add(name, folder)
    with alone.using("adapter") as model:
        expected = {"adapter": logits(model)}
    for name, folder in {"base": tiny_base, **folders, "judge": folders["m0"]}.items():
        expected[name] = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    assert float((expected["m0"] - expected["m1"]).abs().max()) > 0.1
    for name in (*expected, *expected):
        with stack.using(name) as model:
            torch.testing.assert_close(logits(model), expected[name], rtol=1e-4, atol=1e-4)
            with torch.no_grad(), frozen_linears(model, torch.float32):
                torch.testing.assert_close(logits(model), expected[name], rtol=1e-4, atol=1e-4)


def test_a_folder_is_in_memory_once_but_for_what_can_be_trained(
    make_full: MakeFull, tiny_base: Path, runtime: RuntimeSettings
) -> None:
    stack, folder = AdapterStack(tiny_base, runtime), make_full("m0", 1)
    for name in ("judge", "m0"):
        stack.add(name, folder)
    stack.add("policy", folder, float32=True)
    models = {}
    for name in ("judge", "m0", "policy"):
        with stack.using(name) as model:
            models[name] = model
    assert models["judge"] is models["m0"] is not models["policy"]
    assert [stack.first_layer(name) for name in models] == [0, 0, 0]
    with torch.no_grad():
        stack.parameters("policy")[0].zero_()
    assert torch.equal(embeddings(models["m0"]), embeddings(load_full(folder, runtime)))


def test_the_parameters_from_a_layer_on_are_those_that_change_what_is_above_its_input(
    make_full: MakeFull, tiny_base: Path, runtime: RuntimeSettings
) -> None:
    stack = AdapterStack(tiny_base, runtime)
    stack.add("value", make_full("reward", 1, score=True), float32=True)
    with stack.using("value") as model:
        whole, upper = stack.parameters("value"), stack.parameters("value", 1)
        score = [value for key, value in model.named_parameters() if key.startswith("score.")]
        assert len(whole) == len(list(model.parameters())) - len(score)
        assert len(upper) == len(list(decoder_layers(model)[1].parameters())) + 1  # and the norm
        for parameter in upper:
            parameter.requires_grad_(True)
        with stack.recording({1}, "value") as states:
            before = model.base_model(input_ids=IDS).last_hidden_state
        with stack.entering(1, states[1].detach(), "value"):
            after = model.base_model(input_ids=IDS).last_hidden_state
        assert torch.equal(before, after)
        with stack.entering(1, 2 * states[1].detach(), "value"):
            assert not torch.equal(model.base_model(input_ids=IDS).last_hidden_state, after)


def test_the_scores_are_those_of_the_classifier_that_transformers_loads(
    make_full: MakeFull, tiny_base: Path, runtime: RuntimeSettings
) -> None:
    folder = make_full("reward", 1, score=True)
    (folder / "score_bias.json").write_text('{"score_bias": 0.5}')
    stack = AdapterStack(tiny_base, runtime)
    stack.add("reward", folder)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    assert classifier.score.weight.shape[0] == 1
    with torch.no_grad():
        expected = [float(classifier(input_ids=torch.tensor([row])).logits) + 0.5 for row in ROWS]
    eos = stack.tokenizer.eos_token_id
    assert all(row[-1] == eos for row in ROWS)
    assert reward_scores(stack, "reward", ROWS, batch_size=2) == pytest.approx(expected, abs=1e-4)
    with packed_scorer(stack, "reward") as score:
        assert score(ROWS[:2]) == pytest.approx(expected[:2], abs=1e-4)
    parts = find_model(str(folder))
    assert (parts.score_bias, parts.base_dir) == (0.5, None)
    with torch.no_grad():
        assert float(load_merged(parts)(input_ids=torch.tensor([ROWS[0]])).logits) == pytest.approx(expected[0] - 0.5)


def test_the_kl_between_models_that_share_no_layer_is_exact(
    make_full: MakeFull, tiny_base: Path, runtime: RuntimeSettings, make_adapter: Callable[..., Path]
) -> None:
    stack, folders = AdapterStack(tiny_base, runtime), {"subject": make_full("m1", 2), "m0": make_full("m0", 1)}
    for name, folder in {**folders, "base": tiny_base, "adapter": make_adapter("adapter", 1, layers=[1])}.items():
        stack.add(name, folder)
    prompt, answer, references = [5, 9, 30], [11, 12, 2], ["base", "m0", "adapter"]
    layer = min(map(stack.first_layer, ("subject", *references)))
    with stack.using("subject") as model, stack.recording({layer}, "subject") as states, torch.no_grad():
        model(input_ids=torch.tensor([prompt + answer]))
    found = response_kl(stack, [prompt], [Completion(answer, "", "stop")], references, layer, [states[layer][0]])
    logprobs = {}
    for name in ("subject", *references):
        with stack.using(name) as model, torch.no_grad():
            logprobs[name] = model(input_ids=torch.tensor([prompt + answer])).logits[0, 2:-1].double().log_softmax(-1)
    for name, [value] in zip(references, found, strict=True):
        expected = (logprobs["subject"].exp() * (logprobs["subject"] - logprobs[name])).sum()
        assert value == pytest.approx(float(expected), rel=1e-3)
        assert value > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_ppo_trains_every_weight_of_the_policy_and_no_other_model(
    dtype: Any, checkpointing: bool, make_full: MakeFull, tiny_base: Path, runtime: RuntimeSettings
) -> None:
    runtime = runtime.model_copy(update={"dtype": dtype})
    m0, reward = make_full("m0", 1, dtype=dtype), make_full("reward", 2, score=True, dtype=dtype)
    results = []
    for _ in range(2):
        stack = AdapterStack(tiny_base, runtime)
        for name, folder in {"policy": m0, "reference": m0, "reward": reward, "value": reward}.items():
            stack.add(name, folder, float32=name != "reward")
        ppo = trainer(stack, value_layers=1, gradient_checkpointing=checkpointing, num_updates=2)
        before = {
            name: [value.clone() for value in stack.parameters(name)] for name in ("policy", "reference", "reward")
        }
        lower = [value for value in stack.parameters("value") if not value.requires_grad]
        ppo.step()  # which checks that policy and reference are equal, and that a forward gives what the rollout did
        results.append([ppo.step(), [value.tolist() for value in stack.parameters("policy")]])
        changed = {
            name: [not torch.equal(*pair) for pair in zip(old, stack.parameters(name), strict=True)]
            for name, old in before.items()
        }
        assert all(changed["policy"])
        assert not any(changed["reference"] + changed["reward"])
        assert len(lower) == len(list(decoder_layers(ppo.stack.causal_lm)[0].parameters())) + 1
        assert all(value.grad is None for value in lower)
        stack.save("policy", tiny_base.parent / f"ppo-{dtype}")
        saved = load_file(tiny_base.parent / f"ppo-{dtype}/model.safetensors")
        assert {value.dtype for value in saved.values()} == {getattr(torch, dtype)}
    assert results[0] == results[1]


def test_a_generator_of_a_full_model_keeps_no_base_in_memory(
    make_full: MakeFull, tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/m0").symlink_to(make_full("m0", 1), target_is_directory=True)
    monkeypatch.chdir(tmp_path)  # where models/base is missing
    settings = GenerationSettings.model_validate(committed_params()["generation"])
    with open_generator(settings, runtime, "m0") as generator:
        assert isinstance(generator, TorchGenerator)
        expected = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "m0"))
        torch.testing.assert_close(logits(generator.model), expected, rtol=1e-4, atol=1e-4)


def test_a_model_starts_as_another_one_and_can_take_a_thirds_weights(
    make_full: MakeFull, tiny_base: Path, runtime: RuntimeSettings
) -> None:
    m0, m1 = make_full("m0", 1), make_full("m1", 2)
    model = start_model(tiny_base, m1, runtime)
    assert all(parameter.requires_grad for parameter in model.parameters())
    start = state_of(model)
    put_model(model, m0, runtime)
    assert torch.equal(logits(model), logits(load_full(m0, runtime)))
    assert torch.equal(start["model.norm.weight"], load_file(m1 / "model.safetensors")["model.norm.weight"])
    reward: Any = reward_start(tiny_base, m0, runtime, None)
    assert torch.equal(reward.model.norm.weight, load_file(m0 / "model.safetensors")["model.norm.weight"])
    assert reward.score.weight.requires_grad


def test_all_weights_have_one_rate(tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path) -> None:
    arguments = training_arguments(SETTINGS, tmp_path, 3, runtime, full=True)
    question = {"requests": [[5, 6], [5, 7]], "scores": [1, 2], "digits": list(range(40, 46)), "length": 2}
    model = load_full(tiny_base, runtime)
    judge = JudgeTrainer(model, TrainingArguments(**arguments), [question], 1.0, 1.0)
    groups = judge.create_optimizer().param_groups
    assert {group["lr"] for group in groups} == {SETTINGS.learning_rate}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"eft": {"loraplus_lr_ratio": 16}}, r"eft\.loraplus_lr_ratio: 16 is for adapters.*set 1"),
    ({"reward_model": {"loraplus_lr_ratio": 2}}, r"reward_model\.loraplus_lr_ratio: 2 is for adapters.*set 1"),
    ({"runtime": {"quantization": "nf4"}}, r"runtime\.quantization: 'nf4' is for adapters.*set none"),
]


@pytest.mark.parametrize(("changes", "says"), REFUSED)
def test_what_only_an_adapter_has_is_refused_where_lora_is_null(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    plain = {"lora": None, "eft": {"loraplus_lr_ratio": 1}, "reward_model": {"loraplus_lr_ratio": 1}}
    assert Params.read(write_params(tmp_path, plain)).optional_section("lora", LoraSettings) is None
    with pytest.raises(InputError, match=says) as error:
        Params.read(write_params(tmp_path, plain | changes))
    assert "\n" not in error.value.message


def test_an_adapter_and_full_weights_are_not_mixed_up(
    make_full: MakeFull, tiny_base: Path, runtime: RuntimeSettings, make_adapter: Callable[..., Path]
) -> None:
    lora = LoraSettings(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", layers_to_transform=None)
    for init, wanted in ((make_full("m0", 1), lora), (make_adapter("adapter", 1), None)):
        with pytest.raises(InputError, match="section lora of params"):
            reward_start(tiny_base, init, runtime, wanted)
    with pytest.raises(InputError, match="it is an adapter"):
        put_model(start_model(tiny_base, make_full("m1", 2), runtime), make_adapter("adapter", 1), runtime)
    with pytest.raises(InputError, match="packed weights cannot be trained; set it to none"):
        load_full(tiny_base, runtime.model_copy(update={"quantization": "nf4"}))
    assert load_tokenizer(make_full("m2", 3)).get_vocab() == load_tokenizer(tiny_base).get_vocab()
