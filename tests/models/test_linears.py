"""Linear layers by oneDNN: what torch's own compute, forwards and backwards, packed or not, the adapter merged in."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.models.adapters import continue_adapter
from align.models.base import load_base
from align.models.frozen import PackedLinear, frozen_linears
from align.models.linears import OneDNNLinear, use_onednn
from align.models.lora_linears import OneDNNLora
from align.models.stack import AdapterStack
from align.run.runtime import RuntimeSettings


def layers(bias: bool, trained: bool) -> tuple[nn.Linear, nn.Linear]:
    """Return one of torch's layers and the same by oneDNN."""
    torch.manual_seed(3)
    plain = nn.Linear(24, 40, bias=bias)
    plain.requires_grad_(trained)
    ours = copy.deepcopy(plain)
    use_onednn(ours)
    assert isinstance(ours, OneDNNLinear)
    return plain, ours


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trained", [True, False])
def test_output_and_gradients_are_those_of_torchs_own_layer(shape: tuple[int, ...], bias: bool, trained: bool) -> None:
    found: list[list[Tensor | None]] = []
    for layer in layers(bias, trained):
        x = torch.randn(*shape, 24, generator=torch.Generator().manual_seed(1), requires_grad=True)
        y = layer(x)
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)))
        with torch.no_grad():
            assert torch.equal(layer(x), y)
        found.append([y, x.grad, layer.weight.grad, layer.bias.grad if bias else None])
    for expected, value in zip(*found, strict=True):
        if expected is None:
            assert value is None
        else:
            assert value is not None
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


def test_a_backward_follows_weights_that_were_changed_or_are_trained_from_now_on() -> None:
    plain, ours = layers(bias=False, trained=False)

    def input_gradient(layer: nn.Linear) -> Tensor:
        x = torch.ones(2, 24, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad is not None
        return x.grad

    before = input_gradient(ours)
    for change in (lambda layer: nn.init.constant_(layer.weight, 3), lambda layer: layer.weight.requires_grad_(True)):
        for layer in (plain, ours):
            change(layer)
        torch.testing.assert_close(input_gradient(ours), input_gradient(plain), rtol=1e-5, atol=1e-5)
    assert not torch.equal(input_gradient(ours), before)


def lora_layers(**options: Any) -> tuple[LoraLinear, OneDNNLora]:
    """Return PEFT's LoRA layer and ours, with the same weights, over oneDNN's layer."""
    _, base = layers(bias=True, trained=False)
    found = []
    for kind in (LoraLinear, OneDNNLora):
        config = LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, **options)
        torch.manual_seed(4)
        found.append(kind(base, "default", config, r=config.r, lora_alpha=config.lora_alpha))
    peft, ours = found
    assert isinstance(ours, OneDNNLora)
    return peft, ours


def outcome(layer: LoraLinear) -> list[Tensor]:
    """Return the output of a forward, the gradients of its input and of its factors."""
    torch.manual_seed(5)  # of dropout
    x = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(1), requires_grad=True)
    y = layer(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)))
    found = [y, x.grad, *(parameter.grad for parameter in layer.parameters() if parameter.requires_grad)]
    return [tensor for tensor in found if tensor is not None]


def test_a_lora_layer_in_one_step_gives_the_output_and_gradients_of_pefts_own(monkeypatch: pytest.MonkeyPatch) -> None:
    peft, ours = lora_layers()
    expected = outcome(peft)
    assert len(expected) == 4
    monkeypatch.delattr(LoraLinear, "forward")
    for value, right in zip(outcome(ours), expected, strict=True):
        torch.testing.assert_close(value, right, rtol=1e-5, atol=1e-5)


