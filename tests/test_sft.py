"""What SFT learns from: instruction rows."""

from pathlib import Path

from stages.lib.models import load_tokenizer
from stages.sft import encode_row


def test_a_row_is_learned_from_the_reply_to_its_eos(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    row = encode_row(tokenizer, "Name a fruit.", "A pear.")
    learned = [i for i, m in zip(row["input_ids"], row["completion_mask"], strict=True) if m]
    assert tokenizer.decode(learned[:-1]) == "A pear."
    assert learned[-1] == tokenizer.eos_token_id
    assert row["length"] == len(row["input_ids"]) == len(row["completion_mask"])
