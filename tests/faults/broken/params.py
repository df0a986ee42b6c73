"""Broken params.yaml and checkers."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML

from tests.faults.broken.workspace import PAIRS, Break, Case, both, nothing, param, put

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 30)
)


def _text(old: str, new: str) -> Break:
    def act() -> None:
        text = Path("params.yaml").read_text()
        assert old in text
        Path("params.yaml").write_text(text.replace(old, new, 1))

    return act


def _append(text: str) -> Break:
    return lambda: put("params.yaml", Path("params.yaml").read_text() + text)()


def _replace_by_folder() -> None:
    Path("params.yaml").unlink()
    Path("params.yaml").mkdir()


def _take_m0_for_the_reward_model() -> None:
    shutil.rmtree("models/reward")
    shutil.copytree("models/m0", "models/reward")


FILES: dict[str, tuple[Break, str]] = {
    "missing": (lambda: Path("params.yaml").unlink(), "params.yaml: no such file; run from the repository's root"),
    "a directory": (_replace_by_folder, "params.yaml: is a directory"),
    "empty": (put("params.yaml", ""), "params.yaml: expected sections"),
    "a comment alone": (put("params.yaml", "# nothing\n"), "params.yaml: expected sections"),
    "a list": (put("params.yaml", "- seed: 17\n"), "params.yaml: expected sections"),
    "a text": (put("params.yaml", "seed\n"), "params.yaml: expected sections"),
    "a tab": (_append("\tx: 1\n"), "params.yaml: not valid YAML"),
    "a bracket left open": (_append("x: [\n"), "params.yaml: not valid YAML"),
    "a quote left open": (_append('x: "\n'), "params.yaml: not valid YAML"),
    "two documents": (_append("---\nseed: 1\n"), "params.yaml: not valid YAML"),
    "a section twice": (_append("seed: 18\n"), "params.yaml: not valid YAML"),
    "an unknown anchor": (_append("x: *nothing\n"), "params.yaml: not valid YAML"),
    "a merge conflict": (_append("<<<<<<< HEAD\nseed: 17\n=======\n"), "params.yaml: not valid YAML"),
    "a Python object": (
        _text("seed: 17", "seed: !!python/object/apply:os.system [true]"),
        "params.yaml: not valid YAML",
    ),
    "an unknown tag": (_text("seed: 17", "seed: !secret 17"), "params.yaml: not valid YAML"),
    "a date that is none": (_text("seed: 17", "seed: 2026-13-45"), "params.yaml: not valid YAML"),
    "a number of 5000 digits": (_text("seed: 17", "seed: " + "9" * 5000), "params.yaml: not valid YAML"),
    "a hexadecimal number of 5000 digits": (_text("seed: 17", "seed: 0x" + "f" * 5000), "params.yaml: seed: expected"),
    "invalid UTF-8": (lambda: put("params.yaml", b"\xff" + Path("params.yaml").read_bytes())(), "not valid YAML"),
    "UTF-16": (lambda: put("params.yaml", Path("params.yaml").read_text().encode("utf-16"))(), "not valid YAML"),
    "NUL bytes": (_append("\0\0\n"), "params.yaml: not valid YAML"),
    "a control character": (_append("x: \x1b[31m\n"), "params.yaml: not valid YAML"),
    "lists nested deeply": (put("params.yaml", "x: " + "[" * 20_000), "params.yaml: not valid YAML"),
    "JSON cut off": (put("params.yaml", '{"seed": 17, "runtime": {'), "params.yaml: not valid YAML"),
    "an alias bomb": (_append(BOMB), "params.yaml: a0: unknown key"),
    "an alias bomb in a value": (
        lambda: put(
            "params.yaml", BOMB.replace("\na29:", "\nseed:") + Path("params.yaml").read_text().replace("seed:", "sed:")
        )(),
        "params.yaml: a0: unknown key",
    ),
    "a list in itself": (_text("seed: 17", "seed: &seed [*seed]"), "params.yaml: seed: expected an integer"),
    "an unknown section": (_append("rewrd_model: {}\n"), 'params.yaml: rewrd_model: unknown key; did you mean "reward'),
    "a number as a section": (_append("7: {}\n"), "params.yaml: 7: unknown key"),
    "a list as a section": (_append("? [a, b]\n: 1\n"), "params.yaml: "),
    "null as a section": (_append("null: 1\n"), "params.yaml: None: unknown key"),
    "an escape in a section's name": (_append('"\\e[2J": 1\n'), "params.yaml: \\u001b[2J: unknown key"),
    "a section's name of 100000 letters": (_append(f'? "{"x" * 100_000}"\n: 1\n'), "unknown key"),
}
# A value of a key: (command, key, value, what is said of it).
VALUES: list[tuple[str, str, object, str]] = [
    ("prepare_data", "seed", -1, "expected an integer from 0"),
    ("prepare_data", "seed", 2**32, "expected an integer from 0"),
    ("prepare_data", "seed", 1.5, "expected an integer from 0"),
    ("prepare_data", "seed", "17", "expected an integer from 0"),
    ("prepare_data", "seed", None, "expected an integer from 0"),
    ("sft", "runtime", None, "expected keys such as"),
    ("sft", "runtime", ["cpu"], "expected keys such as"),
    ("sft", "runtime.device", "tpu", "should be auto, cpu, cuda"),
    ("sft", "runtime.device", "meta", "should be auto, cpu, cuda"),
    ("sft", "runtime.device", "cuda:-1", "should be auto, cpu, cuda"),
    ("sft", "runtime.device", 0, "should be a valid string"),
    ("sft", "runtime.dtype", "float16", "should be 'float32' or 'bfloat16'"),
    ("sft", "runtime.quantization", "int8", "should be 'none' or 'nf4'"),
    ("sft", "runtime.quantization", None, "should be 'none' or 'nf4'"),
    ("sft", "runtime.optim", "sgd", "should be 'adamw_torch'"),
    ("sft", "runtime.num_threads", 0, "should be greater"),
    ("sft", "runtime.num_threads", 10**12, "should be less"),
    ("sft", "runtime.batch_size", 2.0, "should be a valid integer"),
    ("base_model", "base_model.source", "", "should "),
    ("base_model", "base_model.source", 7, "should be a valid string"),
    ("base_model", "base_model.pad_token", "", "should "),
    ("base_model", "base_model.pad_token", "<|im_end|>", ""),
    ("base_model", "base_model.chat_template", "../report.md", "should "),
    ("base_model", "base_model.chat_template", "nosuch", "prompts/chat has no nosuch.jinja"),
    ("base_model", "base_model.chat_template", "judge", "prompts/chat has no judge.jinja"),
    ("prepare_data", "prepare_data.max_score_share", 0, "should be greater"),
    ("prepare_data", "prepare_data.max_score_share", float("nan"), "should be a finite number"),
    ("prepare_data", "prepare_data.off_topic_negatives", -1, "should be greater"),
    ("prepare_data", "prepare_data.max_checked_prompts", 0, "should be greater"),
    ("prepare_data", "prepare_data.judgements_test_fraction", 1, "should be less"),
    ("prepare_data", "prepare_data.preferences_test_fraction", float("inf"), "should be a finite number"),
    ("prepare_data", "prepare_data.unusable_preferences", "skip", "should be 'error' or 'drop'"),
    ("prepare_data", "prepare_data.judgements_format", "json", "should be 'scores' or 'message_trees'"),
    ("prepare_data", "prepare_data.instructions", ["a.jsonl"], "should be a valid string"),
    ("prepare_data", "prepare_data.instruction", "a.jsonl", 'did you mean "prepare_data.instructions"?'),
    ("sft", "lora.r", 0, "should be greater"),
    ("sft", "lora.lora_dropout", 1.0, "should be less"),
    ("sft", "lora.target_modules", ["nothing_proj"], ""),
    ("sft", "lora.target_modules", [], ""),
    ("sft", "lora.target_modules", "nothing_proj", ""),
    ("sft", "lora.layers_to_transform", [0], "should be target_modules by name"),
    ("sft", "lora.layers_to_transform", [], "should "),
    ("sft", "lora.layers_to_transform", [-1], "should "),
    ("sft", "lora", "none", "expected keys such as"),
    ("sft", "lora", None, "eft.loraplus_lr_ratio: 16 is for adapters, and section lora is null"),
    ("sft", "lora.use_dora", "yes", "should be a valid boolean"),
    ("sft", "lora.use_rslora", 1, "should be a valid boolean"),
    ("sft", "lora.init_lora_weights", "pissa", "should be true, gaussian or orthogonal"),
    ("sft", "lora.init_lora_weights", False, "should be true, gaussian or orthogonal"),
    ("sft", "eft.learning_rate", float("nan"), "should be a finite number"),
    ("sft", "eft.learning_rate", float("inf"), "should be a finite number"),
    ("sft", "eft.learning_rate", "5e-4", "should be a valid number"),
    ("sft", "eft.loraplus_lr_ratio", 0.5, "should be greater"),
    ("sft", "eft.max_length", 5, "all 6 rows are longer than 5 tokens"),
    ("sft", "sft.learning_rate", 0, "should be greater"),
    ("sft", "sft.eft_share", 1, "should be less"),
    ("sft", "sft.warmup_steps", 1.5, "should be a share"),
    ("sft", "sft.lr_scheduler_type", "polynomial", "should be 'linear'"),
    ("sft", "sft.gradient_checkpointing", "yes", "should be a valid boolean"),
    ("sft", "sft.num_train_epochs", -1, "should be greater"),
    ("sft", "sft.per_device_train_batch_size", True, "should be a valid integer"),
    ("sft", "sft.max_length", 3, "all 12 rows are longer than 3 tokens"),
    ("sft", "sft.learning_rte", 1e-4, 'did you mean "sft.learning_rate"?'),
    ("sft", "sft.attn_implementation", "flash_attention_2", "needs a GPU, and runtime.device is cpu; set null"),
    ("sft", "sft.attn_implementation", "flash", "should be 'eager', 'sdpa'"),
    ("sft", "sft.packing", True, "attn_implementation flash_attention_2 or flash_attention_3 with packing"),
    ("dpo m1 m0", "dpo.attn_implementation", "flash_attention_3", "needs a GPU, and runtime.device is cpu; set null"),
    ("sft", "eft.early_stopping_patience", 3, "null and load_best_model_at_end false where eval_fraction is 0"),
    ("sft", "sft.eval_steps", 1.5, "should be a share"),
    ("summary", "iterations", None, "expected at least one"),
    ("summary", "iterations", {}, "expected at least one"),
    ("summary", "iterations", ["m1"], "expected at least one"),
    ("summary", "iterations", {"m2": "m1"}, "its parent 'm1' is not one of m0"),
    ("summary", "iterations", {"m1": "m2", "m2": "m1"}, "its parent 'm2' is not one of m0"),
    ("summary", "iterations", {"m1": "m1"}, "its parent 'm1' is not one of m0"),
    ("summary", "iterations", {"m1": ["m0"]}, "its parent ['m0'] is not one of m0"),
    ("summary", "iterations", {"m0": "m0"}, "already made"),
    *(
        ("generate_prompts m1 m0", "iterations", {name: "m0"}, "cannot name a model")
        for name in ("../x", "m1/../../etc", "/etc", "a b", "m1@m0", "m.1", "-m1", "", "m1\n", "m1;ls", "é", 1, None)
    ),
    *(("judge m1 m0", "iterations", {name: "m0"}, "cannot name a model") for name in ("base", "eval", "m" * 65)),
    ("generate_responses m1 m0", "generation.backend", "tgi", "should be 'transformers'"),
    ("generate_responses m1 m0", "generation.backend", "vllm", "needs a package that is not installed"),
    ("generate_responses m1 m0", "generation.max_batch_tokens", 0, "should be greater"),
    ("generate_responses m1 m0", "generation.openai", None, "should be a valid dictionary"),
    ("generate_responses m1 m0", "generation.openai.base_url", "http://me:secret@host/v1", "OPENAI_API_KEY"),
    ("generate_responses m1 m0", "generation.openai.base_url", "http://host/v1?api_key=secret", "OPENAI_API_KEY"),
    ("generate_responses m1 m0", "generation.openai.base_url", "localhost:8000", "should be an http(s) address"),
    ("generate_responses m1 m0", "generation.openai.base_url", "file:///etc/passwd", "should be an http(s) address"),
    ("generate_responses m1 m0", "generation.openai.model", "{name.__class__}", "the only thing in braces"),
    ("generate_responses m1 m0", "generation.openai.model", "{", "the only thing in braces"),
    ("generate_responses m1 m0", "generation.openai.timeout", float("inf"), "should be a finite number"),
    ("generate_responses m1 m0", "generation.openai.key", "secret", "unknown key"),
    ("generate_responses m1 m0", "generate_responses.num_responses", 1, "should be greater"),
    ("generate_responses m1 m0", "generate_responses.temperature", 0, "should be greater"),
    ("generate_responses m1 m0", "generate_responses.top_p", float("nan"), "should be "),
    ("generate_responses m1 m0", "generate_responses.max_new_tokens", 5000, "prompts are too long"),
    ("generate_prompts m1 m0", "generate_prompts.num_seed_examples", 50, "only 12 one-line seed prompts"),
    ("generate_prompts m1 m0", "generate_prompts.blocked_words", "image", "should be a valid list"),
    ("generate_prompts m1 m0", "generate_prompts.blocked_words", [1], "should be a valid string"),
    ("generate_prompts m1 m0", "generate_prompts.min_words", 41, "should be min_words of at most max_words"),
    ("generate_prompts m1 m0", "generate_prompts.language", "xx", ""),
    ("judge m1 m0", "judge.mode", "regex", "should be 'logits'"),
    ("judge m1 m0", "judge.min_digit_mass", 1.5, "should be less"),
    ("judge m1 m0", "judge.mode", "checker", "should be a checker"),
    ("judge m1 m0", "judge.checker", "math:sqrt", "should be a checker"),
    ("judge m1 m0", "judge.model", "parent", "judge.use_parent: true lets each iteration's parent judge"),
    ("evaluate m0", "judge.model", "m1", "'m1' is not one of m0, reward"),
    ("sft", "judge.model", ["reward"], "is not one of m0, reward"),
    ("judge m1 m0", "judge.model", "reward", "should be model: reward where mode is reward, and m0 otherwise"),
    ("judge m1 m0", "judge.mode", "reward", "should be model: reward where mode is reward, and m0 otherwise"),
    ("judge m1 m0", "judge.use_parent", "yes", "should be a valid boolean"),
    ("judge m1 m0", "judge.max_new_token", 5, 'did you mean "judge.max_new_tokens"?'),
    ("build_preferences m1 m0", "gates.min_pair_yield", 2, "should be less"),
    ("build_preferences m1 m0", "gates.max_failure_rate", float("nan"), "should be "),
    ("build_preferences m1 m0", "build_preferences.accept_score", 6, "should be less"),
    ("build_preferences m1 m0", "build_preferences.min_margin", 5.0, "gates.min_pair_yield"),
    ("build_preferences m1 m0", "build_preferences.max_length_gap", 1.5, "should be less"),
    ("dpo m1 m0", "dpo.beta", 0, "should be greater"),
    ("dpo m1 m0", "dpo.beta", float("nan"), "should be a finite number"),
    ("dpo m1 m0", "dpo.reference", "m1", "should be 'previous' or 'm0'"),
    ("dpo m1 m0", "dpo.loss_type", ["ipo", "nosuch"], "1: should be 'sigmoid', 'hinge', 'ipo'"),
    ("dpo m1 m0", "dpo.loss_type", "sft", "0: should be 'sigmoid'"),
    ("dpo m1 m0", "dpo.loss_type", [], "should have at least 1 item"),
    ("dpo m1 m0", "dpo.loss_type", ["ipo", "ipo"], "without the same loss twice"),
    ("dpo m1 m0", "dpo.loss_type", "exo_pair", "a label_smoothing above 0"),
    ("dpo m1 m0", "dpo.loss_weights", [0.5, 0.5], "a number for each loss_type"),
    ("dpo m1 m0", "dpo.loss_weights", [0.0], "loss_weights that are not all 0"),
    ("dpo m1 m0", "dpo.label_smoothing", 0.1, "label_smoothing 0, or a loss_type that reads it: robust"),
    ("dpo m1 m0", "dpo.ld_alpha", 1.5, "should be less"),
    ("dpo m1 m0", "dpo.loss_type", ["kto", "sigmoid"], "loss_type [kto] alone"),
    ("dpo m1 m0", "dpo.undesirable_weight", 0.5, "undesirable_weight 1.0, or loss_type [kto]"),
    ("dpo m1 m0", "dpo.desirable_weight", 0, "should be greater"),
    ("offline_dpo", "offline_dpo.data", "data/seed/no.jsonl", "data/seed/no.jsonl: no such file"),
    ("offline_dpo", "offline_dpo.data", "data/sources/likes.jsonl", "sources has no 'likes'"),
    ("offline_dpo", "offline_dpo.init", "base", "is not one of m0, m1"),
    ("offline_dpo", "offline_dpo.max_length", 2, "rows are longer than 2 tokens"),
    ("offline_dpo", "offline_dpo.early_stopping_patience", 0, "should be greater"),
    ("dpo m1 m0", "dpo.load_best_model_at_end", True, "where eval_fraction is 0"),
    ("dpo m1 m0", "dpo.max_length", 2, "all 3 rows are longer than 2 tokens"),
    ("reward_model", "reward_model.use_margin", True, "has no margin"),
    ("reward_model", "reward_model.eval_fraction", 1, "should be less"),
    ("reward_model", "reward_model.max_grad_norm", float("nan"), "should be "),
    ("ppo", "ppo.init", "../source", "is not one of m0, dpo, m1"),
    ("ppo", "ppo.init", "base", "is not one of m0, dpo, m1"),
    ("ppo", "ppo.kl_coef", -0.1, "should be greater"),
    ("ppo", "ppo.truncated.value", float("-inf"), "should be a finite number"),
    ("ppo", "ppo.mini_batch_size", 3, "divide evenly"),
    ("ppo", "ppo.num_generations", 3, "num_generations divides"),
    ("ppo", "ppo.advantage", "rloo", "num_generations 2 or more"),
    ("ppo", "ppo.truncated.mode", "cut", "should be 'keep'"),
    ("ppo", "ppo.truncated.mode", "mask", "value null otherwise"),
    ("ppo", "ppo.truncated.value", None, "should be a value where"),
    ("ppo", "ppo.truncated.soft_punish_cache", 2, "soft_punish_cache (tokens) where"),
    ("ppo", "ppo.rewards", [], "at least 1 item"),
    ("ppo", "ppo.rewards", [{"weight": 1.0}], "{model: reward, weight: W}"),
    ("ppo", "ppo.rewards", [{"model": "m0", "weight": 1.0}], "should be 'reward'"),
    ("ppo", "ppo.rewards", [{"model": "reward", "weight": float("nan")}], "should be "),
    ("ppo", "ppo.rewards", [{"model": "reward"}], "weight: missing"),
    ("ppo", "ppo.rewards", [{"model": "reward", "weight": 0}], "weight other than 0"),
    ("ppo", "ppo.rewards", [{"weight": 1.0, "model": "reward"}] * 2, "no two"),
    ("ppo", "ppo.rewards", [{"checker": "checkers.a:f", "weight": 1.0}], "the critic of gae"),
    ("ppo", "ppo.prompts", "data/sources/sums.jsonl", "sources has no 'sums'"),
    ("ppo", "ppo.value_layers", 99, "ppo.value_layers"),
    ("ppo", "ppo.max_prompt_length", 1, "all 3 rows are longer than 1 tokens"),
    ("evaluate m0", "evaluate.temperature", -1, "should be greater"),
    ("evaluate m0", "evaluate.max_turns", 0, "should be greater"),
    ("evaluate m0", "evaluate.max_new_tokens", 5000, "prompts are too long"),
    ("evaluate m0", "evaluate.checks_max_new_tokens", 0, "should be greater"),
]
# Code of a module in checkers/, whose function f is a reward, and what is said of it.
REWARDS: dict[str, tuple[str, str]] = {
    "not there": ("", "has no attribute 'f'"),
    "a syntax error": ("def f(:\n", "SyntaxError"),
    "a number": ("f = 3\n", "is no function"),
    "an error": ("def f(p, r, row):\n    return row['answer']\n", "prompts.jsonl:1: id 'p1': checkers.bad_"),
    "an exit": ("def f(p, r, row):\n    raise SystemExit(0)\n", "raised SystemExit: 0"),
    "two arguments": ("def f(p, r):\n    return 1\n", "TypeError"),
    "a text": ("def f(p, r, row):\n    return '1'\n", "returned '1'"),
    "None": ("def f(p, r, row):\n    return None\n", "returned None"),
    "a bool": ("def f(p, r, row):\n    return True\n", "returned True"),
    "NaN": ("def f(p, r, row):\n    return float('nan')\n", "returned nan"),
}
CHECKERS: dict[str, tuple[str, str, str]] = {
    "no such module": ("nosuch_module:f", "", "No module named 'nosuch_module'"),
    "no such function": ("math:nosuch", "", "no attribute 'nosuch'"),
    "no function named": ("math", "", "no attribute ''"),
    "a relative module": (".math:sqrt", "", "TypeError"),
    "an empty name": ("", "", "ValueError"),
    "a number": ("math:pi", "", "is no function"),
    "outside of checkers/": ("math:sqrt", "", "move it to checkers/"),
    "a syntax error": ("checkers.bad_syntax:f", "def f(:\n", "SyntaxError"),
    "an error at import": ("checkers.bad_import:f", "raise RuntimeError('at import')\n", "RuntimeError: at import"),
    "an exit at import": ("checkers.bad_exit:f", "raise SystemExit(0)\n", "SystemExit: 0"),
    "an error": ("checkers.bad_error:f", "def f(p, r):\n    return 1 / 0\n", "ZeroDivisionError"),
    "an exit": ("checkers.bad_leave:f", "def f(p, r):\n    raise SystemExit(0)\n", "SystemExit: 0"),
    "an error of several lines": (
        "checkers.bad_lines:f",
        "def f(p, r):\n    raise ValueError('a\\n\\x1b[2Jb')\n",
        "ValueError: a",
    ),
    "one argument": ("checkers.bad_args:f", "def f(p):\n    return 1\n", "TypeError"),
    "a score of 6": ("checkers.bad_six:f", "def f(p, r):\n    return 6\n", "returned 6"),
    "a text": ("checkers.bad_text:f", "def f(p, r):\n    return '5'\n", "returned '5'"),
    "a bool": ("checkers.bad_bool:f", "def f(p, r):\n    return True\n", "returned True"),
    "NaN": ("checkers.bad_nan:f", "def f(p, r):\n    return float('nan')\n", "returned nan"),
    "a huge text": ("checkers.bad_huge:f", "def f(p, r):\n    return 'x' * 10**6\n", "returned 'xxx"),
    "None of all": ("checkers.bad_none:f", "def f(p, r):\n    return None\n", "judgements failed"),
}
BY_REWARD = both(*(param(f"judge.{key}", to) for key, to in {"model": "reward", "mode": "reward"}.items()))
JUDGES: dict[str, tuple[Break, str]] = {
    "the reward model and the parent": (BY_REWARD, "should be use_parent: false where mode is reward"),
    "a checker and the parent": (
        both(param("judge.mode", "checker"), param("judge.checker", "math:sqrt")),
        "should be use_parent: false where mode is checker",
    ),
    "a reward model without a score head": (
        both(BY_REWARD, param("judge.use_parent", False), _take_m0_for_the_reward_model),
        "has no score head",
    ),
    "no reward model": (
        both(BY_REWARD, param("judge.use_parent", False), lambda: shutil.rmtree("models/reward")),
        "models/reward: holds no model",
    ),
}
KTO: dict[str, tuple[str, object, str]] = {
    "a key of pairs' losses": ("ld_alpha", 0.2, "should be ld_alpha null with loss_type [kto]"),
    "a micro-batch of one": ("per_device_train_batch_size", 1, "should be per_device_train_batch_size 2 or more"),
}


def cases() -> Iterator[Case]:
    """Yield the cases."""
    for name, (breaks, says) in FILES.items():
        yield Case("params.yaml", name, "prepare_data", breaks, (says,))
    for command, key, to, says in VALUES:
        yield Case("parameter", f"{key}: {str(to)[:40]!r}", command, param(key, to), (key.rpartition(".")[2], says))
    nosuch = param("ppo.init", "nosuch")
    yield Case("parameter", "ppo.init: 'nosuch'", "ppo", nosuch, ("'nosuch' is not one of m0, dpo, m1",))
    for key in ("seed", "iterations", "ppo"):
        yield Case("params.yaml", f"without {key}", "summary", _without(key), (f"params.yaml: {key}: missing",))
    yield Case(
        "parameter", "sft without max_length", "sft", _without("sft", "max_length"), ("sft.max_length: missing",)
    )
    one = both(param("dpo.eval_fraction", 0.5), put("data/m1/preferences.jsonl", json.dumps(PAIRS[0])))
    found = ("params.yaml: dpo.eval_fraction: a split needs at least two different prompts, found 1", "set it to 0")
    yield Case("parameter", "dpo.eval_fraction: 0.5 of one conversation", "dpo m1 m0", one, found)
    package, model = put("checkers/__init__.py", ""), {"model": "reward", "weight": 1.0}
    for number, (name, (code, says)) in enumerate(REWARDS.items()):
        rewards = [model, {"checker": f"checkers.bad_{number}:f", "weight": 1.0}]
        act = both(package, put(f"checkers/bad_{number}.py", code), param("ppo.rewards", rewards))
        yield Case("reward", name, "ppo", act, (says,))
    for name, checker, says in (
        ("outside of checkers/", "json:dumps", "move it to checkers/"),
        ("a row without an answer", "align.checks.rewards:right_answer", "data/prepared/prompts.jsonl:1: id 'p1'"),
        ("a row without checks", "align.checks.rewards:checks_passed", '"checks" is missing'),
    ):
        act = param("ppo.rewards", [model, {"checker": checker, "weight": 1.0}])
        yield Case("reward", name, "ppo", act, (says,))
    for name, (checker, code, says) in CHECKERS.items():
        module = both(package, put(checker.partition(":")[0].replace(".", "/") + ".py", code)) if code else nothing
        settings = {"use_parent": False, "mode": "checker", "checker": checker}
        act = both(*(param(f"judge.{key}", to) for key, to in settings.items()), module)
        yield Case("checker", name, "judge m1 m0", act, (says,))
    for name, (act, says) in JUDGES.items():
        yield Case("parameter", name, "judge m1 m0", act, (says,))
    for name, (key, to, says) in KTO.items():
        act = both(param("dpo.loss_type", ["kto"]), param(f"dpo.{key}", to))
        yield Case("parameter", f"KTO with {name}", "dpo m1 m0", act, (says,))


def _without(*keys: str) -> Break:
    def act() -> None:
        params = inner = YAML(typ="safe").load(Path("params.yaml"))
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        with Path("params.yaml").open("w") as stream:
            YAML().dump(params, stream)

    return act
