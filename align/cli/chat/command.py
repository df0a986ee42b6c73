"""`align chat`."""

import io
import sys
from pathlib import Path

import click

from align.cli.chat.conversation import Conversation, open_speakers
from align.cli.chat.screen import talk
from align.cli.export.merge import find_model
from align.core.errors import InputError
from align.core.params import Params
from align.generation.sampling import SamplingParams
from align.run.runtime import RuntimeSettings, start


@click.command()
@click.argument("name", metavar="MODEL")
@click.option("--compare", metavar="OTHER", help="Let a second model reply too, side by side.")
@click.option("--system", metavar="TEXT", help="The system prompt.")
@click.option(
    "--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0: greedy, the likeliest token."
)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--max-new-tokens", type=click.IntRange(1), default=256, show_default=True, help="Of a reply.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the sampling.")
@click.option("--base", type=click.Path(path_type=Path), metavar="DIR", help="The adapter's base. Default: beside it.")
def chat(
    name: str,
    compare: str | None,
    system: str | None,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    base: Path | None,
) -> None:
    """Talk with a model: m2, base, or the path of a model directory; with --compare, with two side by side.

    Device, dtype and threads are those of params.yaml. Lines may come from a pipe; a reply that is cut says so.

    \b
      align chat m2 --system 'Answer in one sentence.'
      align chat m2 --compare m0 --temperature 0.7 --seed 1
      echo 'What is a fugue?' | align chat m2
    """
    if temperature != temperature or temperature == float("inf") or top_p != top_p:
        raise InputError("--temperature and --top-p: expected numbers, such as 0.7 and 0.9")
    params = Params.read()
    runtime = params.section("runtime", RuntimeSettings)
    start(runtime, params.seed)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal of another encoding gets escapes for what it has not
        sys.stdout.reconfigure(errors="backslashreplace")
    models = [find_model(model, base) for model in (name, compare) if model is not None]
    with open_speakers(models, runtime) as speakers:
        talk(Conversation(speakers, SamplingParams(max_new_tokens, temperature, top_p), seed, system))
