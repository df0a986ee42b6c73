"""Stage base_model: a local folder becomes models/base, and whatever is wrong is one line."""

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from align.core.templates import PROMPTS_DIR
from align.models.base import load_base, load_tokenizer
from align.models.stack import AdapterStack
from align.models.tokenization import encode_user
from align.run.runtime import RuntimeSettings
from stages.base_model import EMBEDDED, BaseModelSettings, locate, main
from tests.committed import write_params

IDS = torch.tensor([[1, 40, 41, 42]])
CHATML = (PROMPTS_DIR / "chat" / "chatml.jinja").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(source: Path | str, **changes: Any) -> Result:
    """Run the stage with the committed params.yaml, a CPU runtime and changes to section base_model."""
    write_params(Path(), {"base_model": {"source": str(source)} | changes})
    return CliRunner().invoke(main, [])


def assert_one_line_error(result: Result, *words: str) -> None:
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
    assert not Path("models").exists() or not list(Path("models").iterdir())


def test_a_local_folder_becomes_a_base_with_the_same_weights(tiny_source: Path, runtime: RuntimeSettings) -> None:
    result = run(tiny_source)
    assert result.exit_code == 0, result.output
    stack = AdapterStack(Path("models/base"), runtime)
    source = AutoModelForCausalLM.from_pretrained(tiny_source)
    with torch.no_grad():
        assert torch.equal(stack.causal_lm(IDS).logits, source(IDS).logits)
    assert [path.name for path in Path("models").iterdir()] == ["base"]


def test_the_base_has_the_pad_token_and_template_of_the_params(tiny_source: Path, runtime: RuntimeSettings) -> None:
    run(tiny_source)
    tokenizer = load_tokenizer(Path("models/base"))
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.decode(encode_user(tokenizer, "Hi")) == ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    model = load_base(Path("models/base"), runtime)
    assert model.generation_config is not None
    for config in (model.config, model.generation_config):
        assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)


def test_a_pad_token_of_the_vocabulary_leaves_all_weights_alone(tiny_source: Path, runtime: RuntimeSettings) -> None:
    run(tiny_source)
    before, after = (dict(load_base(path, runtime).named_parameters()) for path in (tiny_source, Path("models/base")))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_a_new_pad_token_is_added_to_vocabulary_and_embeddings(tiny_source: Path, runtime: RuntimeSettings) -> None:
    result = run(tiny_source, pad_token="<|pad|>")
    assert result.exit_code == 0, result.output
    before = AutoModelForCausalLM.from_pretrained(tiny_source)
    size = before.config.vocab_size
    tokenizer, model = load_tokenizer(Path("models/base")), load_base(Path("models/base"), runtime)
    assert (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer)) == ("<|pad|>", size, size + 1)
    assert model.config.vocab_size == size + 1
    assert tokenizer("<|pad|>", add_special_tokens=False)["input_ids"] == [size]
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits[..., :size], before(IDS).logits)


@pytest.mark.parametrize("source", ["models/nowhere", "./nowhere", "/nowhere/at/all", "nowhere"])
def test_a_missing_folder_is_one_line_and_leaves_nothing(source: str) -> None:
    assert_one_line_error(run(source), "base_model.source", source)


def test_a_folder_without_a_model_is_one_line_and_leaves_nothing(inside: Path) -> None:
    (inside / "empty").mkdir()
    assert_one_line_error(run(inside / "empty"), "base_model.source", str(inside / "empty"))


def test_a_folder_with_truncated_weights_is_one_line_and_leaves_nothing(tiny_source: Path, inside: Path) -> None:
    folder = inside / "broken"
    folder.mkdir()
    for file in tiny_source.iterdir():
        content = file.read_bytes()
        (folder / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".safetensors" else content)
    assert_one_line_error(run(folder), "base_model.source", str(folder))


def test_a_source_without_pad_token_asks_for_one(tiny_source: Path) -> None:
    assert_one_line_error(run(tiny_source, pad_token=None), "base_model.pad_token")


def test_a_pad_token_equal_to_eos_is_refused(tiny_source: Path) -> None:
    assert_one_line_error(run(tiny_source, pad_token="<|im_end|>"), "base_model.pad_token", "EOS")


def test_a_source_without_chat_template_asks_for_one(tiny_source: Path) -> None:
    assert_one_line_error(run(tiny_source, chat_template=None), "base_model.chat_template")


def test_an_unknown_chat_template_is_named(tiny_source: Path) -> None:
    assert_one_line_error(run(tiny_source, chat_template="chatmI"), "base_model.chat_template", "chatmI.jinja")


def test_a_sources_own_template_is_kept_where_the_param_is_null(tiny_source: Path, inside: Path) -> None:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_source)
    tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    for file in tiny_source.iterdir():
        (inside / "own").mkdir(exist_ok=True)
        (inside / "own" / file.name).write_bytes(file.read_bytes())
    tokenizer.save_pretrained(inside / "own")
    result = run(inside / "own", chat_template=None)
    assert result.exit_code == 0, result.output
    written = load_tokenizer(Path("models/base"))
    assert written.decode(encode_user(written, "Hi")) == "[Hi]"


