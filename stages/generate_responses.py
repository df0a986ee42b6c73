"""The parent model answers each new prompt N times: data/<model>/prompts.jsonl -> data/<model>/responses.jsonl.

Run with `python -m stages.generate_responses m1 m0` (the new model, its parent).
"""

from pathlib import Path

import click
from pydantic import Field

from stages.lib.backends import GenerationSettings, open_generator
from stages.lib.params import Params, Settings
from stages.lib.records import Prompt, Response, read_rows, write_rows
from stages.lib.runtime import RuntimeSettings, is_main_process, row_seed, start
from stages.lib.sampling import SamplingParams
from stages.lib.tokenization import encode_prompt


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
    params = Params.read()
    runtime = params.section("runtime", RuntimeSettings)
    generation = params.section("generation", GenerationSettings)
    settings = params.section("generate_responses", GenerateResponsesSettings)
    start(runtime, params.seed)
    prompts = read_rows(Path("data") / model / "prompts.jsonl", Prompt, unique=["id"])
    with open_generator(generation, runtime, parent) as generator:
        completions = generator.generate(
            [encode_prompt(generator.tokenizer, prompt.messages) for prompt in prompts],
            SamplingParams(settings.max_new_tokens, settings.temperature, settings.top_p),
            [row_seed(params.seed, "generate_responses", prompt.id) for prompt in prompts],
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
    write_rows(Path("data") / model / "responses.jsonl", rows)
    stopped = sum(row.finish_reason == "stop" for row in rows)
    click.echo(
        f"generate_responses@{model}: {len(rows)} responses to {len(prompts)} prompts, {stopped} ended by themselves"
    )


if __name__ == "__main__":
    main()
