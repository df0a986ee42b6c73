"""What the reward model is trained on, with which loss, and from where."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from torch.nn.functional import logsigmoid
from trl import RewardConfig

from align.core.errors import InputError
from align.core.params import Params
from align.core.rows import Message, PreferencePair
from align.models.adapters import LoraSettings, save_adapter
from align.models.base import load_tokenizer
from align.models.loading import load_adapter_weights
from align.models.stack import AdapterStack
from align.reward.report import truncation_gap
from align.reward.scoring import reward_scores
from align.reward.training import (
    CUT_SHARES,
    KEPT,
    RewardModelSettings,
    RewardModelTrainer,
    encode_pairs,
    reward_start,
    score_pairs,
    training_rows,
    truncated,
)
from align.run.runtime import RuntimeSettings
from align.training.trainer import train, training_arguments
from tests.committed import PARAMS_YAML

QUESTION = [Message(role="user", content="Why is the sky blue?")]
MARGINS = (0.5, 2.0)
PAIRS = [
    PreferencePair(id=f"p{i}", messages=QUESTION, chosen="Scattering" * (i + 1), rejected="No idea", margin=margin)
    for i, margin in enumerate(MARGINS)
]
LORA = LoraSettings(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", layers_to_transform=None)
EOS = 2
replies = st.lists(st.integers(3, 50), max_size=20).map(lambda tokens: [*tokens, EOS])


def settings(**changes: Any) -> RewardModelSettings:
    values = {"use_margin": False, "truncated_negatives": 0, "loraplus_lr_ratio": 1, **changes}
    return Params.read(PARAMS_YAML).section("reward_model", RewardModelSettings).model_copy(update=values)


def make_trainer(
    base: Path, runtime: RuntimeSettings, out: Path, used: RewardModelSettings, init: Path | None = None
) -> RewardModelTrainer:
    torch.manual_seed(0)
    tokenizer = load_tokenizer(base)
    return RewardModelTrainer(
        reward_start(base, init or base, runtime, LORA),
        used.loraplus_lr_ratio,
        training_rows(PAIRS, encode_pairs(tokenizer, PAIRS), used, seed=17),
        args=RewardConfig(**training_arguments(used, out, 17, runtime, order="random"), max_length=None),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("use_margin", [False, True])
def test_the_packed_loss_is_that_of_bradley_and_terry_over_the_rows_one_by_one(
    tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path, use_margin: bool, negatives: int
) -> None:
    trainer = make_trainer(tiny_base, runtime, tmp_path, settings(use_margin=use_margin, truncated_negatives=negatives))
    model: Any = trainer.model
    model.eval()
    [batch] = trainer.get_train_dataloader()

    def score(ids: list[int]) -> torch.Tensor:
        scores: torch.Tensor = model(input_ids=torch.tensor([ids])).logits
        return scores[0, 0]

    with torch.no_grad():
        loss = trainer.compute_loss(model, batch)
        expected = []
        for row in batch["pairs"]:
            assert len(row["truncated_ids"]) == negatives
            chosen = score(row["chosen_ids"])
            gaps = [chosen - score(row["rejected_ids"]) - row["margin"]]
            gaps += [chosen - score(ids) for ids in row["truncated_ids"]]
            expected.append(-logsigmoid(torch.stack(gaps)).mean())
    assert {row["margin"] for row in batch["pairs"]} == (set(MARGINS) if use_margin else {0.0})
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-5, atol=1e-6)


def test_a_pair_without_the_margin_that_is_asked_for_is_an_error_with_its_id(tiny_base: Path) -> None:
    pairs = [PAIRS[0], PAIRS[1].model_copy(update={"margin": None})]
    with pytest.raises(InputError, match=r"use_margin: pair p1 has no margin"):
        training_rows(pairs, encode_pairs(load_tokenizer(tiny_base), pairs), settings(use_margin=True), seed=17)


def test_both_sides_of_a_pair_are_the_same_prompt_and_end_with_eos(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    for row in training_rows(PAIRS, encode_pairs(tokenizer, PAIRS), settings(), seed=17):
        for ids in (row["chosen_ids"], row["rejected_ids"]):
            assert ids[-1] == tokenizer.eos_token_id
            assert str(tokenizer.decode(ids)).count("Why is the sky blue?") == 1


@given(replies, st.floats(0, 1))
def test_a_truncated_reply_is_a_proper_prefix_with_an_eos(reply: list[int], share: float) -> None:
    cut = truncated(reply, share)
    if len(reply) < 3:
        assert cut is None
    else:
        assert cut is not None
        assert 0 < len(cut) - 1 < len(reply) - 1
        assert cut == [*reply[: len(cut) - 1], EOS]


def test_truncated_negatives_follow_from_the_seed_and_the_pair_alone(tiny_base: Path) -> None:
    tokenizer, used = load_tokenizer(tiny_base), settings(truncated_negatives=3)
    long = [pair.model_copy(update={"chosen": "Air scatters blue light more than red light. " * 5}) for pair in PAIRS]

    def cuts(pairs: list[PreferencePair], seed: int) -> list[list[list[int]]]:
        return [row["truncated_ids"] for row in training_rows(pairs, encode_pairs(tokenizer, pairs), used, seed)]

    first, second = cuts(long, 17)
    assert cuts(long, 17) == [first, second]
    assert cuts(long[1:], 17) == [second]
    assert cuts(long, 18) != [first, second]
    [ids, _] = encode_pairs(tokenizer, long)
    for row in first:
        assert row[: len(ids.prompt)] == ids.prompt
        share = (len(row) - len(ids.prompt) - 1) / (len(ids.chosen) - 1)
        assert KEPT[0] - 0.02 <= share <= KEPT[1] + 0.02


def test_a_chosen_reply_of_one_token_has_no_truncated_negatives(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    [token] = tokenizer("a", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode([token]) == "a"
    pairs = [PAIRS[0].model_copy(update={"chosen": "a"})]
    [row] = training_rows(pairs, encode_pairs(tokenizer, pairs), settings(truncated_negatives=2), seed=17)
    assert row["truncated_ids"] == []


def test_the_reward_model_continues_the_adapter_that_it_starts_from(
    tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path
) -> None:
    parent = reward_start(tiny_base, tiny_base, runtime, LORA)
    with torch.no_grad():
        for name, parameter in parent.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    assert isinstance(parent, PeftModel)
    save_adapter(parent, tmp_path / "classifier")
    weights = {key: value for key, value in load_adapter_weights(tmp_path / "classifier").items() if "lora_" in key}
    stack = AdapterStack(tiny_base, runtime)
    stack.add("m0", tmp_path / "classifier")
    stack.save("m0", tmp_path / "m0")  # the adapter of a causal LM, as stage sft writes it
    assert load_adapter_weights(tmp_path / "m0").keys() == weights.keys()

    model = reward_start(tiny_base, tmp_path / "m0", runtime, LORA.model_copy(update={"r": 2}))

    assert isinstance(model, PeftModel)
    trainable = {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}
    head = [name for name in trainable if ".score." in name]
    assert len(head) == 1
    assert trainable.keys() - head == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(trainable[key].detach(), value, rtol=0, atol=0)


def test_the_b_matrices_learn_at_their_multiple_of_the_rate_and_the_head_at_the_rate_itself(
    tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path
) -> None:
    used = settings(loraplus_lr_ratio=4, learning_rate=1e-3)
    trainer = make_trainer(tiny_base, runtime, tmp_path, used)
    groups = trainer.create_optimizer().param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    model: Any = trainer.model
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(rates) == len(trainable)
    assert any(".score." in name for name in trainable)
    for name, parameter in trainable.items():
        assert rates[id(parameter)] == pytest.approx(4e-3 if "lora_B" in name else 1e-3)


def test_replies_that_break_off_score_lower_after_training_on_them_and_the_saved_model_says_so(
    tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path
) -> None:
    used = settings(truncated_negatives=4, num_train_epochs=30, learning_rate=1e-2)
    trainer = make_trainer(tiny_base, runtime, tmp_path / "trainer", used)
    model: Any = trainer.model

    def gap(name: str) -> float:
        save_adapter(model, tmp_path / name)
        stack = AdapterStack(tiny_base, runtime)
        stack.add("reward", tmp_path / name)
        result = truncation_gap(score_pairs(stack, PAIRS, "pairs"))
        assert result is not None
        return result

    before = gap("before")
    train(trainer, tmp_path / "history.csv")
    assert abs(before) < 0.5
    assert gap("after") > before + 1


def test_the_scores_of_a_pair_are_those_of_its_rows_one_by_one(
    tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_base, runtime, tmp_path / "trainer", settings(num_train_epochs=5, learning_rate=1e-2))
    train(trainer, tmp_path / "history.csv")
    model: Any = trainer.model
    save_adapter(model, tmp_path / "reward")
    stack = AdapterStack(tiny_base, runtime)
    stack.add("reward", tmp_path / "reward")
    for found, ids in zip(score_pairs(stack, PAIRS, "pairs"), encode_pairs(stack.tokenizer, PAIRS), strict=True):
        cut = [truncated(ids.chosen, share) for share in CUT_SHARES]
        rows = [ids.prompt + reply for reply in (ids.chosen, ids.rejected, *cut) if reply is not None]
        expected = [reward_scores(stack, "reward", [row], batch_size=1)[0] for row in rows]
        assert [found.chosen_score, found.rejected_score, *found.truncated_scores] == pytest.approx(expected, abs=1e-4)
        assert len(set(expected)) == len(expected)
