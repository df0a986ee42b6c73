"""Direct preference optimization (arXiv 2305.18290), and the losses of its kind that TRL has."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from align.core.errors import InputError
from align.core.files import replacing
from align.core.rows import PreferencePair
from align.core.split import conversation_key
from align.dpo.kto import batched, check_replies, encode_replies, kto_trainer
from align.dpo.preferences import EVALUATION, drop_evaluated, read_preferences
from align.dpo.settings import DPOSettings
from align.models.attention import check_attention, use_attention
from align.models.base import copy_tokenizer, load_tokenizer
from align.models.card import write_model_card
from align.models.full import Trained, put_model, put_state, save_trained, start_model, state_of
from align.models.tokenization import drop_too_long, encode_completion, encode_prompt
from align.run.stage import BASE, Stage
from align.training.trainer import Resumable, taken, train, training_arguments
from align.training.validation import GROUP, dataset_of, described, hold_out


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


def encode_pairs(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair]) -> list[dict[str, Any]]:
    """Return the token ids of each pair; a reply that was cut off has no EOS."""
    rows: list[dict[str, Any]] = [
        {
            GROUP: conversation_key(pair.messages),
            "prompt_ids": encode_prompt(tokenizer, pair.messages),
            "chosen_ids": encode_completion(tokenizer, pair.chosen, pair.chosen_finish_reason),
            "rejected_ids": encode_completion(tokenizer, pair.rejected, pair.rejected_finish_reason),
        }
        for pair in pairs
    ]
    for row in rows:  # padding makes both sides of a batch as long as the longest
        row["length"] = len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
    return rows


def dpo_trainer(
    policy: Trained,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    held_out: Sequence[dict[str, Any]],
    settings: DPOSettings,
    arguments: dict[str, Any],
) -> TokenizedDPOTrainer:
    """Return the trainer of rows of `encode_pairs`; it computes the reference's log-probabilities, as `kto_trainer`."""
    return TokenizedDPOTrainer(
        nll_coef=settings.nll_coef,
        model=policy,
        args=DPOConfig(**arguments, **loss_arguments(settings), max_length=None, precompute_ref_log_probs=True),
        train_dataset=Dataset.from_list(list(rows)),
        eval_dataset=dataset_of(held_out),
        processing_class=tokenizer,
    )


def train_dpo(
    stage: Stage,
    section: str,
    settings: DPOSettings,
    parent: Path,
    preferences: Path,
    model: Path,
    foreign: bool = False,
) -> str:
    """Continue `parent` (its adapter, or all weights) on preferences -> the folder `model` and a history.

    The reference is a frozen copy of the starting point, or m0. A killed run resumes from its last checkpoint.

    Args:
        stage: started, with its sections read.
        section: of `settings`, for messages.
        settings: what to optimize, and how.
        parent: the folder of a trained model.
        preferences: rows of `PreferencePair`, or with KTO of `UnpairedPreference`.
        model: the folder to write, whose name is the model's.
        foreign: whether `preferences` may have prompts of the evaluation, whose rows are dropped and counted.

    Returns:
        A line on the number of rows, of those dropped, and of those held out.

    Raises:
        InputError: no row is left, or with KTO those of one label; there are too few prompts to hold some out; or the
            machine lacks `attn_implementation`.
    """
    check_attention(section, settings.attn_implementation, stage.runtime)
    tokenizer = load_tokenizer(BASE)
    found, evaluated = read_preferences(preferences, section, settings.kto), 0
    if foreign:
        found, evaluated = drop_evaluated(preferences, found)
    if settings.kto:
        rows = encode_replies(tokenizer, found)
    else:
        rows = encode_pairs(tokenizer, [row for row in found if isinstance(row, PreferencePair)])
    rows, dropped = drop_too_long(rows, [row["length"] for row in rows], settings.max_length, f"{section}.max_length")
    rows, held_out = hold_out(rows, settings, stage.seed, section)
    if settings.kto:
        check_replies(rows, preferences, settings.max_length)
        if len({tuple(row["prompt_ids"]) for row in held_out}) == 1:
            raise InputError(
                f"params.yaml: {section}.eval_fraction: holds out one prompt, and KTO's KL term takes replies to "
                "others; raise it, or set it to 0"
            )
        rows, held_out = batched(rows, settings, stage.seed), batched(held_out, settings, stage.seed)
    make, order = (kto_trainer, "sequential") if settings.kto else (dpo_trainer, "group_by_length")
    m0 = Path("models/m0")
    with stage.work([BASE, parent, m0, preferences, *(EVALUATION if foreign else ())]) as work:
        policy = start_model(BASE, parent, stage.runtime)
        use_attention(policy, settings.attn_implementation)
        parents = {"base": BASE, "parent": parent, "reference": parent}
        start = state_of(policy) if settings.reference == "m0" else {}
        if settings.reference == "m0":
            parents["reference"] = m0
            put_model(policy, m0, stage.runtime)
        full = not isinstance(policy, PeftModel)
        arguments = training_arguments(settings, work.folder / "dpo", stage.seed, stage.runtime, order, full=full)
        trainer = make(policy, tokenizer, rows, held_out, settings, arguments)
        if settings.reference == "m0":
            put_state(policy, start)
            start.clear()  # of a full model, it is as large as the model
        validation = train(trainer, Path("data/metrics") / model.name / "dpo_history.csv", work, settings)
        with replacing(model) as temporary:
            save_trained(policy, temporary, stage.runtime)
            copy_tokenizer(BASE, temporary)
            write_model_card(temporary, stage, parents, {"preferences": preferences}, validation)
    done = f"{len(rows)} {'replies' if settings.kto else 'pairs'}"
    if foreign:
        done += f", {evaluated} rows dropped as prompts of the evaluation"
    return f"{done}, {dropped} dropped as longer than {settings.max_length} tokens{described(validation)}"


def loss_arguments(settings: DPOSettings) -> dict[str, Any]:
    """Return the keyword arguments of `trl.DPOConfig` that make the loss."""
    losses, weights = list[str](settings.loss_type), settings.loss_weights or [1.0] * len(settings.loss_type)
    if settings.nll_coef:
        losses, weights = [*losses, "sft"], [*weights, settings.nll_coef]
    shared = settings.model_dump(include={"beta", "label_smoothing", "ld_alpha", "use_weighting"})
    return shared | {"loss_type": losses, "loss_weights": weights}
