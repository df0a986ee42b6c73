"""rsLoRA and DoRA: every path that computes with an adapter against PEFT's own layers in double precision."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from align.backends.choose import GenerationSettings, open_generator
from align.cli.export.merge import find_model, load_merged
from align.core.errors import InputError
from align.models.adapters import LoraSettings, continue_adapter, load_adapter_config, new_adapter, save_adapter
from align.models.base import load_base
from align.models.frozen import PackedLinear, frozen_linears
from align.models.loading import ADAPTER_FILE
from align.models.stack import AdapterStack
from align.run.runtime import RuntimeSettings
from tests.committed import committed_params
from tests.ppo.tiny import trainer

IDS = torch.tensor([[1, 40, 41, 42, 43, 44, 45, 46]])
SWITCHES = [(True, False), (False, True), (True, True)]
SHAPE: dict[str, Any] = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "layers_to_transform": None}
SHAPE |= {"target_modules": "all-linear"}


def lora(**changes: Any) -> LoraSettings:
    return LoraSettings.model_validate(SHAPE | changes)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=IDS).logits.double().log_softmax(-1)
    return result


@pytest.fixture(params=SWITCHES, ids=["rslora", "dora", "both"])
def switches(request: pytest.FixtureRequest) -> dict[str, bool]:
    return dict(zip(("use_rslora", "use_dora"), request.param, strict=True))


def write(folder: Path, base: Path, runtime: RuntimeSettings, seed: int, **switches: Any) -> Path:
    """Write an adapter far from its start: random factors, and DoRA magnitudes of up to twice the rows' lengths."""
    torch.manual_seed(seed)
    model = new_adapter(load_base(base, runtime), lora(**switches), task_type="CAUSAL_LM")
    for key, parameter in model.named_parameters():
        if "lora_magnitude" in key:
            parameter.data *= 2 * torch.rand(parameter.shape)
        elif "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, folder)
    return folder


@pytest.fixture
def adapter(tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path, switches: dict[str, bool]) -> Path:
    return write(tmp_path / "m0", tiny_base, runtime, 1, **switches)


