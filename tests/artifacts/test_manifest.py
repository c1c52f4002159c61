import json
import os
from dataclasses import replace

import pytest
from damage import NO_FILES, damaged_json, put, put_no_file
from fuzzing import fuzz, refusal_of
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.artifacts import ArtifactInput, Manifest, load_manifest, manifest_path
from megatron_miniplm.artifacts.lineage import lineage_lines
from megatron_miniplm.artifacts.manifest import checksum_of, input_of, verify_files
from megatron_miniplm.cli import run_tool
from megatron_miniplm.errors import CorruptArtifactError, InputError

MANIFEST = Manifest(
    kind="corpus",
    fingerprint="ce51e8ebc0834f75faa5404552e56c30",
    counts={"num_sequences": 4},
    settings={"append_eod": True, "name": "é"},
    versions={"gigatoken": "0.10"},
    inputs=(ArtifactInput(role="tokenizer", path="../tokenizer", fingerprint="00"),),
    files={"corpus.bin": {"bytes": 12, "blake2b": "00"}},
)


def test_round_trip_of_a_prefix_and_of_a_directory(tmp_path):
    for artifact in (tmp_path / "corpus", tmp_path):
        MANIFEST.write(artifact)
        assert load_manifest(artifact) == MANIFEST
    assert manifest_path(tmp_path / "corpus") == tmp_path / "corpus.manifest.json"
    assert manifest_path(tmp_path) == tmp_path / "manifest.json"


def test_equal_manifests_have_equal_bytes(tmp_path):
    MANIFEST.write(tmp_path / "a")
    load_manifest(tmp_path / "a").write(tmp_path / "b")
    assert (tmp_path / "a.manifest.json").read_bytes() == (tmp_path / "b.manifest.json").read_bytes()


def test_a_prefix_beside_a_directory_of_its_name(tmp_path):
    """Megatron's `GPTDataset` keeps its index cache in `<prefix>/cache`."""
    (tmp_path / "corpus.idx").write_bytes(b"")
    MANIFEST.write(tmp_path / "corpus")
    (tmp_path / "corpus" / "cache").mkdir(parents=True)
    assert load_manifest(tmp_path / "corpus") == MANIFEST
    scores = Manifest(kind="scores", fingerprint="00", counts={})
    with pytest.raises(
        InputError, match=r"corpus is the prefix of a \.bin/\.idx pair: give the scores another directory"
    ):
        scores.write(tmp_path / "corpus")


def test_missing(tmp_path):
    with pytest.raises(InputError, match=r"corpus has no corpus\.manifest\.json: it is not a finished artifact"):
        load_manifest(tmp_path / "corpus")


def test_below_a_file_is_missing_too(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a finished artifact"):
        load_manifest(tmp_path / "file" / "corpus")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff"])
def test_bad_json(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(
        CorruptArtifactError, match=r"manifest\.json is not a valid manifest .*: make the artifact again"
    ):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("content", "found"),
    [('{"format_version": 2}', "2"), ("{}", "None"), ('{"format_version": "%s"}' % ("9" * 60), "'9{39}")],
)
def test_unknown_version(tmp_path, content, found):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(
        CorruptArtifactError, match=f"has format version {found}, this release reads 1: use the release"
    ):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("surprise", 1, "surprise"),
        ("inputs", ["tokenizer"], "must be a mapping"),
        ("inputs", [{"role": "tokenizer"}], "path"),
        ("inputs", None, "NoneType"),
        ("kind", None, "must be strings"),
        ("counts", [], "must be objects"),
        ("counts", {"num_tokens": "many"}, "counts must be integers"),
        ("counts", {"num_tokens": 1 << 63}, "counts must be integers"),
        ("counts", {"num_tokens": True}, "counts must be integers"),
        ("counts", {"num_tokens": -1}, "counts must be integers"),
        ("versions", {"numpy": 2}, "versions must be strings"),
        ("settings", {"vocab_size": "32k"}, "the setting vocab_size must be int"),
        ("files", [], "bytes, a count, and blake2b"),
        ("files", {"corpus.bin": {"bytes": 1}}, "bytes, a count, and blake2b"),
        ("files", {"corpus.bin": {"bytes": "1", "blake2b": ""}}, "bytes, a count, and blake2b"),
    ],
)
def test_wrong_fields(tmp_path, field, value, message):
    MANIFEST.write(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(CorruptArtifactError, match=f"is not a valid manifest .*{message}.*: make the artifact again"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("name", ["/dev/zero", "../corpus.bin"])
def test_files_below_the_artifact_only(tmp_path, name):
    replace(MANIFEST, files={name: {"bytes": 0, "blake2b": "00"}}).write(tmp_path)
    with pytest.raises(CorruptArtifactError, match=r"manifest\.json names the file .*expected a path below"):
        load_manifest(tmp_path)


def test_fuzz_manifest(tmp_path_factory):
    """Any change to the values or bytes of a manifest, or no file in its place: one error, or a manifest to write."""
    directory = tmp_path_factory.mktemp("fuzz")
    (directory / "corpus.bin").write_bytes(bytes(12))
    replace(MANIFEST, files={"corpus.bin": checksum_of(directory / "corpus.bin")}).write(directory)
    values = json.loads((directory / "manifest.json").read_text())
    values["inputs"].append({"role": "corpus", "path": ".", "fingerprint": "00"})  # itself

    assert run_tool("inspect", [str(directory), "--check"]) == 0

    @fuzz("manifest", 150)
    @given(data=st.data())
    def damage(data):
        path = directory / "manifest.json"
        if data.draw(st.integers(0, 9)) == 9:
            put_no_file(path, data.draw(st.sampled_from(NO_FILES)))
        else:
            put(path, data.draw(damaged_json(values)))
        faults = refusal_of(lambda: verify_files(directory, load_manifest(directory)))
        assert faults is None or str(directory) in str(faults)
        refusal_of(lambda: load_manifest(directory).write(directory / "again"))
        refusal_of(lambda: lineage_lines(directory))
        assert run_tool("inspect", [str(directory), "--check"]) in (0, 2)

    damage()


def test_lacking_field(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format_version": 1, "kind": "scores"}')
    with pytest.raises(CorruptArtifactError, match="fingerprint"):
        load_manifest(tmp_path)


def test_input_paths_are_relative(tmp_path):
    parent = input_of("corpus", tmp_path / "data" / "pile", "00", relative_to=tmp_path / "scores")
    assert parent.path == "../data/pile"


def test_verify_files_tells_intact_missing_shorter_and_changed(tmp_path):
    for name in ("intact", "missing", "shorter", "changed"):
        (tmp_path / name).write_bytes(b"content")
    files = {name: checksum_of(tmp_path / name) for name in ("intact", "missing", "shorter", "changed")}
    manifest = Manifest(kind="scores", fingerprint="00", counts={}, files=files)
    assert verify_files(tmp_path, manifest) == []
    (tmp_path / "missing").unlink()
    (tmp_path / "shorter").write_bytes(b"conten")
    (tmp_path / "changed").write_bytes(b"Content")
    os.mkfifo(tmp_path / "missing")
    (fault,) = verify_files(tmp_path, replace(manifest, files={"missing": {"bytes": 0, "blake2b": "00"}}))
    assert "is a FIFO" in fault
    (tmp_path / "missing").unlink()
    assert verify_files(tmp_path, manifest) == [
        f"{tmp_path}/missing is missing",
        f"{tmp_path}/shorter has 6 bytes, its manifest says 7",
        f"{tmp_path}/changed has changed since it was written: its checksum does not match the manifest",
    ]
