"""What the trainer stages rely on in TRL, and what they write."""

from pathlib import Path

import pytest
import torch
import trl.trainer.utils
from datasets import Dataset
from peft import get_peft_model
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import DPOTrainer, SFTConfig

from align.core.params import Params
from align.models.adapters import LoraSettings
from align.models.base import load_base, load_tokenizer
from align.models.tokenization import encode_completion, encode_user
from align.reward.training import RewardModelSettings
from align.run.runtime import RuntimeSettings
from align.training.settings import TrainingSettings
from align.training.sft import ResumableSFTTrainer
from align.training.trainer import LengthGroups, train, training_arguments
from tests.committed import PARAMS_YAML

TEXTS = [
    ("Why is the sky blue?", "Air scatters blue light most."),
    ("Name a fruit.", "A pear, say, or a plum."),
    ("Hi", "Yo"),
]


@pytest.fixture
def settings() -> TrainingSettings:
    return Params.read(PARAMS_YAML).section("reward_model", RewardModelSettings)


def sft_rows(tokenizer: PreTrainedTokenizerBase) -> Dataset:
    rows = []
    for prompt, completion in TEXTS:
        prompt_ids, completion_ids = encode_user(tokenizer, prompt), encode_completion(tokenizer, completion)
        mask = [0] * len(prompt_ids) + [1] * len(completion_ids)
        rows.append({"input_ids": prompt_ids + completion_ids, "completion_mask": mask, "length": len(mask)})
    return Dataset.from_list(rows)


def sft_trainer(base: Path, runtime: RuntimeSettings, settings: TrainingSettings, scratch: Path) -> ResumableSFTTrainer:
    torch.manual_seed(0)
    lora = LoraSettings(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", layers_to_transform=None)
    return ResumableSFTTrainer(
        model=get_peft_model(load_base(base, runtime), lora.config(task_type="CAUSAL_LM")),
        args=SFTConfig(**training_arguments(settings, scratch, 0, runtime), max_length=None, completion_only_loss=True),
        train_dataset=sft_rows(load_tokenizer(base)),
        processing_class=load_tokenizer(base),
    )


def test_the_sft_loss_is_the_mean_over_completion_tokens_alone(
    tiny_base: Path, runtime: RuntimeSettings, settings: TrainingSettings, tmp_path: Path
) -> None:
    trainer = sft_trainer(tiny_base, runtime, settings, tmp_path)
    model, rows = load_base(tiny_base, runtime), sft_rows(load_tokenizer(tiny_base))

    train(trainer, tmp_path / "history.csv")

    losses, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        picked = -logprobs.gather(1, ids[0, 1:, None]).squeeze(1)
        mask = torch.tensor(row["completion_mask"][1:], dtype=torch.bool)
        losses, count = losses + float(picked[mask].sum()), count + int(mask.sum())
    assert trainer.state.log_history[0]["loss"] == pytest.approx(losses / count, rel=1e-4)


def test_scoring_completions_alone_gives_the_loss_of_scoring_every_position(
    tiny_base: Path,
    runtime: RuntimeSettings,
    settings: TrainingSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = sft_trainer(tiny_base, runtime, settings, tmp_path)
    train(short, tmp_path / "short.csv")
    monkeypatch.setattr(trl.trainer.utils, "_use_triton", lambda device: False)
    full = sft_trainer(tiny_base, runtime, settings, tmp_path)
    train(full, tmp_path / "full.csv")

    for key in ("loss", "grad_norm"):
        assert short.state.log_history[0][key] == pytest.approx(full.state.log_history[0][key], rel=1e-4)


def test_the_history_holds_no_timings(
    tiny_base: Path, runtime: RuntimeSettings, settings: TrainingSettings, tmp_path: Path
) -> None:
    train(sft_trainer(tiny_base, runtime, settings, tmp_path), tmp_path / "history.csv")

    header = (tmp_path / "history.csv").read_text().splitlines()[0].split(",")
    assert header[0] == "step"
    assert "loss" in header
    assert not [name for name in header if "runtime" in name or "second" in name]


def test_trl_calls_the_hook_that_keeps_our_token_ids() -> None:
    # A TRL release that renames the hook would tokenize the rows again: this fails first.
    assert "_prepare_dataset" in vars(DPOTrainer)


LENGTHS = [5 + (7 * i) % 41 for i in range(40)]


def test_rows_by_length_have_another_order_each_epoch_which_any_process_can_repeat() -> None:
    orders = []
    for epoch in (0, 1, 0, 1):
        sampler = LengthGroups(LENGTHS, 8, seed=3)
        sampler.set_epoch(epoch)
        torch.rand(3)  # the global random state has no say
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1] == orders[3]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(len(LENGTHS)))


def test_the_first_epoch_has_the_order_that_transformers_gives_it() -> None:
    torch.manual_seed(3)
    rows = Dataset.from_list([{"row": row} for row in range(len(LENGTHS))]).with_format("torch")
    loader = DataLoader(rows, sampler=LengthGroupedSampler(8, lengths=LENGTHS))
    assert [int(batch["row"]) for batch in loader] == list(LengthGroups(LENGTHS, 8, seed=3))
