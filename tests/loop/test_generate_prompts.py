"""Prompts that the loop writes: only what the model generated, only what is new, and never for ever."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from align.checks.prompts import CheckedPrompt
from align.core.rows import EvalPrompt, Judgement, KnownPrompt, Prompt, read_rows, write_rows
from align.generation.generator import Completion
from align.generation.local import TorchGenerator
from stages.generate_prompts import GeneratePromptsSettings, extract_prompt, main, pick_examples
from tests.committed import committed_params, write_params

SEEDS = [f"Explain how the {thing} works in a house" for thing in ("boiler", "fuse", "lock", "oven", "tap", "bell")]
HELD_OUT = "Which birds stay over the winter here?"
CHECKED = "Which river flows through Paris, in lower case?"
JUDGED = "How long should pasta boil in salted water?"
Reply = Callable[[int], Completion]


def settings(**changes: Any) -> GeneratePromptsSettings:
    values = committed_params()["generate_prompts"]
    return GeneratePromptsSettings.model_validate(values | changes)


@pytest.fixture
def run(
    tmp_path: Path, tiny_base: Path, make_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Return a function that runs the stage in an empty project with a model that writes what it is told to."""

    def stage(reply: Reply, **changes: Any) -> Any:
        monkeypatch.chdir(tmp_path)
        adapter = make_adapter("m0", 1)
        models = tmp_path / "models"
        models.mkdir()
        (models / "base").symlink_to(tiny_base, target_is_directory=True)
        (models / "m0").symlink_to(adapter, target_is_directory=True)
        few = {"num_prompts": 3, "num_seed_examples": 2, "max_rounds": 2, "samples_per_request": 1}
        write_params(Path(), {"generate_prompts": few | changes})
        write_rows(Path("data/m0/known_prompts.jsonl"), [KnownPrompt(prompt=text, source="seed") for text in SEEDS])
        held_out = Path("data/prepared/eval")
        write_rows(held_out / "prompts.jsonl", [EvalPrompt(id="e", category="c", turns=[HELD_OUT])])
        checks = [{"kind": "lower_case"}]
        checked = CheckedPrompt.model_validate({"id": "c", "prompt": CHECKED, "checks": checks})
        write_rows(held_out / "checked_prompts.jsonl", [checked])
        judged = Judgement(question_id="q", category="c", prompt=JUDGED, response="Nine minutes.", score=5)
        write_rows(held_out / "judgements.jsonl", [judged])
        written = 0

        def generate(_: Any, prompts: Sequence[list[int]], *__: Any, n: int, **___: Any) -> Any:
            nonlocal written
            completions = [[reply(written + n * i + k) for k in range(n)] for i in range(len(prompts))]
            written += n * len(prompts)
            return completions

        monkeypatch.setattr(TorchGenerator, "generate", generate)
        return CliRunner().invoke(main, ["m1", "m0"])

    return stage


def says(*texts: str) -> Reply:
    return lambda i: Completion([1], texts[i % len(texts)], "stop")


FRESH = (
    "How do bees find their way home?",
    "Write a poem about an old bridge",
    "What should I pack for a week at sea?",
)


