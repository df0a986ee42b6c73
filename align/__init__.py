"""The library of the pipeline, by subject, and the `align` command."""

import logging

# peft imports bitsandbytes, which warns at import that an optional CPU kernel is not installed.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
