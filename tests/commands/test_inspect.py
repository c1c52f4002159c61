import json
import os
import struct

import numpy as np
import pytest

from megatron_miniplm.artifacts import Manifest, load_manifest
from megatron_miniplm.artifacts.fingerprint import digest_file_samples
from megatron_miniplm.artifacts.manifest import checksum_of, input_of
from megatron_miniplm.cli import main
from megatron_miniplm.indexed import IndexedCorpus, IndexedWriter, write_view


@pytest.fixture(autouse=True)
def work_in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def corpus(tmp_path):
    """Ten sequences of 0 to 9 tokens with a manifest, as `preprocess-data` leaves them; int32."""
    prefix = tmp_path / "pile"
    with IndexedWriter(prefix, np.dtype("<i4")) as writer:
        writer.append(np.arange(1000, 1045), np.arange(10))
        files = writer.close()
    corpus = IndexedCorpus.open(prefix)
    counts = {"num_sequences": 10, "num_tokens": 45}
    fingerprint = corpus.fingerprint()
    Manifest(kind="corpus", fingerprint=fingerprint, counts=counts, settings={"append_eod": True}, files=files).write(
        prefix
    )
    return corpus


@pytest.fixture
def view(corpus, tmp_path):
    return write_view(corpus, np.array([9, 2]), tmp_path / "refined", label="refined", settings={})


@pytest.fixture
def inspect(capsys):
    """Runs `miniplm inspect`; returns exit code, stdout and stderr."""

    def run(path, *flags):
        exit_code = main(["inspect", os.path.relpath(path), *flags])
        captured = capsys.readouterr()
        return exit_code, captured.out, captured.err

    return run


