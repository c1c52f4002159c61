"""What is done to the tokens of documents before they are written."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.corpus.encoding import append_eod


@given(documents=st.lists(st.lists(st.integers(1, 9), max_size=4), max_size=8))
def test_append_eod_ends_every_document_that_has_tokens(documents: list[list[int]]) -> None:
    tokens_T, lengths_D = append_eod(
        np.array([token for document in documents for token in document], np.uint32),
        np.array([len(document) for document in documents], np.int64),
        0,
    )
    expected = [[*document, 0] if document else [] for document in documents]
    assert tokens_T.tolist() == [token for document in expected for token in document]
    assert lengths_D.tolist() == [len(document) for document in expected]