def test_new_prompts_are_written_with_what_the_loop_now_knows(run: Callable[..., Any]) -> None:
    assert run(says(*FRESH)).exit_code == 0
    prompts = read_rows(Path("data/m1/prompts.jsonl"), Prompt)
    assert [row.messages[0].content for row in prompts] == list(FRESH)
    known = read_rows(Path("data/m1/known_prompts.jsonl"), KnownPrompt)
    assert [(row.prompt, row.source, row.iteration) for row in known] == [
        *((text, "seed", None) for text in SEEDS),
        *((text, "generated", "m1") for text in FRESH),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (SEEDS[0], "duplicate of a known prompt"),  # the bug of public scripts: few-shot seeds come out as new prompts
        (SEEDS[0] + " today", "near a known prompt"),
        (HELD_OUT, "duplicate of an evaluation prompt"),
        (JUDGED.lower(), "duplicate of an evaluation prompt"),
        (CHECKED, "duplicate of an evaluation prompt"),
        (f"Answer a question for me, as well as you can: {CHECKED} Thank you!", "contains an evaluation prompt"),
        ("Draw me an image of a house by the sea", "blocked word"),
        ("Quelle est la capitale de la France aujourd'hui ?", "another language"),
        ("Why?", "too short"),
    ],
)
def test_what_is_not_new_or_not_wanted_is_dropped_and_counted_by_reason(
    text: str, reason: str, run: Callable[..., Any]
) -> None:
    assert run(says(text, *FRESH)).exit_code == 0
    assert text not in Path("data/m1/prompts.jsonl").read_text(encoding="utf-8")
    metrics = json.loads(Path("data/metrics/m1/prompts.json").read_text(encoding="utf-8"))
    assert metrics["dropped"][reason] >= 1
    assert metrics["accepted"] == 3


@pytest.mark.parametrize(("writer", "named"), [("base", "base"), ("parent", "m0")])
def test_the_writer_is_a_fixed_model_or_the_parent(writer: str, named: str, run: Callable[..., Any]) -> None:
    assert f"{named} wrote 0 usable prompts" in run(says("Why?"), writer=writer).stderr


def test_a_prompt_is_accepted_once_however_often_it_is_written(run: Callable[..., Any]) -> None:
    result = run(says(FRESH[0]))
    assert result.exit_code == 1
    assert "base wrote 1 usable prompts of 3 in 2 rounds" in result.stderr
    assert "duplicate of one of this run" in result.stderr


def test_a_model_that_yields_too_little_stops_with_what_to_change_and_writes_nothing(run: Callable[..., Any]) -> None:
    result = run(lambda i: Completion([1], "How do bees", "length"), max_rounds=3)
    assert result.exit_code == 1
    assert result.stderr.strip().splitlines()[-1] == (
        "Error: generate_prompts: base wrote 0 usable prompts of 3 in 3 rounds (dropped: {'cut off': 9}); raise "
        "generate_prompts.max_rounds or temperature"
    )
    assert not Path("data/m1").exists()


@pytest.mark.parametrize(("samples", "asked"), [(1, 6), (2, 6), (4, 8)])
def test_every_sample_of_a_request_is_a_prompt_of_its_own(samples: int, asked: int, run: Callable[..., Any]) -> None:
    result = run(says("Why?"), samples_per_request=samples, num_prompts=6, max_rounds=1)
    assert f"of 6 in 1 rounds (dropped: {{'too short': {asked}}})" in result.stderr


@pytest.mark.parametrize(
    ("written", "prompt"),
    [
        ("How do bees fly?\n", "How do bees fly?"),
        (" How do bees fly?\nRequest: And birds?\n", "How do bees fly?"),
        ("\nHow do bees fly?\nWith wings.", "How do bees fly?"),
        ("How do bees", None),
        ("\n", None),
        ("", None),
    ],
)
def test_the_prompt_is_the_first_line_that_the_model_finished(written: str, prompt: str | None) -> None:
    assert extract_prompt(written) == prompt


def test_the_examples_are_seeds_and_generated_prompts_in_the_given_numbers() -> None:
    generated = [f"generated {i}" for i in range(5)]
    seeds = [f"seed {i}" for i in range(10)]
    examples = pick_examples(seeds, generated, settings(num_seed_examples=6, num_generated_examples=2), 7)
    assert len(set(examples)) == 8
    assert sum(text in generated for text in examples) == 2
    assert examples == pick_examples(seeds, generated, settings(num_seed_examples=6, num_generated_examples=2), 7)


def test_seeds_stand_in_while_there_are_no_generated_prompts() -> None:
    seeds = [f"seed {i}" for i in range(10)]
    examples = pick_examples(seeds, [], settings(num_seed_examples=6, num_generated_examples=2), 7)
    assert len(set(examples)) == 8
    assert set(examples) <= set(seeds)
