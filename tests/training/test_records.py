"""What a run leaves beside its checkpoints and logs, and what is made of it when it is resumed."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from refined_runs import ScoredCorpora

from megatron_miniplm.artifacts.run_records import TRAINING_RECORD, VALIDATION_RECORD
from megatron_miniplm.errors import CorruptArtifactError, InputError
from megatron_miniplm.training.records import check_resumed_run, record_run
from megatron_miniplm.training.refinement import Refinement


def run_of(scored: ScoredCorpora, directory: Path, **flags: Any) -> SimpleNamespace:
    """The flags of a run that saves to a directory."""
    unset = dict.fromkeys(("data_args_path", "train_data_path", "valid_data_path", "test_data_path", "load"))
    unset |= dict.fromkeys(("per_split_data_args_path", "miniplm_ratio_schedule", "miniplm_temperature_schedule"))
    data = {"data_path": scored.blend, "split": "90,5,5", "eval_iters": 1, "full_validation": False, "finetune": False}
    places = {"save": str(directory / "checkpoint"), "tensorboard_dir": str(directory / "log")}
    return SimpleNamespace(**{**unset, **data, **places, "miniplm_weighting": "none", **flags})


def refinement_of(directory: Path, weighting: str = "none") -> Refinement:
    return Refinement.open([str(directory)], weighting=weighting)


@pytest.fixture
def saved(scored: ScoredCorpora, tmp_path: Path) -> Path:
    """The checkpoints of a run on the half."""
    half = scored.select("half", ratio=0.5)
    record_run(run_of(scored, tmp_path), refinement_of(half))
    (tmp_path / "checkpoint" / "latest_checkpointed_iteration.txt").write_text("5")
    return tmp_path / "checkpoint"


def test_the_same_run_goes_on(scored: ScoredCorpora, saved: Path, tmp_path: Path) -> None:
    half = refinement_of(scored.select("half", ratio=0.5))
    check_resumed_run(run_of(scored, tmp_path, load=str(saved)), half)
    before = (saved / TRAINING_RECORD).read_bytes()
    record_run(run_of(scored, tmp_path, load=str(saved)), half)
    assert (saved / TRAINING_RECORD).read_bytes() == before


def test_without_the_flag(scored: ScoredCorpora, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"was trained with --miniplm-selection .*half \[\w{8}\], but .* without a sel"
    ):
        check_resumed_run(run_of(scored, tmp_path, load=str(saved)), None)


def test_with_another_selection_or_other_weights(scored: ScoredCorpora, saved: Path, tmp_path: Path) -> None:
    other = scored.select("ratio_0.4", ratio=0.4)
    with pytest.raises(InputError, match=r"half \[\w{8}\], but this run would go on with .*ratio_0\.4 \[\w{8}\]"):
        check_resumed_run(run_of(scored, tmp_path, load=str(saved)), refinement_of(other))
    half = scored.select("half", ratio=0.5)
    flags = run_of(scored, tmp_path, load=str(saved), miniplm_weighting="loss")
    with pytest.raises(InputError, match=r"would go on with .* --miniplm-weighting loss"):
        check_resumed_run(flags, refinement_of(half, "loss"))


@pytest.mark.parametrize("flags", [{"finetune": True}, {"load": None}])
def test_a_new_run_may_have_other_data(
    scored: ScoredCorpora, saved: Path, tmp_path: Path, flags: dict[str, Any]
) -> None:
    check_resumed_run(run_of(scored, tmp_path, **{"load": str(saved), **flags}), None)


def test_a_plain_run_that_would_go_on_refined(scored: ScoredCorpora, tmp_path: Path) -> None:
    record_run(run_of(scored, tmp_path), None)
    (tmp_path / "checkpoint" / "latest_checkpointed_iteration.txt").write_text("5")
    flags, half = run_of(scored, tmp_path, load=str(tmp_path / "checkpoint")), scored.select("half", ratio=0.5)
    with pytest.raises(InputError, match="was trained without a selection, but"):
        check_resumed_run(flags, refinement_of(half))


def test_other_data_is_said(
    scored: ScoredCorpora, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = run_of(scored, tmp_path, load=str(saved), data_path=scored.blend[:2])
    check_resumed_run(other, refinement_of(scored.select("half", ratio=0.5)))
    assert "was trained on code, web, this run goes on with web" in capsys.readouterr().out


def test_a_damaged_record(scored: ScoredCorpora, saved: Path, tmp_path: Path) -> None:
    (saved / TRAINING_RECORD).write_text("{")
    with pytest.raises(CorruptArtifactError, match=r"miniplm_training\.json is not a valid record of a run"):
        check_resumed_run(run_of(scored, tmp_path, load=str(saved)), None)


def validations(directory: Path) -> list[Any]:
    found: list[Any] = json.loads((directory / "log" / VALIDATION_RECORD).read_text())["validation"]
    return found


def test_validation_data_is_told_by_content(scored: ScoredCorpora, tmp_path: Path) -> None:
    """By fingerprint, share and split: not by the place of the files, nor by how the numbers are written."""
    paths = [str(corpus.prefix) for corpus in scored.corpora]
    held_out = {"data_path": None, "train_data_path": [paths[0]], "valid_data_path": [paths[1]], "split": None}
    variants: dict[str, dict[str, Any]] = {
        "split": {},
        "same split": {"split": "0.9,0.05,0.05"},
        "other split": {"split": "80,10,10"},
        "held out": held_out,
        "same held out": {**held_out, "train_data_path": [paths[1]]},
    }
    for name, flags in variants.items():
        record_run(run_of(scored, tmp_path / name, **flags), None)
    found = {name: validations(tmp_path / name) for name in variants}
    assert found["split"] == found["same split"] != found["other split"]
    assert found["held out"] == found["same held out"] != found["split"]
    (entry,) = found["held out"][0]
    assert entry == {"name": "code", "fingerprint": scored.corpora[1].fingerprint(), "share": 1.0, "split": None}


def test_a_resumed_run_with_other_validation_data_has_both(scored: ScoredCorpora, tmp_path: Path) -> None:
    record_run(run_of(scored, tmp_path), None)
    record_run(run_of(scored, tmp_path), None)
    assert len(validations(tmp_path)) == 1
    record_run(run_of(scored, tmp_path, split="80,10,10"), None)
    assert len(validations(tmp_path)) == 2


def test_a_record_that_cannot_be_written_stops_nothing(
    scored: ScoredCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").write_text("a file in its place")
    record_run(run_of(scored, tmp_path), None)
    assert "is not recorded: " in capsys.readouterr().out


def test_validation_data_that_only_megatron_reads(scored: ScoredCorpora, tmp_path: Path) -> None:
    for suffix, tail in ((".bin", b"more than the index knows"), (".idx", b"")):
        content = scored.corpora[1].prefix.with_suffix(suffix).read_bytes()
        (tmp_path / f"odd{suffix}").write_bytes(content + tail)
    held_out = {"data_path": None, "train_data_path": scored.blend[1:2], "split": None}
    record_run(run_of(scored, tmp_path, valid_data_path=[str(tmp_path / "odd")], **held_out), None)
    assert validations(tmp_path)[0][0]["fingerprint"] == str(tmp_path / "odd")
