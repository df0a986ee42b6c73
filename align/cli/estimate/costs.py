"""What a language model's work costs: FLOPs, bytes, memory and seconds, from its shape. Pure arithmetic.

The counts are the usual ones: 2 FLOPs for each weight and token forwards, as much again backwards for the gradient of
the input, and once more for that of a weight that is trained; attention comes on top, 4 FLOPs for each pair of tokens
and unit of width.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Literal, Self

from align.core.errors import InputError

Kind = Literal["forward", "decode", "train"]
NF4_BYTES = 0.55  # a weight in nf4 with double quantization
WIDTHS = {"float32": 4, "bfloat16": 2}  # bytes a number
# Bytes of one float32 adapter weight that is trained: itself, its gradient, and Adam's two moments.
TRAINED_BYTES = 16


@dataclass(frozen=True)
class Shape:
    """A decoder's dimensions; of embeddings and head one matrix where they are tied."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = True
    gated: bool = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str) -> Self:
        """Read a config.json of transformers: Llama's, Mistral's and their like, GPT's.

        Raises:
            InputError: a dimension is missing or no positive whole number.
        """

        def size(*keys: str, default: int | None = None) -> int:
            found = next((config[key] for key in keys if config.get(key) is not None), default)
            if type(found) is not int or found < 1:
                raise InputError(f"{name}: {keys[0]}: expected a positive whole number; give a model's config.json")
            return found

        hidden, heads = size("hidden_size", "n_embd"), size("num_attention_heads", "n_head")
        gpt = "n_embd" in config
        return cls(
            layers=size("num_hidden_layers", "n_layer"),
            hidden=hidden,
            intermediate=size("intermediate_size", "n_inner", default=4 * hidden),
            heads=heads,
            kv_heads=size("num_key_value_heads", default=heads),
            head_dim=size("head_dim", default=max(1, hidden // heads)),
            vocab=size("vocab_size"),
            tied=bool(config.get("tie_word_embeddings", gpt)),
            gated=not gpt,
        )

    @property
    def attention_width(self) -> int:
        """Width of the queries of a layer."""
        return self.heads * self.head_dim

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one decoder layer: name -> (in, out), by Llama's names or GPT's."""
        hidden, inner, queries, keys = (
            self.hidden,
            self.intermediate,
            self.attention_width,
            self.kv_heads * self.head_dim,
        )
        if not self.gated:
            return {
                "c_attn": (hidden, queries + 2 * keys),
                "attn.c_proj": (queries, hidden),
                "c_fc": (hidden, inner),
                "mlp.c_proj": (inner, hidden),
            }
        return {
            "q_proj": (hidden, queries),
            "k_proj": (hidden, keys),
            "v_proj": (hidden, keys),
            "o_proj": (queries, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer; the norms are left out."""
        return sum(inputs * outputs for inputs, outputs in self.modules.values())

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embeddings, and of the head where it is another matrix."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All weights, nearly: norms and biases are left out."""
        return self.layers * self.layer_parameters + self.embedding_parameters


@dataclass(frozen=True)
class Model:
    """A base with what is trained on it: an adapter on some layers, or all weights where there is none."""

    shape: Shape
    dtype: str = "float32"
    quantization: str = "none"
    rank: int | None = 16  # None: all weights are trained
    targets: str | Collection[str] = "all-linear"
    adapted_layers: int | None = None  # None: all of them
    first_adapted: int = 0

    @property
    def width(self) -> int:
        """Bytes of an activation."""
        return WIDTHS[self.dtype]

    @property
    def weight_bytes(self) -> float:
        """Bytes of the base in memory; nf4 leaves embeddings and head as they are."""
        shape = self.shape
        layer = NF4_BYTES if self.quantization == "nf4" else self.width
        return shape.layers * shape.layer_parameters * layer + shape.embedding_parameters * self.width

    @property
    def trained_parameters(self) -> int:
        """Weights that are trained."""
        if self.rank is None:
            return self.shape.parameters
        named = self.targets if not isinstance(self.targets, str) else ()
        chosen = [
            size
            for module, size in self.shape.modules.items()
            if not named or any(re.search(rf"(^|\.){re.escape(target)}$", module) for target in named)
        ]
        per_layer = self.rank * sum(inputs + outputs for inputs, outputs in chosen)
        return per_layer * (self.shape.layers if self.adapted_layers is None else self.adapted_layers)

    @property
    def kv_bytes(self) -> int:
        """Bytes of a token's keys and values."""
        return 2 * self.shape.layers * self.shape.kv_heads * self.shape.head_dim * self.width


@dataclass(frozen=True)
class Part:
    """A piece of a stage's work, of one kind, and what it takes.

    `calls` are forward passes (or forward and backward) that are started, each of which costs a fixed time; `bytes` are
    read from memory at the least.
    """

    name: str
    kind: Kind
    rows: float = 0.0
    prefill_tokens: float = 0.0
    decoded_tokens: float = 0.0
    trained_tokens: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    calls: float = 0.0
    memory: float = 0.0


def forward_flops(shape: Shape, tokens: float, context: float, positions: float, layers: int | None = None) -> float:
    """FLOPs of a forward pass over `tokens` that each attend to `context` others.

    Args:
        shape: of the model.
        tokens: all of them, padding too.
        context: keys a query is multiplied with; kernels compute masked pairs as well.
        positions: tokens that get logits over the vocabulary.
        layers: that are run; None: all.
    """
    count = shape.layers if layers is None else layers
    per_token = count * (2 * shape.layer_parameters + 4 * context * shape.attention_width)
    return tokens * per_token + 2 * shape.hidden * shape.vocab * positions


def forward(
    name: str,
    model: Model,
    rows: float,
    length: float,
    batch: int,
    *,
    positions: float = 0.0,
    context: float | None = None,
    layers: int | None = None,
) -> Part:
    """A forward pass without gradient over `rows` of `length` tokens, `batch` at a time.

    `positions` are the tokens of a row that get logits, `context` is the length with what is read before, `layers` the
    number of those that are run.
    """
    seen = length if context is None else context
    calls = ceil(rows / batch)
    share = 1.0 if layers is None else layers / model.shape.layers
    return Part(
        name,
        "forward",
        rows=rows,
        prefill_tokens=rows * length,
        flops=forward_flops(model.shape, rows * length, seen, rows * positions, layers),
        bytes=calls * model.weight_bytes * share,
        calls=calls,
        memory=min(rows, batch) * (seen * model.kv_bytes + length * _live(model) + positions * model.shape.vocab * 8),
    )


def decode(
    name: str,
    model: Model,
    prompts: float,
    prompt_tokens: float,
    samples: int,
    new_tokens: float,
    max_new_tokens: int,
    batch: int,
) -> list[Part]:
    """Reading `prompts` once for their samples, then a token a row at each step.

    Rows that have ended leave: `new_tokens` is the mean length of a reply, `max_new_tokens` the longest, which some row
    of a batch is taken to reach.
    """
    rows = prompts * samples
    together = min(max(batch, samples), max(rows, 1))  # rows of a batch
    batches = ceil(rows / max(batch, samples))
    context = prompt_tokens + new_tokens / 2
    steps = batches * max_new_tokens
    reading = forward(f"{name}, reading", model, prompts, prompt_tokens, max(1, batch // samples), positions=1)
    writing = Part(
        f"{name}, writing",
        "decode",
        rows=rows,
        decoded_tokens=rows * new_tokens,
        flops=forward_flops(model.shape, rows * new_tokens, context, rows * new_tokens),
        bytes=steps * model.weight_bytes + rows * new_tokens * context * model.kv_bytes,
        calls=steps,
        memory=together * ((prompt_tokens + max_new_tokens) * model.kv_bytes + model.shape.vocab * 8),
    )
    return [reading, writing]


def train(
    name: str,
    model: Model,
    rows: float,
    length: float,
    batch: int,
    *,
    positions: float,
    first_layer: int = 0,
    first_trained: int | None = None,
    checkpointing: bool = False,
) -> Part:
    """Forward and backward over `rows` of `length` tokens, `batch` at a time.

    Args:
        name: of the part.
        model: what is trained.
        rows: over all epochs.
        length: tokens of a row.
        batch: rows of one forward and backward pass.
        positions: tokens of a row that get logits.
        first_layer: the lowest layer that is run.
        first_trained: the lowest that gradients reach; None: the lowest that is adapted.
        checkpointing: whether activations are computed again on the way back.
    """
    shape = model.shape
    lowest = model.first_adapted if first_trained is None else first_trained
    run, reached = shape.layers - first_layer, shape.layers - max(lowest, first_layer)
    tokens = rows * length
    forwards = forward_flops(shape, tokens, length, rows * positions, run)
    through = tokens * reached * (2 * shape.layer_parameters + 8 * length * shape.attention_width)
    head = 2 * shape.hidden * shape.vocab * rows * positions
    if model.rank is None:
        own = 2 * tokens * reached * shape.layer_parameters + head
    else:
        own = 6 * tokens * model.trained_parameters
    again = forward_flops(shape, tokens, length, 0, reached) if checkpointing else 0.0
    calls = ceil(rows / batch)
    kept = shape.hidden * model.width if checkpointing else _kept(model)
    return Part(
        name,
        "train",
        rows=rows,
        trained_tokens=tokens,
        flops=forwards + through + head + own + again,
        bytes=(2 + checkpointing) * calls * model.weight_bytes * run / shape.layers,
        calls=calls,
        memory=min(rows, batch)
        * (length * (reached * kept + _live(model)) + positions * shape.vocab * (4 + 2 * model.width))
        + model.trained_parameters * TRAINED_BYTES,
    )


def _live(model: Model) -> float:
    """Bytes of a token's activations inside one layer."""
    shape = model.shape
    return (6 * shape.hidden + 3 * shape.intermediate + 3 * shape.attention_width) * model.width


def _kept(model: Model) -> float:
    """Bytes that a layer keeps of a token for the way back: inputs of its linear layers, norms and nonlinearities."""
    shape = model.shape
    return (8 * shape.hidden + 4 * shape.intermediate + 4 * shape.attention_width) * model.width


@dataclass(frozen=True)
class Machine:
    """What computes: effective rates, not peaks.

    Attributes:
        name: as asked for.
        flops: of each kind of work, FLOP/s.
        call_seconds: fixed time of a pass of each kind, for the whole model.
        bandwidth: bytes/s that weights, keys and values are read at; None where it is part of what was measured.
        start_seconds: from starting a stage's process to its first work, by stage module; `default` for others.
        load_rate: bytes/s at which a base gets from disk into memory.
        write_rate: bytes/s at which outs are hashed and kept.
        stage_seconds: what DVC takes for a stage.
        memory: bytes there are; None: not known.
        measured: whether this was measured on the machine.
    """

    name: str
    flops: Mapping[Kind, float]
    call_seconds: Mapping[Kind, float]
    bandwidth: float | None
    start_seconds: Mapping[str, float]
    load_rate: float
    write_rate: float
    stage_seconds: float
    memory: float | None = None
    measured: bool = False

    def seconds(self, part: Part) -> float:
        """Time of a part: of its products or of reading its weights, whichever is longer, and of starting each pass."""
        reading = part.bytes / self.bandwidth if self.bandwidth else 0.0
        return max(part.flops / self.flops[part.kind], reading) + part.calls * self.call_seconds[part.kind]


@dataclass(frozen=True)
class StageCost:
    """A stage: its parts, and what it costs beside them.

    `rows` are those that it reads or writes, `disk` the bytes of its outs, `loads` the bytes of weights that it loads,
    `seconds` what else it does on a CPU.
    """

    name: str
    module: str
    parts: list[Part] = field(default_factory=list)
    rows: float = 0.0
    disk: float = 0.0
    loads: float = 0.0
    resident: float = 0.0
    seconds: float = 0.0

    @property
    def flops(self) -> float:
        """FLOPs of all parts."""
        return sum(part.flops for part in self.parts)

    @property
    def memory(self) -> float:
        """Bytes at the peak: what is loaded, and the largest part."""
        return self.resident + max((part.memory for part in self.parts), default=0.0)

    def time(self, machine: Machine) -> float:
        """Seconds from start to end, DVC's included."""
        start = machine.start_seconds.get(self.module, machine.start_seconds["default"])
        work = sum(machine.seconds(part) for part in self.parts)
        files = self.loads / machine.load_rate + self.disk / machine.write_rate
        return machine.stage_seconds + start + files + self.seconds + work
