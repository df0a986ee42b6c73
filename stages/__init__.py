"""The pipeline: one module a stage, run as `python -m stages.<name>`."""

import logging

# peft imports bitsandbytes, which warns at import that an optional CPU kernel is not installed: no news to anyone.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
