"""PPO with TRL 1.10, the last release that has it, for `benchmarks.rlhf`: a script for an environment of its own.

It imports nothing of this project. The last line of its output is one JSON object: seconds and mean reward of each
update, the peak memory of the process in bytes, and the versions.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer  # type: ignore[import-not-found]


class Clock(TrainerCallback):
    """The time at the start of training and after each update."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Seconds of each update."""
        return [end - begin for begin, end in zip(self.times, self.times[1:], strict=False)]


def load_scorer(folder: Path, dtype: torch.dtype, bias: float) -> Any:
    """Load a reward model whose head adds `bias`."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, num_labels=1)
    model.score.bias = torch.nn.Parameter(torch.tensor([bias], dtype=dtype))
    return model


def load_value(folder: Path, dtype: torch.dtype, bias: float, lora: LoraConfig | None) -> Any:
    """Load the value model, which starts as the reward model; with `lora`, adapter and head alone are trained."""
    model = load_scorer(folder, dtype, bias)
    if lora is not None:
        model.add_adapter(lora)
        model.score.requires_grad_(True)
    return model


def main() -> None:
    """Train, save the policy as a model of its own, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", type=Path, required=True, help="directory of a full causal LM with its tokenizer")
    parser.add_argument("--reward", type=Path, required=True, help="directory of a full sequence classification model")
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL, a list of token ids a line")
    parser.add_argument("--settings", type=Path, required=True, help="JSON as benchmarks.rlhf writes it")
    parser.add_argument("--out", type=Path, required=True, help="directory for the trained policy")
    arguments = parser.parse_args()
    settings = json.loads(arguments.settings.read_text(encoding="utf-8"))
    torch.set_num_threads(settings["num_threads"])
    torch.manual_seed(settings["ppo"]["seed"])
    dtype = getattr(torch, settings["dtype"])
    bias = settings["score_bias"]
    value_lora = LoraConfig(**settings["lora"]) if settings["value"] == "lora" else None

    tokenizer = AutoTokenizer.from_pretrained(arguments.policy, padding_side="left")
    prompts = [json.loads(line) for line in arguments.prompts.read_text(encoding="utf-8").splitlines()]
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = PPOTrainer(
            args=PPOConfig(output_dir=scratch, **settings["ppo"]),
            processing_class=tokenizer,
            model=AutoModelForCausalLM.from_pretrained(arguments.policy, dtype=dtype),
            ref_model=None,  # with LoRA the reference is the policy without its adapter
            reward_model=load_scorer(arguments.reward, dtype, bias),
            value_model=load_value(arguments.reward, dtype, bias, value_lora),
            train_dataset=Dataset.from_dict({"input_ids": prompts}),
            callbacks=[clock],
            peft_config=LoraConfig(**settings["lora"]),
        )
        # Otherwise accelerate steps at every micro-batch of the last rollout of a pass over the prompts.
        trainer.accelerator.gradient_state.plugin_kwargs["sync_with_dataloader"] = False
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    trainer.policy_model.merge_and_unload().save_pretrained(arguments.out)
    rewards = [row["objective/scores"] for row in trainer.state.log_history if "objective/scores" in row]
    versions = {name: version(name) for name in ("trl", "torch", "transformers", "peft", "accelerate")}
    row = {"seconds": clock.seconds, "rewards": rewards, "peak_rss": peak, "versions": versions}
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
