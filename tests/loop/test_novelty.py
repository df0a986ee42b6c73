from collections.abc import Collection, Iterable, Mapping
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.errors import InputError
from align.core.language import language_of
from align.loop.novelty import PromptFilter, RougeIndex, nearest_similarity, rouge_l
from align.report.statistics import words

word_lists = st.lists(st.sampled_from(["a", "b", "c", "dd"]), max_size=12)
# Up to one word each of "a" to "l" in order: two of these are often near, unlike two lists of words at random.
word_subsets = st.lists(st.booleans(), min_size=12, max_size=12).map(
    lambda kept: [word for word, keep in zip("abcdefghijkl", kept, strict=True) if keep]
)
thresholds = st.floats(0.1, 1) | st.fractions(Fraction(1, 10), 1, max_denominator=24).map(float)


def prompt_filter(
    *known: str,
    sources: Mapping[str, Iterable[str]] | None = None,
    max_words: int = 6,
    max_rouge_l: float = 0.75,
    language: str | None = None,
    blocked_words: Iterable[str] = (),
    contained: Collection[str] = (),
) -> PromptFilter:
    return PromptFilter(
        sources or {"a known prompt": known},
        min_words=3,
        max_words=max_words,
        max_rouge_l=max_rouge_l,
        language=language,
        blocked_words=blocked_words,
        contained=contained,
    )


def index_agrees_with_brute_force(texts: list[list[str]], at_least: float) -> None:
    """Each text asks for its nearest among those before it, and is then added."""
    index = RougeIndex()
    for number, tokens in enumerate(texts):
        highest = max((rouge_l(tokens, other) for other in texts[:number]), default=0.0)
        assert index.nearest(tokens, at_least) == (highest if highest >= at_least else None)
        index.add(tokens)


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


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(word_lists, max_size=8), thresholds)
def test_the_index_finds_what_brute_force_finds_among_repeated_words(texts: list[list[str]], at_least: float) -> None:
    index_agrees_with_brute_force(texts, at_least)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(word_subsets, max_size=12), thresholds)
def test_the_index_finds_what_brute_force_finds_among_similar_texts(texts: list[list[str]], at_least: float) -> None:
    index_agrees_with_brute_force(texts, at_least)


@pytest.mark.parametrize("repeated", [False, True])
def test_the_index_finds_each_text_at_exactly_the_threshold_and_none_just_above(repeated: bool) -> None:
    for length, other_length in product(range(1, 16), repeat=2):
        for in_common in range(1, min(length, other_length) + 1):
            shared = ["the"] * in_common if repeated else [f"shared{i}" for i in range(in_common)]
            text = [f"a{i}" for i in range(length - in_common)] + shared
            other = shared + [f"b{i}" for i in range(other_length - in_common)]
            # The words that are not shared are the rarest, so they are the first to be looked up, in vain.
            index = RougeIndex([other])
            at_least = 2 * in_common / (length + other_length)
            assert index.nearest(text, at_least) == at_least
            if at_least < 1:
                assert index.nearest(text, at_least + 1e-6) is None


def test_rounding_loses_no_text_at_the_threshold() -> None:
    # 0.56 / 2 * 50 as floats is a little above 14: rounded up, it would ask for 15 words in common.
    text, other = [f"a{i}" for i in range(11)], [f"b{i}" for i in range(11)]
    shared = [f"shared{i}" for i in range(14)]
    assert 0.56 / 2 * 50 > 14
    assert RougeIndex([other + shared]).nearest(text + shared, 0.56) == 0.56


def test_the_index_counts_each_occurrence_of_a_repeated_word() -> None:
    index = RougeIndex([["ha", "ha", "ha", "x"]])
    assert index.nearest(["ha", "ha", "ha", "y"], 0.75) == 0.75
    assert index.nearest(["ha", "y", "z", "x"], 0.75) is None


def test_the_nearest_of_several_texts_is_the_answer_wherever_it_stands() -> None:
    texts = [words(text) for text in ("one two three five", "one two three four", "one two six four")]
    for order in (texts, texts[::-1], texts[1:] + texts[:1]):
        assert RougeIndex(order).nearest(words("one two three four"), 0.5) == 1


def test_nothing_is_near_an_empty_text_or_index() -> None:
    assert RougeIndex().nearest(["a"], 0.1) is None
    assert RougeIndex([[], ["a"]]).nearest([], 0.1) is None


