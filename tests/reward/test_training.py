"""What the reward model is trained on, and with which loss."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from align.core.errors import InputError
from align.core.params import Params
from align.core.rows import Message, PreferencePair
from align.models.base import load_base, load_tokenizer
from align.reward.training import RewardModelSettings, encode_pairs, training_rows
from align.run.runtime import RuntimeSettings
from align.training.trainer import training_arguments
from tests.committed import PARAMS_YAML

QUESTION = [Message(role="user", content="Why is the sky blue?")]
MARGINS = (0.5, 2.0)
PAIRS = [
    PreferencePair(id=f"p{i}", messages=QUESTION, chosen="Scattering" * (i + 1), rejected="No idea", margin=margin)
    for i, margin in enumerate(MARGINS)
]


@pytest.mark.parametrize("use_margin", [False, True])
def test_the_loss_is_that_of_bradley_and_terry_less_the_margin_where_it_is_asked_for(
    tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path, use_margin: bool
) -> None:
    tokenizer = load_tokenizer(tiny_base)
    settings = Params.read(PARAMS_YAML).section("reward_model", RewardModelSettings)
    torch.manual_seed(0)
    model = load_base(tiny_base, runtime, AutoModelForSequenceClassification, num_labels=1)
    rows = training_rows(PAIRS, encode_pairs(tokenizer, PAIRS), use_margin)
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**training_arguments(settings, tmp_path, 17, runtime), max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        loss = float(trainer.compute_loss(model, batch))
        scores = {
            key: torch.stack([model(input_ids=torch.tensor([row[key]])).logits[0, 0] for row in rows])
            for key in ("chosen_ids", "rejected_ids")
        }
    margin = torch.tensor(MARGINS) if use_margin else torch.zeros(2)
    expected = -logsigmoid(scores["chosen_ids"] - scores["rejected_ids"] - margin).mean()
    assert loss == pytest.approx(float(expected), rel=1e-4)


def test_a_pair_without_the_margin_that_is_asked_for_is_an_error_with_its_id(tiny_base: Path) -> None:
    pairs = [PAIRS[0], PAIRS[1].model_copy(update={"margin": None})]
    with pytest.raises(InputError, match=r"use_margin: pair p1 has no margin"):
        training_rows(pairs, encode_pairs(load_tokenizer(tiny_base), pairs), use_margin=True)


def test_both_sides_of_a_pair_are_the_same_prompt_and_end_with_eos(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    for row in encode_pairs(tokenizer, PAIRS):
        for ids in row.values():
            assert ids[-1] == tokenizer.eos_token_id
            assert str(tokenizer.decode(ids)).count("Why is the sky blue?") == 1
