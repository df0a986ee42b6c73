"""Broken models: directories, weights, configurations, tokenizers, adapters."""

import json
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.faults.broken.workspace import Break, Case, both, param, put, value

BASE, ADAPTER, REWARD = "models/base", "models/m0", "models/reward"
LEFT = "ran.txt"  # what a payload would leave


class Payload:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path(LEFT).write_text, ("unpickled",)


CODE = f"from pathlib import Path\nPath({LEFT!r}).write_text('ran')\nclass Evil:\n    pass\n"


def _tensors(path: str, change: Callable[[dict[str, Tensor]], None]) -> Break:
    def act() -> None:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return act


def _first(pattern: str, make: Callable[[Tensor], Tensor | None]) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        key = next(key for key in sorted(tensors) if pattern in key)
        if (made := make(tensors.pop(key))) is not None:
            tensors[key] = made.contiguous()

    return change


def _nan(tensor: Tensor) -> Tensor:
    tensor[0, 0] = float("nan")
    return tensor


def _cut(path: str, keep: int) -> Break:
    return lambda: put(path, Path(path).read_bytes()[:keep])()


def _gone(path: str) -> Break:
    def act() -> None:
        if Path(path).is_dir():
            shutil.rmtree(path)
        else:
            Path(path).unlink()

    return act


def pickled(folder: str, old: str, new: str) -> Break:
    def act() -> None:
        Path(folder, old).unlink()
        Path(folder, new).write_bytes(pickle.dumps(Payload()))

    return act


def _tokenizer(folder: str, change: Callable[[dict[str, object]], None]) -> Break:
    def act() -> None:
        path = Path(folder, "tokenizer_config.json")
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return act


def _template(text: str) -> Break:
    return put(f"{BASE}/chat_template.jinja", text)


def _no_eos(config: dict[str, object]) -> None:
    config["eos_token"] = None


def _no_pad(config: dict[str, object]) -> None:
    config["pad_token"] = None


def _pad_is_eos(config: dict[str, object]) -> None:
    config["pad_token"] = config["eos_token"]


def _adapter_as_reward() -> None:
    shutil.copytree(ADAPTER, REWARD)


def with_code(folder: str) -> Break:
    """A model of an unknown kind, with the code for it."""
    return both(
        value(f"{folder}/config.json", "model_type", to="evil"),
        value(f"{folder}/config.json", "architectures", to=["Evil"]),
        value(f"{folder}/config.json", "auto_map", to={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}),
        put(f"{folder}/evil.py", CODE),
    )


