import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from megatron_runs import random_sequences, write_corpus
from score_stores import write_scores
from selections import sample, seal

from megatron_miniplm.artifacts import Manifest, load_manifest
from megatron_miniplm.artifacts.data_args import write_data_args
from megatron_miniplm.artifacts.lineage import trace_lineage
from megatron_miniplm.artifacts.manifest import input_of
from megatron_miniplm.errors import FingerprintMismatchError, InputError
from megatron_miniplm.indexed import IndexedCorpus, copying, view, write_view
from megatron_miniplm.indexed import materialize as materialize_module
from megatron_miniplm.indexed.materialize import materialize
from megatron_miniplm.reports.inspection import find_faults

LENGTHS = [3, 0, 7, 1, 40, 2, 2, 9]
CHOSEN = {"web": [0, 1, 2, 5], "none": [], "code": [6, 2, 2, 0]}


@pytest.fixture
def corpora(tmp_path: Path) -> list[IndexedCorpus]:
    return [write_corpus(tmp_path / "data" / name, random_sequences(LENGTHS, seed)) for seed, name in enumerate(CHOSEN)]


@pytest.fixture
def views(corpora: list[IndexedCorpus], tmp_path: Path) -> Path:
    """A directory with a view of each, and a blend of them."""
    directory = tmp_path / "views"
    prefixes = [
        write_view(corpus, np.array(CHOSEN[corpus.prefix.name], np.int64), directory, label="refined", settings={})
        for corpus in corpora
    ]
    write_data_args(directory, [(IndexedCorpus.open(prefix).num_tokens, prefix) for prefix in prefixes])
    return directory


@pytest.fixture
def selection(corpora: list[IndexedCorpus], tmp_path: Path) -> Path:
    """The same as an index-only selection."""
    directory = tmp_path / "selection"
    directory.mkdir()
    entries = []
    for corpus in corpora:
        name = corpus.prefix.name
        indices_K = np.array(CHOSEN[name], np.int64)
        np.save(directory / f"{name}.indices.npy", indices_K)
        np.save(directory / f"{name}.weights.npy", np.ones(len(indices_K), np.float32))
        np.save(directory / f"{name}.values.npy", np.zeros(len(indices_K)))
        entries.append(
            {
                "name": name,
                "path": f"../data/{name}",
                "num_source_sequences": len(corpus),
                "num_sequences": len(indices_K),
                "num_tokens": int(corpus.lengths_N[indices_K].sum()),
                "weighted_tokens": float(corpus.lengths_N[indices_K].sum()),
                "fingerprint": corpus.fingerprint(),
                "indices": f"{name}.indices.npy",
                "weights": f"{name}.weights.npy",
                "values": f"{name}.values.npy",
                "checksums": f"{name}.checksums.npy",
                "view": None,
            }
        )
    num_kept = sum(entry["num_sequences"] for entry in entries)
    num_kept_tokens = sum(entry["num_tokens"] for entry in entries)
    summary = {
        "format_version": 3,
        "ratio": 0.5,
        "from_scores": "reference - teacher",
        "score_reduction": "mean",
        "sampling": "top",
        "per_domain": False,
        "keep_domains": [],
        "drop_domains": [],
        "min_tokens": 1,
        "drop_negative": False,
        "weights": "uniform",
        "repeat": False,
        "index_only": True,
        "seen_by_reference": "drop",
        "num_sequences": sum(map(len, corpora)),
        "num_eligible": sum(map(len, corpora)),
        "num_kept": num_kept,
        "num_kept_tokens": num_kept_tokens,
        "num_scored_tokens": sum(corpus.num_tokens for corpus in corpora),
        "num_kept_scored_tokens": num_kept_tokens,
        "num_seen_by_reference": 0,
        "mean_value": 0.0,
        "mean_kept_value": 0.0,
        "lowest_kept_value": 0.0,
        "negative_fraction": 0.0,
        "thresholds": [{"domain": None, "value": 0.0, "key": "0" * 16, "sequence": 0}],
        "prefixes": entries,
    }
    (directory / "selection.json").write_text(json.dumps(summary))
    write_data_args(directory, [(corpus.num_tokens, corpus.prefix) for corpus in corpora])  # not what is kept
    Manifest(
        kind="selection",
        fingerprint="5" * 32,
        counts={},
        inputs=tuple(
            input_of("corpus", corpus.prefix, corpus.fingerprint(), relative_to=directory) for corpus in corpora
        ),
    ).write(directory)
    seal(directory)
    return directory


def prefixes_in(directory: Path) -> dict[str, Path]:
    return {path.stem: path.with_suffix("") for path in sorted(directory.glob("*.idx"))}


