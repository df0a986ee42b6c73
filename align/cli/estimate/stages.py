"""The work of each stage of the dvc.yaml files, from params, data and model."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PretrainedConfig

from align.checks.prompts import CheckedPrompt
from align.cli.estimate.costs import Machine, Model, Part
from align.core.rows import EvalPrompt, PreferencePair, TaskPrompt, UnpairedPreference, read_rows
from align.core.templates import render
from align.data.instructions import read_instructions
from align.data.preferences import read_preferences
from align.dpo.preferences import read_preferences as read_pairs_or_replies
from align.judge.request import SCORE_PREFIX, judge_request
from align.models.batching import MAX_LENGTH_RATIO as PADDING
from align.text.labelled import LabelledText
from stages.base_model import EMBEDDED
from stages.evaluate import KL_BATCH_SIZE
from stages.prepare_data import read_judgements
from stages.reward_model import CENTERING_ROWS

# What nobody knows before a run. The default run had 0.70 of max_new_tokens, 1.75 prompts drawn for each kept, and 1.04
# pairs a prompt, since few prompts have two pairs of replies of like length.
REPLY_SHARE = 0.75
DRAWN_PROMPTS = 1.8
PAIRS = 1.05
PPO_PADDING = 1.15  # mini-batches are cut at random, and both ends are padded
TEMPLATE_TOKENS = 10  # that a chat template adds to a conversation
CHARACTERS_PER_TOKEN = 4.0
PROCESS_BYTES = (0.75e9, 0.13e9)  # of Python with torch and transformers, and without
START_SECONDS = (14, 3)  # imports of these, and DVC's own time
GGUF_SECONDS = 28  # of the embedded base, whose vocabulary transformers reads token by token
LOAD_RATE = 1e9  # bytes per second
# Models in memory where `lora` is null, beside those that are trained: base, m0, the reward model and the one in hand.
FULL_MODELS = {"evaluate": 4, "evaluate_iteration": 4, "ppo": 3}
LIGHT = ("prepare_data", "build_preferences", "diff", "summary")  # stages without torch
OTHERS = ("base_model", "fetch_data", "text/dvc.yaml:text_data")  # with torch, but without work for a model


class Rows(NamedTuple):
    """Rows of a prompt and a reply: how many rows, how many different prompts, and their mean tokens."""

    total: float
    prompts: float
    prompt: float
    reply: float


ASSUMED = Rows(1000, 333, 60, 200)  # about OpenAssistant's and hh-rlhf's texts; a message tree has three replies


def _tokens(*texts: str) -> float:  # on average
    return sum(map(len, texts)) / CHARACTERS_PER_TOKEN / len(texts)


class Plan:
    """What every stage takes, by the settings of all sections."""

    def __init__(self, settings: Any, config: PretrainedConfig) -> None:
        self.s, self.config, self._whole = settings, config, Model(config, settings.runtime)
        self.notes, self._known = list[str](), dict[str, Rows]()
        self._rubric = _tokens(judge_request("", "") + SCORE_PREFIX) + TEMPLATE_TOKENS

    @cached_property
    def _adapted(self) -> Model:  # on the plain-text track the adapter may not fit
        return Model(self.config, self.s.runtime, self.s.lora)

    def cost(self, name: str, machine: Machine) -> dict[str, Any] | None:
        """Return what a stage takes on a machine, by DVC's name of it; None for a stage that is not known here."""
        stage = name.partition("@")[0]
        parts, light, base = self._parts(stage, name), stage in LIGHT, self._whole
        if parts is None:
            return None
        copies = 2 if stage == "base_model" else bool(parts) * (1 if self.s.lora else FULL_MODELS.get(stage, 1))
        kinds = {"prefill_tokens": "forward", "decoded_tokens": "decode", "trained_tokens": "train"}
        start = START_SECONDS[light] + GGUF_SECONDS * (stage == "base_model" and self.s.base_model.source == EMBEDDED)
        passes = copies * (2 if stage == "base_model" else 1)  # which writes and hashes it, too
        loading = passes * base.weights * base.width / LOAD_RATE
        return {
            "stage": name,
            **{key: round(sum(p.rows * p.tokens for p in parts if p.kind == kind)) for key, kind in kinds.items()},
            "flops": sum(part.flops for part in parts),
            "memory": PROCESS_BYTES[light] + copies * base.bytes + max([part.memory for part in parts], default=0),
            "seconds": start + loading + sum(map(machine.seconds, parts)),
        }

    def _parts(self, stage: str, name: str) -> list[Part] | None:
        match stage:
            case "sft":
                s, judged, rows = self.s.sft, self._split("judgements")[0], self._rows("instructions")
                each = judged.total / judged.prompts + self.s.prepare_data.off_topic_negatives
                # The responses of a question share rubric and question, in one sequence.
                packed = self._rubric + judged.prompt + each * (judged.reply + TEMPLATE_TOKENS)
                length = (rows.prompt + rows.reply + TEMPLATE_TOKENS) * PADDING
                judges = min(judged.prompts * each, s.eft_share / (1 - s.eft_share) * rows.total)
                return [
                    self._train("eft", judged.prompts, packed, positions=each),
                    self._train("sft", rows.total, length, positions=rows.reply),
                    self._train("sft", judges, self._rubric + judged.prompt + judged.reply),
                ]
            case "generate_prompts":
                s = self.s.generate_prompts
                examples, samples = s.num_seed_examples + s.num_generated_examples, s.samples_per_request
                request = _tokens(render("new_prompt.jinja", examples=[""] * examples)) + TEMPLATE_TOKENS
                request += examples * self._rows("instructions").prompt
                return self._decode(DRAWN_PROMPTS * s.num_prompts / samples, request, s.max_new_tokens, samples)
            case "generate_responses":
                new, s = self._generated, self.s.generate_responses
                return self._decode(new.prompts, new.prompt, s.max_new_tokens, s.num_responses)
            case "judge":
                new, held_out = self._generated, self._split("judgements")[1]
                # The held-out judgements again, and for each question one of an answer to another.
                count = new.total, held_out.total + held_out.prompts
                both = zip(count, (new, held_out), strict=True)
                if self.s.judge.mode == "reward":
                    return [self._forward(n, rows.prompt + rows.reply) for n, rows in both]
                return [part for n, rows in both for part in self._judge(n, rows.prompt + rows.reply)]
            case "dpo":
                new = self._generated
                each = PAIRS if self.s.build_preferences.max_length_gap is not None else 1
                return self._dpo("dpo", new._replace(total=new.prompts * each))
            case "offline_dpo":
                pairs = self._rows("data", stage) if _own(self.s.offline_dpo.data) else self._split("preferences")[0]
                return self._dpo(stage, pairs._replace(prompt=pairs.prompt + TEMPLATE_TOKENS))
            case "reward_model":
                pairs, test = self._split("preferences")
                length = pairs.prompt + pairs.reply + TEMPLATE_TOKENS
                # Each truncated reply is one token more of a pair's sequence.
                packed = length + pairs.reply + self.s.reward_model.truncated_negatives
                return [
                    self._train("reward_model", pairs.total, packed),
                    self._forward(min(CENTERING_ROWS, pairs.total), length),
                    self._forward(test.total, packed, batch=1),
                ]
            case "ppo":
                s, model = self.s.ppo, self._adapted
                rows = self._rows("prompts", "ppo") if _own(s.prompts) else self._rows("preferences")
                prompt = min(rows.prompt + TEMPLATE_TOKENS, s.max_prompt_length)
                reply, count = REPLY_SHARE * s.max_new_tokens, s.num_updates * s.rollout_batch_size
                reward = self._forward(count, (prompt + reply) * PPO_PADDING, s.per_device_train_batch_size)
                policy = replace(reward, first=model.lowest, positions=reply)
                value = replace(reward, first=max(model.lowest, model.layers - (s.value_layers or model.layers)))
                trained, learners = self._train("ppo", reward.rows, reward.tokens), [policy]
                if s.advantage == "gae":
                    learners.append(value)
                prompts, k = s.rollout_batch_size / s.num_generations, s.num_generations
                return [
                    *self._decode(prompts, prompt, s.max_new_tokens, k, times=s.num_updates),
                    *([reward] if s.uses_model else [replace(policy, first=0)]),  # which records the shared states
                    *(policy, *learners)[not s.uses_model :],  # the first policy is the reference
                    *(replace(trained, first=part.first, positions=part.positions) for part in learners),
                ]
            case "evaluate" | "evaluate_iteration":
                s, rows = self.s.evaluate, self._rows("eval_prompts")
                checked = self._rows("checked_prompts")
                prompt, reply = rows.prompt + TEMPLATE_TOKENS, REPLY_SHARE * s.max_new_tokens
                count, length = rows.total * s.max_turns, prompt + reply
                # The KL of the subject to base and m0, from the lowest adapted layer on.
                compared = self._forward(3 * count, length * PADDING, KL_BATCH_SIZE, positions=reply)
                return [
                    *self._decode(rows.total, prompt, s.max_new_tokens, times=s.max_turns),
                    *self._decode(checked.total, checked.prompt + TEMPLATE_TOKENS, s.checks_max_new_tokens),
                    *self._judge(count, length),
                    self._forward(count, length),
                    replace(compared, first=self._adapted.lowest),
                ]
            case "text/dvc.yaml:sft":
                rows = self._rows("train", "text")
                return [self._train("text", rows.total, rows.prompt, positions=rows.prompt, model=self._whole)]
            case "text/dvc.yaml:evaluate":  # base and text
                rows = self._rows("test", "text")
                return [self._forward(2 * rows.total, rows.prompt, positions=rows.prompt, model=self._whole)]
        return [] if stage in (*LIGHT, *OTHERS) else None

    def _rows(self, key: str, section: str = "prepare_data") -> Rows:
        settings = getattr(self.s, section)
        path = Path(getattr(settings, key))
        if key not in self._known and path.is_file():
            prompts, replies = zip(*_texts(key, path, settings), strict=True)
            self._known[key] = Rows(len(prompts), len(set(prompts)), _tokens(*prompts), _tokens(*replies))
        elif key not in self._known:
            source = self.s.sources.get(path.stem)
            count = getattr(settings, f"max_{key}", None) or (source and source.limit) or ASSUMED.total
            self._known[key] = ASSUMED._replace(total=count, prompts=count * ASSUMED.prompts / ASSUMED.total)
            self.notes.append(f"{section}.{key}: {path} is not here yet; assumed are {count:,.0f} rows")
        return self._known[key]

    def _split(self, key: str) -> list[Rows]:  # to train on, to test with
        rows, test = self._rows(key), getattr(self.s.prepare_data, f"{key}_test_fraction")
        return [rows._replace(total=rows.total * part, prompts=rows.prompts * part) for part in (1 - test, test)]

    @property
    def _generated(self) -> Rows:  # by an iteration
        prompts, responses = self.s.generate_prompts, self.s.generate_responses
        prompt = min(self._rows("instructions").prompt, prompts.max_new_tokens) + TEMPLATE_TOKENS
        count, reply = prompts.num_prompts, REPLY_SHARE * responses.max_new_tokens
        return Rows(count * responses.num_responses, count, prompt, reply)

    def _forward(self, rows: float, tokens: float, batch: float = 0, model: Model | None = None, **more: Any) -> Part:
        size: dict[str, Any] = {"batch": batch or self.s.runtime.batch_size, "model": model or self._adapted}
        return Part(kind="forward", rows=rows, tokens=tokens, **size, **more)

    def _decode(self, prompts: float, tokens: float, longest: float, samples: int = 1, times: int = 1) -> list[Part]:
        rows, reply = prompts * samples, REPLY_SHARE * longest  # of each of `times` times
        batch = min(max(self.s.runtime.batch_size, samples), max(rows, 1))
        reading = self._forward(times * prompts, tokens, batch / samples, positions=1)
        writing = replace(reading, kind="decode", rows=times * rows, tokens=reply, positions=reply, steps=longest)
        return [reading, replace(writing, batch=batch, context=tokens - reply / 2)]

    def _train(self, section: str, rows: float, tokens: float, sides: int = 1, **more: Any) -> Part:
        settings = getattr(self.s, section)
        epochs = settings.num_ppo_epochs if section == "ppo" else settings.num_train_epochs
        part = self._forward(rows * epochs * sides, tokens, settings.per_device_train_batch_size * sides, **more)
        return replace(part, kind="train", checkpointing=settings.gradient_checkpointing)

    def _dpo(self, section: str, pairs: Rows) -> list[Part]:
        length = (pairs.prompt + pairs.reply) * PADDING + pairs.reply / 5  # both sides are as long as the longer reply
        training = self._train(section, pairs.total, length, sides=2, positions=pairs.reply)
        reading = replace(training, kind="forward")  # of the reference
        # KTO reads each prompt with another's reply, too, as policy and as reference.
        return [training, reading, reading, reading] if getattr(self.s, section).kto else [training, reading]

    def _judge(self, rows: float, tokens: float) -> list[Part]:
        judge = self.s.judge
        if judge.mode == "sample":
            return self._decode(rows, self._rubric + tokens, judge.max_new_tokens, judge.samples)
        scored = rows * (judge.mode != "checker")  # the rubric is read once for all
        return [self._forward(scored, tokens, positions=1, context=self._rubric)]


