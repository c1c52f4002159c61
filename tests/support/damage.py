"""What hypothesis does to files: bytes changed where it hurts, JSON changed by its structure, and no files at all."""

import copy
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

#: What may stand anywhere in a JSON file, beyond what JSON allows: NaN, large numbers, lone surrogates.
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)

#: Numbers at which something overflows, changes its sign or takes too much.
EDGES = (0, 1, 2, 127, 128, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**62, 2**63 - 1)
NUMBERS = st.sampled_from([*EDGES, *(-edge for edge in EDGES), -(2**63), 2**63, 2**64 - 1, 2**64, 10**30])
ODD_VALUES = (
    NUMBERS
    | st.sampled_from([0.5, -0.5, 1e308, -1e308, 5e-324, True, False, None, "", "0", "..", "/dev/zero", "\0", [], {}])
    | JSON_VALUES
).map(copy.deepcopy)  # what is drawn is changed
#: Text that Python's writer would not write. It stands for a value.
_RAW_JSON = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-0", "1E400", "9" * 5000, '"\\ud800"', '"\\u0000"', '"\x00"'),
    *("[" * 1000 + "]" * 1000, "[" * 65 + "]" * 65, '{"a":' * 300 + "1" + "}" * 300, "[" * 100_000),
    *('{"a": 1, "a": 2}', '{"": {"": 1}, "": 2}', "", "\ufeff1", "'a'", "01", "1.", "tru", "\\", '"'),
)
_MARK = "\ue000raw{}\ue000"


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes, *, max_changes: int = 4) -> bytes:
    """Some bytes with one to four changes: bits, words, blocks moved, copied, inserted or cut off."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, max_changes))):
        place = draw(st.integers(0, len(changed)))
        match draw(st.sampled_from(("byte", "bit", "word", "word", "insert", "delete", "copy", "cut", "zeros", "end"))):
            case "byte":
                changed[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case "bit" if place < len(changed):
                changed[place] ^= 1 << draw(st.integers(0, 7))
            case "word":
                kind = draw(st.sampled_from(["<b", "<h", "<i", "<q", ">i", ">q"]))
                size = struct.calcsize(kind)
                number = draw(NUMBERS) & ((1 << 8 * size) - 1)
                order = "little" if kind[0] == "<" else "big"
                place -= place % size if draw(st.booleans()) else 0
                changed[place : place + size] = number.to_bytes(size, order)
            case "insert":
                changed[place:place] = draw(st.binary(max_size=8))
            case "delete":
                del changed[place : place + draw(st.integers(1, 16))]
            case "copy":
                source, size = draw(st.integers(0, len(changed))), draw(st.integers(1, 64))
                stop = place + (size if draw(st.booleans()) else 0)
                changed[place:stop] = changed[source : source + size]
            case "cut":
                del changed[place:]
            case "zeros":
                changed[place : place + 8] = bytes(8)
            case "end":
                changed += draw(st.binary(max_size=16))
            case _:
                pass
    return bytes(changed)


@st.composite
def damaged_json(draw: st.DrawFn, value: Any, *, max_changes: int = 3) -> bytes:
    """A JSON text with one to three changes to its tree, or to its bytes."""
    holder = [copy.deepcopy(value)]
    raw: list[str] = []
    for _ in range(draw(st.integers(1, max_changes))):
        container, key = draw(st.sampled_from(_places(holder)))
        match draw(st.sampled_from(("replace", "replace", "replace", "near", "remove", "raw", "add", "move", "wrap"))):
            case "replace":
                container[key] = draw(ODD_VALUES)
            case "near" if isinstance(container[key], int | float):
                container[key] = draw(st.sampled_from([container[key] + 1, container[key] - 1, -container[key], 0]))
            case "near" if isinstance(container[key], str):
                container[key] = draw(
                    st.sampled_from([container[key] + "x", container[key][1:], (container[key] * 50)[:5000]])
                )
            case "remove" if container is not holder:
                del container[key]
            case "raw":
                container[key] = _MARK.format(len(raw))
                raw.append(draw(st.sampled_from(_RAW_JSON)))
            case "add" if isinstance(container[key], dict):
                container[key][draw(st.text(max_size=4))] = draw(ODD_VALUES)
            case "add" if isinstance(container[key], list):
                container[key] += draw(st.lists(ODD_VALUES, max_size=2))
            case "move":
                other, place = draw(st.sampled_from(_places(holder)))
                container[key] = copy.deepcopy(other[place])
            case "wrap":
                container[key] = draw(st.sampled_from([[container[key]], {"a": container[key]}, str(container[key])]))
            case _:
                pass
    text = json.dumps(holder[0], ensure_ascii=False)
    for index, part in enumerate(raw):
        text = text.replace(f'"{_MARK.format(index)}"', part)
    content = text.encode("utf-8", "surrogatepass")
    return draw(damaged_bytes(content, max_changes=2)) if draw(st.integers(0, 9)) == 9 else content


def _places(holder: list[Any]) -> list[tuple[Any, Any]]:
    """Every value of a tree, as the container that holds it and the key."""
    places, pending = [], [(holder, 0)]
    while pending:
        container, key = pending.pop()
        places.append((container, key))
        if isinstance(value := container[key], dict):
            pending += [(value, inner) for inner in value]
        elif isinstance(value, list):
            pending += [(value, inner) for inner in range(min(len(value), 50))]
    return places


@st.composite
def damaged_indices(draw: st.DrawFn, content: bytes) -> bytes:
    """An index with numbers of its header or of its arrays changed, with or without the size that they ask for."""
    changed, num_sequences = bytearray(content), struct.unpack_from("<Q", content, 18)[0]
    pointers = 34 + 4 * num_sequences
    numbers = [(0, 8), (9, 8), (17, 1), (18, 8), (26, 8)]  # of the header; then lengths; then pointers and boundaries
    numbers += [(place, 4) for place in range(34, pointers, 4)] + [
        (place, 8) for place in range(pointers, len(content), 8)
    ]
    for _ in range(draw(st.integers(1, 3))):
        place, size = draw(st.sampled_from(numbers))
        changed[place : place + size] = (draw(NUMBERS) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    if draw(st.booleans()):
        num_sequences, num_boundaries = struct.unpack_from("<QQ", changed, 18)
        size_bytes = 34 + 12 * num_sequences + 8 * num_boundaries
        changed = (changed + bytes(4096))[:size_bytes]
    return bytes(changed)


#: What may lie where a file is expected.
NO_FILES = ("missing", "fifo", "directory", "loop", "dangling", "device", "unreadable name", "sparse")


def put_no_file(path: Path, kind: str) -> None:
    """Put something other than the expected file under a path."""
    remove(path)
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "loop":
            path.symlink_to(path.name)
        case "dangling":
            path.symlink_to("nowhere")
        case "device":
            path.symlink_to("/dev/zero")
        case "unreadable name":
            path.symlink_to("x" * 255)
        case "sparse":
            with path.open("wb") as stream:
                stream.truncate(1 << 32)


def put(path: Path, content: bytes) -> None:
    """Write a file, whatever lay there."""
    remove(path)
    path.write_bytes(content)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def truncate(path: Path) -> None:
    """Cut off the last three bytes."""
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path, position: int) -> None:
    """Flip the lowest bit of one byte."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
