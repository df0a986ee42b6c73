"""A short measurement of this machine: passes through a random model of the base's shape, and starts of stages.

The rates are those of the pipeline's own code: oneDNN's layers, the decoding loop, adapters with gradients.
"""

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from align.cli.estimate.costs import Kind, Model, decode, forward, train
from align.cli.estimate.machines import Calibration
from align.cli.estimate.settings import Values
from align.generation.local import TorchGenerator
from align.generation.sampling import SamplingParams
from align.models.adapters import LoraSettings, new_adapter
from align.models.frozen import frozen_linears
from align.models.linears import use_onednn
from align.run.runtime import RuntimeSettings, start

MEMORY_SHARE = 0.5  # of the free memory, for a model to measure: of a larger one the first layers stand for all
# One stage stands for those that import the same.
STARTS = {
    "prepare_data": ("diff",),
    "build_preferences": ("summary",),
    "judge": ("default", "base_model", "generate_prompts", "generate_responses", "evaluate", "ppo"),
    "dpo": ("sft", "reward_model"),
}
HEAVY = ("judge", "dpo")  # of them
FILE_BYTES = 64_000_000
DVC_STARTS = 3  # light starts that DVC takes for a stage: files hashed, dvc.lock read and written (docs/RUNNING.md)
CONTEXT = 64  # tokens of the measured prompts
FEW_TOKENS, MANY_TOKENS = 2, 18  # written after one


def calibrate(values: Values, model: Model, key: Mapping[str, Any], say: Callable[[str], None]) -> Calibration:
    """Measure this machine, in a minute or two with a small model."""
    runtime = RuntimeSettings(
        device="cpu",
        dtype="float32",
        quantization="none",
        optim="adamw_torch",
        num_threads=values.size("runtime.num_threads"),
        batch_size=values.size("runtime.batch_size"),
    )
    start(runtime, seed=0)
    say("measures how long stages take to start")
    starts = start_seconds()
    say(f"measures a random model of the base's shape, {runtime.num_threads} threads")
    # A GPT is measured as a Llama of its dimensions: what counts is the rate.
    like = replace(model.shape, gated=True)
    measured = _fitting(replace(model, shape=like, dtype="float32", quantization="none"))
    causal_lm = random_model(measured)
    tokenizer = _tokenizer()
    lines: dict[Kind, tuple[float, float]] = {
        "forward": _forward_line(causal_lm, measured),
        "decode": _decode_line(causal_lm, tokenizer, measured, runtime.batch_size),
        "train": _train_line(causal_lm, measured),
    }
    scale = model.shape.layers / measured.shape.layers
    load_rate, write_rate = file_rates()
    return Calibration(
        key=dict(key),
        flops={kind: rate for kind, (_, rate) in lines.items()},
        call_seconds={kind: per_call * scale for kind, (per_call, _) in lines.items()},
        start_seconds=starts,
        stage_seconds=DVC_STARTS * starts["prepare_data"],
        load_rate=load_rate,
        write_rate=write_rate,
        memory=float(psutil.virtual_memory().total),
    )


def line(small: tuple[float, float], large: tuple[float, float]) -> tuple[float, float]:
    """Return (seconds a call, FLOP/s) of two measurements (FLOPs, seconds); neither is ever negative or infinite."""
    slope = (large[1] - small[1]) / (large[0] - small[0])
    whole = large[1] / large[0]
    if not 0 < slope <= whole:  # noise: no fixed part can be told
        return 0.0, 1 / whole
    return large[1] - slope * large[0], 1 / slope


def random_model(model: Model) -> PreTrainedModel:
    """Return a Llama of this shape; what its weights are costs nothing."""
    shape = model.shape
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
    )
    causal_lm = LlamaForCausalLM(config)
    # A flat distribution has the sampler sort the vocabulary, which that of a trained model seldom does.
    causal_lm.model.norm.weight.data.fill_(100.0)
    use_onednn(causal_lm)
    causal_lm.eval().requires_grad_(False)
    return causal_lm


def start_seconds() -> dict[str, float]:
    """Return the seconds from starting a stage to its first line of work, by its module and `default`."""
    found: dict[str, float] = {}
    for module, others in STARTS.items():
        seconds = _time(partial(_run, module))
        for name in (module, *others):
            found[name] = seconds
    return found


