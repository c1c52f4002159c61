"""The validation set of the Story Cloze Test 2018 from its CSV file, which has to be asked for."""

import os
from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_dataset

from megatron_miniplm.errors import InputError

PLACE = "MINIPLM_STORYCLOZE_CSV"


def load(**metadata: Any) -> DatasetDict:
    """lm_eval's `custom_dataset`."""
    place = os.environ.get(PLACE)
    if not place:
        raise InputError(
            f"task storycloze_2018_csv: {PLACE} is not set: ask for the Story Cloze Test (winter 2018) at "
            "https://cs.rochester.edu/nlp/rocstories and let it name the CSV file of the validation set"
        )
    if not Path(place).is_file():
        raise InputError(f"task storycloze_2018_csv: {PLACE}={place} is not a file")
    return load_dataset("csv", data_files={"validation": place})
