"""Responses that break off: a judge must not pay for text whose end is missing."""

import random
import re
from collections.abc import Sequence

from align.core.rows import Judgement
from align.core.split import digest
from align.data.off_topic import GOOD_SCORE, by_question

CUT_OFF_SCORE = 1  # on the additive scale: relevant, and nothing more
CUT_OFF = "Breaks off before it is finished."
MIN_WORDS = 8  # a shorter response has no beginning that is clearly cut off
KEPT = (0.3, 0.8)  # share of the words


def cut_off_rows(rows: Sequence[Judgement], per_question: int, seed: int) -> list[Judgement]:
    """Return new rows with score 1 for each question: the beginnings of its best responses, cut after a random word.

    Only responses with a score of at least 4 and at least 8 words are cut, each once, so a question may get fewer rows.
    The place depends on the seed and the response alone.
    """
    made: list[Judgement] = []
    for own in by_question(rows).values():
        good = [row for row in own if row.score >= GOOD_SCORE and len(row.response.split()) >= MIN_WORDS]
        good.sort(key=lambda row: (-row.score, digest(seed, row.response)))
        for row in good[:per_question]:
            new = {"response": beginning(row.response, seed), "score": CUT_OFF_SCORE, "justification": CUT_OFF}
            made.append(row.model_copy(update=new | {"rank": None}))
    return made


def beginning(text: str, seed: int) -> str:
    """Return `text` up to a random word, without the punctuation after it."""
    ends = [match.end() for match in re.finditer(r"\S+", text.strip())]
    share = random.Random(digest(seed, text)).uniform(*KEPT)
    return text.strip()[: ends[max(1, round(share * len(ends))) - 1]].rstrip(".!?,;:")
