"""Backends by name, batches within memory, and rows shared out over processes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from align.backends.choose import BACKENDS, GenerationSettings, open_generator
from align.core.errors import InputError
from align.core.rows import Instruction, Message, Prompt, write_rows
from align.generation.generator import Completion
from align.generation.local import RoomyLayer, TorchGenerator
from align.generation.sampling import SamplingParams
from align.models.base import load_base, load_tokenizer
from align.models.tokenization import encode_user
from align.run.runtime import RuntimeSettings
from tests.committed import committed_params, write_params

SAMPLED = SamplingParams(max_new_tokens=10, temperature=1.0, top_p=0.95)
TEXTS = [f"What is {word}?" for word in ("rust", "a bee", "the sea", "bread", "a long and winding road", "it")]
SEEDS = list(range(len(TEXTS)))


def settings(**changes: Any) -> GenerationSettings:
    values = committed_params()["generation"]
    return GenerationSettings.model_validate(values | changes)


@pytest.fixture
def project(
    tiny_base: Path, make_adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with models/base and models/m0, which is the working directory."""
    folder = tmp_path / "project"
    (folder / "models").mkdir(parents=True)
    (folder / "models/base").symlink_to(tiny_base, target_is_directory=True)
    (folder / "models/m0").symlink_to(make_adapter("m0", 1), target_is_directory=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny_base)


@pytest.fixture
def model(tiny_base: Path, runtime: RuntimeSettings) -> PreTrainedModel:
    return load_base(tiny_base, runtime)


@pytest.fixture(scope="module")
def prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [encode_user(tokenizer, text) for text in TEXTS]


def test_every_backend_that_can_be_set_is_registered() -> None:
    assert set(get_args(GenerationSettings.model_fields["backend"].annotation)) == set(BACKENDS)


def test_a_backend_writes_with_the_models_adapter_and_leaves_a_line_in_the_log(
    project: Path, runtime: RuntimeSettings, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(project))
    written: dict[str, list[list[Completion]]] = {}
    for name in ("m0", "base"):
        with open_generator(settings(), runtime, name) as generator:
            written[name] = generator.generate(prompts, SAMPLED, SEEDS, n=2, description=f"{name} answers")
    assert written["m0"] != written["base"]
    log = [json.loads(line) for line in (project / ".align/log/generation.jsonl").read_text().splitlines()]
    assert [(line["description"], line["backend"], line["rows"]) for line in log] == [
        ("m0 answers", "transformers", 12),
        ("base answers", "transformers", 12),
    ]
    assert [line["tokens"] for line in log] == [
        sum(len(completion.token_ids) for row in rows for completion in row) for rows in written.values()
    ]


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="this CPU does not multiply bfloat16")
def test_bfloat16_is_near_the_reference(project: Path, runtime: RuntimeSettings, prompts: list[list[int]]) -> None:
    found = []
    for backend in ("transformers", "bfloat16"):
        with open_generator(settings(backend=backend), runtime, "m0") as generator:
            found.append(torch.tensor(generator.next_token_logprobs(prompts, range(300))))
    assert not torch.equal(*found)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0.3)


