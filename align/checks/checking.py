"""Decide whether replies pass their checks, strictly and loosely, and sum up how many do."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, assert_never

from align.checks import kinds, pieces
from align.checks.prompts import CheckedPrompt
from align.core.files import parse_json
from align.core.language import language_of
from align.core.rows import CheckedAnswer, FinishReason


def check_reply(prompt: CheckedPrompt, response: str, finish_reason: FinishReason) -> tuple[list[bool], list[bool]]:
    """Return whether the response passes each check of a prompt, strictly and loosely.

    A response that only repeats the prompt passes nothing, though it may have all the words that the prompt asks for.
    """
    if pieces.answer_of(pieces.normalised(response)) == pieces.answer_of(pieces.normalised(prompt.prompt)):
        return [False] * len(prompt.checks), [False] * len(prompt.checks)
    return (
        [passes(check, response, finish_reason) for check in prompt.checks],
        [passes_loosely(check, response, finish_reason) for check in prompt.checks],
    )


def passes(check: kinds.Check, response: str, finish_reason: FinishReason = "stop") -> bool:
    """Return whether a response passes as it is (strict).

    An empty one passes nothing, and one that was cut off (`length`) nothing by chance: its last piece counts towards a
    `max` but not towards a `min`, its last word is not contained, and it has no end and is no whole answer.
    """
    text = pieces.normalised(response)
    return bool(text.strip()) and _passes(check, text, finish_reason == "stop")


def passes_loosely(check: kinds.Check, response: str, finish_reason: FinishReason = "stop") -> bool:
    """Return whether a response passes as it is or once its first line, last line or marks around it are removed.

    These are the transformations of IFEval's loose accuracy (arXiv 2311.07911, 2.2), which spare an introduction, a
    closing remark and Markdown emphasis, and here quotes and code fences too.
    """
    all_lines = pieces.lines(pieces.normalised(response))
    ended = finish_reason == "stop"
    # Without its last line a cut-off response consists of whole lines.
    variants = [(all_lines, ended), (all_lines[1:], ended), (all_lines[:-1], True), (all_lines[1:-1], True)]
    return passes(check, response, finish_reason) or any(
        _passes(check, text, whole)
        for kept, whole in variants
        for text in ("\n".join(kept), "\n".join(kept).replace("*", ""), "\n".join(kept).strip("\"'`* "))
        if text.strip()
    )


def pass_rates(prompts: Sequence[CheckedPrompt], answers: Sequence[CheckedAnswer]) -> dict[str, Any]:
    """Return the shares of prompts whose checks all passed, and of passed checks by kind.

    `answers` are to `prompts`, in the same order.
    """
    by_kind = defaultdict[str, list[bool]](list)
    for prompt, answer in zip(prompts, answers, strict=True):
        for check, passed in zip(prompt.checks, answer.strict, strict=True):
            by_kind[check.kind].append(passed)
    return {
        "prompts": len(answers),
        "strict": _share([all(answer.strict) for answer in answers]),
        "loose": _share([all(answer.loose) for answer in answers]),
        "by_kind": {
            kind: {"checks": len(passed), "strict": _share(passed)} for kind, passed in sorted(by_kind.items())
        },
        "ended_share": _share([answer.finish_reason == "stop" for answer in answers]),
    }


def _share(passed: Sequence[bool]) -> float:
    return sum(passed) / len(passed)


def _passes(check: kinds.Check, text: str, ended: bool) -> bool:
    match check:
        case kinds.Words():
            return _in_range(check, len(pieces.words(text)), ended)
        case kinds.Sentences():
            return _in_range(check, len(pieces.sentences(text)), ended)
        case kinds.Lines():
            return _in_range(check, len(pieces.lines(text)), ended)
        case kinds.Bullets():
            return _in_range(check, len(pieces.list_items(text, check.numbered)), ended)
        case kinds.Items():
            return _in_range(check, len(pieces.comma_items(text)), ended)
        case kinds.StartsWith():
            return pieces.starts_with(check.text, text)
        case kinds.EndsWith():
            return ended and pieces.ends_with(check.text, text)
        case kinds.Contains():
            whole = text if ended else _without_last_word(text)
            return all(pieces.occurrences(word, whole) >= check.count for word in check.words)
        case kinds.ContainsAny():
            whole = text if ended else _without_last_word(text)
            return any(pieces.occurrences(word, whole) for word in check.words)
        case kinds.Without():
            return not any(pieces.occurrences(word, text) for word in check.words)
        case kinds.LowerCase():
            return text.islower()
        case kinds.UpperCase():
            return text.isupper()
        case kinds.Json():
            return _is_object_with(check.keys, text)
        case kinds.OneOf():
            return ended and pieces.answer_of(text) in map(pieces.answer_of, check.options)
        case kinds.Answer():
            return ended and pieces.answer_of(text) in map(pieces.answer_of, check.accepted)
        case kinds.Language():
            return language_of(text) == check.language
    assert_never(check)


def _in_range(check: kinds.Count, count: int, ended: bool) -> bool:
    complete = count if ended else count - 1
    return (check.min is None or complete >= check.min) and (check.max is None or count <= check.max)


def _is_object_with(keys: Sequence[str], text: str) -> bool:
    try:
        value = parse_json(text)
    except ValueError:  # not JSON, which fails the check and is no error
        return False
    return isinstance(value, dict) and set(value) == set(keys)


def _without_last_word(text: str) -> str:
    return text.rpartition(text.split()[-1])[0]
