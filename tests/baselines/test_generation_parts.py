"""Parts appear whole, say when they are damaged, and do not mix with those of another command."""

import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_miniplm.artifacts.block_queue import BlockQueue
from megatron_miniplm.artifacts.leases import Leases
from megatron_miniplm.artifacts.manifest import prefix_manifest_path
from megatron_miniplm.artifacts.score_blocks import BlockPlan
from megatron_miniplm.baselines.generation_parts import Part, Parts
from megatron_miniplm.errors import CorruptArtifactError, FingerprintMismatchError, InputError

DTYPE = np.dtype("<u2")
IDENTITY: dict[str, Any] = {"model": {"weights": "a"}, "corpus": [], "settings": {"seed": 1, "top_k": 0}}


def open_parts(directory: Path, identity: dict[str, Any] | None = None) -> Parts:
    plan = BlockPlan(num_sequences=5, block_sequences=3)
    parts = Parts(directory, identity or IDENTITY, plan, DTYPE)
    parts.create_or_resume()
    return parts


def part(num_sequences: int = 3) -> Part:
    prompts = [np.arange(row) for row in range(num_sequences)]
    return Part.of(prompts, [np.full(row, 7) for row in range(num_sequences)], DTYPE)


def test_a_part_comes_back(tmp_path: Path) -> None:
    parts = open_parts(tmp_path / "out.parts")
    assert parts.missing_blocks() == [0, 1]
    assert parts.write_block(0, part())
    assert not parts.write_block(0, part()), "the first stays"
    assert parts.missing_blocks() == [1]
    found = parts.read_block(0)
    assert found.lengths_N2.tolist() == [[0, 0], [1, 2], [2, 4]]
    assert [tokens.tolist() for tokens in found.sequences()] == [[], [0, 7], [0, 1, 7, 7]]
    assert found.tokens_T.dtype == DTYPE


def test_the_bytes_are_those_of_the_docstring(tmp_path: Path) -> None:
    data = part(2).to_bytes("ab" * 16)
    assert data.count(b"\x93NUMPY\x01\x00") == 2
    assert data[-24:-20] == b"\x00\x00\x07\x00", "the tokens of the second sequence, little-endian"
    assert data[-20:-4] == b"\xab" * 16
    assert data[-4:] == zlib.crc32(data[:-4]).to_bytes(4, "little")


