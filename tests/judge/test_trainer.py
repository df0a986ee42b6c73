"""The judge's training: packing changes nothing, and the loss has the gradient that ranks."""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import PreTrainedTokenizerBase, TrainingArguments

from align.core.errors import InputError
from align.core.params import Params
from align.core.rows import Judgement
from align.judge.request import DIGITS, SCORE_PREFIX, judge_request
from align.judge.trainer import JudgeTrainer, judge_loss, judged_questions
from align.models.adapters import LoraSettings
from align.models.base import load_base, load_tokenizer
from align.models.tokenization import encode_choices
from align.reward.training import RewardModelSettings
from align.run.runtime import RuntimeSettings
from align.training.trainer import train, training_arguments
from tests.committed import PARAMS_YAML

RESPONSES = {"Because of the light.": 4, "No.": 1, "Air scatters blue light more than red light.": 5}


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny_base)


def judgements(question: str = "Why is the sky blue?") -> list[Judgement]:
    return [
        Judgement(
            question_id=question,
            category="science",
            prompt=question,
            response=response,
            score=score,
            justification="So it is.",
        )
        for response, score in RESPONSES.items()
    ]


def make_trainer(tokenizer: PreTrainedTokenizerBase, base: Path, runtime: RuntimeSettings, out: Path) -> JudgeTrainer:
    torch.manual_seed(0)
    lora = LoraSettings(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", layers_to_transform=None)
    params = Params.read(PARAMS_YAML).section("reward_model", RewardModelSettings)
    arguments = training_arguments(params, out, 0, runtime, order="random") | {
        "num_train_epochs": 8,
        "learning_rate": 1e-2,
    }
    return JudgeTrainer(
        get_peft_model(load_base(base, runtime), lora.config(task_type="CAUSAL_LM")),
        TrainingArguments(**arguments),
        judged_questions(tokenizer, judgements()),
        1.0,
        2.0,
    )


def test_a_question_holds_the_requests_that_the_judge_reads_and_their_scores(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    first, second = judged_questions(tokenizer, [*judgements("Why?"), *judgements("How?")])
    for question, prompt in ((first, "Why?"), (second, "How?")):
        read = [encode_choices(tokenizer, judge_request(prompt, r), SCORE_PREFIX, DIGITS) for r in RESPONSES]
        assert question["requests"] == [ids for ids, _ in read]
        assert question["digits"] == read[0][1]
        assert question["scores"] == [4, 1, 5]
        assert question["length"] == max(len(ids) for ids, _ in read)


def test_digits_of_several_tokens_are_an_input_error(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("align.judge.trainer.DIGITS", ("0", "one hundred", "2", "3", "4", "5"))
    with pytest.raises(InputError, match=r"base_model\.source: .*cannot be trained"):
        judged_questions(tokenizer, judgements())


def test_the_packed_loss_is_the_loss_of_the_rows_one_by_one(
    tokenizer: PreTrainedTokenizerBase, tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path
) -> None:
    trainer = make_trainer(tokenizer, tiny_base, runtime, tmp_path)
    model = trainer.model
    assert model is not None
    [question] = judged_questions(tokenizer, judgements())
    with torch.no_grad():
        packed = trainer.compute_loss(model, {"questions": [question, question]})
        logprobs = torch.stack(
            [model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1) for ids in question["requests"]]
        )[:, question["digits"]]
    torch.testing.assert_close(packed, judge_loss(logprobs, torch.tensor([4, 1, 5]), 1.0), rtol=1e-5, atol=1e-6)


def test_training_ranks_the_responses_it_is_trained_on(
    tokenizer: PreTrainedTokenizerBase, tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path
) -> None:
    trainer = make_trainer(tokenizer, tiny_base, runtime, tmp_path)
    train(trainer, tmp_path / "history.csv")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 1


def test_the_b_matrices_learn_at_their_multiple_of_the_rate_and_everything_trainable_learns(
    tokenizer: PreTrainedTokenizerBase, tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path
) -> None:
    trainer = make_trainer(tokenizer, tiny_base, runtime, tmp_path)
    groups = trainer.create_optimizer().param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert trainer.model is not None
    trainable = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(rates) == len(trainable) > 0
    for name, parameter in trainable.items():
        assert rates[id(parameter)] == pytest.approx(2e-2 if "lora_B" in name else 1e-2)


def test_without_ranking_the_loss_is_the_cross_entropy_of_the_scores() -> None:
    logprobs = torch.tensor([[0.1, 0.2, 0.3, 0.2, 0.1, 0.05], [0.5, 0.1, 0.1, 0.1, 0.1, 0.1]]).log()
    loss = judge_loss(logprobs, torch.tensor([2, 0]), 0.0)
    torch.testing.assert_close(loss, -torch.tensor([0.3, 0.5]).log().mean())


def test_ranking_raises_the_expected_score_of_the_better_response_and_lowers_the_other() -> None:
    logits = torch.zeros(2, 6, requires_grad=True)
    cross_entropy = torch.zeros(2, 6, requires_grad=True)
    scores = torch.tensor([5, 0])
    judge_loss(logits.log_softmax(-1), scores, 1.0).backward()
    judge_loss(cross_entropy.log_softmax(-1), scores, 0.0).backward()
    assert logits.grad is not None
    assert cross_entropy.grad is not None
    ranking = logits.grad - cross_entropy.grad
    digits = torch.arange(6.0)
    assert float(ranking[0] @ digits) < 0  # a step against the gradient raises the expected digit
    assert float(ranking[1] @ digits) > 0


def test_equal_scores_are_not_ranked() -> None:
    logprobs = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    scores = torch.tensor([2, 2, 2])
    torch.testing.assert_close(judge_loss(logprobs, scores, 9.0), judge_loss(logprobs, scores, 0.0))


def test_an_even_pair_costs_log_2() -> None:
    logprobs = torch.full((2, 6), 1 / 6).log()
    loss = judge_loss(logprobs, torch.tensor([5, 0]), 1.0) - judge_loss(logprobs, torch.tensor([5, 0]), 0.0)
    torch.testing.assert_close(loss, torch.tensor(2.0).log())
