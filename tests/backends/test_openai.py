"""The OpenAI backend against real server processes: `transformers serve`, and one that speaks vLLM's dialect."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from align.backends.openai import OpenAIGenerator
from align.core.errors import InputError
from align.core.params import Params
from align.generation.generator import Completion
from align.generation.local import TorchGenerator
from align.generation.sampling import SamplingParams
from align.models.base import load_base, load_tokenizer
from align.models.tokenization import encode_user
from align.run.runtime import RuntimeSettings
from align.run.work import Work
from tests.committed import PARAMS_YAML

GREEDY = SamplingParams(max_new_tokens=12, temperature=0.0)
SAMPLED = SamplingParams(max_new_tokens=12, temperature=1.0, top_p=0.95)
TEXTS = ("Hi", "What is rust?", "How long can rice sit")
KEY = "sk-of-the-test"


@pytest.fixture(scope="module")
def base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base as a server wants it: sampling where a temperature is given."""
    folder = tmp_path_factory.mktemp("served") / "base"
    shutil.copytree(tiny_base, folder)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"do_sample": True, "top_k": 0}))
    return folder


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(base)


@pytest.fixture(scope="module")
def prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [encode_user(tokenizer, text) for text in TEXTS]


@pytest.fixture(scope="module")
def local(base: Path, runtime: RuntimeSettings) -> TorchGenerator:
    return TorchGenerator(load_base(base, runtime), load_tokenizer(base), 8)


def connect(base: Path, url: str, **changes: Any) -> OpenAIGenerator:
    settings: dict[str, Any] = {
        "base_url": url,
        "model": str(base),
        "dialect": "openai",
        "concurrency": 1,
        "timeout": 60.0,
    }
    return OpenAIGenerator(base, "m0", **(settings | {"max_retries": 0} | changes))


