"""What the Rust libraries behind tokenizers raise."""


def is_rust_error(error: BaseException) -> bool:
    """Whether a call into Rust failed: bare exceptions, and pyo3's panics, which do not derive from `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
