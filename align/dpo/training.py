"""Direct preference optimization (arXiv 2305.18290) of an adapter, and the losses of its kind that TRL has."""

from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Literal, Self

from datasets import Dataset
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from pydantic import BeforeValidator, Field, model_validator
from trl import DPOConfig, DPOTrainer

from align.core.files import replacing
from align.core.rows import PreferencePair, read_rows
from align.core.split import conversation_key
from align.models.adapters import continue_adapter, save_adapter
from align.models.base import copy_tokenizer, load_base, load_tokenizer
from align.models.card import write_model_card
from align.models.loading import load_adapter_weights
from align.models.tokenization import drop_too_long, encode_completion, encode_prompt
from align.run.stage import BASE, Stage
from align.training.settings import TrainingSettings
from align.training.trainer import Resumable, taken, train, training_arguments
from align.training.validation import GROUP, dataset_of, described, hold_out

# TRL's but `sft`, which is `nll_coef`.
Loss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
]
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")  # the losses that read label_smoothing
SORTED = ("aot", "aot_unpaired")  # the losses that compare the sorted log-ratios of a micro-batch


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class DPOSettings(TrainingSettings):
    """Keys of a section that trains on pairs, named as in `trl.DPOConfig`."""

    loss_type: Annotated[list[Loss], BeforeValidator(_as_list)] = Field(min_length=1)
    loss_weights: list[float] | None
    beta: float = Field(gt=0)
    label_smoothing: float = Field(ge=0, lt=0.5)
    ld_alpha: float | None = Field(ge=0, le=1)
    use_weighting: bool
    nll_coef: float = Field(ge=0)
    reference: Literal["previous", "m0"]

    @model_validator(mode="after")
    def _the_losses_read_what_is_set(self) -> Self:
        if len(set(self.loss_type)) < len(self.loss_type):
            raise ValueError("a loss_type without the same loss twice; give it a weight in loss_weights")
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError("loss_weights with a number for each loss_type, or null")
        if self.loss_weights is not None and not any(self.loss_weights):
            raise ValueError("loss_weights that are not all 0")
        if self.label_smoothing and not set(self.loss_type) & set(SMOOTHED):
            raise ValueError(f"label_smoothing 0, or a loss_type that reads it: {', '.join(SMOOTHED)}")
        if "exo_pair" in self.loss_type and not self.label_smoothing:
            raise ValueError("loss_type exo_pair with a label_smoothing above 0, such as 0.001")
        if self.use_weighting and (self.nll_coef or set(self.loss_type) & set(SORTED)):
            raise ValueError(
                f"use_weighting false with nll_coef and with {', '.join(SORTED)}, whose terms are no pair's"
            )
        if self.per_device_train_batch_size < 2 and set(self.loss_type) & set(SORTED):
            raise ValueError(f"per_device_train_batch_size 2 or more with {', '.join(SORTED)}: they sort a micro-batch")
        return self


