"""Every reader of bytes of unknown origin, on what hypothesis makes up: it returns, or raises `InputError`."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align.core.errors import InputError, printable, quoted
from align.core.files import parse_json
from align.judge.request import parse_score
from align.models.adapters import load_adapter_config
from align.models.loading import load_adapter_weights, load_score_bias
from tests.faults.broken.workspace import (
    ANSWERS,
    EVAL_PROMPTS,
    INSTRUCTIONS,
    JUDGEMENTS,
    MEASURES,
    PAIRS,
    RESPONSES,
    SCORES,
)
from tests.faults.fuzz_targets import TARGETS

pytestmark = pytest.mark.slow
# Values that JSON can hold, and some that it cannot.
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from(["\ud800", "\x1b[2J", "\u202e", "a" * 5000, " ", ""])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
examples: list[dict[str, object]] = [
    *(dict(rows[0]) for rows in (ANSWERS, EVAL_PROMPTS, INSTRUCTIONS, JUDGEMENTS, PAIRS, RESPONSES, SCORES)),
    dict(MEASURES),
    {"message_tree_id": "t", "prompt": {"text": "Why?", "role": "prompter", "replies": []}},
    {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["q_proj"]},
]


@st.composite
def near_rows(draw: st.DrawFn) -> bytes:
    """A row that is right but for a few keys, as JSON; some bytes of it may be others."""
    row = dict(draw(st.sampled_from(examples)))
    for key in draw(st.lists(st.sampled_from(sorted(row)), max_size=3)):
        row[key] = draw(values)
    row |= draw(st.dictionaries(st.text(max_size=5), values, max_size=1))
    data = bytearray(json.dumps(row, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass"))
    for place in draw(st.lists(st.integers(0, len(data) - 1), max_size=2)):
        data[place] = draw(st.integers(0, 255))
    return bytes(data)


lines = st.lists(st.binary(max_size=60) | near_rows(), max_size=4).map(b"\n".join)
yaml = st.lists(
    st.sampled_from(["a", "number", ": ", "- ", "\n", "  ", "[", "]", "{", "}", "&a ", "*a", "!!", "|", "'", '"', "#"])
    | st.sampled_from(
        ["!!binary ", "!!set ", "!!timestamp ", "2026-13-01", ".nan", "0x", "1e9", "<<", "? ", "---\n", "%"]
    )
    | st.text(max_size=3),
    max_size=40,
).map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass"))
fuzzed = settings(derandomize=True, deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", TARGETS)
@fuzzed
@given(data=st.data())
def test_a_reader_returns_or_raises_input_error(name: str, data: st.DataObject) -> None:
    kinds = {"params": yaml, "section": yaml}
    TARGETS[name](data.draw(kinds.get(name, lines) | st.binary(max_size=300)))


@fuzzed
@given(content=near_rows() | st.binary(max_size=200))
@pytest.mark.parametrize("read", [load_adapter_config, load_adapter_weights])
def test_a_models_files_are_read_or_raise_input_error(
    read: Callable[[Path], object], content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("model", numbered=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes(content)
    with suppress(InputError):
        read(folder)


@fuzzed
@given(content=st.binary(max_size=60) | values.map(lambda value: json.dumps({"score_bias": value}).encode()))
def test_a_score_bias_is_a_moderate_number_or_an_input_error(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("bias", numbered=True) / "score_bias.json"
    path.write_bytes(content)
    with suppress(InputError):
        assert -1e6 <= load_score_bias(path) <= 1e6


@fuzzed
@given(value=values)
def test_strict_json_reads_what_is_json_and_nothing_else(value: object) -> None:
    text = json.dumps(value)
    try:
        found = parse_json(text)
    except ValueError:
        return
    assert json.dumps(found) == text
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode()


@fuzzed
@given(text=st.text(st.characters(), max_size=300), value=values)
def test_an_error_is_one_printable_line_whatever_it_quotes(text: str, value: object) -> None:
    message = InputError(f"{text}: {quoted(value)}; mend it").message
    assert message.isprintable() or all(printable(character) == character for character in message)
    assert len(message.splitlines()) == 1
    assert len(quoted(value)) <= 200
    message.encode()


@fuzzed
@given(text=st.text(max_size=200), score=st.integers(0, 5))
def test_the_last_score_line_counts_whatever_comes_before(text: str, score: int) -> None:
    assert parse_score(f"{text}\nscore: {score}") == score


def test_the_readers_take_no_more_than_linear_time_for_long_texts() -> None:
    for text in ("\n" * 200_000, "score:" + "1" * 200_000 + "x", "score" + ":" * 200_000 + "x", "-" * 200_000 + "x"):
        TARGETS["score"](text.encode())  # quadratic, these took minutes each
