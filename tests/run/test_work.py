"""Finished rows of a stage: kept until it succeeds, found by an equal run alone, done once."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.core.errors import InputError
from align.core.params import Params
from align.generation.local import TorchGenerator
from align.generation.sampling import SamplingParams
from align.models.adapters import LoraSettings
from align.models.base import load_base, load_tokenizer
from align.models.tokenization import encode_user
from align.run import work as resume
from align.run.release import resume_root
from align.run.runtime import RuntimeSettings
from align.run.work import Pace, Rows, Work
from tests.committed import PARAMS_YAML, REPOSITORY
from tests.factories import embeddings


class Stopped(Exception):
    """Stands for a kill: what is on disk is what the next run finds."""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for name in ("DVC_STAGE", "ALIGN_CHECKPOINT_SECONDS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def read_params() -> Params:
    params = Params.read(PARAMS_YAML)
    params.section("lora", LoraSettings)
    return params


@pytest.fixture
def begin(runtime: RuntimeSettings) -> Callable[..., Work]:
    def make(params: Params | None = None, inputs: tuple[Path, ...] = (), stage: str = "judge@m1") -> Work:
        return Work(stage, params or read_params(), runtime, inputs)

    return make


@contextmanager
def stopped(work: Work) -> Iterator[Work]:
    with suppress(Stopped), work:
        yield work
        raise Stopped


def folders(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.rglob("identity.json"))


def test_rows_are_kept_when_a_stage_fails_and_deleted_when_it_succeeds(begin: Callable[..., Work], root: Path) -> None:
    with stopped(begin()) as work:
        work.rows("a").finish({0: "x", 2: [0.1 + 0.2, float("-inf")]})
        work.rows("b").finish({1: None})
    assert len(folders(root)) == 1

    with begin() as work:
        assert work.rows("a") == {0: "x", 2: [0.1 + 0.2, float("-inf")]}
        assert work.rows("b") == {1: None}
        assert work.rows("c") == {}
    assert folders(root) == []


def test_a_stage_that_does_nothing_leaves_nothing(begin: Callable[..., Work], root: Path) -> None:
    with begin():
        pass
    with stopped(begin()):
        pass
    assert not (root / ".align").exists()


CHANGES = ["nothing", "a param", "another section read", "an input", "code", "a version", "the stage"]


@pytest.mark.parametrize("change", CHANGES)
def test_rows_are_found_by_a_run_with_equal_params_inputs_code_and_versions_alone(
    change: str, begin: Callable[..., Work], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = root / "prompts.jsonl"
    source.write_text("one\n")
    with stopped(begin(inputs=(source,))) as work:
        work.rows("a").finish({0: "x"})
    params, stage = read_params(), "judge@m1"
    if change == "a param":
        params.used["lora"] = params.used["lora"] | {"r": 17}
    elif change == "another section read":
        assert params.seed
    elif change == "an input":
        source.write_text("two\n")
    elif change == "code":
        monkeypatch.setattr(resume, "code_hashes", lambda: {"a.py": "other"})
    elif change == "a version":
        monkeypatch.setattr(resume, "environment", lambda runtime: {"torch": "other"})
    elif change == "the stage":
        stage = "judge@m2"

    with begin(params, (source,), stage) as work:
        assert work.rows("a") == ({0: "x"} if change == "nothing" else {})
    assert len(folders(root)) == (0 if change == "nothing" else 1)


@pytest.mark.parametrize("garbage", [b"", b"\0\0\0", b"\xff{", b'["x", [[9, '])
def test_a_file_cut_off_anywhere_gives_the_rows_of_its_whole_lines_and_takes_new_ones(
    garbage: bytes, begin: Callable[..., Work]
) -> None:
    batches: list[dict[int, Any]] = [{0: "a"}, {2: "é\n"}, {3: [2.5]}]
    with stopped(begin()) as work:
        for batch in batches:
            work.rows("x").finish(batch)
        file = work.folder / "rows-0.jsonl"
    content = file.read_bytes()
    ends = [i for i in range(len(content)) if content[i : i + 1] == b"\n"]
    cuts = [cut for end in ends for cut in (end - 3, end, end + 1, end + 2) if cut <= len(content)]
    for cut in [0, *cuts]:
        file.write_bytes(content[:cut] + garbage)
        whole = content[:cut].count(b"\n")
        expected = {number: value for batch in batches[:whole] for number, value in batch.items()}

        with stopped(begin()) as work:
            assert work.rows("x") == expected, cut
            work.rows("x").finish({7: "new"})
        with stopped(begin()) as work:
            assert work.rows("x") == expected | {7: "new"}, cut


HOLDER = """
import sys, time
from pathlib import Path
from align.core.params import Params
from align.models.adapters import LoraSettings
from align.run.work import Work
from align.run.runtime import RuntimeSettings
params = Params.read(Path(sys.argv[1]))
params.section("lora", LoraSettings)
runtime = RuntimeSettings(device="cpu", dtype="float32", quantization="none", optim="adamw_torch",
    num_threads=2, batch_size=8)
