"""How long properties of hostile input are tried: a few seconds in the suite, as long as one likes on demand."""

import os
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st

from megatron_miniplm.errors import MiniPLMError

#: `MINIPLM_FUZZ_EXAMPLES=200000 pytest tests/artifacts -k fuzz` runs for minutes.
EXAMPLES_VARIABLE = "MINIPLM_FUZZ_EXAMPLES"


def fuzz(examples: int) -> settings:
    """Settings of one property: so many examples, unless the environment asks for more."""
    return settings(max_examples=int(os.environ.get(EXAMPLES_VARIABLE, examples)), deadline=None)


def refusal_of(action: Callable[[], object]) -> MiniPLMError | None:
    """The error meant for users with which an action ended, None if it did its work; anything else is raised."""
    try:
        action()
    except MiniPLMError as error:
        return error
    return None


#: What may stand anywhere in a JSON file, beyond what JSON allows: NaN, large numbers, lone surrogates.
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)
