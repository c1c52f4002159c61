import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.corpus.tokenization import token_bytes
from megatron_miniplm.corpus.tokenization.token_bytes import ByteTable, flatten_ids, split_ids

IDS = st.lists(st.lists(st.integers(0, 4)))
TABLE = [b"", b"a", b"bc", "é".encode(), b"\xff\x00 longer"]


@given(ids=IDS)
def test_ids_survive_flattening(ids: list[list[int]]) -> None:
    tokens_T, lengths_N = flatten_ids(ids)
    assert (tokens_T.dtype, lengths_N.dtype) == (np.uint32, np.int64)
    assert split_ids(tokens_T, lengths_N) == ids


@given(ids=IDS)
def test_bytes_are_joined_sequence_by_sequence(ids: list[list[int]]) -> None:
    assert ByteTable(TABLE).join(*flatten_ids(ids)) == [b"".join(TABLE[token] for token in part) for part in ids]


def test_a_sequence_may_be_longer_than_a_block() -> None:
    ids = [[1], [2, 4] * token_bytes._BLOCK_TOKENS, [], [3]]
    assert ByteTable(TABLE).join(*flatten_ids(ids)) == [b"".join(TABLE[token] for token in part) for part in ids]
