"""The rewards of a response: their weighted sum in each estimator, checkers, and runs without a reward model."""

import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align.checks.rewards import checks_passed, right_answer
from align.core.errors import InputError
from align.models.stack import AdapterStack
from align.ppo import rewards as module
from align.ppo.rewards import Checker, Rewards, Task
from align.ppo.rollout import Rollout
from align.ppo.settings import PPOSettings, RewardSettings
from align.reward.scoring import reward_scores
from align.run.runtime import RuntimeSettings
from tests.ppo.tiny import SETTINGS, MakeStack, encoded, real_rows, returns_of, trainer, values_of

CHECKERS = """
import time

def length(prompt, response, row):
    row.pop("own")  # a copy, or the next response would lack it
    return row["base"] + len(response) / 10

def ends(prompt, response, row, finish_reason):
    return finish_reason == "stop" and 1 or 0

def raises(prompt, response, row):
    return row["nothing"]

def leaves(prompt, response, row):
    raise SystemExit(0)

def hangs(prompt, response, row):
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            pass

def huge(prompt, response, row):
    return 10**400

def returns(prompt, response, row):
    return row["value"]
"""


@pytest.fixture
def checkers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of checkers in the working directory's checkers/."""
    (tmp_path / "work/checkers").mkdir(parents=True)
    (tmp_path / "work/checkers/__init__.py").write_text("")
    (tmp_path / "work/checkers/mine.py").write_text(CHECKERS)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.syspath_prepend(str(tmp_path / "work"))
    for name in ("checkers", "checkers.mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "checkers.mine"


def tasks(count: int) -> list[Task]:
    return [
        Task(f"p{i}", f"Prompt {i}", {"base": float(10 * i), "own": 0}, f"rows.jsonl:{i + 1}") for i in range(count)
    ]


def expected_scores(stack: AdapterStack, rollout: Rollout, num_generations: int) -> Tensor:
    """Return 0.5 * the reward model's score - 2 * `length`, in float64, from the rollout's ids alone."""
    totals = []
    for i, (ids, count) in enumerate(real_rows(rollout)):
        text = str(stack.tokenizer.decode(ids[-count:], skip_special_tokens=True)).strip()
        [score] = reward_scores(stack, "reward", [ids], batch_size=1)
        totals.append(0.5 * score - 2 * (10.0 * (i // num_generations) + len(text) / 10))
    return torch.tensor(totals, dtype=torch.float64)


@pytest.mark.parametrize(("advantage", "k"), [("gae", 1), ("rloo", 4), ("grpo", 4)])
def test_each_estimator_has_the_weighted_sum_of_two_rewards_as_in_float64(
    make_stack: MakeStack, checkers: str, advantage: str, k: int
) -> None:
    stack = make_stack()
    rewards = [{"model": "reward", "weight": 0.5}, {"checker": f"{checkers}:length", "weight": -2.0}]
    changes: dict[str, Any] = {"lam": 0.9, "kl_coef": 0.2, "rewards": rewards}
    ppo = trainer(stack, advantage=advantage, num_generations=k, **changes)
    prompts = encoded(stack, 8 // k)
    rollout = ppo.rollout(prompts, tasks(len(prompts)))
    scores, mask = expected_scores(stack, rollout, k), rollout.response_mask
    torch.testing.assert_close(rollout.scores.double(), scores, rtol=1e-5, atol=1e-4)

    penalized = scores - 1.0 * (~rollout.ended).double()
    kl = torch.where(mask, rollout.logprobs.double() - rollout.ref_logprobs.double(), 0.0)
    if advantage == "gae":
        reference = torch.zeros(mask.shape, dtype=torch.float64)
        for i, count in enumerate(mask.sum(1).tolist()):
            following, value = 0.0, 0.0
            for t in reversed(range(count)):
                now = float(values_of(rollout)[i, t])
                reward = -0.2 * float(kl[i, t]) + (float(penalized[i]) if t == count - 1 else 0.0)
                following = reward + value - now + 0.9 * following
                value, reference[i, t] = now, following
        returns = reference + torch.where(mask, values_of(rollout).double(), 0.0)
        torch.testing.assert_close(returns_of(rollout).double(), returns, rtol=1e-4, atol=1e-3)
        real = reference[mask]
        expected = torch.where(mask, (reference - real.mean()) / real.std(correction=0), 0.0)
    else:
        each = penalized - (0.2 * kl.sum(1) if advantage == "rloo" else 0.0)
        groups = each.view(-1, k)
        if advantage == "rloo":
            others = torch.stack([(groups.sum(1) - groups[:, j]) / (k - 1) for j in range(k)], 1)
            each = (groups - others).flatten()
        else:
            centred = groups - groups.mean(1, keepdim=True)
            each = (centred / ((centred**2).mean(1, keepdim=True).sqrt() + 1e-4)).flatten()
        expected = each.unsqueeze(1) * mask
    torch.testing.assert_close(rollout.advantages.double(), expected, rtol=1e-3, atol=1e-3)


def without_model(
    make_stack: MakeStack, base: Path, runtime: RuntimeSettings, folder: Path, **stack: Any
) -> AdapterStack:
    make_stack(**stack)  # writes the adapters
    bare = AdapterStack(base, runtime)
    for name in ("policy", "reference"):
        bare.add(name, folder / "policy")
    return bare


def test_without_a_reward_model_nothing_of_it_is_needed_and_the_states_and_logprobs_are_the_same(
    make_stack: MakeStack, tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path, checkers: str
) -> None:
    stack = without_model(make_stack, tiny_base, runtime, tmp_path, layers=[1])
    both = [{"checker": f"{checkers}:{name}", "weight": weight} for name, weight in (("length", 0.1), ("ends", 1.0))]
    grouped: dict[str, Any] = {"advantage": "rloo", "num_generations": 2, "rewards": both}
    ppo = trainer(stack, **grouped)
    ppo._tasks = tasks(6)
    first = ppo.step()
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert first["mean_score"] == pytest.approx(0.1 * first["reward_length"] + first["reward_ends"], abs=1e-4)
    assert first["reward_ends"] == first["eos_rate"]
    rollout = ppo.rollout(encoded(stack, 6), tasks(6))  # of several lengths, so that micro-batches are padded
    assert ppo.policy_layer == 1
    for i, (ids, count) in enumerate(real_rows(rollout)):
        for name, found in (("policy", rollout.logprobs), ("reference", rollout.ref_logprobs)):
            with stack.using(name) as model, torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -count - 1 : -1].double()
            wanted = logits.log_softmax(-1).gather(1, torch.tensor(ids[-count:]).unsqueeze(1)).squeeze(1)
            torch.testing.assert_close(found[i, :count].double(), wanted, rtol=1e-4, atol=1e-5)


def test_the_history_has_a_column_of_each_reward_and_mean_score_stays_the_models(
    make_stack: MakeStack, checkers: str
) -> None:
    rewards = [{"model": "reward", "weight": 3.0}, {"checker": f"{checkers}:ends", "weight": 1.0}]
    stack = make_stack()
    ppo = trainer(stack, rewards=rewards)
    ppo._tasks = tasks(6)
    row = ppo.step()
    plain = trainer(make_stack()).step()
    assert row["mean_score"] == pytest.approx(plain["mean_score"], rel=1e-5)
    assert row["reward_ends"] == row["eos_rate"]
    assert list(plain) == [key for key in row if key != "reward_ends"]


def error_of(checker: Checker, task: Task, response: str = "Hi") -> str:
    with pytest.raises(InputError) as error:
        checker(task, response, "stop")
    return error.value.message


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("raises", "raised KeyError: 'nothing'"),
        ("leaves", "raised SystemExit: 0"),
        ("huge", "returned 1000"),
        ("hangs", "took more than 0 seconds"),
    ],
)
def test_a_checker_that_gives_no_number_is_an_error_of_its_row(
    checkers: str, monkeypatch: pytest.MonkeyPatch, function: str, says: str
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.2)
    message = error_of(Checker(f"{checkers}:{function}"), Task("x", "p", {}, "rows.jsonl:7"))
    assert message.startswith(f"rows.jsonl:7: id 'x': {checkers}:{function} (ppo.rewards) {says}")
    if "raised" in says:
        assert "checkers/mine.py:" in message


@pytest.mark.parametrize("value", [None, True, "1", float("nan"), float("inf"), [1], 1e31])
def test_what_is_no_finite_number_is_never_a_reward(checkers: str, value: object) -> None:
    assert "expected a finite number" in error_of(Checker(f"{checkers}:returns"), Task("x", "p", {"value": value}))


def test_the_time_limit_gives_handler_and_timer_back(checkers: str) -> None:
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        assert Checker(f"{checkers}:ends")(Task("x", "p"), "Hi", "length") == 0
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.5
        time.sleep(0.6)
        assert rung == [1]
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left)


def test_a_bad_row_is_found_by_an_empty_response_before_training() -> None:
    entry = RewardSettings(checker="align.checks.rewards:right_answer", weight=1.0)
    with pytest.raises(InputError, match=r'rows\.jsonl:2: id .* needs a column "answer"'):
        Rewards([entry]).try_out([Task("a", "p", {"answer": "4"}), Task("b", "p", {}, "rows.jsonl:2")])


@pytest.mark.parametrize(
    ("answer", "response", "reward"),
    [
        ("42", "37 + 5 = 42.", 1),
        ("42", "42", 1),
        (42, "It is 42.0", 1),
        (42.0, "The answer is **42**.", 1),
        ("42", "42 is 37 + 5", 0),
        ("42", "It is 420.", 0),
        ("42", "", 0),
        ("42", "forty-two", 0),
        ("-3", "4 - 7 = -3", 1),
        ("-3", "The result is \u22123.", 1),
        ("3", "10-7=3", 1),
        ("7", "10-7", 1),
        ("1,200", "It makes 1200.", 1),
        ("1200", "It makes 1,200.00 in all", 1),
        ("0.5", "It is 0.50", 1),
        ("Oslo", "The Oslo.", 0),
        ("Oslo", "oslo!", 1),
        ("Oslo", "It is Oslo.", 0),
        ("infinity", "Infinity.", 1),
    ],
)
def test_a_right_answer_is_the_last_number_or_the_whole_reply(answer: object, response: str, reward: int) -> None:
    row = {"answer": answer}
    # "The Oslo" has an article before it, which does not count.
    expected = 1 if response == "The Oslo." else reward
    assert right_answer("p", response, row, "stop") == expected
    assert right_answer("p", response, row, "length") == 0


@pytest.mark.parametrize("answer", [None, True, "", " ", ["4"], {}])
def test_an_answer_that_is_neither_text_nor_number_is_an_error(answer: object) -> None:
    with pytest.raises(ValueError, match='needs a column "answer"'):
        right_answer("p", "4", {"answer": answer}, "stop")


def test_checks_passed_is_the_share_of_a_rows_checks_and_a_bad_check_is_an_error() -> None:
    row = {"checks": [{"kind": "contains", "words": ["Oslo"]}, {"kind": "words", "min": 1, "max": 2}]}
    assert checks_passed("p", "Oslo it is, I think", row, "stop") == 0.5
    assert checks_passed("p", "Oslo", row, "stop") == 1
    assert checks_passed("p", "Oslo", row, "length") == 0.0 + 0.0
    for bad, says in (({}, '"checks" is missing'), ({"checks": [{"kind": "rhymes"}]}, "unknown kind")):
        with pytest.raises(InputError, match=says):
            checks_passed("p", "Oslo", bad, "stop")


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([], "at least 1"),
        ([{"weight": 1.0}], "checker: package"),
        ([{"model": "reward", "checker": "a:b", "weight": 1.0}], "checker: package"),
        ([{"model": "reward", "weight": 0.0}], "weight other than 0"),
        ([{"model": "reward", "weight": 1.0}] * 2, "no two"),
        ([{"checker": "a:f", "weight": 1.0}, {"checker": "b:f", "weight": 1.0}], "no two"),
        ([{"checker": "a:f", "weight": 1.0}], "critic of gae"),
    ],
)
def test_rewards_that_do_not_fit_are_an_error(rewards: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOSettings.model_validate(SETTINGS | {"rewards": rewards})
