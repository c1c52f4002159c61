import json
import os
import tracemalloc

import pytest
from damage import JSON_VALUES, damaged_json
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.artifacts.json_files import MAX_DEPTH, parse_json, read_json
from megatron_miniplm.errors import CorruptArtifactError

VALUE = {"a": [1, -2.5, None, True, "é \U0001f600 \\u0041"], "b": {"c": (1 << 64) - 1, "d": -(1 << 63)}}


def test_json_is_read(tmp_path):
    (tmp_path / "f.json").write_text(json.dumps(VALUE), encoding="utf-8")
    assert read_json(tmp_path / "f.json", what="file") == VALUE


def test_the_deepest_value(tmp_path):
    def nested(depth: int) -> bytes:
        return b"[" * depth + b"1" + b"]" * depth

    deepest = parse_json(nested(MAX_DEPTH), where="x", what="file", expected=list)
    assert deepest == json.loads(nested(MAX_DEPTH))
    with pytest.raises(CorruptArtifactError, match=f"nest more than {MAX_DEPTH} deep"):
        parse_json(nested(MAX_DEPTH + 1), where="x", what="file", expected=list)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b'{"a": NaN}', "NaN is not a number in JSON"),
        (b'{"a": -Infinity}', "-Infinity is not a number in JSON"),
        (b'{"a": 1e999}', "the number 1e999 is too large"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' occurs twice"),
        (b'{"a": %s}' % (b"9" * 5000), r"the integer 9{40}\.\.\. does not fit into 64 bits"),
        (b'{"a": 18446744073709551616}', "does not fit into 64 bits"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\udc00": 1}', "half of a surrogate pair"),
        (b"[" * 100_000, "values nest too deep"),
        (b"[]", "it holds an array, expected an object"),
        (b"null", "it holds null, expected an object"),
    ],
)
def test_what_is_wrong_is_said_with_the_name_of_the_file(tmp_path, data, reason):
    (tmp_path / "f.json").write_bytes(data)
    with pytest.raises(CorruptArtifactError, match=rf"f\.json is not a valid file \(.*{reason}.*\): make it again$"):
        read_json(tmp_path / "f.json", what="file")


def test_true_is_not_an_integer():
    with pytest.raises(CorruptArtifactError, match="it holds a boolean, expected an integer"):
        parse_json(b"true", where="x", what="file", expected=int)


def test_no_more_is_read_than_allowed(tmp_path):
    with (tmp_path / "f.json").open("wb") as stream:
        stream.truncate(1 << 40)
    tracemalloc.start()
    with pytest.raises(CorruptArtifactError, match="is larger than 64,000,000 bytes, too large for a file"):
        read_json(tmp_path / "f.json", what="file", max_bytes=64_000_000)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_what_cannot_be_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, reason in (("none", "No such file or directory"), ("fifo", "is a FIFO"), (".", "is a directory")):
        with pytest.raises(CorruptArtifactError, match=f"cannot be read as the file .*{reason}.*: make it again"):
            read_json(tmp_path / name, what="file")


@fuzz("manifest", 150)
@given(
    st.one_of(st.binary(max_size=60), JSON_VALUES.map(lambda value: json.dumps(value).encode()), damaged_json(VALUE))
)
def test_fuzz_manifest_json_is_a_value_that_can_be_written_again_or_one_error(data):
    try:
        value = parse_json(data, where="x", what="file", expected=object)
    except CorruptArtifactError:
        return
    again = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    assert parse_json(again, where="x", what="file", expected=object) == value