@pytest.fixture(scope="module")
def serve(base: Path) -> Iterator[str]:
    """Start `transformers serve` and yield its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--device", "cpu"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(240):
            assert process.poll() is None, "transformers serve ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.25)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def texts(rows: list[list[Completion]]) -> list[list[tuple[str, str]]]:
    return [[(completion.text, completion.finish_reason) for completion in row] for row in rows]


def test_greedy_text_of_transformers_serve_is_that_of_the_reference_backend(
    serve: str, base: Path, prompts: list[list[int]], local: TorchGenerator
) -> None:
    found = connect(base, serve).generate(prompts, GREEDY, [0, 0, 0])
    assert texts(found) == texts(local.generate(prompts, GREEDY, [0, 0, 0]))


def test_samples_of_transformers_serve_are_distinct_and_each_follows_from_its_seed(
    serve: str, base: Path, prompts: list[list[int]]
) -> None:
    generator = connect(base, serve)
    [first, *_] = rows = generator.generate(prompts, SAMPLED, [1, 2, 3], n=3)
    assert len({completion.text for completion in first}) == 3
    assert generator.generate(prompts[::-1], SAMPLED, [3, 2, 1], n=3) == rows[::-1]


def test_a_server_without_logprobs_is_a_clear_error(serve: str, base: Path, prompts: list[list[int]]) -> None:
    with pytest.raises(InputError, match=r"returns no log-probabilities.*judge\.mode to sample"):
        connect(base, serve).next_token_logprobs(prompts, [5, 6])


def test_a_prompt_that_is_too_long_is_counted_before_any_request(base: Path, local: TorchGenerator) -> None:
    long = [[5] * 1020, [5, 6], [5] * 1013]
    for generator in (local, connect(base, "http://127.0.0.1:9/v1")):
        with pytest.raises(InputError, match=r"2 of 3 prompts are too long: with 12 new .*prompt 1, 1020 tokens"):
            generator.generate(long, GREEDY, [0, 0, 0])


class Dialect(BaseHTTPRequestHandler):
    """vLLM's completions API over the reference backend.

    It fails as often as `failures` says, with `status`, and always after `serves` requests, if that is not None.
    """

    local: TorchGenerator
    failures = 0
    serves: int | None = None
    status = 503
    seen: ClassVar[list[dict[str, Any]]] = []  # of the requests; each test begins with none
    keys: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = type(self)
        kind.seen.append(body)
        kind.keys.append(self.headers.get("Authorization"))
        if kind.failures or (kind.serves is not None and len(kind.seen) > kind.serves):
            kind.failures = max(0, kind.failures - 1)
            return self.answer(kind.status, {"error": {"message": "busy"}})
        choice: dict[str, Any] = {"index": 0, "logprobs": None}
        if body.get("logprob_token_ids"):
            [row] = kind.local.next_token_logprobs([body["prompt"]], body["logprob_token_ids"])
            names = [f"token_id:{token}" for token in body["logprob_token_ids"]]
            choice["logprobs"] = {"top_logprobs": [dict(zip(names, row, strict=True))]}
            choice |= {"text": "?", "finish_reason": "length"}
        else:
            sampling = SamplingParams(body["max_tokens"], body["temperature"], body["top_p"])
            [[completion]] = kind.local.generate([body["prompt"]], sampling, [body["seed"]])
            choice |= {"text": completion.text, "finish_reason": completion.finish_reason}
            choice["token_ids"] = completion.token_ids
        return self.answer(
            200, {"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}
        )

    def answer(self, status: int, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def vllm(local: TorchGenerator, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    Dialect.local, Dialect.failures, Dialect.status, Dialect.seen, Dialect.keys = local, 0, 503, [], []
    Dialect.serves = None
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dialect)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def test_token_ids_and_log_probabilities_go_through_vllms_dialect_unchanged(
    vllm: str, base: Path, prompts: list[list[int]], local: TorchGenerator
) -> None:
    generator = connect(base, vllm, dialect="vllm", model="{name}", concurrency=3)
    assert generator.generate(prompts, GREEDY, [0, 0, 0]) == local.generate(prompts, GREEDY, [0, 0, 0])
    expected = torch.tensor(local.next_token_logprobs(prompts, [20, 3, 599]))
    torch.testing.assert_close(torch.tensor(generator.next_token_logprobs(prompts, [20, 3, 599])), expected)
    assert {body["model"] for body in Dialect.seen} == {"m0"}
    assert sorted(body["prompt"] for body in Dialect.seen[:3]) == sorted(prompts)
    assert set(Dialect.keys) == {f"Bearer {KEY}"}


def test_a_failed_request_is_tried_again_and_nothing_is_lost(vllm: str, base: Path, prompts: list[list[int]]) -> None:
    Dialect.failures = 2
    rows = connect(base, vllm, dialect="vllm", max_retries=2).generate(prompts, SAMPLED, [1, 2, 3], n=2)
    assert [len(row) for row in rows] == [2, 2, 2]
    assert len(Dialect.seen) == 6 + 2


@pytest.mark.parametrize("kind", ["generate", "logprobs"])
def test_a_run_whose_server_went_away_asks_for_the_missing_rows_alone(
    kind: str,
    vllm: str,
    base: Path,
    prompts: list[list[int]],
    runtime: RuntimeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    params = Params.read(PARAMS_YAML)

    def ask(work: Work | None) -> Any:
        generator = connect(base, vllm, dialect="vllm", work=work)
        if kind == "generate":
            return generator.generate(prompts, SAMPLED, [1, 2, 3], n=2)
        return generator.next_token_logprobs(prompts, [5, 6])

    expected, rows = ask(None), len(Dialect.seen)
    Dialect.seen, Dialect.serves = [], 2
    with suppress(InputError), Work("judge@m1", params, runtime, []) as work:
        ask(work)
    Dialect.seen, Dialect.serves = [], None
    with Work("judge@m1", params, runtime, []) as work:
        assert ask(work) == expected
    assert len(Dialect.seen) == rows - 2


@pytest.mark.parametrize(("status", "says"), [(503, "answered 503"), (404, "answered 404"), (401, "answered 401")])
def test_a_server_that_refuses_is_one_clear_line_without_the_key(
    status: int, says: str, vllm: str, base: Path, prompts: list[list[int]]
) -> None:
    Dialect.failures, Dialect.status = 1000, status
    with pytest.raises(InputError, match=says) as caught:
        connect(base, vllm, dialect="vllm").generate(prompts, GREEDY, [0, 0, 0])
    assert vllm in str(caught.value)
    assert "'" + str(base) + "'" in str(caught.value)
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_server_at_all_is_a_clear_error(base: Path, prompts: list[list[int]]) -> None:
    with pytest.raises(InputError, match=r"http://127.0.0.1:9/v1.*start the server"):
        connect(base, "http://127.0.0.1:9/v1").generate(prompts, GREEDY, [0, 0, 0])


def test_a_prompt_that_text_would_change_is_not_sent_as_text(base: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    pieces = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "the"]
    assert tokenizer.encode("the", add_special_tokens=False) != pieces
    with pytest.raises(InputError, match="would reach the model as different tokens"):
        connect(base, "http://127.0.0.1:9/v1").generate([pieces], GREEDY, [0])
