"""DPO on the tiny model: each loss against its formula in double precision, and what the stages do with their pairs."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from click.testing import CliRunner
from pydantic import ValidationError
from torch.nn.functional import logsigmoid

from align.core.files import write_text
from align.core.rows import Message, PreferencePair, write_rows
from align.dpo.settings import SMOOTHED, DPOSettings, Loss
from align.models.base import load_tokenizer
from align.models.loading import load_adapter_weights
from align.models.stack import AdapterStack
from align.models.tokenization import encode_completion, encode_prompt
from align.run.runtime import RuntimeSettings
from stages.dpo import main
from stages.offline_dpo import main as offline
from tests.committed import committed_params, write_params

PAIRS = [
    PreferencePair(
        id=f"p{i}",
        messages=[Message(role="user", content=question)],
        chosen=chosen,
        rejected=rejected,
        rejected_finish_reason="length" if i else "stop",
        margin=1.0,
    )
    for i, (question, chosen, rejected) in enumerate(
        [("Name a fruit.", "A pear, or an apple.", "No."), ("Why is it dark?", "It is night.", "Dark is dark is")]
    )
]
BETA = 0.1


@pytest.fixture
def dpo(
    tmp_path: Path, tiny_base: Path, make_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Return a function that runs stage dpo for m2, child of m1, and returns the first loss and the model card."""
    monkeypatch.chdir(tmp_path)
    models = tmp_path / "models"
    models.mkdir()
    for name, target in {"base": tiny_base, "m0": make_adapter("a", 1), "m1": make_adapter("b", 2)}.items():
        (models / name).symlink_to(target, target_is_directory=True)
    write_rows(Path("data/m2/preferences.jsonl"), PAIRS)

    def stage(**changes: Any) -> tuple[float, dict[str, Any]]:
        dpo = {"beta": BETA, "per_device_train_batch_size": 2, "num_train_epochs": 1, **changes}
        write_params(Path(), {"dpo": dpo})
        result = CliRunner().invoke(main, ["m2", "m1"], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        with Path("data/metrics/m2/dpo_history.csv").open(encoding="utf-8") as stream:
            first = next(csv.DictReader(stream))
        return float(first["loss"]), json.loads(Path("models/m2/model_card.json").read_text(encoding="utf-8"))

    return stage


def token_logprobs(stack: AdapterStack, name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return, for each reply (chosen and rejected of the first pair, then of the second), two numbers a token.

    These are its log-probability, and the log of the sum of the squared probabilities of all tokens in its place.
    """
    tokenizer = stack.tokenizer
    found = []
    for pair in PAIRS:
        prompt = encode_prompt(tokenizer, pair.messages)
        for text, reason in ((pair.chosen, pair.chosen_finish_reason), (pair.rejected, pair.rejected_finish_reason)):
            ids = torch.tensor([prompt + encode_completion(tokenizer, text, reason)])
            with stack.using(name) as model, torch.no_grad():
                all_logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            own = all_logprobs.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :, 0]
            found.append((own.double(), (2 * all_logprobs).logsumexp(-1)[len(prompt) - 1 :].double()))
    return found


def logprobs(stack: AdapterStack, name: str) -> torch.Tensor:
    """Return the log-probability of each pair's chosen and rejected reply, (pairs, 2)."""
    return torch.stack([own.sum() for own, _ in token_logprobs(stack, name)]).view(len(PAIRS), 2)


def test_with_the_previous_model_as_reference_dpo_starts_at_log_2(dpo: Callable[..., Any]) -> None:
    loss, card = dpo(reference="previous")
    assert loss == pytest.approx(math.log(2), abs=1e-4)
    assert card["parents"]["reference"] == card["parents"]["parent"]


def test_dropout_of_the_adapter_is_off_for_policy_and_reference(dpo: Callable[..., Any]) -> None:
    config = Path("models/m1").resolve() / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"lora_dropout": 0.5}))
    loss, _ = dpo(reference="previous")
    assert loss == pytest.approx(math.log(2), abs=1e-4)


