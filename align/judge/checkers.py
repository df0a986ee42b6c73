"""Judges for tasks with a right answer (`judge.mode: checker`): (prompt, response) -> 0 to 5, None if not theirs."""

import re

_QUOTED = re.compile(r'"([a-z]+)"')
_SENTENCE = re.compile(r'[A-Z][^.!?"\n]*[.!?]')  # no quotes: the prompt's own list is not an answer
MAX_WORDS = 30


def sentence_with_words(prompt: str, response: str) -> float | None:
    """Score a sentence by 5 times the share that it has of the words that the prompt quotes.

    Anything but one sentence of at most 30 words scores 0. Prompts that do not ask for a sentence with at least two
    different words get None.
    """
    wanted = set(_QUOTED.findall(prompt))
    if "sentence" not in prompt.lower() or len(wanted) < 2:
        return None
    used = re.findall(r"[a-z]+", response.lower())
    if _SENTENCE.fullmatch(response.strip()) is None or len(used) > MAX_WORDS:
        return 0.0
    return 5 * len(wanted & set(used)) / len(wanted)
