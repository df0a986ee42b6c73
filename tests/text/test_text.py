"""The plain-text track: from rows of a labelled data set to label accuracy, with a Llama and with a GPT of 2018."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click import Command
from click.testing import CliRunner, Result
from pydantic import ValidationError
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel, OpenAIGPTTokenizer, PreTrainedTokenizerBase

from align.core.errors import InputError
from align.core.params import Params
from align.core.rows import read_rows
from align.models.base import load_base, load_tokenizer
from align.run.runtime import RuntimeSettings
from align.run.work import Rows
from align.text.labelled import LabelledText
from align.text.settings import TextSettings
from align.text.training import IGNORED, Choices, collate, encode_choices_of, score_choices, training_row
from align.training import trainer as training
from stages import base_model
from stages.text import data as text_data
from stages.text import evaluate as text_evaluate
from stages.text import sft as text_sft
from tests.committed import COMMITTED, PARAMS_YAML, committed_params, write_params
from tests.text.gpt import gpt_bpe

LABELS = ["negative", "neutral", "positive"]
TEMPLATE = "{text}\nsentiment: {label_text}"
WORDS = {"negative": "awful", "neutral": "table", "positive": "lovely"}


def row(name: str, text: str, label: str) -> dict[str, Any]:
    return {"id": name, "text": text, "label": LABELS.index(label), "label_text": label}


def rows(count: int, begin: str) -> list[dict[str, Any]]:
    """Return texts whose first word tells the label; `begin` keeps two splits apart."""
    labels = [LABELS[i % 3] for i in range(count)]
    return [row(f"{begin}{i}", f"{WORDS[label]} {begin} {i}", label) for i, label in enumerate(labels)]


def write(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


@pytest.fixture
def linked_base(tiny_base: Path, workspace: Callable[..., None]) -> None:
    """Let models/base be the tiny Llama."""
    Path("models").mkdir()
    Path("models/base").symlink_to(tiny_base)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that writes params.yaml with changes to sections `base_model` and `text`."""
    monkeypatch.chdir(tmp_path)
    write(Path("train.jsonl"), rows(24, "a"))
    write(Path("test.jsonl"), rows(9, "b"))

    def change(base: dict[str, Any] | None = None, **text: Any) -> None:
        files = {"train": "train.jsonl", "test": "test.jsonl", "learning_rate": 1e-2}
        write_params(Path(), {"base_model": base or {}, "text": files | text})

    change()
    return change