def test_with_m0_as_reference_the_loss_is_that_of_the_parent_against_m0(
    dpo: Callable[..., Any], formula: Callable[[str], float]
) -> None:
    loss, card = dpo(reference="m0")
    assert loss == pytest.approx(formula("sigmoid"), abs=1e-3)
    assert abs(loss - math.log(2)) > 0.01
    assert card["parents"]["reference"]["path"] == "models/m0"


SMOOTHING = 0.3


def log_odds(margin: torch.Tensor) -> torch.Tensor:
    return -logsigmoid(margin)


def smoothed(margin: torch.Tensor) -> torch.Tensor:
    return (1 - SMOOTHING) * log_odds(margin) + SMOOTHING * log_odds(-margin)


def exo(margin: torch.Tensor) -> torch.Tensor:
    """Return KL(softmax of the margin || labels), arXiv 2402.00856, equation 16."""
    wins = margin.sigmoid()
    return wins * (wins / (1 - SMOOTHING)).log() + (1 - wins) * ((1 - wins) / SMOOTHING).log()


def discopop(margin: torch.Tensor) -> torch.Tensor:
    """Return the log-ratio modulated loss, arXiv 2406.08414, equation 5, with its temperature of 0.05."""
    share = (margin / 0.05).sigmoid()
    return log_odds(margin) * (1 - share) + (-margin).exp() * share


# Loss -> its value for each pair, from the log-ratios of chosen (c) and rejected (r) replies and their token counts.
FORMULAS: dict[str, Callable[..., torch.Tensor]] = {
    "sigmoid": lambda c, r, n, k: log_odds(BETA * (c - r)),  # arXiv 2305.18290, equation 7
    "hinge": lambda c, r, n, k: (1 - BETA * (c - r)).clamp(min=0),  # arXiv 2305.10425
    "ipo": lambda c, r, n, k: (c / n - r / k - 1 / (2 * BETA)) ** 2,  # arXiv 2310.12036, equation 17, a token
    "exo_pair": lambda c, r, n, k: exo(BETA * (c - r)),
    "nca_pair": lambda c, r, n, k: (
        log_odds(BETA * c) + (log_odds(-BETA * c) + log_odds(-BETA * r)) / 2
    ),  # arXiv 2402.05369
    "robust": lambda c, r, n, k: (
        ((1 - SMOOTHING) * log_odds(BETA * (c - r)) - SMOOTHING * log_odds(BETA * (r - c))) / (1 - 2 * SMOOTHING)
    ),  # arXiv 2403.00409
    "bco_pair": lambda c, r, n, k: log_odds(BETA * c) + log_odds(-BETA * r),  # arXiv 2404.04656, without its shift
    "sppo_hard": lambda c, r, n, k: (c - 0.5 / BETA) ** 2 + (r + 0.5 / BETA) ** 2,  # arXiv 2405.00675, equation 4.7
    "aot": lambda c, r, n, k: smoothed(BETA * (c - r)),  # its sorting: below
    "aot_unpaired": lambda c, r, n, k: smoothed(BETA * (c.sort().values - r.sort().values)),  # arXiv 2406.05882
    "apo_zero": lambda c, r, n, k: 1 - (BETA * c).sigmoid() + (BETA * r).sigmoid(),  # arXiv 2408.06266, equation 7
    "apo_down": lambda c, r, n, k: (BETA * c).sigmoid() + 1 - (BETA * (c - r)).sigmoid(),  # equation 8
    "discopop": lambda c, r, n, k: discopop(BETA * (c - r)),
    "sigmoid_norm": lambda c, r, n, k: log_odds(BETA * (c / n - r / k)),
}


