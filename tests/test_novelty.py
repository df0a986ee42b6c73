import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.lib.novelty import NoveltyFilter, rouge_l, words

word_lists = st.lists(st.sampled_from(["a", "b", "c", "dd"]), max_size=12)


def novelty_filter(*known: str) -> NoveltyFilter:
    return NoveltyFilter(known, min_words=3, max_words=6, max_rouge_l=0.75)


def longest_common_subsequence(a: list[str], b: list[str]) -> int:
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + longest_common_subsequence(a[:-1], b[:-1])
    return max(longest_common_subsequence(a[:-1], b), longest_common_subsequence(a, b[:-1]))


def test_words_are_lower_case_and_without_punctuation() -> None:
    assert words("Why's the SKY blue? (42 nm)") == ["why", "s", "the", "sky", "blue", "42", "nm"]


def test_rouge_l_by_hand() -> None:
    # In common and in order: the cat on mat = 4 words of 6 and 6.
    assert rouge_l(words("the cat sat on the mat"), words("the cat lay on a mat")) == pytest.approx(8 / 12)


def test_rouge_l_counts_words_in_order_only() -> None:
    assert rouge_l(["a", "b", "c"], ["c", "b", "a"]) == pytest.approx(1 / 3)


def test_rouge_l_is_a_balance_of_both_lengths() -> None:
    assert rouge_l(["a"], ["a", "b", "c"]) == pytest.approx(2 / 4)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(word_lists, word_lists)
def test_rouge_l_is_symmetric_between_zero_and_one(a: list[str], b: list[str]) -> None:
    assert rouge_l(a, b) == rouge_l(b, a)
    assert 0 <= rouge_l(a, b) <= 1
    assert (rouge_l(a, b) == 1) == (a == b and a != [])


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=6), st.lists(st.sampled_from("abc"), min_size=1, max_size=6)
)
def test_rouge_l_equals_its_definition(a: list[str], b: list[str]) -> None:
    assert rouge_l(a, b) == pytest.approx(2 * longest_common_subsequence(a, b) / (len(a) + len(b)))


def test_nothing_is_like_nothing() -> None:
    assert rouge_l([], []) == 0
    assert rouge_l([], ["a"]) == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("one two", "too short"),
        ("... ?!", "too short"),
        ("one two three", None),
        ("one two three four five six", None),
        ("one two three four five six seven", "too long"),
        ("go go go now", None),
        ("go go go", "repeats itself"),
        ("ha ha ha ha ho", "repeats itself"),
        ("Why is the sky blue?", "exact duplicate"),
        ("why IS the sky... blue", "exact duplicate"),
        ("why is the sky red", "near duplicate"),
        ("why is our sea blue", None),
    ],
)
def test_each_prompt_is_accepted_or_dropped_for_a_reason(text: str, reason: str | None) -> None:
    assert novelty_filter("Why is the sky blue?").reason_to_drop(text) == reason


def test_a_prompt_at_the_limit_is_a_near_duplicate() -> None:
    # Three of four words in common: ROUGE-L is 0.75, the limit itself.
    assert novelty_filter("one two three four").reason_to_drop("one two three five") == "near duplicate"


def test_an_accepted_prompt_is_known_from_then_on() -> None:
    prompts = novelty_filter()
    assert prompts.reason_to_drop("one two three four") is None
    assert prompts.reason_to_drop("One, two, three, four!") == "exact duplicate"
    assert prompts.reason_to_drop("one two three five") == "near duplicate"


def test_a_dropped_prompt_stays_unknown() -> None:
    prompts = novelty_filter("one two three four")
    assert prompts.reason_to_drop("one two three five") == "near duplicate"
    assert prompts.reason_to_drop("one six three five") is None