def file_rates() -> tuple[float, float]:
    """Return bytes a second of reading a file that is in memory, and of writing and hashing one as DVC does."""
    data = os.urandom(FILE_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data"

        def write() -> None:
            with file.open("wb") as stream:
                stream.write(data)
                os.fsync(stream.fileno())
            _hash(file)
            (Path(folder) / "copy").write_bytes(data)

        writing = _time(write)
        reading = _time(file.read_bytes)
    return FILE_BYTES / reading / 2, FILE_BYTES / writing  # from the file, and into the model's own tensors


def _hash(file: Path) -> None:
    with file.open("rb") as stream:
        hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False))


def _run(module: str) -> None:
    # What transformers imports only when a model is loaded, too.
    late = "; from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast"
    subprocess.run([sys.executable, "-c", f"import stages.{module}{late if module in HEAVY else ''}"], check=True)


def _time(function: Callable[[], object], repeats: int = 1) -> float:
    """Return the mean seconds of some runs; of more than one the first is left out, as it allocates and packs."""
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        found.append(time.perf_counter() - begun)
    return statistics.fmean(found[1:] or found)


def _fitting(model: Model) -> Model:
    """Return the model, or one of its first layers where it does not fit into memory."""
    shape = model.shape
    room = MEMORY_SHARE * psutil.virtual_memory().available / 4 - shape.embedding_parameters
    layers = max(1, min(shape.layers, int(room / shape.layer_parameters)))
    if layers == shape.layers:
        return model
    return replace(model, shape=replace(shape, layers=layers), adapted_layers=None, first_adapted=0)


def _forward_line(causal_lm: PreTrainedModel, model: Model) -> tuple[float, float]:
    @torch.no_grad()
    def measure(rows: int, length: int) -> tuple[float, float]:
        ids = torch.randint(model.shape.vocab, (rows, length))
        with frozen_linears(causal_lm, torch.float32):
            seconds = _time(lambda: causal_lm(input_ids=ids, logits_to_keep=1), repeats=3)
        return forward("", model, rows, length, rows, positions=1).flops, seconds

    return line(measure(1, CONTEXT), measure(8, 2 * CONTEXT))


def _decode_line(
    causal_lm: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, model: Model, batch: int
) -> tuple[float, float]:
    def measure(rows: int) -> tuple[float, float]:
        prompt = torch.randint(4, model.shape.vocab, (CONTEXT,)).tolist()
        generator = TorchGenerator(causal_lm, tokenizer, rows)

        def write(tokens: int) -> float:
            # Samples of one prompt: it is read once, and nearly all of the time is that of the steps.
            sampling = SamplingParams(tokens, 0.7, 0.9)
            return _time(lambda: generator.generate([prompt], sampling, [0], n=rows), repeats=3)

        write(1)
        short, long = write(FEW_TOKENS), write(MANY_TOKENS)
        seconds = (long - short) / (MANY_TOKENS - FEW_TOKENS) if short < long else long / MANY_TOKENS
        step = decode("", model, rows, CONTEXT, 1, 1, 1, rows)[1]
        return step.flops, seconds

    few = max(1, batch // 8)
    return line(measure(few), measure(max(batch, 2 * few)))


def _train_line(causal_lm: PreTrainedModel, model: Model) -> tuple[float, float]:
    layers = None if model.adapted_layers is None else list(range(model.first_adapted, model.shape.layers))
    rank, names = model.rank or 16, list(model.shape.modules)
    lora = LoraSettings(
        r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=names, layers_to_transform=layers or None
    )
    adapted = new_adapter(causal_lm, lora, task_type="CAUSAL_LM").train()
    adapter = replace(model, rank=rank, targets="all-linear", adapted_layers=None if layers is None else len(layers))

    def measure(rows: int, length: int) -> tuple[float, float]:
        ids = torch.randint(model.shape.vocab, (rows, length))
        keep = length // 2

        def step() -> None:
            logits = adapted(input_ids=ids, logits_to_keep=keep, use_cache=False).logits
            logits.float().log_softmax(-1)[..., 0].mean().backward()
            adapted.zero_grad()

        return train("", adapter, rows, length, rows, positions=keep).flops, _time(step, repeats=3)

    return line(measure(1, CONTEXT), measure(4, 2 * CONTEXT))


def _tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"<eos>": 0, "<pad>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