class TokenizedDPOTrainer(Resumable, DPOTrainer):
    """TRL's trainer on tokenized rows, so that every stage encodes conversations alike.

    `nll_coef` weighs the negative log-likelihood of the chosen replies, a mean over the tokens of a whole optimizer
    step: TRL's is one over a micro-batch, so that the loss would depend on how the step is cut into these.
    """

    def __init__(self, nll_coef: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.nll_coef, self.tokens_each = nll_coef, 1.0

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Return the micro-batches of the next optimizer step, and note their mean number of chosen tokens."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        self.tokens_each = sum(map(chosen_tokens, batches)) / max(1, len(batches))
        return batches, count

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return TRL's loss of a micro-batch, its likelihood weighted by its share of the step's chosen tokens."""
        rows: Any = self.eval_dataset
        if self.nll_coef and not model.training:  # the mean over the tokens of all held-out rows, as `measures` adds up
            self.tokens_each = len(inputs["input_ids"]) / 2 * mean(map(len, rows["chosen_ids"]))
        if self.nll_coef:
            self.loss_weights = [*self.loss_weights[:-1], self.nll_coef * chosen_tokens(inputs) / self.tokens_each]
        trainer: Any = super()
        return trainer.compute_loss(model, inputs, *args, **kwargs)

    def measures(self, batch: Any) -> dict[str, tuple[float, int]]:
        """Return the loss of pairs, and how often the chosen reply has the higher reward."""
        loss, pairs = float(self.compute_loss(self.model, batch)), len(batch["input_ids"]) // 2
        accuracy = taken(self._metrics["eval"], "rewards/accuracies")
        return {"loss": (loss, pairs), "rewards/accuracies": (accuracy, pairs)}


def chosen_tokens(batch: dict[str, Any]) -> int:
    """Return the number of tokens of a batch's chosen replies, whose rows come before the rejected ones."""
    chosen, _ = batch["completion_mask"].chunk(2, dim=0)
    return int(chosen.sum())


def train_dpo(stage: Stage, section: str, settings: DPOSettings, parent: Path, preferences: Path, model: Path) -> str:
    """Continue the adapter of `parent` on pairs -> the folder `model` and data/<model>/dpo_history.csv.

    The reference is a frozen copy of the starting point, or m0. A killed run resumes from its last checkpoint.

    Args:
        stage: started, with its sections read.
        section: of `settings`, for messages.
        settings: what to optimize, and how.
        parent: the folder of a model with an adapter.
        preferences: rows of `PreferencePair`.
        model: the folder to write, whose name is the model's.

    Returns:
        A line on the number of pairs, of those dropped as too long, and of those held out.

    Raises:
        InputError: no pair fits into `max_length`, or there are too few prompts to hold some out.
    """
    tokenizer = load_tokenizer(BASE)
    rows: list[dict[str, Any]] = [
        {
            GROUP: conversation_key(pair.messages),
            "prompt_ids": encode_prompt(tokenizer, pair.messages),
            "chosen_ids": encode_completion(tokenizer, pair.chosen, pair.chosen_finish_reason),
            "rejected_ids": encode_completion(tokenizer, pair.rejected, pair.rejected_finish_reason),
        }
        for pair in read_rows(preferences, PreferencePair)
    ]
    for row in rows:  # padding makes both sides of a batch as long as the longest
        row["length"] = len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
    rows, dropped = drop_too_long(rows, [row["length"] for row in rows], settings.max_length, f"{section}.max_length")
    rows, held_out = hold_out(rows, settings, stage.seed, section)
    m0 = Path("models/m0")
    with stage.work([BASE, parent, m0, preferences]) as work:
        policy = continue_adapter(load_base(BASE, stage.runtime), parent)
        parents = {"base": BASE, "parent": parent, "reference": parent}
        start = {key: value.clone() for key, value in get_peft_model_state_dict(policy).items()}
        if settings.reference == "m0":
            parents["reference"] = m0
            set_peft_model_state_dict(policy, load_adapter_weights(m0))
        trainer = TokenizedDPOTrainer(  # computes the reference's log-probabilities here, once for all epochs
            nll_coef=settings.nll_coef,
            model=policy,
            args=DPOConfig(
                **training_arguments(settings, work.folder / "dpo", stage.seed, stage.runtime),
                **loss_arguments(settings),
                max_length=None,
                precompute_ref_log_probs=True,
            ),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=dataset_of(held_out),
            processing_class=tokenizer,
        )
        set_peft_model_state_dict(policy, start)
        validation = train(trainer, Path("data") / model.name / "dpo_history.csv", work, settings)
        with replacing(model) as temporary:
            save_adapter(policy, temporary)
            copy_tokenizer(BASE, temporary)
            write_model_card(temporary, stage, parents, {"preferences": preferences}, validation)
    return f"{len(rows)} pairs, {dropped} dropped as longer than {settings.max_length} tokens{described(validation)}"


def loss_arguments(settings: DPOSettings) -> dict[str, Any]:
    """Return the keyword arguments of `trl.DPOConfig` that make the loss."""
    losses, weights = list[str](settings.loss_type), settings.loss_weights or [1.0] * len(settings.loss_type)
    if settings.nll_coef:
        losses, weights = [*losses, "sft"], [*weights, settings.nll_coef]
    shared = settings.model_dump(include={"beta", "label_smoothing", "ld_alpha", "use_weighting"})
    return shared | {"loss_type": losses, "loss_weights": weights}
