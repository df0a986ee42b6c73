"""This machine's CPU: passes through a random model of the base's shape, timed once."""

import platform
import timeit
from dataclasses import asdict
from pathlib import Path

import click
import psutil
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from align.cli.estimate.costs import Machine, Model, Part
from align.core.files import read_json, write_json
from align.models.base import LoraSettings, new_adapter
from align.models.frozen_linears import frozen_linears
from align.models.linears import use_onednn
from align.run.runtime import RuntimeSettings, start

FILE = Path(".align/calibration.json")
TOKENS = 128  # of a measured row


def cpu(config: PretrainedConfig, runtime: RuntimeSettings) -> Machine:
    """Return this machine, measured now unless it was before with the same base and settings."""
    shape = str(sorted(config.to_dict().items()))
    key = [platform.node(), torch.__version__, runtime.num_threads, runtime.batch_size, shape]
    if not FILE.is_file() or read_json(FILE)["key"] != key:
        click.echo(f"measuring this CPU for a minute; delete {FILE} to measure it again", err=True)
        write_json(FILE, {"key": key, "machine": asdict(measure(config.get_text_config(), runtime))})
    return Machine(**read_json(FILE)["machine"])


def measure(config: PretrainedConfig, runtime: RuntimeSettings) -> Machine:
    """Time a pass of each kind, through as many layers as fit into half of the free memory."""
    runtime = runtime.model_copy(update={"device": "cpu", "dtype": "float32", "quantization": "none"})
    start(runtime, seed=0)
    lora = LoraSettings(r=16, lora_alpha=16, lora_dropout=0, target_modules="all-linear", layers_to_transform=None)
    whole, memory = Model(config, runtime), psutil.virtual_memory()
    layers = int((memory.available / 8 - 2 * whole.head) / whole.layer)
    config = config.from_dict(config.to_dict() | {"num_hidden_layers": max(1, min(whole.layers, layers))})
    model, causal_lm = Model(config, runtime, lora), AutoModelForCausalLM.from_config(config)
    use_onednn(causal_lm)
    causal_lm.eval().requires_grad_(False)

    def rate(part: Part) -> float:
        def work() -> None:
            ids = torch.randint(model.vocab, (int(part.rows), int(part.tokens)))
            logits = causal_lm(input_ids=ids, logits_to_keep=int(part.positions), use_cache=False).logits
            if part.kind == "train":
                logits.float().log_softmax(-1)[..., 0].mean().backward()

        return part.flops / min(timeit.repeat(work, number=1, repeat=3))

    parts = [
        Part(kind="forward", model=model, rows=8, tokens=TOKENS, positions=1),
        Part(kind="decode", model=model, rows=runtime.batch_size, tokens=1, positions=1),
        Part(kind="train", model=model, rows=8, tokens=TOKENS, positions=TOKENS / 2),
    ]
    with frozen_linears(causal_lm, torch.float32), torch.no_grad():
        rates = {part.kind: rate(part) for part in parts[:2]}
    new_adapter(causal_lm, lora, task_type="CAUSAL_LM").train()
    rates["train"] = rate(parts[2])
    block = torch.ones(64_000_000)
    bandwidth = 2 * block.nbytes / min(timeit.repeat(block.clone, number=1, repeat=3))
    return Machine("cpu", rates, dict.fromkeys(rates, 0.0), bandwidth, memory.total)
