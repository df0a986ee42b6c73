"""PPO with TRL 1.10, the last release that has it, for `benchmarks.rlhf`: a script for an environment of its own.

It imports nothing of this project. Its argument is a folder with `policy` and `reward`, two full models, and
`settings.json` as benchmarks.rlhf writes it; it adds `out`, the trained policy. The last line of its output is one JSON
object: seconds of each update, the peak memory of the process in bytes, and the versions.
"""

import json
import resource
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer  # type: ignore[import-not-found]


class Clock(TrainerCallback):
    """The time at the start of training and after each update."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    on_step_end = on_train_begin


def load_scorer(folder: Path, dtype: torch.dtype, bias: float) -> Any:
    """Load a reward model whose head adds `bias`."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, num_labels=1)
    model.score.bias = torch.nn.Parameter(torch.tensor([bias], dtype=dtype))
    return model


def main() -> None:
    """Train, save the policy as a model of its own, and print the figures."""
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    torch.set_num_threads(settings["num_threads"])
    torch.manual_seed(settings["ppo"]["seed"])
    dtype = getattr(torch, settings["dtype"])
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = PPOTrainer(
            args=PPOConfig(output_dir=scratch, **settings["ppo"]),
            processing_class=AutoTokenizer.from_pretrained(folder / "policy", padding_side="left"),
            model=AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=dtype),
            ref_model=None,  # with LoRA the reference is the policy without its adapter
            reward_model=load_scorer(folder / "reward", dtype, settings["score_bias"]),
            value_model=load_scorer(folder / "reward", dtype, settings["score_bias"]),  # where it starts
            train_dataset=Dataset.from_dict({"input_ids": settings["prompts"]}),
            callbacks=[clock],
            peft_config=LoraConfig(**settings["lora"]),
        )
        # Otherwise accelerate steps at every micro-batch of the last rollout of a pass over the prompts.
        trainer.accelerator.gradient_state.plugin_kwargs["sync_with_dataloader"] = False
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    trainer.policy_model.merge_and_unload().save_pretrained(folder / "out")
    versions = {name: version(name) for name in ("trl", "torch", "transformers", "peft", "accelerate")}
    seconds = [end - begin for begin, end in pairwise(clock.times)]
    sys.stdout.write(json.dumps({"seconds": seconds, "peak_rss": peak, "versions": versions}) + "\n")


if __name__ == "__main__":
    main()
