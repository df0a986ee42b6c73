"""The padded block that PPO trains on."""

import torch

from align.ppo.rollout import Batch

CPU = torch.device("cpu")
PAD = 0
BATCH = Batch.collate([[5], [6, 7, 8]], [[11, 12, 13, 2], [14, 2]], PAD, CPU)


def test_prompts_end_and_responses_start_at_the_same_column() -> None:
    assert BATCH.input_ids.tolist() == [[PAD, PAD, 5, 11, 12, 13, 2], [6, 7, 8, 14, 2, PAD, PAD]]
    assert BATCH.responses.tolist() == [[11, 12, 13, 2], [14, 2, PAD, PAD]]


def test_the_masks_hold_real_tokens_and_the_eos_is_one() -> None:
    assert BATCH.attention_mask.tolist() == [[False, False, *[True] * 5], [*[True] * 5, False, False]]
    assert BATCH.response_mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert BATCH.response_mask.dtype == BATCH.attention_mask.dtype == torch.bool


def test_a_real_token_with_the_id_of_the_pad_stays_unmasked() -> None:
    batch = Batch.collate([[PAD, 5], [6]], [[PAD, 7], [8]], PAD, CPU)
    assert batch.attention_mask.tolist() == [[True] * 4, [False, True, True, False]]
    assert batch.response_mask.tolist() == [[True, True], [True, False]]


def test_padding_does_not_move_the_position_of_a_token() -> None:
    alone = [
        Batch.collate([prompt], [response], PAD, CPU)
        for prompt, response in (([5], [11, 12, 13, 2]), ([6, 7, 8], [14, 2]))
    ]
    for row, batch in enumerate(alone):
        assert BATCH.position_ids[row][BATCH.attention_mask[row]].tolist() == batch.position_ids[0].tolist()
        assert batch.position_ids[0].tolist() == list(range(batch.input_ids.shape[1]))


def test_rows_takes_the_same_rows_of_every_tensor() -> None:
    part = BATCH.rows(torch.tensor([1, 0]))
    assert part.input_ids.tolist() == BATCH.input_ids.flip(0).tolist()
    assert part.attention_mask.tolist() == BATCH.attention_mask.flip(0).tolist()
    assert part.response_mask.tolist() == BATCH.response_mask.flip(0).tolist()


def test_rows_drops_the_columns_that_are_padding_in_all_of_them_at_both_ends() -> None:
    long, short = BATCH.rows(torch.tensor([0])), BATCH.rows(torch.tensor([1]))
    assert long.input_ids.tolist() == [[5, 11, 12, 13, 2]]
    assert short.input_ids.tolist() == [[6, 7, 8, 14, 2]]
    assert long.attention_mask.tolist() == short.attention_mask.tolist() == [[True] * 5]
    assert long.responses.tolist() == [[11, 12, 13, 2]]
    assert short.responses.tolist() == [[14, 2]]
    assert long.response_mask.tolist() == [[True] * 4]
    assert short.response_mask.tolist() == [[True] * 2]