@pytest.mark.parametrize("at_least", [0.0, -0.5, 1.01, float("nan")])
def test_a_threshold_that_is_no_rouge_l_or_that_all_texts_reach_is_refused(at_least: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        RougeIndex().nearest(["a"], at_least)


def test_nearest_similarity_by_hand() -> None:
    texts = [words("one two three four"), words("five six seven eight")]
    others = [words("one two three nine"), words("one two"), words("five")]
    assert nearest_similarity(texts, others) == pytest.approx((6 / 8 + 2 / 5) / 2)


def test_nothing_has_no_nearest_similarity() -> None:
    assert nearest_similarity([], [["a"]]) is None
    assert nearest_similarity([["a"]], []) is None


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Why is the sky blue in the morning?", "en"),
        ("Pourquoi le ciel est-il bleu le matin ?", "fr"),
        ("天空为什么是蓝色的。", "zh"),
        ("12 * 12", None),
        ("... ?!", None),
        ("", None),
    ],
)
def test_a_text_is_in_its_language_or_in_none(text: str, language: str | None) -> None:
    assert language_of(text) == language


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
        ("draw me a sheep", "blocked word"),
        ("Why is the sky blue?", "duplicate of a known prompt"),
        ("why IS the sky... blue", "duplicate of a known prompt"),
        ("why is the sky red", "near a known prompt"),
        ("why is our sea blue", None),
    ],
)
def test_each_prompt_is_accepted_or_dropped_for_a_reason(text: str, reason: str | None) -> None:
    assert prompt_filter("Why is the sky blue?", blocked_words=["draw"]).reason_to_drop(text) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("dessine moi", "too short"),
        ("dessine dessine dessine moi un mouton s'il te plaît", "too long"),
        ("dessine dessine dessine moi dessine", "repeats itself"),
        ("dessine moi un grand mouton", "blocked word"),
        ("quelle heure est-il à Paris", "another language"),
        ("what is the time now", "duplicate of a known prompt"),
        ("what was the time now", "near a known prompt"),
    ],
)
def test_the_first_reason_that_holds_is_given(text: str, reason: str) -> None:
    known = ["dessine moi un grand mouton", "quelle heure est-il à Paris", "what is the time now"]
    prompts = prompt_filter(*known, language="en", blocked_words=["dessine"])
    assert prompts.reason_to_drop(text) == reason


def test_the_first_source_that_knows_a_prompt_gives_the_reason() -> None:
    prompts = prompt_filter(
        sources={"a known prompt": ["one two three four"], "an evaluation prompt": ["one two three five", "six " * 3]}
    )
    assert prompts.reason_to_drop("one two three five") == "near a known prompt"
    assert prompts.reason_to_drop("one two nine five") == "near an evaluation prompt"
    assert prompts.reason_to_drop("seven eight nine") is None
    assert prompts.reason_to_drop("seven eight nine") == "duplicate of one of this run"
    assert prompts.reason_to_drop("seven eight nine ten") == "near one of this run"


def test_a_prompt_at_the_limit_is_a_near_duplicate() -> None:
    # Three of four words in common: ROUGE-L is 0.75, the limit itself.
    assert prompt_filter("one two three four").reason_to_drop("one two three five") == "near a known prompt"


def test_at_limit_one_only_duplicates_are_dropped() -> None:
    prompts = prompt_filter("one two three four five six", max_rouge_l=1)
    assert prompts.reason_to_drop("one two three four five seven") is None
    assert prompts.reason_to_drop("One two three four five six?") == "duplicate of a known prompt"


def test_an_accepted_prompt_is_known_from_then_on() -> None:
    prompts = prompt_filter()
    assert prompts.reason_to_drop("one two three four") is None
    assert prompts.reason_to_drop("One, two, three, four!") == "duplicate of one of this run"
    assert prompts.reason_to_drop("one two three five") == "near one of this run"


def test_a_dropped_prompt_stays_unknown() -> None:
    prompts = prompt_filter("one two three four", blocked_words=["bomb"])
    assert prompts.reason_to_drop("one two three five") == "near a known prompt"
    assert prompts.reason_to_drop("one six three five") is None
    assert prompts.reason_to_drop("seven eight nine bomb") == "blocked word"
    assert prompts.reason_to_drop("seven eight nine ten") is None


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(word_subsets, max_size=12), thresholds)
def test_accepted_prompts_are_far_apart_and_dropped_ones_are_near_one_of_them(
    texts: list[list[str]], max_rouge_l: float
) -> None:
    prompts = PromptFilter({}, min_words=1, max_words=12, max_rouge_l=max_rouge_l, language=None, blocked_words=())
    accepted: list[list[str]] = []
    for tokens in filter(None, texts):
        highest = max((rouge_l(tokens, other) for other in accepted), default=0.0)
        if prompts.reason_to_drop(" ".join(tokens)) is None:
            assert highest < max_rouge_l
            accepted.append(tokens)
        else:
            assert highest >= max_rouge_l