def test_a_lora_layer_leaves_dropout_other_adapters_and_other_dtypes_to_peft() -> None:
    for option in ({"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}):
        pair = lora_layers(**option)
        for value, right in zip(*map(outcome, reversed(pair)), strict=True):
            assert torch.equal(value, right)
    peft, ours = lora_layers(lora_dropout=0.5)
    assert not torch.equal(outcome(ours)[0], outcome(ours.eval())[0])

    changes: list[Callable[[Any], object]] = [
        lambda layer: layer.enable_adapters(False),
        lambda layer: layer.merge(),
        lambda layer: layer.set_adapter([]),
        lambda layer: layer.bfloat16(),
    ]
    for change in changes:
        peft, ours = lora_layers()
        x = torch.randn(2, 24)
        changed = []
        layer: Any
        for layer in (peft, ours):
            layer.base_layer = copy.deepcopy(layer.base_layer)
            change(layer)
            with torch.no_grad():
                changed.append(layer(x.to(layer.lora_A["default"].weight.dtype)))
        assert torch.equal(*changed)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        peft, ours = lora_layers()
        assert torch.equal(ours(torch.ones(2, 24)), peft(torch.ones(2, 24)))


def test_every_lora_layer_of_an_adapter_is_in_one_step(
    tiny_base: Path, runtime: RuntimeSettings, make_adapter: Callable[..., Path]
) -> None:
    trained = continue_adapter(load_base(tiny_base, runtime), make_adapter("policy", 1))
    stack = AdapterStack(tiny_base, runtime)
    stack.add("policy", make_adapter("policy", 1))
    for model in (trained, stack.causal_lm):
        found = [type(module) for module in model.modules() if isinstance(module, LoraLinear)]
        assert found
        assert set(found) == {OneDNNLora}


def test_packed_weights_give_the_same_bits() -> None:
    _, layer = layers(bias=True, trained=False)
    x = torch.randn(9, 24)
    with torch.no_grad():
        assert torch.equal(PackedLinear(layer.weight, layer.bias)(x), layer(x))


def test_half_precision_and_autocast_go_torchs_own_way() -> None:
    plain, layer = layers(bias=True, trained=False)
    x = torch.randn(4, 24)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), plain(x))
    with torch.no_grad():
        assert torch.equal(layer.bfloat16()(x.bfloat16()), plain.bfloat16()(x.bfloat16()))


def test_every_linear_layer_of_a_base_model_is_oneDNNs(tiny_base: Path, runtime: RuntimeSettings) -> None:
    model = load_base(tiny_base, runtime)
    found = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(found) == 2 * 7 + 1
    assert all(type(module) is OneDNNLinear for module in found)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.tensor([[5, 6, 7, 8, 9, 10]])).logits.log_softmax(-1)
    return found


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, 1e-5),
        pytest.param(
            torch.bfloat16,
            0.3,
            marks=pytest.mark.skipif(
                not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU does not multiply bfloat16"
            ),
        ),
    ],
)
@pytest.mark.parametrize("name", ["policy", "base"])
def test_frozen_layers_have_the_active_adapter_merged_in_and_leave_the_model_as_it_was(
    name: str,
    dtype: torch.dtype,
    tolerance: float,
    tiny_base: Path,
    runtime: RuntimeSettings,
    make_adapter: Callable[..., Path],
) -> None:
    stack = AdapterStack(tiny_base, runtime)
    stack.add("policy", make_adapter("policy", 1))
    stack.add("other", make_adapter("other", 2))
    stack.add("base", tiny_base)
    with stack.using("other") as model:
        other = logits(model)
    with stack.using(name) as model:
        expected = logits(model)
        modules = list(model.modules())
        with frozen_linears(model, dtype):
            frozen = [module for module in model.modules() if isinstance(module, PackedLinear)]
            assert [module.weight.dtype for module in frozen] == [dtype] * (2 * 7 + 1)
            found = logits(model)
        assert list(model.modules()) == modules
        assert torch.equal(logits(model), expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert (other - expected).abs().max() > 2 * tolerance


def test_frozen_layers_are_gone_even_where_the_block_fails(tiny_base: Path, runtime: RuntimeSettings) -> None:
    model = load_base(tiny_base, runtime)
    with pytest.raises(KeyError), frozen_linears(model, torch.float32):
        raise KeyError
    assert not [module for module in model.modules() if isinstance(module, PackedLinear)]
