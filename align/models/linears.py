"""Float32 linear layers on a CPU with oneDNN, which is part of torch.

Torch uses MKL, which reaches half of oneDNN's speed on processors that are not Intel's; see docs/INFERENCE.md.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class OneDNNLinear(nn.Linear):
    """`nn.Linear` with oneDNN's kernels, forward and backward."""

    _turned: tuple[int, Tensor] | None = None  # the weight's version, and its packed transpose

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out_features) for an input (..., in_features)."""
        if input.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        if torch.is_grad_enabled():
            function: Any = _Linear
            output: Tensor = function.apply(input, self.weight, self.bias, self)
            return output
        return linear(input, self.weight, self.bias)

    def turned(self) -> Tensor:
        """Return the weight transposed; where no gradient changes it, packed, and kept for the next backward."""
        if self.weight.requires_grad:
            return self.weight.t()
        version = self.weight._version
        if self._turned is None or self._turned[0] != version:
            self._turned = version, pack(self.weight.detach().t().contiguous())
        return self._turned[1]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, layer: OneDNNLinear) -> Tensor:
        ctx.save_for_backward(input if ctx.needs_input_grad[1] else None)
        ctx.layer = layer
        return linear(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (grad,) = grads
        (input,) = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        return (
            linear(grad, ctx.layer.turned()) if ctx.needs_input_grad[0] else None,
            linear(rows.t(), input.flatten(0, -2).t()) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
            None,
        )


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `input @ weight.T + bias`; the weight (out, in) may be packed by `pack`."""
    output: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return output


def pack(weight: Tensor) -> Tensor:
    """Return a copy of a weight in oneDNN's layout: for inputs of few rows, `linear` takes a third less time."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def use_onednn(model: nn.Module) -> None:
    """Make the float32 linear layers of a model on a CPU use oneDNN, if torch has it."""
    if not torch.backends.mkldnn.is_available():
        return
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu" and module.weight.dtype == torch.float32:
            module.__class__ = OneDNNLinear
