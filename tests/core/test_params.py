from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError
from ruamel.yaml import YAML

from align.core.errors import InputError
from align.core.params import SECTIONS, Params, Settings
from tests.committed import COMMITTED, REPOSITORY


class Optimizer(Settings):
    learning_rate: float = Field(gt=0)
    num_epochs: int = Field(ge=1)
    shuffle: bool
    mode: Literal["fast", "slow"]


GOOD = {"learning_rate": 0.5, "num_epochs": 2, "shuffle": True, "mode": "fast"}


def params(**sections: Any) -> Params:
    values: dict[str, Any] = {name: {} for name in SECTIONS}
    return Params({**values, "seed": 17, "iterations": {"m1": "m0"}, **sections}, Path("p.yaml"))


def error_of(sft: Any) -> str:
    with pytest.raises(InputError) as caught:
        params(sft=sft).section("sft", Optimizer)
    assert len(caught.value.message.splitlines()) == 1
    return caught.value.message


def written(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_section_becomes_settings() -> None:
    settings = params(sft=GOOD).section("sft", Optimizer)
    assert settings == Optimizer(learning_rate=0.5, num_epochs=2, shuffle=True, mode="fast")


def test_settings_are_frozen() -> None:
    settings = params(sft=GOOD).section("sft", Optimizer)
    with pytest.raises(ValidationError, match="frozen"):
        settings.num_epochs = 3


def test_an_unknown_key_names_the_nearest_known_one() -> None:
    message = error_of({**GOOD, "learning_rte": 1.0})
    assert message == 'p.yaml: sft.learning_rte: unknown key; did you mean "sft.learning_rate"?'


def test_an_unknown_key_that_is_near_to_none_lists_the_known_ones() -> None:
    message = error_of({**GOOD, "zzz": 1.0})
    assert message == "p.yaml: sft.zzz: unknown key; known keys: learning_rate, num_epochs, shuffle, mode"


def test_an_unknown_section_names_the_nearest_known_one() -> None:
    with pytest.raises(InputError, match=r'^p\.yaml: rewrd_model: unknown key; did you mean "reward_model"\?$'):
        params(rewrd_model={})


def test_a_missing_key_is_named() -> None:
    message = error_of({key: value for key, value in GOOD.items() if key != "num_epochs"})
    assert message.startswith("p.yaml: sft.num_epochs: missing; ")


@pytest.mark.parametrize("section", SECTIONS)
def test_a_missing_section_is_named(section: str) -> None:
    values = {name: value for name, value in params().values.items() if name != section}
    with pytest.raises(InputError, match=rf"^p\.yaml: {section}: missing; "):
        Params(values, Path("p.yaml"))


@pytest.mark.parametrize(
    ("key", "value", "due"),
    [
        ("learning_rate", 0.0, "greater than 0"),
        ("num_epochs", 0, "greater than or equal to 1"),
        ("num_epochs", "2", "a valid integer"),
        ("num_epochs", 2.0, "a valid integer"),
        ("num_epochs", True, "a valid integer"),
        ("learning_rate", True, "a valid number"),
        ("learning_rate", "1e-4", "a valid number"),
        ("learning_rate", None, "a valid number"),
        ("shuffle", 1, "a valid boolean"),
        ("mode", "medium", "'fast' or 'slow'"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_key_rule_and_value(key: str, value: object, due: str) -> None:
    assert error_of({**GOOD, key: value}) == f"p.yaml: sft.{key}: should be {due}, got {value!r}"


def test_an_integer_will_do_where_a_float_is_due() -> None:
    settings = params(sft={**GOOD, "learning_rate": 1}).section("sft", Optimizer)
    assert type(settings.learning_rate) is float


@pytest.mark.parametrize("value", [None, 3, "text", [GOOD]])
def test_a_section_that_is_not_a_mapping_is_an_error(value: object) -> None:
    assert error_of(value).startswith(
        "p.yaml: sft: expected keys such as learning_rate, num_epochs, shuffle, mode, got "
    )


@pytest.mark.parametrize("seed", [-1, 2**32, True, 1.0, "17", None])
def test_a_seed_that_no_generator_takes_is_an_error(seed: object) -> None:
    with pytest.raises(InputError, match=r"^p\.yaml: seed: expected an integer from 0 to 4294967295, got "):
        _ = params(seed=seed).seed


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_seeds_at_the_ends_of_the_range_are_fine(seed: int) -> None:
    assert params(seed=seed).seed == seed


def test_iterations_keep_their_order() -> None:
    chain = {"m1": "m0", "m2": "m1", "m3": "m1"}
    assert list(params(iterations=chain).iterations.items()) == list(chain.items())


@pytest.mark.parametrize("chain", [{"m1": "m0", "m3": "m2"}, {"m2": "m1", "m1": "m0"}, {"m1": "m1"}, {"m1": None}])
def test_an_iteration_whose_parent_is_not_made_before_it_is_an_error(chain: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"^p\.yaml: iterations\.m\d: its parent .* is not one of m0"):
        _ = params(iterations=chain).iterations


@pytest.mark.parametrize("chain", [{}, None, ["m1"], 2])
def test_iterations_hold_at_least_one_model(chain: object) -> None:
    with pytest.raises(InputError, match=r"^p\.yaml: iterations: expected at least one `m1: m0` entry, got "):
        _ = params(iterations=chain).iterations


@pytest.mark.parametrize("init", ["m2", "base", "m01", None])
def test_ppo_starts_from_a_model_that_the_run_makes(init: str | None) -> None:
    with pytest.raises(InputError, match=r"^p\.yaml: ppo\.init: .* is not one of m0, dpo, m1; name one of them"):
        params(ppo={"init": init})
    for made in ("m0", "m1"):
        params(ppo={"init": made})


@pytest.mark.parametrize("chain", [{"m1": "dpo"}, {"m1": "dpo", "m2": "m1"}])
def test_dpo_on_human_pairs_does_not_start_from_what_starts_from_it(chain: dict[str, str]) -> None:
    for init in ("dpo", *chain):
        with pytest.raises(InputError, match=r"^p\.yaml: offline_dpo\.init: .* is not one of m0; name one of them"):
            params(iterations=chain, offline_dpo={"init": init})
    params(iterations=chain | {"m3": "m0"}, offline_dpo={"init": "m3"})


@pytest.mark.parametrize(("section", "key"), [("prepare_data", "instructions"), ("text", "train")])
def test_a_file_of_fetch_data_has_its_entry_among_the_sources(section: str, key: str) -> None:
    with pytest.raises(
        InputError, match=rf"^p\.yaml: {section}\.{key}: sources has no 'x', which would write data/sour"
    ):
        params(**{section: {key: "data/sources/x.jsonl"}})
    params(**{section: {key: "data/sources/x.jsonl"}, "sources": {"x": {}}})
    params(**{section: {key: "data/seed/x.jsonl"}})


def test_no_iteration_takes_the_name_of_another_folder_of_data_or_models() -> None:
    stages = YAML(typ="safe").load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    outs = [out for stage in stages for out in str(stage.get("do", stage)).replace("'", '"').split('"')]
    folders = {path.split("/")[1] for path in outs if path.startswith(("data/", "models/"))}
    taken = {name for name in folders if "$" not in name and "." not in name and name != "m0"}
    assert {"diff", "summary", "reward"} <= taken
    for name in taken:
        with pytest.raises(InputError, match=r"iterations: .* cannot name a model"):
            params(iterations={name: "m0"})


def test_m0_cannot_be_made_a_second_time() -> None:
    with pytest.raises(InputError, match=r"^p\.yaml: iterations\.m0: "):
        _ = params(iterations={"m0": "m0"}).iterations


def test_a_number_in_exponent_form_without_a_point_is_a_float(tmp_path: Path) -> None:
    section = "{learning_rate: 1e-4, num_epochs: 1, shuffle: true, mode: fast}"
    text = "\n".join(f"{name}: {'{m1: m0}' if name == 'iterations' else section}" for name in SECTIONS)
    settings = Params.read(written(tmp_path, text)).section("sft", Optimizer)
    assert settings.learning_rate == 0.0001


@pytest.mark.parametrize(
    "text", ["a: [", "seed: 1\nseed: 2\n", "a: b: c", "\tseed: 1", "seed: !!python/name:os.system"]
)
def test_what_is_not_valid_yaml_is_an_error_of_one_line(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as caught:
        Params.read(path)
    assert caught.value.message.startswith(f"{path}: not valid YAML: ")
    assert len(caught.value.message.splitlines()) == 1


def test_what_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(b"seed: \xff")
    with pytest.raises(InputError, match=r"not valid YAML: .*0xff"):
        Params.read(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["", "- 1", "seed"])
def test_a_file_that_is_not_a_mapping_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="expected sections such as `seed: 17`, got "):
        Params.read(written(tmp_path, text))


def test_a_missing_file_is_an_error_that_tells_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; run from the repository's root"):
        Params.read(tmp_path / "params.yaml")


def test_the_committed_params_name_every_section_and_their_rates_are_numbers() -> None:
    committed = Params.read(COMMITTED / "params.yaml")
    sections = [values for values in committed.values.values() if isinstance(values, dict)]
    rates = [section[key] for section in sections for key in section if key.endswith("learning_rate")]
    assert len(rates) >= 5
    assert {type(rate) for rate in rates} == {float}
