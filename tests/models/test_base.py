"""Adapters on disk and in memory against PEFT itself, and errors that name what mends them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from align.core.errors import InputError
from align.models.adapters import LoraSettings, check_lora, new_adapter, save_adapter
from align.models.base import check_tokenizer, copy_tokenizer, load_base, load_tokenizer
from align.models.card import weights_hash, write_model_card
from align.models.loading import ADAPTER_FILE
from align.models.stack import SCORE_FILE, AdapterStack
from align.models.tokenization import encode_user
from align.reward.scoring import reward_scores
from align.run.runtime import RuntimeSettings
from align.run.stage import Stage
from tests.committed import REPOSITORY, write_params

MakeAdapter = Callable[..., Path]
ROWS = [[1, 40, 41, 42, 43, 2], [1, 50, 51, 2], [1, 60, 61, 62, 63, 64, 65, 2]]

SAVE_ONE_ADAPTER = """
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from align.models.adapters import save_adapter

torch.manual_seed(0)
sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
save_adapter(get_peft_model(LlamaForCausalLM(LlamaConfig(**sizes)), lora), Path(sys.argv[1]))
"""


def logits(model: PreTrainedModel | PeftModel) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=torch.tensor([[1, 40, 41, 42, 43, 44]])).logits
    return result


def broken_copy(source: Path, target: Path) -> Path:
    """Copy a model directory and cut its weights off in the middle."""
    shutil.copytree(source, target)
    [weights] = target.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    return target


def test_two_processes_write_the_same_adapter_byte_for_byte(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SAVE_ONE_ADAPTER, str(tmp_path / seed)],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        )
        for seed in ("1", "2")
    ]
    assert [process.wait() for process in processes] == [0, 0]
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert files == ["adapter_config.json", ADAPTER_FILE]
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_an_adapter_of_the_stack_computes_what_peft_computes(
    tiny_base: Path, runtime: RuntimeSettings, make_adapter: MakeAdapter
) -> None:
    stack = AdapterStack(tiny_base, runtime)
    for name, seed in (("first", 1), ("second", 2)):
        stack.add(name, make_adapter(name, seed))
    for name, seed in (("first", 1), ("second", 2)):
        theirs = PeftModel.from_pretrained(load_base(tiny_base, runtime), str(make_adapter(name, seed)))
        with stack.using(name) as model:
            torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-5)


def test_switching_adapters_restores_exactly_the_same_logits(
    tiny_base: Path, runtime: RuntimeSettings, make_adapter: MakeAdapter
) -> None:
    base = logits(load_base(tiny_base, runtime))
    stack = AdapterStack(tiny_base, runtime)
    stack.add("base", tiny_base)
    stack.add("first", make_adapter("first", 1))
    with stack.using("first") as model:
        expected_first = logits(model)
    stack.add("second", make_adapter("second", 2))
    with stack.using("second") as model:
        expected_second = logits(model)
    assert float((expected_first - base).abs().max()) > 0.1
    assert float((expected_first - expected_second).abs().max()) > 0.1
    for name, expected in (
        ("first", expected_first),
        ("base", base),
        ("second", expected_second),
        ("base", base),
        ("first", expected_first),
    ):
        with stack.using(name) as model:
            assert torch.equal(logits(model), expected)


def test_an_adapter_may_be_called_what_other_parts_of_the_model_are_called(
    tiny_base: Path, runtime: RuntimeSettings, make_adapter: MakeAdapter
) -> None:
    stack = AdapterStack(tiny_base, runtime)
    stack.add("policy", make_adapter("first", 1))
    stack.add("model", make_adapter("second", 2))
    policy, model = stack.parameters("policy"), stack.parameters("model")
    assert len(policy) == len(model)
    assert not {id(parameter) for parameter in policy} & {id(parameter) for parameter in model}


def test_the_base_alone_needs_no_adapter(tiny_base: Path, runtime: RuntimeSettings) -> None:
    stack = AdapterStack(tiny_base, runtime)
    stack.add("base", tiny_base)
    with stack.using("base") as model:
        assert torch.equal(logits(model), logits(load_base(tiny_base, runtime)))


def test_switching_keeps_which_parameters_are_trained(
    tiny_base: Path, runtime: RuntimeSettings, make_adapter: MakeAdapter
) -> None:
    stack = AdapterStack(tiny_base, runtime)
    for name in ("first", "second"):
        stack.add(name, make_adapter(name, 1))
    for parameter in stack.parameters("first"):
        parameter.requires_grad_(True)
    for name in ("second", "first", "second"):
        with stack.using(name):
            pass
        assert all(parameter.requires_grad for parameter in stack.parameters("first"))
        trained = [parameter for parameter in stack.causal_lm.parameters() if parameter.requires_grad]
        assert len(trained) == len(stack.parameters("first")) > 0


def test_a_saved_adapter_is_the_one_that_was_loaded(
    tiny_base: Path, runtime: RuntimeSettings, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    source = make_adapter("first", 1)
    stack = AdapterStack(tiny_base, runtime)
    stack.add("policy", source)
    stack.add("other", make_adapter("other", 2))
    stack.save("policy", tmp_path / "saved")
    assert (tmp_path / "saved" / ADAPTER_FILE).read_bytes() == (source / ADAPTER_FILE).read_bytes()
    again = AdapterStack(tiny_base, runtime)
    again.add("again", tmp_path / "saved")
    with stack.using("policy") as model:
        expected = logits(model)
    with again.using("again") as model:
        assert torch.equal(logits(model), expected)


def test_the_reward_head_scores_as_transformers_classifier_does(
    tiny_base: Path, runtime: RuntimeSettings, make_adapter: MakeAdapter
) -> None:
    reward = make_adapter("reward", 3, head=True)
    stack = AdapterStack(tiny_base, runtime)
    stack.add("policy", make_adapter("policy", 1))
    stack.add("reward", reward)
    found = reward_scores(stack, "reward", ROWS, batch_size=2)

    classifier = load_base(tiny_base, runtime, AutoModelForSequenceClassification, num_labels=1)
    theirs = PeftModel.from_pretrained(classifier, str(reward)).eval()
    with torch.no_grad():
        expected = [float(theirs(input_ids=torch.tensor([row])).logits) for row in ROWS]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert max(expected) - min(expected) > 0.01


def test_the_bias_that_centres_a_reward_model_is_added_wherever_it_is_loaded(
    tiny_base: Path, runtime: RuntimeSettings, make_adapter: MakeAdapter
) -> None:
    reward = make_adapter("reward", 3, head=True)
    stack = AdapterStack(tiny_base, runtime)
    stack.add("plain", reward)
    (reward / SCORE_FILE).write_text('{"score_bias": -2.5}', encoding="utf-8")
    stack.add("centred", reward)
    plain, centred = (reward_scores(stack, name, ROWS, batch_size=2) for name in ("plain", "centred"))
    assert centred == pytest.approx([score - 2.5 for score in plain], abs=1e-5)


def test_a_row_that_was_cut_off_is_scored_as_if_it_ended_there(
    tiny_base: Path, runtime: RuntimeSettings, make_adapter: MakeAdapter
) -> None:
    stack = AdapterStack(tiny_base, runtime)
    stack.add("reward", make_adapter("reward", 3, head=True))
    ended, cut_off, other = reward_scores(
        stack, "reward", [ROWS[0], ROWS[0][:-1], [*ROWS[0][:-1], ROWS[0][0]]], batch_size=3
    )
    assert ended == pytest.approx(cut_off, abs=1e-5)
    assert abs(ended - other) > 0.01


@pytest.mark.parametrize("pad_token", ["<|im_end|>", None])
def test_a_pad_token_that_is_eos_or_missing_names_the_param(
    tiny_base: Path, tmp_path: Path, pad_token: str | None
) -> None:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.pad_token = pad_token
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"base_model\.pad_token"):
        load_tokenizer(tmp_path)


def test_a_missing_chat_template_names_the_param(tiny_base: Path, tmp_path: Path) -> None:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"base_model\.chat_template"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_eos_is_refused(tiny_base: Path) -> None:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="base: the tokenizer has no EOS"):
        check_tokenizer(tokenizer, "base")


@pytest.mark.parametrize("name", [".", "nowhere"])
def test_a_directory_without_tokenizer_is_an_input_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="tokenizer"):
        load_tokenizer(tmp_path / name)


def test_a_directory_without_a_model_is_an_input_error(
    tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path
) -> None:
    stack = AdapterStack(tiny_base, runtime)
    with pytest.raises(InputError, match="dvc repro"):
        stack.add("policy", tmp_path / "nothing")


def test_missing_weights_are_an_input_error(
    tiny_base: Path, runtime: RuntimeSettings, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter("first", 1)
    (adapter / ADAPTER_FILE).unlink()
    with pytest.raises(InputError, match=ADAPTER_FILE):
        AdapterStack(tiny_base, runtime).add("first", adapter)
    shutil.copytree(tiny_base, tmp_path / "base")
    (tmp_path / "base/model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot load the model"):
        load_base(tmp_path / "base", runtime)


def test_truncated_weights_are_an_input_error(
    tiny_base: Path, runtime: RuntimeSettings, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = broken_copy(make_adapter("first", 1), tmp_path / "broken adapter")
    with pytest.raises(InputError, match=ADAPTER_FILE):
        AdapterStack(tiny_base, runtime).add("first", adapter)
    with pytest.raises(InputError, match="cannot load the model"):
        load_base(broken_copy(tiny_base, tmp_path / "broken base"), runtime)


@pytest.mark.parametrize("change", ["missing", "unexpected", "wrong shape"])
def test_an_adapter_that_does_not_fit_the_base_is_an_input_error(
    tiny_base: Path, runtime: RuntimeSettings, make_adapter: MakeAdapter, change: str
) -> None:
    adapter = make_adapter("first", 1)
    state = load_file(adapter / ADAPTER_FILE)
    name = min(state)
    if change == "missing":
        del state[name]
    elif change == "unexpected":
        state[name.replace(".layers.0.", ".layers.7.")] = state[name].clone()
    else:
        state[name] = torch.zeros(state[name].shape[0], state[name].shape[1] + 1)
    save_file(state, adapter / ADAPTER_FILE)
    with pytest.raises(InputError, match="does not fit the base model"):
        AdapterStack(tiny_base, runtime).add("first", adapter)


def test_a_copied_tokenizer_encodes_the_same_conversation(tiny_base: Path, tmp_path: Path) -> None:
    copy_tokenizer(tiny_base, tmp_path)
    original, copied = load_tokenizer(tiny_base), load_tokenizer(tmp_path)
    text = "Rate it: 12 cats, é ☃"
    assert encode_user(copied, text) == encode_user(original, text)
    assert (copied.pad_token_id, copied.eos_token_id) == (original.pad_token_id, original.eos_token_id)


def test_the_model_card_tells_data_and_parents_by_their_hashes_and_the_params_that_were_read(
    tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "ift.jsonl"
    write_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    stage = Stage("sft")
    stage.runtime = runtime
    stage.section("lora", LoraSettings)
    assert stage.seed == 17
    cards = []
    for text in ("one\n", "two\n", "one\n"):
        data.write_text(text)
        write_model_card(tmp_path, stage, {"base": tiny_base}, {"ift": data})
        cards.append(json.loads((tmp_path / "model_card.json").read_text()))
    first, second, third = cards
    assert first == third
    assert first["data"]["ift"]["sha256"] != second["data"]["ift"]["sha256"]
    assert first["parents"] == {"base": {"path": tiny_base.as_posix(), "sha256": weights_hash(tiny_base)}}
    assert (first["stage"], first["params"]) == ("sft", stage.params.used)
    assert list(stage.params.used) == ["runtime", "lora", "seed"]
    assert "code" not in first  # an edit that changes no weight makes no other model
    assert {"torch", "transformers", "peft", "trl", "num_threads", "device"} <= first["environment"].keys()


def test_the_weights_hash_changes_with_the_weights(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    hashes = [weights_hash(make_adapter(name, seed)) for name, seed in (("first", 1), ("second", 1), ("c", 2))]
    assert hashes[0] == hashes[1] != hashes[2]
    with pytest.raises(InputError, match="no safetensors"):
        weights_hash(tmp_path)


def test_saving_leaves_the_model_as_it_is(
    tiny_base: Path, runtime: RuntimeSettings, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    model = PeftModel.from_pretrained(load_base(tiny_base, runtime), str(make_adapter("first", 1)))
    before = logits(model)
    save_adapter(model, tmp_path / "one")
    save_adapter(model, tmp_path / "two")
    assert torch.equal(logits(model), before)
    for name in ("adapter_config.json", ADAPTER_FILE):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_only_the_adapter_is_saved_whatever_base_the_working_directory_holds(
    tiny_base: Path,
    runtime: RuntimeSettings,
    make_adapter: MakeAdapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = PeftModel.from_pretrained(load_base(tiny_base, runtime), str(make_adapter("first", 1)))
    config = json.loads((tiny_base / "config.json").read_text())
    (tmp_path / "models/base").mkdir(parents=True)
    (tmp_path / "models/base/config.json").write_text(json.dumps(config | {"vocab_size": 7}))
    monkeypatch.chdir(tmp_path)
    save_adapter(model, tmp_path / "saved")
    assert (tmp_path / "saved" / ADAPTER_FILE).read_bytes() == (tmp_path / "first" / ADAPTER_FILE).read_bytes()


@pytest.mark.parametrize("modules", [["lm_head", "q_proj"], ["embed_tokens", "q_proj"]])
def test_adapters_of_embeddings_and_output_head_are_refused_before_any_training(
    modules: list[str], tiny_base: Path, runtime: RuntimeSettings
) -> None:
    lora = LoraSettings(r=2, lora_alpha=2, lora_dropout=0.0, target_modules=modules, layers_to_transform=None)
    for refuse in (
        lambda: new_adapter(load_base(tiny_base, runtime), lora, task_type="CAUSAL_LM"),
        lambda: check_lora(tiny_base, lora),
    ):
        with pytest.raises(InputError, match=r"lora.target_modules: .* is an embedding or the output head"):
            refuse()


def test_an_adapter_that_fits_the_base_passes_without_its_weights(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_base / "config.json").read_bytes())
    fits = LoraSettings(r=2, lora_alpha=2, lora_dropout=0.0, target_modules="all-linear", layers_to_transform=None)
    check_lora(tmp_path, fits)
    beyond = fits.model_copy(update={"target_modules": ["q_proj"], "layers_to_transform": [9]})
    with pytest.raises(InputError, match=r"lora.layers_to_transform: the model has layers 0 to 1"):
        check_lora(tmp_path, beyond)
