"""This machine's CPU: passes through a random model of the base's shape, timed once."""

import platform
import timeit
from dataclasses import asdict
from pathlib import Path

import click
import psutil
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from align.cli.estimate.costs import Kind, Machine, Model, Part
from align.core.files import read_json, write_json
from align.models.adapters import LoraSettings, new_adapter
from align.models.frozen import frozen_linears
from align.models.linears import use_onednn
from align.run.runtime import RuntimeSettings, start

FILE = Path(".align/calibration.json")
MOST_WEIGHTS = 5e8  # in layers, twice in memory
TOKENS = 128  # of a measured row


def cpu(config: PretrainedConfig, runtime: RuntimeSettings) -> Machine:
    """Return this machine, measured now unless it was before with the same base and settings."""
    key = [platform.node(), torch.__version__, runtime.threads, runtime.batch_size, config.to_json_string()]
    if not FILE.is_file() or read_json(FILE)["key"] != key:
        click.echo(f"measuring this CPU for a minute; delete {FILE} to measure it again", err=True)
        write_json(FILE, {"key": key, "machine": asdict(measure(config.get_text_config(), runtime))})
    return Machine(**read_json(FILE)["machine"])


def measure(config: PretrainedConfig, runtime: RuntimeSettings) -> Machine:
    """Time a pass of each kind, through the first layers of a large model."""
    runtime = runtime.model_copy(update={"device": "cpu", "dtype": "float32", "quantization": "none"})
    start(runtime, seed=0)
    lora = LoraSettings(r=16, lora_alpha=16, lora_dropout=0, target_modules="all-linear", layers_to_transform=None)
    layers = max(1, min(config.num_hidden_layers, int(MOST_WEIGHTS / Model(config, runtime).layer)))
    config = config.from_dict(config.to_dict() | {"num_hidden_layers": layers})
    model, causal_lm = Model(config, runtime, lora), AutoModelForCausalLM.from_config(config)
    use_onednn(causal_lm)
    causal_lm.eval().requires_grad_(False)

    def rate(kind: Kind, rows: int, tokens: int, positions: int) -> float:
        def work() -> None:
            logits = causal_lm(input_ids=ids, logits_to_keep=positions, use_cache=False).logits
            if kind == "train":
                logits.float().log_softmax(-1)[..., 0].mean().backward()

        ids = torch.randint(model.vocab, (rows, tokens))
        part = Part(kind=kind, model=model, rows=rows, tokens=tokens, positions=positions)
        return part.flops / min(timeit.repeat(work, number=1, repeat=3))

    with frozen_linears(causal_lm, torch.float32), torch.no_grad():
        rates = {"forward": rate("forward", 8, TOKENS, 1), "decode": rate("decode", runtime.batch_size, 1, 1)}
    new_adapter(causal_lm, lora, task_type="CAUSAL_LM").train()
    rates["train"] = rate("train", 8, TOKENS, TOKENS // 2)
    return Machine(rates, dict.fromkeys(rates, 0.0), 1e10, psutil.virtual_memory().total)  # bandwidth: assumed