def variant(source: Path, name: str, **files: Any) -> Path:
    """Return a copy of a model with changed files: JSON objects are merged, texts replace them."""
    folder = Path(shutil.copytree(source, name))
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    for file, value in files.items():
        path = folder / (f"{file}.jinja" if file == "chat_template" else f"{file}.json")
        if isinstance(value, dict):
            value = json.dumps((json.loads(path.read_text()) if path.exists() else {}) | value)
        path.write_text(value, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("settings", "sampled"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, True),
        ({"top_k": 20}, True),
        ({"min_p": 0.1}, True),
        ({"do_sample": False, "temperature": 0.6}, False),
        ({"do_sample": False, "typical_p": 0.5}, False),
    ],
)
def test_sampling_settings_beside_greedy_decoding_are_mended(
    settings: dict[str, Any], sampled: bool, tiny_source: Path
) -> None:
    result = run(variant(tiny_source, "odd", generation_config=settings), chat_template=None)
    assert result.exit_code == 0, result.output
    written = json.loads(Path("models/base/generation_config.json").read_text())
    assert bool(written.get("do_sample")) == sampled
    assert not sampled or settings.items() <= written.items()


def test_a_configuration_that_cannot_be_saved_is_one_line(tiny_source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("no such attention")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", refuse)
    assert_one_line_error(run(tiny_source), "base_model.source", "cannot be saved again: no such attention")


def test_stop_tokens_of_the_model_are_kept_and_a_template_that_ends_turns_with_one_asks_for_it(
    tiny_source: Path,
) -> None:
    eos = {"eos_token": "<|endoftext|>"}
    folder = variant(tiny_source, "two", generation_config={"eos_token_id": [0, 2]}, tokenizer_config=eos)
    # Its pad token is its EOS, too; with the right EOS that is no fault.
    assert_one_line_error(run(folder, chat_template=None), "'<|im_end|>'", 'set base_model.eos_token to "<|im_end|>"')
    result = run(folder, eos_token="<|im_end|>", chat_template=None)
    assert result.exit_code == 0, result.output
    assert json.loads(Path("models/base/generation_config.json").read_text())["eos_token_id"] == [2, 0]


DATED = "{{- '<|im_start|>system\nToday: ' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}"


def test_the_days_date_in_a_template_is_the_same_in_every_run(tiny_source: Path) -> None:
    result = run(variant(tiny_source, "dated", chat_template=DATED + CHATML), chat_template=None)
    assert result.exit_code == 0, result.output
    assert "2025-01-01 in every run" in result.output
    tokenizer = load_tokenizer(Path("models/base"))
    assert "Today: 01 Jan 2025<|im_end|>" in tokenizer.decode(encode_user(tokenizer, "Hi"))


@pytest.mark.parametrize(
    "text", ["{%- set f = '%Y' %}{{- strftime_now(f) }}", "{{- ['a', 'b'] | random }}", "{{- lipsum() }}"]
)
def test_a_template_that_differs_from_run_to_run_is_refused(text: str, tiny_source: Path) -> None:
    folder = variant(tiny_source, "moving", chat_template=text + CHATML)
    assert_one_line_error(run(folder, chat_template=None), "the chat template uses", "base_model.chat_template")


def test_a_template_of_ours_writes_one_bos_where_the_tokenizer_adds_one(tiny_source: Path) -> None:
    folder = variant(tiny_source, "bos", tokenizer_config={"bos_token": "<|im_start|>"})
    tokens = json.loads((folder / "tokenizer.json").read_text())
    start = {"id": "<s>", "ids": [1], "tokens": ["<|im_start|>"]}
    tokens["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": start},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    for name in ("chatml", "plain", "mistral"):
        result = run(folder, chat_template=name)
        assert result.exit_code == 0, result.output
        tokenizer = load_tokenizer(Path("models/base"))
        ids = encode_user(tokenizer, "Hi")
        assert ids[0] == tokenizer.bos_token_id
        begins = tokenizer.decode(ids).count("<|im_start|>")
        assert begins == {"chatml": 3, "plain": 1, "mistral": 1}[name]  # ChatML's own marks are this token here, too


def test_an_earlier_base_survives_a_failed_run(tiny_source: Path) -> None:
    run(tiny_source)
    before = {path.name: path.read_bytes() for path in Path("models/base").iterdir()}
    assert run(tiny_source, pad_token=None).exit_code == 1
    assert {path.name: path.read_bytes() for path in Path("models/base").iterdir()} == before


def test_a_run_that_dies_while_writing_leaves_nothing(tiny_source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("stages.base_model.write_model_card", fail)
    assert run(tiny_source).exit_code == 1
    assert list(Path("models").iterdir()) == []


def test_two_runs_write_the_same_bytes(tiny_source: Path, inside: Path) -> None:
    run(tiny_source)
    Path("models/base").rename(inside / "first")
    run(tiny_source)
    names = sorted(path.name for path in (inside / "first").iterdir())
    assert names == sorted(path.name for path in Path("models/base").iterdir())
    for name in names:
        assert (inside / "first" / name).read_bytes() == (Path("models/base") / name).read_bytes()


def test_the_embedded_model_is_found_in_its_package() -> None:
    try:
        metadata.distribution(EMBEDDED)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{EMBEDDED} is not installed")
    settings = BaseModelSettings(source=EMBEDDED, revision=None, pad_token="<|endoftext|>", chat_template="chatml")
    folder, kwargs = locate(settings)
    assert (Path(folder) / kwargs["gguf_file"]).is_file()


def test_a_hub_id_keeps_its_revision() -> None:
    settings = BaseModelSettings(source="owner/name", revision="abc", pad_token=None, chat_template=None)
    assert locate(settings) == ("owner/name", {"revision": "abc"})
