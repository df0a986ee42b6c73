"""What this machine is, in the words of the model cards."""

from importlib import import_module
from typing import Any

from align.core.errors import InputError
from align.core.params import Params


def environment_here() -> dict[str, Any]:
    """Return what a stage that ran now would record: versions, device, threads.

    Raises:
        InputError: a library is missing or broken, or params.yaml asks for a device that is not here.
    """
    params = Params.read()
    try:
        # Torch takes two seconds to import, and a broken one is what `align doctor` is asked about.
        runtime = params.section("runtime", import_module("align.run.runtime").RuntimeSettings)
        found: dict[str, Any] = import_module("align.run.provenance").environment(runtime)
    except InputError:
        raise
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the libraries do not load ({reason}); run `pip install -r requirements.txt`") from None
    return found
