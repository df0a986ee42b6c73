"""Measure a model on held-out prompts -> data/eval/<model>.{jsonl,checks.jsonl,json}.

m0 judges the answers of every model whatever `judge.model` says, in `judge.mode` reward as in mode logits: the reward
is measured beside it. Code checks the answers to the checked prompts. A killed run resumes with the missing answers and
judgements. Run with `python -m stages.evaluate m1`.
"""

from collections.abc import Sequence
from pathlib import Path

import click
import torch
from pydantic import Field
from torch import Tensor

from align.checks.checking import check_reply, pass_rates
from align.checks.prompts import CheckedPrompt
from align.core.files import write_json
from align.core.params import Settings
from align.core.rows import Answer, CheckedAnswer, EvalPrompt, Message, read_rows, write_rows
from align.generation.generator import Completion
from align.generation.local import TorchGenerator
from align.generation.sampling import SamplingParams
from align.judge.asking import judge_responses
from align.judge.conversation import conversation_question
from align.judge.request import JudgeSettings
from align.models.batching import PaddedBatch, cut_batches, place
from align.models.card import weights_hash
from align.models.stack import AdapterStack
from align.models.tokenization import completion_lengths, encode_prompt, encode_user, warn_if_capped
from align.report.statistics import distinct_2, mean, words
from align.reward.scoring import score_and_record
from align.run.provenance import environment
from align.run.runtime import RuntimeSettings, row_seed
from align.run.stage import BASE, Stage
from align.run.work import Work

KL_BATCH_SIZE = 8  # rows whose full logits are in memory together


class EvaluateSettings(Settings):
    """Section `evaluate` of params.yaml."""

    max_turns: int = Field(ge=1)
    max_new_tokens: int = Field(ge=1)
    checks_max_new_tokens: int = Field(ge=1)
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)


def kl_divergence(logits: Tensor, other_logits: Tensor) -> Tensor:
    """Return the exact KL(p || q) at each position in nats, (B, R), of the softmaxes of two (B, R, V) logits."""
    logp, logq = logits.float().log_softmax(-1), other_logits.float().log_softmax(-1)
    return (logp.exp() * (logp - logq)).sum(-1)


@torch.no_grad()
def response_kl(
    stack: AdapterStack,
    prompts: Sequence[list[int]],
    completions: Sequence[Completion],
    references: Sequence[str],
    layer: int,
    states: Sequence[Tensor],
) -> list[list[float]]:
    """Return, for each of `references`, KL(subject || reference) of each response in nats.

    It is exact at each position, over the whole vocabulary, and summed over the response's tokens. The models are equal
    below `layer`, whose input for each prompt and response is in `states` (T, H).
    """
    result = [[0.0] * len(prompts) for _ in references]
    lengths = [len(prompt) + len(c.token_ids) for prompt, c in zip(prompts, completions, strict=True)]
    order = sorted(range(len(prompts)), key=lambda i: lengths[i])
    for rows in cut_batches(order, lengths, KL_BATCH_SIZE):
        batch = PaddedBatch.collate(
            [prompts[i] for i in rows],
            [completions[i].token_ids for i in rows],
            int(stack.tokenizer.pad_token_id or 0),
            stack.device,
        )
        with stack.entering(layer, place([states[i] for i in rows], batch.attention_mask)):
            subject = response_logits(stack, "subject", batch)
            for sums, reference in zip(result, references, strict=True):
                kl = kl_divergence(subject, response_logits(stack, reference, batch))
                for i, value in zip(rows, torch.where(batch.response_mask, kl, 0.0).sum(1).tolist(), strict=True):
                    sums[i] = value
    return result


def response_logits(stack: AdapterStack, name: str, batch: PaddedBatch) -> Tensor:
    """Return the logits that predict each response token, (B, R, V)."""
    with stack.using(name) as model:
        logits: Tensor = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            logits_to_keep=batch.response_mask.shape[1] + 1,
            use_cache=False,
        ).logits[:, :-1]
    return logits


def answer_prompts(
    name: str,
    eval_prompts: Sequence[EvalPrompt],
    stack: AdapterStack,
    runtime: RuntimeSettings,
    settings: EvaluateSettings,
    judge_settings: JudgeSettings,
    seed: int,
    work: Work | None,
    m0: str,
) -> list[Answer]:
    """Answer with the stack's `subject`, turn by turn, and measure each answer with its `judge` and `reward`.

    `m0` is the stack's name for m0.
    """
    answers: list[Answer] = []
    history: dict[str, list[Message]] = {row.id: [] for row in eval_prompts}
    for turn in range(settings.max_turns):
        asked = [row for row in eval_prompts if turn < len(row.turns)]
        for row in asked:
            history[row.id].append(Message(role="user", content=row.turns[turn]))
        prompts = [encode_prompt(stack.tokenizer, history[row.id]) for row in asked]
        with stack.using("subject") as causal_lm:
            generator = TorchGenerator(causal_lm, stack.tokenizer, runtime.batch_size, work=work, name="subject")
            sampled = generator.generate(
                prompts,
                SamplingParams(settings.max_new_tokens, settings.temperature, settings.top_p),
                [row_seed(seed, "evaluate", row.id, turn) for row in asked],
                description=f"{name} answers",
            )
        completions = [completion for [completion] in sampled]
        texts = [completion.text.strip() for completion in completions]
        # A checker knows the prompts of its task, not conversations.
        questions = [
            conversation_question(history[row.id]) if judge_settings.checker is None else row.turns[turn]
            for row in asked
        ]
        with stack.using("judge") as causal_lm:
            generator = TorchGenerator(causal_lm, stack.tokenizer, runtime.batch_size, work=work, name="judge")
            verdicts = judge_responses(generator, list(zip(questions, texts, strict=True)), judge_settings, seed)
        tokens = [prompt + c.token_ids for prompt, c in zip(prompts, completions, strict=True)]
        references = {model: role for model, role in {"base": "base", "m0": m0}.items() if model != name}
        roles = list(references.values())
        shared = min(map(stack.first_layer, ("subject", "reward", *roles)))  # below, these models are equal
        rewards, states = score_and_record(stack, "reward", tokens, {shared}, batch_size=runtime.batch_size)
        divergences = response_kl(stack, prompts, completions, roles, shared, states[shared])
        kl = dict(zip(references, divergences, strict=True)) | {name: [0.0] * len(asked)}
        for i, row in enumerate(asked):
            # A message must not be empty, so the next turn follows a single space after an empty answer.
            history[row.id].append(Message.model_construct(role="assistant", content=texts[i] or " "))
            answers.append(
                Answer(
                    id=row.id,
                    category=row.category,
                    turn=turn + 1,
                    prompt=row.turns[turn],
                    response=texts[i],
                    finish_reason=completions[i].finish_reason,
                    num_tokens=len(completions[i].token_ids),
                    judge_score=verdicts[i].score,
                    judge_failure=verdicts[i].failure,
                    reward=rewards[i],
                    kl_to_base=kl["base"][i] / len(completions[i].token_ids),
                    kl_to_m0=kl["m0"][i],
                )
            )
    return answers