def run(command: Command, *arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def succeed(command: Command, *arguments: str) -> str:
    result = run(command, *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def evaluation() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(Path("data/text/eval.json").read_text())
    return value


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub has openai-gpt: neither EOS nor pad token, words in lower case, a byte is no token."""
    folder = tmp_path_factory.mktemp("gpt")
    bare = OpenAIGPTTokenizer()
    texts = [value["text"] for value in rows(24, "a") + rows(9, "b")]
    bare.backend_tokenizer.model = gpt_bpe(bare.backend_tokenizer, [*texts, f"sentiment: {' '.join(LABELS)}"])
    bare.save_pretrained(folder)
    torch.manual_seed(0)
    config = OpenAIGPTConfig(
        vocab_size=len(bare), n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2
    )
    OpenAIGPTLMHeadModel(config).save_pretrained(folder)
    return folder


def test_a_gpt_without_eos_and_pad_token_learns_the_labels_of_held_out_rows(
    gpt: Path, workspace: Callable[..., None], runtime: RuntimeSettings
) -> None:
    named = {"source": str(gpt), "pad_token": "<|pad|>", "eos_token": "<|endoftext|>", "chat_template": "plain"}
    workspace(named, num_train_epochs=12, max_length=64, loss="label")
    for command in (base_model.main, text_data.main, text_sft.main, text_evaluate.main):
        succeed(command)

    found = evaluation()
    assert found["rows"] == 9
    assert found["text"]["accuracy"] == 1
    assert found["text"]["accuracy"] > found["base"]["accuracy"]
    assert found["text"]["label_perplexity"] < found["base"]["label_perplexity"]
    tokenizer, model = load_tokenizer(Path("models/text")), load_base(Path("models/text"), runtime)
    assert type(model) is OpenAIGPTLMHeadModel
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|pad|>")
    assert model.config.vocab_size == len(tokenizer)
    card = json.loads(Path("models/text/model_card.json").read_text())
    assert card["stage"] == "text_sft"
    assert card["parents"]["base"]["path"] == "models/base"
    assert card["data"]["train"]["path"] == "data/text/train.jsonl"


def test_the_rows_of_new_tokens_are_the_same_in_every_run_and_like_the_others(
    gpt: Path, workspace: Callable[..., None], runtime: RuntimeSettings
) -> None:
    workspace({"source": str(gpt), "pad_token": "<|pad|>", "eos_token": "<|endoftext|>", "chat_template": "plain"})
    weights = []
    for name in ("one", "two"):
        succeed(base_model.main)
        Path("models/base").rename(name)
        weight = load_base(Path(name), runtime).get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        weights.append(weight)
    assert torch.equal(*weights)
    assert torch.allclose(weights[0][-2:], weights[0][:-2].mean(0), atol=1e-3)


def test_a_tokenizer_without_eos_asks_for_one(gpt: Path, workspace: Callable[..., None]) -> None:
    workspace({"source": str(gpt), "pad_token": "<|pad|>", "eos_token": None, "chat_template": "plain"})
    result = run(base_model.main)
    assert result.exit_code == 1
    assert "no EOS token" in result.stderr
    assert "base_model.eos_token" in result.stderr


def test_a_llama_is_trained_and_evaluated_and_a_second_run_writes_the_same_bytes(
    workspace: Callable[..., None], linked_base: None
) -> None:
    succeed(text_data.main)
    outputs = []
    for _ in range(2):
        told = succeed(text_sft.main)
        succeed(text_evaluate.main)
        files = sorted([*Path("data/text").iterdir(), *Path("models/text").iterdir()])
        outputs.append({file.as_posix(): file.read_bytes() for file in files})
    assert outputs[0] == outputs[1]
    assert "24 rows, 0 dropped" in told
    assert {"models/text/model.safetensors", "data/text/history.csv", "data/text/eval.csv"} < outputs[0].keys()
    found = evaluation()
    assert found["text"]["perplexity"] < found["base"]["perplexity"] / 2


class Stopped(Exception):
    """Stands for a kill."""


def test_fine_tuning_that_was_stopped_goes_on_to_the_same_bytes(
    workspace: Callable[..., None], linked_base: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeed(text_data.main)
    succeed(text_sft.main)
    Path("models/text").rename("whole")
    Path("data/text/history.csv").rename("whole.csv")
    monkeypatch.setenv("ALIGN_CHECKPOINT_SECONDS", "0")
    on_save = training.Checkpoints.on_save

    def stop(self: training.Checkpoints, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        on_save(self, args, state, control, **kwargs)
        if state.global_step == 7:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(training.Checkpoints, "on_save", stop)
        assert isinstance(run(text_sft.main).exception, Stopped)
    assert not Path("models/text").exists()
    assert "resumes after step 7 of 18" in succeed(text_sft.main)
    assert Path("models/text/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
    assert Path("data/text/history.csv").read_bytes() == Path("whole.csv").read_bytes()


def encoded(tokenizer: PreTrainedTokenizerBase, text: str, label: str = "neutral") -> Choices:
    return encode_choices_of(tokenizer, TEMPLATE, LABELS, LabelledText.model_validate(row("r", text, label)))


def test_each_choice_is_the_ids_of_the_whole_text_with_that_label(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    choices = encoded(tokenizer, "rain <|im_end|> again")
    for label, tail in zip(LABELS, choices.tails, strict=True):
        text = tokenizer.decode(choices.prefix + tail)
        assert text == f"rain <|im_end|> again\nsentiment: {label}"
    assert tokenizer.eos_token_id not in choices.ids  # what the text says is plain text


def test_the_loss_is_over_all_tokens_or_over_the_label_and_its_eos(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    eos = tokenizer.eos_token_id
    choices = encoded(tokenizer, "rain again")
    whole, label = training_row(choices, "all", eos), training_row(choices, "label", eos)
    assert whole["labels"] == whole["input_ids"] == label["input_ids"] == [*choices.ids, eos]
    learned = [token for token in label["labels"] if token != IGNORED]
    assert learned == [*choices.tails[choices.gold], eos]


def test_batches_for_training_are_padded_on_the_right_outside_the_loss() -> None:
    batch = collate([{"input_ids": [5, 6], "labels": [IGNORED, 6]}, {"input_ids": [7] * 4, "labels": [7] * 4}], 3)
    assert batch["input_ids"].tolist() == [[5, 6, 3, 3], [7, 7, 7, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 6, IGNORED, IGNORED], [7, 7, 7, 7]]


def test_a_labels_score_is_the_sum_of_its_tokens_log_probabilities(tiny_base: Path, runtime: RuntimeSettings) -> None:
    tokenizer, model = load_tokenizer(tiny_base), load_base(tiny_base, runtime)
    choices = [encoded(tokenizer, text) for text in ("hi", "rain, rain and more rain all week", "ok then")]
    assert any(len(tail) > 1 for tail in choices[0].tails)
    pad_id = tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    scores = score_choices(model, pad_id, choices, Rows(), batch_size=8)
    for item, score in zip(choices, scores, strict=True):
        for tail, found in zip(item.tails, score["choices"], strict=True):
            ids = torch.tensor([item.prefix + tail])
            with torch.no_grad():
                logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            picked = logprobs.gather(1, ids[0, 1:, None]).squeeze(1)
            assert found == pytest.approx(float(picked[-len(tail) :].sum()), rel=1e-4)
            if tail == item.tails[item.gold]:
                assert score["row"] == pytest.approx(float(picked.sum()), rel=1e-4)


def test_measures_by_hand() -> None:
    items = [Choices([1, 2], [[3], [4], [5, 6]], gold) for gold in (0, 0, 1, 2)]
    scores = [{"choices": choices, "row": -4.0} for choices in ([-1, -2, -3], [-2, -1, -3], [-2, -1, -3], [-3, -2, -1])]
    found = text_evaluate.measures(items, scores, ["a", "b", "c"])
    assert found["accuracy"] == 0.75
    assert found["accuracy_low"] < 0.75 < found["accuracy_high"]
    assert found["confusion"] == {
        "a": {"a": 1, "b": 1, "c": 0},
        "b": {"a": 0, "b": 1, "c": 0},
        "c": {"a": 0, "b": 0, "c": 1},
    }
    assert found["perplexity"] == pytest.approx(math.exp(16 / (2 + 2 + 2 + 3)))
    assert found["label_perplexity"] == pytest.approx(math.exp((1 + 2 + 1 + 1) / 5))


def test_what_teaches_or_tests_nothing_is_dropped_and_counted(workspace: Callable[..., None]) -> None:
    extra = [row("x1", "  ", "neutral"), row("x2", "AWFUL  b 0", "negative"), row("x3", "awful a 0", "negative")]
    write(Path("train.jsonl"), rows(24, "a") + extra)
    told = succeed(text_data.main)
    counts = json.loads(Path("data/text/data.json").read_text())
    reasons = {"train: blank text": 1, "train: its text is a test text": 1, "train: repeats another text": 1}
    assert counts["dropped"] == reasons
    assert (counts["train"], counts["test"], counts["labels"]["train_neutral"]) == (24, 9, 8)
    assert all(reason in told for reason in reasons)
    train, test = (read_rows(Path(f"data/text/{name}.jsonl"), LabelledText) for name in ("train", "test"))
    assert not {item.text.lower() for item in train} & {item.text.lower() for item in test}


@pytest.mark.parametrize(
    ("file", "value", "words"),
    [
        ("train", {"id": "a", "text": "b", "label": 0}, ["train.jsonl:25", "label_text", "missing"]),
        ("train", {"id": "a", "text": "b", "label": "0", "label_text": "negative"}, ["train.jsonl:25", '"label"']),
        ("train", row("a", "b", "neutral") | {"label": 0}, ["train.jsonl:25", "neutral", "fix it"]),
        ("test", row("a", "b", "neutral") | {"label_text": "fine"}, ["test.jsonl:10", "fine", "fix it"]),
        ("test", {"id": "a", "text": "b", "label": 3, "label_text": "odd"}, ["test.jsonl", "label 3", "train.jsonl"]),
    ],
)
def test_a_wrong_row_is_one_line_and_leaves_nothing(
    workspace: Callable[..., None], file: str, value: dict[str, Any], words: list[str]
) -> None:
    with Path(f"{file}.jsonl").open("a") as stream:
        stream.write(json.dumps(value) + "\n")
    result = run(text_data.main)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert all(word in result.stderr for word in words), result.stderr
    assert not Path("data").exists()


def test_one_label_is_no_task(workspace: Callable[..., None]) -> None:
    write(Path("train.jsonl"), [value for value in rows(24, "a") if value["label"] == 0])
    assert "at least two" in run(text_data.main).stderr


def test_a_file_of_another_kind_is_sent_to_the_sources(workspace: Callable[..., None]) -> None:
    workspace(train="train.csv")
    assert "section sources" in run(text_data.main).stderr


@pytest.mark.parametrize(
    "template",
    [
        "{text}",
        "{label_text}",
        "{label_text} {text}",
        "{text}{text} {label_text}",
        "{text} {label_text}.",
        "{text} {0} {label_text}",
        "{text!r} {label_text}",
        "{text} {label_text",
        "{text.x} {label_text}",
    ],
)
def test_a_template_holds_the_text_once_and_ends_with_the_label(template: str) -> None:
    values = committed_params()["text"]
    with pytest.raises(ValidationError, match="at its end"):
        TextSettings.model_validate(values | {"template": template})


def test_a_label_that_begins_another_is_an_error(tiny_base: Path) -> None:
    item = LabelledText(id="r", text="hi", label=0, label_text="good")
    with pytest.raises(InputError, match=r"text\.template: a label is the prefix of another"):
        encode_choices_of(load_tokenizer(tiny_base), TEMPLATE, ["good", "good!"], item)


def test_a_row_longer_than_the_models_positions_is_an_error(workspace: Callable[..., None], linked_base: None) -> None:
    workspace(max_length=5000)
    succeed(text_data.main)
    assert "text.max_length: 5000" in run(text_sft.main).stderr


def test_packed_weights_are_not_trained_whole(workspace: Callable[..., None], linked_base: None) -> None:
    succeed(text_data.main)
    params = Path("params.yaml").read_text(encoding="utf-8")
    assert "quantization: none" in params
    Path("params.yaml").write_text(params.replace("quantization: none", "quantization: nf4"), encoding="utf-8")
    result = run(text_sft.main)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: params.yaml: runtime.quantization: nf4: packed weights cannot")
    assert not Path("models/text").exists()


def test_the_table_has_each_rows_labels_by_both_models(
    tiny_base: Path, workspace: Callable[..., None], linked_base: None
) -> None:
    succeed(text_data.main)
    Path("models/text").symlink_to(tiny_base)
    succeed(text_evaluate.main)
    with Path("data/text/eval.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [line["id"] for line in table] == [f"b{i}" for i in range(9)]
    for line in table:
        assert line["base"] == line["text"] == max(LABELS, key=lambda label: float(line[f"base_{label}"]))
    found = evaluation()
    assert (found["accuracy_gain"], found["accuracy_gain_low"], found["accuracy_gain_high"]) == (0, 0, 0)


def test_the_committed_settings_and_tweets_are_of_one_task() -> None:
    settings = Params.read(PARAMS_YAML).section("text", TextSettings)
    train, test = (read_rows(COMMITTED / path, LabelledText, unique=["id"]) for path in (settings.train, settings.test))
    assert (len(train), len(test)) == (240, 120)
    for part in (train, test):
        assert {label: [item.label_text for item in part].count(label) for label in LABELS} == dict.fromkeys(
            LABELS, len(part) // 3
        )
    assert not {item.text for item in train} & {item.text for item in test}
