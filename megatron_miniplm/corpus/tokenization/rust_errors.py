"""What the Rust libraries behind tokenizers raise."""

from collections.abc import Iterator
from contextlib import contextmanager

from megatron_miniplm.errors import InputError, one_line

_PANIC = "PanicException"  # pyo3's, which does not derive from `Exception`


def is_rust_error(error: BaseException) -> bool:
    """Whether a call into Rust failed: bare exceptions, and panics."""
    return isinstance(error, Exception) or type(error).__name__ == _PANIC


@contextmanager
def named_in_rust_errors(place: str) -> Iterator[None]:
    """Around code of ours that calls the tokenizers library: its errors and panics, and no others, name the files.

    Args:
        place: the files that were given.

    Raises:
        InputError: the library failed.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != _PANIC:
            raise
        raise InputError(
            f"{place}: the tokenizers library failed on a text ({one_line(error)}): check the merges and added tokens "
            "of tokenizer.json, or use another version of the library"
        ) from None
