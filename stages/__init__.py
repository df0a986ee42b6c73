"""The pipeline: one module a stage, run as `python -m stages.<name>`."""

import gc
import logging

# peft imports bitsandbytes, which warns at import that an optional CPU kernel is not installed: no news to anyone.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# Torch and transformers make a million objects at import, and none of them is garbage: a collection among them costs a
# second and frees nothing. `stages.lib.runtime.start` restores the default.
gc.set_threshold(1_000_000)
