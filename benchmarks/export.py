"""Export a model, load it where this project is not installed, and compare its greedy texts with the pipeline's own.

`python -m benchmarks.export`, in a folder in which `make repro` has run. It makes a virtual environment of torch,
transformers and safetensors alone, in the versions of requirements.txt, exports the model in float32 and lets plain
transformers answer held-out prompts there. The pipeline answers with its generator, on the adapter over the base. Both
compute in float32 and round differently, so a greedy text may part where two tokens are equally likely. The last line
is a JSON object: `prompts` and `equal`; texts that differ are printed.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from align.core.params import Params
from align.core.rows import EvalPrompt, read_rows
from align.generation.local import TorchGenerator
from align.generation.sampling import SamplingParams
from align.models.stack import AdapterStack
from align.models.tokenization import encode_user
from align.run.runtime import RuntimeSettings, start
from benchmarks.workspace import environment

PACKAGES = ("torch", "transformers", "safetensors")
# What a user writes who has nothing but the folder.
PLAIN = """
import importlib.util, json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

assert not any(importlib.util.find_spec(name) for name in ("stages", "align", "peft"))
folder, prompts, threads, new_tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
for prompt in prompts:
    messages = [{"role": "user", "content": prompt}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    reply = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    print(json.dumps(reply), flush=True)
"""


def pipeline_texts(model: str, prompts: list[str], new_tokens: int) -> list[str]:
    """Return the greedy replies of the adapter over the base, as the stages generate."""
    params = Params.read()
    runtime = params.section("runtime", RuntimeSettings).model_copy(update={"dtype": "float32", "quantization": "none"})
    start(runtime, params.seed)
    stack = AdapterStack(Path("models/base"), runtime)
    stack.add(model, Path("models") / model)
    encoded = [encode_user(stack.tokenizer, prompt) for prompt in prompts]
    with stack.using(model) as causal_lm:
        generator = TorchGenerator(causal_lm, stack.tokenizer, runtime.batch_size)
        replies = generator.generate(encoded, SamplingParams(new_tokens, temperature=0.0), [0] * len(prompts))
    return [completion.text for [completion] in replies]


@click.command(help=__doc__)
@click.option("--model", default="m2", show_default=True)
@click.option("--prompts", "count", type=click.IntRange(1), default=12, show_default=True)
@click.option("--max-new-tokens", "new_tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--venv", type=click.Path(path_type=Path), help="Keep the virtual environment in this folder.")
def main(model: str, count: int, new_tokens: int, venv: Path | None) -> None:
    """Compare them."""
    prompts = [row.turns[0] for row in read_rows(Path("data/seed/eval_prompts.jsonl"), EvalPrompt)][:count]
    ours = pipeline_texts(model, prompts, new_tokens)
    with TemporaryDirectory() as scratch:
        pins = [pin for pin in Path("requirements.txt").read_text().split() if pin.split("==")[0] in PACKAGES]
        python = environment(venv or Path(scratch) / "venv", pins)
        exported = f"{scratch}/exported"
        command = [sys.executable, "-m", "align.cli.main", "export", model, "--to", exported, "--dtype", "float32"]
        subprocess.run(command, check=True)
        threads = Params.read().section("runtime", RuntimeSettings).threads
        arguments = [exported, json.dumps(prompts), str(threads), str(new_tokens)]
        # -I: neither the working directory nor PYTHONPATH is searched.
        result = subprocess.run([python, "-I", "-c", PLAIN, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    theirs = [json.loads(line) for line in result.stdout.splitlines()]
    pairs = list(zip(ours, theirs, strict=True))
    for prompt, (a, b) in zip(prompts, pairs, strict=True):
        if a != b:
            click.echo(f"{prompt!r}:\n  {a!r}\n  {b!r}")
    equal = sum(a == b for a, b in pairs)
    click.echo(json.dumps({"prompts": len(prompts), "equal": equal, "characters": sum(map(len, ours))}))


if __name__ == "__main__":
    main()
