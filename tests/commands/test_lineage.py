import json
import os
from pathlib import Path

import numpy as np
import pytest
from megatron_runs import write_corpus
from score_stores import write_scores
from selections import sample

from megatron_miniplm.artifacts.lineage import lineage_lines
from megatron_miniplm.artifacts.manifest import Manifest
from megatron_miniplm.cli import main
from megatron_miniplm.indexed import IndexedCorpus


@pytest.fixture(autouse=True)
def selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A selection of a corpus with a manifest, and one foreign pair without."""
    monkeypatch.chdir(tmp_path)
    corpus = write_corpus(Path("pile"), [[1, 2, 3], [4, 5]])
    Manifest(kind="corpus", fingerprint=corpus.fingerprint(), counts={"num_tokens": 5}).write(corpus.prefix)
    for name in ("teacher", "reference"):
        write_scores(Path(name), [corpus], [1.0, 2.0])
    sample(Path("teacher"), Path("reference"), Path("selection"))
    write_corpus(Path("foreign"), [[1]])
    return Path("selection")


def lineage(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    exit_code = main(["lineage", *arguments])
    captured = capsys.readouterr()
    return exit_code, captured.out, captured.err


def test_the_tree_of_a_selection(capsys: pytest.CaptureFixture[str], selection: Path) -> None:
    exit_code, out, err = lineage(capsys, "selection")
    pile = f"corpus: pile (corpus: 5 tokens) [{IndexedCorpus.open('pile').fingerprint()[:8]}]"
    assert (exit_code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("selection (selection: 1 sequences, 3 tokens) [")
    assert lines[1].startswith("  teacher scores: teacher (scores: ")
    assert lines[2].startswith("    model: checkpoint [")
    assert lines[2].endswith(" (not here)")
    assert lines[3] == f"    {pile}"
    assert lines[4].startswith("  reference scores: reference (scores: ")
    assert lines[-1] == f"  {pile}"
    assert len(lines) == 8
    assert lines == lineage_lines(selection)


def test_a_prefix(capsys: pytest.CaptureFixture[str], selection: Path) -> None:
    view = next(selection.glob("*.idx")).with_suffix("")
    exit_code, out, _ = lineage(capsys, str(view))
    assert exit_code == 0
    assert out.splitlines()[0].startswith(f"{view} (view: 1 sequences, ")
    assert out.splitlines()[1].startswith("  source: pile (corpus: 5 tokens) [")


def test_what_has_changed_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    Manifest(kind="corpus", fingerprint="dd" * 16, counts={}).write(Path("pile"))
    assert "corpus: pile (corpus) [dddddddd] (CHANGED since it was used)" in lineage(capsys, "selection")[1]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code, out, _ = lineage(capsys, "selection", "--json")
    tree = json.loads(out)
    assert exit_code == 0
    assert (tree["role"], tree["path"], tree["kind"]) == ("", "selection", "selection")
    assert [parent["role"] for parent in tree["parents"]] == ["teacher scores", "reference scores", "corpus"]
    model, corpus = tree["parents"][0]["parents"]
    assert (model["path"], model["notes"]) == ("checkpoint", ["not here"])
    assert (corpus["path"], corpus["counts"], corpus["parents"]) == ("pile", {"num_tokens": 5}, [])
    assert corpus["fingerprint"] == IndexedCorpus.open("pile").fingerprint()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "nothing has no nothing.manifest.json: it is not a finished artifact of megatron-miniplm"),
        ("foreign", "foreign has no foreign.manifest.json: it is not a finished artifact of megatron-miniplm"),
        ("empty", "empty has no manifest.json: it is not a finished artifact of megatron-miniplm"),
        ("pile.idx", "pile.idx is one half of a pair: give its prefix pile"),
        ("pile.bin", "pile.bin is one half of a pair: give its prefix pile"),
        ("x" * 300, "cannot be used: File name too long"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_no_artifact(capsys: pytest.CaptureFixture[str], path: str, message: str, flags: list[str]) -> None:
    os.mkdir("empty")
    exit_code, out, err = lineage(capsys, path, *flags)
    assert (exit_code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.endswith(f"{message}\n")
    assert err.count("\n") == 1


def test_a_damaged_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    Path("pile.manifest.json").write_text("?")
    exit_code, out, err = lineage(capsys, "pile")
    assert (exit_code, out) == (2, "")
    assert err.startswith("error: pile.manifest.json is not a valid manifest")
    assert "its manifest is damaged" in lineage(capsys, "selection")[1]


def test_inspect_prints_the_same_tree(capsys: pytest.CaptureFixture[str]) -> None:
    _, tree, _ = lineage(capsys, "selection")
    assert main(["inspect", "selection"]) == 0
    inspected = capsys.readouterr().out
    assert inspected.split("lineage\n")[1] == "".join(f"  {line}\n" for line in tree.splitlines())


def test_nothing_of_the_data_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    Path("pile.bin").unlink()
    np.save("pile.idx", np.zeros(1))
    assert lineage(capsys, "pile")[0] == 0
