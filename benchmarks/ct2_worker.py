"""CTranslate2's part of benchmarks/inference.py, in an environment that has it: request on stdin, seconds on stdout."""

import json
import sys
import time

import ctranslate2

request = json.load(sys.stdin)
generator = ctranslate2.Generator(
    request["model"], device="cpu", compute_type="float32", inter_threads=1, intra_threads=request["threads"]
)
with open(f"{request['model']}/vocabulary.json", encoding="utf-8") as stream:
    vocabulary = json.load(stream)
prompts = [[vocabulary[token] for token in prompt] for prompt in request["prompts"]]
for _ in range(2):  # the first warms up
    begin = time.perf_counter()
    results = generator.generate_batch(
        prompts,
        max_length=request["max_new_tokens"],
        min_length=request["max_new_tokens"],
        sampling_temperature=request["temperature"],
        sampling_topk=0,
        sampling_topp=request["top_p"],
        include_prompt_in_result=False,
        max_batch_size=0,
    )
    seconds = time.perf_counter() - begin
assert all(len(result.sequences_ids[0]) == request["max_new_tokens"] for result in results)
json.dump({"seconds": seconds}, sys.stdout)