@pytest.fixture
def formula(dpo: Callable[..., Any], runtime: RuntimeSettings) -> Callable[[str], float]:
    """Return a function that computes a loss of m1 against m0, the mean over the pairs."""
    stack = AdapterStack(Path("models/base"), runtime)
    for name in ("m0", "m1"):
        stack.add(name, Path("models") / name)
    policy, reference = logprobs(stack, "m1"), logprobs(stack, "m0")
    tokens = torch.tensor(
        [
            [
                len(encode_completion(stack.tokenizer, pair.chosen, pair.chosen_finish_reason)),
                len(encode_completion(stack.tokenizer, pair.rejected, pair.rejected_finish_reason)),
            ]
            for pair in PAIRS
        ]
    )

    def loss(name: str) -> float:
        ratios = policy - reference
        if name == "aot":  # sorts the margins of policy and reference apart
            own, theirs = (part[:, 0] - part[:, 1] for part in (policy, reference))
            return float(smoothed(BETA * (own.sort().values - theirs.sort().values)).mean())
        return float(FORMULAS[name](*ratios.unbind(1), *tokens.unbind(1)).mean())

    return loss


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"loss_type": ["aot"], "per_device_train_batch_size": 1}, "per_device_train_batch_size 2 or more"),
        ({"loss_type": ["ipo", "aot_unpaired"], "use_weighting": True}, "use_weighting false"),
        ({"nll_coef": 0.1, "use_weighting": True}, "use_weighting false"),
    ],
)
def test_settings_that_no_loss_can_read_are_refused(changes: dict[str, Any], says: str) -> None:
    values = committed_params()["dpo"] | changes
    with pytest.raises(ValidationError, match=says):
        DPOSettings.model_validate(values)


def test_a_single_loss_may_be_a_word() -> None:
    assert DPOSettings.model_validate(committed_params()["dpo"] | {"loss_type": "ipo"}).loss_type == ["ipo"]


def test_there_is_a_formula_for_every_loss() -> None:
    assert set(FORMULAS) == set(get_args(Loss)) - {"kto"}  # in test_kto.py


@pytest.mark.parametrize("name", FORMULAS)
def test_a_loss_is_that_of_its_formula(name: str, dpo: Callable[..., Any], formula: Callable[[str], float]) -> None:
    loss, _ = dpo(reference="m0", loss_type=[name], label_smoothing=SMOOTHING if name in SMOOTHED else 0.0)
    assert loss == pytest.approx(formula(name), abs=1e-3)
    assert name == "sigmoid" or abs(loss - formula("sigmoid")) > 0.005


@pytest.mark.parametrize(("weights", "expected"), [(None, (1, 1)), ([0.25, 2.0], (0.25, 2.0))])
def test_several_losses_are_added_with_their_weights_whatever_these_add_up_to(
    weights: list[float] | None,
    expected: tuple[float, float],
    dpo: Callable[..., Any],
    formula: Callable[[str], float],
) -> None:
    loss, _ = dpo(reference="m0", loss_type=["sigmoid", "apo_zero"], loss_weights=weights)
    both = [formula("sigmoid"), formula("apo_zero")]
    assert loss == pytest.approx(sum(weight * one for weight, one in zip(expected, both, strict=True)), abs=1e-3)


def test_ld_alpha_weighs_what_the_longer_reply_says_beyond_the_shorter(
    dpo: Callable[..., Any], runtime: RuntimeSettings
) -> None:
    loss, _ = dpo(reference="m0", ld_alpha=0.25)
    stack = AdapterStack(Path("models/base"), runtime)
    ratios = []
    for name in ("m0", "m1"):
        stack.add(name, Path("models") / name)
        tokens = [own for own, _ in token_logprobs(stack, name)]
        shorter = [min(len(tokens[i - i % 2]), len(tokens[i - i % 2 + 1])) for i in range(len(tokens))]
        ratios.append([own[:n].sum() + 0.25 * own[n:].sum() for own, n in zip(tokens, shorter, strict=True)])
    moved = torch.tensor(ratios[1]) - torch.tensor(ratios[0])
    assert loss == pytest.approx(float(log_odds(BETA * (moved[::2] - moved[1::2])).mean()), abs=1e-3)


def test_weighting_counts_a_pair_by_how_likely_its_replies_are(
    dpo: Callable[..., Any], runtime: RuntimeSettings
) -> None:
    loss, _ = dpo(reference="m0", use_weighting=True)
    stack = AdapterStack(Path("models/base"), runtime)
    for name in ("m0", "m1"):
        stack.add(name, Path("models") / name)
    # arXiv 2406.11827, equation 2, with the alignment of its section 3.2
    weights = torch.stack([(own - squares).mean().exp() for own, squares in token_logprobs(stack, "m1")]).view(-1, 2)
    ratios = logprobs(stack, "m1") - logprobs(stack, "m0")
    losses = log_odds(BETA * (ratios[:, 0] - ratios[:, 1])) * weights.prod(1)
    assert loss == pytest.approx(float(losses.mean()), rel=1e-2)
    assert loss < 0.5 * float(log_odds(BETA * (ratios[:, 0] - ratios[:, 1])).mean())