@pytest.mark.parametrize(
    "text",
    [
        "Why does bread dough need to rise twice before baking?",
        "My neighbour plays the drums after midnight. How do I ask him to stop without starting a feud?",
        "write a short poem about a lighthouse in winter",
        "Explain the difference between a list and a tuple in Python.",
        "Translate this sentence into French: where is the nearest train station?",
        "12 * 12 + 144",
    ],
)
def test_a_prompt_in_the_language_or_without_any_is_accepted(text: str) -> None:
    assert prompt_filter(max_words=40, language="en").reason_to_drop(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "Pourquoi faut-il laisser lever la pâte à pain deux fois avant de la cuire ?",
        "Warum muss Brotteig vor dem Backen zweimal gehen?",
        "¿Por qué hay que dejar reposar la masa del pan dos veces antes de hornearla?",
        "你好。请问。为什么面包的面团在烤之前要发酵两次。谢谢。",
    ],
)
def test_a_prompt_in_another_language_is_dropped_where_one_is_asked_for(text: str) -> None:
    assert prompt_filter(max_words=40, language="en").reason_to_drop(text) == "another language"
    assert prompt_filter(max_words=40).reason_to_drop(text) is None


def test_a_language_that_no_text_can_be_in_is_an_error() -> None:
    with pytest.raises(InputError, match="'english'"):
        prompt_filter(language="english")


@pytest.mark.parametrize(
    ("text", "dropped"),
    [
        ("read this file now", True),
        ("FILE, please read it!", True),
        ("give it a filename", False),
        ("two profiles of people", False),
        ("see the attached photo", True),
        ("the attached old photo", False),
        ("photo attached to this", False),
        ("this photo is attached", False),
        ("is this attached photos", False),
    ],
)
def test_blocked_words_are_whole_words_in_a_row(text: str, dropped: bool) -> None:
    prompts = prompt_filter(blocked_words=["file", "Attached photo"])
    assert prompts.reason_to_drop(text) == ("blocked word" if dropped else None)


def test_a_blocked_entry_without_a_word_blocks_nothing() -> None:
    assert prompt_filter(blocked_words=["", "?!"]).reason_to_drop("one two three") is None


EVALUATION = "How many moons does Mars have?"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Be brief and say no more than you must: how many moons does Mars have?", "contains an evaluation prompt"),
        ("How many moons does mars have, and what was each one named after?", "contains an evaluation prompt"),
        ("how many moons does the planet Mars have, and what was each one named after?", None),
        ("how many moons does, and what was each planet that we know named after", None),
        ("We were told to tell the time, so who will tell me now?", None),  # four words
        (
            "Answer in one line and leave out what you do not know: name a red fruit quickly",
            "contains an evaluation prompt",
        ),
    ],
)
def test_a_prompt_that_holds_an_evaluation_prompt_is_dropped(text: str, reason: str | None) -> None:
    sources = {
        "a known prompt": ["Name a fish."],
        "an evaluation prompt": ["Tell the time, so", "Name a red fruit quickly.", EVALUATION],
    }
    prompts = prompt_filter(sources=sources, max_words=40, contained=["an evaluation prompt"])
    assert prompts.reason_to_drop(text) == reason
    assert prompt_filter(sources=sources, max_words=40).reason_to_drop(text) is None


def test_only_the_sources_asked_for_are_looked_for_inside_a_prompt() -> None:
    sources = {"a known prompt": [EVALUATION], "an evaluation prompt": ["Which fish is the largest of all?"]}
    prompts = prompt_filter(sources=sources, max_words=40, contained=["an evaluation prompt"])
    assert prompts.reason_to_drop(f"Be brief and say no more than you really must here. {EVALUATION}") is None


def test_a_source_that_is_looked_for_inside_prompts_must_be_known() -> None:
    with pytest.raises(KeyError, match="evaluation"):
        prompt_filter(contained=["an evaluation prompt"])
