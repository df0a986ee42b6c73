"""Rows are padded on the right for training and on the left for generation, whatever side the tokenizer names."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer
from trl import DPOConfig, KTOConfig, SFTConfig

from align.dpo.kto import TokenizedKTOTrainer
from align.dpo.training import TokenizedDPOTrainer
from align.models.base import load_base, load_tokenizer
from align.models.batching import left_pad, positions
from align.run.runtime import RuntimeSettings
from align.training.sft import ResumableSFTTrainer

SHORT, LONG = [40, 41], [42, 43, 44, 45, 46]


@pytest.fixture(params=["left", "right"])
def tokenizer(request: pytest.FixtureRequest, tiny_base: Path) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(tiny_base)
    tokenizer.padding_side = request.param  # Mistral's says left
    return tokenizer


def test_generation_pads_on_the_left_and_counts_positions_from_the_first_real_token() -> None:
    ids, mask = left_pad([SHORT, LONG], 0, torch.device("cpu"))
    assert ids.tolist() == [[0, 0, 0, *SHORT], LONG]
    assert mask.tolist() == [[0, 0, 0, 1, 1], [1] * 5]
    assert positions(mask).tolist() == [[0, 0, 0, 0, 1], [0, 1, 2, 3, 4]]


def assert_right_padded(trainer: Trainer, rows: Dataset, pad_id: int | None) -> None:
    batch = trainer.data_collator(list(rows))
    masks = [row for row in batch["attention_mask"].tolist() if 0 in row]
    assert masks
    for row, mask in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True):
        assert mask == sorted(mask, reverse=True)
        assert {token for token, real in zip(row, mask, strict=True) if not real} <= {pad_id}
    for row, mask in zip(
        batch.get("labels", torch.tensor([])).tolist(), batch["attention_mask"].tolist(), strict=False
    ):
        assert all(label == -100 for label, real in zip(row, mask, strict=True) if not real)


def test_sft_pads_on_the_right(
    tiny_base: Path, runtime: RuntimeSettings, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = Dataset.from_list(
        [{"input_ids": ids, "completion_mask": [0] + [1] * (len(ids) - 1)} for ids in (SHORT, LONG)]
    )
    config = SFTConfig(
        output_dir=str(tmp_path), max_length=None, completion_only_loss=True, report_to="none", use_cpu=True, bf16=False
    )
    trainer = ResumableSFTTrainer(
        model=load_base(tiny_base, runtime), args=config, train_dataset=rows, processing_class=tokenizer
    )
    assert_right_padded(trainer, rows, tokenizer.pad_token_id)


def test_dpo_pads_on_the_right(
    tiny_base: Path, runtime: RuntimeSettings, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = Dataset.from_list([{"prompt_ids": SHORT, "chosen_ids": LONG, "rejected_ids": SHORT}] * 2)
    config = DPOConfig(output_dir=str(tmp_path), max_length=None, report_to="none", use_cpu=True, bf16=False)
    trainer = TokenizedDPOTrainer(
        model=load_base(tiny_base, runtime),
        ref_model=load_base(tiny_base, runtime),
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
    )
    assert_right_padded(trainer, rows, tokenizer.pad_token_id)


def test_kto_pads_on_the_right(
    tiny_base: Path, runtime: RuntimeSettings, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = Dataset.from_list(
        [
            {"prompt_ids": SHORT, "completion_ids": own, "KL_completion_ids": other, "label": own is LONG}
            for own, other in ((LONG, SHORT), (SHORT, LONG))
        ]
    )
    config = KTOConfig(output_dir=str(tmp_path), max_length=None, report_to="none", use_cpu=True, bf16=False)
    trainer = TokenizedKTOTrainer(
        model=load_base(tiny_base, runtime),
        ref_model=load_base(tiny_base, runtime),
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
    )
    assert_right_padded(trainer, rows, tokenizer.pad_token_id)
    batch = trainer.data_collator(list(rows))
    assert batch["KL_input_ids"].tolist() == [[*SHORT, *SHORT, *[tokenizer.pad_token_id] * 3], [*SHORT, *LONG]]
    assert batch["KL_completion_mask"].tolist() == [[0, 0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1]]
