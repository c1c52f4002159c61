"""JSON that somebody else may have written or damaged: every way in which it can be wrong is one kind of error."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from megatron_miniplm.artifacts.regular_files import open_regular
from megatron_miniplm.errors import CorruptArtifactError, MiniPLMError

#: Parsed JSON takes up to some twenty times its size in memory.
MAX_BYTES = 64 << 20
MAX_DEPTH = 64
#: The largest integer that NumPy holds, in an unsigned array.
MAX_INTEGER = (1 << 64) - 1
_MAKE_AGAIN = "make it again"
_NAMES = {dict: "an object", list: "an array", str: "a string", int: "an integer", float: "a number", bool: "a boolean"}


def read_json(
    path: Path, *, what: str, expected: type = dict, max_bytes: int = MAX_BYTES, remedy: str = _MAKE_AGAIN
) -> Any:
    """Read one JSON file.

    Args:
        what: the file holds, for the error: `manifest`.
        expected: type of the outermost value.
        remedy: for the error: what to do about a damaged file.

    Raises:
        CorruptArtifactError: for anything wrong, a missing file included; see `parse_json`.
    """
    try:
        with open_regular(path) as stream:
            if stream.seek(0, 2) > max_bytes:
                raise CorruptArtifactError(
                    f"{path} is larger than {max_bytes:,} bytes, too large for a {what}: {remedy}"
                )
            stream.seek(0)
            data = stream.read(max_bytes)
    except CorruptArtifactError:
        raise
    except (OSError, MiniPLMError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        if isinstance(error, PermissionError):
            remedy = "ask its owner for permission to read it"
        raise CorruptArtifactError(f"{path} cannot be read as the {what} ({reason}): {remedy}") from None
    return parse_json(data, where=path, what=what, expected=expected, remedy=remedy)


def parse_json(data: bytes, *, where: object, what: str, expected: type = dict, remedy: str = _MAKE_AGAIN) -> Any:
    """Parse JSON in UTF-8.

    Beside what is no JSON at all, these are refused: NaN and infinities, keys that occur twice in an object, integers
    beyond 64 bits, lone surrogates, and nesting deeper than `MAX_DEPTH`. Each of them passes `json.loads` and then
    fails, or is silently changed, somewhere else.

    Args:
        where: the data comes from, for the error.

    Raises:
        CorruptArtifactError: anything of the above, or the outermost value is not `expected`.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object_of,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
        _check_values(value)
    except (ValueError, RecursionError) as error:  # the decoders' errors are ValueErrors
        raise CorruptArtifactError(f"{where} is not a valid {what} ({_reason(error)}): {remedy}") from None
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise CorruptArtifactError(
            f"{where} is not a valid {what} (it holds {_name(type(value))}, expected {_name(expected)}): {remedy}"
        )
    return value


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:80]!r} occurs twice in an object")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def _integer(digits: str) -> int:
    # Compare lengths first: converting thousands of digits is slow, and refused by Python beyond 4,300.
    if len(digits) > 21 or abs(value := int(digits)) > MAX_INTEGER:
        raise ValueError(f"the integer {digits[:40]}{'...' if len(digits) > 40 else ''} does not fit into 64 bits")
    return value


def _check_values(value: Any) -> None:
    """Raise ValueError where values nest too deep or a string cannot be encoded; level by level, no recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str) and not item.isascii():
                item.encode("utf-8")
        if not inner:
            return
        level = inner
    raise ValueError(f"values nest more than {MAX_DEPTH} deep")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "values nest too deep"
    if isinstance(error, UnicodeEncodeError):
        return "a string holds half of a surrogate pair"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return str(error)


def _name(kind: type) -> str:
    return _NAMES.get(kind, "null" if kind is type(None) else kind.__name__)
