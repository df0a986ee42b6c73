"""Prompts that are broken, or that the models have no room for."""

from collections.abc import Iterator

from tests.faults.broken.params import BY_REWARD
from tests.faults.broken.workspace import Break, Case, both, param, put, row

LONG = "red " * 3000
PROMPTS: dict[str, tuple[str, Break, str]] = {
    "no such file of PPO's": ("ppo", param("ppo.prompts", "data/seed/no.jsonl"), "data/seed/no.jsonl: no such file"),
    "a text and a conversation": ("ppo", row("data/prepared/prompts.jsonl", 2, prompt="Hi"), 'needs either "prompt"'),
    "an id twice in PPO's": ("ppo", row("data/prepared/prompts.jsonl", 3, id="p1"), "duplicate id 'p1'"),
    "a prompt beyond the model's context": (
        "generate_responses m1 m0",
        row("data/m1/prompts.jsonl", 1, messages=[{"role": "user", "content": LONG}]),
        "1 of 3 prompts are too long",
    ),
    "a held-out prompt beyond the model's context": (
        "evaluate m0",
        row("data/prepared/eval/prompts.jsonl", 1, turns=[LONG]),
        "prompts are too long",
    ),
    "a response that the judge has no room for": (
        "judge m1 m0",
        row("data/m1/responses.jsonl", 1, response=LONG),
        "prompts are too long",
    ),
    "a response that the reward model has no room for": (
        "judge m1 m0",
        both(BY_REWARD, param("judge.use_parent", False), row("data/m1/responses.jsonl", 1, response=LONG)),
        "1 of 47 prompts are too long",
    ),
    "seed prompts of several lines only": (
        "generate_prompts m1 m0",
        both(*(row("data/m0/known_prompts.jsonl", n, prompt="One\ntwo") for n in range(1, 13))),
        "only 0 one-line seed prompts",
    ),
    "a system message for a template that takes none": (
        "generate_responses m1 m0",
        both(
            put(
                "models/base/chat_template.jinja",
                "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
                "{{ m.content }}{% endfor %}",
            ),
            row("data/m1/prompts.jsonl", 1, messages=[{"role": "system", "content": "x"}] * 2),
        ),
        "the chat template rejects a conversation of system, system (no system role)",
    ),
}


def cases() -> Iterator[Case]:
    """Yield the cases."""
    for name, (command, act, says) in PROMPTS.items():
        yield Case("prompt", name, command, act, (says,))
