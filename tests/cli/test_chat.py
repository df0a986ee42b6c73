"""`align chat`: replies are those of plain transformers with the exported model; the program outlives a bad line."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from ruamel.yaml import YAML
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.cli.chat import conversation as chat_module
from align.cli.chat.conversation import Conversation, Reply
from align.cli.chat.screen import talk
from align.cli.main import main
from align.core.errors import printable
from align.generation.sampling import SamplingParams
from tests.cli.test_export import export, template, workspace
from tests.conftest import REPOSITORY

__all__ = ["template", "workspace"]  # fixtures

NEW_TOKENS = 8


@pytest.fixture(autouse=True)
def params(workspace: Path) -> None:
    values = YAML(typ="safe").load(REPOSITORY / "params.yaml")
    values["runtime"] |= {"device": "cpu", "num_threads": torch.get_num_threads()}
    with (workspace / "params.yaml").open("w") as stream:
        YAML().dump(values, stream)


def chat(lines: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["chat", *arguments, "--max-new-tokens", str(NEW_TOKENS)], input=lines, color=True)


def talked(lines: str, *arguments: str) -> dict[str, Any]:
    """Return what `/save` wrote at the end."""
    Path("saved.json").unlink(missing_ok=True)
    result = chat(f"{lines}/save saved.json\n", *arguments)
    assert result.exit_code == 0, result.output
    value: dict[str, Any] = json.loads(Path("saved.json").read_text(encoding="utf-8"))["conversations"]
    return value


def replies(conversation: list[dict[str, str]]) -> list[str]:
    return [message["content"] for message in conversation if message["role"] == "assistant"]


def plain(folder: str, messages: list[dict[str, str]]) -> str:
    """Return the greedy reply as a user of transformers gets it."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def test_greedy_replies_are_those_of_plain_transformers_with_the_export_turn_by_turn(workspace: Path) -> None:
    export("m1", "--to", "out")
    conversation = talked("What is 2 + 3?\nName a bird.\n", "m1", "--system", "Be short.")["m1"]
    assert [message["role"] for message in conversation] == ["system", "user", "assistant", "user", "assistant"]
    assert conversation[2]["content"] == plain("out", conversation[:2])
    assert conversation[4]["content"] == plain("out", conversation[:4])
    assert talked("What is 2 + 3?\nName a bird.\n", "out", "--system", "Be short.")["out"] == conversation


def test_the_screen_has_the_reply_and_a_mark_where_it_was_cut(workspace: Path) -> None:
    result = chat("What is 2 + 3?\n/save a.json\n", "m1")
    (reply,) = replies(json.loads(Path("a.json").read_text())["conversations"]["m1"])
    assert result.stdout == chat("What is 2 + 3?\n", "m1").stdout
    assert result.stdout.endswith(f" [cut: --max-new-tokens {NEW_TOKENS}, or the context is full]\n")
    assert result.stdout.startswith(printable(reply))


def test_two_models_reply_side_by_side_each_with_its_own_history(workspace: Path) -> None:
    lines = "What is 2 + 3?\nName a bird.\n"
    both = talked(lines, "m1", "--compare", "base")
    assert list(both) == ["m1", "base"]
    assert both["m1"] == talked(lines, "m1")["m1"]
    assert both["base"] == talked(lines, "base")["base"]
    assert replies(both["m1"]) != replies(both["base"])
    table = chat(lines, "m1", "--compare", "base").stdout
    header = next(line for line in table.splitlines() if "m1" in line)
    assert header.index("m1") < header.index("base")
    assert list(talked("Hi.\n", "m1", "--compare", "m1")) == ["m1 (1)", "m1 (2)"]


def test_models_of_different_bases_are_compared_too(workspace: Path) -> None:
    export("m0", "--to", "out")
    both = talked("Name a bird.\n", "m0", "--compare", "out")
    assert both["m0"] == both["out"]


def test_a_seed_gives_the_same_samples_and_another_seed_others(workspace: Path) -> None:
    arguments = ("m1", "--temperature", "1", "--top-p", "0.9", "--seed")
    lines = "Name a bird.\nAnd one more.\n"
    first, again, other = (talked(lines, *arguments, seed) for seed in ("1", "1", "2"))
    assert first == again
    assert first != other


def test_reset_forgets_and_system_starts_anew(workspace: Path) -> None:
    fresh = talked("Name a bird.\n", "m1")
    assert talked("What is 2 + 3?\n/reset\nName a bird.\n", "m1") == fresh
    changed = talked("What is 2 + 3?\n/system Be short.\nName a bird.\n", "m1")
    assert changed == talked("Name a bird.\n", "m1", "--system", "Be short.")
    assert chat("/exit\nName a bird.\n", "m1").stdout == ""
    assert talked("//exit\n", "m1")["m1"][0]["content"] == "/exit"


@pytest.mark.parametrize(
    ("lines", "said"),
    [("/fly\n", "no such command: /fly"), ("word " * 2000 + "\n", "say less"), ("/save params.yaml\n", "is there")],
)
def test_a_line_of_a_pipe_that_cannot_be_answered_ends_with_an_error(lines: str, said: str, workspace: Path) -> None:
    result = chat(lines, "m1")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert said in result.stderr


def test_in_a_terminal_it_is_shown_and_the_conversation_goes_on_as_it_was(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["/fly", "hello", "/exit"])
    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    conversation = Conversation([], SamplingParams(1, 0.0), 0)
    asked: list[str] = []
    monkeypatch.setattr("align.cli.chat.screen._answer", lambda _, text: asked.append(text))
    talk(conversation)
    assert "no such command: /fly" in capsys.readouterr().err
    assert asked == ["hello"]


def test_a_reward_model_and_an_unknown_model_are_refused(workspace: Path) -> None:
    for name, said in (("reward", "scores text and writes none"), ("m7", "no model 'm7'")):
        result = chat("Hi.\n", name)
        assert result.exit_code == 1
        assert said in result.stderr


def test_ctrl_c_ends_the_reply_and_keeps_what_there_is(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = chat_module._Stream.put

    def interrupt(stream: Any, value: torch.Tensor) -> None:
        put(stream, value)
        if len(stream.ids) == 3:
            raise KeyboardInterrupt

    whole = replies(talked("Name a bird.\n", "m1")["m1"])[0]
    monkeypatch.setattr(chat_module._Stream, "put", interrupt)
    result = chat("Name a bird.\nAnother.\n/save b.json\n", "m1")
    assert result.exit_code == 0
    assert result.stdout.count("[stopped]") == 2
    first = replies(json.loads(Path("b.json").read_text())["conversations"]["m1"])[0]
    assert first
    assert whole.startswith(first)
    assert first != whole


def test_what_a_model_writes_commands_no_terminal(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = "a\x1b[2Jb\x07\r\x9b\u202ec\nd [bold]e[/bold]"

    def reply(speaker: Any, messages: Any, sampling: Any, seed: int, on_text: Any) -> Reply:
        for end in range(len(attack) + 1):
            on_text(attack[:end])
        return Reply(attack, "stop")

    monkeypatch.setattr(chat_module, "reply_to", reply)
    for arguments in (["m1"], ["m1", "--compare", "base"]):
        shown = chat("Hi.\n", *arguments).stdout
        assert "\\u001b[2J" in shown
        assert "[bold]" in shown
        assert all(character == "\n" or character.isprintable() for character in shown)