def files_in(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def as_megatron_reads_it(prefix: Path) -> tuple[bytes, list[int]]:
    """Tokens and lengths, sequence by sequence, through Megatron's own reader."""
    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    dataset = indexed_dataset.IndexedDataset(str(prefix))
    sequences = [dataset.get(index) for index in range(len(dataset))]
    return b"".join(sequence.tobytes() for sequence in sequences), [len(sequence) for sequence in sequences]


@pytest.mark.parametrize("copy_bytes", [1, 16, 1 << 21])
def test_a_copy_has_what_megatron_reads_through_the_view(
    views: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy_bytes: int
) -> None:
    monkeypatch.setattr(copying, "_COPY_BYTES", copy_bytes)
    manifest = materialize([views], tmp_path / "copy")
    copies = prefixes_in(tmp_path / "copy")
    assert len(copies) == 2
    for name, copy in copies.items():
        tokens, lengths = as_megatron_reads_it(views / name)
        assert copy.with_name(f"{name}.bin").read_bytes() == tokens
        assert not copy.with_name(f"{name}.bin").is_symlink()
        assert as_megatron_reads_it(copy) == (tokens, lengths)
        assert IndexedCorpus.open(copy).boundaries_D.tolist() == IndexedCorpus.open(views / name).boundaries_D.tolist()
    assert manifest.counts == {"num_sequences": 8, "num_tokens": 12 + 19}
    assert find_faults(tmp_path / "copy") == []


def test_the_blend_weighs_by_tokens_and_the_lineage_leads_to_the_data(views: Path, tmp_path: Path) -> None:
    materialize([views], tmp_path / "copy")
    words = (tmp_path / "copy" / "data_args.txt").read_text().split()
    assert words[::2] == ["12", "19"]
    assert [Path(word).parent for word in words[1::2]] == [tmp_path / "copy"] * 2
    root = trace_lineage(tmp_path / "copy")
    assert root.kind == "views"
    names = []
    node = root.parents[0]
    while True:
        names.append((node.role, node.kind))
        if not node.parents:
            break
        node = node.parents[0]
    assert names[:3] == [("corpus", "corpus"), ("view", "view"), ("source", None)]


def test_an_empty_prefix_is_copied_but_not_blended(views: Path, tmp_path: Path) -> None:
    inputs = list(prefixes_in(views).values())
    assert materialize(inputs, tmp_path / "copy").counts["num_sequences"] == 8
    (empty,) = (path for name, path in prefixes_in(tmp_path / "copy").items() if name.startswith("none"))
    assert len(IndexedCorpus.open(empty)) == 0
    assert "none" not in (tmp_path / "copy" / "data_args.txt").read_text()


def test_a_corpus_is_copied_as_it_is(corpora: list[IndexedCorpus], tmp_path: Path) -> None:
    materialize([corpora[0].prefix], tmp_path / "copy")
    for suffix in (".bin", ".idx"):
        assert (tmp_path / "copy" / f"web{suffix}").read_bytes() == (tmp_path / "data" / f"web{suffix}").read_bytes()


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_an_index_only_selection_becomes_the_bytes_of_its_views_copied(
    views: Path, selection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(view, "_CHUNK_SEQUENCES", chunk)
    materialize(list(prefixes_in(views).values()), tmp_path / "of_views")
    materialize([selection], tmp_path / "of_indices")
    expected, found = files_in(tmp_path / "of_views"), files_in(tmp_path / "of_indices")
    assert found.keys() == expected.keys()
    assert len(found) == 3 * 3 + 2
    for name in found:
        if name.endswith((".bin", ".idx")):
            assert found[name] == expected[name]
    (copy,) = (path for name, path in prefixes_in(tmp_path / "of_indices").items() if name.startswith("code"))
    assert [(parent.role, parent.path) for parent in load_manifest(copy).inputs] == [
        ("corpus", "../data/code"),
        ("selection", "../selection"),
    ]
    assert find_faults(tmp_path / "of_indices") == []
    assert not list((tmp_path / "of_indices").glob(".*"))


def test_a_selection_of_another_corpus_is_refused(selection: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "data" / "web", random_sequences(LENGTHS, seed=9))
    with pytest.raises(FingerprintMismatchError, match=r"selection was selected from web \[.*select again, or bring"):
        materialize([selection], tmp_path / "copy")


def test_repetitions_cannot_be_gathered_from_indices(selection: Path, tmp_path: Path) -> None:
    manifest = json.loads((selection / "manifest.json").read_text())
    (selection / "manifest.json").write_text(json.dumps({**manifest, "settings": {"repeat": True}}))
    with pytest.raises(InputError, match="which its indices do not say: select again without --index-only"):
        materialize([selection], tmp_path / "copy")


def test_a_finished_prefix_is_not_copied_again(views: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "copy"
    expected = materialize([views], output)
    before = files_in(output)
    (output / "manifest.json").unlink()
    _, second = prefixes_in(output).values()
    second.with_name(f"{second.name}.manifest.json").unlink()
    second.with_name(f"{second.name}.idx").unlink()
    (output / f".{second.name}.lengths.tmp").touch()  # what tells a kill
    copied = []
    monkeypatch.setattr(
        materialize_module,
        "copy_parts",
        lambda parts, prefix, **values: copied.append(prefix) or plain_copy(parts, prefix, **values),
    )
    assert materialize([views], output) == expected
    assert copied == [second]
    assert files_in(output) == before


plain_copy = materialize_module.copy_parts

KILLED_COPY = """
import os, signal, sys
from pathlib import Path
from megatron_miniplm.cli import main
from megatron_miniplm.indexed import copying
from megatron_miniplm.indexed.writer import IndexedWriter

copying._COPY_BYTES = 16
left, plain_append = int(sys.argv[1]), IndexedWriter.append

def append(self, *arguments):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    plain_append(self, *arguments)

IndexedWriter.append = append
main(["materialize", "--input", sys.argv[2], "--output", sys.argv[3]])
"""


@pytest.mark.parametrize("kind", ["views", "selection"])
def test_kills_leave_no_trace(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    given = request.getfixturevalue(kind)
    materialize([given], tmp_path / "undisturbed")
    expected = files_in(tmp_path / "undisturbed")
    output, num_seen = tmp_path / "copy", set()
    for num_appends in (0, 1, 3, 1, 0):
        process = subprocess.run(
            [sys.executable, "-c", KILLED_COPY, str(num_appends), str(given), str(output)], capture_output=True
        )
        assert process.returncode == -signal.SIGKILL, process.stderr
        visible = {name: data for name, data in files_in_visible(output).items() if not name.startswith(".")}
        assert visible.items() <= expected.items()
        num_seen.add(len(visible))
    assert len(num_seen) > 1  # one prefix was finished before a kill, and stayed
    materialize([given], output)
    found = files_in(output)
    data_args = "data_args.txt"
    assert found.pop(data_args).replace(b"/copy/", b"/undisturbed/") == expected.pop(data_args)
    assert found == expected


def files_in_visible(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("[!.]*")} if directory.exists() else {}


def test_another_output_is_refused(views: Path, selection: Path, corpora: list[IndexedCorpus], tmp_path: Path) -> None:
    output = tmp_path / "copy"
    materialize([views], output)
    before = files_in(output)
    shutil.copytree(output, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "manifest.json").unlink()
    write_data_args(tmp_path / "blend", [(1, tmp_path / "elsewhere")])
    cases = (
        ([corpora[0].prefix], output, r"holds code_refined-\w+, which is none of what is copied"),
        ([prefixes_in(views)[name] for name in prefixes_in(output)], output, "holds other views"),
        ([prefixes_in(views)[min(prefixes_in(output))]], tmp_path / "unfinished", "holds web_refined"),
        ([views], selection, "holds other selection"),
        ([views], tmp_path / "blend", r"data_args\.txt names elsewhere"),
        ([views], corpora[0].prefix, "web is the prefix of a .bin/.idx pair"),
        ([corpora[0].prefix], tmp_path / "data", "holds code, which is none"),
    )
    for inputs, directory, message in cases:
        with pytest.raises(InputError, match=f"{message}.*give another --output"):
            materialize(inputs, directory)
    assert files_in(output) == before


def test_a_name_of_another_content_is_refused(corpora: list[IndexedCorpus], tmp_path: Path) -> None:
    materialize([corpora[0].prefix], tmp_path / "copy")
    other = write_corpus(tmp_path / "other" / "web", random_sequences(LENGTHS, seed=5))
    with pytest.raises(InputError, match=r"web was made from other inputs .*: choose another --output, or delete it"):
        materialize([other.prefix], tmp_path / "copy")
    with pytest.raises(InputError, match=r"would both be .*copy2/web: give each prefix once"):
        materialize([corpora[0].prefix, other.prefix], tmp_path / "copy2")
    assert not os.path.exists(tmp_path / "copy2")


def test_a_selection_that_was_moved_with_its_corpus_is_copied_from_where_it_is(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    corpus = write_corpus(old / "corpus", [[1, 2, 3], [4, 5], [6, 7, 8, 9], [1, 3]])
    for seed, role in enumerate(("teacher", "reference")):
        write_scores(old / role, [corpus], np.random.default_rng(seed).random(4) * 9)
    sample(old / "teacher", old / "reference", old / "refined")
    shutil.move(old, new)
    write_corpus(old / "corpus", [[9, 9, 9], [9, 9], [9, 9, 9, 9], [9, 9]])  # another one in its place
    materialize([new / "refined"], tmp_path / "copies")
    (copied,) = (IndexedCorpus.open(prefix) for prefix in prefixes_in(tmp_path / "copies").values())
    moved = IndexedCorpus.open(new / "corpus")
    originals = [moved.sequence(index).tolist() for index in range(4)]
    assert len(copied) == 2
    assert all(copied.sequence(index).tolist() in originals for index in range(2))
