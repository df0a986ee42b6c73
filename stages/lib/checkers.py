"""Judges for tasks with a right answer, for `judge.mode: checker`: (prompt, response) -> 0 to 5, None if not theirs."""

import re

_SUM = re.compile(r"(\d{1,9})\s*\+\s*(\d{1,9})")
_NUMBER = re.compile(r"(?<![\d.])-?\d+(?:,\d{3})*(?:\.\d+)?")


def sums(prompt: str, response: str) -> float | None:
    """Return 5 if the last number in the response is the sum that the prompt asks for, else 0.

    A prompt that does not hold exactly one sum of two whole numbers is not this checker's: None.
    """
    found = _SUM.findall(prompt)
    if len(found) != 1 or len(_NUMBER.findall(prompt)) != 2:
        return None
    numbers = _NUMBER.findall(response)
    right = int(found[0][0]) + int(found[0][1])
    return 5.0 if numbers and float(numbers[-1].replace(",", "")) == right else 0.0