@pytest.mark.parametrize("damage", ["cut", "longer", "flipped", "empty", "another plan"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    parts = open_parts(tmp_path / "out.parts")
    parts.write_block(0, part())
    data = bytearray(part(2 if damage == "another plan" else 3).to_bytes(parts.identity_digest))
    if damage == "flipped":
        data[-22] ^= 1
    path = parts.part_path(0)
    path.write_bytes({"cut": data[:-1], "empty": b"", "longer": data + b"x"}.get(damage, data))
    with pytest.raises(CorruptArtifactError, match=r"00000000\.part is damaged .*: delete it and run the same"):
        parts.check()


def test_every_byte_of_a_part_counts(tmp_path: Path) -> None:
    parts = open_parts(tmp_path / "out.parts")
    parts.write_block(0, part())
    data = parts.part_path(0).read_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        parts.part_path(0).write_bytes(changed)
        with pytest.raises(CorruptArtifactError, match="is damaged"):
            parts.read_block(0)


def test_a_part_of_a_job_that_outlived_its_directory_is_refused(tmp_path: Path) -> None:
    """Somebody deletes the directory and starts another command while the first still works."""
    first = open_parts(tmp_path / "out.parts")
    shutil.rmtree(first.directory)
    second = open_parts(tmp_path / "out.parts", {**IDENTITY, "model": {"weights": "b"}})
    assert first.write_block(0, part())
    with pytest.raises(CorruptArtifactError, match=r"generated under the identity [0-9a-f]{8}, not [0-9a-f]{8}"):
        second.read_block(0)


def test_a_part_that_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    parts = open_parts(tmp_path / "out.parts")
    os.mkfifo(parts.part_path(0))
    with pytest.raises(CorruptArtifactError, match="is a FIFO"):
        parts.read_block(0)


def test_parts_of_another_command_are_refused(tmp_path: Path) -> None:
    open_parts(tmp_path / "out.parts")
    open_parts(tmp_path / "out.parts")
    other = {**IDENTITY, "settings": {"seed": 2, "top_k": 0}}
    with pytest.raises(FingerprintMismatchError, match=r"parts of another settings \(seed: 1 there, 2 here\)"):
        open_parts(tmp_path / "out.parts", other)


def test_a_directory_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out.parts").mkdir()
    (tmp_path / "out.parts" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"holds thesis.tex but no identity.json, .*: delete it, or give another"):
        open_parts(tmp_path / "out.parts")
    (tmp_path / "file.parts").write_text("")
    with pytest.raises(InputError, match=r"file.parts cannot be used"):
        open_parts(tmp_path / "file.parts")


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff"])
def test_a_damaged_identity_is_named(tmp_path: Path, content: bytes) -> None:
    parts = open_parts(tmp_path / "out.parts")
    (parts.directory / "identity.json").write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=r"identity.json is not a valid .*: delete .*parts, or give"):
        open_parts(tmp_path / "out.parts")


def test_a_kill_while_parts_are_removed_leaves_what_can_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = open_parts(tmp_path / "out.parts")
    parts.write_block(0, part())
    removed: list[str] = []
    unlink = os.unlink

    def watched(path: Any, **named: Any) -> None:
        removed.append(os.path.basename(path))
        unlink(path, **named)

    monkeypatch.setattr(os, "unlink", watched)
    parts.remove()
    assert removed == ["00000000.part", "identity.json"]
    assert not parts.directory.exists()


def test_a_job_that_waits_generates_nothing_once_another_has_merged_the_parts(tmp_path: Path) -> None:
    """The first job holds all blocks, publishes them, writes the corpus and removes the parts."""
    first, second = open_parts(tmp_path / "out.parts"), open_parts(tmp_path / "out.parts")
    with Leases(first.directory) as firsts, Leases(second.directory) as seconds:
        first_queue, second_queue = BlockQueue(first, firsts, "a"), BlockQueue(second, seconds, "b")
        blocks = {first_queue.take(), first_queue.take()}
        assert blocks == {0, 1}
        assert (second_queue.take(), second_queue.is_empty) == (None, False)
        for block in (0, 1):
            first.write_block(block, part(len(first.plan.sequences(block))))
            firsts.release(block)
        prefix_manifest_path(tmp_path / "out").write_text("{}")
        first.remove()
        second_queue._next_look = 0.0
        assert (second_queue.take(), second_queue.is_empty) == (None, True)
        assert second.missing_blocks() == []
        assert not second.write_block(0, part()), "of a job whose lease had expired"
        second.check()
    second.remove()
    assert not second.directory.exists()


def test_a_directory_that_only_a_late_lease_has_made_is_removed(tmp_path: Path) -> None:
    parts = open_parts(tmp_path / "out.parts")
    prefix_manifest_path(tmp_path / "out").write_text("{}")
    parts.remove()
    with Leases(parts.directory):
        assert parts.directory.exists()
    parts.remove()
    assert not parts.directory.exists()


def test_a_directory_that_vanishes_before_the_corpus_is_there_is_named(tmp_path: Path) -> None:
    parts = open_parts(tmp_path / "out.parts")
    parts.remove()
    for use in (parts.missing_blocks, lambda: parts.write_block(0, part())):
        with pytest.raises(InputError, match=r"out\.parts"):
            use()


def test_only_ours_is_removed(tmp_path: Path) -> None:
    directory = tmp_path / "out.parts"
    open_parts(directory)
    other = Parts(directory, {"settings": {}}, BlockPlan(num_sequences=1, block_sequences=1), DTYPE)
    other.remove()
    assert directory.exists()
    open_parts(directory).remove()
    assert not directory.exists()
