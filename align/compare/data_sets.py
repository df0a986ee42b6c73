"""The data sets that belong to a model."""

# Name -> (file, with {} for the model; key columns).
ARTIFACTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "prompts": ("data/{}/prompts.jsonl", ("id",)),
    "responses": ("data/{}/responses.jsonl", ("id", "sample")),
    "scores": ("data/{}/scores.jsonl", ("id", "sample")),
    "preferences": ("data/{}/preferences.jsonl", ("id",)),
    "ift": ("data/{}/ift.jsonl", ("id",)),
    "answers": ("data/eval/{}.jsonl", ("id", "turn")),
}