def reference(base: Path, adapter: Path) -> Tensor:
    """Return the logits of PEFT over transformers, with nothing of ours, in float64."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    return logits(PeftModel.from_pretrained(model, str(adapter)).double().eval())


def stacked(base: Path, runtime: RuntimeSettings, adapter: Path) -> AdapterStack:
    """Return a stack with the adapter and a plain one, so that the two share layers."""
    stack = AdapterStack(base, runtime)
    stack.add("other", write(adapter.parent / "other", base, runtime, 2))
    stack.add("m0", adapter)
    return stack


@contextmanager
def trained(base: Path, runtime: RuntimeSettings, adapter: Path) -> Iterator[Any]:
    yield continue_adapter(load_base(base, runtime), adapter)


@contextmanager
def in_a_stack(base: Path, runtime: RuntimeSettings, adapter: Path) -> Iterator[Any]:
    with stacked(base, runtime, adapter).using("m0") as model:
        yield model


@contextmanager
def frozen(base: Path, runtime: RuntimeSettings, adapter: Path) -> Iterator[Any]:
    with stacked(base, runtime, adapter).using("m0") as model, frozen_linears(model, torch.float32):
        assert len([module for module in model.modules() if isinstance(module, PackedLinear)]) == 2 * 7 + 1
        yield model


@contextmanager
def entered(base: Path, runtime: RuntimeSettings, adapter: Path) -> Iterator[Any]:
    stack = stacked(base, runtime, adapter)
    with stack.using("m0") as model:
        with stack.recording({1}) as states:
            logits(model)
        with stack.entering(1, states[1]):
            yield model


@contextmanager
def exported(base: Path, runtime: RuntimeSettings, adapter: Path) -> Iterator[PreTrainedModel]:
    yield load_merged(find_model(str(adapter), base))


@pytest.mark.parametrize("path", [trained, in_a_stack, frozen, entered, exported])
def test_a_path_computes_what_peft_computes_in_double_precision(
    path: Callable[..., Any], tiny_base: Path, runtime: RuntimeSettings, adapter: Path, switches: dict[str, bool]
) -> None:
    expected = reference(tiny_base, adapter)
    with path(tiny_base, runtime, adapter) as model:
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-4)
    # The switches matter: without them the same factors give another model.
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | dict.fromkeys(switches, False)))
    assert float((reference(tiny_base, adapter) - expected).abs().max()) > 0.1


def test_an_adapter_that_is_saved_again_has_the_same_bytes_and_its_switches(
    tiny_base: Path, runtime: RuntimeSettings, adapter: Path, switches: dict[str, bool], tmp_path: Path
) -> None:
    save_adapter(continue_adapter(load_base(tiny_base, runtime), adapter), tmp_path / "again")
    stacked(tiny_base, runtime, adapter).save("m0", tmp_path / "stacked")
    for name in ("again", "stacked"):
        assert (tmp_path / name / ADAPTER_FILE).read_bytes() == (adapter / ADAPTER_FILE).read_bytes()
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert {key: config[key] for key in switches} == switches


def test_the_adapter_of_a_folder_without_the_keys_is_plain_lora(
    tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path
) -> None:
    adapter = write(tmp_path / "old", tiny_base, runtime, 1)
    expected = logits(continue_adapter(load_base(tiny_base, runtime), adapter))
    config = adapter / "adapter_config.json"
    kept = {key: value for key, value in json.loads(config.read_text()).items() if "lora_" not in key or "alpha" in key}
    kept = {key: value for key, value in kept.items() if not key.startswith("use_")} | {"lora_dropout": 0.0}
    config.write_text(json.dumps(kept))
    assert not {"use_rslora", "use_dora", "init_lora_weights"} & kept.keys()
    assert torch.equal(logits(continue_adapter(load_base(tiny_base, runtime), adapter)), expected)


@pytest.mark.parametrize("init", [True, "gaussian", "orthogonal"])
@pytest.mark.parametrize("use_dora", [False, True])
def test_a_new_adapter_starts_as_no_change_and_leaves_the_base_as_it_is(
    init: bool | str, use_dora: bool, tiny_base: Path, runtime: RuntimeSettings
) -> None:
    torch.manual_seed(0)
    base = load_base(tiny_base, runtime)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    expected = logits(base)
    adapted = new_adapter(base, lora(init_lora_weights=init, use_dora=use_dora), task_type="CAUSAL_LM")
    torch.testing.assert_close(logits(adapted), expected, rtol=0, atol=1e-4)
    after = {key.replace(".base_layer", ""): value for key, value in base.state_dict().items() if "lora_" not in key}
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    factors = [parameter.detach().flatten() for key, parameter in adapted.named_parameters() if "lora_A" in key]
    deviations = {True: 1 / math.sqrt(3 * 40), "gaussian": 1 / 4, "orthogonal": 0.07}
    assert float(torch.cat(factors).std()) == pytest.approx(deviations[init], rel=0.25)


@pytest.mark.parametrize(
    "init", ["pissa", "pissa_niter_4", "olora", "loftq", "corda", "eva", "lora_ga", "mica", False, "x"]
)
def test_an_initialization_that_adapters_over_one_base_cannot_keep_is_refused(
    init: bool | str, tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match="true, gaussian or orthogonal"):
        lora(init_lora_weights=init)
    config = write(tmp_path / "m0", tiny_base, runtime, 1) / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"init_lora_weights": init}))
    with pytest.raises(InputError, match=r"init_lora_weights: .*true, gaussian or orthogonal") as error:
        load_adapter_config(tmp_path / "m0")
    assert "\n" not in error.value.message


def test_an_orthogonal_start_needs_an_even_rank() -> None:
    with pytest.raises(ValidationError, match="an even r"):
        lora(init_lora_weights="orthogonal", r=3)


def test_vllm_refuses_dora_and_takes_rslora(
    tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = GenerationSettings.model_validate(committed_params()["generation"] | {"backend": "vllm"})
    for switch, says in (("use_dora", "models/m0, a DoRA adapter; set transformers"), ("use_rslora", "not installed")):
        write(Path("models/m0"), tiny_base, runtime, 1, **{switch: True})
        with pytest.raises(InputError, match=says), open_generator(settings, runtime, "m0"):
            pass


def test_ppo_trains_every_part_of_a_dora_adapter(tiny_base: Path, runtime: RuntimeSettings, make_adapter: Any) -> None:
    policy = write(make_adapter("policy", 1).parent / "dora", tiny_base, runtime, 1, use_dora=True, use_rslora=True)
    stack = AdapterStack(tiny_base, runtime)
    reward = make_adapter("reward", 2, head=True)
    for name, folder in {"policy": policy, "reference": policy, "reward": reward, "value": reward}.items():
        stack.add(name, folder)
    ppo = trainer(stack)
    before = [parameter.clone() for parameter in stack.parameters("policy")]
    assert len(before) == 3 * 2 * 7
    ppo.step()  # which checks that policy and reference are equal, and that a forward gives what the rollout did
    changed = [not torch.equal(old, new) for old, new in zip(before, stack.parameters("policy"), strict=True)]
    assert all(changed)


def test_dora_and_rslora_over_a_packed_base_compute_what_peft_computes(
    tiny_base: Path, runtime: RuntimeSettings, adapter: Path
) -> None:
    nf4 = runtime.model_copy(update={"quantization": "nf4"})
    plain = PeftModel.from_pretrained(load_base(tiny_base, nf4), str(adapter)).eval()
    with stacked(tiny_base, nf4, adapter).using("m0") as model, frozen_linears(model, torch.float32):
        torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=1e-4)
