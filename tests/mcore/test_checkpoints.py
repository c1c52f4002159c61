from pathlib import Path

import pytest

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.checkpoints import checkpoint_directory, weights_fingerprint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    for name in ("iter_0000500", "iter_0001000", "release"):
        (tmp_path / "checkpoint" / name).mkdir(parents=True)
    return tmp_path / "checkpoint"


def track(checkpoint: Path, content: str) -> None:
    (checkpoint / "latest_checkpointed_iteration.txt").write_text(content)


@pytest.mark.parametrize(
    ("content", "name"), [("500", "iter_0000500"), ("1000\n", "iter_0001000"), ("release", "release")]
)
def test_the_iteration_that_load_would_read(checkpoint: Path, content: str, name: str) -> None:
    track(checkpoint, content)
    assert checkpoint_directory(str(checkpoint)) == checkpoint / name


@pytest.mark.parametrize(
    ("content", "step", "name"),
    [
        ("1000", 500, "iter_0000500"),
        ("1000", 0, "iter_0001000"),
        ("1000", None, "iter_0001000"),
        ("release", 500, "release"),
    ],
)
def test_a_chosen_step(checkpoint: Path, content: str, step: int | None, name: str) -> None:
    """As Megatron reads `--ckpt-step`: 0 is no choice, and a release has no steps."""
    track(checkpoint, content)
    assert checkpoint_directory(str(checkpoint), step) == checkpoint / name


def refusal(load: str | None, step: int | None = None) -> str:
    with pytest.raises(InputError) as raised:
        checkpoint_directory(load, step)
    return str(raised.value)


def test_no_load() -> None:
    assert refusal(None) == "--load is missing: give the directory of a Megatron checkpoint"


def test_no_directory_no_tracker_or_a_file(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nothing", checkpoint, tmp_path / "file"):
        expected = f"{path} is not a Megatron checkpoint: it has no latest_checkpointed_iteration.txt"
        assert refusal(str(path)) == expected


def test_an_iteration_that_is_not_there(checkpoint: Path) -> None:
    track(checkpoint, "700")
    assert refusal(str(checkpoint)) == (
        f"{checkpoint}/latest_checkpointed_iteration.txt names iteration 700, but {checkpoint}/iter_0000700 "
        "does not exist"
    )


def test_a_step_that_is_not_there(checkpoint: Path) -> None:
    track(checkpoint, "1000")
    assert (
        refusal(str(checkpoint), 700)
        == f"{checkpoint} has no iteration 700: give one that it has, or none for the latest"
    )


@pytest.mark.parametrize("content", ["", "metadata", "12.5"])
def test_a_damaged_tracker(checkpoint: Path, content: str) -> None:
    track(checkpoint, content)
    assert f"{checkpoint}/latest_checkpointed_iteration.txt" in refusal(str(checkpoint))


def test_weights_are_identified_by_names_and_content(checkpoint: Path) -> None:
    directory = checkpoint / "iter_0000500"
    (directory / "__0_0.distcp").write_bytes(b"weights")
    first = weights_fingerprint(directory)
    assert weights_fingerprint(directory) == first
    (directory / "__0_0.distcp").write_bytes(b"WEIGHTS")
    assert weights_fingerprint(directory) != first
    (directory / "__0_0.distcp").write_bytes(b"weights")
    (directory / "__0_0.distcp").rename(directory / "__0_1.distcp")
    assert weights_fingerprint(directory) != first


def test_the_random_id_of_a_save_is_no_part_of_the_weights(checkpoint: Path) -> None:
    """torch draws one for every save: a model that is converted again is the same model."""
    import torch
    import torch.distributed.checkpoint as dcp

    directory = checkpoint / "iter_0000500"

    def fingerprint_after_saving(value: float) -> str:
        dcp.save({"weight": torch.full((3,), value)}, checkpoint_id=directory, no_dist=True)
        return weights_fingerprint(directory)

    first, metadata = fingerprint_after_saving(1.0), (directory / ".metadata").read_bytes()
    assert fingerprint_after_saving(1.0) == first
    assert (directory / ".metadata").read_bytes() != metadata
    assert fingerprint_after_saving(2.0) != first
    first = fingerprint_after_saving(1.0)
    (directory / ".metadata").write_bytes(metadata.replace(b"__0_0.distcp", b"__0_1.distcp"))
    assert weights_fingerprint(directory) != first
