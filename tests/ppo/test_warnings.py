"""What stage ppo warns of."""

from pathlib import Path

import pytest

from align.models.tokenization import warn_if_capped
from stages.ppo import warn_of_critic


@pytest.mark.parametrize(("cap", "warned"), [(8, True), (9, False), (10, False)])
def test_a_cap_below_the_90th_percentile_of_the_completions_is_reported_with_that_percentile(
    cap: int, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    warn_if_capped("ppo.max_new_tokens", cap, [*range(10, 0, -1)], Path("data/m0/ift.jsonl"))
    expected = (
        "warning: ppo.max_new_tokens is 8: 20% of the completions in data/m0/ift.jsonl are longer, which the model was "
        "trained to write; raise it to 9 (their 90th percentile)\n"
    )
    assert capsys.readouterr().out == (expected if warned else "")


@pytest.mark.parametrize(
    ("explained", "warned"),
    [([0.5, 0.5, -0.1], True), ([-0.5, -0.5, 0.1], False), ([0.1, 0.1, 0.1, 0.1, -0.3, 0.1], True), ([], False)],
)
def test_a_critic_worse_than_the_mean_in_the_last_third_is_reported(
    explained: list[float], warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    history = [{"kl": 0.0, "explained_variance": value} for value in explained] or [{"kl": 0.0}]
    warn_of_critic(history)
    assert ("ppo: warning: the critic explains -0.10 of the variance" in capsys.readouterr().out) == warned