with Work("judge@m1", params, runtime, []) as work:
    rows = work.rows("a")
    print("has", sorted(rows), flush=True)
    if sys.argv[2] == "hold":
        rows.finish({len(rows): "x"})
        print("wrote", flush=True)
        time.sleep(600)
"""


def holder(how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(PARAMS_YAML), how],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_second_writer_waits_for_the_first_names_it_and_goes_on_from_its_rows_when_it_is_killed() -> None:
    with holder("hold") as first, holder("hold") as third:
        try:
            assert first.stdout is not None
            assert third.stdout is not None
            assert third.stderr is not None
            leader, waiting = (first, third) if _first_line(first, third) is first else (third, first)
            assert leader.stdout is not None
            assert waiting.stdout is not None
            assert waiting.stderr is not None
            told = waiting.stderr.readline()
            assert told == f"judge@m1: waits for process {leader.pid}, which does the same work\n"
            assert leader.stdout.readline() == "wrote\n"
            assert not readable(waiting, 0.5)
            leader.send_signal(signal.SIGKILL)
            assert waiting.stdout.readline() == "has [0]\n"
        finally:
            first.kill()
            third.kill()


def readable(process: subprocess.Popen[str], seconds: float) -> bool:
    with selectors.DefaultSelector() as selector:
        assert process.stdout is not None
        selector.register(process.stdout, selectors.EVENT_READ)
        return bool(selector.select(seconds))


def _first_line(*processes: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """Return the process that writes a line on stdout first; the other is locked out and writes none."""
    found = next(process for _ in range(60) for process in processes if readable(process, 1))
    assert found.stdout is not None
    assert found.stdout.readline() == "has []\n"
    return found


def test_a_stage_whose_dvc_is_gone_stops_after_what_it_has_finished(
    begin: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "judge@m1")
    with stopped(begin()) as work:
        work.rows("a").finish({0: "x"})
        monkeypatch.setattr(os, "getppid", lambda: 1)
        with pytest.raises(InputError, match=r"judge@m1: DVC was killed.*run the stage again"):
            work.rows("a").finish({1: "y"})
    with begin() as work:
        assert work.rows("a") == {0: "x", 1: "y"}


def test_checkpoints_cost_at_most_their_share_of_the_time_whatever_they_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace, work, saving = Pace(), 0.0, 0.0
    for step in range(5000):
        now, work = now + 1.0, work + 1.0
        if pace.due():
            cost = 0.01 if step < 1000 else 3.0
            now, saving = now + cost, saving + cost
            pace.saved()
    assert 0 < saving < 0.013 * work


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_change_of_the_clock_changes_nothing(
    jump: float, begin: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped(begin()) as work:
        work.rows("a").finish({0: "x"})
    plain = time.time
    monkeypatch.setattr(time, "time", lambda: plain() + jump)
    for file in resume_root().rglob("*"):
        os.utime(file, (max(0, plain() + jump), max(0, plain() + jump)))
    assert not Pace().due()
    with begin() as work:
        assert work.rows("a") == {0: "x"}


# What the generators do with it.

SAMPLED = SamplingParams(max_new_tokens=10, temperature=1.2)
TEXTS = ["Hi", "What is rust?", "Tell me of a dog and 12 cats.", "Why?", "How long?", "Say it.", "Is it?", "Name one."]


@pytest.fixture
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny_base)


@pytest.fixture
def model(tiny_base: Path, runtime: RuntimeSettings, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    model = load_base(tiny_base, runtime)
    with torch.no_grad():
        embeddings(model)[tokenizer.eos_token_id] *= 3
    return model


def ask(generator: TorchGenerator, kind: str) -> Any:
    prompts = [encode_user(generator.tokenizer, text) for text in TEXTS]
    if kind == "generate":
        return generator.generate(prompts, SAMPLED, list(range(len(TEXTS))), n=2, description="answers")
    return generator.next_token_logprobs(prompts, [5, 6, 7], description="scores")


def stop_after(batches: int, work: Work, task: Callable[[Work], Any]) -> None:
    """Do the task until so many batches are finished."""
    plain, count = Rows.finish, 0

    def finish(self: Rows, rows: Any) -> None:
        nonlocal count
        plain(self, rows)
        count += 0 if [*rows] == [0] and rows[0] == 256 else 1  # the budget of tokens is no batch
        if count == batches:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch, suppress(Stopped), work:
        patch.setattr(Rows, "finish", finish)
        task(work)
    assert count == batches


@pytest.mark.parametrize("kind", ["generate", "logprobs"])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_run_that_goes_on_gives_the_rows_of_one_that_was_not_stopped_and_does_no_finished_one_again(
    kind: str,
    batch: int,
    begin: Callable[..., Work],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    capsys: pytest.CaptureFixture[str],
) -> None:
    per_batch, n = (2, 2) if kind == "generate" else (1, 1)

    def generator(work: Work | None) -> TorchGenerator:
        return TorchGenerator(model, tokenizer, per_batch * n, 256, work=work, name="m1")

    expected = ask(generator(None), kind)
    stop_after(batch, begin(), lambda work: ask(generator(work), kind))
    capsys.readouterr()

    forwards: list[int] = []
    hook = model.register_forward_pre_hook(lambda module, args, kwargs: forwards.append(1), with_kwargs=True)
    with begin() as work:
        found = ask(generator(work), kind)
        assert (
            capsys.readouterr()
            .out.strip()
            .endswith(f": resuming with {batch * per_batch * n} of {len(TEXTS) * n} rows finished")
        )
        after = len(forwards)
        again = ask(generator(work), kind)
        # With every row there, nothing is computed but what the judged prompts share.
        assert len(forwards) - after <= 1
    hook.remove()
    assert found == again == expected


def test_rows_of_one_model_are_not_taken_for_those_of_another(
    begin: Callable[..., Work], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with begin() as work:
        first = ask(TorchGenerator(model, tokenizer, 8, work=work, name="judge"), "logprobs")
        with torch.no_grad():
            embeddings(model).mul_(1.1)
        assert ask(TorchGenerator(model, tokenizer, 8, work=work, name="judge"), "logprobs") == first
        assert ask(TorchGenerator(model, tokenizer, 8, work=work, name="subject"), "logprobs") != first


def test_batches_are_cut_as_at_first_whatever_memory_the_next_run_finds(
    begin: Callable[..., Work], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with stopped(begin()) as work:
        ask(TorchGenerator(model, tokenizer, 8, 64, work=work), "generate")
    with begin() as work:
        assert TorchGenerator(model, tokenizer, 8, 999, work=work)._budget() == 64


def test_a_batch_that_was_halved_is_halved_alike_when_the_run_goes_on(
    begin: Callable[..., Work],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, sizes = TorchGenerator._decode, list[int]()

    def decode(self: TorchGenerator, prompts: list[list[int]], *args: Any) -> list[list[int]]:
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, prompts, *args)

    monkeypatch.setattr(TorchGenerator, "_decode", decode)
    expected = ask(TorchGenerator(model, tokenizer, 16, 4096), "generate")
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    # The budget of tokens counts as one.
    stop_after(2, begin(), lambda work: ask(TorchGenerator(model, tokenizer, 16, 4096, work=work), "generate"))
    sizes.clear()
    with begin() as work:
        assert ask(TorchGenerator(model, tokenizer, 16, 4096, work=work), "generate") == expected
    assert sizes == [2, 4, 2, 2]


def test_the_log_tells_rows_that_were_done_from_rows_that_were_recovered(
    begin: Callable[..., Work],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    root: Path,
) -> None:
    stop_after(1, begin(), lambda work: ask(TorchGenerator(model, tokenizer, 4, 256, work=work), "generate"))
    with begin() as work:
        ask(TorchGenerator(model, tokenizer, 4, 256, work=work), "generate")
    [entry] = map(json.loads, (root / ".align/log/generation.jsonl").read_text().splitlines())
    assert (entry["recovered"], entry["rows"]) == (4, 12)


# Between the end of a stage and DVC's record of it.
