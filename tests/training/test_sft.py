"""What SFT learns from: instruction rows, and a share of judge replies among them."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from align.core.errors import InputError
from align.core.rows import Judgement, Message
from align.models.adapters import LoraSettings, new_adapter
from align.models.attention import check_attention, use_attention
from align.models.base import load_base, load_tokenizer
from align.models.tokenization import encode_prompt
from align.run.runtime import RuntimeSettings
from align.training.sft import SFTSettings, encode_instruction, instruction_tune
from align.training.trainer import training_arguments
from align.training.validation import hold_out
from stages.sft import judge_replies
from tests.committed import committed_params


def test_a_row_is_learned_from_the_reply_to_its_eos(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    row = encode_instruction(tokenizer, [Message(role="user", content="Name a fruit.")], "A pear.")
    learned = [i for i, m in zip(row["input_ids"], row["completion_mask"], strict=True) if m]
    assert tokenizer.decode(learned[:-1]) == "A pear."
    assert learned[-1] == tokenizer.eos_token_id
    assert row["length"] == len(row["input_ids"]) == len(row["completion_mask"])


def test_a_later_reply_is_learned_after_the_whole_conversation_as_the_model_will_see_it(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    messages = [Message(role="system", content="Be short."), Message(role="user", content="Hi.")]
    messages.append(Message(role="assistant", content="Hello."))
    messages.append(Message(role="user", content="Name a fruit."))
    row = encode_instruction(tokenizer, messages, "A pear.")
    prompt = encode_prompt(tokenizer, messages)
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["completion_mask"] == [0] * len(prompt) + [1] * (len(row["input_ids"]) - len(prompt))
    assert "Be short." in tokenizer.decode(prompt)


JUDGEMENTS = [
    Judgement(question_id=f"q{i}", category="c", prompt="p", response=f"r{i}", score=i % 6) for i in range(50)
]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 10), (0.5, 30), (0.6, 45), (0.9, 50)])
def test_judge_replies_make_up_the_given_share_of_the_rows_as_far_as_there_are_any(share: float, expected: int) -> None:
    drawn = judge_replies(JUDGEMENTS, 30, share, seed=1)
    assert len(drawn) == len({row.response for row in drawn}) == expected
    assert drawn == judge_replies(JUDGEMENTS, 30, share, seed=1)


FLASH = {"attn_implementation": "flash_attention_2"}


def settings(**changes: Any) -> SFTSettings:
    values = committed_params()["sft"] | {"num_train_epochs": 1, "per_device_train_batch_size": 4, "max_length": 256}
    return SFTSettings.model_validate(values | changes)


def first_row(
    settings: SFTSettings, base: Path, runtime: RuntimeSettings, folder: Path
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Train on eight rows with sdpa, which gives flash attention's results, and return the first row of the history."""
    tokenizer = load_tokenizer(base)
    rows = [
        encode_instruction(tokenizer, [Message(role="user", content=f"Count to {n}.")], "One, two, " * n)
        for n in (1, 5, 2, 7, 3, 4, 6, 8)
    ]
    lora = LoraSettings(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", layers_to_transform=None)
    model = new_adapter(load_base(base, runtime), lora, task_type="CAUSAL_LM")
    plain = settings.model_copy(update={"attn_implementation": "sdpa"})
    arguments = training_arguments(plain, folder, 3, runtime, plain.order)
    rows, held_out = hold_out(rows, plain, 3, "sft")
    instruction_tune(model, tokenizer, rows, held_out, plain, arguments, folder / "history.csv")
    with (folder / "history.csv").open(encoding="utf-8") as stream:
        return next(csv.DictReader(stream)), rows


@pytest.mark.parametrize("layout", [{"packing": True}, {"padding_free": True}, {"packing": True, "padding_free": True}])
def test_rows_that_lie_side_by_side_have_the_loss_of_rows_with_padding(
    layout: dict[str, bool], tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path
) -> None:
    step = {"per_device_train_batch_size": 8, "max_length": 160}
    padded, rows = first_row(settings(**step), tiny_base, runtime, tmp_path / "padded")
    found, _ = first_row(settings(**step, **layout, **FLASH), tiny_base, runtime, tmp_path / "side by side")

    assert float(found["loss"]) == pytest.approx(float(padded["loss"]), rel=1e-5)
    assert int(float(found["num_tokens"])) == sum(row["length"] for row in rows)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"packing": True}, "attn_implementation flash_attention_2 or flash_attention_3 with packing"),
        ({"padding_free": True, "attn_implementation": "sdpa"}, "attn_implementation flash_attention_2 or"),
        ({"padding_free": True, "per_device_train_batch_size": 1, **FLASH}, "per_device_train_batch_size 2 or more"),
    ],
)
def test_layouts_that_gain_nothing_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        settings(**changes)


def test_attention_that_the_machine_or_the_dtype_lacks_is_refused_in_one_line(
    runtime: RuntimeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_attention("sft", "eager", runtime)
    with pytest.raises(InputError, match=r"sft\.attn_implementation: flash_attention_2 needs a GPU"):
        check_attention("sft", "flash_attention_2", runtime)
    monkeypatch.setattr(RuntimeSettings, "torch_device", torch.device("cuda"))
    with pytest.raises(InputError, match=r"computes in bfloat16, and runtime\.dtype is float32"):
        check_attention("sft", "flash_attention_2", runtime)
    with pytest.raises(InputError, match="needs the package flash-attn-3"):
        check_attention("dpo", "flash_attention_3", runtime.model_copy(update={"dtype": "bfloat16"}))


def test_a_model_is_trained_with_the_attention_that_is_set(tiny_base: Path, runtime: RuntimeSettings) -> None:
    lora = LoraSettings(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", layers_to_transform=None)
    model = new_adapter(load_base(tiny_base, runtime), lora, task_type="CAUSAL_LM")
    config: Any = model.get_base_model().config
    use_attention(model, None)
    assert config._attn_implementation == "sdpa"
    use_attention(model, "eager")
    assert config._attn_implementation == "eager"
