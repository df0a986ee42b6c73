"""What a piece of work costs: FLOPs and memory of a model's passes, and their seconds on a machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from align.models.adapters import LoraSettings, new_adapter
from align.run.runtime import RuntimeSettings

Kind = Literal["forward", "decode", "train"]
NF4_BYTES = 0.55  # per weight in nf4 with double quantization
TRAINED_BYTES = 16  # per trained weight, in float32: itself, its gradient, two moments of Adam
ADAM_BYTES = 28  # per trained weight and step: Adam reads those and writes all but the gradient
# Data sheets (A100 and H100 as SXM): dense FLOP/s in bfloat16 and float32, bytes per second, bytes.
CARDS = {
    "A10": (125e12, 31.2e12, 600e9, 24e9),
    "A100": (312e12, 19.5e12, 2.04e12, 80e9),
    "H100": (989e12, 67e12, 3.35e12, 80e9),
    "H200": (989e12, 67e12, 4.8e12, 141e9),
}
# What eager PyTorch reaches of them with small batches: assumed (docs/RUNNING.md).
UTILISATION = {"forward": 0.4, "decode": 0.4, "train": 0.3}
BANDWIDTH_SHARE = 0.6
LAYER_SECONDS = {"forward": 0.7e-3, "decode": 0.7e-3, "train": 2.5e-3}
NF4_SLOWDOWN = 1.5  # weights are unpacked for each product


class Model:
    """The sizes of a base, built without memory for its weights, and of what is trained: an adapter, or all weights."""

    def __init__(self, config: PretrainedConfig, runtime: RuntimeSettings, lora: LoraSettings | None = None) -> None:
        c = config.get_text_config()
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(c)
        self.weights = self.trained = sum(weight.numel() for weight in model.parameters())
        if lora is not None:
            adapted = new_adapter(model, lora, task_type="CAUSAL_LM")
            self.trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
        self.lowest = min((lora and lora.layers_to_transform) or [0])  # no gradient reaches the layers below
        self.layers, self.vocab, self.width = c.num_hidden_layers, c.vocab_size, runtime.torch_dtype.itemsize
        heads, inner = c.num_attention_heads, getattr(c, "intermediate_size", None) or 4 * c.hidden_size
        head_dim = getattr(c, "head_dim", None) or c.hidden_size // heads
        keys = (getattr(c, "num_key_value_heads", None) or heads) * head_dim
        self.queries, self.head = heads * head_dim, c.vocab_size * c.hidden_size
        embeddings = self.head * (1 if c.tie_word_embeddings else 2)
        self.layer = (self.weights - embeddings) / self.layers
        packed = NF4_BYTES if runtime.quantization == "nf4" else self.width
        self.bytes = self.layer * self.layers * packed + embeddings * self.width
        # On a CPU, what a gradient passes through is kept transposed, too (align/models/linears.py).
        turned = lora is not None and runtime.torch_device.type == "cpu"
        self.turned_bytes = turned * self.layer * (self.layers - self.lowest) * self.width
        # Per token: keys and values, the activations of a layer, what it hands to the next.
        self.cache_bytes, self.state_bytes = 2 * self.layers * keys * self.width, c.hidden_size * self.width
        self.layer_bytes = (8 * c.hidden_size + 4 * inner + 4 * self.queries) * self.width


@dataclass(frozen=True, kw_only=True)
class Part:
    """Work of one kind on rows, `batch` at a time."""

    kind: Kind
    model: Model
    rows: float
    tokens: float  # per row that are read, written or trained on
    batch: float = 1
    positions: float = 0  # tokens per row that get logits
    context: float = 0  # tokens beside the row's own that each attends to
    first: int = 0  # lowest layer that runs
    steps: float = 1  # passes per batch: the longest reply, when decoding
    checkpointing: bool = False

    @property
    def flops(self) -> float:
        """2 per weight and token, again for the gradient of input and weight; 4 per attended pair and width."""
        model, tokens = self.model, self.rows * self.tokens
        weights, attention = 2 * model.layer, 4 * (self.context + self.tokens) * model.queries
        head = 2 * model.head * self.rows * self.positions
        flops = tokens * (model.layers - self.first) * (weights + attention) + head
        if self.kind == "train":
            reached = tokens * (model.layers - max(model.lowest, self.first))
            flops += reached * (weights + 2 * attention) + head + self.checkpointing * reached * (weights + attention)
            # An adapter's weights come on top of the base's.
            flops += reached * weights + head if model.trained == model.weights else 6 * tokens * model.trained
        return float(flops)

    @property
    def memory(self) -> float:
        """Bytes of a batch and of what is trained, beside the base."""
        model, rows = self.model, min(self.rows, self.batch)
        logits, once = self.positions * model.vocab * 8, self.tokens * model.layer_bytes
        cache = (self.context + max(self.tokens, self.steps)) * model.cache_bytes
        if self.kind != "train":
            return float(rows * (cache + (model.vocab * 8 if self.kind == "decode" else once + logits)))
        kept = model.state_bytes if self.checkpointing else model.layer_bytes
        kept *= self.tokens * (model.layers - max(model.lowest, self.first))
        return float(rows * (kept + once + logits) + model.trained * TRAINED_BYTES + model.turned_bytes)


@dataclass(frozen=True)
class Machine:
    """What computes: the rates that it reaches, by kind of work."""

    flops: Mapping[str, float]  # per second
    layer_seconds: Mapping[str, float]  # to start a pass through one layer
    bandwidth: float
    memory: float

    def seconds(self, part: Part) -> float:
        """Return a roofline, with the start of each pass through each layer, and the optimizer's steps."""
        model, train = part.model, part.kind == "train"
        calls, layers = part.steps * ceil(part.rows / part.batch), model.layers - part.first
        moved = calls * model.bytes * layers / model.layers * (1 + train * (1 + part.checkpointing))
        if part.kind == "decode":
            moved += part.rows * part.tokens * (part.context + part.tokens) * model.cache_bytes
        busy = max(part.flops / self.flops[part.kind], moved / self.bandwidth)
        stepping = train * calls * model.trained * ADAM_BYTES / self.bandwidth
        return float(busy + stepping + calls * layers * self.layer_seconds[part.kind])


def gpu(name: str, runtime: RuntimeSettings) -> Machine:
    """Return a GPU by its data sheet."""
    bfloat16, float32, bandwidth, memory = CARDS[name]
    slower = NF4_SLOWDOWN if runtime.quantization == "nf4" else 1.0
    peak = (bfloat16 if runtime.dtype == "bfloat16" else float32) / slower
    rates = {kind: peak * share for kind, share in UTILISATION.items()}
    starts = {kind: seconds * slower for kind, seconds in LAYER_SECONDS.items()}
    return Machine(rates, starts, bandwidth * BANDWIDTH_SHARE, memory)
