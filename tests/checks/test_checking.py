"""Each kind of check accepts what its description says and nothing else, strictly and loosely."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from align.checks.checking import pass_rates, passes, passes_loosely
from align.checks.kinds import Check
from align.checks.prompts import CheckedPrompt
from align.core.rows import CheckedAnswer, FinishReason

THREE: dict[str, Any] = {"min": 3, "max": 3}
POEM = "roses are red\nviolets are blue\nso are you"
EACH_KIND: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    # name: (check, accepted, refused)
    "words": (
        {"kind": "words", **THREE},
        ["one two three", "don't you well-known", "- one - two three", "1. one two three", "Größe, naïve: café!"],
        ["one two", "one two three four", "- - -"],
    ),
    "words from": ({"kind": "words", "min": 2}, ["one two", "a " * 500], ["one"]),
    "words up to": ({"kind": "words", "max": 2}, ["one", "one two"], ["one two three"]),
    "sentences": (
        {"kind": "sentences", "min": 2, "max": 2},
        [
            "It rains. Stay in!",
            "Dr. J. R. Smith paid 3.50 at 5 p.m. for it. Why?",
            "no capitals here. none at all.",
            "A heading\nAnd a line without a mark",
            'He said "Go." She went.',
            "She waited... Then she left.",
            "1. Cut the bread.\n2. Eat it.",
            "雨だ。家にいよう。",
        ],
        ["It rains.", "It rains. Stay in! Or not?", "It rains, e.g. here"],
    ),
    "lines": ({"kind": "lines", **THREE}, [POEM, POEM.replace("\n", "\n\n"), POEM.replace("\n", "\r\n")], ["a\nb"]),
    "bullets": (
        {"kind": "bullets", **THREE},
        ["- a\n- b\n- c", "Three things:\n* a\n* b\n* c\nBye!", "\u2022 a\r\n\u2022 b\r\n  \u2022 c"],
        ["- a\n- b", "-a\n-b\n-c", "1. a\n2. b\n3. c", "- a\n-\n- c", "**a**\n**b**\n**c**"],
    ),
    "numbered bullets": (
        {"kind": "bullets", "numbered": True, **THREE},
        ["1. a\n2. b\n3. c", "1) a\n2) b\n3) c"],
        ["- a\n- b\n- c", "1.5 a\n2.5 b\n3.5 c"],
    ),
    "items": (
        {"kind": "items", **THREE},
        ["red, green, blue", "red, green, and blue", "red, green and blue.", "red,green,blue"],
        ["red, green", "red, green, blue, pink", "red; green; blue", "sandy brown"],
    ),
    "starts_with": (
        {"kind": "starts_with", "text": "Yes"},
        ["Yes", "yes, it is.", " YES!", "Yes\nbecause"],
        ["Yesterday", "No, yes", "**Yes**", '"Yes"'],
    ),
    "ends_with": (
        {"kind": "ends_with", "text": "the end"},
        ["This is the end", "... the end.", 'He said "The  End!"', "the\nend\n"],
        ["the ends", "the end of it", "bathe end", "the end. Bye"],
    ),
    "ends_with a mark": ({"kind": "ends_with", "text": "?"}, ["Why?", "Why ?\n"], ["Why", "Why?!", '"Why?"']),
    "contains": (
        {"kind": "contains", "words": ["cat", "New York"]},
        ["A cat in New York.", "NEW\nYORK (cat)", "_cat_ in **New York**"],
        ["A cat", "cats in New York", "concat New York", "cat New Yorker"],
    ),
    "contains twice": (
        {"kind": "contains", "words": ["don\u2019t", "café"], "count": 2},
        ["don't don\u2019t café cafe\u0301"],
        ["don't café", "don't don't café"],
    ),
    "contains_any": ({"kind": "contains_any", "words": ["7", "seven"]}, ["Seven!", "7 days"], ["17", "70", "seventh"]),
    "without": (
        {"kind": "without", "words": ["very", ","]},
        ["every day is fine"],
        ["very fine", "Very.", "yes,no"],
    ),
    "lower_case": ({"kind": "lower_case"}, ["all small, 3 of them.", "é"], ["One capital", "123", "ÉTÉ"]),
    "upper_case": ({"kind": "upper_case"}, ["STOP! 24 H", "ÉTÉ"], ["STOp", "123"]),
    "json": (
        {"kind": "json", "keys": ["name", "age"]},
        ['{"name": "Mia", "age": 9}', '\n{"age": null,\r\n "name": []}\n'],
        [
            '{"name": "Mia"}',
            '{"name": "Mia", "age": 9, "x": 1}',
            '{"name": "Mia", "age": 9, "age": 9}',
            '{"name": "Mia", "age": NaN}',
            '["name", "age"]',
            "name age",
            "{'name': 'Mia', 'age': 9}",
            '{"name": "Mia", "age": 9} Here you are.',
            '{"a":' * 5000,
        ],
    ),
    "one_of": (
        {"kind": "one_of", "options": ["yes", "not sure"]},
        ["Yes", "yes.", "Not  sure", "**Yes**", '"yes"'],
        ["no", "yes, I think", "sure", "yes not sure"],
    ),
    "answer": (
        {"kind": "answer", "accepted": ["1200", "the Nile", "-0.5"]},
        ["1,200", "1200.00", " 1200.", "Nile", "The NILE!", "-0.50"],
        ["12,00", "200", "1,2000", "0.5", "The Nile is the answer", "Niles"],
    ),
    "language": (
        {"kind": "language", "language": "de"},
        ["Guten Morgen, wie geht es dir heute?"],
        ["Good morning, how are you today?", "12 * 12"],
    ),
}
# A text that would pass if it had ended, or a part of it: cut off, it passes nothing by chance.
CUT_OFF: list[tuple[dict[str, Any], str]] = [
    ({"kind": "words", **THREE}, "one two three"),
    ({"kind": "sentences", "min": 1, "max": 1}, "It rains because the"),
    ({"kind": "lines", **THREE}, POEM),
    ({"kind": "bullets", **THREE}, "- a\n- b\n- c"),
    ({"kind": "items", **THREE}, "red, green, blue"),
    ({"kind": "ends_with", "text": "sun"}, "We sat in the sun"),
    ({"kind": "contains", "words": ["cat"]}, "We saw a cat"),
    ({"kind": "contains_any", "words": ["cat"]}, "We saw a cat"),
    ({"kind": "one_of", "options": ["no"]}, "No"),
    ({"kind": "answer", "accepted": ["12"]}, "12"),
    ({"kind": "json", "keys": ["a"]}, '{"a": 1'),
]


def check(value: dict[str, Any]) -> Check:
    parsed: Check = TypeAdapter[Check](Check).validate_python(value)
    return parsed


@pytest.mark.parametrize("name", EACH_KIND)
def test_a_check_accepts_and_refuses_what_its_kind_says(name: str) -> None:
    value, accepted, refused = EACH_KIND[name]
    assert [text for text in accepted if not passes(check(value), text)] == []
    assert [text for text in refused if passes(check(value), text)] == []


def test_every_kind_is_tested() -> None:
    schema = TypeAdapter(Check).json_schema()
    assert {value["kind"] for value, _, _ in EACH_KIND.values()} == set(schema["discriminator"]["mapping"])


@pytest.mark.parametrize("name", EACH_KIND)
@pytest.mark.parametrize("empty", ["", " \r\n\t"])
def test_an_empty_response_passes_no_check(name: str, empty: str) -> None:
    one = check(EACH_KIND[name][0])
    assert not passes(one, empty)
    assert not passes_loosely(one, empty)


@pytest.mark.parametrize("name", EACH_KIND)
def test_what_passes_strictly_passes_loosely(name: str) -> None:
    value, accepted, _ = EACH_KIND[name]
    assert all(passes_loosely(check(value), text) for text in accepted)


@pytest.mark.parametrize(("value", "text"), CUT_OFF)
def test_a_cut_off_response_passes_nothing_by_chance(value: dict[str, Any], text: str) -> None:
    assert not passes(check(value), text, "length")
    assert not passes_loosely(check(value), text, "length")


def test_a_cut_off_response_is_otherwise_checked_as_it_is() -> None:
    text = "Yes, cats purr. They also"
    for value, passed in (
        ({"kind": "words", "min": 4, "max": 5}, True),
        ({"kind": "words", "max": 4}, False),
        ({"kind": "sentences", "max": 2}, True),
        ({"kind": "sentences", "max": 1}, False),
        ({"kind": "starts_with", "text": "yes"}, True),
        ({"kind": "contains", "words": ["cats"]}, True),
        ({"kind": "without", "words": ["dogs"]}, True),
        ({"kind": "without", "words": ["also"]}, False),
    ):
        assert passes(check(value), text, "length") == passed, value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"kind": "starts_with", "text": "Dear"}, "Here is your letter:\nDear Tom"),
        ({"kind": "starts_with", "text": "Yes"}, "**Yes**, it is."),
        ({"kind": "starts_with", "text": "Yes"}, '"Yes, it is."'),
        ({"kind": "ends_with", "text": "love"}, "With love\nI hope that this helps!"),
        ({"kind": "lines", **THREE}, f"Sure!\n\n{POEM}\n\nEnjoy!"),
        ({"kind": "json", "keys": ["a"]}, '```json\n{"a": 1}\n```'),
        ({"kind": "json", "keys": ["a"]}, '`{"a": 1}`'),
        ({"kind": "answer", "accepted": ["12"]}, "The answer is:\n12"),
    ],
)
def test_an_introduction_a_closing_remark_and_marks_around_it_are_forgiven_loosely_only(
    value: dict[str, Any], text: str
) -> None:
    assert not passes(check(value), text)
    assert passes_loosely(check(value), text)


def test_loosely_a_cut_off_response_may_do_without_its_last_line_but_no_more() -> None:
    one = check({"kind": "ends_with", "text": "love"})
    assert passes_loosely(one, "With love\nI hope that", "length")
    assert not passes_loosely(one, "I hope\nwith love", "length")


def answer(strict: list[bool], loose: list[bool], finish_reason: FinishReason) -> CheckedAnswer:
    return CheckedAnswer(
        id="a", prompt="p", response="r", finish_reason=finish_reason, num_tokens=1, strict=strict, loose=loose
    )


def test_a_prompt_counts_if_all_its_checks_pass_and_a_kind_by_check() -> None:
    lower, yes = {"kind": "lower_case"}, {"kind": "starts_with", "text": "yes"}
    prompts = [
        CheckedPrompt.model_validate({"id": str(i), "prompt": "p", "checks": checks})
        for i, checks in enumerate([[lower, yes], [yes], [lower], [lower]])
    ]
    answers = [
        answer([True, False], [True, True], "stop"),
        answer([True], [True], "length"),
        answer([False], [False], "stop"),
        answer([True], [True], "stop"),
    ]
    assert pass_rates(prompts, answers) == {
        "prompts": 4,
        "strict": 0.5,
        "loose": 0.75,
        "by_kind": {"lower_case": {"checks": 3, "strict": 2 / 3}, "starts_with": {"checks": 2, "strict": 0.5}},
        "ended_share": 0.75,
    }
