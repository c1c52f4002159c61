import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.corpus.readers import check_inputs, read_batches
from megatron_miniplm.errors import InputError

#: Any text without surrogates.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def read(path: Path, *keys: str) -> list[str]:
    return [text for batch in read_batches([path], keys or ("text",)) for text in batch.texts[(keys or ("text",))[0]]]


@given(texts=st.lists(TEXTS), ascii_only=st.booleans(), batch_bytes=st.integers(1, 200))
def test_any_texts_come_back_in_order_for_any_batch_size(
    texts: list[str], ascii_only: bool, batch_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = [json.dumps({"text": text}, ensure_ascii=ascii_only).encode() for text in texts]
    path = write(tmp_path_factory.mktemp("jsonl") / "a.jsonl", *lines)
    batches = list(read_batches([path], ("text",), batch_bytes))
    assert [text for batch in batches for text in batch.texts["text"]] == texts
    assert sum(batch.text_bytes["text"] for batch in batches) == sum(len(text.encode()) for text in texts)
    assert sum(batch.input_bytes for batch in batches) == path.stat().st_size


def test_files_follow_one_another_and_keys_are_read_side_by_side(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", b'{"q": "1", "a": "one"}')
    second = write(tmp_path / "b.jsonl", b'{"q": "2", "a": "two", "other": null}')
    batches = list(read_batches([first, second], ("q", "a")))
    assert [batch.texts for batch in batches] == [{"q": ["1"], "a": ["one"]}, {"q": ["2"], "a": ["two"]}]


def test_batches_are_bounded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *[b'{"text": "0123456789"}'] * 100)
    sizes = [batch.input_bytes for batch in read_batches([path], ("text",), batch_bytes=50)]
    assert max(sizes) < 50 + 23  # never more than one line over


def test_one_line_of_ten_megabytes_is_one_document(tmp_path: Path) -> None:
    text = "x" * 10_000_000
    assert read(write(tmp_path / "a.jsonl", json.dumps({"text": text}).encode())) == [text]


def test_blank_lines_windows_line_ends_and_a_missing_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\r\n{"text": "a"}\r\n  \n\n{"text": "b"}')
    assert read(path) == ["a", "b"]


def test_an_empty_file_has_no_documents(tmp_path: Path) -> None:
    assert list(read_batches([write(tmp_path / "a.jsonl")], ("text",))) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a', "expected one JSON object a line, but it is not JSON"),
        (b"[" * 100_000, "expected one JSON object a line, but it is not JSON"),
        (b'["a"]', "expected a JSON object, found a list: put the text under a key"),
        (b"null", "expected a JSON object, found null"),
        (b'{"body": "a", "id": 1}', "expected the key 'text', found 'body', 'id': name the key"),
        (b"{}", "expected the key 'text', found none"),
        (b'{"text": 3}', "expected a string under 'text', found a number: mend or drop the line"),
        (b'{"text": null}', "expected a string under 'text', found null"),
        (b'{"text": ["a"]}', "expected a string under 'text', found a list"),
        (b'{"text": "\xff"}', "expected UTF-8, found byte 0xff at byte 10 of the line: convert the file to UTF-8"),
        (b'\xef\xbb\xbf{"text": "a"}', "not JSON (Unexpected UTF-8 BOM"),
        (b'{"text": "a\\ud800b"}', "found the lone surrogate \\ud800 at character 1: remove it or write the pair"),
        (b'{"text": "\xed\xa0\x80"}', "expected UTF-8, found byte 0xed"),
    ],
)
def test_a_bad_line_is_refused_with_its_place(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "fine"}', line)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert message in str(caught.value)


def test_missing_inputs_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl does not exist: give one or more JSONL files to --input"):
        check_inputs([tmp_path / "none.jsonl"])
    with pytest.raises(InputError, match="is a directory"):
        check_inputs([tmp_path])
