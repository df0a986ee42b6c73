"""A vocabulary as that of the GPT of 2018, whose BPE marks the ends of words."""

from collections.abc import Iterable

from tokenizers import Tokenizer, models

UNKNOWN = "<unk>"
SUFFIX = "</w>"


def gpt_bpe(tokenizer: Tokenizer, texts: Iterable[str]) -> models.BPE:
    """Return a BPE that knows the words of `texts`, as `tokenizer` normalizes and splits them; the same every time.

    The library's trainer numbers the last letters of words by a hash of the process: a model trained on that learns
    something else in each run.
    """
    words = {
        word
        for text in texts
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
    }
    letters: set[str] = set()
    merges: dict[tuple[str, str], None] = {}
    for word in sorted(words):
        pieces = [*word[:-1], word[-1] + SUFFIX]
        letters.update(pieces)
        left = pieces[0]
        for right in pieces[1:]:
            merges[left, right] = None
            left += right
    vocab = dict.fromkeys([UNKNOWN, *sorted(letters), *(left + right for left, right in merges)])
    numbers = {piece: number for number, piece in enumerate(vocab)}
    return models.BPE(numbers, list(merges), unk_token=UNKNOWN, end_of_word_suffix=SUFFIX)