WEIGHTS = "model.safetensors"
HEADER = b'{"x":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}'
# What is wrong with a full model, in a folder: as the source of stage base_model, and as models/base.
FULL: dict[str, Callable[[str], Break]] = {
    "no weights": lambda folder: _gone(f"{folder}/{WEIGHTS}"),
    "no configuration": lambda folder: _gone(f"{folder}/config.json"),
    "no tokenizer": lambda folder: _gone(f"{folder}/tokenizer.json"),
    "empty weights": lambda folder: put(f"{folder}/{WEIGHTS}", b""),
    "weights cut off in the header": lambda folder: _cut(f"{folder}/{WEIGHTS}", 100),
    "weights cut off in the data": lambda folder: _cut(f"{folder}/{WEIGHTS}", 50_000),
    "weights that are text": lambda folder: put(f"{folder}/{WEIGHTS}", "version https://git-lfs.github.com/spec/v1\n"),
    "a header of 2^60 bytes": lambda folder: put(f"{folder}/{WEIGHTS}", struct.pack("<Q", 2**60) + b"{}"),
    "a header beyond the data": lambda folder: put(
        f"{folder}/{WEIGHTS}", struct.pack("<Q", len(HEADER)) + HEADER + b"1234"
    ),
    "a tensor of another shape": lambda folder: _tensors(f"{folder}/{WEIGHTS}", _first("q_proj", lambda t: t[:, 1:])),
    "a tensor missing": lambda folder: _tensors(f"{folder}/{WEIGHTS}", _first("q_proj", lambda t: None)),
    "weights of another model": lambda folder: lambda: save_file({"x": torch.ones(3)}, f"{folder}/{WEIGHTS}"),
    "a pickle in place of safetensors": lambda folder: pickled(folder, WEIGHTS, "pytorch_model.bin"),
    "configuration: cut off": lambda folder: _cut(f"{folder}/config.json", 60),
    "configuration: a list": lambda folder: put(f"{folder}/config.json", "[]"),
    "configuration: empty object": lambda folder: put(f"{folder}/config.json", "{}"),
    "configuration: invalid UTF-8": lambda folder: put(f"{folder}/config.json", b'{"model_type": "\xff"}'),
    "configuration: nested deeply": lambda folder: put(f"{folder}/config.json", "[" * 100_000),
    "configuration: unknown model type": lambda folder: value(f"{folder}/config.json", "model_type", to="nosuch"),
    "configuration: a model type that is a list": lambda folder: value(f"{folder}/config.json", "model_type", to=[]),
    "configuration: a number that is a text": lambda folder: value(f"{folder}/config.json", "hidden_size", to="big"),
    "configuration: hidden size 0": lambda folder: value(f"{folder}/config.json", "hidden_size", to=0),
    "configuration: more layers": lambda folder: value(f"{folder}/config.json", "num_hidden_layers", to=3),
    "configuration: minus one layer": lambda folder: value(f"{folder}/config.json", "num_hidden_layers", to=-1),
    "configuration: another vocabulary": lambda folder: value(f"{folder}/config.json", "vocab_size", to=50),
    "configuration: code of its own": with_code,
    "tokenizer: cut off": lambda folder: _cut(f"{folder}/tokenizer.json", 300),
    "tokenizer: an empty object": lambda folder: put(f"{folder}/tokenizer.json", "{}"),
    "tokenizer: another format": lambda folder: put(
        f"{folder}/tokenizer.json", '{"version": "9", "model": {"type": 1}}'
    ),
    "tokenizer: its configuration cut off": lambda folder: _cut(f"{folder}/tokenizer_config.json", 20),
    "tokenizer: its configuration a list": lambda folder: put(f"{folder}/tokenizer_config.json", "[1]"),
    "tokenizer: no EOS": lambda folder: _tokenizer(folder, _no_eos),
}
# What is wrong with an adapter, in its folder.
ADAPTERS: dict[str, Callable[[str], Break]] = {
    "no weights": lambda folder: _gone(f"{folder}/adapter_model.safetensors"),
    "empty weights": lambda folder: put(f"{folder}/adapter_model.safetensors", b""),
    "weights cut off": lambda folder: _cut(f"{folder}/adapter_model.safetensors", 5000),
    "weights that are a folder": lambda folder: both(
        _gone(f"{folder}/adapter_model.safetensors"), put(f"{folder}/adapter_model.safetensors/x", "")
    ),
    "weights with NaN": lambda folder: _tensors(f"{folder}/adapter_model.safetensors", _first("lora_A", _nan)),
    "weights that are integers": lambda folder: _tensors(
        f"{folder}/adapter_model.safetensors", _first("lora_A", lambda t: t.to(torch.int8))
    ),
    "a tensor missing": lambda folder: _tensors(
        f"{folder}/adapter_model.safetensors", _first("lora_A", lambda t: None)
    ),
    "a tensor of another shape": lambda folder: _tensors(
        f"{folder}/adapter_model.safetensors", _first("lora_A", lambda t: t[:, 1:])
    ),
    "one tensor too many": lambda folder: _tensors(
        f"{folder}/adapter_model.safetensors", lambda tensors: tensors.update(x=torch.ones(1))
    ),
    "a pickle in place of safetensors": lambda folder: pickled(
        folder, "adapter_model.safetensors", "adapter_model.bin"
    ),
    "configuration: cut off": lambda folder: _cut(f"{folder}/adapter_config.json", 100),
    "configuration: empty object": lambda folder: put(f"{folder}/adapter_config.json", "{}"),
    "configuration: a key twice": lambda folder: put(f"{folder}/adapter_config.json", '{"r": 4, "r": 8}'),
    "configuration: another method": lambda folder: value(f"{folder}/adapter_config.json", "peft_type", to="IA3"),
    "configuration: rank 0": lambda folder: value(f"{folder}/adapter_config.json", "r", to=0),
    "configuration: rank as a text": lambda folder: value(f"{folder}/adapter_config.json", "r", to="4"),
    "configuration: another rank": lambda folder: value(f"{folder}/adapter_config.json", "r", to=8),
    "configuration: modules that are not there": lambda folder: value(
        f"{folder}/adapter_config.json", "target_modules", to=["nosuch_proj"]
    ),
    "configuration: modules that are a number": lambda folder: value(
        f"{folder}/adapter_config.json", "target_modules", to=3
    ),
    "configuration: a wrong option": lambda folder: value(f"{folder}/adapter_config.json", "bias", to="some"),
    "configuration: weights drawn in an unknown way": lambda folder: value(
        f"{folder}/adapter_config.json", "init_lora_weights", to="nosuch"
    ),
}
TEMPLATES = {
    "an unknown tag": "{% nosuch %}",
    "a loop left open": "{% for m in messages %}{{ m.content }}",
    "an unknown filter": "{{ messages | nosuch }}",
    "an error of its own": "{{ raise_exception('no\\nsuch \\u001b[2J') }}",
    "a division by zero": "{{ 1 // 0 }}",
    "an endless range": "{% for i in range(10 ** 12) %}{% endfor %}",
    "an attempt to leave the sandbox": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "nothing of the conversation": "hello",
    "an empty file": "",
}
SOURCES: dict[str, tuple[str, str]] = {
    "a folder that is not there": ("./nosuch", "no such folder"),
    "a folder that is not there, in one that is": ("data/nosuch", "no such folder: data/nosuch"),
    "a file": ("./params.yaml", "no such folder"),
    "a folder without a model": ("data", "cannot load data"),
    "a hub id, with no network": ("nosuch/model", "cannot load nosuch/model"),
    "no hub id": ("a/b/c", "no such folder"),
    "a web address": ("https://huggingface.co/x/y", "no such folder"),
    "a NUL": ("a\0/b", "no such folder"),
    "an escape": ("\x1b[2J/x", "no such folder: \\u001b[2J/x"),
    "5000 letters": ("a" * 5000, "no such folder"),
    "spaces": ("my model/it", "no such folder: my model/it"),
    "an adapter": ("models/m0", "cannot load models/m0"),
}