def flip(path, offset, bits=1):
    with open(path, "r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ bits]))


def test_corpus(inspect, corpus):
    exit_code, out, err = inspect(corpus.prefix, "--check")
    assert (exit_code, err) == (0, "")
    assert out.splitlines() == [
        "pile",
        "  kind        corpus",
        "  token dtype int32",
        "  sequences   10 (1 empty)",
        "  documents   10",
        "  tokens      45",
        "  bytes       180 (.bin), 242 (.idx)",
        "  length      min 0, 1% 0, 25% 2, 50% 4, 75% 6, 99% 8, max 9",
        "  mean length 4.5",
        f"  fingerprint {corpus.fingerprint()}",
        "  settings    append_eod=True",
        "ok",
    ]


def test_view(inspect, corpus, view):
    exit_code, out, _ = inspect(view, "--check")
    assert exit_code == 0
    assert "  kind        view\n" in out
    assert "  data        pile.bin (a view of it)\n" in out
    assert out.splitlines()[-4:] == [
        "lineage",
        f"  refined/{view.name} (view: 2 sequences, 2 documents, 11 tokens) "
        f"[{IndexedCorpus.open(view).fingerprint()[:8]}]",
        f"    source: pile (corpus: 10 sequences, 45 tokens) [{corpus.fingerprint()[:8]}]",
        "ok",
    ]


def test_foreign_prefix(inspect, corpus, tmp_path):
    (tmp_path / "pile.manifest.json").unlink()
    exit_code, out, _ = inspect(corpus.prefix, "--check")
    assert exit_code == 0
    assert "  kind        corpus\n" in out
    assert out.endswith("ok\n")
    assert "lineage" not in out


def test_json(inspect, view):
    exit_code, out, _ = inspect(view, "--json", "--check")
    report = json.loads(out)
    assert exit_code == 0
    assert (report["kind"], report["num_sequences"], report["num_tokens"]) == ("view", 2, 11)
    assert (report["is_view"], report["data_path"]) == (True, "pile.bin")
    assert report["length_quantiles_tokens"] == {"min": 2, "1%": 2, "25%": 2, "50%": 2, "75%": 2, "99%": 2, "max": 9}
    assert report["lineage"]["parents"][0]["path"] == "pile"
    assert report["faults"] == []


def test_json_without_check_claims_nothing(inspect, corpus):
    assert "faults" not in json.loads(inspect(corpus.prefix, "--json")[1])


def test_directory_artifact(inspect, corpus, tmp_path):
    directory = tmp_path / "scores"
    directory.mkdir()
    (directory / "part").write_bytes(b"content")
    Manifest(
        kind="scores",
        fingerprint="dd" * 16,
        counts={"num_tokens": 45},
        settings={"seq_length": 1024},
        inputs=(input_of("corpus", corpus.prefix, corpus.fingerprint(), relative_to=directory),),
        files={"part": checksum_of(directory / "part")},
    ).write(directory)
    exit_code, out, _ = inspect(directory, "--check")
    assert exit_code == 0
    assert out.splitlines() == [
        "scores",
        "  kind        scores",
        "  tokens      45",
        f"  fingerprint {'dd' * 16}",
        "  settings    seq_length=1024",
        "lineage",
        "  scores (scores: 45 tokens) [dddddddd]",
        f"    corpus: pile (corpus: 10 sequences, 45 tokens) [{corpus.fingerprint()[:8]}]",
        "ok",
    ]
    flip(directory / "part", 3)
    assert "scores/part has changed since it was written" in inspect(directory, "--check")[2]


def test_directory_of_prefixes(inspect, corpus, view, tmp_path):
    (tmp_path / "broken.idx").write_bytes(b"")
    (tmp_path / "broken.bin").write_bytes(b"")
    exit_code, out, _ = inspect(tmp_path)
    assert exit_code == 0
    assert out.splitlines() == [
        ".",
        "  broken: broken.idx has 0 bytes, too few for an index: make it again",
        f"  pile: corpus, 10 sequences, 45 tokens, int32 [{corpus.fingerprint()[:8]}]",
    ]
    exit_code, _, err = inspect(tmp_path, "--check")
    assert (exit_code, err) == (2, "error: broken.idx has 0 bytes, too few for an index: make it again\n")


CORRUPTIONS = {
    "a flipped bit of the data": (
        lambda prefix: flip(f"{prefix}.bin", 100),
        ["pile has fingerprint", "pile.bin has changed since it was written: its checksum does not match"],
    ),
    "a token made negative": (
        lambda prefix: flip(f"{prefix}.bin", 103, bits=0x80),
        ["pile.bin: sequence 7 has token -", "pile has fingerprint", "pile.bin has changed"],
    ),
    "data cut short": (
        lambda prefix: os.truncate(f"{prefix}.bin", 170),
        ["pile.idx: sequence 9 has 9 tokens of 4 bytes at byte 144, but pile.bin has 170", "pile.bin has 170 bytes"],
    ),
    "data with a tail": (
        lambda prefix: os.truncate(f"{prefix}.bin", 184),
        [
            "pile.bin has 184 bytes, the last sequence of its index ends at 180",
            "pile.bin has 184 bytes, its manifest says 180",
        ],
    ),
    "an index cut short": (
        lambda prefix: os.truncate(f"{prefix}.idx", 200),
        ["pile.idx has 200 bytes, its header (10 sequences, 11 document boundaries) asks for 242", "pile.idx has 200"],
    ),
    "document boundaries that go back": (
        lambda prefix: overwrite(f"{prefix}.idx", 242 - 16, struct.pack("<q", 1)),
        ["pile.idx: document 8 starts at sequence 8 and ends before it, at 1", "pile.idx has changed"],
    ),
    "another fingerprint in the manifest": (
        lambda prefix: replace_fingerprint(prefix),
        ["pile has fingerprint"],
    ),
    "a manifest that is not JSON": (
        lambda prefix: overwrite(f"{prefix}.manifest.json", 0, b"?"),
        ["pile.manifest.json is not a valid manifest"],
    ),
    "no data": (
        lambda prefix: os.unlink(f"{prefix}.bin"),
        ["pile.bin does not exist", "pile.bin is missing"],
    ),
}


def overwrite(path, offset, content):
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(content)


def replace_fingerprint(prefix):
    manifest = load_manifest(prefix)
    Manifest(kind="corpus", fingerprint="00" * 16, counts={}, files=manifest.files).write(prefix)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_drill(inspect, corpus, name):
    corrupt, expected = CORRUPTIONS[name]
    corrupt(corpus.prefix)
    exit_code, out, err = inspect(corpus.prefix, "--check")
    assert exit_code == 2
    faults = out.splitlines()[-len(expected) :]
    assert all(fault.startswith(start) for fault, start in zip(faults, expected, strict=True)), out
    assert "ok" not in out.splitlines()
    assert err.startswith(f"error: {faults[0]}")
    assert err.endswith(f" (and {len(expected) - 1} more)\n" if len(expected) > 1 else f"{faults[0]}\n")
    report = json.loads(inspect(corpus.prefix, "--check", "--json")[1])
    assert report["faults"] == faults


def test_every_flipped_bit_of_the_pair_is_found(inspect, corpus):
    """The whole promise of --check on a small corpus, a bit of each byte."""
    for suffix in ("bin", "idx"):
        path = f"{corpus.prefix}.{suffix}"
        for offset in range(os.path.getsize(path)):
            flip(path, offset, bits=1 << offset % 8)
            assert inspect(corpus.prefix, "--check")[0] == 2, f"{suffix} byte {offset}"
            flip(path, offset, bits=1 << offset % 8)
    assert inspect(corpus.prefix, "--check")[0] == 0


def test_changed_source_of_a_view(inspect, corpus, view):
    flip(f"{corpus.prefix}.idx", 242 - 16, bits=1)  # the last document boundary but one: 9 becomes 8
    exit_code, out, _ = inspect(view, "--check")
    assert exit_code == 2
    assert out.splitlines()[-1].startswith(f"refined/{view.name} was made from source pile with fingerprint ")
    assert out.splitlines()[-1].endswith("make it again, or restore what it was made from")


def test_changed_text_of_a_directory_artifact(inspect, tmp_path):
    text = tmp_path / "pile.jsonl"
    text.write_text("{}")
    directory = tmp_path / "tokenizer"
    directory.mkdir()
    inputs = (input_of("text", text, digest_file_samples(text), relative_to=directory),)
    Manifest(kind="tokenizer", fingerprint="dd" * 16, counts={}, inputs=inputs).write(directory)
    assert inspect(directory, "--check")[0] == 0
    text.write_text("[]")
    assert "tokenizer was made from text pile.jsonl with fingerprint" in inspect(directory, "--check")[2]


def test_missing_source_of_a_view_is_no_fault(inspect, corpus, view, tmp_path):
    """A view needs the data of its source, not the index."""
    (tmp_path / "pile.idx").unlink()
    (tmp_path / "pile.manifest.json").unlink()
    exit_code, out, _ = inspect(view, "--check")
    assert exit_code == 0
    assert "(not here)" in out


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "nothing is neither a directory nor the prefix of a .bin/.idx pair (nothing.idx does not exist)"),
        ("pile.bin", "pile.bin is one half of a pair: give its prefix pile"),
        ("pile.idx", "pile.idx is one half of a pair: give its prefix pile"),
        ("empty", "empty has neither a manifest.json nor a .bin/.idx pair: it holds no artifact"),
        ("x" * 300, "cannot be read: File name too long"),
    ],
)
def test_no_artifact(inspect, corpus, tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    exit_code, out, err = inspect(path)
    assert (exit_code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_damaged_artifact_without_check_is_an_error_too(inspect, corpus):
    os.truncate(f"{corpus.prefix}.bin", 170)
    exit_code, _, err = inspect(corpus.prefix)
    assert exit_code == 2
    assert "the .bin is truncated or belongs to another .idx" in err
