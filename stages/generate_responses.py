"""Answer each new prompt N times with the parent model: data/<model>/prompts.jsonl -> data/<model>/responses.jsonl.

A killed run resumes with the missing rows. Run with `python -m stages.generate_responses m1 m0` (the new model, its
parent).
"""

from pathlib import Path

import click
from pydantic import Field

from align.backends.choose import GenerationSettings, open_generator
from align.core.files import write_json
from align.core.params import Settings
from align.core.rows import Prompt, Response, read_rows, write_rows
from align.generation.sampling import SamplingParams
from align.models.tokenization import completion_lengths, encode_prompt, warn_if_capped
from align.report.statistics import mean
from align.run.provenance import environment
from align.run.runtime import is_main_process, row_seed
from align.run.stage import BASE, Stage


class GenerateResponsesSettings(Settings):
    """Section `generate_responses` of params.yaml."""

    num_responses: int = Field(ge=2)
    max_new_tokens: int = Field(ge=1)
    temperature: float = Field(gt=0)
    top_p: float = Field(gt=0, le=1)


@click.command(help=__doc__)
@click.argument("model")
@click.argument("parent")
def main(model: str, parent: str) -> None:
    stage = Stage(f"generate_responses@{model}")
    generation = stage.section("generation", GenerationSettings)
    settings = stage.section("generate_responses", GenerateResponsesSettings)
    stage.start()
    data = Path("data") / model
    prompts_file, ift_file = data / "prompts.jsonl", Path("data/m0/ift.jsonl")
    prompts = read_rows(prompts_file, Prompt, unique=["id"])
    inputs = [BASE, Path("models") / parent, prompts_file]
    with stage.unlocked_work(inputs) as work, open_generator(generation, stage.runtime, parent, work) as generator:
        if is_main_process():
            lengths = completion_lengths(generator.tokenizer, ift_file)
            warn_if_capped("generate_responses.max_new_tokens", settings.max_new_tokens, lengths, ift_file)
        completions = generator.generate(
            [encode_prompt(generator.tokenizer, prompt.messages) for prompt in prompts],
            SamplingParams(settings.max_new_tokens, settings.temperature, settings.top_p),
            [row_seed(stage.seed, "generate_responses", prompt.id) for prompt in prompts],
            n=settings.num_responses,
            description=f"{model} responses",
        )
        if not is_main_process():
            return
        rows = [
            Response(
                id=prompt.id,
                sample=number,
                prompt=prompt.messages[-1].content,
                response=completion.text.strip(),
                finish_reason=completion.finish_reason,
                num_tokens=len(completion.token_ids),
            )
            for prompt, samples in zip(prompts, completions, strict=True)
            for number, completion in enumerate(samples)
        ]
        stopped = sum(row.finish_reason == "stop" for row in rows)
        summary = {
            "rows": len(rows),
            "ended_share": stopped / len(rows),
            "mean_tokens": mean([row.num_tokens for row in rows]),
            "environment": environment(stage.runtime),
        }
        write_rows(data / "responses.jsonl", rows)
        write_json(Path("data/metrics") / model / "responses.json", summary)
    click.echo(
        f"generate_responses@{model}: {len(rows)} responses to {len(prompts)} prompts, {stopped} ended by themselves"
    )


if __name__ == "__main__":
    main()
