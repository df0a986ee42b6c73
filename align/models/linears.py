"""Linear layers on a CPU in float32 by oneDNN, which is part of torch.

Torch itself multiplies with MKL, which leaves half of the speed unused on processors that are not Intel's; oneDNN does
not. docs/INFERENCE.md has the figures. A model that only writes goes further: its adapter is merged in and its weights
are packed (`frozen_linears`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class OneDNNLinear(nn.Linear):
    """`nn.Linear` with oneDNN's kernels, forwards and backwards."""

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out_features) for an input (..., in_features)."""
        if input.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        if torch.is_grad_enabled():
            function: Any = _Linear
            output: Tensor = function.apply(input, self.weight, self.bias)
            return output
        return linear(input, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input if ctx.needs_input_grad[1] else None, weight)
        return linear(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,) = grads
        input, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        return (
            linear(grad, weight.t()) if ctx.needs_input_grad[0] else None,
            linear(rows.t(), input.flatten(0, -2).t()) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `input @ weight.T + bias`; the weight (out, in) may be one that `pack` has returned."""
    output: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return output


def pack(weight: Tensor) -> Tensor:
    """Return a copy of a weight in oneDNN's layout: with few rows in the input, `linear` takes a third less time."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def use_onednn(model: nn.Module) -> None:
    """Let the float32 linear layers of a model on a CPU compute with oneDNN, where torch has it."""
    if not torch.backends.mkldnn.is_available():
        return
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu" and module.weight.dtype == torch.float32:
            module.__class__ = OneDNNLinear


class PackedLinear(nn.Module):
    """A linear layer whose weight is in oneDNN's layout, multiplied in the weight's dtype: float32 or bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = pack(weight), bias

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out_features), in the dtype of the input (..., in_features)."""
        return linear(input.to(self.weight.dtype), self.weight, self.bias).to(input.dtype)


@contextmanager
def frozen_linears(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Replace each linear layer that computes with oneDNN, its active adapter merged in, while in the block.

    The layers multiply in `dtype`; all else stays in float32. No gradient flows, and no weight may change.
    """
    adapted = [module for module in model.modules() if isinstance(module, LoraLinear)]
    inside = {id(part) for module in adapted for part in module.modules() if part is not module}
    replaced = [
        (parent, name, module)
        for parent in model.modules()
        for name, module in parent.named_children()
        if id(module) not in inside and isinstance(_base_layer(module), OneDNNLinear)
    ]
    try:
        for parent, name, module in replaced:
            setattr(parent, name, _packed(module, dtype))
        yield
    finally:
        for parent, name, module in replaced:
            setattr(parent, name, module)


def _base_layer(module: nn.Module) -> nn.Module:
    layer: nn.Module = module.get_base_layer() if isinstance(module, LoraLinear) else module
    return layer


def _packed(module: nn.Module, dtype: torch.dtype) -> PackedLinear:
    base = _base_layer(module)
    assert isinstance(base, nn.Linear)
    weight: Tensor = base.weight.detach()
    if isinstance(module, LoraLinear) and not module.disable_adapters:
        for adapter in module.active_adapters:
            if adapter in module.lora_A:
                weight = weight + module.get_delta_weight(adapter).detach()
    return PackedLinear(weight.to(dtype), None if base.bias is None else base.bias.detach().to(dtype))
