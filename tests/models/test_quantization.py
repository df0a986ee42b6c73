"""The base in nf4: what is packed, what it computes, that adapters train over it and leave it for full weights."""

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes.functional
import bitsandbytes.nn.modules
import psutil
import pytest
import torch
from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForSequenceClassification, PreTrainedModel, TrainingArguments

from align.backends.choose import GenerationSettings, open_generator
from align.cli.export.merge import find_model, load_merged
from align.core.errors import InputError
from align.core.params import Params
from align.generation.local import TorchGenerator, tokens_in_memory
from align.generation.sampling import SamplingParams
from align.models.base import load_base, load_tokenizer
from align.models.stack import AdapterStack
from align.models.tokenization import encode_user
from align.run.provenance import environment
from align.run.runtime import RuntimeSettings, start
from align.run.work import Checkpoint, Work
from align.training.optimizers import adamw
from align.training.trainer import train, training_arguments
from tests.committed import PARAMS_YAML
from tests.ppo.tiny import MakeStack, trainer
from tests.training import test_resume as training
from tests.training.test_resume import StopAfter, Stopped, make, trained, work

__all__ = ["work"]

IDS = torch.tensor([[1, 40, 41, 42, 43, 44, 45, 46]])
PAGED = ["paged_adamw_32bit", "paged_adamw_8bit"]
pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")


@pytest.fixture
def nf4(runtime: RuntimeSettings) -> RuntimeSettings:
    return runtime.model_copy(update={"quantization": "nf4"})


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=IDS).logits.float().log_softmax(-1)
    return result


