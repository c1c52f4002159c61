import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.indexed import IndexedWriter
from megatron_miniplm.reports import inspection
from megatron_miniplm.reports.inspection import length_quantiles, summarize_prefix

FRACTIONS = [0, 0.01, 0.25, 0.5, 0.75, 0.99, 1]


@given(lengths=st.lists(st.integers(0, 2**31 - 1), min_size=1) | st.lists(st.integers(0, 3), min_size=1))
def test_length_quantiles_are_those_of_numpy(lengths):
    lengths_N = np.array(lengths, np.int32)
    expected = np.sort(lengths_N)[[int(fraction * (len(lengths) - 1)) for fraction in FRACTIONS]]
    assert list(length_quantiles(lengths_N).values()) == expected.tolist()


def test_length_quantiles_across_chunks(monkeypatch):
    monkeypatch.setattr(inspection, "_SEQUENCE_CHUNK", 3)
    quantiles = length_quantiles(np.arange(101, dtype=np.int32)[::-1])
    assert quantiles == {"min": 0, "1%": 1, "25%": 25, "50%": 50, "75%": 75, "99%": 99, "max": 100}


def test_summary_of_an_empty_corpus(tmp_path):
    with IndexedWriter(tmp_path / "corpus", np.dtype("<u2")) as writer:
        writer.close()
    summary = summarize_prefix(tmp_path / "corpus")
    assert summary.length_quantiles_tokens == {}
    assert (summary.num_sequences, summary.mean_length_tokens) == (0, 0.0)


@pytest.mark.parametrize("position", [0, 4, 9])
def test_negative_tokens_are_found_in_every_chunk(tmp_path, monkeypatch, position):
    monkeypatch.setattr(inspection, "_TOKEN_CHUNK", 4)
    tokens_T = np.arange(10)
    tokens_T[position] = -7
    with IndexedWriter(tmp_path / "corpus", np.dtype("<i4")) as writer:
        writer.append(tokens_T, np.array([10]))
        writer.close()
    (fault,) = inspection.find_faults(tmp_path / "corpus")
    assert f"corpus.bin: sequence 0 has token -7 at byte {4 * position}, expected no negative ones" in fault