def test_the_nll_term_comes_beside_several_losses(
    dpo: Callable[..., Any], formula: Callable[[str], float], runtime: RuntimeSettings
) -> None:
    losses = {"loss_type": ["sigmoid", "apo_zero"], "loss_weights": [0.5, 2.0]}
    alone, _ = dpo(reference="m0", **losses)
    loss, _ = dpo(reference="m0", **losses, nll_coef=0.5)
    stack = AdapterStack(Path("models/base"), runtime)
    stack.add("m1", Path("models/m1"))
    tokens = sum(len(encode_completion(stack.tokenizer, pair.chosen)) for pair in PAIRS)
    assert loss - alone == pytest.approx(-0.5 * float(logprobs(stack, "m1")[:, 0].sum()) / tokens, abs=1e-3)


def test_the_nll_term_adds_the_mean_over_the_chosen_tokens(dpo: Callable[..., Any], runtime: RuntimeSettings) -> None:
    loss, _ = dpo(nll_coef=0.5)
    stack = AdapterStack(Path("models/base"), runtime)
    stack.add("m1", Path("models/m1"))
    tokens = sum(len(encode_completion(stack.tokenizer, pair.chosen)) for pair in PAIRS)
    nll = -float(logprobs(stack, "m1")[:, 0].sum()) / tokens
    assert loss == pytest.approx(math.log(2) + 0.5 * nll, abs=1e-3)


@pytest.mark.parametrize(("rows", "steps"), [(2, 1), (1, 2)])
def test_the_nll_term_is_the_same_however_a_step_is_cut_into_micro_batches(
    rows: int, steps: int, dpo: Callable[..., Any], runtime: RuntimeSettings
) -> None:
    cut = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps}
    (loss, _), stack = dpo(nll_coef=0.5, **cut), AdapterStack(Path("models/base"), runtime)
    stack.add("m1", Path("models/m1"))
    lengths = [len(encode_completion(stack.tokenizer, pair.chosen)) for pair in PAIRS]
    means = -logprobs(stack, "m1")[:, 0] / torch.tensor(lengths)
    over_tokens, over_pairs = float((means * torch.tensor(lengths)).sum()) / sum(lengths), float(means.mean())
    assert loss == pytest.approx(math.log(2) + 0.5 * over_tokens, abs=1e-3)
    assert abs(over_tokens - over_pairs) > 0.01  # what a mean of the micro-batches' means would be


def test_the_tokenizer_of_the_model_is_the_bases(dpo: Callable[..., Any], tiny_base: Path) -> None:
    dpo()
    assert load_tokenizer(Path("models/m2")).get_vocab() == load_tokenizer(tiny_base).get_vocab()


def test_dpo_on_human_pairs_hands_on_what_its_start_knows(dpo: Callable[..., Any]) -> None:
    known = {"ift.jsonl": '{"id": "a"}\n', "known_prompts.jsonl": '{"id": "b"}\n'}
    for name, text in known.items():
        write_text(Path("data/m1") / name, text)
    write_rows(Path("data/prepared/preferences/train.jsonl"), PAIRS)
    same = {"beta": BETA, "per_device_train_batch_size": 2, "num_train_epochs": 1, "max_length": 256}
    write_params(Path(), {"dpo": same, "offline_dpo": same | {"init": "m1", "learning_rate": 5e-4}})

    result = CliRunner().invoke(offline, catch_exceptions=False)

    assert result.exit_code == 0, result.stderr
    assert "offline_dpo: 2 pairs, 0 dropped" in result.output
    assert {name: (Path("data/dpo") / name).read_text(encoding="utf-8") for name in known} == known
    dpo(learning_rate=5e-4)  # the loop's stage with the same pairs and start
    own, loops = (load_adapter_weights(Path("models") / name) for name in ("dpo", "m2"))
    assert all(torch.equal(own[key], loops[key]) for key in loops)