def packed(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def unpacked(layer: Any) -> Tensor:
    weight: Tensor = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight


def unpack_into(model: PreTrainedModel, source: PreTrainedModel) -> PreTrainedModel:
    """Give the full weights of `model` the values that the packed ones of `source` stand for."""
    for name, layer in packed(source).items():
        twin = model.get_submodule(name)
        assert isinstance(twin, nn.Linear)
        twin.weight.data.copy_(unpacked(layer))
    return model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_layers_are_packed_with_their_scales_and_embeddings_norms_and_heads_are_not(
    tiny_base: Path, nf4: RuntimeSettings, dtype: str
) -> None:
    nf4 = nf4.model_copy(update={"dtype": dtype})
    classifier = load_base(tiny_base, nf4, AutoModelForSequenceClassification, num_labels=1)
    for model in (load_base(tiny_base, nf4), classifier):
        layers = packed(model)
        assert len(layers) == 2 * 7
        assert all(".layers." in name for name in layers)
        for layer in layers.values():
            assert layer.weight.dtype == torch.uint8
            assert layer.weight.numel() == layer.in_features * layer.out_features // 2
            assert (layer.weight.quant_state.quant_type, layer.weight.quant_state.nested) == ("nf4", True)
            assert layer.compute_dtype == nf4.torch_dtype
        rest = [p for name, p in model.named_parameters() if name.removesuffix(".weight") not in layers]
        assert {parameter.dtype for parameter in rest} == {nf4.torch_dtype}
        assert model.dtype == nf4.torch_dtype
    assert type(classifier.score) is not Linear4bit


def test_a_packed_weight_is_the_nearest_of_sixteen_values_a_block_of_64(tiny_base: Path, nf4: RuntimeSettings) -> None:
    model, full = load_base(tiny_base, nf4), load_base(tiny_base, nf4.model_copy(update={"quantization": "none"}))
    functional: Any = bitsandbytes.functional
    code = functional.get_4bit_type("nf4", device="cpu")
    # With AVX-512, bitsandbytes 0.50.2 gives blocks that span rows the scales of others; only tiny layers have such.
    whole = {name: layer for name, layer in packed(model).items() if layer.in_features % 64 == 0}
    assert whole
    for name, layer in whole.items():
        weight = full.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        blocks = weight.detach().reshape(-1, 64)
        scale = blocks.abs().amax(1, keepdim=True)
        nearest = code[(blocks[..., None] / scale[..., None] - code).abs().argmin(-1)] * scale
        # The scales are rounded to 8 bits.
        torch.testing.assert_close(unpacked(layer).reshape(-1, 64), nearest, rtol=0.03, atol=1e-6)


def test_the_packed_model_computes_what_its_weights_unpacked_compute_and_nearly_what_the_full_ones_do(
    tiny_base: Path, nf4: RuntimeSettings, runtime: RuntimeSettings
) -> None:
    model, full = load_base(tiny_base, nf4), load_base(tiny_base, runtime)
    found, expected = logits(model), logits(full)
    assert torch.equal(found, logits(model))
    divergence = float((expected.exp() * (expected - found)).sum(-1).mean())
    assert 0 < divergence < 0.5
    torch.testing.assert_close(found, logits(unpack_into(full, model)), rtol=1e-4, atol=1e-4)


def test_on_a_gpu_products_are_in_bfloat16(nf4: RuntimeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nf4.compute_dtype == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cuda = nf4.model_copy(update={"device": "cuda"})
    assert cuda.compute_dtype == torch.bfloat16
    assert cuda.model_copy(update={"quantization": "none"}).compute_dtype == torch.float32


@pytest.mark.parametrize("name", [name for name in training.MAKERS if name != "sft of all weights"])
def test_each_trainer_trains_float32_adapters_over_packed_weights_and_goes_on_to_the_same_bytes(
    name: str, tiny_base: Path, nf4: RuntimeSettings, work: Work, tmp_path: Path
) -> None:
    history = tmp_path / "history.csv"
    plain = make(name, tiny_base, nf4, tmp_path / "plain")
    assert isinstance(plain.model, nn.Module)
    before = {key: value.detach().clone() for key, value in plain.model.named_parameters()}
    train(plain, history)
    weights, rows = trained(plain, history)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert {weight.dtype for key, weight in before.items() if "lora_" in key} == {torch.float32}
    assert len(packed(plain.model)) == 2 * 7
    changed = {key for key, value in plain.model.named_parameters() if not torch.equal(value, before[key])}
    assert changed == set(weights)
    assert all("lora_" in key or "score" in key for key in changed)

    folder = work.folder / "stopped"
    stopped = make(name, tiny_base, nf4, folder)
    stopped.add_callback(StopAfter(3))
    with pytest.raises(Stopped):
        train(stopped, history, work)
    again = make(name, tiny_base, nf4, folder)
    train(again, history, work)
    found, found_rows = trained(again, history)
    assert all(torch.equal(weights[key], found[key]) for key in weights)
    assert found_rows == rows


@pytest.mark.parametrize("name", [name for name in training.MAKERS if name != "sft of all weights"])
def test_gradient_checkpointing_over_packed_weights_changes_no_result(
    name: str, tiny_base: Path, nf4: RuntimeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, calls = [], 0
    forward = checkpoint

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        assert kwargs["use_reentrant"] is False
        return forward(*args, **kwargs)

    monkeypatch.setattr("transformers.modeling_utils.checkpoint", counted)
    for checkpointing in (False, True):
        settings = {"gradient_checkpointing": checkpointing, "num_train_epochs": 0.5}
        monkeypatch.setattr(training, "SETTINGS", training.SETTINGS.model_copy(update=settings))
        one = make(name, tiny_base, nf4, tmp_path)
        train(one, tmp_path / "history.csv")
        results.append(trained(one, tmp_path / "history.csv"))
        assert (calls > 0) == checkpointing
    (weights, rows), (found, found_rows) = results
    assert found_rows == rows
    assert all(torch.equal(weights[key], found[key]) for key in weights)


@pytest.mark.parametrize(("name", "optim"), zip(("sft", "eft"), PAGED, strict=True))
def test_bitsandbytes_adamw_trains_and_goes_on_to_the_same_bytes(
    name: str, optim: str, tiny_base: Path, runtime: RuntimeSettings, work: Work, tmp_path: Path
) -> None:
    paged, history = runtime.model_copy(update={"optim": optim}), tmp_path / "history.csv"
    plain = make(name, tiny_base, paged, tmp_path / "plain")
    train(plain, history)
    assert plain.optimizer is not None
    assert type(getattr(plain.optimizer, "optimizer", plain.optimizer)) is adamw(optim)[0]
    weights, _ = trained(plain, history)

    usual = make(name, tiny_base, runtime, tmp_path / "usual")
    train(usual, history)
    expected, _ = trained(usual, history)
    distance = max(float((weights[key] - expected[key]).abs().max()) for key in weights)
    assert distance < (1e-3 if optim.endswith("32bit") else 3e-2)

    folder = work.folder / "stopped"
    stopped = make(name, tiny_base, paged, folder)
    stopped.add_callback(StopAfter(3))
    with pytest.raises(Stopped):
        train(stopped, history, work)
    again = make(name, tiny_base, paged, folder)
    train(again, history, work)
    found, _ = trained(again, history)
    assert all(torch.equal(weights[key], found[key]) for key in weights)


@pytest.mark.parametrize(("quantization", "optim"), [("nf4", "adamw_torch"), *(("none", optim) for optim in PAGED)])
def test_ppo_goes_on_from_its_state_to_the_same_bytes(make_stack: MakeStack, quantization: str, optim: str) -> None:
    def begin() -> Any:
        return trainer(make_stack(quantization=quantization, optim=optim))

    whole, part = begin(), begin()
    codes = {name: layer.weight.data.clone() for name, layer in packed(whole.stack.causal_lm).items()}
    rows = [whole.step() for _ in range(3)]
    assert abs(rows[0]["kl"]) < 1e-5
    assert abs(rows[2]["kl"]) > 1e-5
    part.step()
    tensors, state = part.state_dict()
    again = begin()
    again.load_state_dict({key: value.clone() for key, value in tensors.items()}, state)
    assert [again.step(), again.step()] == rows[1:]
    for mine, theirs in zip(again.parameters["policy"], whole.parameters["policy"], strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, theirs)
    assert len(codes) == (14 if quantization == "nf4" else 0)
    assert all(torch.equal(layer.weight, codes[name]) for name, layer in packed(whole.stack.causal_lm).items())


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("layers", [None, [1]])
def test_ppo_with_gradient_checkpointing_computes_the_same(
    make_stack: MakeStack, quantization: str, layers: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, plain = 0, checkpoint

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return plain(*args, **kwargs)

    monkeypatch.setattr("align.models.stack.checkpoint", counted)
    results = []
    for checkpointing in (False, True):
        ppo = trainer(make_stack(quantization=quantization, layers=layers), gradient_checkpointing=checkpointing)
        results.append([ppo.step(), ppo.step(), [parameter.tolist() for parameter in ppo.parameters["policy"]]])
        assert (calls > 0) == checkpointing
    assert results[0] == results[1]


def test_states_of_8_bits_are_written_to_a_checkpoint_and_read_from_it(make_stack: MakeStack, tmp_path: Path) -> None:
    def begin() -> Any:
        ppo = trainer(make_stack(optim="paged_adamw_8bit"))
        for optimizer in ppo.optimizers.values():
            optimizer.args.min_8bit_size = 1  # adapters of the tiny model are under the 4,096 of bitsandbytes
        return ppo

    whole, part = begin(), begin()
    rows = [whole.step() for _ in range(2)]
    part.step()
    tensors, state = part.state_dict()
    assert torch.uint8 in {tensor.dtype for tensor in tensors.values()}
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
    checkpoint.save(tensors, state)
    saved = checkpoint.load()
    assert saved is not None
    again = begin()
    again.load_state_dict(*saved)
    assert again.step() == rows[1]


def test_merging_into_full_weights_gives_what_the_adapter_gives_over_them(
    tiny_base: Path, runtime: RuntimeSettings, nf4: RuntimeSettings, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter("first", 1)
    merged = load_merged(find_model(str(adapter), tiny_base), torch.float32)
    assert not [key for key in merged.state_dict() if "lora" in key]
    assert load_merged(find_model(str(adapter), tiny_base), torch.bfloat16).dtype == torch.bfloat16
    found = {}
    for kind in (runtime, nf4):
        stack = AdapterStack(tiny_base, kind)
        stack.add("first", adapter)
        with stack.using("first") as model:
            found[kind.quantization] = logits(model)
    torch.testing.assert_close(logits(merged), found["none"], rtol=1e-4, atol=1e-4)
    assert 0 < float((found["none"].exp() * (found["none"] - found["nf4"])).sum(-1).mean()) < 0.5

    # Merged into what the packed weights stand for, it is exactly what was trained.
    full = unpack_into(load_base(tiny_base, runtime), load_base(tiny_base, nf4))
    full.save_pretrained(tmp_path / "unpacked")
    load_tokenizer(tiny_base).save_pretrained(tmp_path / "unpacked")
    same = load_merged(find_model(str(adapter), tmp_path / "unpacked"), torch.float32)
    torch.testing.assert_close(logits(same), found["nf4"], rtol=1e-4, atol=1e-4)


def test_a_packed_model_writes_what_its_weights_unpacked_write(
    tiny_base: Path, runtime: RuntimeSettings, nf4: RuntimeSettings
) -> None:
    tokenizer, model = load_tokenizer(tiny_base), load_base(tiny_base, nf4)
    full = unpack_into(load_base(tiny_base, runtime), model)
    prompts = [encode_user(tokenizer, text) for text in ("Hi", "Name a fruit.")]
    written = [
        TorchGenerator(each, tokenizer, 8).generate(prompts, SamplingParams(8, temperature=0.0), [0, 0])
        for each in (model, full)
    ]
    assert written[0] == written[1]


def test_the_memory_of_keys_and_values_is_that_of_an_unpacked_model(
    tiny_base: Path, runtime: RuntimeSettings, nf4: RuntimeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=1 << 30))
    assert tokens_in_memory(load_base(tiny_base, nf4)) == tokens_in_memory(load_base(tiny_base, runtime)) > 1


def test_a_cpu_that_multiplies_bfloat16_does_not_repack_the_layers_that_ppo_trains_with(
    tiny_base: Path, nf4: RuntimeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    model = load_base(tiny_base, nf4)
    logits(model)
    assert not any(
        getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in packed(model).values()
    )


@pytest.fixture
def without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bitsandbytes.cextension", "bitsandbytes.optim.adamw"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("without_bitsandbytes")
def test_bitsandbytes_that_does_not_load_is_one_line_with_the_key(tiny_base: Path, nf4: RuntimeSettings) -> None:
    with pytest.raises(InputError, match=r"runtime\.quantization: nf4 needs bitsandbytes.*pip install.*set none"):
        load_base(tiny_base, nf4)
    paged = nf4.model_copy(update={"optim": "paged_adamw_8bit"})
    with pytest.raises(InputError, match=r"runtime\.optim: paged_adamw_8bit needs bitsandbytes.*set adamw_torch"):
        training_arguments(training.SETTINGS, tiny_base, 0, paged)


@pytest.mark.parametrize("settings", [{"quantization": "nf4"}, {"optim": "paged_adamw_32bit"}])
def test_a_stage_that_needs_bitsandbytes_says_so_first(
    settings: dict[str, str], runtime: RuntimeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="need bitsandbytes, which is not installed; run `pip install"):
        start(runtime.model_copy(update=settings), 17)


def test_a_cuda_that_bitsandbytes_was_not_built_for_is_one_line(
    tiny_base: Path, nf4: RuntimeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("bitsandbytes.cextension.lib", ErrorHandlerMockBNBNativeLibrary("no such library"))
    with pytest.raises(InputError, match="no kernels for CUDA"):
        load_base(tiny_base, nf4.model_copy(update={"device": "cuda"}))


def test_the_bfloat16_backend_is_not_for_packed_weights(nf4: RuntimeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    settings = Params.read(PARAMS_YAML).section("generation", GenerationSettings)
    with (
        pytest.raises(InputError, match="here: nf4 on cpu"),
        open_generator(settings.model_copy(update={"backend": "bfloat16"}), nf4, "m0"),
    ):
        pass


def test_the_version_of_bitsandbytes_is_recorded_where_results_follow_from_it(
    runtime: RuntimeSettings, nf4: RuntimeSettings
) -> None:
    assert "bitsandbytes" not in environment(runtime)
    assert "bitsandbytes" in environment(nf4)
    assert "bitsandbytes" in environment(runtime.model_copy(update={"optim": "paged_adamw_32bit"}))


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 0), (0.1, 10), (1, 1), (30, 30)])
def test_warmup_is_a_share_of_the_steps_or_their_number(
    warmup: float, steps: int, runtime: RuntimeSettings, tmp_path: Path
) -> None:
    settings = training.SETTINGS.model_copy(update={"warmup_steps": warmup})
    assert TrainingArguments(**training_arguments(settings, tmp_path, 0, runtime)).get_warmup_steps(100) == steps