def answer_checked_prompts(
    name: str, prompts: Sequence[CheckedPrompt], generator: TorchGenerator, settings: EvaluateSettings, seed: int
) -> list[CheckedAnswer]:
    """Answer the checked prompts and check the answers."""
    completions = generator.generate(
        [encode_user(generator.tokenizer, row.prompt) for row in prompts],
        SamplingParams(settings.checks_max_new_tokens, temperature=0.0),  # a constraint asks for the likeliest answer
        [row_seed(seed, "checks", row.id) for row in prompts],
        description=f"{name} answers to checked prompts",
    )
    answers = []
    for row, [completion] in zip(prompts, completions, strict=True):
        response = completion.text.strip()
        strict, loose = check_reply(row, response, completion.finish_reason)
        answers.append(
            CheckedAnswer(
                id=row.id,
                prompt=row.prompt,
                response=response,
                finish_reason=completion.finish_reason,
                num_tokens=len(completion.token_ids),
                strict=strict,
                loose=loose,
            )
        )
    return answers


@click.command(help=__doc__)
@click.argument("name")
@click.option("--judge", default="m0", show_default=True, help="The model that judges every model's answers.")
def main(name: str, judge: str) -> None:
    stage = Stage(f"evaluate@{name}")
    settings = stage.section("evaluate", EvaluateSettings)
    judge_settings = stage.section("judge", JudgeSettings)
    stage.start()
    held_out, out = Path("data/prepared/eval"), Path("data/eval")
    eval_prompts = read_rows(held_out / "prompts.jsonl", EvalPrompt, unique=["id"])
    checked_prompts = read_rows(held_out / "checked_prompts.jsonl", CheckedPrompt, unique=["id"])
    ift_file = Path("data/m0/ift.jsonl")
    models = {"subject": name, "base": "base", "judge": judge, "reward": "reward"}
    m0 = "judge" if judge == "m0" else "m0"
    models |= {m0: "m0"}
    inputs = [*(Path("models") / model for model in models.values()), held_out]
    with stage.work(inputs) as work:
        stack = AdapterStack(BASE, stage.runtime)
        for role, model in models.items():
            stack.add(role, Path("models") / model)
        lengths = completion_lengths(stack.tokenizer, ift_file)
        warn_if_capped("evaluate.max_new_tokens", settings.max_new_tokens, lengths, ift_file)
        answers = answer_prompts(
            name, eval_prompts, stack, stage.runtime, settings, judge_settings, stage.seed, work, m0
        )
        with stack.using("subject") as causal_lm:
            subject = TorchGenerator(causal_lm, stack.tokenizer, stage.runtime.batch_size, work=work, name="subject")
            checked = answer_checked_prompts(name, checked_prompts, subject, settings, stage.seed)
        checks = pass_rates(checked_prompts, checked)
        scores = [row.judge_score for row in answers if row.judge_score is not None]
        summary = {
            "answers": len(answers),
            "judge_score": mean(scores),
            "judge_failures": len(answers) - len(scores),
            "reward": mean([row.reward for row in answers]),
            # Cut-off answers are scored as if they ended there, where a loop of pleasant words may score high.
            "reward_of_ended": mean([row.reward for row in answers if row.finish_reason == "stop"]),
            "response_tokens": mean([row.num_tokens for row in answers]),
            "ended_share": mean([float(row.finish_reason == "stop") for row in answers]),
            "distinct_2": distinct_2([words(row.response) for row in answers]),
            "kl_to_base": mean([row.kl_to_base for row in answers]),
            "kl_to_m0": mean([row.kl_to_m0 for row in answers]),
            "checks": checks,
            "weights": weights_hash(Path("models") / name),
            "environment": environment(stage.runtime),
        }
        write_rows(out / f"{name}.jsonl", answers)
        write_rows(out / f"{name}.checks.jsonl", checked)
        write_json(out / f"{name}.json", summary)
    score, passed = (
        "none" if value is None else f"{value:.2f}" for value in (summary["judge_score"], checks["strict"])
    )
    click.echo(f"evaluate@{name}: judge score {score}, checks passed {passed}")


if __name__ == "__main__":
    main()
