"""Names of models on the Hugging Face hub -> their directories in the cache of this machine.

Nothing is downloaded: the ranks of a job would do so all at once, and often have no network.
"""

import re
from pathlib import Path

from megatron_miniplm.errors import InputError

#: ORGANISATION/MODEL as the hub allows them.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate(model: Path, file_name: str) -> Path:
    """The directory of a model that is given as a directory or by its name on the hub.

    Args:
        model: what exists is a directory, whatever it is called.
        file_name: a file that the cached snapshot must have.

    Raises:
        InputError: there is no such directory, and the cache has no such model.
    """
    name = str(model)
    if model.exists() or not _HUB_NAME.fullmatch(name):
        return model
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file_name)
    except HFValidationError:
        return model
    if isinstance(found, str):
        return Path(found).parent
    raise InputError(
        f"{name} is neither a directory nor a model in the cache of the Hugging Face hub: give a directory, or "
        f"download the model first: hf download {name}"
    )
