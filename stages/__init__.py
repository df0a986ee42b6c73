"""The pipeline: one module per stage, run as `python -m stages.<name>`."""

import gc
import logging
import os

# bitsandbytes, which peft imports, warns of a missing CPU kernel, and calls `torch.compile`, which takes over a second.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # no stage compiles anything, nor does what it uses of bitsandbytes

# Torch and transformers create a million objects at import; `align.run.runtime.start` restores the default.
gc.set_threshold(1_000_000)