def test_bfloat16_where_it_would_be_slow_or_nothing_new_is_a_clear_error(
    project: Path, runtime: RuntimeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = runtime.model_copy(update={"dtype": "bfloat16"})
    with pytest.raises(InputError, match=r"generation\.backend: bfloat16 is for .*here: bfloat16 on cpu"):
        open_generator(settings(backend="bfloat16"), half, "m0").__enter__()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with pytest.raises(InputError, match=r"which does not\); set transformers"):
        open_generator(settings(backend="bfloat16"), runtime, "m0").__enter__()


def test_a_backend_whose_package_is_missing_names_the_extra(project: Path, runtime: RuntimeSettings) -> None:
    with pytest.raises(InputError, match=r"backend: vllm needs .*pip install -e \.\[vllm\]"):
        open_generator(settings(backend="vllm"), runtime, "m0").__enter__()


@pytest.mark.parametrize("limit", [1, 60, 200])
def test_a_token_budget_changes_no_row(
    limit: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    expected = TorchGenerator(model, tokenizer, 64).generate(prompts, SAMPLED, SEEDS, n=3)
    small = TorchGenerator(model, tokenizer, 64, limit)
    assert small.generate(prompts, SAMPLED, SEEDS, n=3) == expected
    torch.testing.assert_close(
        torch.tensor(small.next_token_logprobs(prompts, [5, 6])),
        torch.tensor(TorchGenerator(model, tokenizer, 64).next_token_logprobs(prompts, [5, 6])),
        rtol=1e-5,
        atol=1e-5,
    )


def test_without_a_budget_batches_take_the_power_of_two_within_half_of_the_free_memory(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Memory:
        available = 2 * 1000 * (2 * 2 * 2 * 8 * 4)  # keys and values x layers x heads x width x bytes

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    assert TorchGenerator(model, tokenizer, 8).max_batch_tokens == 512


OUT_OF_MEMORY = {
    "on a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "on a CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
}


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Exception], list[int]]:
    """Return a function that lets decoding fail in batches of more than so many prompts; it returns the sizes tried."""

    def shorten(limit: int, error: Exception) -> list[int]:
        tried: list[int] = []
        decode = TorchGenerator._decode

        def failing(self: TorchGenerator, prompts: list[list[int]], *args: Any) -> list[list[int]]:
            tried.append(len(prompts))
            rows = decode(self, prompts, *args)  # fails late: progress has been made
            if len(prompts) > limit:
                raise error
            return rows

        monkeypatch.setattr(TorchGenerator, "_decode", failing)
        return tried

    return shorten


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_a_batch_that_does_not_fit_is_halved_and_no_row_changes(
    error: Exception,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    short_of_memory: Callable[[int, Exception], list[int]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = TorchGenerator(model, tokenizer, 64).generate(prompts, SAMPLED, SEEDS, n=2)
    tried = short_of_memory(2, error)
    assert TorchGenerator(model, tokenizer, 64).generate(prompts, SAMPLED, SEEDS, n=2) == expected
    assert tried == [6, 3, 1, 2, 3, 1, 2]
    assert "3 batches did not fit into memory and were halved" in capsys.readouterr().err


FINAL = [
    (OUT_OF_MEMORY["on a GPU"], InputError, "out of memory with a single row"),
    (RuntimeError("shapes differ"), RuntimeError, "shapes differ"),
]


@pytest.mark.parametrize(("error", "expected", "says"), FINAL)
def test_a_single_row_that_does_not_fit_is_a_clear_error_and_other_errors_are_not_hidden(
    error: Exception,
    expected: type[Exception],
    says: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    short_of_memory: Callable[[int, Exception], list[int]],
) -> None:
    short_of_memory(0, error)
    with pytest.raises(expected, match=says):
        TorchGenerator(model, tokenizer, 64).generate(prompts, SAMPLED, SEEDS)


def test_a_roomy_layer_holds_what_a_dynamic_one_holds() -> None:
    generator = torch.Generator().manual_seed(1)

    def states(rows: int, tokens: int) -> torch.Tensor:
        return torch.randn(rows, 2, tokens, 4, generator=generator)

    plain = DynamicLayer()
    plain.update(states(3, 5), states(3, 5))
    roomy = RoomyLayer(plain, 2, 4)
    plain.batch_repeat_interleave(2)
    rows = 6
    for keep in (None, None, torch.tensor([0, 3, 4]), None):
        if keep is not None:
            rows = len(keep)
            plain.batch_select_indices(keep)
            roomy.batch_select_indices(keep)
        keys, values = states(rows, 1), states(rows, 1)
        expected, found = plain.update(keys, values), roomy.update(keys, values)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        assert roomy.get_seq_length() == plain.get_seq_length()


# Starts a stage in a process that has less free memory than the one before it.
STAGE_SHORT_OF_MEMORY = """
import os, runpy, sys
import psutil

class Memory:
    available = 512 * (400 - 250 * int(os.environ["RANK"]))  # keys and values of 400 tokens, of 150

psutil.virtual_memory = Memory
runpy.run_module(sys.argv.pop(1), run_name="__main__")
"""


def test_two_processes_with_unequal_memory_write_the_same_rows_as_one(project: Path) -> None:
    responses = {"num_responses": 3, "max_new_tokens": 12, "temperature": 1.0}
    write_params(project, {"runtime": {"batch_size": 6}, "generate_responses": responses})
    rows = [Prompt(id=f"m1-{i}", messages=[Message(role="user", content=text)]) for i, text in enumerate(TEXTS)]
    write_rows(project / "data/m1/prompts.jsonl", rows)
    write_rows(project / "data/m0/ift.jsonl", [Instruction(id="i", category="c", prompt="Why?", completion="So.")])
    out = project / "data/m1/responses.jsonl"
    # On a CPU `accelerate launch` starts one process; torchrun sets the same environment.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    (project / "launched.py").write_text(STAGE_SHORT_OF_MEMORY)
    found = []
    for command in ([sys.executable, "-m"], [*launch, "launched.py"]):
        run = subprocess.run(
            [*command, "stages.generate_responses", "m1", "m0"],
            cwd=project,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        found.append(out.read_bytes())
        out.unlink()
    assert found[0] == found[1]
    assert found[0].count(b"\n") == 18


def test_the_model_of_a_backend_is_as_long_as_its_positions(project: Path, runtime: RuntimeSettings) -> None:
    with (
        open_generator(settings(), runtime, "m0") as generator,
        pytest.raises(InputError, match=r"1 of 2 prompts are too long: with 1 new tokens they exceed the model's 1024"),
    ):
        generator.next_token_logprobs([[5] * 1024, [5] * 1023], [1])
