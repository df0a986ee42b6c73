"""What PPO computes once an update: the layers that its four models share."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from align.core.errors import InputError
from align.models.batching import place
from align.models.stack import AdapterStack
from align.ppo.rollout import Batch
from align.run.runtime import RuntimeSettings
from tests.factories import tiny_gpt2
from tests.ppo.tiny import MakeStack, all_parameters, critic, encoded, randomize, trainer, values_of

CPU = torch.device("cpu")


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_forward_that_enters_at_a_layer_equals_the_whole_one(
    architecture: str, tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    if architecture == "gpt2":
        tiny_gpt2(AdapterStack(tiny_base, runtime).tokenizer).save_pretrained(folder)
    stack = AdapterStack(folder, runtime)
    ids = torch.tensor([[5, 9, 40, 7], [8, 8, 11, 300]])
    layers = [0, 1]
    with torch.no_grad(), stack.recording(layers) as states:
        whole = stack.causal_lm(input_ids=ids).logits
    assert sorted(states) == layers
    kept = list(stack.layers)
    for layer in layers:
        with torch.no_grad(), stack.entering(layer, states[layer]):
            torch.testing.assert_close(stack.causal_lm(input_ids=ids).logits, whole)
        with torch.no_grad(), stack.entering(layer, 2 * states[layer]):
            # Layers below do not run; layer 0 has none below it, and its input comes from the embeddings.
            assert torch.equal(stack.causal_lm(input_ids=ids).logits, whole) == (layer == 0)
    assert list(stack.layers) == kept


def test_layers_are_back_in_place_after_an_error(make_stack: MakeStack) -> None:
    stack = make_stack()
    kept = list(stack.layers)
    with pytest.raises(ZeroDivisionError), stack.entering(1, torch.zeros(1, 1, 32)):
        _ = 1 / 0
    assert list(stack.layers) == kept


def test_the_first_layer_is_the_lowest_that_an_adapter_changes(
    make_stack: MakeStack, make_adapter: Callable[..., Path], tiny_base: Path
) -> None:
    stack = make_stack()
    stack.add("upper", make_adapter("upper", 3, layers=[1]))
    stack.add("bare", tiny_base)
    assert [stack.first_layer(name) for name in ("policy", "upper", "bare")] == [0, 1, 2]


def test_states_are_placed_on_the_real_tokens_of_their_rows() -> None:
    batch = Batch.collate([[5], [6, 7, 8]], [[11, 12], [14]], 0, CPU)
    rows = [torch.tensor([[5.0], [11.0], [12.0]]), torch.tensor([[6.0], [7.0], [8.0], [14.0]])]
    block = place(rows, batch.attention_mask)
    assert block.squeeze(-1).tolist() == batch.input_ids.float().tolist()
    part = replace(batch, policy_states=block).rows(torch.tensor([0]))
    assert part.policy_states is not None
    assert part.policy_states.squeeze(-1).tolist() == part.input_ids.float().tolist() == [[5, 11, 12]]


def whole(batch: Batch) -> Batch:
    return replace(batch, policy_states=None, value_states=None)


@pytest.mark.parametrize(("layers", "value_layers"), [([1], None), (None, 1), ([1], 1), (None, None)])
def test_what_is_computed_once_gives_the_log_probabilities_and_values_of_whole_forwards(
    make_stack: MakeStack, layers: list[int] | None, value_layers: int | None
) -> None:
    stack = make_stack(layers=layers)
    ppo = trainer(stack, value_layers=value_layers)
    assert ppo.policy_layer == (0 if layers is None else 1)
    assert critic(ppo).layer == (0 if layers is None and value_layers is None else 1)
    randomize(critic(ppo).head)
    rollout = ppo.rollout(encoded(stack))
    with torch.no_grad():
        for name, found in (("policy", rollout.logprobs), ("reference", rollout.ref_logprobs)):
            expected = ppo._map_rows(whole(rollout), partial(ppo._logprobs, name))
            torch.testing.assert_close(found[rollout.response_mask], expected[rollout.response_mask])
        values = ppo._map_rows(whole(rollout), critic(ppo).values)
        torch.testing.assert_close(values_of(rollout)[rollout.response_mask], values[rollout.response_mask])


def test_an_update_is_the_same_with_and_without_what_is_computed_once(
    make_stack: MakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def updated(entirely: bool) -> Sequence[Tensor]:
        ppo = trainer(make_stack(layers=[1]), num_ppo_epochs=2, mini_batch_size=4, learning_rate=1e-4)
        if entirely:
            for owner, name in ((ppo, "_logits"), (critic(ppo), "values")):
                plain = getattr(owner, name)
                monkeypatch.setattr(owner, name, lambda *args, plain=plain: plain(*args[:-1], whole(args[-1])))
        ppo.step()
        return all_parameters(ppo)

    before = trainer(make_stack(layers=[1])).parameters["policy"]
    once, entirely = updated(entirely=False), updated(entirely=True)
    for mine, theirs in zip(once, entirely, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert not all(torch.equal(mine, old) for mine, old in zip(once, before, strict=False))


def test_the_value_function_trains_its_uppermost_layers_alone_and_the_rest_stays_the_reward_models(
    make_stack: MakeStack,
) -> None:
    stack = make_stack()
    ppo = trainer(stack, value_layers=1)
    lower = [p for p in stack.parameters("value") if all(p is not trained for trained in ppo.parameters["value"])]
    upper = stack.parameters("value", from_layer=1)
    assert len(lower) == len(upper) == 14
    before = [parameter.detach().clone() for parameter in (*lower, *upper)]
    ppo.step()
    ppo.step()
    changed = [not torch.equal(old, new) for old, new in zip(before, (*lower, *upper), strict=True)]
    assert changed == [False] * 14 + [True] * 14
    assert not any(parameter.requires_grad for parameter in lower)


def test_more_value_layers_than_there_are_is_an_error_of_the_params(make_stack: MakeStack) -> None:
    with pytest.raises(InputError, match=r"ppo\.value_layers is 3, the base has 2 layers"):
        trainer(make_stack(), value_layers=3)