def _own(name: str) -> bool:  # whether a file is the user's, and here
    return Path(name).is_file() and "prepared" not in Path(name).parts


def _texts(key: str, path: Path, s: Any) -> list[tuple[str, str]]:  # prompts and replies, as the key's stage reads them
    match key:
        case "instructions":
            instructions = read_instructions(path, s.instructions_format, s.language)[0]
            return [(row.prompt, row.completion) for row in instructions[: s.max_instructions]]
        case "judgements":
            return [(row.prompt, row.response) for row in read_judgements(s)[0]]
        case "preferences":
            pairs = read_preferences(path, s.preferences_format, drop=True, limit=s.max_preferences)[0]
            return [(" ".join(turn.content for turn in row.messages), row.chosen) for row in pairs]
        case "eval_prompts":
            return [(row.turns[0], "") for row in read_rows(path, EvalPrompt)]
        case "checked_prompts":
            return [(row.prompt, "") for row in read_rows(path, CheckedPrompt)[: s.max_checked_prompts]]
        case "data":
            found = read_pairs_or_replies(path, "offline_dpo", s.kto)
            if isinstance(found[0], UnpairedPreference):
                found = found[::2]  # two single replies take what a pair takes
            both = [
                (row.messages, row.chosen) if isinstance(row, PreferencePair) else (row.prompt, row.reply)
                for row in found
            ]
            return [(" ".join(turn.content for turn in messages), reply) for messages, reply in both]
        case "prompts":
            return [(" ".join(turn.content for turn in row.conversation), "") for row in read_rows(path, TaskPrompt)]
    texts = read_rows(path, LabelledText)
    return [(s.template.format(text=row.text, label_text=row.label_text), "") for row in texts]
