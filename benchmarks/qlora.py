"""QLoRA beside LoRA: adapters trained over models/base in nf4 and in full, and what is left of the former once merged.

Both are trained on the same seed instructions, in the same order, from the same start, and saved in folder WORKSPACE
(what is there already is not made again). Measured on held-out instructions: nats a completion token. `merged` is the
adapter that was trained over nf4, folded into the full weights, which `align export` does too; `merged, bfloat16` has
its weights rounded to that. The last line is one JSON object. Run after `dvc repro base_model`.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from transformers import PreTrainedModel

from align.cli.export.merge import find_model, load_merged
from align.core.files import replacing
from align.core.params import Params
from align.core.rows import Instruction, read_rows
from align.generation.local import TorchGenerator
from align.generation.sampling import SamplingParams
from align.models.adapters import LoraSettings, new_adapter, save_adapter
from align.models.base import copy_tokenizer, load_base, load_tokenizer
from align.models.stack import AdapterStack
from align.models.tokenization import encode_user
from align.run.runtime import RuntimeSettings, start
from align.training.sft import SFTSettings, encode_instruction, instruction_tune
from align.training.trainer import training_arguments
from benchmarks.workspace import ROOT

BASE = ROOT / "models/base"
BATCH_SIZE = 4
SHOWN = 2  # held-out prompts whose greedy answers are printed
NEW_TOKENS = 48


@torch.no_grad()
def nll(model: PreTrainedModel, rows: Sequence[dict[str, Any]]) -> float:
    """Return the mean negative log-likelihood of the completions' tokens, in nats."""
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]], device=model.device)
        logprobs = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        mask = torch.tensor(row["completion_mask"][1:], dtype=torch.bool, device=model.device)
        total -= float(logprobs.gather(1, ids[0, 1:, None]).squeeze(1)[mask].sum())
        count += int(mask.sum())
    return total / count


def train(out: Path, rows: list[dict[str, Any]], params: Params, runtime: RuntimeSettings) -> float:
    """Train an adapter on the rows, over the base that `runtime` says, and save it; return the seconds it took."""
    start(runtime, params.seed)
    model = new_adapter(load_base(BASE, runtime), params.section("lora", LoraSettings), task_type="CAUSAL_LM")
    arguments = training_arguments(params.section("sft", SFTSettings), out.parent / "checkpoints", params.seed, runtime)
    arguments |= {"per_device_train_batch_size": BATCH_SIZE, "gradient_accumulation_steps": 1}
    begun = time.monotonic()
    instruction_tune(model, load_tokenizer(BASE), rows, arguments, out.with_suffix(".csv"))
    seconds = time.monotonic() - begun
    with replacing(out) as temporary:
        save_adapter(model, temporary)
        copy_tokenizer(BASE, temporary)
    return seconds


@click.command(help=__doc__)
@click.argument("workspace", type=click.Path(path_type=Path))
@click.option("--steps", type=click.IntRange(1), default=32, show_default=True, help=f"Of {BATCH_SIZE} rows each.")
@click.option("--held-out", type=click.IntRange(1), default=40, show_default=True, help="Rows that are measured on.")
def main(workspace: Path, steps: int, held_out: int) -> None:
    """Train, merge and measure."""
    params = Params.read(ROOT / "params.yaml")
    runtime = params.section("runtime", RuntimeSettings)
    kinds = {name: runtime.model_copy(update={"quantization": name}) for name in ("none", "nf4")}
    start(runtime, params.seed)
    tokenizer = load_tokenizer(BASE)
    instructions = read_rows(ROOT / "data/seed/instructions.jsonl", Instruction)
    order = torch.randperm(len(instructions), generator=torch.Generator().manual_seed(params.seed)).tolist()
    rows = [encode_instruction(tokenizer, instructions[i].prompt, instructions[i].completion) for i in order]
    test, rows = rows[:held_out], rows[held_out:][: steps * BATCH_SIZE]
    prompts = [instructions[i].prompt for i in order[: min(SHOWN, held_out)]]

    workspace.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    for name, kind in kinds.items():
        if not (workspace / name).exists():
            seconds[name] = train(workspace / name, rows, params, kind)
    measured: dict[str, float] = {}

    def measure(name: str, model: PreTrainedModel) -> None:
        begun = time.monotonic()
        measured[name] = nll(model, test)
        click.echo(f"\n{name}: {measured[name]:.4f} nats a token ({time.monotonic() - begun:.0f} s)")
        answers = TorchGenerator(model, tokenizer, SHOWN).generate(
            [encode_user(tokenizer, prompt) for prompt in prompts],
            SamplingParams(NEW_TOKENS, temperature=0.0),
            [0] * len(prompts),
        )
        for prompt, [answer] in zip(prompts, answers, strict=True):
            click.echo(f"  {prompt!r}\n    {answer.text.strip()!r}")

    for name, kind in kinds.items():
        stack = AdapterStack(BASE, kind)
        stack.add("base", BASE)
        stack.add("trained", workspace / name)
        for which in ("base", "trained"):
            with stack.using(which) as model:
                measure(f"{which}, {name}", model)
        del stack
    merge: dict[str, Callable[[PreTrainedModel], PreTrainedModel]] = {
        "merged": lambda model: model,
        "merged, bfloat16": lambda model: model.bfloat16().float(),  # the weights are rounded, the products are not
    }
    for name, rounded in merge.items():
        measure(name, rounded(load_merged(find_model(str(workspace / "nf4"), BASE), torch.float32)))

    click.echo(f"\n| model | nats a token, {len(test)} held-out rows |\n|---|---|")
    for name, value in measured.items():
        click.echo(f"| {name} | {value:.4f} |")
    click.echo(
        json.dumps({"steps": len(rows) // BATCH_SIZE, "rows": len(rows), "seconds": seconds, "nats_a_token": measured})
    )


if __name__ == "__main__":
    main()
