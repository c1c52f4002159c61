"""Which checkpoints are measured, and how their losses are shown."""

import json
from pathlib import Path

import pytest
from score_stores import write_scores

from megatron_miniplm.errors import InputError
from megatron_miniplm.evaluation.held_out import Counting, HeldOutCorpus, corpus_loss, describe
from megatron_miniplm.evaluation.held_out_table import Measured, as_json, choose_iterations, table
from megatron_miniplm.indexed import IndexedCorpus


@pytest.mark.parametrize(
    ("wanted", "every_nth", "chosen"),
    [
        (["latest"], 1, [500]),
        (["all"], 1, [100, 200, 300, 400, 500]),
        (["all"], 2, [100, 300, 500]),
        (["all"], 3, [200, 500]),
        (["all"], 9, [500]),
        (["300", "100", "300"], 1, [100, 300]),
    ],
)
def test_chosen_iterations(tmp_path: Path, wanted: list[str], every_nth: int, chosen: list[int]) -> None:
    """One after the tracker's is being written; 0 cannot be asked for with `--ckpt-step`."""
    for iteration in (0, 100, 200, 300, 400, 500, 600):
        (tmp_path / f"iter_{iteration:07d}").mkdir()
    assert choose_iterations(tmp_path, tmp_path / "iter_0000500", wanted, every_nth) == chosen
    with pytest.raises(InputError, match="has no iteration 600: it has 100, 200, 300, 400, 500"):
        choose_iterations(tmp_path, tmp_path / "iter_0000500", ["600"])
    with pytest.raises(InputError, match="--checkpoint-iterations last: expected latest, all, or iterations"):
        choose_iterations(tmp_path, tmp_path / "iter_0000500", ["last"])


def test_a_converted_checkpoint_has_no_number(tmp_path: Path) -> None:
    assert choose_iterations(tmp_path, tmp_path / "release", ["all"]) == [None]
    with pytest.raises(InputError, match="release is the only checkpoint"):
        choose_iterations(tmp_path, tmp_path / "release", ["5"])


def test_table_and_json(corpus: IndexedCorpus, tmp_path: Path) -> None:
    texts = describe(HeldOutCorpus(name="held", prefixes=(corpus.prefix,)), Counting(), None)
    rows = []
    for iteration, nll in ((100, [9.0, 0.0, 8.0, 2.0]), (200, [6.0, 0.0, 6.0, 1.0])):
        store = write_scores(tmp_path / str(iteration), [corpus], nll)
        losses = {"held": corpus_loss(store, texts)}
        rows.append(Measured(checkpoint=f"iter_{iteration:07d}", iteration=iteration, trained_tokens=7, losses=losses))
    lines = table(rows)
    assert lines[2:5] == [
        "checkpoint               held",
        "iter_0000100  2.1111 (0.4762)",
        "iter_0000200  1.4444 (0.3441)",
    ]
    assert lines[-5:] == [
        "iter_0000200    sequences       tokens         loss   std. error   perplexity  bits a byte",
        "held                    3            9       1.4444       0.3441         4.24       0.7213",
        "  (none)                1            4       1.5000            -         4.48       0.7869",
        "  code                  2            5       1.4000       0.7200         4.06       0.6733",
        "  prose                 0            0            -            -            -            -",
    ]
    values = as_json(rows[0])["corpora"]["held"]
    assert values["loss_nats_per_token"] == pytest.approx(19 / 9)
    assert values["domains"]["prose"]["loss_nats_per_token"] is None
    json.dumps(values, allow_nan=False)
