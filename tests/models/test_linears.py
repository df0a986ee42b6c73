"""Linear layers by oneDNN: what torch's own compute, forwards and backwards, packed or not, the adapter merged in."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.models.base import load_base
from align.models.frozen import PackedLinear, frozen_linears
from align.models.linears import OneDNNLinear, use_onednn
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
