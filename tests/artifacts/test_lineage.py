import pytest

from megatron_miniplm.artifacts import Manifest
from megatron_miniplm.artifacts.lineage import lineage_lines
from megatron_miniplm.artifacts.manifest import input_of, manifest_path


@pytest.fixture(autouse=True)
def work_in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make_artifact(tmp_path):
    """Writes the manifest of a directory artifact; `parents` are (role, name, fingerprint when used)."""

    def make(name, fingerprint, *parents, kind="scores"):
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        inputs = tuple(input_of(role, tmp_path / path, used, relative_to=directory) for role, path, used in parents)
        Manifest(kind=kind, fingerprint=fingerprint, counts={"num_tokens": 12345}, inputs=inputs).write(directory)
        return directory

    return make


def test_tree(tmp_path, make_artifact):
    (tmp_path / "pile.jsonl").write_text("{}")
    make_artifact("tokenizer", "aa" * 16, kind="tokenizer")
    make_artifact("corpus", "bb" * 16, ("tokenizer", "tokenizer", "aa" * 16), ("text", "pile.jsonl", "cc" * 16))
    scores = make_artifact("scores", "dd" * 16, ("corpus", "corpus", "bb" * 16), ("model", "checkpoint", "ee" * 16))
    assert lineage_lines(scores) == [
        "scores (scores: 12,345 tokens) [dddddddd]",
        "  corpus: corpus (scores: 12,345 tokens) [bbbbbbbb]",
        "    tokenizer: tokenizer (tokenizer: 12,345 tokens) [aaaaaaaa]",
        "    text: pile.jsonl [cccccccc]",
        "  model: checkpoint [eeeeeeee] (not here)",
    ]


def test_changed_parent(make_artifact):
    make_artifact("corpus", "bb" * 16)
    scores = make_artifact("scores", "dd" * 16, ("corpus", "corpus", "99" * 16))
    assert lineage_lines(scores)[1] == "  corpus: corpus (scores: 12,345 tokens) [bbbbbbbb] (CHANGED since it was used)"


def test_damaged_parent(make_artifact):
    manifest_path(make_artifact("corpus", "bb" * 16)).write_text("{")
    scores = make_artifact("scores", "dd" * 16, ("corpus", "corpus", "bb" * 16))
    assert lineage_lines(scores)[1] == "  corpus: corpus [bbbbbbbb] (its manifest is damaged)"


def test_foreign_prefix_as_parent(tmp_path, make_artifact):
    (tmp_path / "pile.idx").write_bytes(b"")
    scores = make_artifact("scores", "dd" * 16, ("corpus", "pile", "bb" * 16))
    assert lineage_lines(scores)[1] == "  corpus: pile [bbbbbbbb]"


def test_a_cycle_ends(make_artifact):
    make_artifact("a", "aa" * 16, ("corpus", "b", "bb" * 16))
    b = make_artifact("b", "bb" * 16, ("corpus", "a", "aa" * 16))
    assert [line.strip() for line in lineage_lines(b / ".." / "b")] == [
        "b (scores: 12,345 tokens) [bbbbbbbb]",
        "corpus: a (scores: 12,345 tokens) [aaaaaaaa]",
        "corpus: b (scores: 12,345 tokens) [bbbbbbbb] (parents as above)",
    ]


def test_a_shared_ancestor_is_followed_once(make_artifact):
    make_artifact("tokenizer", "aa" * 16)
    make_artifact("corpus", "bb" * 16, ("tokenizer", "tokenizer", "aa" * 16))
    for role in ("teacher", "reference"):
        make_artifact(role, "cc" * 16, ("corpus", "corpus", "bb" * 16))
    selection = make_artifact("selection", "dd" * 16, ("t", "teacher", "cc" * 16), ("r", "reference", "cc" * 16))
    assert [line.split(" (")[0] for line in lineage_lines(selection)] == [
        "selection",
        "  t: teacher",
        "    corpus: corpus",
        "      tokenizer: tokenizer",
        "  r: reference",
        "    corpus: corpus",
    ]


def test_the_run_directory_can_move(tmp_path, make_artifact, monkeypatch):
    make_artifact("corpus", "bb" * 16)
    make_artifact("scores", "dd" * 16, ("corpus", "corpus", "bb" * 16))
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    monkeypatch.chdir(moved.parent)
    assert lineage_lines(moved / "scores")[1].startswith("  corpus: moved/corpus (scores")


def test_a_chain_without_end_is_cut(tmp_path, make_artifact):
    for number in range(1500):
        make_artifact(f"a{number}", f"{number:032x}", ("corpus", f"a{number + 1}", f"{number + 1:032x}"))
    lines = lineage_lines(tmp_path / "a0")
    assert len(lines) == 65
    assert lines[-1].strip().startswith("corpus: a64 ")
    assert "too many generations" in lines[-1]
