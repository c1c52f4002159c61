"""Keys of texts and labels, within lines of JSON."""

import json
from pathlib import Path

from text_units import read_units, write

from megatron_miniplm.corpus.fields import Fields


def test_keys_are_read_side_by_side(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"q": "1", "a": "one"}', b'{"q": "2", "a": "two", "other": null}')
    (documents,) = read_units(path, Fields(text_keys=("q", "a")))
    assert documents.texts == {"q": ["1", "2"], "a": ["one", "two"]}


def test_ids_and_domains_may_be_integers_and_lie_deeper(tmp_path: Path) -> None:
    fields = Fields(text_keys=("text",), id_key="id", domain_key="meta.set")
    path = write(
        tmp_path / "a.jsonl",
        b'{"text": "a", "id": 7, "meta": {"set": "books"}}',
        b'{"text": "b", "id": "x", "meta": {"set": 3}, "score": NaN}',  # NaN takes the slower parser
        b'{"text": "c", "id": true, "meta": {"set": 3}}',
        b'{"text": "d", "id": 1, "meta": {}}',
        b'{"text": "e", "id": 1, "meta": "books"}',
    )
    (documents,) = read_units(path, fields)
    assert documents.texts["text"] == ["a", "b"]
    assert (documents.ids, documents.domains) == (["7", "x"], ["books", "3"])
    assert [(line.index, line.reason) for line in documents.rejected] == [
        (2, "expected a string or an integer under 'id', found true"),
        (3, "expected the key 'meta.set': name the key in --id-key and --domain-key"),
        (4, "expected the key 'meta.set': name the key in --id-key and --domain-key"),
    ]


def test_dots_lead_into_objects_unless_a_key_has_them(tmp_path: Path) -> None:
    fields = Fields(text_keys=("data.text", "title"), id_key="meta.id")
    path = write(
        tmp_path / "a.jsonl",
        b'{"data": {"text": "a"}, "title": "A", "meta": {"id": 1}}',
        b'{"data.text": "b", "data": 3, "title": "B", "meta.id": "two", "meta": null}',
        b'{"data": {"body": "c"}, "title": "C", "meta": {"id": 3}}',
        b'{"data": "d", "title": "D", "meta": {"id": 4}}',
        b'{"other": {"text": "e"}, "title": "E", "meta": {"id": 5}}',
        b'{"data": {"text": 6}, "title": "F", "meta": {"id": 6}}',
    )
    (documents,) = read_units(path, fields)
    assert documents.texts == {"data.text": ["a", "b"], "title": ["A", "B"]}
    assert documents.ids == ["1", "two"]
    assert [line.reason.split(": ")[0] for line in documents.rejected] == [
        "expected the key 'data.text', found 'body' under 'data'",
        "expected the key 'data.text', found a string under 'data'",
        "expected the key 'data', found 'meta', 'other', 'title'",
        "expected a string under 'data.text', found a number",
    ]


def test_a_key_and_what_lies_within_it_can_both_be_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"data": {"text": "a"}}', b'{"data": "b", "data.text": "c"}')
    (documents,) = read_units(path, Fields(text_keys=("data", "data.text")))
    assert documents.texts == {"data": ["b"], "data.text": ["c"]}


def test_many_keys_are_not_all_listed(tmp_path: Path) -> None:
    line = json.dumps({f"key{number:04d}": "x" for number in range(1000)} | {"k" * 500: ""}).encode()
    (documents,) = read_units(write(tmp_path / "a.jsonl", line), Fields(text_keys=("text",)))
    assert documents.rejected[0].reason.endswith("'key0009' and 991 more: name the key of the text in --json-keys")
