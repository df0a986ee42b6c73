"""Train a reward model on human preferences: models/base + data/prepared/preferences -> models/reward.

The loss is -logsigmoid(chosen - rejected) (Bradley-Terry); the adapter and its score head are saved together.
Run with `python -m stages.reward_model`.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from stages.lib.files import replacing, write_json
from stages.lib.metrics import mean, wilson_interval
from stages.lib.models import (
    AdapterStack,
    LoraSettings,
    copy_tokenizer,
    load_base,
    load_tokenizer,
    save_adapter,
    write_model_card,
)
from stages.lib.params import Params
from stages.lib.records import PreferencePair, read_rows
from stages.lib.runtime import RuntimeSettings, start
from stages.lib.scoring import reward_scores
from stages.lib.tokenization import drop_too_long, encode_completion, encode_prompt
from stages.lib.training import TrainingSettings, train


def encode_pairs(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair]) -> list[dict[str, list[int]]]:
    """Return token ids of both sides of each pair, each a whole conversation that ends with EOS."""
    rows = []
    for pair in pairs:
        prompt = encode_prompt(tokenizer, pair.messages)
        sides = {"chosen_ids": pair.chosen, "rejected_ids": pair.rejected}
        rows.append({key: prompt + encode_completion(tokenizer, text) for key, text in sides.items()})
    return rows


@click.command(help=__doc__)
@click.option("--base", type=click.Path(path_type=Path), default="models/base", show_default=True)
@click.option(
    "--train",
    "train_path",
    type=click.Path(path_type=Path),
    default="data/prepared/preferences/train.jsonl",
    show_default=True,
)
@click.option(
    "--test",
    "test_path",
    type=click.Path(path_type=Path),
    default="data/prepared/preferences/test.jsonl",
    show_default=True,
)
@click.option("--out", type=click.Path(path_type=Path), default="models/reward", show_default=True)
@click.option("--history", type=click.Path(path_type=Path), default="data/reward/history.csv", show_default=True)
@click.option("--metrics", type=click.Path(path_type=Path), default="data/metrics/reward.json", show_default=True)
def main(base: Path, train_path: Path, test_path: Path, out: Path, history: Path, metrics: Path) -> None:
    params = Params.read()
    runtime = params.section("runtime", RuntimeSettings)
    lora = params.section("lora", LoraSettings)
    settings = params.section("reward_model", TrainingSettings)
    start(runtime, params.seed)
    tokenizer = load_tokenizer(base)
    rows = encode_pairs(tokenizer, read_rows(train_path, PreferencePair))
    lengths = [max(map(len, row.values())) for row in rows]
    rows, dropped = drop_too_long(rows, lengths, settings.max_length, "reward_model.max_length")

    sequence_model = load_base(base, runtime, AutoModelForSequenceClassification, num_labels=1)
    model = get_peft_model(sequence_model, lora.config(task_type="SEQ_CLS", modules_to_save=["score"]))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(
                **settings.arguments(Path(scratch), params.seed, runtime.torch_device.type == "cpu"), max_length=None
            ),
            train_dataset=Dataset.from_list([{**row, "length": max(map(len, row.values()))} for row in rows]),
            processing_class=tokenizer,
        )
        train(trainer, history)
    with replacing(out) as temporary:
        save_adapter(model, temporary)
        copy_tokenizer(base, temporary)
        config = settings.model_dump() | {"lora": lora.model_dump()}
        write_model_card(temporary, "reward_model", {"base": base}, {"preferences": train_path}, config, params.seed)
    del trainer, model, sequence_model

    # Held-out accuracy of what was written, not of what is in memory.
    stack = AdapterStack(base, runtime)
    stack.add("reward", out)
    held_out = encode_pairs(tokenizer, read_rows(test_path, PreferencePair))
    chosen, rejected = (
        reward_scores(stack, "reward", [row[key] for row in held_out], batch_size=runtime.batch_size)
        for key in ("chosen_ids", "rejected_ids")
    )
    wins = [0.5 if c == r else float(c > r) for c, r in zip(chosen, rejected, strict=True)]
    low, high = wilson_interval(sum(wins), len(wins)) or (None, None)
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    summary = {
        "train_pairs": len(rows),
        "dropped_too_long": dropped,
        "test_pairs": len(wins),
        "accuracy": mean(wins),
        "accuracy_low": low,
        "accuracy_high": high,
        "mean_margin": mean(margins),
    }
    write_json(metrics, summary)
    click.echo(
        f"reward_model: {len(rows)} pairs, held-out accuracy {mean(wins):.2f} [{low:.2f}, {high:.2f}] on {len(wins)}"
    )


if __name__ == "__main__":
    main()
