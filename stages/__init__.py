"""The pipeline: one module per stage, run as `python -m stages.<name>`."""

import gc
import os

# bitsandbytes calls `torch.compile` at import, which takes over a second. No stage compiles anything, and nf4 and
# the paged optimizers never reach those functions.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

# Torch and transformers create a million objects at import, so garbage collection would cost a second and free nothing.
# `align.run.runtime.start` restores the default.
gc.set_threshold(1_000_000)
