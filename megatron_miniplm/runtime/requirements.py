"""Packages that only some programs need, and how to get one that is not installed.

Everything else is a dependency in pyproject.toml. Megatron and torch are not: installing this package must not replace
those that are there.
"""

import contextlib
from collections.abc import Iterator

from megatron_miniplm.errors import MissingPackageError

GET_MEGATRON = "pip install 'megatron-miniplm[megatron]', or put your Megatron-LM checkout on PYTHONPATH"
GET_TORCH = "pip install torch, or pip install 'megatron-miniplm[megatron]'"
#: pyarrow 25 and later need NumPy 2, which their metadata does not say: pip installs them beside a NumPy 1.26.
OLDER_PYARROW = "pip install 'pyarrow<25'"
_NEEDS_NUMPY_2 = "pyarrow requires NumPy"
#: Module -> package, and the command that installs it.
_OPTIONAL = {
    "megatron": ("megatron-core", GET_MEGATRON),
    "megatron.core": ("megatron-core", GET_MEGATRON),
    "torch": ("torch", GET_TORCH),
    "matplotlib": ("matplotlib", "pip install 'megatron-miniplm[plots]'"),
    "lm_eval": ("lm-evaluation-harness", "pip install 'megatron-miniplm[eval]'"),
    **{name: (name, f"pip install {name}") for name in ("omegaconf", "psutil", "tensorboard", "transformers")},
}


def how_to_get(module: str) -> str:
    """The command that installs a package."""
    return _OPTIONAL[module][1] if module in _OPTIONAL else f"pip install {module}"


def missing(module: str, what: str = "this program") -> MissingPackageError:
    """The error that says how to get `module`, which is one of those that only some programs need."""
    package, remedy = _OPTIONAL[module]
    return MissingPackageError(f"{what} needs {package}: {remedy}")


@contextlib.contextmanager
def missing_packages_are_user_errors(what: str = "this program") -> Iterator[None]:
    """Raise `MissingPackageError` where a package is not installed, or is one that needs another NumPy."""
    try:
        yield
    except ModuleNotFoundError as error:
        # A submodule that is missing in an installed package is a fault of ours, or a version that we do not know.
        if error.name not in _OPTIONAL:
            raise
        raise missing(error.name, what) from error
    except ImportError as error:
        if _NEEDS_NUMPY_2 not in str(error):
            raise
        raise MissingPackageError(f"{what} cannot be used: {error}: {OLDER_PYARROW}") from error