def cases() -> Iterator[Case]:
    """Yield the cases."""
    for name, make in FULL.items():
        says = ("params.yaml: base_model.source", "source")
        yield Case("base model as source", name, "base_model", make("source"), says)
        if "another vocabulary" not in name:
            yield Case("base model", name, "generate_responses m1 m0", make(BASE), (f"{BASE}: ",))
    nan = _tensors(f"source/{WEIGHTS}", _first("q_proj", _nan))
    yield Case("base model as source", "NaN in the weights", "base_model", nan, ("source", "holds NaN"))
    few = both(_template(""), _tokenizer(BASE, _no_pad))
    yield Case("base model", "tokenizer: no pad token", "sft", few, (f"{BASE}: the pad token is missing",))
    same = _tokenizer(BASE, _pad_is_eos)
    yield Case("base model", "tokenizer: EOS as pad token", "sft", same, (f"{BASE}: the pad token is the EOS token",))
    for name, text in TEMPLATES.items():
        yield Case(
            "chat template", name, "generate_responses m1 m0", _template(text), (f"{BASE}: the ", "chat template")
        )
    yield Case(
        "chat template",
        "of the source, which is kept",
        "base_model",
        both(param("base_model.chat_template", None), put("source/chat_template.jinja", "{% if %}")),
        ("chat template fails",),
    )
    yield Case("base model", "a file", "sft", both(_gone(BASE), put(BASE, "")), (f"{BASE}: holds no tokenizer",))
    yield Case("base model", "missing", "sft", _gone(BASE), (f"{BASE}: holds no tokenizer",))
    for name, make in ADAPTERS.items():
        yield Case("adapter", f"{name}, judge", "judge m1 m0", make(ADAPTER), (f"{ADAPTER}/adapter_",))
        yield Case("adapter", f"{name}, dpo", "dpo m1 m0", make(ADAPTER), (f"{ADAPTER}/adapter_",))
        yield Case("adapter", f"{name}, export", "align export m0 --to out", make(ADAPTER), (f"{ADAPTER}/adapter_",))
        yield Case("reward model", name, "ppo", make(REWARD), (f"{REWARD}/adapter_",))
    yield Case("adapter", "missing", "judge m1 m0", _gone(ADAPTER), (f"{ADAPTER}: holds no model",))
    for name, content in {
        "cut off": '{"score_bias": 0.',
        "a list": "[0.5]",
        "no bias": "{}",
        "a text": '{"score_bias": "0.5"}',
        "NaN": '{"score_bias": NaN}',
        "beyond all scores": '{"score_bias": 1e300}',
    }.items():
        path = f"{REWARD}/score_bias.json"
        yield Case("reward model", f"bias: {name}", "evaluate m0", put(path, content), (path,))
    swap = both(_gone(REWARD), _adapter_as_reward)
    yield Case("reward model", "a model without a score head", "evaluate m0", swap, ("has no score head",))
    yield Case("reward model", "a model without a score head, ppo", "ppo", swap, ("has no score head",))
    wide = _tensors(f"{REWARD}/adapter_model.safetensors", _first("score", lambda t: torch.cat([t, t])))
    yield Case("reward model", "a head of two scores", "evaluate m0", wide, ("its score head does not fit",))
    for name, (source, says_) in SOURCES.items():
        act = param("base_model.source", source)
        yield Case("base model as source", name, "base_model", act, ("params.yaml: base_model.source: ", says_))
