"""Export a model, load it where this project is not installed, and compare its greedy texts with those of `align chat`.

`python -m benchmarks.export WORKSPACE` takes a folder in which `make repro` has run (it reads models/ and params.yaml).
It makes a virtual environment of torch, transformers and safetensors alone, in the versions of requirements.txt,
exports the model in float32 and lets plain transformers answer held-out prompts there. The last line is a JSON object:
`prompts` and `equal`; of each text that differs the place where it does is printed.
"""

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from ruamel.yaml import YAML

from benchmarks.workspace import ROOT

PACKAGES = ("torch", "transformers", "safetensors")
# What a user writes who has nothing but the folder.
PLAIN = """
import importlib.util, json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

assert importlib.util.find_spec("stages") is None and importlib.util.find_spec("peft") is None
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


def make_environment(folder: Path) -> Path:
    """Return the Python of a virtual environment with `PACKAGES` and what they need, made unless it is there."""
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        venv.create(folder, with_pip=True, clear=True)
        pins = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        wanted = [pin for pin in pins if re.split("==", pin)[0] in PACKAGES]
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-compile", *wanted], check=True)
        (folder / "made").touch()
    return python


def chat_texts(workspace: Path, model: str, prompts: list[str], new_tokens: int, folder: Path) -> list[str]:
    """Return the replies of `align chat`, each prompt a conversation of its own."""
    files = [folder / f"chat-{i}.json" for i in range(len(prompts))]
    lines = [f"{prompt}\n/save {file}\n/reset\n" for prompt, file in zip(prompts, files, strict=True)]
    command = [sys.executable, "-m", "align.cli.main", "chat", model, "--max-new-tokens", str(new_tokens)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=workspace, env=environment, input="".join(lines), text=True, check=True)
    saved = [json.loads(file.read_text(encoding="utf-8"))["conversations"] for file in files]
    return [next(iter(conversations.values()))[-1]["content"] for conversations in saved]


@click.command(help=__doc__)
@click.argument("workspace", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--model", default="m2", show_default=True)
@click.option("--prompts", "count", type=click.IntRange(1), default=12, show_default=True)
@click.option("--max-new-tokens", "new_tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--environment", type=click.Path(path_type=Path), help="Keep the virtual environment in this folder.")
def main(workspace: Path, model: str, count: int, new_tokens: int, environment: Path | None) -> None:
    """Compare them."""
    rows = (ROOT / "data/seed/eval_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    turns = [json.loads(row)["turns"][0] for row in rows]
    prompts = [turn for turn in turns if "\n" not in turn and not turn.startswith("/")][:count]
    threads = YAML(typ="safe").load(workspace / "params.yaml")["runtime"]["num_threads"]
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        python = make_environment(environment or folder / "venv").absolute()
        exported = folder / "exported"
        command = [sys.executable, "-m", "align.cli.main", "export", model, "--to", str(exported), "--dtype", "float32"]
        subprocess.run(command, cwd=workspace, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
        ours = chat_texts(workspace, model, prompts, new_tokens, folder)
        arguments = [str(exported), json.dumps(prompts), str(threads), str(new_tokens)]
        # -I: neither the working directory nor PYTHONPATH is searched.
        result = subprocess.run([python, "-I", "-c", PLAIN, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    theirs = [json.loads(line) for line in result.stdout.splitlines()]
    for prompt, a, b in zip(prompts, ours, theirs, strict=True):
        if a != b:
            same = next(
                (i for i, pair in enumerate(zip(a, b, strict=False)) if len(set(pair)) > 1), min(len(a), len(b))
            )
            click.echo(
                f"{prompt!r}: equal for {same} characters, then {a[same : same + 40]!r} / {b[same : same + 40]!r}"
            )
    equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
    click.echo(json.dumps({"prompts": len(prompts), "equal": equal, "characters": sum(map(len, ours))}))


if __name__ == "__main__":
    main()
